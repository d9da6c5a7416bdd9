/**
 * What operators told pools and what has to outlive the daemon. infra/sqlite/pool-records.ts implements it;
 * services/pool-drain.ts and services/pool-specs.ts have it.
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

/** At most one of each pool. */
export interface KeptRecords<R extends { readonly poolId: string }> {
  /** By id. */
  all(): readonly R[];
  /** A new one, or all of one that is there. */
  put(record: R): void;
  remove(poolId: string): void;
}

export interface PoolStore {
  readonly drains: KeptRecords<DrainRecord>;
  readonly models: KeptRecords<ModelRecord>;
  close(): void;
}
