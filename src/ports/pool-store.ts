/**
 * What operators told pools and what has to outlive the daemon. infra/sqlite/pool-records.ts implements it;
 * services/pool-drain.ts has it, and keeps all records in memory beside it.
 *
 * Always holds: what `put` or `remove` returned from is on the disk, synced. Each throws StoreError
 * (ports/task-store.ts) where the disk refuses.
 */

/** A pool that is drained. */
export interface PoolRecord {
  readonly poolId: string;
  /** When it was drained (ms since 1970). */
  readonly sinceMs: number;
  /** When what runs there is cut (ms since 1970). */
  readonly deadlineMs: number;
}

export interface PoolStore {
  /** By id. */
  all(): readonly PoolRecord[];
  /** A new one, or all of one that is there. */
  put(record: PoolRecord): void;
  remove(poolId: string): void;
  close(): void;
}
