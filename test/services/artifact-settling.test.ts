/** ORCHD-ART-3. The index is made to agree with the blobs after whatever became of it: kill, power cut, damage, another store. */
import { Database } from "bun:sqlite";
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isOrchestratorError } from "../../src/domain/errors.ts";
import { limits } from "../../src/domain/limits.ts";
import { FolderBlobStore } from "../../src/infra/blobs/folder-blob-store.ts";
import { SqliteArtifactIndex } from "../../src/infra/sqlite/artifact-index.ts";
import { BlobError, type BlobStore } from "../../src/ports/blob-store.ts";
import type { Timer } from "../../src/ports/clock.ts";
import { Artifacts } from "../../src/services/artifacts.ts";
import { bytesOf, inPieces } from "../conformance/blob-store.ts";
import { PowerCutFiles } from "../support/power-cut-files.ts";
import { RecordingLog, StillClock } from "../support/test-app.ts";

const alice = { keyId: "alice", admin: false };
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

/** Timers run when the test says so. */
class Clock extends StillClock {
  readonly timers = new Map<Timer, { delayMs: number; fn: () => void }>();
  override setTimer(delayMs?: number, fn?: () => void): Timer {
    const timer: Timer = { cancel: () => void this.timers.delete(timer) };
    this.timers.set(timer, { delayMs: delayMs ?? 0, fn: fn ?? (() => undefined) });
    return timer;
  }
  run(delayMs: number): void {
    for (const [timer, due] of this.timers)
      if (due.delayMs === delayMs) {
        this.timers.delete(timer);
        due.fn();
      }
  }
}

let folder: string;
let files: PowerCutFiles;
let clock: Clock;
let log: RecordingLog;
let index: SqliteArtifactIndex;
const path = (): string => join(folder, "index.sqlite");
const sides = ["", "-wal", "-shm"];

interface Opened {
  readonly artifacts: Artifacts;
  readonly started: Promise<void>;
}

async function open(of: { boot?: string | null; place?: string; store?: BlobStore } = {}): Promise<Opened> {
  const { boot = "one", place = "here" } = of;
  const store = of.store ?? (await FolderBlobStore.open("/artifacts", files));
  index = new SqliteArtifactIndex({ path: path(), place, boot });
  const rules = { artifactBytesMax: 1e6, attachmentBytesMax: 1e6, bytesMax: 1e9, maxAgeMs: 1000 };
  const artifacts = new Artifacts({ store, index, clock, log, rules });
  return { artifacts, started: artifacts.start() };
}

const put = async (artifacts: Artifacts, content: string, more = {}): Promise<string> => {
  const document = {
    kind: "other",
    content,
    tags: ["t"],
    parent: null,
    metadata: {},
    attachments: [],
    ...more,
  };
  return (await artifacts.put(alice, { ...document, kind: "other" })).entry.id;
};
const idsOf = async (artifacts: Artifacts, query = {}): Promise<string[]> =>
  (await artifacts.list(alice, { ...everything, ...query })).entries.map(({ id }) => id).sort();

/** As it lies on the disk while a process has it open. */
const keepFiles = (): void => {
  for (const side of sides)
    if (existsSync(path() + side)) copyFileSync(path() + side, `${path()}.kept${side}`);
};
/** The process died there. */
const bringBack = (): void => {
  for (const side of sides) {
    rmSync(path() + side, { force: true });
    if (existsSync(`${path()}.kept${side}`)) copyFileSync(`${path()}.kept${side}`, path() + side);
  }
};

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "orchestratord-settling-"));
  files = new PowerCutFiles();
  clock = new Clock();
  log = new RecordingLog();
});
afterEach(() => rmSync(folder, { recursive: true }));

/** Two documents and an attachment, of which the index as it was kept knows all or the first one only. */
async function filled(keepAfter: "first" | "last"): Promise<{ ids: string[]; digest: string }> {
  const { artifacts, started } = await open();
  await started;
  const first = await put(artifacts, "the first one");
  if (keepAfter === "first") keepFiles();
  const { digest } = await artifacts.attach(alice, inPieces(bytesOf("data")));
  const second = await put(artifacts, "the second one", { parent: first, attachments: [digest] });
  if (keepAfter === "last") keepFiles();
  await artifacts.stop();
  return { ids: [first, second].sort(), digest };
}

