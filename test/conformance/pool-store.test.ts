/** What operators told pools, kept: one suite for the file and for the fake, and what only the file can show. */
import { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SqlitePoolRecords } from "../../src/infra/sqlite/pool-records.ts";
import type { DrainRecord, KeptRecords } from "../../src/ports/pool-store.ts";
import { isStoreError } from "../../src/ports/task-store.ts";
import { MemoryRecords } from "../support/memory-records.ts";

const folder = mkdtempSync(join(tmpdir(), "orchd-pools-"));
afterAll(() => rmSync(folder, { recursive: true }));
let files = 0;
const newPath = (): string => join(folder, `pools-${files++}.sqlite`);

const a = { poolId: "a", sinceMs: 1, deadlineMs: 2 };
const b = { poolId: "b", sinceMs: 3, deadlineMs: 4.5 };

const subjects: readonly [string, () => { kept: KeptRecords<DrainRecord>; close: () => void }][] = [
  ["in memory", () => ({ kept: new MemoryRecords<DrainRecord>(), close: () => undefined })],
  [
    "in a file",
    () => {
      const store = new SqlitePoolRecords(newPath());
      return { kept: store.drains, close: () => store.close() };
    },
  ],
];

describe.each(subjects)("records of pools %s", (_, open) => {
  test("are kept, replaced and removed", () => {
    const { kept, close } = open();
    expect(kept.all()).toEqual([]);
    kept.put(a);
    kept.put(b);
    expect(kept.all()).toEqual([a, b]);
    kept.put({ ...a, deadlineMs: 9 });
    kept.remove("b");
    kept.remove("nobody");
    expect(kept.all()).toEqual([{ ...a, deadlineMs: 9 }]);
    close();
  });
});

describe("records of pools in a file", () => {
  const model = { poolId: "a", modelRef: "file:m.gguf", modelPath: "/m/m.gguf", configured: "d" };

  test("are there when it is opened again, drains and models apart", () => {
    const path = newPath();
    const store = new SqlitePoolRecords(path);
    store.drains.put(b);
    store.models.put(model);
    store.close();
    const again = new SqlitePoolRecords(path);
    expect([again.drains.all(), again.models.all()]).toEqual([[b], [model]]);
    again.close();
  });

  test("that were damaged are refused", () => {
    const path = newPath();
    const store = new SqlitePoolRecords(path);
    store.models.put(model);
    store.close();
    const db = new Database(path);
    db.run("UPDATE models SET record = replace(record, 'm.gguf', 'n.gguf')");
    db.close();
    const again = new SqlitePoolRecords(path);
    let caught: unknown = null;
    try {
      again.models.all();
    } catch (error) {
      caught = error;
    }
    expect(isStoreError(caught) && caught.storeErrorKind).toBe("damaged");
    again.close();
  });
});
