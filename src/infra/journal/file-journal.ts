/**
 * HOT. The journal of event logs in a folder: one open segment that is only ever appended to, closed ones behind it.
 * Composed by bootstrap; appended to and flushed by the owner of the event logs, on the event loop's thread.
 *
 * Always holds: a flush is one write to a descriptor that is kept, without a sync (behaviour in ports/journal.ts). What
 * a flush could not write is encoded once and written again at the same place, so that half a write is overwritten. A
 * log's records go only after the log was forgotten, or after what replaces it is on disk. One process has the folder:
 * the state folder's lock sees to that.
 */
import { randomBytes } from "node:crypto";
import { assert } from "../../domain/assert.ts";
import { limits } from "../../domain/limits.ts";
import {
  isFrameKind,
  type Journal,
  JournalError,
  type JournalRecord,
  type JournalRecovery,
  type RecoveredLog,
} from "../../ports/journal.ts";
import { mergeSegments, sparseRun } from "./compaction.ts";
import type { Handle, JournalFiles } from "./folder-files.ts";
import { RecordWriter } from "./record-codec.ts";
import { recoverJournal, seal } from "./recovery.ts";
import { birthKey, type Log, newLog, Segment, segmentHeader } from "./segment.ts";

interface Head {
  readonly segment: Segment;
  readonly handle: Handle;
  refs: number;
}

interface Pending {
  readonly log: Log;
  readonly record: JournalRecord;
  readonly place: number;
}

/** What an object and its arrays take, roughly; for the bound only. */
const pendingOverheadBytes = 64;
const tokenIdBytes = 8;

export class FileJournal implements Journal {
  readonly #logs = new Map<string, Log>();
  readonly #births = new Map<number, Log>();
  /** Closed ones, in order. */
  #sealed: Segment[] = [];
  #head: Head | null = null;
  #lastNumber = 0;
  #recovered = false;
  #closed = false;

  #pending: Pending[] = [];
  #pendingBytes = 0;
  /** What of it is encoded for the head, waits for its write and must not be encoded again. */
  readonly #batch = new RecordWriter();
  #batchRecordsBefore = 0;

  /** Tasks that recovery found damaged and nobody has begun again or forgotten: damage stays known until then. */
  readonly #unresolved = new Set<string>();
  #flushedOnce = false;
  /** A log that replaces another one waits for its flush. */
  #anyReplaced = false;
  #compacting: Promise<boolean> | null = null;

  constructor(
    private readonly files: JournalFiles,
    private readonly segmentBytes: number = limits.journalSegmentBytes,
  ) {}