describe("what an index is worth when it is opened", () => {
  type Options = Parameters<typeof open>[0];
  const after = (prepare: () => void, options: Options = {}) => ({ prepare, options });
  const inOrder = (): void => undefined;
  const cases: [string, "clean" | "behind" | "new", { prepare: () => void; options: Options }][] = [
    ["closed in order", "clean", after(inOrder)],
    ["closed in order, the machine started anew", "clean", after(inOrder, { boot: "two" })],
    ["closed in order, of another store", "new", after(inOrder, { place: "elsewhere" })],
    ["its process killed", "behind", after(bringBack)],
    ["the power cut", "new", after(bringBack, { boot: "two" })],
    [
      "its process killed, on a machine that does not tell its starts",
      "new",
      after(bringBack, { boot: null }),
    ],
    ["its process killed, its file damaged", "new", after(() => damage("killed"))],
    ["no database at all", "new", after(() => writeFileSync(path(), "no database"))],
    ["lost", "new", after(() => rmSync(path()))],
  ];
  test.each(cases)("%s: %s", async (_, found, { prepare, options }) => {
    const { ids, digest } = await filled("last");
    prepare();
    const { artifacts, started } = await open(options);
    expect(index.found).toBe(found);
    await started;
    // In any case it says what the blobs say, and the close in order is one.
    expect(await idsOf(artifacts)).toEqual(ids);
    expect(await idsOf(artifacts, { tag: "t", search: "SECOND" })).toHaveLength(1);
    expect(artifacts.totals()).toMatchObject({ documents: 2, attachments: 1 });
    expect(index.isReferenced(digest)).toBe(true);
    await artifacts.stop();
    const again = await open({ ...options, boot: "three" });
    expect(index.found).toBe("clean");
    await again.started;
    await again.artifacts.stop();
  });

  test("damage that shows only in use is 503 then, and mended by the next start", async () => {
    const { ids } = await filled("last");
    damage("in order");
    const { artifacts, started } = await open();
    expect(index.found).toBe("clean");
    await started;
    expect(await codeOf(() => idsOf(artifacts))).toBe("STORAGE_UNAVAILABLE");
    expect(artifacts.bytes()).toBeNull();
    await artifacts.stop().catch(() => null);
    const again = await open({ boot: "one" });
    expect(index.found).toBe("new");
    await again.started;
    expect(await idsOf(again.artifacts)).toEqual(ids);
    await again.artifacts.stop();
  });

  /** All but the first pages, behind the database's back. */
  function damage(ended: "killed" | "in order"): void {
    if (ended === "killed") {
      const db = new Database(path());
      db.run("UPDATE state SET clean = 0");
      db.run("PRAGMA wal_checkpoint(TRUNCATE)");
      db.close();
    }
    const bytes = readFileSync(path());
    bytes.fill(0xee, 4096 * 3);
    writeFileSync(path(), bytes);
  }
});

test("what was under way when the process died is found, what went is forgotten", async () => {
  const { ids, digest } = await filled("first");
  bringBack();
  const [gone] = ids;
  const name = `/artifacts/documents/alice/${gone?.slice(0, 2)}/${gone?.slice(2, 4)}/${gone}`;
  files.live.delete(name);
  const { artifacts, started } = await open();
  await started;
  expect(await idsOf(artifacts)).toEqual(ids.slice(1));
  expect(artifacts.headAttachment(alice, digest).sizeBytes).toBe(4);
  expect(log.lines.some(({ event }) => event === "artifacts_reconciled")).toBe(true);
  await artifacts.stop();
});

test("a damaged file among those that the index lacks is put aside and keeps nobody out", async () => {
  const { ids } = await filled("last");
  rmSync(path());
  const [bad = "", good = ""] = ids;
  const node = files.live.get(`/artifacts/documents/alice/${bad.slice(0, 2)}/${bad.slice(2, 4)}/${bad}`);
  if (node?.bytes) node.bytes = node.bytes.map((byte) => byte ^ 1);
  const { artifacts, started } = await open();
  await started;
  expect(await idsOf(artifacts)).toEqual([good]);
  expect(await files.names("/artifacts/quarantine")).toHaveLength(1);
  expect(log.lines.some(({ event }) => event === "artifact_trouble")).toBe(true);
  await artifacts.stop();
});

/** The same folder, whose list waits for the test, or fails. */
async function slowStore(): Promise<{ store: BlobStore; go: () => void; failures: { left: number } }> {
  const inner = await FolderBlobStore.open("/artifacts", files);
  const { promise, resolve } = Promise.withResolvers<void>();
  const failures = { left: 0 };
  const list = async function* () {
    await promise;
    failures.left -= 1;
    if (failures.left >= 0) throw new BlobError("io", "the service is gone");
    yield* inner.list();
  };
  const store: BlobStore = {
    put: (...of) => inner.put(...of),
    receive: (...of) => inner.receive(...of),
    get: (...of) => inner.get(...of),
    open: (...of) => inner.open(...of),
    stat: (...of) => inner.stat(...of),
    remove: (...of) => inner.remove(...of),
    list,
  };
  return { store, go: resolve, failures };
}

