/** Digests of loaded models: each file once as it was then, one after the other, and none that was not read to its end. */
import { expect, test } from "bun:test";
import { FetchError } from "../../src/ports/model-source.ts";
import { ModelDigests } from "../../src/services/model-digests.ts";
import { RecordingLog } from "./rig.ts";

/** Files that are read when they are told to be. */
class SlowFiles {
  readonly asked: string[] = [];
  readonly #reads: { resolve: (digest: string) => void; reject: (error: Error) => void }[] = [];
  digest(path: string, _onBytes: (done: number) => void, signal: AbortSignal): Promise<string> {
    this.asked.push(path);
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    signal.addEventListener("abort", () => reject(new FetchError("aborted", "aborted")));
    this.#reads.push({ resolve, reject });
    return promise;
  }
  read(at: number, digest: string): void {
    this.#reads[at]?.resolve(digest);
  }
  fail(at: number): void {
    this.#reads[at]?.reject(new FetchError("io", "the disk refused"));
  }
}

const [a, b] = [
  { modelPath: "/models/a.gguf", modelStamp: "1" },
  { modelPath: "/models/b.gguf", modelStamp: "1" },
];
const replaced = { ...a, modelStamp: "2" };
const turn = (): Promise<void> => Promise.resolve().then(() => undefined);

test("each file is read once, one after the other, and known when it was read", async () => {
  const files = new SlowFiles();
  const digests = new ModelDigests(files, new RecordingLog());
  for (const model of [a, b, a, { modelPath: null, modelStamp: null }]) digests.want(model);
  await turn();
  expect([files.asked, digests.of(a)]).toEqual([[a.modelPath], null]);
  files.read(0, "aa");
  await turn();
  await turn();
  expect([files.asked, digests.of(a), digests.of(b)]).toEqual([[a.modelPath, b.modelPath], "aa", null]);
  files.read(1, "bb");
  await digests.settled();
  expect([digests.of(a), digests.of(b), digests.of(replaced)]).toEqual(["aa", "bb", null]);
});

test("a file that was replaced is another one", async () => {
  const files = new SlowFiles();
  const digests = new ModelDigests(files, new RecordingLog());
  digests.want(a);
  digests.want(replaced);
  await turn();
  files.read(0, "old");
  await turn();
  await turn();
  files.read(1, "new");
  await digests.settled();
  expect([digests.of(a), digests.of(replaced)]).toEqual(["old", "new"]);
});

test("what cannot be read stays unknown and is logged; the next one is read all the same", async () => {
  const files = new SlowFiles();
  const log = new RecordingLog();
  const digests = new ModelDigests(files, log);
  digests.want(a);
  digests.want(b);
  await turn();
  files.fail(0);
  await turn();
  await turn();
  await turn();
  files.read(1, "bb");
  await digests.settled();
  expect([digests.of(a), digests.of(b), log.of("model_digest_failed").length]).toEqual([null, "bb", 1]);
});

test("a stop waits for no file", async () => {
  const files = new SlowFiles();
  const log = new RecordingLog();
  const digests = new ModelDigests(files, log);
  digests.want(a);
  digests.want(b);
  await turn();
  await digests.stop();
  expect([files.asked, digests.of(a), log.lines.length]).toEqual([[a.modelPath], null, 0]);
});
