/** The catalog's file: what is in it comes back, what was damaged is told and not taken for an entry. */
import { Database } from "bun:sqlite";
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CatalogEntry, newEntry } from "../../src/domain/catalog.ts";
import { SqliteModelCatalog } from "../../src/infra/sqlite/model-catalog.ts";
import { isStoreError } from "../../src/ports/task-store.ts";

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "orchd-models-"));
  path = join(folder, "models.sqlite");
});
afterEach(() => rmSync(folder, { recursive: true }));

const entry = (id: string, more: Partial<CatalogEntry> = {}): CatalogEntry => ({
  ...newEntry(
    { id, modelRef: `file:${id}.gguf`, digest: null, sizeBytes: 7, tags: ["é", "t"], references: [] },
    1.5,
  ),
  ...more,
});

const kindOf = (work: () => unknown): string => {
  try {
    work();
  } catch (error) {
    if (isStoreError(error)) return error.storeErrorKind;
    throw error;
  }
  return "nothing was thrown";
};

test("entries come back by id, replaced and removed ones as they were left", () => {
  const first = new SqliteModelCatalog(path);
  for (const id of ["b", "a", "c"]) first.put(entry(id));
  first.put(entry("b", { wanted: true }));
  first.remove("c");
  first.remove("never");
  first.close();
  const second = new SqliteModelCatalog(path);
  expect(second.all()).toEqual([entry("a"), entry("b", { wanted: true })]);
  second.close();
  // Nobody else's business.
  expect(statSync(path).mode & 0o077).toBe(0);
});

test("an entry that does not match its checksum, and a file of a newer version, are told", () => {
  const store = new SqliteModelCatalog(path);
  store.put(entry("a"));
  store.close();
  const db = new Database(path);
  db.run("UPDATE entries SET entry = replace(entry, '7', '8')");
  db.close();
  const damaged = new SqliteModelCatalog(path);
  expect(kindOf(() => damaged.all())).toBe("damaged");
  damaged.close();
  const again = new Database(path);
  again.run("PRAGMA user_version = 99");
  again.close();
  expect(kindOf(() => new SqliteModelCatalog(path))).toBe("newer");
});

test("what another process has open is not shared", () => {
  const store = new SqliteModelCatalog(path);
  store.put(entry("a"));
  expect(kindOf(() => new SqliteModelCatalog(path))).toBe("locked");
  store.close();
});
