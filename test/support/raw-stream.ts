/**
 * One HTTP/1.1 exchange on a socket of its own, read as it comes: for what fetch hides (when exactly bytes arrive,
 * going away in the middle, not reading). Everything happens on the event loop of the test, so what the server
 * sent before something else is seen before it, at the latest one turn later.
 */
import { connect, type Socket } from "node:net";
import { SseParser } from "./sse-client.ts";

export interface RawRequest {
  readonly method: string;
  readonly path: string;
  readonly key: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
}

function textOf({ method, path, key, headers, body }: RawRequest): string {
  const lines = { host: "127.0.0.1", "x-api-key": key, ...headers };
  const length = Buffer.byteLength(body ?? "");
  const sent: Record<string, string> =
    body === undefined && method !== "POST"
      ? lines
      : { ...lines, "content-type": "application/json", "content-length": String(length) };
  const head = Object.entries(sent).map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${path} HTTP/1.1\r\n${head.join("")}\r\n${body ?? ""}`;
}

export class RawStream {
  /** 0 until the head is complete. */
  status = 0;
  headers: Readonly<Record<string, string>> = {};
  /** The body, where it is an event stream. */
  readonly sse = new SseParser();
  /** The body as it came, without the framing of its chunks. */
  body = Buffer.alloc(0);
  /** The body has ended as HTTP has it; false also when the connection broke. */
  complete = false;
  /** Resolves with this once the head is there. */
  readonly head: Promise<this>;
  /** Resolves once the body is complete or the connection is gone. */
  readonly ended: Promise<void>;
  readonly #socket: Socket;
  readonly #head = Promise.withResolvers<this>();
  readonly #ended = Promise.withResolvers<void>();
  #rest: Buffer = Buffer.alloc(0);
  #failure: Error | null = null;

  constructor(port: number, request: RawRequest) {
    this.head = this.#head.promise;
    this.ended = this.#ended.promise;
    // Whoever does not wait for the head does not care that it never came.
    this.head.catch(() => undefined);
    this.#socket = connect(port, "127.0.0.1", () => this.#socket.write(textOf(request)));
    this.#socket.on("data", (bytes: Buffer) => {
      try {
        this.#take(bytes);
      } catch (error) {
        this.#failure = error instanceof Error ? error : new Error(String(error));
        this.destroy();
      }
    });
    // A reset is an end too: `complete` tells them apart.
    this.#socket.on("error", () => undefined);
    this.#socket.on("close", () => {
      this.#head.reject(this.#failure ?? new Error("the connection ended before the head of the answer"));
      this.#ended.resolve();
    });
  }

  /** Its own end of the connection. */
  get localPort(): number {
    return this.#socket.localPort ?? 0;
  }

  /** Bytes that came and wait behind a pause. */
  get waiting(): number {
    return this.#socket.readableLength;
  }

  /** What a parser refused; null: nothing. */
  get failure(): Error | null {
    return this.#failure;
  }

  /** Gone, as by `kill -9` of the client. */
  destroy(): void {
    this.#socket.destroy();
  }

  /** Stops reading; the kernel's buffers fill up. */
  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  #take(bytes: Buffer): void {
    this.#rest = Buffer.concat([this.#rest, bytes]);
    if (this.status === 0 && !this.#takeHead()) return;
    if (this.headers["transfer-encoding"] === "chunked") while (this.#takeChunk());
    else this.#takeCounted();
  }

  #takeHead(): boolean {
    const end = this.#rest.indexOf("\r\n\r\n");
    if (end < 0) return false;
    const [statusLine = "", ...lines] = this.#rest.subarray(0, end).toString("latin1").split("\r\n");
    this.#rest = this.#rest.subarray(end + 4);
    this.headers = Object.fromEntries(
      lines.map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
      }),
    );
    this.status = Number(/^HTTP\/1\.1 (\d{3})/.exec(statusLine)?.[1] ?? -1);
    this.#head.resolve(this);
    return true;
  }

  #takeChunk(): boolean {
    const lineEnd = this.#rest.indexOf("\r\n");
    if (lineEnd < 0) return false;
    const size = Number.parseInt(this.#rest.subarray(0, lineEnd).toString("latin1"), 16);
    const end = lineEnd + 2 + size + 2;
    if (this.#rest.length < end) return false;
    const data = this.#rest.subarray(lineEnd + 2, end - 2);
    this.#rest = this.#rest.subarray(end);
    if (size === 0) this.#finish();
    else this.#add(data);
    return size > 0;
  }

  #takeCounted(): void {
    const length = Number(this.headers["content-length"] ?? 0);
    this.#add(this.#rest);
    this.#rest = Buffer.alloc(0);
    if (this.body.length >= length) this.#finish();
  }

  #add(data: Buffer): void {
    this.body = Buffer.concat([this.body, data]);
    if (this.headers["content-type"]?.startsWith("text/event-stream")) this.sse.push(data);
  }

  #finish(): void {
    if (this.complete) return;
    this.complete = true;
    if (this.headers["content-type"]?.startsWith("text/event-stream")) this.sse.end();
    this.#ended.resolve();
    this.#socket.end();
  }
}
