/**
 * Child processes with Bun.spawn: each in its own session and process group, both pipes always drained, its
 * exit told only after whatever it left in its group is killed. The supervisor calls it through the port.
 *
 * No child outlives the daemon, not even a `kill -9` of it: with the first child a guard process starts
 * (cli/guard.ts) that holds the other end of a pipe; when the daemon is gone the kernel closes the pipe and
 * the guard kills every process that carries this daemon's mark or belongs to a remembered group. `sweep()`
 * at the next start does the same for the case that the guard was killed too.
 */
import { chmodSync, mkdirSync, realpathSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, isAbsolute, join } from "node:path";
import { assert } from "../domain/assert.ts";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { ProcessExit, ProcessHost, StartedProcess, StartRequest } from "../ports/process.ts";
import type { Log } from "../ports/telemetry.ts";
import { MemoryKills } from "./memory-kills.ts";
import {
  bootId,
  childrenFolder,
  daemonMark,
  isDaemonAlive,
  isSystemError,
  killChildren,
  killUntilGone,
  markVariable,
  membersOf,
  type RememberedChild,
  readProcess,
  signal,
} from "./process-table.ts";

export interface BunProcessHostOptions {
  /** Absolute; its `children` folder holds one small file a child. */
  readonly runDir: string;
  /** How to start the guard, e.g. selfCommand("__guard"); null: without one (tests). */
  readonly guardCommand: readonly string[] | null;
  readonly log: Log;
}

/** Time for the pipes to run dry after the child is gone: a process that left the group may hold them open. */
const drainMs = 250;
/** A guard that dies again and again is killed by somebody: it is not for us to win that. */
const guardStartsMax = 5;
const sweepWaitMs = 5_000;

/**
 * This program again with another first argument: the compiled binary is its own execPath, `bun` needs main.ts.
 * Not `Bun.main`: in a test that is the test file, and a guard that runs it would start the next guard.
 */
export function selfCommand(mode: string): string[] {
  if (Bun.isStandaloneExecutable) return [process.execPath, mode];
  return [process.execPath, join(import.meta.dir, "../main.ts"), mode];
}

type Guard = Bun.Subprocess<"pipe", "ignore", "ignore">;

export class BunProcessHost implements ProcessHost {
  readonly #options: BunProcessHostOptions;
  readonly #runDir: string;
  readonly #mark: string;
  #guard: Guard | null = null;
  #guardStarts = 0;
  #closing = false;
  readonly #memoryKills = new MemoryKills();
  #running = 0;

  /** Throws OrchestratorError when the run folder cannot be made. */
  constructor(options: BunProcessHostOptions) {
    this.#options = options;
    assert(isAbsolute(options.runDir), "the guard has another working directory");
    // Sockets and keys lie there: nobody else may enter, whatever the umask or an older version left.
    operating(`cannot use ${options.runDir}`, () => {
      mkdirSync(options.runDir, { recursive: true, mode: 0o700 });
      chmodSync(options.runDir, 0o700);
    });
    // By one name however it was reached: the mark must match at the next start.
    this.#runDir = realpathSync(options.runDir);
    this.#mark = daemonMark(this.#runDir);
  }

