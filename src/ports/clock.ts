/**
 * Time, timers and randomness. The real ones are in infra/system-clock.ts; tests and the simulation bring a
 * virtual clock, so that nothing outside infra ever asks the machine what time it is.
 */

export interface Timer {
  cancel(): void;
}

export interface Clock {
  /** Milliseconds since the epoch, never going backwards within one process. May carry a fraction. */
  nowMs(): number;
  /** Runs `fn` once after `delayMs`; cancel is idempotent. */
  setTimer(delayMs: number, fn: () => void): Timer;
  /** Runs `fn` after the current turn: how a mailbox schedules its own draining. */
  soon(fn: () => void): void;
  /** Resolves once pending I/O callbacks of this turn had their chance to run. */
  yieldTurn(): Promise<void>;
}

export interface Entropy {
  /**
   * A UUID of RFC 9562 version 7: the time, then 74 bits at random. Those of one time lie beside each other in an index,
   * where random ones would each dirty a page of their own.
   */
  uuid(): string;
  /** An integer from 0 to 2^32-1. */
  uint32(): number;
  /** A number in [0, 1): for jitter. */
  unit(): number;
  /** `bytes` random bytes, base64url: for keys. */
  secret(bytes: number): string;
}
