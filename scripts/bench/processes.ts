/**
 * The two sides of the comparison as processes: the engine alone with the flags that orchestratord gives it, and
 * the compiled daemon. What they cost is read from /proc: CPU in microseconds over all threads, RSS in bytes.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Running {
  readonly pid: number;
  readonly host: string;
  readonly port: number;
  readonly stop: () => Promise<void>;
}

export interface Daemon extends Running {
  readonly key: string;
  /** Its log by now: JSON lines. Removed with its folder when it is stopped. */
  readonly log: () => string;
}

/** CPU time of all threads of a process, microseconds (/proc/PID/task/TID/schedstat, first field in ns). */
export function cpuUs(pid: number): number {
  let ns = 0;
  for (const thread of readdirSync(`/proc/${pid}/task`))
    ns += Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, "utf8").split(" ")[0]);
  return ns / 1000;
}

export function rssBytes(pid: number): number {
  const kib = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  if (kib === undefined) throw new Error(`no RSS for pid ${pid}`);
  return Number(kib) * 1024;
}

/** llama-server on loopback TCP, as somebody would run it by hand, with the same slots, context and batch. */
export async function startEngine(
  bin: string,
  model: string,
  slots: number,
  ctx: number,
  more: readonly string[] = [],
): Promise<Running> {
  const command = [bin, "-m", model, ...engineFlags(slots, ctx, more)];
  const child = Bun.spawn(command, { stdout: "pipe", stderr: "pipe" });
  void drain(child.stderr);
  const port = await firstMatch(child.stdout, /listening on http:\/\/127\.0\.0\.1:(\d+)/);
  return { pid: child.pid, host: "127.0.0.1", port: Number(port), stop: stopper(child) };
}

/** Slots, context and batch as the daemon asks for them; on a port of its own choice. */
export const engineFlags = (slots: number, ctx: number, more: readonly string[]): string[] => [
  ...["--host", "127.0.0.1", "--port", "0", "--no-ui", "--offline"],
  ...["-np", String(slots), "--no-kv-unified", "-c", String(slots * ctx), "--cache-ram", "512"],
  ...["-b", "64", "-t", engineThreads, ...more, "--log-jsonl", "-lv", "3"],
];

const engineThreads = "1";

export async function startDaemon(binary: string, config: object): Promise<Daemon> {
  const folder = mkdtempSync(join(tmpdir(), "orchd-bench-"));
  const stateDir = join(folder, "state");
  mkdirSync(stateDir, { mode: 0o700 });
  const file = join(folder, "bench.yaml");
  writeFileSync(file, JSON.stringify({ addr: "127.0.0.1:0", state_dir: stateDir, ...config }));
  // Logs go to a file, as under a service manager; the banner on stderr names the port.
  const log = join(folder, "log");
  const child = Bun.spawn([binary, "--config", file], {
    stdout: Bun.file(log),
    stderr: "pipe",
  });
  const port = await firstMatch(child.stderr, /address\s+http:\/\/127\.0\.0\.1:(\d+)/);
  const key = readFileSync(join(stateDir, "api-key"), "utf8").trim();
  const stop = stopper(child);
  return {
    pid: child.pid,
    host: "127.0.0.1",
    port: Number(port),
    key,
    log: () => readFileSync(log, "utf8"),
    stop: async () => {
      await stop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

/** The cheapest relay there is in this runtime: bytes in, bytes out, nothing looked at (copying-proxy.ts). */
export async function startCopyingProxy(engine: Running): Promise<Running> {
  const script = join(import.meta.dir, "copying-proxy.ts");
  const upstream = `http://${engine.host}:${engine.port}`;
  const child = Bun.spawn([process.execPath, script, upstream], { stdout: "pipe", stderr: "inherit" });
  const port = await firstMatch(child.stdout, /listening on (\d+)/);
  return { pid: child.pid, host: "127.0.0.1", port: Number(port), stop: stopper(child) };
}

/** Resolves when every pool has a replica that decoded. */
export async function untilReady({ host, port, key }: Daemon, deadlineMs = 60_000): Promise<void> {
  const untilMs = performance.now() + deadlineMs;
  for (;;) {
    const answer = await fetch(`http://${host}:${port}/v1/pools`, { headers: { "X-API-Key": key } });
    const { pools } = (await answer.json()) as { pools: { ready: boolean }[] };
    if (pools.every((pool) => pool.ready)) return;
    if (performance.now() > untilMs) throw new Error(`pools are not ready: ${JSON.stringify(pools)}`);
    await Bun.sleep(20);
  }
}

export type Child = Bun.Subprocess;

export function stopper(child: Child): () => Promise<void> {
  return async () => {
    child.kill("SIGTERM");
    await child.exited;
  };
}

/** What it captures, once the stream has shown it; the rest is read and forgotten, or given to `onText`. */
export async function firstMatch(
  stream: ReadableStream<Uint8Array>,
  pattern: RegExp,
  onText: (text: string) => void = () => undefined,
): Promise<string> {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error(`ended before it was up: ${text.slice(-2000)}`);
    const piece = decoder.decode(value, { stream: true });
    text += piece;
    onText(piece);
    const found = pattern.exec(text)?.[1];
    if (found === undefined) continue;
    reader.releaseLock();
    // An undrained log pipe stalls inference.
    void drain(stream, onText);
    return found;
  }
}

async function drain(
  stream: ReadableStream<Uint8Array>,
  onText: (text: string) => void = () => undefined,
): Promise<void> {
  const decoder = new TextDecoder();
  for await (const chunk of stream) onText(decoder.decode(chunk, { stream: true }));
}
