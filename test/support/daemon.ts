/**
 * The daemon as an operator starts it: a child process with a configuration file of its own, real sockets, real
 * engines. Shared by the tests of the real engine and of the binary. Whoever starts one calls `endDaemons` in
 * afterEach or afterAll.
 *
 * Always holds: after `stop`, `kill9` and `endDaemons` no process with the daemon's folder in its command line
 * is left, engine or guard; one that is left is an error that names it, and is ended.
 */
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { sha256Hex } from "../../src/app/config-keys.ts";
import { engineBin } from "./engine.ts";
import { endIfRunning, isRunning } from "./process-probe.ts";
import { waitFor } from "./wait.ts";

/** A value of the configuration file. */
export type Setting = null | boolean | number | string | readonly Setting[] | Settings;
export interface Settings {
  readonly [name: string]: Setting;
}

export const testKey = "daemon-test-key-2f6d1c90";

const root = resolve(import.meta.dir, "../..");
export const sourceCommand: readonly string[] = [process.execPath, join(root, "src/main.ts")];

const startMsMax = 30_000;
const stopMsMax = 20_000;
/** The guard's promise: nothing survives the daemon for longer. */
export const guardMsMax = 3_000;

export interface LaunchOptions {
  /** Sections of the configuration file; null: none is written and the command names none. */
  readonly settings?: Settings | null;
  readonly command?: readonly string[];
  readonly args?: readonly string[];
  /** Its whole environment; default: PATH, and its folder as home. */
  readonly env?: Readonly<Record<string, string>>;
  /** An existing folder, which then stays: state, configuration and working directory are in it. */
  readonly folder?: string;
}

export interface StartOptions extends LaunchOptions {
  /** listening: the banner's address answers. ready (default): every preloaded pool is. */
  readonly until?: "listening" | "ready";
  readonly key?: string;
}

export interface RunningPool {
  readonly id: string;
  readonly state: string;
  readonly ready: boolean;
  readonly slots_busy: number;
}

const started = new Set<LaunchedDaemon>();

/** A daemon's process, whether it comes up or not. */
export class LaunchedDaemon {
  readonly folder: string;
  readonly pid: number;
  /** The exit code, 128 + n after signal n; pipes are read to their end by then. */
  readonly exited: Promise<number>;
  readonly #ownsFolder: boolean;
  readonly #child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  #stdout = "";
  #stderr = "";

  constructor(options: LaunchOptions) {
    this.#ownsFolder = options.folder === undefined;
    this.folder = realpathSync(options.folder ?? mkdtempSync(join(tmpdir(), "orchd-daemon-")));
    const { settings = {}, command = sourceCommand, args = [] } = options;
    const file = join(this.folder, "config.yaml");
    if (settings !== null) writeFileSync(file, configText(settings, this.folder));
    this.#child = Bun.spawn([...command, ...(settings === null ? [] : ["--config", file]), ...args], {
      cwd: this.folder,
      env: { ...(options.env ?? { PATH: process.env.PATH ?? "/usr/bin:/bin", HOME: this.folder }) },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
    this.pid = this.#child.pid;
    const drained = Promise.all([
      collect(this.#child.stdout, (text) => {
        this.#stdout += text;
      }),
      collect(this.#child.stderr, (text) => {
        this.#stderr += text;
      }),
    ]);
    this.exited = this.#child.exited.then(async (code) => {
      await drained;
      return code;
    });
    started.add(this);
  }

  /** What it printed for people: banner, warnings, errors. */
  get stderr(): string {
    return this.#stderr;
  }

  get stdout(): string {
    return this.#stdout;
  }

  /** Its log so far; a line that is no JSON object throws. */
  get lines(): Readonly<Record<string, unknown>>[] {
    const whole = this.#stdout.slice(0, this.#stdout.lastIndexOf("\n") + 1);
    return whole
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  }

  get hasExited(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  /** Its configuration file; the running daemon may have another in memory. */
  get configFile(): string {
    return join(this.folder, "config.yaml");
  }

  /** Puts another in the place of its configuration file, as an editor does. */
  configure(settings: Settings | string): void {
    const text = typeof settings === "string" ? settings : configText(settings, this.folder);
    writeFileSync(`${this.configFile}.new`, text);
    renameSync(`${this.configFile}.new`, this.configFile);
  }

  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  /** Pids with its folder in their command line, other than its own: its engines and its guard. */
  offspring(): number[] {
    return pidsNaming(this.folder).filter((pid) => pid !== this.pid);
  }

  /** The engine processes that run for it, by the kernel's word. */
  engines(): number[] {
    return this.offspring().filter((pid) => commandLineOf(pid).includes("--api-key-file"));
  }

  /** Resolves with the exit code once it and everything it started is gone. */
  async end(name: NodeJS.Signals, timeoutMs = stopMsMax): Promise<number> {
    if (!this.hasExited) this.signal(name);
    await waitFor(() => this.hasExited, timeoutMs, `the daemon's end after ${name}\n${this.stderr}`);
    await this.assertNothingLeft();
    return await this.exited;
  }

  /** As SIGTERM ends it: drained, engines stopped in order. */
  stop(): Promise<number> {
    return this.end("SIGTERM");
  }

  /** Resolves with the milliseconds until nothing of it was left. */
  async kill9(): Promise<number> {
    const fromMs = performance.now();
    await this.end("SIGKILL");
    return performance.now() - fromMs;
  }

  async assertNothingLeft(): Promise<void> {
    try {
      await waitFor(() => this.offspring().length === 0, guardMsMax, "its engines and guard are gone");
    } catch (error) {
      const left = this.offspring();
      const lines = left.map((pid) => `${pid}: ${commandLineOf(pid)}`);
      for (const pid of left) endIfRunning(pid);
      throw new Error(`left over after the daemon: ${lines.join("; ")}`, { cause: error });
    }
  }

  async dispose(): Promise<void> {
    started.delete(this);
    try {
      if (this.hasExited) await this.assertNothingLeft();
      else await this.kill9();
    } finally {
      if (this.#ownsFolder) rmSync(this.folder, { recursive: true, force: true });
    }
  }
}

/** A daemon that came up. */
export class RunningDaemon extends LaunchedDaemon {
  url = "";
  key: string = testKey;

  /** A request with the key; the answer is the caller's to read. */
  fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers);
    headers.set("authorization", `Bearer ${this.key}`);
    return fetch(this.url + path, { ...init, headers });
  }

  async json<T>(path: string): Promise<T> {
    const response = await this.fetch(path);
    const text = await response.text();
    if (!response.ok) throw new Error(`${path}: ${response.status} ${text}`);
    return JSON.parse(text) as T;
  }

  async pools(): Promise<RunningPool[]> {
    return (await this.json<{ pools: RunningPool[] }>("/v1/pools")).pools;
  }

  /** Resolves when the pool, or every pool that is on its way, can run tasks. */
  async ready(poolId?: string): Promise<void> {
    const isThere = (pool: RunningPool) => pool.ready || (poolId === undefined && pool.state === "stopped");
    await waitFor(
      async () => {
        if (this.hasExited) throw new Error(`the daemon ended:\n${this.stderr}`);
        const pools = await this.pools();
        return pools.filter((pool) => poolId === undefined || pool.id === poolId).every(isThere);
      },
      startMsMax,
      "the pools are ready",
    );
  }
}

