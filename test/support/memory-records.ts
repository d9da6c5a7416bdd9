/** Records of pools as a file would keep them, without one. */
import type { KeptRecords } from "../../src/ports/pool-store.ts";
import { StoreError } from "../../src/ports/task-store.ts";

export class MemoryRecords<R extends { readonly poolId: string } | { readonly deviceId: string }>
  implements KeptRecords<R>
{
  readonly records = new Map<string, R>();
  /** The disk refuses. */
  full = false;

  all(): readonly R[] {
    return [...this.records.values()];
  }
  put(record: R): void {
    if (this.full) throw new StoreError("full", "no room");
    this.records.set("poolId" in record ? record.poolId : record.deviceId, record);
  }
  remove(id: string): void {
    if (this.full) throw new StoreError("full", "no room");
    this.records.delete(id);
  }
}
