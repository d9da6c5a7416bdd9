/**
 * The real time, the real timers and the operating system's randomness: the one place that asks for them.
 * app/bootstrap.ts makes one of each; everything else receives them.
 */
import { randomBytes } from "node:crypto";
import type { Clock, Entropy, Timer } from "../ports/clock.ts";

/** setTimeout takes 31 bits; longer delays are waited for in parts. */
const timeoutMsMax = 2 ** 31 - 1;

class SystemTimer implements Timer {
  #handle: ReturnType<typeof setTimeout> | null = null;

  constructor(delayMs: number, fn: () => void) {
    this.#arm(delayMs, fn);
  }

  #arm(delayMs: number, fn: () => void): void {
    const partMs = Math.min(Math.max(0, delayMs), timeoutMsMax);
    this.#handle = setTimeout(() => {
      this.#handle = null;
      if (delayMs > partMs) this.#arm(delayMs - partMs, fn);
      else fn();
    }, partMs);
  }

  cancel(): void {
    if (this.#handle !== null) clearTimeout(this.#handle);
    this.#handle = null;
  }
}

/** Fixed for the process; reading it each time would double the cost of asking for the time. */
const timeOriginMs = performance.timeOrigin;

export class SystemClock implements Clock {
  nowMs(): number {
    // Monotonic, unlike Date.now: it does not follow a clock that is set back while the daemon runs.
    return timeOriginMs + performance.now();
  }

  setTimer(delayMs: number, fn: () => void): Timer {
    return new SystemTimer(delayMs, fn);
  }

  soon(fn: () => void): void {
    setImmediate(fn);
  }

  yieldTurn(): Promise<void> {
    return new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
}

export class SystemEntropy implements Entropy {
  uuid(): string {
    return Bun.randomUUIDv7();
  }

  uint32(): number {
    return crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
  }

  unit(): number {
    return this.uint32() / 2 ** 32;
  }

  secret(bytes: number): string {
    return randomBytes(bytes).toString("base64url");
  }
}
