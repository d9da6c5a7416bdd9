/**
 * Tells when the configuration file in use has changed, or, where the models folder names the pools, what lies there.
 * app/config-reload.ts makes it and reads the file then.
 *
 * Always holds: a change is told once it has stayed the same for limits.configQuietMs, at most limits.configSettleMsMax
 * after its first sign; where nobody gives a sign it is found within limits.configLookMs. What was read already is not told.
 */
import { limits } from "../domain/limits.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { FileWatch, Following, Watched } from "../ports/file-watch.ts";

export class ConfigWatch {
  #following: Following | null = null;
  #watched: Watched | null = null;
  #seen = "";
  #look: Timer | null = null;
  #settle: Timer | null = null;
  /** When the first sign came of what was not told yet, and what was there when it was looked at last. */
  #firstMs: number | null = null;
  #candidate: string | null = null;

  constructor(
    private readonly clock: Clock,
    private readonly files: FileWatch,
    private readonly changed: () => void,
  ) {}

  /** From now on this is watched; null: nothing. Where that is something else than before, what lies there is known. */
  follow(watched: Watched | null): void {
    if (JSON.stringify(watched) === JSON.stringify(this.#watched)) return;
    this.stop();
    this.#watched = watched;
    this.#following = watched === null ? null : this.files.follow(watched, () => this.#stirred());
    this.saw();
    this.#lookLater();
  }

  /** It is read in this moment, or later: what lies there now is no news. */
  saw(): void {
    this.#seen = this.#following?.print() ?? "";
  }

  stop(): void {
    this.#following?.close();
    this.#following = null;
    this.#watched = null;
    this.#look?.cancel();
    this.#settle?.cancel();
    this.#look = this.#settle = this.#firstMs = this.#candidate = null;
  }

  #lookLater(): void {
    if (this.#following === null) return;
    this.#look = this.clock.setTimer(limits.configLookMs, () => {
      // It is given the time to settle, too: it may be half written.
      if (this.#following?.print() !== this.#seen) this.#stirred();
      this.#lookLater();
    });
  }

  /** Others may write in the same folder all the time: what counts is whether the bytes stay the same. */
  #stirred(): void {
    if (this.#following === null || this.#settle !== null) return;
    const nowMs = this.clock.nowMs();
    this.#firstMs ??= nowMs;
    const isLast = nowMs - this.#firstMs + limits.configQuietMs >= limits.configSettleMsMax;
    this.#settle = this.clock.setTimer(limits.configQuietMs, () => {
      this.#settle = null;
      const print = this.#following?.print() ?? "";
      if (print !== this.#seen && print !== this.#candidate && !isLast) {
        this.#candidate = print;
        this.#stirred();
        return;
      }
      this.#firstMs = this.#candidate = null;
      if (print === this.#seen) return;
      this.#seen = print;
      this.changed();
    });
  }
}
