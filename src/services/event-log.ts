/**
 * HOT. A task's ordered frames and the cursors that read them. Frames are encoded once, into chunks that
 * only ever grow; a viewer is handed views of these chunks, so any number of viewers costs no copies, and a
 * slow one costs nothing: it is an offset. Written by the dispatcher and the attempt runner only.
 *
 * Always holds: sequence numbers count from 0 without gaps; one terminal frame, the last one; after the seal
 * nothing is appended. No cursor reads a frame before it is written ahead (write-ahead.ts); the terminal one is
 * never written ahead: who appends it has stored the end. A cursor wakes once per tick however many frames came.
 * A cursor that fell behind leaves out metrics frames that are out of date; nothing else is ever left out.
 */
import { assert } from "../domain/assert.ts";
import type { StreamEvent } from "../domain/events.ts";
import { limits } from "../domain/limits.ts";
import { encodeEvent, encodeToken } from "../domain/sse.ts";
import type { JournalRecord } from "../ports/journal.ts";

const encoder = new TextEncoder();
const firstChunkBytes = 1024;
const chunkBytesMax = 16 * 1024;
assert(chunkBytesMax <= limits.viewerChunkBytesMax, "one pull takes at most one chunk");

/** Two numbers, as arrays hold them; one more where the frame is a metrics frame. */
const indexBytesPerFrame = 16;
const indexBytesPerMetrics = 8;
/** UTF-8 takes at most three bytes for one UTF-16 unit. */
const utf8BytesPerUnitMax = 3;

/** An event that is no token, with the number of its frame. */
export type OtherEvent = { readonly seq: number } & Extract<StreamEvent, { type: "started" | "metrics" }>;
/** Of those to which nothing was appended: a hundred thousand tasks may wait. */
const noEvents: OtherEvent[] = [];

interface Chunk {
  readonly bytes: Buffer;
  used: number;
}

interface Frames {
  readonly chunks: Chunk[];
  /** Where each frame begins, by sequence number: chunk index and offset within. */
  readonly chunkOf: number[];
  readonly offsetOf: number[];
  /** The sequence numbers of the metrics frames, few per task: so that nobody has to look for them in the bytes. */
  readonly metricsAt: number[];
}

/** Bytes held by all logs together, for the gauge and the bound on finished ones. */
export interface LogAccount {
  bytes: number;
}

export interface RestoredFrame {
  readonly kind: "started" | "token" | "metrics";
  readonly bytes: Uint8Array;
}

/** Where frames go before anybody sees them. */
export interface Ahead {
  /**
   * True: it is there, and so is all that was appended before. False: it calls `show` once that is so. Throws JournalError
   * where it can take no more; then the record was not taken.
   */
  append(log: TaskLog, record: JournalRecord): boolean;
}

export class TaskLog {
  // Made with the first frame and the first cursor: a hundred thousand tasks may wait with nothing in their logs.
  private frames: Frames | null = null;
  private cursors: Set<Cursor> | null = null;
  /** Frames that cursors may read. */
  private shown = 0;
  private tokens = 0;
  private terminal = false;
  /** Viewers of an earlier process may have been told more than is here yet. */
  private restored = false;
  /** For its `ahead`: frames were appended since it was shown last. */
  unseen = false;
  /** Those that are no tokens, as they were appended; null: some came from an earlier process. Until the seal. */
  private others: OtherEvent[] | null = noEvents;

  /** `ahead` null: frames are shown at once. */
  constructor(
    private readonly account: LogAccount,
    readonly taskId: string,
    private readonly ahead: Ahead | null = null,
  ) {}

  /** Also those that are not shown yet. */
  get length(): number {
    return this.frames?.chunkOf.length ?? 0;
  }
  get tokenCount(): number {
    return this.tokens;
  }
  get sealed(): boolean {
    return this.terminal;
  }
  get viewers(): number {
    return this.cursors?.size ?? 0;
  }
  get bytes(): number {
    let sum = this.length * indexBytesPerFrame + (this.frames?.metricsAt.length ?? 0) * indexBytesPerMetrics;
    for (const chunk of this.frames?.chunks ?? []) sum += chunk.bytes.byteLength;
    return sum;
  }

  /** `ids`: the engine's, [] where it did not say. These three throw JournalError; then nothing was appended. */
  appendToken(text: string, ids: readonly number[] = []): void {
    assert(!this.terminal, "no token after the terminal event");
    this.write("token", encodeToken(this.length, text, this.tokens), ids);
    this.tokens++;
  }

