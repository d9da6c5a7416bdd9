/**
 * What the kernel says of a process, read without the program's own code: the tests of process handling must
 * not believe what they test. A zombie counts as not running.
 */
import { readFileSync } from "node:fs";

export function isRunning(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const state = stat.slice(stat.lastIndexOf(")") + 2, stat.lastIndexOf(")") + 3);
    return state !== "Z" && state !== "X";
  } catch (error) {
    if (error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ESRCH")) {
      return false;
    }
    throw error;
  }
}

/** Exists in the process table at all, dead or alive: a child that was reaped does not. */
export function isKnown(pid: number): boolean {
  try {
    readFileSync(`/proc/${pid}/stat`);
    return true;
  } catch {
    return false;
  }
}

export function argvOf(pid: number): string[] {
  return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").filter(Boolean);
}

export function endIfRunning(pid: number): void {
  if (isRunning(pid)) process.kill(pid, "SIGKILL");
}
