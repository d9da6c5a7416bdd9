/**
 * What operators told pools as one SQLite file, `pools.sqlite` in the state folder. bootstrap-models.ts opens it; the port
 * says what holds. It is the only copy: it is opened as strictly as the task store, and every write is synced.
 */
import type { Database } from "bun:sqlite";
import type { DrainRecord, KeptRecords, LendRecord, ModelRecord, PoolStore } from "../../ports/pool-store.ts";
import type { Migration } from "./migrations.ts";
import { openDatabase } from "./open-database.ts";
import { damaged, storeFailure } from "./store-failure.ts";

/** The record is one JSON text with its CRC-32, so that a flipped bit is found where SQLite's own check sees none. */
const table = (name: string): string =>
  `CREATE TABLE ${name} (pool_id TEXT PRIMARY KEY, record TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID`;
const migrations: readonly Migration[] = [
  {
    version: 1,
    apply: (db) => {
      db.run(table("drains"));
      db.run(table("models"));
    },
  },
  { version: 2, apply: (db) => db.run(table("lends")) },
];

const crcOf = (text: string): number => Bun.hash.crc32(text);

export class SqlitePoolRecords implements PoolStore {
  readonly drains: KeptRecords<DrainRecord>;
  readonly models: KeptRecords<ModelRecord>;
  readonly lends: KeptRecords<LendRecord>;
  readonly #db: Database;

  /** @throws StoreError */
  constructor(private readonly path: string) {
    this.#db = openDatabase(path, migrations);
    this.#edge(() => {
      // Few and small writes: each is on the disk when it returns, and the log moves by itself.
      this.#db.run("PRAGMA synchronous = FULL");
      this.#db.run("PRAGMA wal_autocheckpoint = 1000");
    });
    this.drains = this.#kept("drains", ({ poolId }) => poolId);
    this.models = this.#kept("models", ({ poolId }) => poolId);
    this.lends = this.#kept("lends", ({ deviceId }) => deviceId);
  }

  close(): void {
    this.#edge(() => {
      this.#db.run("PRAGMA wal_checkpoint(TRUNCATE)");
      this.#db.close();
    });
  }

  #kept<R>(name: "drains" | "models" | "lends", idOf: (record: R) => string): KeptRecords<R> {
    const db = this.#db;
    const all = (): R[] =>
      db
        .query<{ pool_id: string; record: string; crc: number }, []>(`SELECT * FROM ${name} ORDER BY pool_id`)
        .all()
        .map(({ pool_id, record, crc }) => {
          if (crcOf(record) !== crc)
            throw damaged(this.path, `the record of ${pool_id} does not match its checksum`);
          return JSON.parse(record) as R;
        });
    const put = (record: R): void => {
      const text = JSON.stringify(record);
      db.query(
        `INSERT INTO ${name} VALUES (?1, ?2, ?3) ON CONFLICT (pool_id) DO UPDATE SET record = ?2, crc = ?3`,
      ).run(idOf(record), text, crcOf(text));
    };
    const remove = (id: string): void => {
      db.query(`DELETE FROM ${name} WHERE pool_id = ?`).run(id);
    };
    return {
      all: () => this.#edge(all),
      put: (record) => this.#edge(() => put(record)),
      remove: (id) => this.#edge(() => remove(id)),
    };
  }

  #edge<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw storeFailure(this.path, error);
    }
  }
}
