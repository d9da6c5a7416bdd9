/**
 * Cuts a server-sent event stream into its `data:` payloads, byte by byte border-proof. The llama.cpp client
 * feeds it with whatever the socket delivered.
 *
 * A payload is told as a range of bytes, not as a string: the token path needs only a few of its bytes. A range
 * is valid during the call only (it may lie in the carry buffer, which is used again). Because a range always
 * spans a whole line, no UTF-8 character is ever seen in part. One `data:` line is one payload: engines write
 * JSON, which has no raw line feed, so lines are never joined and a payload is told as soon as its line ends.
 *
 * Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
 */
import { EngineError } from "../../ports/engine.ts";

const LF = 0x0a;
const CR = 0x0d;
const SPACE = 0x20;

export type PayloadSink = (bytes: Buffer, start: number, end: number) => void;

export class SseDecoder {
  readonly #payloadBytesMax: number;
  readonly #onPayload: PayloadSink;
  /** The begun line of which the end has not arrived. */
  #carry: Buffer = Buffer.alloc(0);
  #carryLength = 0;
  #stopped = false;

  constructor(payloadBytesMax: number, onPayload: PayloadSink) {
    this.#payloadBytesMax = payloadBytesMax;
    this.#onPayload = onPayload;
  }

  /** True while a line has begun and not ended: at the end of the stream it means a torn frame. */
  get midLine(): boolean {
    return this.#carryLength > 0;
  }

  /** Nothing is told any more, not even what the chunk in work still holds. */
  stop(): void {
    this.#stopped = true;
    this.#carryLength = 0;
  }

  /** Takes bytes[start, end). Throws EngineError("protocol") when a line outgrows the cap. */
  push(bytes: Buffer, start = 0, end = bytes.length): void {
    let from = start;
    if (this.#carryLength > 0 && from < end) {
      const lf = bytes.indexOf(LF, from);
      const cut = lf < 0 || lf >= end ? end : lf;
      this.#keep(bytes, from, cut);
      if (cut === end) return;
      const length = this.#carryLength;
      this.#carryLength = 0;
      this.#line(this.#carry, 0, length);
      from = cut + 1;
    }
    while (from < end && !this.#stopped) {
      const lf = bytes.indexOf(LF, from);
      if (lf < 0 || lf >= end) {
        this.#keep(bytes, from, end);
        return;
      }
      if (lf > from) this.#line(bytes, from, lf);
      from = lf + 1;
    }
  }

  #line(bytes: Buffer, start: number, lineEnd: number): void {
    const end = bytes[lineEnd - 1] === CR ? lineEnd - 1 : lineEnd;
    this.#check(end - start);
    // "data:"; comments, other fields and blank lines mean nothing here.
    if (
      end - start < 5 ||
      bytes[start] !== 0x64 ||
      bytes[start + 1] !== 0x61 ||
      bytes[start + 2] !== 0x74 ||
      bytes[start + 3] !== 0x61 ||
      bytes[start + 4] !== 0x3a
    ) {
      return;
    }
    this.#onPayload(bytes, bytes[start + 5] === SPACE && end > start + 5 ? start + 6 : start + 5, end);
  }

  #keep(bytes: Buffer, start: number, end: number): void {
    if (this.#stopped) return;
    const length = this.#carryLength + (end - start);
    this.#check(length);
    if (length > this.#carry.length) {
      const grown = Buffer.allocUnsafe(Math.max(1024, length * 2));
      this.#carry.copy(grown, 0, 0, this.#carryLength);
      this.#carry = grown;
    }
    bytes.copy(this.#carry, this.#carryLength, start, end);
    this.#carryLength = length;
  }

  #check(length: number): void {
    if (length > this.#payloadBytesMax) {
      throw new EngineError("protocol", `the engine sent a frame longer than ${this.#payloadBytesMax} bytes`);
    }
  }
}
