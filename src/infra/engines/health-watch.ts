/**
 * Knows whether a server elsewhere is still there: asks it every few seconds while it serves, and at once after a call
 * to it failed. openai-client.ts owns one; there is no process whose end would tell.
 *
 * Always: `onGone` is called once at most, and not after `close`.
 */
import { limits } from "../../domain/limits.ts";
import type { Clock, Timer } from "../../ports/clock.ts";
import { EngineError, isEngineError } from "../../ports/engine.ts";

/** Between two looks at a server that serves. */
const watchMs = 5_000;
/** So many looks in a row that fail, and it is gone: one may be a restart of a proxy on the way. */
const failuresMax = 3;
/** Between two looks while somebody waits to hear whether it is still there. */
const confirmMs = 500;

export class HealthWatch {
  readonly #clock: Clock;
  readonly #probe: (signal: AbortSignal) => Promise<unknown>;
  readonly #onGone: (why: string) => void;
  readonly #closing = new AbortController();
  #timer: Timer | null = null;
  #failures = 0;
  #inDoubt = false;
  #confirming: Promise<void> | null = null;

  /** `probe` rejects with an EngineError where the server does not answer as one that serves. */
  constructor(clock: Clock, probe: (signal: AbortSignal) => Promise<unknown>, onGone: (why: string) => void) {
    this.#clock = clock;
    this.#probe = probe;
    this.#onGone = onGone;
  }

  start(): void {
    if (this.#timer === null && !this.#closing.signal.aborted) this.#schedule();
  }

  /** A call failed as if it were gone: from now on only an answer tells that it is there. */
  doubt(): void {
    this.#inDoubt = true;
  }

  /** Resolves once it has answered since the last `doubt`; rejects with EngineError where it is gone. */
  async confirm(signal: AbortSignal): Promise<void> {
    if (signal.aborted || this.#closing.signal.aborted)
      throw new EngineError("aborted", "waiting for the server was given up");
    if (!this.#inDoubt) return;
    this.#confirming ??= this.#ask().finally(() => {
      this.#confirming = null;
    });
    const aborted = Promise.withResolvers<never>();
    const onAbort = () => aborted.reject(new EngineError("aborted", "waiting for the server was given up"));
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      await Promise.race([this.#confirming, aborted.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  close(): void {
    this.#closing.abort();
    this.#timer?.cancel();
    this.#timer = null;
  }

  async #ask(): Promise<void> {
    for (let tries = 1; ; tries++) {
      try {
        await this.#look();
        this.#inDoubt = false;
        return;
      } catch (error) {
        if (!isEngineError(error)) throw error;
        if (tries >= failuresMax || error.engineErrorKind === "aborted") {
          this.#gone(error);
          throw error;
        }
      }
      await pause(this.#clock, confirmMs, this.#closing.signal);
    }
  }

  #schedule(): void {
    this.#timer = this.#clock.setTimer(watchMs, () => {
      this.#look().then(
        () => {
          this.#failures = 0;
          this.#again();
        },
        (error: unknown) => {
          if (!isEngineError(error)) throw error;
          this.#failures += 1;
          if (this.#failures >= failuresMax) this.#gone(error);
          else this.#again();
        },
      );
    });
  }

  #again(): void {
    if (!this.#closing.signal.aborted) this.#schedule();
  }

  async #look(): Promise<void> {
    const late = new AbortController();
    const timer = this.#clock.setTimer(limits.healthProbeTimeoutMs, () => late.abort());
    try {
      await this.#probe(AbortSignal.any([this.#closing.signal, late.signal]));
    } catch (error) {
      if (late.signal.aborted && !this.#closing.signal.aborted)
        throw new EngineError("timeout", `no answer in ${limits.healthProbeTimeoutMs} ms`);
      throw error;
    } finally {
      timer.cancel();
    }
  }

  #gone(error: EngineError): void {
    if (this.#closing.signal.aborted) return;
    this.close();
    this.#onGone(error.message);
  }
}

/** Rejects with EngineError("aborted") where the signal comes first. */
export function pause(clock: Clock, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const aborted = () => new EngineError("aborted", "the call was aborted");
    if (signal.aborted) {
      reject(aborted());
      return;
    }
    const onAbort = () => {
      timer.cancel();
      reject(aborted());
    };
    const timer = clock.setTimer(ms, () => {
      signal.removeEventListener("abort", onAbort);
      resolve();
    });
    signal.addEventListener("abort", onAbort, { once: true });
  });
}