  start(request: StartRequest): StartedProcess {
    this.#ensureGuard();
    const child = spawn(request, this.#mark);
    // What others lost before any child of ours ran explains no end of ours.
    if (this.#running === 0) this.#memoryKills.note();
    this.#running += 1;
    const pid = child.pid;
    const startTicks = this.#startTicksOf(pid);
    const pipes = Promise.all([
      pumpLines(child.stdout, (line) => request.onLine(line, "stdout")),
      pumpLines(child.stderr, (line) => request.onLine(line, "stderr")),
    ]);
    return {
      pid,
      startTicks,
      exited: this.#ended(child, startTicks, pipes),
      signalGroup: (name) => {
        // Once reaped the number may belong to somebody else; what it left behind is killed in #ended.
        if (child.exitCode === null && child.signalCode === null) signal(-pid, name);
      },
    };
  }

  async #ended(child: Child, startTicks: string, pipes: Promise<unknown>): Promise<ProcessExit> {
    await child.exited;
    this.#running -= 1;
    const killed = child.signalCode === "SIGKILL";
    const explained = killed ? { memoryKill: this.#memoryKills.explainsOne() } : {};
    await this.#endGroup(child.pid, startTicks);
    // The last lines tell why it ended, so they come before its end is told.
    const patience = Promise.withResolvers<void>();
    const timer = setTimeout(() => patience.resolve(), drainMs);
    await Promise.race([pipes, patience.promise]);
    clearTimeout(timer);
    if (child.signalCode !== null) return { code: null, signal: String(child.signalCode), ...explained };
    return { code: child.exitCode, signal: null };
  }

  /** "0" (matches no process) when /proc cannot be read now: the child runs, and must not be lost for that. */
  #startTicksOf(pid: number): string {
    try {
      // Readable even when it ended already: only our own event loop reaps it.
      return readProcess(pid)?.startTicks ?? "0";
    } catch (error) {
      if (!isSystemError(error)) throw error;
      const human = `The start time of process ${pid} cannot be read: ${error.message}`;
      this.#options.log.warn("process_not_read", { pid, code: error.code, human });
      return "0";
    }
  }

  /** What the child left in its group. Never rejects for the system's refusals: its exit has to be told. */
  async #endGroup(pid: number, startTicks: string): Promise<void> {
    try {
      await killUntilGone(() => membersOf(pid, startTicks), sweepWaitMs);
    } catch (error) {
      if (!isSystemError(error)) throw error;
      const human = `What process ${pid} left in its group cannot be found, it may run on: ${error.message}`;
      this.#options.log.warn("process_group_not_ended", { pid, code: error.code, human });
    }
  }

  writeSecret(path: string, content: string): void {
    writeAtomically(path, content);
  }

  /** A file that cannot be removed is told, not thrown: whoever needs its name free finds out there. */
  removeFile(path: string): void {
    try {
      rmSync(path, { force: true });
    } catch (error) {
      if (!isSystemError(error)) throw error;
      const human = `The file ${path} cannot be removed: ${error.message}`;
      this.#options.log.warn("run_file_not_removed", { path, code: error.code, human });
    }
  }

  stampOf(paths: readonly string[]): string {
    return paths.map(stampOf).join("\n");
  }

