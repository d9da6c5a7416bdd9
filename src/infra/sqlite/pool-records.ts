/**
 * What operators told pools and devices as one SQLite file, `pools.sqlite` in the state folder. bootstrap-pools.ts opens it;
 * the port says what holds.
 */
import type { DrainRecord, KeptRecords, LendRecord, ModelRecord, PoolStore } from "../../ports/pool-store.ts";
import type { Migration } from "./migrations.ts";
import { createTable, RecordsFile, type RecordTable } from "./records-file.ts";

const table = (name: string): RecordTable => ({ name, idColumn: "pool_id", textColumn: "record" });
const drains = table("drains");
const models = table("models");
const lends = table("lends");

const migrations: readonly Migration[] = [
  {
    version: 1,
    apply: (db) => {
      db.run(createTable(drains));
      db.run(createTable(models));
    },
  },
  { version: 2, apply: (db) => db.run(createTable(lends)) },
];

export class SqlitePoolRecords implements PoolStore {
  readonly drains: KeptRecords<DrainRecord>;
  readonly models: KeptRecords<ModelRecord>;
  readonly lends: KeptRecords<LendRecord>;
  readonly #file: RecordsFile;

  /** @throws StoreError */
  constructor(path: string) {
    this.#file = new RecordsFile(path, migrations);
    this.drains = this.#file.kept(drains, ({ poolId }) => poolId);
    this.models = this.#file.kept(models, ({ poolId }) => poolId);
    this.lends = this.#file.kept(lends, ({ deviceId }) => deviceId);
  }

  close(): void {
    this.#file.close();
  }
}
