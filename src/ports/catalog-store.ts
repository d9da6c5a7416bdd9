/**
 * Where the entries of the model catalog are kept. infra/sqlite/model-catalog.ts implements it; services/catalog.ts is
 * the only one that has it, and keeps all entries in memory beside it.
 *
 * Always holds: what `put` or `remove` returned from is on the disk, synced. Each throws StoreError
 * (ports/task-store.ts) where the disk refuses.
 */
import type { CatalogEntry } from "../domain/catalog.ts";

export interface CatalogStore {
  /** By id. */
  all(): readonly CatalogEntry[];
  /** A new one, or all of one that is there. */
  put(entry: CatalogEntry): void;
  remove(id: string): void;
  close(): void;
}
