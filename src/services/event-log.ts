/**
 * HOT. A task's ordered frames and the cursors that read them. Frames are encoded once, into chunks that
 * only ever grow; a viewer is handed views of these chunks, so any number of viewers costs no copies, and a
 * slow one costs nothing: it is an offset. Written by the dispatcher and the attempt runner only.
 *
 * Always holds: sequence numbers count from 0 without gaps; one terminal frame, the last one; after the seal
 * nothing is appended. A cursor wakes at most once per turn however many frames were appended in it.
 */
import { assert } from "../domain/assert.ts";
import type { StreamEvent } from "../domain/events.ts";
import { limits } from "../domain/limits.ts";
import { encodeEvent, encodeToken } from "../domain/sse.ts";

const encoder = new TextEncoder();
const firstChunkBytes = 1024;
const chunkBytesMax = 16 * 1024;
assert(chunkBytesMax <= limits.viewerChunkBytesMax, "one pull takes at most one chunk");

/** Two numbers, as arrays hold them. */
const indexBytesPerFrame = 16;
/** UTF-8 takes at most three bytes for one UTF-16 unit. */
const utf8BytesPerUnitMax = 3;

interface Chunk {
  readonly bytes: Uint8Array;
  used: number;
}

interface Frames {
  readonly chunks: Chunk[];
  /** Where each frame begins, by sequence number: chunk index and offset within. */
  readonly chunkOf: number[];
  readonly offsetOf: number[];
}

/** Bytes held by all logs together, for the gauge and the bound on finished ones. */
export interface LogAccount {
  bytes: number;
}

export class TaskLog {
  // Made with the first frame and the first cursor: a hundred thousand tasks may wait with nothing in their logs.
  private frames: Frames | null = null;
  private cursors: Set<Cursor> | null = null;
  private tokens = 0;
  private terminal = false;
  /** An earlier process has told viewers of the task more than is here yet. */
  private begunAgain = false;

