/**
 * One HTTP request over one fresh connection to an engine, on a raw socket, with TLS where the engine is elsewhere.
 * engine-calls.ts makes them.
 *
 * Why not `fetch`: its HTTP thread hands every chunk over to the main thread, which costs 55 µs CPU per token
 * of a paced stream against 23 µs here (measured), and a promise for each; it allows 256 calls per process; and
 * llama-server closes the connection after every POST anyhow, so there is nothing to keep alive.
 *
 * Always: exactly one of onEnd and onFailed is called, unless `cancel` came first; after either, and after
 * `cancel`, nothing is called. `cancel` closes the socket at once, which is how an engine learns of an abort.
 */
import { closeSync, openSync } from "node:fs";
import type { Socket } from "bun";
import { EngineError, isEngineError } from "../../ports/engine.ts";
import { HttpResponseParser } from "./http-response.ts";

/**
 * Where an engine listens. `tls`: with a certificate for `host` that this machine trusts (NODE_EXTRA_CA_CERTS adds
 * authorities of one's own).
 */
export type Endpoint =
  | { readonly unix: string }
  | { readonly host: string; readonly port: number; readonly tls?: boolean };

export interface HttpRequest {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly key: string | null;
  /** JSON; null for a GET. */
  readonly body: string | null;
}

export interface ExchangeSink {
  /** Names of `headers` in lower case. */
  onHead(status: number, headers: ReadonlyMap<string, string>): void;
  onBody(bytes: Buffer, start: number, end: number): void;
  onEnd(): void;
  /** An EngineError of kind unreachable, unavailable, connection or protocol, or what a sink's own code threw. */
  onFailed(error: unknown): void;
}

export class HttpExchange {
  readonly #sink: ExchangeSink;
  readonly #parser: HttpResponseParser;
  #socket: Socket | null = null;
  #unsent: Buffer | null;
  #settled = false;

