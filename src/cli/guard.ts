/**
 * The hidden mode `orchestratord __guard RUN_DIR MARK`: waits until the daemon that started it is gone, then
 * kills the engines that this daemon left behind, and ends. infra/bun-process.ts starts it with the first
 * child; main.ts dispatches to it before anything else, so that it stays small and needs no configuration.
 *
 * Always holds: it acts only after the end of its standard input, which the kernel brings about however the
 * daemon dies; after a normal end nothing is left to kill and it is gone at once.
 */
import { killChildren } from "../infra/process-table.ts";

/** Longer than any engine needs to die of SIGKILL; a process stuck in the kernel is not worth waiting for. */
const waitMs = 10_000;

/** `args` after the mode word. Returns the exit code. */
export async function runGuard(args: readonly string[]): Promise<number> {
  const [runDir, mark] = args;
  if (runDir === undefined || mark === undefined) return 2;
  // Signals that are meant for the daemon also reach its cgroup: the daemon's end is the only one that counts.
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(name, ignoreSignal);
  for await (const _ of Bun.stdin.stream()) {
    // The daemon never writes.
  }
  await killChildren(runDir, (candidate) => candidate === mark, waitMs);
  return 0;
}

function ignoreSignal(): void {
  // See runGuard.
}