/** Resolves when it listens and, unless told otherwise, its pools are ready; throws what it said when it ends before. */
export async function startDaemon(options: StartOptions = {}): Promise<RunningDaemon> {
  const daemon = new RunningDaemon(options);
  const address = await waitFor(
    () => (daemon.hasExited ? "" : /^ {2}address +(https?:\S+)\n/m.exec(daemon.stderr)?.[1]),
    startMsMax,
    "the daemon's banner",
  );
  if (address === "") throw new Error(`the daemon did not start (${await daemon.exited}): ${daemon.stderr}`);
  daemon.url = address;
  if (options.key !== undefined) daemon.key = options.key;
  if ((options.until ?? "ready") === "ready") await daemon.ready();
  return daemon;
}

/** For a start that must fail: its exit code and everything it said. */
export async function runToEnd(options: LaunchOptions): Promise<{ code: number; stderr: string }> {
  const daemon = new LaunchedDaemon(options);
  await waitFor(() => daemon.hasExited, startMsMax, "the end of a daemon that cannot start");
  const code = await daemon.exited;
  await daemon.dispose();
  return { code, stderr: daemon.stderr };
}

/** Ends every daemon that is still there and removes its folder; fails when one left something behind. */
export async function endDaemons(): Promise<void> {
  const ends = await Promise.allSettled([...started].map((daemon) => daemon.dispose()));
  const failed = ends.filter((end) => end.status === "rejected");
  if (failed.length > 0) throw new AggregateError(failed.map(({ reason }) => reason));
}

/** A pool of one real engine. The limits of time are those of a test, not of a person. */
export const enginePool = (id: string, modelPath: string, more: Settings = {}): Settings => ({
  id,
  engine: "llamacpp",
  model: `file:${modelPath}`,
  ...more,
});

function configText(settings: Settings, folder: string): string {
  return JSON.stringify({
    addr: "127.0.0.1:0",
    state_dir: join(folder, "state"),
    auth: { keys: [{ id: "test", sha256: sha256Hex(testKey), admin: true }] },
    limits: { rate: { per_second: 1_000_000, burst: 1_000_000 } },
    models: { dir: folder },
    engines: { llamacpp: { bin: engineBin() } },
    ...settings,
  });
}

function pidsNaming(text: string): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => commandLineOf(pid).includes(text) && isRunning(pid));
}

/** Empty when the process has gone. */
function commandLineOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch (error) {
    if (error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ESRCH")) {
      return "";
    }
    throw error;
  }
}

async function collect(stream: ReadableStream<Uint8Array>, add: (text: string) => void): Promise<void> {
  const decoder = new TextDecoder();
  for await (const bytes of stream) add(decoder.decode(bytes, { stream: true }));
}