  constructor(endpoint: Endpoint, request: HttpRequest, sink: ExchangeSink) {
    this.#sink = sink;
    this.#parser = new HttpResponseParser({
      onHead: (status, headers) => sink.onHead(status, headers),
      onBody: (bytes, start, end) => {
        if (!this.#settled) sink.onBody(bytes, start, end);
      },
      onEnd: () => this.#ended(),
    });
    this.#unsent = encode(request, hostHeader(endpoint));
    this.#connect(endpoint);
  }

  /** Closes the connection now; nothing is reported any more. Idempotent. */
  cancel(): void {
    if (this.#settled) return;
    this.#settle();
    this.#socket?.terminate();
  }

  #connect(endpoint: Endpoint): void {
    const secure = "host" in endpoint && endpoint.tls === true;
    const socket = {
      open: (opened: Socket) => {
        // With TLS nothing is sent to whom the handshake has not made sure of.
        if (!secure) this.#opened(opened);
      },
      ...(secure
        ? {
            handshake: (opened: Socket, trusted: boolean, error: Error | null) =>
              trusted ? this.#opened(opened) : this.#distrusted(opened, error),
          }
        : {}),
      data: (_: Socket, bytes: Buffer) => this.#data(bytes),
      drain: (_: Socket) => this.#send(),
      close: (_: Socket, error?: Error) => this.#closed(error),
      error: (_: Socket, error: Error) => this.#closed(error),
      connectError: (_: Socket, error: Error) => this.#closed(error),
    };
    // async, so that a path which Bun refuses at once fails as any other.
    const connect = async () =>
      "unix" in endpoint
        ? Bun.connect({ unix: endpoint.unix, socket })
        : Bun.connect({
            hostname: endpoint.host,
            port: endpoint.port,
            ...(secure ? { tls: { serverName: endpoint.host, rejectUnauthorized: true } } : {}),
            socket,
          });
    // The promise only repeats what the callbacks tell.
    connect().catch((error: unknown) => this.#closed(error));
  }

  #distrusted(socket: Socket, error: Error | null): void {
    const code = (error as { code?: unknown } | null)?.code;
    const why = typeof code === "string" ? ` (${code})` : "";
    const what = "the engine's certificate is not one that this machine trusts";
    this.#fail(new EngineError("unreachable", `${what}${why}`, { cause: error }));
    socket.terminate();
  }

  #opened(socket: Socket): void {
    if (this.#settled) {
      socket.terminate();
      return;
    }
    this.#socket = socket;
    this.#send();
  }

  #send(): void {
    const bytes = this.#unsent;
    if (bytes === null || this.#settled || this.#socket === null) return;
    const written = this.#socket.write(bytes);
    if (written >= bytes.length) this.#unsent = null;
    else if (written > 0) this.#unsent = bytes.subarray(written);
  }

  #data(bytes: Buffer): void {
    if (this.#settled) return;
    try {
      this.#parser.push(bytes);
    } catch (error) {
      this.#fail(error);
      this.#socket?.terminate();
    }
  }

  #ended(): void {
    if (this.#settled) return;
    this.#settle();
    this.#sink.onEnd();
    // Not `end`: that waits for the engine to close too, and one that does not would cost us a descriptor.
    this.#socket?.terminate();
  }

  #closed(cause: unknown): void {
    if (this.#settled) return;
    try {
      // May call #ended, which settles.
      if (this.#parser.eof()) return;
    } catch (error) {
      this.#fail(error);
      return;
    }
    const code = (cause as { code?: unknown } | undefined)?.code;
    const why = typeof code === "string" ? ` (${code})` : "";
    if (this.#socket !== null) {
      const what = "closed the connection before its answer was complete";
      this.#fail(new EngineError("connection", `the engine ${what}${why}`, { cause }));
    } else if (shortages.has(String(code)) || lacksDescriptors()) {
      const what = "this machine lacks what a connection to the engine needs";
      this.#fail(new EngineError("unavailable", `${what}${why}`, { cause }));
    } else this.#fail(new EngineError("unreachable", `the engine could not be reached${why}`, { cause }));
  }

  #fail(error: unknown): void {
    if (this.#settled) return;
    this.#settle();
    this.#sink.onFailed(
      isEngineError(error) || error instanceof Error ? error : new EngineError("protocol", String(error)),
    );
  }

  #settle(): void {
    this.#settled = true;
    this.#unsent = null;
    this.#parser.stop();
  }
}

/** Says nothing about the engine. */
const shortages = new Set(["EMFILE", "ENFILE", "EAGAIN", "ENOBUFS", "ENOMEM"]);

/** Bun tells a connect that found no free descriptor as ECONNREFUSED, so it is tried out. */
function lacksDescriptors(): boolean {
  try {
    closeSync(openSync("/dev/null", "r"));
    return false;
  } catch (error) {
    return shortages.has(String((error as { code?: unknown }).code));
  }
}

/** What listens here answers to any name; what is elsewhere may be one of many behind an address. */
function hostHeader(endpoint: Endpoint): string {
  if ("unix" in endpoint) return "localhost";
  const { host, port, tls } = endpoint;
  const name = host.includes(":") ? `[${host}]` : host;
  return port === (tls === true ? 443 : 80) ? name : `${name}:${port}`;
}

function encode(request: HttpRequest, host: string): Buffer {
  const body = request.body === null ? null : Buffer.from(request.body, "utf8");
  const head = [
    `${request.method} ${request.path} HTTP/1.1`,
    `host: ${host}`,
    "connection: close",
    ...(request.key === null ? [] : [`authorization: Bearer ${request.key}`]),
    ...(body === null ? [] : ["content-type: application/json", `content-length: ${body.length}`]),
    "",
    "",
  ].join("\r\n");
  return body === null ? Buffer.from(head, "latin1") : Buffer.concat([Buffer.from(head, "latin1"), body]);
}
