/**
 * ORCHD-ART-3. The power goes at every step of what the blob folder does, its folders included; the disk keeps of what was
 * not synced what it likes. The index afterwards: test/services/artifact-settling.test.ts.
 */
import { expect, test } from "bun:test";
import { FolderBlobStore } from "../../src/infra/blobs/folder-blob-store.ts";
import type { BlobKey, BlobStore } from "../../src/ports/blob-store.ts";
import { bytesOf, digestOf, inPieces, keyFor } from "../conformance/blob-store.ts";
import { PowerCut, PowerCutFiles } from "../support/power-cut-files.ts";

const root = "/srv/shared/artifacts";
const older = bytesOf("was there before");
const bytes = bytesOf("comes while the power goes ".repeat(20));
const documentKey = keyFor(bytes);
const attachmentKey: BlobKey = { ...documentKey, shelf: "attachments" };

const open = (files: PowerCutFiles): Promise<BlobStore> => FolderBlobStore.open(root, files);
const put = (store: BlobStore): Promise<unknown> => store.put(documentKey, bytes);
const receive = (store: BlobStore): Promise<unknown> =>
  store.receive("attachments", "alice", inPieces(bytes, 100), 10_000);

interface Story {
  readonly name: string;
  readonly key: BlobKey;
  /** What is there when it begins; nothing of it is cut. */
  readonly before: (files: PowerCutFiles) => Promise<BlobStore | null>;
  readonly write: (store: BlobStore) => Promise<unknown>;
  /** Whether `older` was stored before. */
  readonly hasOlder: boolean;
  /** Damaged files that may have been put aside by then. */
  readonly asideMax: number;
}

const usual = async (files: PowerCutFiles): Promise<BlobStore> => {
  const store = await open(files);
  await store.put(keyFor(older), older);
  return store;
};

/** The blob is under its name, but the process died before the folder was synced. */
const killedBeforeTheLastSync = async (files: PowerCutFiles): Promise<BlobStore> => {
  const counted = new PowerCutFiles();
  await put(await usual(counted));
  const store = await usual(files);
  files.stepsLeft = counted.steps - files.steps - 1;
  await put(store).catch((error: unknown) => {
    if (!(error instanceof PowerCut)) throw error;
  });
  files.stepsLeft = Number.POSITIVE_INFINITY;
  expect(await store.stat(documentKey)).not.toBeNull();
  return await open(files);
};

const overDamage = async (files: PowerCutFiles): Promise<BlobStore> => {
  const store = await usual(files);
  await put(store);
  const { digest } = documentKey;
  const node = files.live.get(
    `${root}/documents/alice/${digest.slice(0, 2)}/${digest.slice(2, 4)}/${digest}`,
  );
  if (node?.bytes) node.bytes = node.durable = node.bytes.map((byte) => byte ^ 1);
  return store;
};

const nothing = async (): Promise<null> => null;
const stories: readonly Story[] = [
  { name: "put", key: documentKey, before: usual, write: put, hasOlder: true, asideMax: 0 },
  { name: "receive", key: attachmentKey, before: usual, write: receive, hasOlder: true, asideMax: 0 },
  {
    name: "the very first put, folders and all",
    key: documentKey,
    before: nothing,
    write: put,
    hasOlder: false,
    asideMax: 0,
  },
  {
    name: "the very first receive",
    key: attachmentKey,
    before: nothing,
    write: receive,
    hasOlder: false,
    asideMax: 0,
  },
  {
    name: "put of what a killed process had stored",
    key: documentKey,
    before: killedBeforeTheLastSync,
    write: put,
    hasOlder: true,
    asideMax: 0,
  },
  {
    name: "put over a damaged one",
    key: documentKey,
    before: overDamage,
    write: put,
    hasOlder: true,
    asideMax: 1,
  },
];

/** Everything, nothing, and each thing by a coin of its own. */
function* coins(seeds: number): Generator<() => boolean> {
  yield () => true;
  yield () => false;
  for (let seed = 1; seed <= seeds; seed += 1) {
    let state = seed;
    yield () => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      return (state >>> 16) % 2 === 0;
    };
  }
}

/** @returns whether it came to its end. */
async function untilTheCut(work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    if (error instanceof PowerCut) return false;
    throw error;
  }
}

test.each(stories.map((story) => [story.name, story] as const))(
  "%s: before it has resolved the old or the new state, afterwards the new one",
  async (_, { key, before, write, hasOlder, asideMax }) => {
    const run = async (files: PowerCutFiles, steps: number): Promise<boolean> => {
      const store = await before(files);
      files.steps = 0;
      files.stepsLeft = steps;
      return await untilTheCut(async () => write(store ?? (await open(files))));
    };
    const whole = new PowerCutFiles();
    expect(await run(whole, Number.POSITIVE_INFINITY)).toBe(true);
    const stepsInAll = whole.steps;
    expect(stepsInAll).toBeGreaterThan(4);

    for (let cutAfter = 0; cutAfter <= stepsInAll; cutAfter += 1) {
      for (const coin of coins(12)) {
        const files = new PowerCutFiles();
        const done = await run(files, cutAfter);
        expect(done).toBe(cutAfter === stepsInAll);
        const disk = files.afterCut(coin);
        const again = await open(disk);
        // Damage that was there before the cut may still be.
        const found = await again.get(key).catch((error: unknown) => {
          if (asideMax > 0 && !done) return null;
          throw error;
        });
        if (done) expect(found).not.toBeNull();
        if (found !== null) expect(digestOf(found)).toBe(key.digest);
        if (hasOlder)
          expect(digestOf((await again.get(keyFor(older))) ?? new Uint8Array())).toBe(digestOf(older));
        expect((await disk.names(`${root}/quarantine`)).length).toBeLessThanOrEqual(asideMax);
        expect(await disk.names(`${root}/tmp`)).toEqual([]);
        // And what the power took can be written again.
        await write(again);
        expect(digestOf((await again.get(key)) ?? new Uint8Array())).toBe(key.digest);
      }
    }
  },
);

test("a first start that was cut anywhere is followed by one that works", async () => {
  const whole = new PowerCutFiles();
  await open(whole);
  for (let cutAfter = 0; cutAfter <= whole.steps; cutAfter += 1) {
    for (const coin of coins(12)) {
      const files = new PowerCutFiles();
      files.stepsLeft = cutAfter;
      expect(await untilTheCut(() => open(files))).toBe(cutAfter === whole.steps);
      const disk = files.afterCut(coin);
      await put(await open(disk));
      // What is promised now holds, although the folders may be older than the promise.
      expect(await (await open(disk.afterCut(() => false))).stat(documentKey)).not.toBeNull();
    }
  }
});
