/**
 * A server of model files on loopback that can be told to misbehave: raw sockets, so that it may break off, lie about
 * lengths and answer late. Counts what it sent. Whoever starts it stops it.
 */
import { createServer, type Server, type Socket } from "node:net";

export interface Asked {
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  /** First and last byte that were asked for; null: the whole file. */
  readonly range: readonly [number, number] | null;
}

export interface Reply {
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string | number>>;
  readonly body?: Uint8Array;
  /** Breaks the connection after so many bytes of the body. */
  readonly breakAfter?: number;
  /** Says nothing at all, or nothing more after the head. */
  readonly hangs?: "head" | "body";
}

export interface ModelServerOptions {
  readonly file?: Uint8Array;
  readonly etag?: string | null;
  readonly ranges?: boolean;
  /** Instead of the regular answer; null: that one. `nth` counts the requests from 1. */
  readonly reply?: (asked: Asked, nth: number) => Reply | null;
}

export class ModelServer {
  file: Uint8Array;
  etag: string | null;
  readonly asked: Asked[] = [];
  /** Bytes of bodies that were handed to the sockets. */
  sentBytes = 0;
  readonly #options: ModelServerOptions;
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;

  private constructor(options: ModelServerOptions) {
    this.#options = options;
    this.file = options.file ?? new Uint8Array();
    this.etag = options.etag === undefined ? '"v1"' : options.etag;
    this.#server = createServer((socket) => this.#serve(socket));
  }

  static async start(options: ModelServerOptions = {}, port = 0): Promise<ModelServer> {
    const server = new ModelServer(options);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    server.#server.once("error", reject);
    server.#server.listen(port, "127.0.0.1", resolve);
    await promise;
    return server;
  }

  get port(): number {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the server does not listen");
    return address.port;
  }

  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  url(path = "/model.gguf"): string {
    return `http://${this.host}${path}`;
  }

  /** Every connection is reset. */
  breakAll(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  async stop(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    for (const socket of this.#sockets) socket.destroy();
    await promise;
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
    // The other side may leave at any time.
    socket.on("error", () => socket.destroy());
    let head = "";
    socket.on("data", (chunk: Buffer) => {
      head += chunk.toString("latin1");
      const end = head.indexOf("\r\n\r\n");
      if (end < 0) return;
      const asked = readHead(head.slice(0, end));
      head = "";
      this.asked.push(asked);
      const reply = this.#options.reply?.(asked, this.asked.length) ?? this.#regular(asked);
      this.#send(socket, reply);
    });
  }

  #regular({ range, headers }: Asked): Reply {
    const total = this.file.byteLength;
    const version: Record<string, string> = this.etag === null ? {} : { etag: this.etag };
    const condition = headers["if-range"];
    const holds = condition === undefined || condition === this.etag;
    if (range === null || this.#options.ranges === false || !holds)
      return { status: 200, headers: { ...version, "content-length": total }, body: this.file };
    const [from, last] = [range[0], Math.min(range[1], total - 1)];
    if (from >= total) return { status: 416, headers: { "content-range": `bytes */${total}` } };
    const body = this.file.subarray(from, last + 1);
    return {
      status: 206,
      headers: {
        ...version,
        "content-range": `bytes ${from}-${last}/${total}`,
        "content-length": body.byteLength,
      },
      body,
    };
  }

  #send(socket: Socket, { status = 200, headers = {}, body, breakAfter, hangs }: Reply): void {
    if (hangs === "head") return;
    const lines = Object.entries({
      "content-length": body?.byteLength ?? 0,
      connection: "close",
      ...headers,
    });
    socket.write(
      `HTTP/1.1 ${status} X\r\n${lines
        .filter(([, value]) => value !== "")
        .map(([name, value]) => `${name}: ${value}\r\n`)
        .join("")}\r\n`,
    );
    if (hangs === "body") return;
    const sent = body?.subarray(0, breakAfter ?? body.byteLength) ?? new Uint8Array();
    this.sentBytes += sent.byteLength;
    // A half-close would be a polite end: what breaks off is reset once it is out.
    if (breakAfter !== undefined) socket.write(sent, () => socket.destroy());
    else socket.end(sent);
  }
}

function readHead(head: string): Asked {
  const [first = "", ...lines] = head.split("\r\n");
  const headers: Record<string, string> = {};
  for (const line of lines) {
    const at = line.indexOf(":");
    headers[line.slice(0, at).toLowerCase()] = line.slice(at + 1).trim();
  }
  const range = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? "");
  return {
    path: first.split(" ")[1] ?? "",
    headers,
    range: range === null ? null : [Number(range[1]), Number(range[2])],
  };
}
