/**
 * The process's memory, where the runtime has to be told something. bootstrap.ts hands it to
 * services/idle-trim.ts.
 *
 * What makes most of a fresh daemon's resident memory is the program file itself: pages of the runtime that only
 * the start needed (the parser of modules, the compiler of validators) stay mapped. They are clean and shared;
 * letting them go costs nothing and what is needed again comes back from the page cache, a few hundred minor
 * faults. Compiled JavaScript is kept: `Bun.shrink()` would throw it away, and every token after it would cost
 * three times as much until it is compiled again (measured).
 */
import { readFileSync } from "node:fs";
import type { Log } from "../ports/telemetry.ts";

/** madvise(2): MADV_DONTNEED. On a private mapping of a file that was never written to, it only unmaps. */
const dontNeed = 4;

let works = process.platform === "linux";

/**
 * A full collection, some milliseconds on this program's heap, and the program file's pages, where that works.
 * Never fails: without it the daemon is larger and nothing else.
 */
export function giveMemoryBack(log: Log): void {
  Bun.gc(true);
  if (!works) return;
  unmapProgram().catch((error: unknown) => {
    works = false;
    log.info("memory_kept", { human: `the program's pages stay mapped: ${String(error)}` });
  });
}

async function unmapProgram(): Promise<void> {
  const { dlopen, FFIType } = await import("bun:ffi");
  const { symbols, close } = dlopen("libc.so.6", {
    madvise: { args: [FFIType.u64, FFIType.u64, FFIType.i32], returns: FFIType.i32 },
  });
  for (const { start, end } of cleanMappings(process.execPath)) symbols.madvise(start, end - start, dontNeed);
  close();
}

/**
 * Address ranges of a file's machine code and constants that nobody can write to or has written to. Of read-only data
 * the loader may have written relocations before it was made read-only: those pages would come back without them.
 */
function cleanMappings(path: string): { start: bigint; end: bigint }[] {
  const found: { start: bigint; end: bigint }[] = [];
  for (const mapping of readFileSync("/proc/self/smaps", "latin1").split(/\n(?=[0-9a-f]+-[0-9a-f]+ )/)) {
    const [, start, end, file] = /^([0-9a-f]+)-([0-9a-f]+) r-\S+ \S+ \S+ \S+ +(.*)$/m.exec(mapping) ?? [];
    // Of a file's private mapping these are the pages that were written to.
    const written = !/^Anonymous: +0 kB$/m.test(mapping) || !/^Swap: +0 kB$/m.test(mapping);
    if (file === path && !written) found.push({ start: BigInt(`0x${start}`), end: BigInt(`0x${end}`) });
  }
  return found;
}
