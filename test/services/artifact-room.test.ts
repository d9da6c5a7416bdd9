/** ORCHD-ART-2, ORCHD-ART-4. What the artifacts may take together, and what goes for it, also while many come at once. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import type { ArtifactDocument } from "../../src/domain/artifact.ts";
import { isOrchestratorError } from "../../src/domain/errors.ts";
import { limits } from "../../src/domain/limits.ts";
import { FolderBlobStore } from "../../src/infra/blobs/folder-blob-store.ts";
import { SqliteArtifactIndex } from "../../src/infra/sqlite/artifact-index.ts";
import type { BlobStore } from "../../src/ports/blob-store.ts";
import { type ArtifactRules, Artifacts } from "../../src/services/artifacts.ts";
import { bytesOf, digestOf, inPieces } from "../conformance/blob-store.ts";
import { PowerCutFiles } from "../support/power-cut-files.ts";
import { RecordingLog, StillClock } from "../support/test-app.ts";

const alice = { keyId: "alice", admin: false };
const bob = { keyId: "bob", admin: false };
const document = (content: string, more: Partial<ArtifactDocument> = {}): ArtifactDocument => ({
  kind: "other",
  content,
  tags: [],
  parent: null,
  metadata: {},
  attachments: [],
  ...more,
});
const codeOf = async (work: () => unknown): Promise<string> => {
  try {
    await work();
  } catch (error) {
    if (isOrchestratorError(error)) return error.code;
    throw error;
  }
  return "none";
};
const day = 24 * 3600 * 1000;

class Clock extends StillClock {
  override setTimer() {
    return { cancel: () => undefined };
  }
}

/** How often the collection asks for candidates. */
class CountingIndex extends SqliteArtifactIndex {
  looseAsked = 0;
  override loose(...of: Parameters<SqliteArtifactIndex["loose"]>) {
    this.looseAsked += 1;
    return super.loose(...of);
  }
}

/** Bytes that come when the test lets them; `taken` resolves when one more piece was asked for. */
class Sender implements AsyncIterable<Uint8Array> {
  readonly #waiting: ((result: IteratorResult<Uint8Array>) => void)[] = [];
  #asked = Promise.withResolvers<void>();

  async send(bytes: Uint8Array): Promise<void> {
    await this.#asked.promise;
    this.#asked = Promise.withResolvers<void>();
    this.#waiting.shift()?.({ done: false, value: bytes });
    await this.#asked.promise;
  }

  async end(): Promise<void> {
    await this.#asked.promise;
    this.#waiting.shift()?.({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return {
      next: () =>
        new Promise((resolve) => {
          this.#waiting.push(resolve);
          this.#asked.resolve();
        }),
    };
  }
}

let folder: string;
let files: PowerCutFiles;
let clock: Clock;
let store: BlobStore;
let index: CountingIndex;
let artifacts: Artifacts;

const open = async (rules: Partial<ArtifactRules> = {}): Promise<Artifacts> => {
  store = await FolderBlobStore.open("/artifacts", files);
  index = new CountingIndex({ path: join(folder, "index.sqlite"), place: "/artifacts" });
  const made = new Artifacts({
    store,
    index,
    clock,
    log: new RecordingLog(),
    rules: { artifactBytesMax: 1e6, attachmentBytesMax: 1e6, bytesMax: 1e9, maxAgeMs: null, ...rules },
  });
  await made.start();
  return made;
};
const reopen = async (rules: Partial<ArtifactRules> = {}): Promise<void> => {
  await artifacts.stop();
  artifacts = await open(rules);
};
const put = async (content: string, more: Partial<ArtifactDocument> = {}, caller = alice): Promise<string> =>
  (await artifacts.put(caller, document(content, more))).entry.id;
const attach = async (bytes: Uint8Array, caller = alice): Promise<string> =>
  (await artifacts.attach(caller, inPieces(bytes, 100))).digest;
const isThere = async (id: string): Promise<boolean> =>
  (await codeOf(() => artifacts.get(alice, id))) === "none";
/** What lies in the store, whatever the index says. */
const storedBytes = async (): Promise<number> => {
  let bytes = 0;
  for await (const { sizeBytes } of store.list()) bytes += sizeBytes;
  return bytes;
};

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "orchestratord-room-"));
  files = new PowerCutFiles();
  clock = new Clock();
  artifacts = await open();
});
afterEach(async () => {
  await artifacts.stop();
  rmSync(folder, { recursive: true });
});

