/** ORCHD-ART-3. The power goes at every step of a write to the blob folder; the disk keeps of what was not synced what it likes. */
import { expect, test } from "bun:test";
import { FolderBlobStore } from "../../src/infra/blobs/folder-blob-store.ts";
import type { BlobStore } from "../../src/ports/blob-store.ts";
import { bytesOf, digestOf, inPieces, keyFor } from "../conformance/blob-store.ts";
import { PowerCut, PowerCutFiles } from "../support/power-cut-files.ts";

const older = bytesOf("was there before");
const bytes = bytesOf("comes while the power goes ".repeat(20));

const writes: readonly [string, "documents" | "attachments", (store: BlobStore) => Promise<unknown>][] = [
  ["put", "documents", (store) => store.put(keyFor(bytes), bytes)],
  ["receive", "attachments", (store) => store.receive("attachments", "alice", inPieces(bytes, 100), 10_000)],
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

test.each(writes)(
  "%s: before it has resolved the old or the new state, afterwards the new one",
  async (_, shelf, write) => {
    const key = { ...keyFor(bytes), shelf };
    const start = async (): Promise<{ files: PowerCutFiles; store: BlobStore }> => {
      const files = new PowerCutFiles();
      const store = await FolderBlobStore.open("/artifacts", files);
      await store.put(keyFor(older), older);
      return { files, store };
    };
    const whole = await start();
    whole.files.steps = 0;
    await write(whole.store);
    const stepsInAll = whole.files.steps;
    expect(stepsInAll).toBeGreaterThan(8);

    const outcomes = new Set<string>();
    for (let cutAfter = 0; cutAfter <= stepsInAll; cutAfter += 1) {
      for (const coin of coins(12)) {
        const { files, store } = await start();
        files.stepsLeft = cutAfter;
        let done = true;
        try {
          await write(store);
        } catch (error) {
          if (!(error instanceof PowerCut)) throw error;
          done = false;
        }
        expect(done).toBe(cutAfter === stepsInAll);
        const disk = files.afterCut(coin);
        const again = await FolderBlobStore.open("/artifacts", disk);
        const found = await again.get(key);
        if (done) expect(found).not.toBeNull();
        if (found !== null) expect(digestOf(found)).toBe(key.digest);
        outcomes.add(found === null ? "old" : "new");
        expect(digestOf((await again.get(keyFor(older))) ?? new Uint8Array())).toBe(digestOf(older));
        expect(await disk.names("/artifacts/quarantine")).toEqual([]);
        expect(await disk.names("/artifacts/tmp")).toEqual([]);
        // And what the power took can be written again.
        await write(again);
        expect(await again.stat(key)).not.toBeNull();
      }
    }
    expect([...outcomes].sort()).toEqual(["new", "old"]);
  },
);
