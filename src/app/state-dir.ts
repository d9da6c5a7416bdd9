/**
 * The state folder and the lock that keeps it to one daemon. cli/serve.ts opens it before anything else is
 * written and releases it last.
 *
 * The lock is the file `lock`, which names its holder by pid, start time and boot: a reused pid is not mistaken
 * for the holder, and after a crash or a reboot the next daemon takes the lock over by itself.
 *
 * Always holds: the lock file appears with its content (a link, never a half-written file), and the lock of a
 * dead holder is taken away by one daemon only, which first owns a marker for that very holder. Processes that
 * cannot see each other (containers with one volume) are not told apart; give each its own folder.
 */
import { chmodSync, linkSync, mkdirSync, readFileSync, statSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { StartError, systemCode } from "./start-error.ts";

export interface StateDir {
  readonly path: string;
  readonly warnings: readonly string[];
  /** Gives the lock back; idempotent. */
  release(): void;
}

/**
 * Creates the folder (0700) where it is missing and takes the lock.
 * @throws StartError "state_dir" when it cannot be made or written, "locked" when another daemon has it.
 */
export function openStateDir(path: string): StateDir {
  const warnings: string[] = [];
  try {
    // The answer is the first folder made: then the folder itself is new too, and the umask may have its say undone.
    if (mkdirSync(path, { recursive: true, mode: 0o700 }) !== undefined) chmodSync(path, 0o700);
    const mode = statSync(path).mode & 0o777;
    if ((mode & 0o022) !== 0)
      warnings.push(`others can write to ${path}, which holds the daemon's secrets; chmod 700 it`);
  } catch (error) {
    throw cannotUse(path, error);
  }
  const release = takeLock(path, describeProcess(process.pid) ?? `${process.pid} 0 0`);
  return { path, warnings, release };
}

const attemptsMax = 10;

function takeLock(folder: string, self: string): () => void {
  const lock = join(folder, "lock");
  const draft = `${lock}.${self.replaceAll(" ", "-")}`;
  try {
    writeFileSync(draft, self, { mode: 0o600 });
    try {
      for (let attempt = 0; attempt < attemptsMax; attempt += 1) {
        if (claim(draft, lock)) return () => giveBack(lock, self);
        const holder = readOrNull(lock);
        if (holder === null) continue;
        if (isAlive(holder)) throw heldBy(folder, holder);
        takeAway(lock, holder, draft);
      }
      throw new StartError(
        "locked",
        `the lock of ${folder} changes hands all the time; start one daemon only`,
      );
    } finally {
      unlinkIfThere(draft);
    }
  } catch (error) {
    if (error instanceof StartError) throw error;
    throw cannotUse(folder, error);
  }
}

/** Removes the lock of a dead holder. Whoever owns the marker for this holder may; for others it changes nothing. */
function takeAway(lock: string, holder: string, draft: string): void {
  const marker = `${lock}.dead-${holder.replaceAll(/[^0-9a-zA-Z-]/g, "-").slice(0, 128)}`;
  if (!claim(draft, marker)) {
    // Its owner is at it now, or died at it: then the marker would stay for ever.
    const owner = readOrNull(marker);
    if (owner !== null && !isAlive(owner)) unlinkIfThere(marker);
    return;
  }
  try {
    if (readOrNull(lock) === holder) unlinkIfThere(lock);
  } finally {
    unlinkIfThere(marker);
  }
}

function claim(draft: string, path: string): boolean {
  try {
    linkSync(draft, path);
    return true;
  } catch (error) {
    if (systemCode(error) === "EEXIST") return false;
    throw error;
  }
}

function giveBack(lock: string, self: string): void {
  if (readOrNull(lock) === self) unlinkIfThere(lock);
}

function readOrNull(path: string): string | null {
  try {
    return readFileSync(path, "utf8").slice(0, 256);
  } catch (error) {
    if (systemCode(error) === "ENOENT" || systemCode(error) === "ESRCH") return null;
    throw error;
  }
}

function unlinkIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
  }
}

/** "pid startTicks bootId"; null where there is no such process. Without /proc the pid alone has to do. */
function describeProcess(pid: number): string | null {
  const boot = readOrNull("/proc/sys/kernel/random/boot_id")?.trim();
  if (boot === undefined) return isThere(pid) ? `${pid} 0 0` : null;
  const stat = readOrNull(`/proc/${pid}/stat`);
  if (stat === null) return null;
  // The command name stands in parentheses and may itself contain spaces and parentheses.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return fields[0] === "Z" || fields[0] === "X" ? null : `${pid} ${fields[19]} ${boot}`;
}

function isAlive(holder: string): boolean {
  const pid = Number(holder.split(" ")[0]);
  return Number.isSafeInteger(pid) && pid > 0 && describeProcess(pid) === holder;
}

function isThere(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return systemCode(error) === "EPERM";
  }
}

function heldBy(folder: string, holder: string): StartError {
  const pid = holder.split(" ")[0];
  const message = `another orchestratord (pid ${pid}) uses the state folder ${folder}; stop it, or give this one its own with --state-dir`;
  return new StartError("locked", message);
}

function cannotUse(folder: string, error: unknown): StartError {
  const code = systemCode(error);
  if (code === null) throw error;
  const message = `cannot use the state folder ${folder} (${code}); make it writable, or name another with --state-dir`;
  return new StartError("state_dir", message, { cause: error });
}
