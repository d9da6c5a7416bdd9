/**
 * The model catalog as one SQLite file, `models.sqlite` in the state folder. bootstrap-models.ts opens it; the port
 * says what holds.
 */
import type { CatalogEntry } from "../../domain/catalog.ts";
import type { CatalogStore } from "../../ports/catalog-store.ts";
import type { KeptRecords } from "../../ports/pool-store.ts";
import type { Migration } from "./migrations.ts";
import { createTable, RecordsFile } from "./records-file.ts";

const entries = { name: "entries", idColumn: "id", textColumn: "entry" };
const migrations: readonly Migration[] = [{ version: 1, apply: (db) => db.run(createTable(entries)) }];

export class SqliteModelCatalog implements CatalogStore {
  readonly #file: RecordsFile;
  readonly #entries: KeptRecords<CatalogEntry>;

  /** @throws StoreError */
  constructor(path: string) {
    this.#file = new RecordsFile(path, migrations);
    this.#entries = this.#file.kept(entries, ({ id }) => id);
  }

  all(): readonly CatalogEntry[] {
    return this.#entries.all();
  }

  put(entry: CatalogEntry): void {
    this.#entries.put(entry);
  }

  remove(id: string): void {
    this.#entries.remove(id);
  }

  close(): void {
    this.#file.close();
  }
}
