/**
 * A pool in miniature for the tests of the predictor: slots, two classes served in order, service times drawn
 * by a law, and the predictor told exactly what the daemon would tell it. Event by event, on its own clock,
 * from a seed.
 */
import { learnArrival, nothingOvertakes, overtakingOf } from "../../src/domain/arrival-rate.ts";
import { learnEnd, scoreDeadline, scoreStart } from "../../src/domain/calibration.ts";
import { remainingTokens } from "../../src/domain/output-length.ts";
import {
  createPredictor,
  decodeTps,
  learnAttempt,
  learnSlotTime,
  learnWarmUp,
  type PoolLoad,
  type PredictorState,
  type Promised,
  predict,
  serviceTime,
} from "../../src/domain/predictor.ts";
import type { Priority } from "../../src/domain/task.ts";

export type Chance = () => number;

/** mulberry32: small, fast, good enough to draw workloads. */
export function seeded(seed: number): Chance {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export interface Law {
  readonly slots: number;
  readonly tasks: number;
  /** Milliseconds to the next arrival, and how many tasks come at once. */
  readonly arrival: (chance: Chance, number: number) => { readonly afterMs: number; readonly tasks: number };
  readonly tokensOut: (chance: Chance, number: number) => number;
  readonly maxTokens: number;
  readonly tokenMs: (number: number) => number;
  readonly batchShare: number;
}

export interface Outcome {
  readonly number: number;
  readonly priority: Priority;
  readonly position: number;
  readonly covered: boolean;
  readonly promised: number;
  readonly met: boolean;
}

interface Task {
  readonly number: number;
  readonly priority: Priority;
  readonly arrivedMs: number;
  readonly tokensOut: number;
  readonly deadlineMs: number;
  readonly expectedMs: number;
  readonly promise: Promised;
  startedMs: number;
  endsMs: number;
}

const tokensIn = 50;
const prefillMsPerToken = 1;

export class PoolWorld {
  readonly state: PredictorState = createPredictor();
  readonly outcomes: Outcome[] = [];
  readonly #chance: Chance;
  readonly #waiting: Record<Priority, Task[]> = { interactive: [], batch: [] };
  readonly #running: Task[] = [];
  #nowMs = 0;
  #made = 0;

  constructor(
    private readonly law: Law,
    seed: number,
  ) {
    this.#chance = seeded(seed);
    learnWarmUp(this.state, { prefillTps: 1000 / prefillMsPerToken, decodeTps: 1000 / law.tokenMs(0) }, 0);
  }

  run(): readonly Outcome[] {
    let arrival = this.law.arrival(this.#chance, 0);
    let arrivesMs = arrival.afterMs;
    while (this.#made < this.law.tasks || this.#running.length > 0) {
      const next = this.#running.reduce<Task | null>(
        (a, b) => (a === null || b.endsMs < a.endsMs ? b : a),
        null,
      );
      if (this.#made < this.law.tasks && (next === null || arrivesMs < next.endsMs)) {
        this.#nowMs = arrivesMs;
        for (let n = 0; n < arrival.tasks; n++) this.#admit();
        arrival = this.law.arrival(this.#chance, this.#made);
        arrivesMs += arrival.afterMs;
      } else if (next !== null) {
        this.#nowMs = next.endsMs;
        this.#end(next);
      }
      this.#start();
    }
    return this.outcomes;
  }

  #service(produced = 0) {
    const length = remainingTokens(this.state.lengths, this.law.maxTokens, null, produced);
    return serviceTime(
      this.state,
      { tokensIn: produced > 0 ? 0 : tokensIn, exact: true },
      length,
      this.law.slots,
    );
  }

  #load(priority: Priority): PoolLoad {
    const free = new Array<number>(this.law.slots).fill(0);
    let variance = 0;
    for (const [at, task] of this.#running.entries()) {
      const ranMs = this.#nowMs - task.startedMs - tokensIn * prefillMsPerToken;
      const produced = Math.max(0, Math.floor((ranMs * decodeTps(this.state, this.law.slots)) / 1000));
      const left = this.#service(Math.min(produced, this.law.maxTokens - 1));
      free[at] = Math.max(1, left.mean);
      variance += left.variance;
    }
    const ahead = [...this.#waiting.interactive, ...(priority === "batch" ? this.#waiting.batch : [])];
    return {
      slotFreeInMs: free,
      slotSpreadMs: Math.sqrt(variance) / this.law.slots,
      workAheadMs: ahead.reduce((sum, task) => sum + task.expectedMs, 0),
      overtaking:
        priority === "batch"
          ? overtakingOf(this.state.arrivals, this.law.slots, this.#nowMs)
          : nothingOvertakes,
      agedInMs: null,
    };
  }

  #admit(): void {
    const number = this.#made++;
    const priority = this.#chance() < this.law.batchShare ? "batch" : "interactive";
    const service = this.#service();
    const { interactive, batch } = this.#waiting;
    const position = interactive.length + (priority === "batch" ? batch.length : 0);
    const load = this.#load(priority);
    // Deadlines between hopeless and easy.
    const { end } = predict(this.state, priority, load, position, service, null);
    const deadlineMs = end.meanMs * (0.4 + 1.8 * this.#chance());
    const promise = predict(this.state, priority, load, position, service, deadlineMs);
    if (priority === "interactive") learnArrival(this.state.arrivals, service.mean, this.#nowMs);
    this.#waiting[priority].push({
      number,
      priority,
      arrivedMs: this.#nowMs,
      tokensOut: Math.min(
        this.law.maxTokens,
        Math.max(1, Math.round(this.law.tokensOut(this.#chance, number))),
      ),
      deadlineMs,
      expectedMs: service.mean,
      promise,
      startedMs: 0,
      endsMs: 0,
    });
    this.#start();
  }

  #start(): void {
    while (this.#running.length < this.law.slots) {
      const task = this.#waiting.interactive.shift() ?? this.#waiting.batch.shift();
      if (task === undefined) return;
      task.startedMs = this.#nowMs;
      task.endsMs =
        this.#nowMs + tokensIn * prefillMsPerToken + task.tokensOut * this.law.tokenMs(task.number);
      this.#running.push(task);
      const { prediction, start } = task.promise;
      const waitedMs = this.#nowMs - task.arrivedMs;
      if (prediction.queuePosition === 0) continue;
      const promised = {
        lowMs: prediction.startLowMs,
        medianMs: prediction.startMs,
        highMs: prediction.startHighMs,
      };
      scoreStart(this.state.classes[task.priority], start, promised, waitedMs);
    }
  }

  #end(task: Task): void {
    this.#running.splice(this.#running.indexOf(task), 1);
    const calibration = this.state.classes[task.priority];
    const { prediction, end, serviceMs } = task.promise;
    const tookMs = this.#nowMs - task.arrivedMs;
    const waitedMs = task.startedMs - task.arrivedMs;
    const promised = prediction.onTimeProbability ?? -1;
    this.outcomes.push({
      number: task.number,
      priority: task.priority,
      position: prediction.queuePosition,
      covered: waitedMs >= prediction.startLowMs && waitedMs <= prediction.startHighMs,
      promised,
      met: tookMs <= task.deadlineMs,
    });
    scoreDeadline(calibration, end, task.deadlineMs, promised, tookMs <= task.deadlineMs);
    learnEnd(calibration, end, tookMs);
    learnSlotTime(this.state, serviceMs, this.#nowMs - task.startedMs);
    learnAttempt(this.state, {
      tokensIn,
      tokensInAdmitted: tokensIn,
      tokensInExact: true,
      tokensCached: 0,
      tokensOut: task.tokensOut,
      tokensAnswered: task.tokensOut,
      promptMs: tokensIn * prefillMsPerToken,
      decodeMs: (task.tokensOut - 1) * this.law.tokenMs(task.number),
      maxTokens: this.law.maxTokens,
      concurrency: this.law.slots,
    });
  }
}

/** Share of promised intervals that held, of tasks of the class that had to wait, from the given outcome on. */
export function coverageOf(outcomes: readonly Outcome[], priority: Priority, from: number) {
  const waited = outcomes.filter((o) => o.priority === priority && o.position > 0).slice(from);
  return { scored: waited.length, share: waited.filter((o) => o.covered).length / waited.length };
}

export function brierOf(outcomes: readonly Outcome[], from: number) {
  const scored = outcomes.slice(from);
  const rate = scored.filter((o) => o.met).length / scored.length;
  const sum = scored.reduce((total, o) => total + (o.promised - (o.met ? 1 : 0)) ** 2, 0);
  return { brier: sum / scored.length, baseRate: rate * (1 - rate) };
}
