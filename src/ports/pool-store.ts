/**
 * What operators told pools and what has to outlive the daemon. infra/sqlite/pool-records.ts implements it;
 * services/pool-drain.ts, services/pool-specs.ts and services/device-lending.ts have it.
 *
 * Always holds: what `put` or `remove` returned from is on the disk, synced. Each throws StoreError
 * (ports/task-store.ts) where the disk refuses.
 */
import type { SameModel } from "../domain/pool.ts";

/** A pool that is drained. */
export interface DrainRecord {
  readonly poolId: string;
  /** When it was drained (ms since 1970). */
  readonly sinceMs: number;
  /** When what runs there is cut (ms since 1970). */
  readonly deadlineMs: number;
}

/** A pool that has another model than the configuration says, or had the same under another name. */
export interface ModelRecord {
  readonly poolId: string;
  readonly modelRef: string;
  readonly modelPath: string | null;
  /** What the configuration said then, as a digest: where it says something else, that counts. */
  readonly configured: string;
  /** Names that mean the same bytes; absent or null: none is known. */
  readonly sameModel?: SameModel | null;
}

/** A device whose memory another program has. */
export interface LendRecord {
  readonly deviceId: string;
  /** Null: all of it. */
  readonly bytes: number | null;
  /** When it was lent (ms since 1970). */
  readonly sinceMs: number;
  /** When what runs there is cut (ms since 1970). */
  readonly deadlineMs: number;
}

/** At most one of each pool, or device. */
export interface KeptRecords<R> {
  /** By id. */
  all(): readonly R[];
  /** A new one, or all of one that is there. */
  put(record: R): void;
  remove(id: string): void;
}

export interface PoolStore {
  readonly drains: KeptRecords<DrainRecord>;
  readonly models: KeptRecords<ModelRecord>;
  readonly lends: KeptRecords<LendRecord>;
  close(): void;
}
