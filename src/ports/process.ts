/**
 * Child processes by role: start one in its own process group, read its lines, signal the whole group, know
 * when it ended. The adapter is infra/bun-process.ts; a scripted one serves the simulation.
 */

export interface ProcessExit {
  /** Null when a signal ended it. */
  readonly code: number | null;
  /** e.g. "SIGKILL"; null when it exited by itself. */
  readonly signal: string | null;
  /** Ended by the kernel because memory ran out; null or absent: it does not tell. Only where signal is SIGKILL. */
  readonly memoryKill?: boolean | null;
}

export interface StartedProcess {
  readonly pid: number;
  /** Clock ticks since boot at which the process started (/proc/PID/stat field 22): tells a reused pid apart. */
  readonly startTicks: string;
  /** Settles once, after the child is reaped. */
  readonly exited: Promise<ProcessExit>;
  /** To the whole process group; a group that is gone is not an error. */
  signalGroup(signal: "SIGTERM" | "SIGKILL" | "SIGINT"): void;
}

export interface StartRequest {
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  /** Lines of stdout and stderr, each cut to limits.engineLogLineCharsMax; both pipes are always drained. */
  onLine(line: string, from: "stdout" | "stderr"): void;
}

export interface ProcessHost {
  /** Throws OrchestratorError("POOL_UNAVAILABLE") with the reason when the program cannot be started. */
  start(request: StartRequest): StartedProcess;
  /** Writes a file atomically with mode 0600, creating its folder (0700). */
  writeSecret(path: string, content: string): void;
  removeFile(path: string): void;
  /**
   * What lies at these paths, in one text that differs once a file comes, goes, or is written anew; a name without a slash is
   * a program on PATH. Never throws: what cannot be seen is said in the text.
   */
  stampOf(paths: readonly string[]): string;
  /** Remembers a started process, so that a later daemon can sweep it if this one dies by kill -9. */
  remember(process: { pid: number; startTicks: string; replicaId: string }): void;
  forget(pid: number): void;
  /** Kills the groups that an earlier daemon remembered and that still run as the same process. Returns how many. */
  sweep(): Promise<number>;
}
