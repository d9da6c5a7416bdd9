/**
 * The kernel's process table as /proc shows it: who is alive, since when, in which group and session, and
 * which processes carry the mark of a daemon. Used by bun-process.ts and by the guard (cli/guard.ts).
 *
 * Always holds: a process is named by pid and start ticks together, because pids are used again; both are
 * read once more right before a signal. Synchronous: /proc is memory, and a check that awaits is out of date.
 */
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

export interface ProcessEntry {
  readonly pid: number;
  /** R, S, D, Z …: a zombie (Z) or dead one (X) runs no more. */
  readonly state: string;
  readonly group: number;
  readonly session: number;
  /** Clock ticks since boot: field 22 of /proc/PID/stat. */
  readonly startTicks: string;
}

/** A child as a later daemon, or the guard, needs to know it. */
export interface RememberedChild {
  readonly pid: number;
  readonly startTicks: string;
  readonly replicaId: string;
  /** The daemon that started it: see daemonMark. */
  readonly mark: string;
  /** Ticks count from boot: after a reboot they mean nothing. */
  readonly bootId: string;
}

/** In the environment of every child: finds those too that left the group, or were not yet remembered. */
export const markVariable = "ORCHD_CHILD_OF";

/** Between two looks at what was killed: soon at first; a look reads all of /proc, so then more and more rarely. */
const pauseMsFirst = 5;
const pauseMsMax = 200;

/** Of one file: its process is gone or not ours. EIO: the kernel's word for a process that is just ending. */
const goneErrors = new Set(["ENOENT", "ESRCH", "EACCES", "EPERM", "ENOTDIR", "EIO", "ESTALE"]);

interface SystemError extends Error {
  readonly code: string;
}

export function isSystemError(error: unknown): error is SystemError {
  return error instanceof Error && "code" in error && typeof error.code === "string";
}

/**
 * Null instead of the file where it is gone or not ours: processes end while one looks at them. Throws when the
 * machine is short of descriptors or memory: that a process cannot be looked at must not read as "it is gone".
 */
function readOrNull(path: string): string | null {
  try {
    return readFileSync(path, "latin1");
  } catch (error) {
    if (isSystemError(error) && goneErrors.has(error.code)) return null;
    throw error;
  }
}

export function readProcess(pid: number): ProcessEntry | null {
  const stat = readOrNull(`/proc/${pid}/stat`);
  if (stat === null) return null;
  // The command name stands in parentheses and may itself contain spaces and parentheses.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const [state, , group, session] = fields;
  const startTicks = fields[19];
  if (state === undefined || startTicks === undefined) return null;
  return { pid, state, group: Number(group), session: Number(session), startTicks };
}

export function isAlive(entry: ProcessEntry | null): entry is ProcessEntry {
  return entry !== null && entry.state !== "Z" && entry.state !== "X";
}

function* processes(): Generator<ProcessEntry> {
  // Without /proc nothing is found and nothing killed: setpriv's or the service manager's task there.
  if (!existsSync("/proc")) return;
  for (const name of readdirSync("/proc")) {
    if (!/^[0-9]+$/.test(name)) continue;
    const entry = readProcess(Number(name));
    if (isAlive(entry)) yield entry;
  }
}

/**
 * Who still runs of the group and session that `pid` led. Empty when another process has the pid now: the
 * kernel gives a number away again only after the last member of its group and session is gone.
 */
export function membersOf(pid: number, startTicks: string): ProcessEntry[] {
  const leader = readProcess(pid);
  if (leader !== null && leader.startTicks !== startTicks) return [];
  const since = BigInt(startTicks);
  return [...processes()].filter(
    (entry) => (entry.group === pid || entry.session === pid) && BigInt(entry.startTicks) >= since,
  );
}

/** Processes whose environment carries a mark that `matches`. */
function markedProcesses(matches: (mark: string) => boolean): ProcessEntry[] {
  const found: ProcessEntry[] = [];
  for (const entry of processes()) {
    const environ = readOrNull(`/proc/${entry.pid}/environ`);
    const mark = environ?.split("\0").find((pair) => pair.startsWith(`${markVariable}=`));
    if (mark !== undefined && matches(mark.slice(markVariable.length + 1))) found.push(entry);
  }
  return found;
}

/** Kills what still is the same process; gone ones are fine. Returns false when it was gone. */
function killEntry(entry: ProcessEntry): boolean {
  if (readProcess(entry.pid)?.startTicks !== entry.startTicks) return false;
  return signal(entry.pid, "SIGKILL");
}