  constructor(private readonly account: LogAccount) {}

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
    let sum = this.length * indexBytesPerFrame;
    for (const chunk of this.frames?.chunks ?? []) sum += chunk.bytes.byteLength;
    return sum;
  }

  appendToken(text: string): void {
    assert(!this.terminal, "no token after the terminal event");
    this.write(encodeToken(this.length, text, this.tokens));
    this.tokens++;
    this.wake();
  }

  append(event: Extract<StreamEvent, { type: "started" | "metrics" }>): void {
    assert(!this.terminal, `no ${event.type} after the terminal event`);
    this.write(encodeEvent(this.length, event));
    this.wake();
  }

  /**
   * The terminal frame. `skipUnread`: live cursors jump to it, so that nothing logged before reaches a viewer
   * any more (cancel); a later replay still shows what was logged.
   */
  seal(event: Extract<StreamEvent, { type: "end" | "error" }>, skipUnread: boolean): void {
    assert(!this.terminal, "a log is sealed once");
    const seq = this.length;
    this.write(encodeEvent(seq, event));
    this.terminal = true;
    this.trim();
    for (const cursor of this.cursors ?? []) cursor.sealedAt(seq, skipUnread);
    this.wake();
  }

  /** The task starts from its beginning in a new process: viewers who come back may be ahead of it. */
  beginAgain(): void {
    assert(this.length === 0, "nothing is logged of what begins again");
    this.begunAgain = true;
  }

  /**
   * A cursor at the frame after `afterSeq`; -1 for the beginning, a place that is none for what comes next. In a log
   * that began again a place ahead is waited for: what a viewer saw before the restart is not told again.
   */
  open(afterSeq: number): Cursor {
    const seq = Math.max(afterSeq + 1, 0);
    const waits = this.begunAgain && !this.terminal;
    const cursor = new Cursor(this, waits ? seq : Math.min(seq, this.length));
    this.cursors ??= new Set();
    this.cursors.add(cursor);
    return cursor;
  }

  closed(cursor: Cursor): void {
    this.cursors?.delete(cursor);
  }

  /** The frames from `seq` to the end of its chunk, and the sequence number after them. */
  read(seq: number): { bytes: Uint8Array; next: number } | null {
    const { frames } = this;
    const chunkIndex = frames?.chunkOf[seq];
    const offset = frames?.offsetOf[seq];
    if (frames === null || chunkIndex === undefined || offset === undefined) return null;
    const chunk = frames.chunks[chunkIndex];
    assert(chunk !== undefined, "a frame lies in a chunk");
    return {
      bytes: chunk.bytes.subarray(offset, chunk.used),
      next: this.firstSeqAfter(frames, chunkIndex, seq),
    };
  }

  /** Gives the memory back; a forgotten log has no live cursor. */
  release(): void {
    assert(this.viewers === 0, "a released log has no viewer");
    this.account.bytes -= this.bytes;
    this.frames = null;
  }

  private firstSeqAfter({ chunks, chunkOf }: Frames, chunkIndex: number, from: number): number {
    if (chunkIndex === chunks.length - 1) return this.length;
    let seq = from + 1;
    while (chunkOf[seq] === chunkIndex) seq++;
    return seq;
  }

  private write(frame: string): void {
    this.frames ??= { chunks: [], chunkOf: [], offsetOf: [] };
    const { chunks, chunkOf, offsetOf } = this.frames;
    let chunk = chunks[chunks.length - 1];
    let written = chunk === undefined ? null : encodeWhole(frame, chunk);
    if (chunk === undefined || written === null) {
      chunk = this.newChunk(chunks, frame);
      written = encodeWhole(frame, chunk);
    }
    assert(written !== null, "a frame fits into a chunk made for it");
    chunkOf.push(chunks.length - 1);
    offsetOf.push(chunk.used);
    this.account.bytes += indexBytesPerFrame;
    chunk.used += written;
  }

  private newChunk(chunks: Chunk[], frame: string): Chunk {
    const last = chunks[chunks.length - 1];
    const grown = last === undefined ? firstChunkBytes : Math.min(last.bytes.byteLength * 2, chunkBytesMax);
    const size =
      grown >= frame.length * utf8BytesPerUnitMax ? grown : Math.max(grown, Buffer.byteLength(frame));
    const chunk = { bytes: new Uint8Array(size), used: 0 };
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
    // A copy: readers still hold views of the old buffer.
    chunks[chunks.length - 1] = { bytes: last.bytes.slice(0, last.used), used: last.used };
  }

  private wake(): void {
    for (const cursor of this.cursors ?? []) cursor.wake();
  }
}

/** Bytes written, or null when the frame does not fit: then nothing counts as written. */
function encodeWhole(frame: string, chunk: Chunk): number | null {
  if (chunk.bytes.byteLength - chunk.used < frame.length) return null;
  const { read, written } = encoder.encodeInto(frame, chunk.bytes.subarray(chunk.used));
  return read === frame.length ? written : null;
}

/** One viewer's place in a log. */
export class Cursor {
  private waiting: (() => void) | null = null;

  constructor(
    private readonly log: TaskLog,
    private seq: number,
  ) {}

  /** What is there since the last take; null when there is nothing new. */
  take(): Uint8Array | null {
    const found = this.log.read(this.seq);
    if (found === null) return null;
    this.seq = found.next;
    return found.bytes;
  }

  /** True once everything was taken and nothing more will come. */
  get done(): boolean {
    return this.log.sealed && this.seq >= this.log.length;
  }

  get idle(): boolean {
    return this.waiting !== null;
  }

  /** Resolves when there is something to take, or at the next `nudge`. One waiter at a time. */
  next(): Promise<void> {
    assert(this.waiting === null, "a cursor has one reader");
    return new Promise((resolve) => {
      this.waiting = resolve;
    });
  }

  wake(): void {
    const resolve = this.waiting;
    if (resolve === null) return;
    this.waiting = null;
    resolve();
  }

  /** The terminal frame is there: nobody waits for one behind it. */
  sealedAt(seq: number, skipUnread: boolean): void {
    if (skipUnread || this.seq > seq) this.seq = seq;
  }

  close(): void {
    this.wake();
    this.log.closed(this);
  }
}
