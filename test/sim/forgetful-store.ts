/** A task store that keeps nothing: for long runs without a restart, where a real one would only cost memory. */
import type { Recovered, StoredTask, TaskStore } from "../../src/ports/task-store.ts";

export class ForgetfulStore implements TaskStore {
  recover(): Recovered {
    return { ordinal: 0, live: [], sessions: [], allowances: [] };
  }
  write(): void {
    // Gone.
  }
  async synced(): Promise<void> {
    // At once.
  }
  find(): StoredTask | null {
    return null;
  }
  list(): readonly StoredTask[] {
    return [];
  }
  prune(): number {
    return 0;
  }
  sizeBytes(): number {
    return 0;
  }
  async close(): Promise<void> {
    // Nothing is open.
  }
}