  recover(): JournalRecovery {
    assert(!this.#recovered && !this.#closed, "recovery happens once, before anything else");
    const { logs, segments, damage, lastNumber } = recoverJournal(this.files);
    this.#recovered = true;
    this.#sealed = [...segments];
    this.#lastNumber = lastNumber;
    const tasks = new Map<string, RecoveredLog>();
    for (const [taskId, { log, records }] of logs) {
      this.#logs.set(taskId, log);
      if (log.birth !== null) this.#births.set(birthKey(log.birth), log);
      if (log.damaged) this.#unresolved.add(taskId);
      tasks.set(taskId, { records, damaged: log.damaged });
    }
    return { tasks, damage };
  }

  append(taskId: string, record: JournalRecord): void {
    assert(this.#recovered && !this.#closed, "the journal is recovered and open");
    const { kind, seq, bytes, tokenIds } = record;
    assert(tokenIds === undefined || kind === "token", "tokens have ids, nothing else");
    const size = bytes.byteLength + pendingOverheadBytes + (tokenIds?.length ?? 0) * tokenIdBytes;
    assert(size <= limits.journalRecordBytesMax, "a frame fits into a record");
    const pendingBytes = this.#pendingBytes + size;
    if (pendingBytes > limits.journalPendingBytesMax)
      throw new JournalError(
        "full",
        `the journal at ${this.files.pathOf("")} could not be written for too long`,
      );
    let log = this.#logs.get(taskId);
    if (log === undefined || kind === "begin_again") {
      assert(seq === 0, "a task's records begin with number 0");
      this.#anyReplaced ||= log !== undefined;
      log = { ...newLog(taskId), replaces: log ?? null };
      this.#logs.set(taskId, log);
    }
    assert(!log.damaged, "a damaged log is begun again or forgotten");
    assert(seq === log.frames, "frames are numbered without gaps");
    this.#pending.push({ log, record, place: log.places });
    this.#pendingBytes = pendingBytes;
    log.places++;
    if (isFrameKind(kind)) log.frames++;
  }

  flush(): void {
    if (this.#pending.length === 0 && this.#batch.length === 0) return;
    assert(this.#recovered && !this.#closed, "the journal is recovered and open");
    const head = this.#writableHead();
    this.#encode(head);
    this.files.write(head.handle, this.#batch.view, head.segment.bytes);
    head.segment.bytes += this.#batch.length;
    head.segment.records += this.#batch.records - this.#batchRecordsBefore;
    this.#batchRecordsBefore = this.#batch.records;
    this.#batch.reset();
    this.#pendingBytes = 0;
    this.#flushedOnce = true;
    this.#dropReplaced(head.segment);
  }

  forget(taskId: string): void {
    assert(this.#recovered && !this.#closed, "the journal is recovered and open");
    for (let log = this.#logs.get(taskId) ?? null; log !== null; log = log.replaces) this.#release(log);
    this.#logs.delete(taskId);
    this.#unresolved.delete(taskId);
  }

  compact(): Promise<boolean> {
    assert(this.#recovered && !this.#closed, "the journal is recovered and open");
    this.#compacting ??= this.#compactStep().finally(() => {
      this.#compacting = null;
    });
    return this.#compacting;
  }

  sizeBytes(): number {
    return this.#sealed.reduce((sum, { bytes }) => sum + bytes, this.#head?.segment.bytes ?? 0);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    // Its failure is told to whoever asked for it.
    if (this.#compacting !== null) await Promise.allSettled([this.#compacting]);
    const head = this.#head;
    this.#head = null;
    if (head === null) return;
    try {
      seal(this.files, head.handle, head.segment);
    } finally {
      this.files.close(head.handle);
    }
  }

  #writableHead(): Head {
    const head = this.#head;
    // What is encoded belongs to the segment that it was encoded for.
    if (head !== null && (this.#batch.length > 0 || head.segment.bytes < this.segmentBytes)) return head;
    if (head !== null) {
      seal(this.files, head.handle, head.segment);
      this.#head = null;
      this.#sealed.push(head.segment);
      this.files.close(head.handle);
    }
    return this.#newHead();
  }

  #newHead(): Head {
    // Counts failures too: a number that was tried may have left a file.
    const number = ++this.#lastNumber;
    const segment = new Segment(number, number, newSalt());
    const handle = this.files.create(segment.name);
    try {
      this.files.write(handle, segmentHeader(segment), 0);
    } catch (error) {
      this.files.close(handle);
      this.files.remove(segment.name);
      throw error;
    }
    this.#head = { segment, handle, refs: 0 };
    return this.#head;
  }

  #encode(head: Head): void {
    const { segment } = head;
    for (const { log, record, place } of this.#pending) {
      // Forgotten before it was written.
      if (!log.live) continue;
      let ref = segment.logs.get(log)?.ref;
      let bytes = 0;
      if (ref === undefined) {
        ref = head.refs++;
        if (log.birth === null) {
          log.birth = { segment: segment.first, ref };
          this.#births.set(birthKey(log.birth), log);
        }
        bytes += this.#batch.declare(segment.salt, ref, log.birth, log.taskId);
      }
      const { kind, tokenIds = null } = record;
      bytes += this.#batch.record(segment.salt, ref, { kind, place, bytes: record.bytes, tokenIds });
      segment.note(log, ref, bytes);
    }
    this.#pending = [];
  }

  /** What began again is on disk: its past may go. */
  #dropReplaced({ logs }: Segment): void {
    if (!this.#anyReplaced) return;
    for (const log of logs.keys()) {
      for (let past = log.replaces; past !== null; past = past.replaces) this.#release(past);
      if (log.replaces !== null) this.#unresolved.delete(log.taskId);
      log.replaces = null;
    }
    this.#anyReplaced = false;
  }

  #release(log: Log): void {
    log.live = false;
    for (const segment of log.segments) segment.release(log);
    log.segments.clear();
    if (log.birth !== null) this.#births.delete(birthKey(log.birth));
  }

  async #compactStep(): Promise<boolean> {
    if (this.#deleteDead()) return true;
    const run = sparseRun(this.#sealed, this.segmentBytes);
    if (run === null) return false;
    const merged = await mergeSegments(this.files, run, newSalt(), (birth) =>
      this.#births.get(birthKey(birth)),
    );
    if (merged === null) return true;
    const at = this.#sealed.indexOf(run[0] as Segment);
    assert(at >= 0, "closed segments stay in their order while they are merged");
    this.#sealed.splice(at, run.length, merged);
    for (const source of run) for (const log of source.logs.keys()) log.segments.delete(source);
    await this.files.syncFolder();
    for (const { name } of run) if (name !== merged.name) this.files.remove(name);
    return true;
  }

  /** @returns whether there may be more */
  #deleteDead(): boolean {
    const dead = this.#sealed.filter((segment) => segment.logs.size === 0 && !this.#mustStay(segment));
    const now = dead.slice(0, limits.journalDeletesMax);
    for (const segment of now) {
      this.files.remove(segment.name);
      this.#sealed.splice(this.#sealed.indexOf(segment), 1);
    }
    return dead.length > now.length;
  }

  #mustStay({ damaged }: Segment): boolean {
    return damaged && (!this.#flushedOnce || this.#unresolved.size > 0);
  }
}

const newSalt = (): number => randomBytes(4).readUInt32LE(0);
