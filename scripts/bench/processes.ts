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
  const command = [
    bin,
    "-m",
    model,
    "--host",
    "127.0.0.1",
    "--port",
    "0",
    "--no-ui",
    "--offline",
    "-np",
    String(slots),
  ];
  const same = [
    "--no-kv-unified",
    "-c",
    String(slots * ctx),
    "--cache-ram",
    "512",
    "-b",
    "64",
    "-t",
    engineThreads,
    ...more,
  ];
  const child = Bun.spawn([...command, ...same, "--log-jsonl", "-lv", "3"], {
    stdout: "pipe",
    stderr: "pipe",
  });
  void drain(child.stderr);
  const port = await firstMatch(child.stdout, /listening on http:\/\/127\.0\.0\.1:(\d+)/);
  return { pid: child.pid, host: "127.0.0.1", port: Number(port), stop: stopper(child) };
}

const engineThreads = "1";

export async function startDaemon(binary: string, config: object): Promise<Daemon> {
  const folder = mkdtempSync(join(tmpdir(), "orchd-bench-"));
  const stateDir = join(folder, "state");
  mkdirSync(stateDir, { mode: 0o700 });
  const file = join(folder, "bench.yaml");
  writeFileSync(file, JSON.stringify({ addr: "127.0.0.1:0", state_dir: stateDir, ...config }));
  // Logs go to a file, as under a service manager; the banner on stderr names the port.
  const child = Bun.spawn([binary, "--config", file], {
    stdout: Bun.file(join(folder, "log")),
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

type Child = Bun.Subprocess;

function stopper(child: Child): () => Promise<void> {
  return async () => {
    child.kill("SIGTERM");
    await child.exited;
  };
}

async function firstMatch(stream: ReadableStream<Uint8Array>, pattern: RegExp): Promise<string> {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error(`ended before it was up: ${text.slice(-2000)}`);
    text += decoder.decode(value, { stream: true });
    const found = pattern.exec(text)?.[1];
    if (found === undefined) continue;
    reader.releaseLock();
    // An undrained log pipe stalls inference.
    void drain(stream);
    return found;
  }
}

async function drain(stream: ReadableStream<Uint8Array>): Promise<void> {
  for await (const _chunk of stream) {
    // Read and forgotten.
  }
}
