/**
 * The model catalog as one SQLite file, `models.sqlite` in the state folder. bootstrap-models.ts opens it; the port
 * says what holds. It is the only copy: it is opened as strictly as the task store, and every write is synced.
 */
import type { Database } from "bun:sqlite";
import type { CatalogEntry } from "../../domain/catalog.ts";
import type { CatalogStore } from "../../ports/catalog-store.ts";
import type { Migration } from "./migrations.ts";
import { openDatabase } from "./open-database.ts";
import { damaged, storeFailure } from "./store-failure.ts";

/** The entry is one JSON text with its CRC-32, so that a flipped bit is found where SQLite's own check sees none. */
const migrations: readonly Migration[] = [
  {
    version: 1,
    apply: (db) => {
      db.run(
        "CREATE TABLE entries (id TEXT PRIMARY KEY, entry TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID",
      );
    },
  },
];

const crcOf = (text: string): number => Bun.hash.crc32(text);

export class SqliteModelCatalog implements CatalogStore {
  readonly #db: Database;

  /** @throws StoreError */
  constructor(private readonly path: string) {
    this.#db = openDatabase(path, migrations);
    this.#edge(() => {
      // Few and small writes: each is on the disk when it returns, and the log moves by itself.
      this.#db.run("PRAGMA synchronous = FULL");
      this.#db.run("PRAGMA wal_autocheckpoint = 1000");
    });
  }

  all(): readonly CatalogEntry[] {
    return this.#edge(() =>
      this.#db
        .query<{ id: string; entry: string; crc: number }, []>("SELECT * FROM entries ORDER BY id")
        .all()
        .map(({ id, entry, crc }) => {
          if (crcOf(entry) !== crc) throw damaged(this.path, `the entry ${id} does not match its checksum`);
          return JSON.parse(entry) as CatalogEntry;
        }),
    );
  }

  put(entry: CatalogEntry): void {
    this.#edge(() => {
      const text = JSON.stringify(entry);
      this.#db
        .query("INSERT INTO entries VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET entry = ?2, crc = ?3")
        .run(entry.id, text, crcOf(text));
    });
  }

  remove(id: string): void {
    this.#edge(() => {
      this.#db.query("DELETE FROM entries WHERE id = ?").run(id);
    });
  }

  close(): void {
    this.#edge(() => {
      this.#db.run("PRAGMA wal_checkpoint(TRUNCATE)");
      this.#db.close();
    });
  }

  #edge<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw storeFailure(this.path, error);
    }
  }
}
