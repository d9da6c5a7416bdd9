/**
 * A SQLite file of few records, each one JSON text under its id: what operators told the daemon, and its only copy. It is
 * opened as strictly as the task store, and every write is on the disk when it returns. Opened by pool-records.ts and
 * model-catalog.ts.
 */
import type { Database } from "bun:sqlite";
import type { KeptRecords } from "../../ports/pool-store.ts";
import type { Migration } from "./migrations.ts";
import { openDatabase } from "./open-database.ts";
import { damaged, storeFailure } from "./store-failure.ts";

/** With a CRC-32 of its text, so that a flipped bit is found where SQLite's own check sees none. */
export interface RecordTable {
  readonly name: string;
  readonly idColumn: string;
  readonly textColumn: string;
}

export const createTable = ({ name, idColumn, textColumn }: RecordTable): string =>
  `CREATE TABLE ${name} (${idColumn} TEXT PRIMARY KEY, ${textColumn} TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID`;

const crcOf = (text: string): number => Bun.hash.crc32(text);

export class RecordsFile {
  readonly #db: Database;

  /** @throws StoreError */
  constructor(
    private readonly path: string,
    migrations: readonly Migration[],
  ) {
    this.#db = openDatabase(path, migrations);
    this.#edge(() => {
      // Few and small writes: each is synced, and the log moves by itself.
      this.#db.run("PRAGMA synchronous = FULL");
      this.#db.run("PRAGMA wal_autocheckpoint = 1000");
    });
  }

  /** In the order of their ids. All of it throws StoreError. */
  kept<R>({ name, idColumn, textColumn }: RecordTable, idOf: (record: R) => string): KeptRecords<R> {
    const db = this.#db;
    const rows = `SELECT ${idColumn} AS id, ${textColumn} AS text, crc FROM ${name} ORDER BY ${idColumn}`;
    const all = (): R[] =>
      db
        .query<{ id: string; text: string; crc: number }, []>(rows)
        .all()
        .map(({ id, text, crc }) => {
          if (crcOf(text) !== crc) throw damaged(this.path, `${id} in ${name} does not match its checksum`);
          return JSON.parse(text) as R;
        });
    const put = (record: R): void => {
      const text = JSON.stringify(record);
      db.query(
        `INSERT INTO ${name} VALUES (?1, ?2, ?3) ON CONFLICT (${idColumn}) DO UPDATE SET ${textColumn} = ?2, crc = ?3`,
      ).run(idOf(record), text, crcOf(text));
    };
    const remove = (id: string): void => {
      db.query(`DELETE FROM ${name} WHERE ${idColumn} = ?`).run(id);
    };
    return {
      all: () => this.#edge(all),
      put: (record) => this.#edge(() => put(record)),
      remove: (id) => this.#edge(() => remove(id)),
    };
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
