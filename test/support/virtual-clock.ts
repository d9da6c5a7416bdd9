/**
 * Time and randomness that a test controls. Timers fire in the order of their time, then of their making; a run
 * with the same seed is the same run. Nothing here waits for real time.
 *
 * Promises settle between the steps: `advance` and `runUntilIdle` give the microtask queue its turn after every
 * callback, so code that awaits goes on at the virtual time at which it was woken.
 */
import { assert } from "../../src/domain/assert.ts";
import type { Clock, Entropy, Timer } from "../../src/ports/clock.ts";

/** Against a timer that arms itself for ever. */
const stepsMax = 10_000_000;

interface Pending extends Timer {
  readonly dueMs: number;
  readonly order: number;
  readonly fn: () => void;
  cancelled: boolean;
}

export class VirtualClock implements Clock {
  #nowMs: number;
  #order = 0;
  /** A binary heap by (dueMs, order). */
  readonly #heap: Pending[] = [];
  #soon: (() => void)[] = [];
  #live = 0;

  constructor(startMs = 1_700_000_000_000) {
    this.#nowMs = startMs;
  }

  nowMs(): number {
    return this.#nowMs;
  }

  setTimer(delayMs: number, fn: () => void): Timer {
    assert(Number.isFinite(delayMs), "a timer has a finite delay");
    this.#order += 1;
    this.#live += 1;
    const pending: Pending = {
      dueMs: this.#nowMs + Math.max(0, delayMs),
      order: this.#order,
      fn,
      cancelled: false,
      cancel: () => {
        if (pending.cancelled) return;
        pending.cancelled = true;
        this.#live -= 1;
      },
    };
    this.#push(pending);
    return pending;
  }

  soon(fn: () => void): void {
    this.#soon.push(fn);
  }

  yieldTurn(): Promise<void> {
    return new Promise((resolve) => this.soon(resolve));
  }

  /** Timers that are neither fired nor cancelled: 0 at the end of a test, or something leaks. */
  get pendingTimers(): number {
    return this.#live;
  }

  /** When the next timer fires, or null. */
  get nextTimerMs(): number | null {
    return this.#peek()?.dueMs ?? null;
  }

  /** Moves the time on by `ms`, firing everything due on the way. */
  async advance(ms: number): Promise<void> {
    const untilMs = this.#nowMs + ms;
    for (let steps = 0; ; steps++) {
      assert(steps < stepsMax, "the virtual clock never comes to rest");
      await this.#settle();
      const next = this.#peek();
      if (next === undefined || next.dueMs > untilMs) break;
      this.#fire(next);
    }
    this.#nowMs = untilMs;
  }

  /** Runs until no timer is left, or the time limit is reached. Returns the virtual milliseconds that passed. */
  async runUntilIdle(maxMs = Number.POSITIVE_INFINITY): Promise<number> {
    const fromMs = this.#nowMs;
    for (let steps = 0; ; steps++) {
      assert(steps < stepsMax, "the virtual clock never comes to rest");
      await this.#settle();
      const next = this.#peek();
      if (next === undefined || next.dueMs - fromMs > maxMs) return this.#nowMs - fromMs;
      this.#fire(next);
    }
  }

  /** Runs the `soon` queue and lets promises settle, until neither has anything left. Time stands still. */
  async #settle(): Promise<void> {
    for (let steps = 0; ; steps++) {
      assert(steps < stepsMax, "the virtual clock's queue never empties");
      await microtasksDrained();
      const queue = this.#soon;
      if (queue.length === 0) return;
      this.#soon = [];
      for (const fn of queue) {
        fn();
        await microtasksDrained();
      }
    }
  }

  #fire(next: Pending): void {
    this.#pop();
    next.cancel();
    this.#nowMs = Math.max(this.#nowMs, next.dueMs);
    next.fn();
  }

  #peek(): Pending | undefined {
    while (this.#heap[0]?.cancelled === true) this.#pop();
    return this.#heap[0];
  }

  #push(pending: Pending): void {
    const heap = this.#heap;
    let at = heap.push(pending) - 1;
    while (at > 0) {
      const up = (at - 1) >> 1;
      const parent = heap[up];
      if (parent === undefined || !before(pending, parent)) break;
      heap[at] = parent;
      at = up;
    }
    heap[at] = pending;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return;
    let at = 0;
    for (;;) {
      const left = heap[2 * at + 1];
      const right = heap[2 * at + 2];
      if (left === undefined) break;
      const [child, down] =
        right !== undefined && before(right, left) ? [right, 2 * at + 2] : [left, 2 * at + 1];
      if (!before(child, last)) break;
      heap[at] = child;
      at = down;
    }
    heap[at] = last;
  }
}

const before = (a: Pending, b: Pending): boolean =>
  a.dueMs < b.dueMs || (a.dueMs === b.dueMs && a.order < b.order);

/** A macrotask runs only after every microtask, however long their chain is. */
function microtasksDrained(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

/** Randomness by seed (mulberry32). */
export class SeededEntropy implements Entropy {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  uint32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }

  unit(): number {
    return this.uint32() / 2 ** 32;
  }

  uuid(): string {
    const hex = Array.from({ length: 4 }, () => this.uint32().toString(16).padStart(8, "0")).join("");
    const variant = ((Number.parseInt(hex[16] ?? "0", 16) & 0x3) | 0x8).toString(16);
    return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`;
  }

  secret(bytes: number): string {
    return Buffer.from(Array.from({ length: bytes }, () => this.uint32() & 0xff)).toString("base64url");
  }
}