describe("a bound on everything", () => {
  test("holds for many documents at once", async () => {
    await reopen({ bytesMax: 1000 });
    const codes = await Promise.all(
      Array.from({ length: 6 }, (_, at) => codeOf(() => put(String(at).repeat(300)))),
    );
    expect(codes.filter((code) => code === "none")).toHaveLength(2);
    expect(codes.filter((code) => code === "STORAGE_UNAVAILABLE")).toHaveLength(4);
    expect(await storedBytes()).toBeLessThanOrEqual(1000);
    // What was refused left no claim.
    expect(await codeOf(() => put("x"))).toBe("none");
  });

  test("holds for attachments that come in at the same time, and counts only what came", async () => {
    await reopen({ bytesMax: 1000 });
    const [first, second] = [new Sender(), new Sender()];
    const kept = artifacts.attach(alice, first);
    const refused = codeOf(() => artifacts.attach(bob, second));
    await first.send(new Uint8Array(600).fill(1));
    const over = second.send(new Uint8Array(600).fill(2));
    expect(await refused).toBe("STORAGE_UNAVAILABLE");
    void over;
    await first.end();
    expect((await kept).sizeBytes).toBe(600);
    expect(await storedBytes()).toBe(600);
    expect(await files.names("/artifacts/tmp")).toEqual([]);
    expect(await attach(new Uint8Array(400).fill(3))).toHaveLength(64);
  });

  test("an attachment makes room as it comes, and takes no more than it needs", async () => {
    await reopen({ bytesMax: 1000 });
    const old = [];
    for (const letter of "abcd") old.push(await attach(bytesOf(letter.repeat(240))));
    clock.now += limits.artifactGraceMs;
    const digest = await attach(bytesOf("e".repeat(300)));
    expect(artifacts.headAttachment(alice, digest).sizeBytes).toBe(300);
    const left = old.filter((id) => index.find("attachments", "alice", id) !== null);
    expect(left.length).toBeGreaterThanOrEqual(1);
    expect(left).toEqual(old.slice(-left.length));
    expect(await storedBytes()).toBeLessThanOrEqual(1000);
  });

  test("what can never fit costs nobody anything", async () => {
    await reopen({ bytesMax: 1000 });
    const old = await put("a".repeat(300));
    clock.now += day;
    expect(await codeOf(() => put("b".repeat(2000)))).toBe("STORAGE_UNAVAILABLE");
    expect(await isThere(old)).toBe(true);
  });

  test("more than was announced or may be leaves nothing", async () => {
    await reopen({ attachmentBytesMax: 500 });
    const unread = { [Symbol.asyncIterator]: () => expect.unreachable("no byte is asked for") };
    expect(await codeOf(() => artifacts.attach(alice, unread, 501))).toBe("PAYLOAD_TOO_LARGE");
    expect(await codeOf(() => artifacts.attach(alice, inPieces(new Uint8Array(501), 100), 500))).toBe(
      "PAYLOAD_TOO_LARGE",
    );
    expect(await storedBytes()).toBe(0);
    expect(await files.names("/artifacts/tmp")).toEqual([]);
  });

  test("a disk that is full in the middle is 503 and leaves nothing; then it goes on", async () => {
    const { create } = files;
    files.create = async (path) => {
      const file = await create.call(files, path);
      let writes = 0;
      const write = async (bytes: Uint8Array): Promise<void> => {
        writes += 1;
        if (writes === 3) throw Object.assign(new Error("no room"), { code: "ENOSPC" });
        await file.write(bytes);
      };
      return { ...file, write };
    };
    expect(await codeOf(() => attach(new Uint8Array(1000)))).toBe("STORAGE_UNAVAILABLE");
    files.create = create;
    expect(await files.names("/artifacts/tmp")).toEqual([]);
    expect(artifacts.totals().bytes).toBe(0);
    await attach(new Uint8Array(1000));
    expect(artifacts.totals().bytes).toBe(1000);
  });

  test("a sender that breaks off is told so, if it still listens, and leaves nothing", async () => {
    const broken = async function* () {
      yield new Uint8Array(100);
      throw Object.assign(new Error("gone"), { code: "ECONNRESET" });
    };
    expect(await codeOf(() => artifacts.attach(alice, broken()))).toBe("INVALID_PARAMS");
    expect(await files.names("/artifacts/tmp")).toEqual([]);
    expect(await storedBytes()).toBe(0);
  });
});

describe("what was stored again", () => {
  test("is as young as that: the document that names it may follow", async () => {
    await reopen({ maxAgeMs: day });
    const bytes = bytesOf("data");
    const digest = await attach(bytes);
    clock.now += 2 * day;
    await attach(bytes);
    expect((await artifacts.collect()).count).toBe(0);
    const id = await put("names it", { attachments: [digest] });
    clock.now += day - 1;
    expect((await artifacts.collect()).count).toBe(0);
    expect(await isThere(id)).toBe(true);
  });

  test("is there, whether or not it was collected while it came in", async () => {
    await reopen({ maxAgeMs: day });
    const bytes = bytesOf("data");
    const digest = await attach(bytes);
    clock.now += 2 * day;
    const sender = new Sender();
    const again = artifacts.attach(alice, sender);
    await sender.send(bytes);
    await artifacts.collect();
    await sender.end();
    expect((await again).digest).toBe(digest);
    expect(artifacts.headAttachment(alice, digest).storedMs).toBe(clock.now);
    expect(await storedBytes()).toBe(4);
  });
});

