/**
 * The last lines of one replica's log, across its incarnations: what `lastLines` shows an operator and what a
 * failure is explained with. Owned by one replica runner. Holds at most limits.engineLogLinesMax lines.
 */
import { plainLogLine } from "../domain/failure-cause.ts";
import { limits } from "../domain/limits.ts";

export class LogTail {
  /** A ring: the oldest line is at #next once it is full. */
  readonly #lines: string[] = [];
  #next = 0;
  #ofIncarnation = 0;

  push(line: string): void {
    const kept =
      line.length > limits.engineLogLineCharsMax ? line.slice(0, limits.engineLogLineCharsMax) : line;
    if (this.#lines.length < limits.engineLogLinesMax) this.#lines.push(kept);
    else this.#lines[this.#next] = kept;
    this.#next = (this.#next + 1) % limits.engineLogLinesMax;
    this.#ofIncarnation += 1;
  }

  /** A new process: what an earlier one wrote does not explain its end. */
  beginIncarnation(): void {
    this.#ofIncarnation = 0;
  }

  /** Oldest first, as the engine wrote them, only those of this incarnation. */
  ofIncarnation(linesMax: number): string[] {
    return this.#last(Math.min(linesMax, this.#ofIncarnation));
  }

  /** Oldest first, without the JSON wrapping. */
  lastLines(linesMax: number): string[] {
    return this.#last(linesMax).map(plainLogLine);
  }

  #last(count: number): string[] {
    const full = this.#lines.length === limits.engineLogLinesMax;
    const ordered = full
      ? [...this.#lines.slice(this.#next), ...this.#lines.slice(0, this.#next)]
      : [...this.#lines];
    return count >= ordered.length ? ordered : ordered.slice(ordered.length - count);
  }
}
