/**
 * An incremental parser of one HTTP/1.1 response: head, then a body by length, in chunks, or until the end of
 * the connection. http-exchange.ts feeds it. Body bytes are told as ranges of the chunk that carried them, so
 * that the token path copies nothing. Correct at every byte border; everything is bounded.
 *
 * Source: RFC 9112.
 */
import { EngineError } from "../../ports/engine.ts";

const LF = 0x0a;
const CR = 0x0d;
const headBytesMax = 64 * 1024;
const lineBytesMax = 1024;

export interface ResponseSink {
  /** Names of `headers` in lower case; of one that comes twice the last is told. */
  onHead(status: number, headers: ReadonlyMap<string, string>): void;
  onBody(bytes: Buffer, start: number, end: number): void;
  /** The response is complete. */
  onEnd(): void;
}

type State = "head" | "length" | "chunk_size" | "chunk" | "chunk_end" | "trailer" | "until_close" | "done";

const broken = (what: string) =>
  new EngineError("protocol", `the engine's HTTP answer makes no sense: ${what}`);

/** The value of an ASCII hexadecimal digit, or -1. */
function hexDigit(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const lower = byte | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}

export class HttpResponseParser {
  readonly #sink: ResponseSink;
  #state: State = "head";
  #head = "";
  /** Body bytes left in this chunk or in the whole body. */
  #left = 0;
  #size = 0;
  #sizeDigits = 0;
  #sizeEnded = false;
  #lineBytes = 0;

  constructor(sink: ResponseSink) {
    this.#sink = sink;
  }

  get done(): boolean {
    return this.#state === "done";
  }

  /** Nothing is told any more. */
  stop(): void {
    this.#state = "done";
  }

  /** The connection ended. True when that completes the response. */
  eof(): boolean {
    if (this.#state === "until_close") this.#finish();
    return this.#state === "done";
  }

  push(bytes: Buffer): void {
    let at = 0;
    const end = bytes.length;
    while (at < end) {
      switch (this.#state) {
        case "chunk_size":
          at = this.#chunkSize(bytes, at);
          break;
        case "chunk":
        case "length": {
          const cut = Math.min(end, at + this.#left);
          this.#left -= cut - at;
          const from = at;
          at = cut;
          this.#sink.onBody(bytes, from, cut);
          // The sink may have stopped this parser: then the state must not move again.
          if (this.#left === 0) this.#bodyPartEnded();
          break;
        }
        case "chunk_end":
          if (bytes[at] === LF) this.#state = "chunk_size";
          else if (bytes[at] !== CR) throw broken("a chunk does not end where it says");
          at += 1;
          break;
        case "head":
          at = this.#headBytes(bytes, at);
          break;
        case "until_close":
          this.#sink.onBody(bytes, at, end);
          at = end;
          break;
        case "trailer":
          at = this.#trailer(bytes, at);
          break;
        case "done":
          return;
      }
    }
  }

  #bodyPartEnded(): void {
    if (this.#state === "chunk") this.#state = "chunk_end";
    else if (this.#state === "length") this.#finish();
  }

  #finish(): void {
    this.#state = "done";
    this.#sink.onEnd();
  }

  #chunkSize(bytes: Buffer, start: number): number {
    let at = start;
    while (at < bytes.length) {
      const byte = bytes[at++] ?? 0;
      if (byte === LF) {
        if (this.#sizeDigits === 0) throw broken("a chunk without a size");
        this.#left = this.#size;
        this.#state = this.#size === 0 ? "trailer" : "chunk";
        this.#size = 0;
        this.#sizeDigits = 0;
        this.#sizeEnded = false;
        return at;
      }
      const digit = this.#sizeEnded ? -1 : hexDigit(byte);
      if (digit >= 0) {
        this.#sizeDigits += 1;
        if (this.#sizeDigits > 8) throw broken("a chunk of absurd size");
        this.#size = this.#size * 16 + digit;
      } else if (this.#sizeEnded || byte === CR || byte === 0x3b || byte === 0x20) {
        // A chunk extension: of no meaning here, but not to grow for ever.
        this.#sizeEnded = true;
        this.#sizeDigits += this.#sizeDigits === 0 ? 0 : 1;
        if (this.#sizeDigits > lineBytesMax) throw broken("an endless chunk extension");
      } else {
        throw broken("a chunk size that is no number");
      }
    }
    return at;
  }

  #trailer(bytes: Buffer, start: number): number {
    let at = start;
    while (at < bytes.length) {
      const byte = bytes[at++];
      if (byte === LF) {
        if (this.#lineBytes === 0) {
          this.#finish();
          return at;
        }
        this.#lineBytes = 0;
      } else if (byte !== CR) {
        this.#lineBytes += 1;
        if (this.#lineBytes > headBytesMax) throw broken("an endless trailer");
      }
    }
    return at;
  }

  #headBytes(bytes: Buffer, start: number): number {
    // latin1: a head is ASCII, and this keeps one character a byte.
    const before = this.#head.length;
    this.#head += bytes.toString("latin1", start, Math.min(bytes.length, start + headBytesMax));
    const blank = this.#head.indexOf("\r\n\r\n", Math.max(0, before - 3));
    if (blank < 0) {
      if (this.#head.length >= headBytesMax) throw broken("an endless head");
      return bytes.length;
    }
    const head = this.#head.slice(0, blank);
    this.#head = "";
    this.#readHead(head);
    return start + (blank + 4 - before);
  }

  #readHead(head: string): void {
    const [statusLine = "", ...lines] = head.split("\r\n");
    const match = /^HTTP\/1\.[01] (\d{3})/.exec(statusLine);
    if (match === null) throw broken("it is not HTTP");
    const status = Number(match[1]);
    if (status < 200) return;
    const headers = new Map<string, string>();
    for (const line of lines) {
      const colon = line.indexOf(":");
      if (colon > 0) headers.set(line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim());
    }
    const length = headers.get("content-length");
    if (/\bchunked\b/i.test(headers.get("transfer-encoding") ?? "")) this.#state = "chunk_size";
    else if (length === undefined) this.#state = "until_close";
    else if (!/^\d{1,12}$/.test(length)) throw broken("a length that is no number");
    else {
      this.#left = Number(length);
      this.#state = "length";
    }
    this.#sink.onHead(status, headers);
    if (this.#state === "length" && this.#left === 0) this.#finish();
  }
}
