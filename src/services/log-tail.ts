/**
 * The last lines of one replica's log, across its incarnations: what an operator is shown (services/engine-logs.ts)
 * and what a failure is explained with. Owned by one replica runner. Holds at most limits.engineLogLinesMax lines;
 * each has a number, counted from 0 since the start of the daemon.
 */
import { plainLogLine } from "../domain/failure-cause.ts";
import { limits } from "../domain/limits.ts";

export class LogTail {
  /** A ring: the oldest line is at #next once it is full. */
  readonly #lines: string[] = [];
  #next = 0;
  #pushed = 0;
  #ofIncarnation = 0;
  readonly #watchers = new Set<() => void>();

  /** Lines ever pushed: the number of the next one. */
  get length(): number {
    return this.#pushed;
  }

  push(line: string): void {
    const kept =
      line.length > limits.engineLogLineCharsMax ? line.slice(0, limits.engineLogLineCharsMax) : line;
    if (this.#lines.length < limits.engineLogLinesMax) this.#lines.push(kept);
    else this.#lines[this.#next] = kept;
    this.#next = (this.#next + 1) % limits.engineLogLinesMax;
    this.#pushed += 1;
    this.#ofIncarnation += 1;
    for (const watcher of this.#watchers) watcher();
  }

  /** Calls `onLine` after every line, until what it returns is called. */
  watch(onLine: () => void): () => void {
    this.#watchers.add(onLine);
    return () => this.#watchers.delete(onLine);
  }

  /** Lines from number `from` on, oldest first and at most so many; `first`: the number of the first, later where older ones are gone. */
  read(from: number, linesMax: number): { readonly first: number; readonly lines: string[] } {
    const first = Math.min(this.#pushed, Math.max(from, this.#pushed - this.#lines.length));
    const last = Math.min(this.#pushed, first + linesMax);
    const lines: string[] = [];
    for (let number = first; number < last; number += 1)
      lines.push(plainLogLine(this.#lines[number % limits.engineLogLinesMax] ?? ""));
    return { first, lines };
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
