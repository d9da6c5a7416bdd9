/**
 * Knows when an engine has freed a slot after an abort. The llama.cpp client owns one.
 *
 * The signal is the engine's log: `slot launch_slot_: id  1 | task 10 | processing task` and `slot release: id  1
 * | task 10 | stop processing` (llama-server -lv 3), read from the pipe within milliseconds. `/slots` is the
 * fall-back only: every answer of the engine postpones its own check for gone clients by a second, so one shared
 * poll serves all waiters, and never two within limits.slotPollMs.
 *
 * Always: a release line counts only after a launch line seen since the slot's last `begin`, so the late release
 * of the generation before is not taken for this one. Where the two come so late that even the launch line is
 * overtaken, the slot is thought free a moment early; the engine then lets the next generation wait for it.
 * After `doubt` neither what is remembered nor a line, which a dead engine's pipe may still hold, frees a slot:
 * first the engine must have answered.
 */
import { limits } from "../../domain/limits.ts";
import type { Clock, Timer } from "../../ports/clock.ts";
import { EngineError, isEngineError, type SlotSnapshot } from "../../ports/engine.ts";

/** A generation of which no launch was logged yet may never be launched: asked for soon. */
const unlaunchedPollMs = 100;

/**
 * So many refused polls in a row and the engine is gone. Not one: a Unix socket whose queue of new connections
 * is full refuses too, and Bun does not tell the two apart.
 */
const refusalsMax = 2;

const slotLine = /slot\s+(launch_slot_|release): id\s+(\d+) \|/;

interface Waiter {
  /** Null: any answer of the engine will do. */
  readonly slot: number | null;
  readonly sinceMs: number;
  settle(error: EngineError | null): void;
}

interface SlotLog {
  launched: boolean;
  released: boolean;
}

export class SlotWatch {
  readonly #clock: Clock;
  readonly #poll: (signal: AbortSignal) => Promise<readonly SlotSnapshot[]>;
  readonly #slots = new Map<number, SlotLog>();
  readonly #waiters = new Set<Waiter>();
  readonly #closing = new AbortController();
  #polledMs = Number.NEGATIVE_INFINITY;
  #timer: Timer | null = null;
  #polling = false;
  #refusals = 0;
  /** Counts `doubt`; the engine has answered a question that was asked after so many of them. */
  #doubts = 0;
  #doubtsAnswered = 0;

  constructor(clock: Clock, poll: (signal: AbortSignal) => Promise<readonly SlotSnapshot[]>) {
    this.#clock = clock;
    this.#poll = poll;
  }

  /** A generation is about to be sent to `slot`. */
  begin(slot: number): void {
    this.#slots.set(slot, { launched: false, released: false });
  }

  /** The engine may be gone: from now on only its own answer tells that a slot is free. */
  doubt(): void {
    this.#doubts += 1;
    for (const log of this.#slots.values()) log.released = false;
  }

  get #inDoubt(): boolean {
    return this.#doubts > this.#doubtsAnswered;
  }

  onLogLine(line: string): void {
    if (!line.includes("slot ")) return;
    const match = slotLine.exec(line);
    if (match === null) return;
    const slot = Number(match[2]);
    const log = this.#slots.get(slot);
    if (log === undefined) return;
    if (match[1] === "launch_slot_") {
      log.launched = true;
      log.released = false;
    } else if (log.launched && !this.#inDoubt) {
      log.released = true;
      for (const waiter of this.#waiters) if (waiter.slot === slot) waiter.settle(null);
    }
  }

  /** Every `/slots` call goes through here, the supervisor's own too, so that they share one pace. */
  async ask(signal: AbortSignal): Promise<SlotSnapshot[]> {
    const askedMs = this.#clock.nowMs();
    this.#polledMs = askedMs;
    const doubts = this.#doubts;
    const snapshots = await this.#poll(signal);
    this.#doubtsAnswered = Math.max(this.#doubtsAnswered, doubts);
    for (const waiter of this.#waiters) {
      if (waiter.sinceMs > askedMs) continue;
      const { slot } = waiter;
      if (slot === null || snapshots.some((one) => one.slot === slot && !one.busy)) waiter.settle(null);
    }
    return [...snapshots];
  }

  waitFree(slot: number, signal: AbortSignal): Promise<void> {
    const log = this.#slots.get(slot);
    const isFree = !this.#inDoubt && (log === undefined || log.released);
    const pollMs = log?.launched === true && !this.#inDoubt ? limits.slotPollMs : unlaunchedPollMs;
    return this.#wait(slot, isFree, pollMs, signal);
  }

  /** For work whose slot the engine chooses: its next answer tells that it has got past what it was at. */
  waitAnswer(signal: AbortSignal): Promise<void> {
    return this.#wait(null, false, unlaunchedPollMs, signal);
  }

  #wait(slot: number | null, isFree: boolean, pollMs: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted || this.#closing.signal.aborted) {
      return Promise.reject(new EngineError("aborted", "waiting for a slot was given up"));
    }
    if (isFree) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const onAbort = () => waiter.settle(new EngineError("aborted", "waiting for a slot was given up"));
      const what = slot === null ? "answer" : `free slot ${slot}`;
      const deadline = this.#clock.setTimer(limits.slotConfirmMsMax, () =>
        waiter.settle(
          new EngineError("timeout", `the engine did not ${what} in ${limits.slotConfirmMsMax} ms`),
        ),
      );
      const waiter: Waiter = {
        slot,
        sinceMs: this.#clock.nowMs(),
        settle: (error) => {
          if (!this.#waiters.delete(waiter)) return;
          deadline.cancel();
          signal.removeEventListener("abort", onAbort);
          if (this.#waiters.size === 0) this.#stopTimer();
          if (error === null) resolve();
          else reject(error);
        },
      };
      signal.addEventListener("abort", onAbort, { once: true });
      this.#waiters.add(waiter);
      this.#schedule(pollMs);
    });
  }

  close(): void {
    this.#closing.abort();
    this.#stopTimer();
    for (const waiter of this.#waiters)
      waiter.settle(new EngineError("aborted", "the engine's client was closed"));
  }

  #schedule(delayMs: number): void {
    if (this.#timer !== null || this.#polling) return;
    const nowMs = this.#clock.nowMs();
    const dueMs = Math.max(nowMs + delayMs, this.#polledMs + limits.slotPollMs);
    this.#timer = this.#clock.setTimer(dueMs - nowMs, () => this.#pollNow());
  }

  #pollNow(): void {
    this.#timer = null;
    this.#polling = true;
    this.ask(this.#closing.signal).then(
      () => this.#polled(null),
      (error: unknown) => this.#polled(error),
    );
  }

  #polled(error: unknown): void {
    this.#polling = false;
    const kind = isEngineError(error) ? error.engineErrorKind : null;
    this.#refusals = kind === "unreachable" ? this.#refusals + 1 : 0;
    // Gone engine: nobody will free anything. Other failures may pass; the deadline of each waiter bounds them.
    if (isEngineError(error) && (kind === "connection" || this.#refusals >= refusalsMax)) {
      for (const waiter of this.#waiters) waiter.settle(error);
    }
    if (this.#waiters.size > 0) this.#schedule(limits.slotPollMs);
  }

  #stopTimer(): void {
    this.#timer?.cancel();
    this.#timer = null;
  }
}
