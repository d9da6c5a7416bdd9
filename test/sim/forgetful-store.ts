/** A task store and a journal that keep nothing: for long runs without a restart, where real ones only cost memory. */
import type { Journal, JournalRecovery } from "../../src/ports/journal.ts";
import type { Recovered, StoredTask, StoredTranscript, TaskStore } from "../../src/ports/task-store.ts";

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
  transcripts(): readonly StoredTranscript[] {
    return [];
  }
  findTranscript(): StoredTranscript | null {
    return null;
  }
  removeTranscripts(): void {
    // There is none.
  }
  transcriptTotals() {
    return { count: 0, chars: 0 };
  }
  sizeBytes(): number {
    return 0;
  }
  async close(): Promise<void> {
    // Nothing is open.
  }
}

export class ForgetfulJournal implements Journal {
  recover(): JournalRecovery {
    return { tasks: new Map(), damage: [] };
  }
  append(): boolean {
    return true;
  }
  flush(): void {
    // At once.
  }
  forget(): void {
    // Nothing is known.
  }
  async compact(): Promise<boolean> {
    return false;
  }
  sizeBytes(): number {
    return 0;
  }
  async close(): Promise<void> {
    // Nothing is open.
  }
}