describe("a collection", () => {
  test("follows a long chain in one pass", async () => {
    await reopen({ maxAgeMs: day });
    const { entry } = await artifacts.put(alice, document("the first link"));
    let parent = entry.id;
    // In the index only: what is asked of it is what counts here.
    for (let at = 1; at < 1200; at += 1) {
      const id = digestOf(bytesOf(`link ${at}`));
      index.add({ ...entry, id, parent }, "");
      parent = id;
    }
    clock.now += day;
    index.looseAsked = 0;
    expect((await artifacts.collect()).count).toBe(1200);
    expect(index.looseAsked).toBeLessThan(5);
  });

  test("asks once where nothing may go, however much there is", async () => {
    await reopen({ maxAgeMs: day });
    const { entry } = await artifacts.put(alice, document("young"));
    for (let at = 1; at < 1200; at += 1) index.add({ ...entry, id: digestOf(bytesOf(`young ${at}`)) }, "");
    index.looseAsked = 0;
    expect((await artifacts.collect()).count).toBe(0);
    expect(index.looseAsked).toBe(1);
  });

  test("leaves what another document still names, and takes it with the last one", async () => {
    await reopen({ maxAgeMs: day });
    const digest = await attach(bytesOf("shared"));
    await put("first", { attachments: [digest] });
    clock.now += day - 1;
    const second = await put("second", { attachments: [digest] });
    clock.now += 1;
    expect((await artifacts.collect()).count).toBe(1);
    expect(artifacts.headAttachment(alice, digest).sizeBytes).toBe(6);
    expect(await isThere(second)).toBe(true);
    clock.now += day;
    expect((await artifacts.collect()).count).toBe(2);
    expect(await storedBytes()).toBe(0);
  });
});

test("whatever many do at once, the bound, the references and the index hold", async () => {
  const step = fc.record({
    what: fc.constantFrom("put", "child", "attach", "named", "get", "collect", "damage"),
    which: fc.nat({ max: 7 }),
    ageHours: fc.constantFrom(0, 0, 0, 1, 30),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(step, { maxLength: 6 }), { maxLength: 8 }), async (rounds) => {
      await artifacts.stop();
      files = new PowerCutFiles();
      rmSync(join(folder, "index.sqlite"));
      artifacts = await open({ bytesMax: 2000, maxAgeMs: day });
      let known: string[] = [];
      let sent: string[] = [];
      for (const round of rounds) {
        const outcomes = round.map(async ({ what, which, ageHours }) => {
          clock.now += ageHours * 3_600_000;
          const text = `${what} ${which} ${"x".repeat(which * 40)}`;
          const parent = known[which % Math.max(1, known.length)] ?? null;
          const attachment = sent[which % Math.max(1, sent.length)];
          if (what === "put") known.push(await put(text));
          if (what === "child") known.push(await put(text, { parent }));
          if (what === "attach") sent.push(await attach(bytesOf(text)));
          if (what === "named" && attachment !== undefined)
            known.push(await put(text, { attachments: [attachment] }));
          if (what === "get" && parent !== null)
            expect(digestOf(bytesOf("")) === (await artifacts.get(alice, parent)).entry.id).toBe(false);
          if (what === "collect") await artifacts.collect();
          if (what === "damage" && parent !== null) {
            const node = files.live.get(
              `/artifacts/documents/alice/${parent.slice(0, 2)}/${parent.slice(2, 4)}/${parent}`,
            );
            if (node?.bytes) node.bytes = node.bytes.map((byte) => byte ^ 1);
          }
        });
        for (const outcome of await Promise.allSettled(outcomes))
          if (outcome.status === "rejected" && !isOrchestratorError(outcome.reason)) throw outcome.reason;
        expect(artifacts.totals().bytes).toBeLessThanOrEqual(2000);
        const entries = index.walk(0, 1000);
        const stored = new Set<string>();
        for await (const { key } of store.list()) stored.add(`${key.shelf} ${key.digest}`);
        // Every entry has its blob and every blob its entry.
        expect(entries.map(({ shelf, id }) => `${shelf} ${id}`).sort()).toEqual([...stored].sort());
        expect(artifacts.totals().bytes).toBe(entries.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0));
        known = known.filter((id) => stored.has(`documents ${id}`));
        sent = sent.filter((id) => stored.has(`attachments ${id}`));
        for (const { attachments } of entries) for (const id of attachments) expect(sent).toContain(id);
      }
    }),
    { numRuns: 40 },
  );
});