  remember(started: { pid: number; startTicks: string; replicaId: string }): void {
    const child: RememberedChild = {
      pid: started.pid,
      startTicks: started.startTicks,
      replicaId: started.replicaId,
      mark: this.#mark,
      bootId: bootId(),
    };
    writeAtomically(this.#childPath(started.pid), JSON.stringify(child));
  }

  forget(pid: number): void {
    this.removeFile(this.#childPath(pid));
  }

  #childPath(pid: number): string {
    return join(childrenFolder(this.#runDir), `${pid}.json`);
  }

  /** Leaves alone what belongs to a daemon that runs: two on one run folder is the lock's business, not ours. */
  sweep(): Promise<number> {
    const prefix = `${this.#runDir}#`;
    const isLeftOver = (mark: string): boolean => mark.startsWith(prefix) && !isDaemonAlive(mark);
    return killChildren(this.#runDir, isLeftOver, sweepWaitMs);
  }

  /** Ends the guard. Call it last: what is still running then, the guard kills. */
  async close(): Promise<void> {
    this.#closing = true;
    const guard = this.#guard;
    this.#guard = null;
    if (guard === null) return;
    await guard.stdin.end();
    await guard.exited;
  }

  #ensureGuard(): void {
    const { guardCommand, log } = this.#options;
    if (guardCommand === null || this.#guard !== null || this.#closing) return;
    if (this.#guardStarts >= guardStartsMax) return;
    this.#guardStarts += 1;
    const guard = spawnGuard([...guardCommand, this.#runDir, this.#mark], log);
    this.#guard = guard;
    void guard?.exited.then((code) => {
      if (this.#closing || this.#guard !== guard) return;
      this.#guard = null;
      const human = "The guard that ends engines after a crash of this daemon ended; another one is started.";
      log.warn("guard_exited", { code, signal: String(guard.signalCode), human });
      this.#ensureGuard();
    });
  }
}

/** Null when the system refuses: the daemon serves all the same, and the next start's sweep does the guard's work. */
function spawnGuard(command: string[], log: Log): Guard | null {
  try {
    // Its own session: a Ctrl-C in the terminal is not for the guard. No mark: it must not find itself.
    return Bun.spawn(command, {
      stdin: "pipe",
      stdout: "ignore",
      stderr: "ignore",
      detached: true,
      cwd: "/",
      env: { PATH: process.env.PATH ?? "/usr/bin:/bin" },
    });
  } catch (error) {
    if (!isSystemError(error)) throw error;
    const human = `The guard that ends engines after a crash of this daemon cannot be started: ${error.message}`;
    log.warn("guard_not_started", { code: error.code, human });
    return null;
  }
}

type Child = Bun.Subprocess<"ignore", "pipe", "pipe">;

function spawn(request: StartRequest, mark: string): Child {
  try {
    return Bun.spawn([...request.command], {
      cwd: request.cwd,
      env: { ...request.env, [markVariable]: mark },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      detached: true,
    });
  } catch (error) {
    if (!isSystemError(error)) throw error;
    const program = request.command[0] ?? "(none)";
    throw new OrchestratorError(
      "POOL_UNAVAILABLE",
      `cannot start ${program}: ${error.message} (${error.code})`,
      {
        cause: error,
      },
    );
  }
}

/** Reads to the end. A line's excess is dropped as it comes, so that a child without newlines costs no memory. */
async function pumpLines(stream: ReadableStream<Uint8Array>, onLine: (line: string) => void): Promise<void> {
  const max = limits.engineLogLineCharsMax;
  const decoder = new TextDecoder();
  let open = "";
  const take = (text: string): void => {
    let from = 0;
    for (;;) {
      const end = text.indexOf("\n", from);
      const upTo = end === -1 ? text.length : end;
      if (open.length < max) open += text.slice(from, Math.min(upTo, from + max - open.length));
      if (end === -1) return;
      onLine(open.endsWith("\r") ? open.slice(0, -1) : open);
      open = "";
      from = end + 1;
    }
  };
  for await (const bytes of stream) take(decoder.decode(bytes, { stream: true }));
  take(decoder.decode());
  if (open !== "") onLine(open);
}

/** The time of the last change of the inode tells of permissions too. */
function stampOf(path: string): string {
  const file = path.includes("/") ? path : (Bun.which(path) ?? path);
  try {
    const { dev, ino, size, mtimeMs, ctimeMs, mode } = statSync(file);
    return `${file} ${dev}:${ino} ${size} ${mtimeMs} ${ctimeMs} ${mode}`;
  } catch (error) {
    if (!isSystemError(error)) throw error;
    return `${file} ${error.code}`;
  }
}

/** The disk's refusals as errors that an operator can act on. */
function operating(what: string, act: () => void): void {
  try {
    act();
  } catch (error) {
    if (!isSystemError(error)) throw error;
    const message = `${what}: ${error.message}: the state folder needs space and write permission`;
    throw new OrchestratorError("POOL_UNAVAILABLE", message, { cause: error });
  }
}

/**
 * A reader sees the old file, or the whole new one, or none. No fsync, which can hold the daemon's only thread
 * for a long time: these files matter only while their process lives, and none outlives a power cut.
 */
function writeAtomically(path: string, content: string): void {
  const temp = `${path}.${process.pid}.tmp`;
  operating(`cannot write ${path}`, () => {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    writeFileSync(temp, content, { mode: 0o600 });
    renameSync(temp, path);
  });
}