  append(event: Extract<StreamEvent, { type: "started" | "metrics" }>): void {
    assert(!this.terminal, `no ${event.type} after the terminal event`);
    const seq = this.length;
    this.write(event.type, encodeEvent(seq, event), null);
    if (this.others === noEvents) this.others = [{ seq, ...event }];
    else this.others?.push({ seq, ...event });
  }

  /** Started and metrics, in order; null: they are to be read from the frames. Before the seal. */
  get otherEvents(): readonly OtherEvent[] | null {
    assert(!this.terminal, "they are kept until the seal");
    return this.others;
  }

  /** For the next process: what its writer wants back of the attempt that speaks from here on. */
  markAttempt(facts: string): void {
    assert(!this.terminal, "no attempt after the terminal event");
    this.ahead?.append(this, { kind: "attempt", seq: this.length, bytes: encoder.encode(facts) });
  }

  /** What was appended is written ahead. */
  show(): void {
    this.unseen = false;
    this.shown = this.length;
    for (const cursor of this.cursors ?? []) cursor.news();
  }

  /**
   * The terminal frame. `skipUnread`: live cursors jump to it, so that nothing logged before reaches a viewer
   * any more (cancel); a later replay still shows what was logged.
   */
  seal(event: Extract<StreamEvent, { type: "end" | "error" }>, skipUnread: boolean): void {
    assert(!this.terminal, "a log is sealed once");
    const seq = this.length;
    this.take(this.encoded(encodeEvent(seq, event)).byteLength, event.type);
    this.terminal = true;
    this.others = null;
    this.trim();
    for (const cursor of this.cursors ?? []) cursor.sealedAt(seq, skipUnread);
    this.show();
  }

  /** What an earlier process wrote ahead. Its viewers who come back may be ahead of it: a power cut loses the last. */
  restore(frames: readonly RestoredFrame[]): void {
    assert(this.length === 0, "a log is restored before anything is appended");
    for (const { kind, bytes } of frames) {
      const { chunks } = this.framesHeld();
      const last = chunks[chunks.length - 1];
      const size = bytes.byteLength;
      const fits = last !== undefined && last.bytes.byteLength - last.used >= size;
      const chunk = fits ? last : this.newChunk(size, () => size);
      chunk.bytes.set(bytes, chunk.used);
      this.take(size, kind);
      if (kind === "token") this.tokens++;
    }
    this.restored = true;
    this.others = null;
    this.shown = this.length;
  }

  /**
   * A cursor at the frame after `afterSeq`; -1 for the beginning, a place that is none for what comes next. In a log
   * of an earlier process a place ahead is waited for: what a viewer saw before the restart is not told again.
   */
  open(afterSeq: number): Cursor {
    const seq = Math.max(afterSeq + 1, 0);
    const waits = this.restored && !this.terminal;
    const cursor = new Cursor(this, waits ? seq : Math.min(seq, this.length));
    this.cursors ??= new Set();
    this.cursors.add(cursor);
    return cursor;
  }

  closed(cursor: Cursor): void {
    this.cursors?.delete(cursor);
  }

  /** What cursors may read of it, in frames. */
  get shownLength(): number {
    return this.shown;
  }

  /** The last shown metrics frame; -1: there is none. */
  get newestMetrics(): number {
    const metricsAt = this.frames?.metricsAt ?? [];
    for (let at = metricsAt.length - 1; at >= 0; at--) {
      const seq = metricsAt[at] ?? -1;
      if (seq < this.shown) return seq;
    }
    return -1;
  }

  /** The first shown frame from `seq` on that is neither a metrics frame nor at `upTo` or behind; else `upTo`. */
  pastMetrics(seq: number, upTo: number): number {
    const metricsAt = this.frames?.metricsAt ?? [];
    let next = seq;
    for (let at = firstAtLeast(metricsAt, seq); next < upTo && metricsAt[at] === next; at++) next++;
    return next;
  }

  /** The first metrics frame from `seq` on and before `upTo`; else `upTo`. */
  metricsFrom(seq: number, upTo: number): number {
    const metricsAt = this.frames?.metricsAt ?? [];
    return Math.min(metricsAt[firstAtLeast(metricsAt, seq)] ?? upTo, upTo);
  }

