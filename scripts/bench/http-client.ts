/**
 * The bench's own HTTP/1.1 client on raw sockets: cheap, so that on two cores it does not compete with what it
 * measures, and the same for both sides. It does not parse events: it looks for the first token's bytes and for
 * the end's, and it counts bytes to make sure that something was read.
 */
import type { Socket } from "bun";

export interface Target {
  readonly host: string;
  readonly port: number;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Bytes that are in the first chunk with a token, and in the last event. */
  readonly firstToken: string;
  readonly lastEvent: string;
  /** llama-server closes after every POST; orchestratord keeps the connection. */
  readonly keepAlive: boolean;
}

export interface Timing {
  readonly firstTokenMs: number;
  readonly totalMs: number;
  readonly bytes: number;
}

const endOfBody = Buffer.from("\r\n0\r\n\r\n");
/** Long enough to find an end mark that was cut by a chunk border. */
const tailBytes = 4096;

export class Connection {
  private onData: ((chunk: Buffer) => void) | null = null;
  private onClosed: (() => void) | null = null;
  private gone = false;

  private constructor(private socket: Socket | null) {}

  static async open(target: Target): Promise<Connection> {
    const connection = new Connection(null);
    connection.socket = await Bun.connect({
      hostname: target.host,
      port: target.port,
      socket: {
        data: (_socket, chunk) => connection.onData?.(chunk),
        close: () => connection.closed(),
        error: () => connection.closed(),
      },
    });
    return connection;
  }

  /** The other side has closed it: a daemon does so with one that was idle for long. */
  get isGone(): boolean {
    return this.gone;
  }

  close(): void {
    this.socket?.end();
  }

  private closed(): void {
    this.gone = true;
    this.onClosed?.();
  }

  /** Nobody would answer what is written to one that is gone. */
  private send(bytes: string): void {
    if (this.gone) this.onClosed?.();
    else this.socket?.write(bytes);
  }

  /** One streamed answer, from the first byte of the request written to the last event read. */
  stream(target: Target, body: string): Promise<Timing> {
    const firstToken = Buffer.from(target.firstToken);
    const lastEvent = Buffer.from(target.lastEvent);
    return new Promise((resolve, reject) => {
      let firstTokenMs = -1;
      let bytes = 0;
      let tail = Buffer.alloc(0);
      let sawEnd = false;
      const startedMs = performance.now();
      this.onClosed = () => reject(new Error(`closed after ${bytes} bytes: ${tail.toString().slice(-300)}`));
      this.onData = (chunk) => {
        bytes += chunk.length;
        if (firstTokenMs < 0 && chunk.includes(firstToken)) firstTokenMs = performance.now() - startedMs;
        tail =
          chunk.length >= tailBytes
            ? Buffer.from(chunk.subarray(-tailBytes))
            : Buffer.concat([tail, chunk]).subarray(-tailBytes);
        sawEnd ||= tail.includes(lastEvent);
        if (!sawEnd || !tail.includes(endOfBody.subarray(2))) return;
        this.onData = null;
        this.onClosed = null;
        if (firstTokenMs < 0) reject(new Error(`no token in: ${tail.toString()}`));
        else resolve({ firstTokenMs, totalMs: performance.now() - startedMs, bytes });
      };
      this.send(request("POST", target, body));
    });
  }

  /** One short answer with a Content-Length; resolves to its status code. */
  post(target: Target, body: string): Promise<number> {
    return new Promise((resolve, reject) => {
      let seen = "";
      this.onClosed = () => reject(new Error("closed before the answer"));
      this.onData = (chunk) => {
        seen += chunk.toString("latin1");
        const headEnd = seen.indexOf("\r\n\r\n");
        if (headEnd < 0) return;
        const length = /content-length: (\d+)/i.exec(seen)?.[1];
        if (length === undefined || seen.length < headEnd + 4 + Number(length)) return;
        this.onData = null;
        this.onClosed = null;
        resolve(Number(seen.slice(9, 12)));
      };
      this.send(request("POST", target, body));
    });
  }

  /** Sends a GET and leaves the answer's body unread by anyone: an idle viewer. Resolves with the headers. */
  watch(target: Target): Promise<string> {
    return new Promise((resolve, reject) => {
      let seen = "";
      this.onClosed = () => reject(new Error(`closed: ${seen.slice(0, 300)}`));
      this.onData = (chunk) => {
        seen += chunk.toString("latin1");
        if (!seen.includes("\r\n\r\n")) return;
        this.onData = () => undefined;
        this.onClosed = null;
        resolve(seen);
      };
      this.send(request("GET", target, ""));
    });
  }
}

function request(method: string, target: Target, body: string): string {
  const headers = Object.entries({
    Host: `${target.host}:${target.port}`,
    "Content-Type": "application/json",
    Connection: target.keepAlive ? "keep-alive" : "close",
    ...target.headers,
    ...(method === "GET" ? {} : { "Content-Length": String(Buffer.byteLength(body)) }),
  });
  const lines = headers.map(([name, value]) => `${name}: ${value}\r\n`).join("");
  return `${method} ${target.path} HTTP/1.1\r\n${lines}\r\n${body}`;
}
