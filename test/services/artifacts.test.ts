/** Artifacts over a blob folder in memory and an index in a folder of its own: ownership, references, collection, repair. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import type { ArtifactDocument } from "../../src/domain/artifact.ts";
import { isOrchestratorError } from "../../src/domain/errors.ts";
import { limits } from "../../src/domain/limits.ts";
import { FolderBlobStore } from "../../src/infra/blobs/folder-blob-store.ts";
import { SqliteArtifactIndex } from "../../src/infra/sqlite/artifact-index.ts";
import { type ArtifactRules, Artifacts } from "../../src/services/artifacts.ts";
import { bytesOf, digestOf, inPieces } from "../conformance/blob-store.ts";
import { PowerCutFiles } from "../support/power-cut-files.ts";
import { RecordingLog, StillClock } from "../support/test-app.ts";

const alice = { keyId: "alice", admin: false };
const bob = { keyId: "bob", admin: false };
const operator = { keyId: "operator", admin: true };
const document = (content: string, more: Partial<ArtifactDocument> = {}): ArtifactDocument => ({
  kind: "other",
  content,
  tags: [],
  parent: null,
  metadata: {},
  attachments: [],
  ...more,
});
const everything = { kind: null, tag: null, search: null, before: null, limit: 100 };
const codeOf = async (work: () => unknown): Promise<string> => {
  try {
    await work();
  } catch (error) {
    if (isOrchestratorError(error)) return error.code;
    throw error;
  }
  return "none";
};

class Clock extends StillClock {
  override setTimer() {
    return { cancel: () => undefined };
  }
}

let folder: string;
let files: PowerCutFiles;
let clock: Clock;
let artifacts: Artifacts;
let index: SqliteArtifactIndex;

const open = async (rules: Partial<ArtifactRules> = {}): Promise<Artifacts> => {
  index = new SqliteArtifactIndex({ path: join(folder, "index.sqlite"), place: "/artifacts" });
  const made = new Artifacts({
    store: await FolderBlobStore.open("/artifacts", files),
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
const listed = async (caller = alice, query = {}) =>
  (await artifacts.list(caller, { ...everything, ...query })).entries;
const idsOf = async (caller = alice, query = {}): Promise<string[]> =>
  (await listed(caller, query)).map(({ id }) => id);
const put = async (content: string, more: Partial<ArtifactDocument> = {}, caller = alice): Promise<string> =>
  (await artifacts.put(caller, document(content, more))).entry.id;
const pathOf = (id: string): string => `/artifacts/documents/alice/${id.slice(0, 2)}/${id.slice(2, 4)}/${id}`;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "orchestratord-artifacts-"));
  files = new PowerCutFiles();
  clock = new Clock();
  artifacts = await open();
});
afterEach(async () => {
  await artifacts.stop();
  rmSync(folder, { recursive: true });
});

describe("documents", () => {
  test("the same document is the same artifact, as old as it was", async () => {
    const first = await artifacts.put(alice, document("hello"));
    clock.now += 5000;
    const second = await artifacts.put(alice, document("hello"));
    expect([first.fresh, second.fresh]).toEqual([true, false]);
    expect(second.entry).toEqual({ ...first.entry, storedMs: clock.now });
    const text = '{"content":"hello","kind":"other","metadata":{},"parent":null,"tags":[]}';
    expect(first.entry.id).toBe(digestOf(bytesOf(text)));
    expect(first.entry.sizeBytes).toBe(text.length);
    expect((await artifacts.get(alice, first.entry.id)).document.content).toBe("hello");
  });

  test("belong to their key; an admin sees all", async () => {
    const id = await put("mine");
    expect(await codeOf(() => artifacts.get(bob, id))).toBe("NOT_FOUND");
    expect(await idsOf(bob)).toEqual([]);
    expect(await idsOf(operator)).toEqual([id]);
    expect((await artifacts.get(operator, id)).document.content).toBe("mine");
    // Bob learns nothing of it by storing the same.
    expect((await artifacts.put(bob, document("mine"))).fresh).toBe(true);
    expect(await idsOf(operator)).toEqual([id, id]);
  });

  test("refer only to what is there for their key", async () => {
    const parent = await put("parent");
    const { digest } = await artifacts.attach(alice, inPieces(bytesOf("data")));
    const child = await put("child", { parent, attachments: [digest] });
    expect((await artifacts.get(alice, child)).entry.parent).toBe(parent);
    expect(await codeOf(() => put("child", { parent }, bob))).toBe("INVALID_PARAMS");
    expect(await codeOf(() => put("child", { attachments: [digest] }, bob))).toBe("INVALID_PARAMS");
  });

  test("have their bounds (ORCHD-ART-2)", async () => {
    expect(await codeOf(() => put("x".repeat(1e6)))).toBe("PAYLOAD_TOO_LARGE");
    expect(await codeOf(() => put("x".repeat(300_000), { kind: "summary" }))).toBe("PAYLOAD_TOO_LARGE");
    expect(await codeOf(() => artifacts.attach(alice, inPieces(new Uint8Array(1e6 + 1), 1e5)))).toBe(
      "PAYLOAD_TOO_LARGE",
    );
  });

  test("that were damaged are not served, are put aside, and mended by the original", async () => {
    const id = await put("precious");
    const node = files.live.get(pathOf(id));
    if (node?.bytes) node.bytes = node.bytes.map((byte) => byte ^ 1);
    expect(await codeOf(() => artifacts.get(alice, id))).toBe("UNTRUSTED_ARTIFACT");
    expect(await files.names("/artifacts/quarantine")).toHaveLength(1);
    expect(await codeOf(() => artifacts.get(alice, id))).toBe("NOT_FOUND");
    expect((await artifacts.put(alice, document("precious"))).fresh).toBe(true);
    expect((await artifacts.get(alice, id)).document.content).toBe("precious");
  });
});

describe("lists", () => {
  test("newest first, by kind, tag and words, in pages", async () => {
    const ids: string[] = [];
    for (let at = 0; at < 12; at += 1) {
      clock.now += 10;
      const more = {
        kind: at % 2 === 0 ? "plan" : "diff",
        tags: [`t${at % 3}`],
        metadata: { who: `Nr ${at}` },
      } as const;
      ids.unshift(await put(`Text number ${at}`, more));
    }
    expect(await idsOf()).toEqual(ids);
    expect(await idsOf(alice, { kind: "plan" })).toEqual(ids.filter((_, at) => at % 2 === 1));
    expect(await idsOf(alice, { tag: "t0" })).toHaveLength(4);
    expect(await idsOf(alice, { tag: "t0", kind: "plan" })).toHaveLength(2);
    expect(await idsOf(operator, { tag: "t0" })).toHaveLength(4);
    expect(await idsOf(alice, { search: "NUMBER 11" })).toEqual(ids.slice(0, 1));
    // Nr 1, 10 and 11; and 4 and 7, whose tag is t1.
    expect(await idsOf(alice, { search: "nr 1" })).toHaveLength(5);
    expect(await idsOf(alice, { search: "nowhere" })).toEqual([]);
    for (const query of [{}, { tag: "t1" }, { search: "text" }]) {
      const paged: string[] = [];
      let before = null;
      do {
        const page = await artifacts.list(alice, { ...everything, ...query, before, limit: 3 });
        paged.push(...page.entries.map(({ id }) => id));
        before = page.next;
      } while (before !== null);
      expect(paged).toEqual(await idsOf(alice, query));
    }
  });
});

describe("a rare one among many", () => {
  test("is found however many lie in front of it, by words and by tag with kind", async () => {
    const rare = await put("a needle", { kind: "plan", tags: ["t"] });
    for (let at = 0; at < 3 * limits.artifactSearchSliceRows; at += 1) {
      clock.now += 1;
      await put(`hay ${at}`, { tags: ["t"] });
    }
    expect(await idsOf(alice, { search: "needle", limit: 5 })).toEqual([rare]);
    expect(await idsOf(alice, { tag: "t", kind: "plan" })).toEqual([rare]);
    expect(await idsOf(operator, { tag: "t", kind: "plan", search: "needle" })).toEqual([rare]);
    expect(await idsOf(alice, { tag: "t", kind: "diff" })).toEqual([]);
    const page = await artifacts.list(alice, { ...everything, search: "hay", limit: 150 });
    expect(page.entries).toHaveLength(150);
    const rest = await artifacts.list(alice, { ...everything, search: "hay", limit: 500, before: page.next });
    expect(rest.entries).toHaveLength(3 * limits.artifactSearchSliceRows - 150);
    expect(rest.next).toBeNull();
  });

  test("beyond what one page looks through is found with the cursor", async () => {
    const rare = await put("a needle");
    const { entry } = await artifacts.put(alice, document("hay"));
    for (let at = 1; at < limits.artifactSearchRowsMax; at += 1)
      index.add({ ...entry, id: digestOf(bytesOf(`hay ${at}`)), createdMs: clock.now + at }, "hay");
    const page = await artifacts.list(alice, { ...everything, search: "needle" });
    expect([page.entries, page.next === null]).toEqual([[], false]);
    const next = await artifacts.list(alice, { ...everything, search: "needle", before: page.next });
    expect(next.entries.map(({ id }) => id)).toEqual([rare]);
  });
});

describe("collection (ORCHD-ART-4)", () => {
  const day = 24 * 3600 * 1000;

  test("takes the old, but not what something younger needs", async () => {
    await reopen({ maxAgeMs: day });
    const { digest } = await artifacts.attach(alice, inPieces(bytesOf("data")));
    const grandparent = await put("grandparent", { attachments: [digest] });
    const parent = await put("parent", { parent: grandparent });
    const lonely = await put("lonely");
    clock.now += day;
    const child = await put("child", { parent });
    expect((await artifacts.collect()).count).toBe(1);
    expect(await codeOf(() => artifacts.get(alice, lonely))).toBe("NOT_FOUND");
    expect((await idsOf()).sort()).toEqual([child, parent, grandparent].sort());
    clock.now += day;
    // With the child goes its parent, with that the grandparent, with that the attachment.
    expect((await artifacts.collect()).count).toBe(4);
    expect(artifacts.totals()).toEqual({ documents: 0, attachments: 0, bytes: 0 });
    expect(await codeOf(() => artifacts.openAttachment(alice, digest))).toBe("NOT_FOUND");
  });

  test("makes room by taking the oldest, and refuses where nothing may go (ORCHD-ART-2)", async () => {
    await reopen({ bytesMax: 1000 });
    const first = await put("a".repeat(300));
    clock.now += limits.artifactGraceMs;
    const second = await put("b".repeat(300));
    const third = await put("c".repeat(300));
    expect((await idsOf()).sort()).toEqual([second, third].sort());
    expect(await codeOf(() => artifacts.get(alice, first))).toBe("NOT_FOUND");
    expect(await codeOf(() => put("d".repeat(500)))).toBe("STORAGE_UNAVAILABLE");
  });

  test("never breaks a reference, whatever is stored and however old it is", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.record({ parent: fc.nat({ max: 9 }), ageDays: fc.nat({ max: 3 }) }), { maxLength: 12 }),
        async (steps) => {
          await reopen({ maxAgeMs: 2 * day });
          const mine = (await idsOf()).length;
          const made: string[] = [];
          for (const [at, step] of steps.entries()) {
            clock.now += step.ageDays * day;
            const known = await idsOf();
            const there = made.filter((id) => known.includes(id));
            made.push(await put(`${clock.now} ${at}`, { parent: there[step.parent] ?? null }));
            if (step.parent % 3 === 0) await artifacts.collect();
          }
          await artifacts.collect();
          expect((await idsOf()).length).toBeLessThanOrEqual(mine + steps.length);
          for (const { parent, createdMs } of await listed()) {
            if (parent !== null) expect((await artifacts.get(alice, parent)).entry.id).toBe(parent);
            expect(createdMs).toBeLessThanOrEqual(clock.now);
          }
          // Everything that is left is young, or somebody younger needs it.
          const left = await listed();
          for (const { id, createdMs } of left)
            if (clock.now - createdMs >= 2 * day) expect(left.some(({ parent }) => parent === id)).toBe(true);
        },
      ),
      { numRuns: 15 },
    );
  });
});

describe("the index", () => {
  test("goes on after an end in order, and is made again after damage, loss or a crash", async () => {
    const id = await put("kept", { tags: ["t"] });
    const { digest } = await artifacts.attach(alice, inPieces(bytesOf("data")));
    await reopen();
    expect(await idsOf(alice, { tag: "t" })).toEqual([id]);
    await artifacts.stop();
    writeFileSync(join(folder, "index.sqlite"), "this is no database");
    artifacts = await open();
    expect(await idsOf(alice, { search: "kept" })).toEqual([id]);
    expect(artifacts.headAttachment(alice, digest).sizeBytes).toBe(4);
    await artifacts.stop();
    rmSync(join(folder, "index.sqlite"));
    files.live.delete(pathOf(id));
    artifacts = await open();
    expect(await idsOf()).toEqual([]);
    expect(artifacts.totals()).toEqual({ documents: 0, attachments: 1, bytes: 4 });
  });
});
