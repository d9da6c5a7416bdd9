/** Which model a reload means, over real files: references, places, digests. */
import { afterAll, describe, expect, test } from "bun:test";
import { linkSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { OrchestratorError } from "../../src/domain/errors.ts";
import type { PoolSpec, SameModel } from "../../src/domain/pool.ts";
import { LocalModelFiles } from "../../src/infra/models/local-model-files.ts";
import { ReloadTargets } from "../../src/services/reload-targets.ts";
import { poolSpec } from "../support/replicas.ts";
import { sha256, tinyGguf } from "../support/tiny-gguf.ts";

const folder = mkdtempSync(join(tmpdir(), "orchd-targets-"));
afterAll(() => rmSync(folder, { recursive: true }));
const dir = join(folder, "models");
mkdirSync(dir);
const bytes = tinyGguf(256);
const path = join(dir, "a.gguf");
writeFileSync(path, bytes);
writeFileSync(join(folder, "outside.gguf"), bytes);
writeFileSync(join(dir, "text.gguf"), "no model");

const files = new LocalModelFiles({ dir, roots: [] }, (file) =>
  file.endsWith("text.gguf") ? "no GGUF header" : null,
);
const targets = new ReloadTargets({
  files,
  catalog: {
    get: (id) => {
      if (id !== "known") throw new OrchestratorError("NOT_FOUND", `the catalog has no entry ${id}`);
      return { located: files.locate("a.gguf", true) } as never;
    },
  },
});
const llama = poolSpec({ engine: "llamacpp", modelRef: "file:old.gguf", modelPath: "/m/old.gguf" });
const { signal } = new AbortController();

describe("the model of a reload", () => {
  test.each(["file:a.gguf", "a.gguf", `file:${path}`, "known"])("%s is the file", (ref) => {
    expect(targets.resolve(llama, ref, null, llama)).toEqual({ ...llama, modelRef: ref, modelPath: path });
  });

  test.each([
    ["file:b.gguf", "there is no file"],
    ["../outside.gguf", "models.dir"],
    [`file:${join(folder, "outside.gguf")}`, "outside models.dir"],
    ["hf:org/repo/file.gguf", "fetch it first"],
    ["unknown-entry", "the catalog has no entry"],
  ])("%s is refused", (ref, part) => {
    expect(() => targets.resolve(llama, ref, null, llama)).toThrow(part);
    try {
      targets.resolve(llama, ref, null, llama);
    } catch (error) {
      expect(error).toMatchObject({ code: "INVALID_PARAMS", details: { field: "new_model_ref" } });
    }
  });

  test("that the pool has, or is configured to have, may lie anywhere", () => {
    const now = targets.resolve(llama, "a.gguf", null, llama);
    expect(targets.resolve(now, "a.gguf", null, llama)).toEqual(now);
    expect(targets.resolve(now, "file:old.gguf", null, llama)).toEqual(llama);
  });

  test("is held against the digest of its bytes, and its header is looked at", async () => {
    const to = targets.resolve(llama, "a.gguf", null, llama);
    expect(await targets.problem(to, null, signal)).toBeNull();
    expect(await targets.problem(to, sha256(bytes), signal)).toBeNull();
    const other = "0".repeat(64);
    expect(await targets.problem(to, other, signal)).toBe(
      `the digest of ${path} is ${sha256(bytes)}, not ${other}`,
    );
    const text = targets.resolve(llama, "text.gguf", null, llama);
    expect(await targets.problem(text, null, signal)).toBe("no GGUF header");
    expect(await targets.problem(poolSpec(), null, signal)).toBeNull();
  });
});

describe("two models are the same", () => {
  const place = (name: string, content: Uint8Array | string): PoolSpec => {
    writeFileSync(join(dir, name), content);
    return { ...llama, modelRef: `file:${name}`, modelPath: join(dir, name) };
  };
  const stamp = ({ modelPath }: PoolSpec): string | null => files.stamp(modelPath ?? "");
  const compared = (from: PoolSpec, to: PoolSpec, loaded = [stamp(from)]) =>
    targets.compared(from, to, loaded, signal);
  const other = new Uint8Array(bytes).fill(7, bytes.length - 8);

  test("where their files have the same bytes, whatever they are called (ORCHD-RELOAD-3)", async () => {
    const [from, copy] = [place("from.gguf", bytes), place("copy.gguf", bytes)];
    const first = await compared(from, copy);
    const names = { modelPath: from.modelPath, modelStamp: stamp(from) };
    expect(first).toEqual({
      another: false,
      sameModel: { ...names, modelRefs: ["file:from.gguf"], stamp: stamp(copy) ?? "" },
    } as typeof first);
    // And back: whatever was said under either name is still that model's.
    const back = await compared({ ...copy, sameModel: first.sameModel }, from);
    expect(back).toEqual({
      another: false,
      sameModel: { ...names, modelRefs: ["file:copy.gguf", "file:from.gguf"], stamp: stamp(from) ?? "" },
    } as typeof back);
    // What was found of a file that lies there no more says nothing.
    const stale = { ...copy, sameModel: { ...names, modelRefs: ["file:x"], stamp: "another" } as SameModel };
    expect((await compared(stale, from)).sameModel?.modelRefs).toEqual(["file:copy.gguf"]);
  });

  test("and not where they differ, or where the file was replaced since it was loaded", async () => {
    const [from, to] = [place("from.gguf", bytes), place("to.gguf", other)];
    expect(await compared(from, to)).toEqual({ another: true, sameModel: null });
    const longer = place("longer.gguf", Buffer.concat([bytes, bytes]));
    expect(await compared(from, longer)).toEqual({ another: true, sameModel: null });
    expect(await compared(from, from)).toEqual({ another: false, sameModel: null });
    expect(await compared(from, from, ["of the one that was there before"])).toEqual({
      another: true,
      sameModel: null,
    });
    // Two engines that have loaded two files.
    expect(await compared(from, from, [stamp(from), "another"])).toMatchObject({ another: true });
    expect(await compared(from, from, [])).toEqual({ another: false, sameModel: null });
    expect(await compared(from, { ...to, modelPath: join(dir, "none.gguf") })).toMatchObject({
      another: true,
    });
    expect(await compared({ ...from, modelPath: join(dir, "none.gguf") }, to, [])).toMatchObject({
      another: true,
    });
  });

  test("by their names where there are no files here", async () => {
    const mock = poolSpec({ modelRef: "mock:a", modelPath: null });
    expect(await compared(mock, mock, [null])).toEqual({ another: false, sameModel: null });
    expect(await compared(mock, { ...mock, modelRef: "mock:b" }, [null])).toMatchObject({ another: true });
  });

  test("reads nothing where the sizes differ, or where both names are one file", async () => {
    const read: string[] = [];
    const watched = new ReloadTargets({
      catalog: { get: () => undefined as never },
      files: {
        pathOf: (one) => files.pathOf(one),
        locate: (...of) => files.locate(...of),
        stamp: (one) => files.stamp(one),
        headerProblem: (one) => files.headerProblem(one),
        digest: (...of) => files.digest(...of),
        sameBytes: (...of) => {
          read.push(...of.slice(0, 2).map(String));
          return files.sameBytes(...of);
        },
      },
    });
    const [from, longer] = [place("from.gguf", bytes), place("longer.gguf", Buffer.concat([bytes, bytes]))];
    const linked = { ...llama, modelRef: "linked", modelPath: join(dir, "linked.gguf") };
    linkSync(join(dir, "from.gguf"), linked.modelPath);
    expect(await watched.compared(from, longer, [stamp(from)], signal)).toMatchObject({ another: true });
    expect(await watched.compared(from, linked, [stamp(from)], signal)).toMatchObject({ another: false });
    expect(read).toEqual([]);
    const copy = place("copy.gguf", bytes);
    expect(await watched.compared(from, copy, [stamp(from)], signal)).toMatchObject({ another: false });
    expect(read).toHaveLength(2);
    // A file that cannot be read is not the same.
    const aborted = AbortSignal.abort();
    expect(await watched.compared(from, copy, [stamp(from)], aborted)).toMatchObject({ another: true });
  });
});