/** False when nothing has that pid, or no group that number, any more, or it is not ours to end. */
export function signal(pid: number, name: "SIGTERM" | "SIGKILL" | "SIGINT"): boolean {
  try {
    return process.kill(pid, name);
  } catch (error) {
    if (isSystemError(error) && (error.code === "ESRCH" || error.code === "EPERM")) return false;
    throw error;
  }
}

/** Names one daemon on one run folder: `folder#pid.ticks`. */
export function daemonMark(runDir: string, pid = process.pid): string {
  return `${runDir}#${pid}.${readProcess(pid)?.startTicks ?? "0"}`;
}

/** The daemon that a mark names still runs: its children are its own business. */
export function isDaemonAlive(mark: string): boolean {
  const named = /#([0-9]+)\.([0-9]+)$/.exec(mark);
  if (named === null) return false;
  const entry = readProcess(Number(named[1]));
  return isAlive(entry) && entry.startTicks === named[2];
}

export function bootId(): string {
  return readOrNull("/proc/sys/kernel/random/boot_id")?.trim() ?? "";
}

/** The remembered children of a run folder with the files that name them; a torn or foreign file names none. */
function rememberedChildren(runDir: string): { path: string; child: RememberedChild | null }[] {
  const folder = childrenFolder(runDir);
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch (error) {
    if (isSystemError(error) && error.code === "ENOENT") return [];
    throw error;
  }
  return names
    .filter((name) => name.endsWith(".json"))
    .map((name) => ({ path: join(folder, name), child: parseChild(readOrNull(join(folder, name))) }));
}

function parseChild(text: string | null): RememberedChild | null {
  if (text === null) return null;
  try {
    const value = JSON.parse(text) as Partial<RememberedChild> | null;
    if (typeof value?.pid !== "number" || !Number.isSafeInteger(value.pid) || value.pid <= 1) return null;
    if (typeof value.startTicks !== "string" || !/^[0-9]+$/.test(value.startTicks)) return null;
    if (typeof value.mark !== "string" || typeof value.bootId !== "string") return null;
    return {
      pid: value.pid,
      startTicks: value.startTicks,
      replicaId: String(value.replicaId),
      mark: value.mark,
      bootId: value.bootId,
    };
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

export function childrenFolder(runDir: string): string {
  return join(runDir, "children");
}

/**
 * Kills every child, with its group and session, whose daemon `isOurs`, and waits until they are gone, at most
 * `waitMs`. Then removes their files. Returns how many process groups were found alive.
 */
export async function killChildren(
  runDir: string,
  isOurs: (mark: string) => boolean,
  waitMs: number,
): Promise<number> {
  const boot = bootId();
  const remembered = rememberedChildren(runDir).filter(({ child }) => child === null || isOurs(child.mark));
  const left = (): ProcessEntry[] => {
    const known = remembered.flatMap(({ child }) =>
      child === null || child.bootId !== boot ? [] : membersOf(child.pid, child.startTicks),
    );
    return [...markedProcesses(isOurs), ...known];
  };
  const groups = await killUntilGone(left, waitMs);
  for (const { path } of remembered) rmSync(path, { force: true });
  return groups;
}

/**
 * Kills what `find` finds until it finds nothing twice in a row: a child between fork and exec shows neither
 * its mark nor its group yet. Gives up after `waitMs`. Returns how many process groups were found alive.
 * A look that the system refuses is taken again; throws the refusal when the last look was one.
 */
export async function killUntilGone(find: () => ProcessEntry[], waitMs: number): Promise<number> {
  const groups = new Set<number>();
  const deadline = performance.now() + waitMs;
  let emptyInRow = 0;
  let pauseMs = pauseMsFirst;
  let refusal: SystemError | null = null;
  while (emptyInRow < 2 && performance.now() < deadline) {
    try {
      const left = find();
      emptyInRow = left.length === 0 ? emptyInRow + 1 : 0;
      for (const entry of left) {
        groups.add(entry.group);
        killEntry(entry);
      }
      refusal = null;
    } catch (error) {
      if (!isSystemError(error)) throw error;
      refusal = error;
      emptyInRow = 0;
    }
    if (emptyInRow < 2) await Bun.sleep(pauseMs);
    pauseMs = Math.min(pauseMs * 2, pauseMsMax);
  }
  if (refusal !== null) throw refusal;
  return groups.size;
}