  /** The shown frames from `seq` to the end of its chunk or to `upTo`, and the sequence number after them. */
  read(seq: number, upTo: number = this.shown): { bytes: Uint8Array; next: number } | null {
    const { frames } = this;
    if (frames === null || seq >= upTo) return null;
    const { chunks, chunkOf, offsetOf } = frames;
    const chunkIndex = chunkOf[seq];
    const offset = offsetOf[seq];
    const chunk = chunks[chunkIndex ?? -1];
    assert(chunk !== undefined && offset !== undefined, "a shown frame lies in a chunk");
    let next = upTo;
    // Those of the last chunk are all of them; in another one its own end comes first.
    if (chunkIndex !== chunks.length - 1) {
      next = seq + 1;
      while (next < upTo && chunkOf[next] === chunkIndex) next++;
    }
    const end = chunkOf[next] === chunkIndex ? (offsetOf[next] ?? chunk.used) : chunk.used;
    return { bytes: chunk.bytes.subarray(offset, end), next };
  }

  /** The bytes of one frame, shown or not. */
  frameAt(seq: number): Uint8Array {
    const { chunks, chunkOf, offsetOf } = this.framesHeld();
    const chunkIndex = chunkOf[seq];
    const chunk = chunks[chunkIndex ?? -1];
    assert(chunk !== undefined, `frame ${seq} is in the log`);
    return chunk.bytes.subarray(
      offsetOf[seq],
      chunkOf[seq + 1] === chunkIndex ? offsetOf[seq + 1] : chunk.used,
    );
  }

  /** Gives the memory back; a forgotten log has no live cursor. */
  release(): void {
    assert(this.viewers === 0, "a released log has no viewer");
    this.account.bytes -= this.bytes;
    this.frames = null;
    this.shown = 0;
  }

  /** Written ahead, then appended: what gets no room ahead leaves no trace. */
  private write(kind: RestoredFrame["kind"], frame: string, ids: readonly number[] | null): void {
    const { ahead, length: seq } = this;
    const bytes = this.encoded(frame);
    const known = ids !== null && ids.length > 0;
    const there = ahead?.append(this, known ? { kind, seq, bytes, tokenIds: ids } : { kind, seq, bytes });
    this.take(bytes.byteLength, kind);
    if (there !== false) this.show();
  }

  /** The frame's bytes, behind what the last chunk has; `take` makes them a part of it. */
  private encoded(frame: string): Uint8Array {
    const { chunks } = this.framesHeld();
    let chunk = chunks[chunks.length - 1];
    let written = chunk === undefined ? null : encodeWhole(frame, chunk);
    if (chunk === undefined || written === null) {
      chunk = this.newChunk(frame.length * utf8BytesPerUnitMax, () => Buffer.byteLength(frame));
      written = encodeWhole(frame, chunk);
    }
    assert(written !== null, "a frame fits into a chunk made for it");
    return chunk.bytes.subarray(chunk.used, chunk.used + written);
  }

  /** The bytes behind what the last chunk has are the next frame. */
  private take(bytes: number, type: StreamEvent["type"]): void {
    const { chunks, chunkOf, offsetOf, metricsAt } = this.framesHeld();
    const chunk = chunks[chunks.length - 1];
    assert(chunk !== undefined, "a frame lies in a chunk");
    chunkOf.push(chunks.length - 1);
    offsetOf.push(chunk.used);
    this.account.bytes += indexBytesPerFrame;
    chunk.used += bytes;
    if (type !== "metrics") return;
    metricsAt.push(chunkOf.length - 1);
    this.account.bytes += indexBytesPerMetrics;
  }

  private framesHeld(): Frames {
    this.frames ??= { chunks: [], chunkOf: [], offsetOf: [], metricsAt: [] };
    return this.frames;
  }

  /** `bytesMax`: enough for the next frame; `bytesExact`: asked where that is more than a chunk is anyway. */
  private newChunk(bytesMax: number, bytesExact: () => number): Chunk {
    const { chunks } = this.framesHeld();
    const last = chunks[chunks.length - 1];
    const grown = last === undefined ? firstChunkBytes : Math.min(last.bytes.byteLength * 2, chunkBytesMax);
    const size = grown >= bytesMax ? grown : Math.max(grown, bytesExact());
    const chunk = { bytes: Buffer.allocUnsafeSlow(size), used: 0 };
    chunks.push(chunk);
    this.account.bytes += size;
    return chunk;
  }

