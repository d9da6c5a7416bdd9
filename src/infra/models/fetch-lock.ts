/**
 * One process fetches a file at a time: `NAME.part.lock` names it by pid, start time and boot of the machine, so that a
 * reused pid is not mistaken for it and what a dead one left is taken over. http-model-source.ts is the caller.
 */
import { linkSync, mkdirSync, readFileSync, renameSync, unlinkSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { FetchError } from "../../ports/model-source.ts";
import { codeOf } from "./part-file.ts";

const held = new Set<string>();
const attemptsMax = 8;

/** Gives it back by the function returned. @throws FetchError busy; what node:fs throws */
export function takeFetchLock(path: string): () => void {
  const lock = `${path}.part.lock`;
  const self = describe(process.pid) ?? `${process.pid} 0 0`;
  if (held.has(lock)) throw busy(path, self);
  mkdirSync(dirname(path), { recursive: true });
  for (let attempt = 0; attempt < attemptsMax; attempt++) {
    if (create(lock, self)) {
      held.add(lock);
      return () => {
        held.delete(lock);
        if (readOrNull(lock) === self) unlinkIfThere(lock);
      };
    }
    const holder = readOrNull(lock);
    if (holder === null) continue;
    // Our own name and not held: what was left when this very process was another one.
    if (holder !== self && isAlive(holder)) throw busy(path, holder);
    takeAway(lock, holder, self);
  }
  throw busy(path, "another one each time");
}

/** Moves the lock of a dead holder aside; where it was a living one's in the meantime, that gets it back. */
function takeAway(lock: string, holder: string, self: string): void {
  const aside = `${lock}.${self.replaceAll(/[^0-9a-zA-Z]/g, "-")}`;
  try {
    renameSync(lock, aside);
  } catch (error) {
    if (codeOf(error) === "ENOENT") return;
    throw error;
  }
  try {
    if (readOrNull(aside) !== holder) linkSync(aside, lock);
  } catch (error) {
    if (codeOf(error) !== "EEXIST") throw error;
  } finally {
    unlinkIfThere(aside);
  }
}

function create(lock: string, self: string): boolean {
  try {
    writeFileSync(lock, self, { flag: "wx", mode: 0o644 });
    return true;
  } catch (error) {
    if (codeOf(error) === "EEXIST") return false;
    throw error;
  }
}

function readOrNull(path: string): string | null {
  try {
    return readFileSync(path, "utf8").slice(0, 256);
  } catch (error) {
    if (codeOf(error) === "ENOENT" || codeOf(error) === "ESRCH") return null;
    throw error;
  }
}

function unlinkIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (codeOf(error) !== "ENOENT") throw error;
  }
}

/** "pid startTicks bootId"; null: there is no such process. Without /proc nobody else is seen. */
function describe(pid: number): string | null {
  const boot = readOrNull("/proc/sys/kernel/random/boot_id")?.trim();
  const stat = readOrNull(`/proc/${pid}/stat`);
  if (boot === undefined || stat === null) return null;
  // The command's name stands in parentheses and may hold spaces itself.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return fields[0] === "Z" || fields[0] === "X" ? null : `${pid} ${fields[19]} ${boot}`;
}

function isAlive(holder: string): boolean {
  const pid = Number(holder.split(" ")[0]);
  return Number.isSafeInteger(pid) && pid > 0 && describe(pid) === holder;
}

const busy = (path: string, holder: string): FetchError =>
  new FetchError("busy", `${path} is being fetched by process ${holder.split(" ")[0]}; wait for it`);
