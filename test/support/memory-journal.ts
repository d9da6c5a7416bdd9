/**
 * The journal's port in memory: the fake behind services under test, and the model that the real one is compared
 * with. It passes test/conformance/journal.ts. A restart is `reopen()`: what was flushed is there.
 */
import { assert } from "../../src/domain/assert.ts";
import {
  isFrameKind,
  type Journal,
  JournalError,
  type JournalErrorKind,
  type JournalRecord,
  type JournalRecovery,
} from "../../src/ports/journal.ts";

type Logs = Map<string, JournalRecord[]>;

export class MemoryJournal implements Journal {
  /** Flushes that wrote something, for tests that count. */
  flushes = 0;
  #failNext: JournalErrorKind | null = null;
  #open = false;
  #pending: { taskId: string; record: JournalRecord }[] = [];
  readonly #frames = new Map<string, number>();
  readonly #damaged = new Set<string>();

  /** `writesAtOnce`: nothing waits for a flush, except behind what one could not write. */
  constructor(
    private readonly written: Logs = new Map(),
    private readonly writesAtOnce = false,
  ) {}

  recover(): JournalRecovery {
    assert(!this.#open, "recovery happens once, before anything else");
    this.#open = true;
    const tasks = new Map<string, { records: readonly JournalRecord[]; damaged: boolean }>();
    for (const [taskId, records] of this.written) {
      this.#frames.set(taskId, records.filter(({ kind }) => isFrameKind(kind)).length);
      tasks.set(taskId, { records: structuredClone(records), damaged: this.#damaged.has(taskId) });
    }
    const damage = [...this.#damaged].map((taskId) => ({ file: "memory", offset: 0, what: taskId }));
    return { tasks, damage };
  }

  append(taskId: string, record: JournalRecord): boolean {
    assert(this.#open, "the journal is recovered and open");
    assert(record.tokenIds === undefined || record.kind === "token", "tokens have ids, nothing else");
    const begins = record.kind === "begin_again";
    if (begins) this.#damaged.delete(taskId);
    assert(!this.#damaged.has(taskId), "a damaged log is begun again or forgotten");
    const frames = begins ? 0 : (this.#frames.get(taskId) ?? 0);
    assert(record.seq === frames, "frames are numbered without gaps");
    this.#frames.set(taskId, frames + (isFrameKind(record.kind) ? 1 : 0));
    this.#pending.push({ taskId, record });
    if (!this.writesAtOnce || this.#pending.length > 1 || this.#failNext !== null) return false;
    this.flush();
    return true;
  }

  flush(): void {
    if (this.#pending.length === 0) return;
    assert(this.#open, "the journal is recovered and open");
    const kind = this.#failNext;
    this.#failNext = null;
    if (kind !== null) throw new JournalError(kind, `asked for: ${kind}`);
    for (const { taskId, record } of this.#pending) {
      const records = record.kind === "begin_again" ? [] : (this.written.get(taskId) ?? []);
      // The owner of the bytes may change them from now on.
      records.push({ ...record, bytes: record.bytes.slice() });
      this.written.set(taskId, records);
    }
    this.#pending = [];
    this.flushes++;
  }

  forget(taskId: string): void {
    assert(this.#open, "the journal is recovered and open");
    this.written.delete(taskId);
    this.#frames.delete(taskId);
    this.#damaged.delete(taskId);
    this.#pending = this.#pending.filter((one) => one.taskId !== taskId);
  }

  async compact(): Promise<boolean> {
    return false;
  }

  sizeBytes(): number {
    let sum = 0;
    for (const records of this.written.values()) for (const { bytes } of records) sum += bytes.byteLength;
    return sum;
  }

  async close(): Promise<void> {
    this.#open = false;
  }

  failNextFlush(kind: JournalErrorKind): void {
    this.#failNext = kind;
  }

  tasks(): string[] {
    return [...this.written.keys()];
  }

  /** The next process finds the task's log damaged: its last `lost` records are not there. */
  damage(taskId: string, lost: number): void {
    const records = this.written.get(taskId) ?? [];
    this.written.set(taskId, records.slice(0, Math.max(0, records.length - lost)));
    this.#damaged.add(taskId);
  }

  reopen(): MemoryJournal {
    const written = new Map([...this.written].map(([id, records]) => [id, [...records]]));
    const next = new MemoryJournal(written, this.writesAtOnce);
    for (const taskId of this.#damaged) next.#damaged.add(taskId);
    return next;
  }
}
