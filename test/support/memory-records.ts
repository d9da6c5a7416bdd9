/** Records of pools as a file would keep them, without one. */
import type { KeptRecords } from "../../src/ports/pool-store.ts";
import { StoreError } from "../../src/ports/task-store.ts";

export class MemoryRecords<R extends { readonly poolId: string }> implements KeptRecords<R> {
  readonly records = new Map<string, R>();
  /** The disk refuses. */
  full = false;

  all(): readonly R[] {
    return [...this.records.values()];
  }
  put(record: R): void {
    if (this.full) throw new StoreError("full", "no room");
    this.records.set(record.poolId, record);
  }
  remove(poolId: string): void {
    if (this.full) throw new StoreError("full", "no room");
    this.records.delete(poolId);
  }
}
