/**
 * HOT. The journal of event logs in a folder: one open segment that is only ever appended to, closed ones behind it.
 * Composed by bootstrap; appended to and flushed by the owner of the event logs, on the event loop's thread.
 *
 * The open segment is memory of the file where the file system allows that: a record is written by its last store, without
 * a system call. Elsewhere records are collected, and a flush is one write to a descriptor that is kept, without a sync.
 *
 * Always holds: what a flush could not write is encoded once and written again at the same place, so that half a write is
 * overwritten. A log's records go only after the log was forgotten, or after what replaces it is on disk. One process
 * has the folder: the state folder's lock sees to that.
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
import { declarationBytesMax, RecordWriter, recordBytesMax } from "./record-codec.ts";
import { recoverJournal, seal } from "./recovery.ts";
import { birthKey, type Log, newLog, Segment, segmentHeader, segmentHeaderBytes } from "./segment.ts";

interface Head {
  readonly segment: Segment;
  readonly handle: Handle;
  /** Into the memory of its file; null: it is written by flushes. */
  memory: RecordWriter | null;
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

  append(taskId: string, record: JournalRecord): boolean {
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
    const place = log.places++;
    if (isFrameKind(kind)) log.frames++;
    const head = this.#head;
    const behindNone = this.#pending.length === 0 && this.#batch.length === 0;
    if (behindNone && head !== null && head.memory !== null && fits(head.memory, log, record)) {
      this.#store(head, head.memory, log, record, place);
      return true;
    }
    this.#pending.push({ log, record, place });
    this.#pendingBytes = pendingBytes;
    return false;
  }

  flush(): void {
    if (this.#pending.length === 0 && this.#batch.length === 0) return;
    assert(this.#recovered && !this.#closed, "the journal is recovered and open");
    for (;;) {
      const [next] = this.#pending;
      const head = this.#writableHead(next ?? null);
      if (head.memory === null) {
        this.#flushBatch(head);
        break;
      }
      this.#storePending(head, head.memory);
      if (this.#pending.length === 0) break;
    }
    this.#pendingBytes = 0;
  }

  #flushBatch(head: Head): void {
    // Not what was forgotten before it was written.
    for (const { log, record, place } of this.#pending)
      if (log.live) this.#encode(this.#batch, head, log, record, place);
    this.#pending = [];
    this.files.write(head.handle, this.#batch.view, head.segment.bytes);
    head.segment.bytes += this.#batch.length;
    head.segment.records += this.#batch.records - this.#batchRecordsBefore;
    this.#batchRecordsBefore = this.#batch.records;
    this.#batch.reset();
    this.#flushedOnce = true;
    this.#dropReplaced(head.segment);
  }

  /** As many as have room. */
  #storePending(head: Head, memory: RecordWriter): void {
    let stored = 0;
    for (const { log, record, place } of this.#pending) {
      if (log.live) {
        if (!fits(memory, log, record)) break;
        this.#store(head, memory, log, record, place);
      }
      stored++;
    }
    assert(stored > 0, "a segment has room for the record that it was chosen for");
    this.#pending = this.#pending.slice(stored);
  }

  #store(head: Head, memory: RecordWriter, log: Log, record: JournalRecord, place: number): void {
    this.#encode(memory, head, log, record, place);
    head.segment.bytes = memory.length;
    head.segment.records = memory.records;
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

  /** `next`: what is to be written first; null: what is encoded already. */
  #writableHead(next: Pending | null): Head {
    const head = this.#head;
    // What is encoded belongs to the segment that it was encoded for.
    if (head !== null && this.#batch.length > 0) return head;
    assert(next !== null, "there is something to write");
    if (head !== null) {
      const { memory, segment } = head;
      if (memory === null ? segment.bytes < this.segmentBytes : fits(memory, next.log, next.record))
        return head;
      // Before the file gets shorter: a store behind its end would end the process.
      head.memory = null;
      seal(this.files, head.handle, segment);
      this.#head = null;
      this.#sealed.push(segment);
      this.files.close(head.handle);
    }
    return this.#newHead(next);
  }

  #newHead({ log, record }: Pending): Head {
    // Counts failures too: a number that was tried may have left a file.
    const number = ++this.#lastNumber;
    const segment = new Segment(number, number, newSalt());
    const handle = this.files.create(segment.name);
    let mapped: Uint8Array | null = null;
    // A record that is larger than a segment has one of its own, which grows.
    const hasRoom = sizeMax(log, record) <= this.segmentBytes - segmentHeaderBytes;
    try {
      this.files.write(handle, segmentHeader(segment, hasRoom), 0);
      if (hasRoom) mapped = this.files.map(segment.name, handle, this.segmentBytes);
      if (hasRoom && mapped === null) this.files.write(handle, segmentHeader(segment), 0);
    } catch (error) {
      this.files.close(handle);
      this.files.remove(segment.name);
      throw error;
    }
    const memory = mapped === null ? null : new RecordWriter({ memory: mapped, at: segmentHeaderBytes });
    this.#head = { segment, handle, memory, refs: 0 };
    return this.#head;
  }

  #encode(writer: RecordWriter, head: Head, log: Log, record: JournalRecord, place: number): void {
    const { segment } = head;
    let ref = segment.logs.get(log)?.ref;
    let bytes = 0;
    if (ref === undefined) {
      ref = head.refs++;
      if (log.birth === null) {
        log.birth = { segment: segment.first, ref };
        this.#births.set(birthKey(log.birth), log);
      }
      bytes += writer.declare(segment.salt, ref, log.birth, log.taskId);
    }
    const { kind, tokenIds = null } = record;
    bytes += writer.record(segment.salt, ref, { kind, place, bytes: record.bytes, tokenIds });
    segment.note(log, ref, bytes);
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

/** Of a record and of its log's declaration, which comes before the first in each segment. */
const sizeMax = ({ taskId }: Log, { bytes, tokenIds }: JournalRecord): number =>
  declarationBytesMax(taskId) + recordBytesMax(bytes.byteLength, tokenIds?.length ?? 0);

const fits = (memory: RecordWriter, log: Log, record: JournalRecord): boolean =>
  memory.room >= sizeMax(log, record);

const newSalt = (): number => randomBytes(4).readUInt32LE(0);
