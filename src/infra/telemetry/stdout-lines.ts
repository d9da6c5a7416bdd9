/**
 * Where log lines leave the process: collected for a millisecond and then written in one call, because a call
 * for each line was an eighth of what accepting a task costs; written before process.exit; and never waited
 * for, so that a reader who stalls (`orchestratord | less`) cannot stop the event loop.
 * pino-log.ts makes one; nobody else writes to stdout while the daemon serves.
 *
 * Always: lines keep their order; at most `pendingBytesMax` wait in memory, what comes on top is dropped and
 * counted, and the count is told as a line of its own once the reader is back; a reader who is gone (EPIPE)
 * ends the logging and nothing else. A kill -9 loses the lines of the last millisecond.
 *
 * Why not pino's own destination: its synchronous one writes to fd 1 as it is, and on a full pipe that call
 * does not return before somebody reads (measured: 4.9 s for a reader that slept 5 s).
 */
import { constants, fstatSync, openSync, writeSync } from "node:fs";
import { limits } from "../../domain/limits.ts";
import type { Clock, Timer } from "../../ports/clock.ts";

export interface StdoutLinesOptions {
  readonly clock: Clock;
  readonly fd?: number;
  readonly pendingBytesMax?: number;
  /** Called once per stall that cost lines, after the reader is back. Returns the line that says so. */
  readonly droppedLine: (count: number) => string;
  /** fs.writeSync; tests bring a pipe that is full, broken or short. */
  readonly write?: (fd: number, bytes: Uint8Array) => number;
}

const exitStepMs = 10;

export class StdoutLines {
  private readonly clock: Clock;
  private readonly fd: number;
  private readonly pendingBytesMax: number;
  private readonly droppedLine: (count: number) => string;
  private readonly writeBytes: (fd: number, bytes: Uint8Array) => number;
  /** Lines of this millisecond, not encoded yet. */
  private collected = "";
  private collecting: Timer | null = null;
  private pending: Uint8Array[] = [];
  private pendingBytes = 0;
  private dropped = 0;
  private gone = false;
  private retry: Timer | null = null;

  constructor(options: StdoutLinesOptions) {
    this.clock = options.clock;
    const fd = options.fd ?? 1;
    this.fd = (options.write === undefined ? openNonBlocking(fd) : null) ?? fd;
    this.pendingBytesMax = options.pendingBytesMax ?? limits.logPendingBytesMax;
    this.droppedLine = options.droppedLine;
    this.writeBytes = options.write ?? ((to, bytes) => writeSync(to, bytes));
  }

  /** Takes one whole line with its newline. Never throws, never waits. */
  write(line: string): void {
    if (this.gone) return;
    const waiting = this.pendingBytes + this.collected.length;
    if (waiting > 0 && waiting + line.length > this.pendingBytesMax) {
      this.dropped++;
      return;
    }
    this.collected += line;
    if (this.collecting !== null) return;
    process.once("exit", this.flush);
    this.collecting = this.clock.setTimer(0, () => {
      this.encodeCollected();
      // While a retry is due the pipe was full a moment ago: asking again would only cost calls.
      if (this.retry === null) this.drain();
    });
  }

  private encodeCollected(): void {
    if (this.collecting === null) return;
    this.collecting.cancel();
    this.collecting = null;
    process.off("exit", this.flush);
    const bytes = Buffer.from(this.collected, "utf8");
    this.collected = "";
    this.pending.push(bytes);
    this.pendingBytes += bytes.length;
  }

  /** For process.exit: gives a slow reader a moment, for no timer will run any more. */
  readonly flush = (): void => {
    this.encodeCollected();
    const patience = new Int32Array(new SharedArrayBuffer(4));
    for (let waitedMs = 0; this.send() === "later"; waitedMs += exitStepMs) {
      if (waitedMs >= limits.logExitMs) this.abandon();
      else Atomics.wait(patience, 0, 0, exitStepMs);
    }
    this.settle();
  };

  private drain(): void {
    if (this.send() === "done") {
      this.settle();
      return;
    }
    // Only a stall needs the exit listener: everything else is out already.
    if (this.retry === null) process.once("exit", this.flush);
    this.retry = this.clock.setTimer(limits.logRetryMs, () => this.drain());
  }

  /** Nothing waits any more: says what the stall cost. */
  private settle(): void {
    if (this.retry !== null) {
      this.retry.cancel();
      this.retry = null;
      process.off("exit", this.flush);
    }
    if (this.dropped === 0 || this.gone) return;
    const count = this.dropped;
    this.dropped = 0;
    this.write(this.droppedLine(count));
  }

  /** Writes what waits until the pipe is full. */
  private send(): "done" | "later" {
    while (!this.gone) {
      const first = this.pending[0];
      if (first === undefined) return "done";
      let written: number;
      try {
        written = this.writeBytes(this.fd, first);
      } catch (error) {
        const code = (error as NodeJS.ErrnoException).code;
        // Full pipe, full disk, interrupted call: all pass.
        if (code !== "EPIPE" && code !== "EBADF") return "later";
        this.abandon();
        break;
      }
      this.pendingBytes -= written;
      if (written === first.length) this.pending.shift();
      else this.pending[0] = first.subarray(written);
    }
    return "done";
  }

  private abandon(): void {
    this.gone = true;
    this.collected = "";
    this.pending = [];
    this.pendingBytes = 0;
  }
}

/**
 * Opens the same pipe anew without blocking: O_NONBLOCK belongs to the open file, and setting it on fd 1
 * itself would change it for everyone who shares that end. Null where that is not possible (a socket, as
 * under systemd, or no /proc) or not wanted (a file: another position; a terminal: a person reads).
 */
function openNonBlocking(fd: number): number | null {
  try {
    if (!fstatSync(fd).isFIFO()) return null;
    return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK);
  } catch {
    // The descriptor as it is serves too.
    return null;
  }
}