describe("while the index is made again", () => {
  test("the start does not wait for long; what is not known yet is 503, never 404; nothing is collected", async () => {
    const { ids, digest } = await filled("last");
    rmSync(path());
    const { store, go } = await slowStore();
    const { artifacts, started } = await open({ store });
    clock.run(limits.artifactSettleStartMs);
    await started;
    clock.now += 30 * 24 * 3600 * 1000;
    expect(await codeOf(() => artifacts.list(alice, everything))).toBe("STORAGE_UNAVAILABLE");
    expect(await codeOf(() => artifacts.get(alice, ids[0] ?? ""))).toBe("STORAGE_UNAVAILABLE");
    expect(await codeOf(() => artifacts.openAttachment(alice, digest))).toBe("STORAGE_UNAVAILABLE");
    expect(await codeOf(() => put(artifacts, "names it", { attachments: [digest] }))).toBe(
      "STORAGE_UNAVAILABLE",
    );
    expect(artifacts.bytes()).toBeNull();
    // What comes now is taken; what is there already is as old as its blob.
    const fresh = await put(artifacts, "a new one");
    const known = await artifacts.put(alice, {
      kind: "other",
      content: "the first one",
      tags: ["t"],
      parent: null,
      metadata: {},
      attachments: [],
    });
    expect([known.fresh, known.entry.createdMs]).toEqual([false, files.nowMs()]);
    expect((await artifacts.collect()).count).toBe(0);
    go();
    await settled();
    expect(await idsOf(artifacts)).toEqual([...ids, fresh].sort());
    expect(artifacts.bytes()).toBe(artifacts.totals().bytes);
    expect(artifacts.headAttachment(alice, digest).sizeBytes).toBe(4);
    expect(await codeOf(() => artifacts.get(alice, "0".repeat(64)))).toBe("NOT_FOUND");
    await artifacts.stop();
  });

  test("after a kill, lists and ids go on: at most the last operation is missing", async () => {
    const { ids } = await filled("last");
    bringBack();
    const { store, go } = await slowStore();
    const { artifacts, started } = await open({ store });
    clock.run(limits.artifactSettleStartMs);
    await started;
    expect(await idsOf(artifacts)).toEqual(ids);
    expect(await codeOf(() => artifacts.get(alice, "0".repeat(64)))).toBe("NOT_FOUND");
    go();
    await artifacts.stop();
  });

  test("a store that refuses is asked again later", async () => {
    const { ids } = await filled("last");
    rmSync(path());
    const { store, go, failures } = await slowStore();
    failures.left = 2;
    go();
    const { artifacts, started } = await open({ store });
    await started;
    expect(log.lines.filter(({ event }) => event === "artifacts_not_compared")).toHaveLength(1);
    expect(await codeOf(() => artifacts.list(alice, everything))).toBe("STORAGE_UNAVAILABLE");
    for (const _ of [1, 2]) {
      clock.run(limits.artifactRetryMs);
      await settled();
    }
    expect(log.lines.filter(({ event }) => event === "artifacts_not_compared")).toHaveLength(2);
    expect(await idsOf(artifacts)).toEqual(ids);
    await artifacts.stop();
  });

  test("an end in the middle leaves an index that is not clean", async () => {
    await filled("last");
    rmSync(path());
    const { store, go } = await slowStore();
    const { artifacts, started } = await open({ store });
    clock.run(limits.artifactSettleStartMs);
    await started;
    const stopped = artifacts.stop();
    go();
    await stopped;
    const again = await open();
    expect(index.found).toBe("behind");
    await again.started;
    expect(again.artifacts.totals()).toMatchObject({ documents: 2, attachments: 1 });
    await again.artifacts.stop();
  });

  /** Nothing in it waits for anything but promises. */
  async function settled(): Promise<void> {
    for (let turn = 0; turn < 500; turn += 1) await Promise.resolve();
  }
});

test("a store that refused something leaves the index in doubt, and the next start compares", async () => {
  const inner = await FolderBlobStore.open("/artifacts", files);
  const { store } = await slowStore();
  let refuses = false;
  const failing: BlobStore = {
    ...store,
    list: () => inner.list(),
    remove: (key) => {
      if (!refuses) return inner.remove(key);
      throw new BlobError("io", "not now");
    },
  };
  const first = await open({ store: failing });
  await first.started;
  const id = await put(first.artifacts, "old");
  clock.now += limits.artifactGraceMs;
  refuses = true;
  expect(await codeOf(() => first.artifacts.collect())).toBe("STORAGE_UNAVAILABLE");
  refuses = false;
  await first.artifacts.stop();
  const second = await open();
  expect(index.found).toBe("behind");
  await second.started;
  expect(await idsOf(second.artifacts)).toEqual([id]);
  await second.artifacts.stop();
});