  /** An ended log keeps its bytes and not the room to grow: thousands of them are remembered. */
  private trim(): void {
    const chunks = this.frames?.chunks ?? [];
    const last = chunks[chunks.length - 1];
    assert(last !== undefined, "a sealed log has a frame");
    this.account.bytes -= last.bytes.byteLength - last.used;
    // A copy: readers still hold views of the old buffer. Not `Buffer.slice`, which is a view.
    const bytes = Buffer.allocUnsafeSlow(last.used);
    last.bytes.copy(bytes, 0, 0, last.used);
    chunks[chunks.length - 1] = { bytes, used: last.used };
  }
}

/** Bytes written, or null when the frame does not fit: then nothing counts as written. */
function encodeWhole(frame: string, chunk: Chunk): number | null {
  const room = chunk.bytes.byteLength - chunk.used;
  if (room < frame.length) return null;
  // Not `encodeInto`: it takes a view of the room and answers with an object, both made anew for every token.
  if (room < frame.length * utf8BytesPerUnitMax && room < Buffer.byteLength(frame)) return null;
  return chunk.bytes.write(frame, chunk.used);
}

/** Where the first number that is at least `least` stands in these, which ascend; their length where there is none. */
function firstAtLeast(numbers: readonly number[], least: number): number {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((numbers[middle] ?? 0) < least) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** One viewer's place in a log. */
export class Cursor {
  private waiting: (() => void) | null = null;
  /** It waits for the end only, not for frames that come. */
  private pausing = false;
  /** Metrics frames from `liveFrom` on and before this one are left out; 0: none is. */
  private metricsFrom = 0;
  /** What was there before it came is what it asked for: nothing of that is left out. */
  private readonly liveFrom: number;

  constructor(
    private readonly log: TaskLog,
    private seq: number,
  ) {
    this.liveFrom = log.shownLength;
  }

  /** The number of the frame that it takes next. */
  get place(): number {
    return this.seq;
  }

  /** Whether there is something to take. */
  get ready(): boolean {
    return this.seq < this.log.shownLength;
  }

  /** What is there since the last take; null when there is nothing new. */
  take(): Uint8Array | null {
    const found = this.seq < this.metricsFrom ? this.takeThinned() : this.log.read(this.seq);
    if (found === null) return null;
    this.seq = found.next;
    return found.bytes;
  }

  /** Its viewer did not take in time what it was sent: of the metrics that it has not seen, the newest is enough. */
  fellBehind(): void {
    this.metricsFrom = this.log.newestMetrics;
  }

  /** True once everything was taken and nothing more will come. */
  get done(): boolean {
    return this.log.sealed && this.seq >= this.log.length;
  }

  /** It waits because there is nothing to take. */
  get idle(): boolean {
    return this.waiting !== null && !this.pausing;
  }

  /** Calls `step` once, in a microtask, when there is something to take, or after the next `wake`. One at a time. */
  next(step: () => void): void {
    assert(this.waiting === null, "a cursor has one reader");
    this.waiting = step;
  }

  /** The same at the end of the log or after the next `wake`, whatever else comes. The same waiter. */
  pause(step: () => void): void {
    this.pausing = true;
    this.next(step);
  }

  /** There are frames to take. */
  news(): void {
    if (!this.pausing) this.wake();
  }

  wake(): void {
    const step = this.waiting;
    if (step === null) return;
    this.waiting = null;
    this.pausing = false;
    queueMicrotask(step);
  }

  /** The terminal frame is there: nobody waits for one behind it. */
  sealedAt(seq: number, skipUnread: boolean): void {
    if (skipUnread || this.seq > seq) this.seq = seq;
    this.wake();
  }

  close(): void {
    this.wake();
    this.log.closed(this);
  }

  /** The same as `TaskLog.read`, up to the next metrics frame that is left out. */
  private takeThinned(): { bytes: Uint8Array; next: number } | null {
    const { log, metricsFrom, liveFrom } = this;
    if (this.seq < liveFrom) return log.read(this.seq, Math.min(liveFrom, metricsFrom));
    this.seq = log.pastMetrics(this.seq, metricsFrom);
    return this.seq < metricsFrom
      ? log.read(this.seq, log.metricsFrom(this.seq, metricsFrom))
      : log.read(this.seq);
  }
}
