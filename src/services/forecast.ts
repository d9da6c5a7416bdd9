/**
 * Feeds the pure predictor with what runs and waits now, turns its answers into promises, and tells it how they
 * turned out. Called by the dispatcher within its turn, and by reads of the API between turns; changes nothing but
 * the predictors. A promise costs O(slots + log queue): the queue is never walked.
 *
 * Always holds: a promise is scored once, and only by what the task was told at admission: the object that `ofNew`
 * returned is the one that its record keeps. Tasks of an earlier process are not scored: nobody foresees a restart.
 */
import { learnArrival, nothingOvertakes, overtakingOf } from "../domain/arrival-rate.ts";
import { assert } from "../domain/assert.ts";
import {
  learnEnd,
  learnMissedEnd,
  scoreDeadline,
  scoreMissedStart,
  scoreStart,
} from "../domain/calibration.ts";
import { limits } from "../domain/limits.ts";
import { type Estimate, lengthQuantile, remainingTokens } from "../domain/output-length.ts";
import type { ReplicaSlots, SlotState } from "../domain/placement.ts";
import {
  basisOf,
  decodeTps,
  earliestEndMs,
  learnAttempt,
  learnSlotTime,
  loadLeft,
  type PoolLoad,
  type Prediction,
  type Promised,
  predict,
  prefillMs,
  scoresOf,
  serviceTime,
  singleStreamSpeed,
  timeBetweenEndsMs,
} from "../domain/predictor.ts";
import { restore, snapshotOf } from "../domain/predictor-snapshot.ts";
import { type RunningWork, redoneTokens } from "../domain/preemption.ts";
import { type SchedulerState, slotsBusy } from "../domain/scheduler.ts";
import type { TaskSpec } from "../domain/task.ts";
import type { Clock } from "../ports/clock.ts";
import type { PoolPrediction } from "../ports/telemetry.ts";
import type { Attempt } from "./attempt-runner.ts";
import type { PoolRuntime, PoolRuntimes } from "./pool-runtime.ts";
import type { AttemptResult, TaskRecord, TaskRegistry } from "./task-registry.ts";

const retryAfterMsMin = 100;
/** Until an engine has freed a slot whose attempt was cut: milliseconds while decoding, up to a second before. */
const releasing: Estimate = { mean: 250, variance: 250 ** 2 };
const free: Estimate = { mean: 0, variance: 0 };
/** The shortest time that a task may plausibly need: of all answers this share is shorter. */
const leastLengthShare = 0.02;
/** ... at a speed that is this much better than measured. */
const leastTimeShare = 0.5;
/** Share of tasks whose time on a slot stays below what is reserved: nine of ten. */
const reserveSigmas = 1.2816;
/** A deadline that is told as feasible is met as often as not. */
const feasibleProbability = 0.5;

const remainingValidMs = 20;

interface Ahead {
  readonly tasks: number;
  readonly workMs: number;
}

export class Forecast {
  /** Expected time until a pool that is not in memory begins to load, ms; set by who decides that. */
  memoryWaitMs: (poolId: string) => number = () => 0;

  private readonly promises = new WeakMap<Prediction, Promised>();
  /** Busy slots of the replica when the task started there. */
  private readonly busyAtStart = new Map<string, number>();

  private readonly lately = new WeakMap<TaskRecord, { readonly atMs: number; readonly left: Estimate }>();

  constructor(
    private readonly clock: Clock,
    private readonly registry: TaskRegistry,
    private readonly scheduler: SchedulerState,
    private readonly pools: PoolRuntimes,
  ) {}

  /** What would be promised to such a task now. */
  ofNew(spec: TaskSpec): Prediction {
    const pool = this.pools.get(spec.poolId);
    const ahead = this.aheadOfNew(spec);
    const load = this.loadOf(pool, spec, ahead, 0);
    const service = this.serviceWith(spec, this.concurrencyFor(pool, ahead));
    const promised = predict(pool.predictor, spec.priority, load, ahead.tasks, service, spec.deadlineMs);
    this.promises.set(promised.prediction, promised);
    return promised.prediction;
  }

  /** What is expected of a task that waits or runs; null once it has ended. */
  ofLive(record: TaskRecord): Prediction | null {
    const { spec } = record;
    const pool = this.pools.find(spec.poolId);
    if (pool === null) return null;
    const nowMs = this.clock.nowMs();
    const sinceMs = nowMs - record.createdMs;
    const deadlineLeftMs = spec.deadlineMs === null ? null : spec.deadlineMs - sinceMs;
    if (record.state === "running") {
      const left = this.remaining(record, pool.spec.slots, nowMs);
      return predict(pool.predictor, spec.priority, startsNow, 0, left, deadlineLeftMs).prediction;
    }
    const ahead = this.queueOf(pool).aheadOf(spec.taskId);
    if (ahead === null) return null;
    const load = this.loadOf(pool, spec, ahead, sinceMs);
    const service = this.serviceWith(spec, this.concurrencyFor(pool, ahead));
    return predict(pool.predictor, spec.priority, load, ahead.tasks, service, deadlineLeftMs).prediction;
  }

  /** Expected time on a slot of a busy replica, milliseconds. */
  serviceOf(spec: TaskSpec): number {
    return this.serviceWith(spec, this.pools.get(spec.poolId).spec.slots).mean;
  }

  /** To reserve of a budget of time: nine of ten such tasks take less; never more than max_tokens take. */
  reserveTimeMs(spec: TaskSpec): number {
    const { predictor, spec: pool } = this.pools.get(spec.poolId);
    const { mean, variance } = this.serviceWith(spec, pool.slots);
    const longest: Estimate = { mean: spec.workload === "completion" ? spec.maxTokens : 0, variance: 0 };
    const atMost = serviceTime(predictor, promptOf(spec), longest, pool.slots).mean;
    return Math.ceil(Math.min(mean + reserveSigmas * Math.sqrt(variance), Math.max(mean, atMost)));
  }

  /** What such a task needs on a slot even if all goes well; 0 while nothing was measured. */
  leastServiceMs(spec: TaskSpec): number {
    const { predictor } = this.pools.get(spec.poolId);
    if (basisOf(predictor) !== "learned") return 0;
    const completion = spec.workload === "completion";
    const shortest = completion
      ? (lengthQuantile(predictor.lengths, spec.maxTokens, leastLengthShare) ?? 1)
      : 0;
    // A prompt may be in the cache as a whole, whatever the others' were; not where the cache must not be used.
    const cold = spec.kvHint === "cold" || spec.determinism === "strict";
    const prefill = cold ? prefillMs(predictor, spec.tokensIn, spec.tokensInExact, 1) : 0;
    return Math.floor(leastTimeShare * (prefill + (shortest * 1000) / decodeTps(predictor, 1)));
  }

  /** The deadline, in ms from now, that such a task would meet with this probability. */
  earliestEndMs(spec: TaskSpec, probability = feasibleProbability): number {
    const pool = this.pools.get(spec.poolId);
    const ahead = this.aheadOfNew(spec);
    const load = this.loadOf(pool, spec, ahead, 0);
    const service = this.serviceWith(spec, this.concurrencyFor(pool, ahead));
    return earliestEndMs(pool.predictor, spec.priority, load, service, probability);
  }

  tokensOutOf(spec: TaskSpec): number {
    const { lengths } = this.pools.get(spec.poolId).predictor;
    return Math.max(1, remainingTokens(lengths, spec.maxTokens, spec.expectedTokens, 0).mean);
  }

  /** Time until a place in the queue is expected: until the next of the waiting tasks starts. */
  retryAfterMs(poolId: string): number {
    const pool = this.pools.get(poolId);
    const { freeInMs } = this.slotsOf(pool, this.clock.nowMs());
    return Math.max(retryAfterMsMin, Math.round(Math.min(...freeInMs)));
  }

  /** Expected time until what runs is done, and what waits behind it, ms. */
  leftMs(poolId: string): { readonly runningMs: number; readonly waitingMs: number } {
    const pool = this.pools.get(poolId);
    const queue = this.queueOf(pool);
    const runningMs = Math.max(0, ...this.runningWork(poolId).map(({ remainingMs }) => remainingMs));
    const slots = Math.max(1, pool.spec.slots * pool.spec.replicas);
    return { runningMs, waitingMs: (queue.workMs("interactive") + queue.workMs("batch")) / slots };
  }

  /** What cutting each lease of the pool would cost. One that nobody can say anything of is left out. */
  runningWork(poolId: string): RunningWork[] {
    const nowMs = this.clock.nowMs();
    const { slots } = this.pools.get(poolId).spec;
    const works: RunningWork[] = [];
    for (const replica of this.scheduler.pools.get(poolId)?.replicas.values() ?? [])
      for (const slot of replica.slots) {
        const record = slot.kind === "leased" ? this.registry.find(slot.taskId) : null;
        if (slot.kind !== "leased" || record === null) continue;
        const remainingMs = this.remaining(record, slots, nowMs).mean;
        const { deadlineMs } = record.spec;
        const slackMs = deadlineMs === null ? null : record.createdMs + deadlineMs - nowMs - remainingMs;
        const redoMs = this.redoMs(record, slots, nowMs);
        works.push({ leaseId: slot.leaseId, remainingMs, redoMs, slackMs });
      }
    return works;
  }

  /** What the engine has to do again if the task is cut now. */
  private redoMs({ spec, tokensOut, startedMs }: TaskRecord, slots: number, nowMs: number): number {
    const { predictor } = this.pools.get(spec.poolId);
    if (spec.workload !== "completion") return nowMs - (startedMs ?? nowMs);
    const { prompt, decoded } = redoneTokens(spec, tokensOut);
    const again = { tokensIn: prompt, exact: spec.tokensInExact };
    return serviceTime(predictor, again, { mean: decoded, variance: 0 }, streamsBeside(spec, slots)).mean;
  }

  // ---- what happened ----

  /** A task has been accepted into the queue. */
  noteArrival(spec: TaskSpec): void {
    if (spec.priority !== "interactive") return;
    const { predictor } = this.pools.get(spec.poolId);
    learnArrival(predictor.arrivals, this.serviceOf(spec), this.clock.nowMs());
  }

  /** For the first time. */
  noteStarted(record: TaskRecord, nowMs: number): void {
    const { spec, promise, createdMs, replicaId } = record;
    const pool = this.pools.find(spec.poolId);
    if (pool === null) return;
    if (replicaId !== null)
      this.busyAtStart.set(spec.taskId, slotsBusy(this.scheduler, spec.poolId, replicaId));
    const promised = this.promises.get(promise);
    if (promised === undefined || promise.queuePosition === 0) return;
    const interval = {
      lowMs: promise.startLowMs,
      medianMs: promise.startMs,
      highMs: promise.startHighMs,
    };
    scoreStart(pool.predictor.classes[spec.priority], promised.start, interval, nowMs - createdMs);
  }

  /** Its state is terminal. What was canceled says nothing: nobody knows when it would have ended. */
  noteEnded(record: TaskRecord, nowMs: number): void {
    const { spec, promise } = record;
    this.busyAtStart.delete(spec.taskId);
    const promised = this.promises.get(promise);
    const pool = this.pools.find(spec.poolId);
    if (promised === undefined || pool === null) return;
    this.promises.delete(promise);
    const code = record.error?.code ?? null;
    const done = record.state === "done";
    const missed = code === "DEADLINE_UNMET" || code === "WORKER_RESET" || code === "DECODE_TIMEOUT";
    if (!done && !missed) return;
    const calibration = pool.predictor.classes[spec.priority];
    const tookMs = nowMs - record.createdMs;
    const { deadlineMs } = spec;
    if (deadlineMs !== null && promise.onTimeProbability !== null)
      scoreDeadline(
        calibration,
        promised.end,
        deadlineMs,
        promise.onTimeProbability,
        done && tookMs <= deadlineMs,
      );
    if (done) {
      learnEnd(calibration, promised.end, tookMs);
      if (record.attempts === 1 && record.startedMs !== null)
        learnSlotTime(pool.predictor, promised.serviceMs, nowMs - record.startedMs);
    } else if (code === "DEADLINE_UNMET") {
      learnMissedEnd(calibration, promised.end, Math.max(tookMs, deadlineMs ?? 0));
      const neverStarted = record.startedMs === null && promise.queuePosition > 0;
      if (neverStarted && tookMs > promise.startHighMs) scoreMissedStart(calibration, promised.start, tookMs);
    }
  }

  learn(attempt: Attempt, result: AttemptResult): void {
    const { pool, record, lease } = attempt;
    const { spec } = record;
    const busy = Math.max(1, slotsBusy(this.scheduler, pool.id, lease.replicaId));
    const atStart = this.busyAtStart.get(spec.taskId) ?? busy;
    learnAttempt(this.pools.get(pool.id).predictor, {
      ...result.work,
      tokensAnswered: result.tokensOut,
      // A continued attempt's prompt has what was sent in it: it tells nothing of the cache's share.
      tokensInAdmitted: record.continuations > 0 ? 0 : spec.tokensIn,
      tokensInExact: spec.tokensInExact,
      maxTokens: spec.workload === "completion" ? spec.maxTokens : null,
      concurrency: (busy + Math.max(1, atStart)) / 2,
    });
  }

  // ---- what is known ----

  /** Tokens per second of a single stream, as measured; null until something was. */
  speed(poolId: string): { prefillTps: number | null; decodeTps: number | null } {
    return singleStreamSpeed(this.pools.get(poolId).predictor);
  }

  /** What the promises of a pool stand on, and how they turned out. */
  prediction(poolId: string): PoolPrediction {
    const { predictor } = this.pools.get(poolId);
    return { basis: basisOf(predictor), ...scoresOf(predictor) };
  }

  /** What was learnt of a pool, as plain JSON: for the model and the number of slots it was learnt with. */
  snapshotOf(poolId: string): unknown {
    const { spec, predictor } = this.pools.get(poolId);
    return { modelRef: spec.modelRef, slots: spec.slots, predictor: snapshotOf(predictor) };
  }

  /** False: the snapshot is damaged or of another model, and nothing was taken from it. */
  restore(poolId: string, snapshot: unknown): boolean {
    const { spec, predictor } = this.pools.get(poolId);
    const kept = snapshot as { modelRef?: unknown; slots?: unknown; predictor?: unknown } | null;
    if (typeof kept !== "object" || kept === null) return false;
    if (kept.modelRef !== spec.modelRef || kept.slots !== spec.slots) return false;
    return restore(predictor, kept.predictor);
  }

  // ---- the load ----

  private queueOf(pool: PoolRuntime) {
    const state = this.scheduler.pools.get(pool.spec.id);
    assert(state !== undefined, "a pool has its queue");
    return state.queue;
  }

  private aheadOfNew(spec: TaskSpec): Ahead {
    const queue = this.queueOf(this.pools.get(spec.poolId));
    return queue.ahead(spec.priority, spec.keyId, this.serviceOf(spec));
  }

  /** `waitedMs`: since it was accepted. */
  private loadOf(pool: PoolRuntime, spec: TaskSpec, ahead: Ahead, waitedMs: number): PoolLoad {
    const nowMs = this.clock.nowMs();
    const { freeInMs, spreadMs } = this.slotsOf(pool, nowMs);
    const queue = this.queueOf(pool);
    const slots = freeInMs.length;
    const load = { slotFreeInMs: freeInMs, slotSpreadMs: spreadMs };
    const { batchMaxWaitMs } = this.scheduler.options;
    if (spec.priority === "interactive") {
      const oldest = queue.oldest("batch");
      const aged = oldest !== null && nowMs - oldest.admittedMs >= batchMaxWaitMs;
      // Aged batch tasks take one start of so many.
      const byAged = aged ? Math.min(queue.workMs("batch"), ahead.workMs / (limits.agedStartEvery - 1)) : 0;
      return {
        ...load,
        workAheadMs: ahead.workMs + byAged,
        overtaking: nothingOvertakes,
        agedInMs: null,
      };
    }
    const stepMs = timeBetweenEndsMs(pool.predictor, this.serviceOf(spec), slots);
    const agedStarts = limits.agedStartEvery * (queue.depth("batch") + 1);
    return {
      ...load,
      workAheadMs: ahead.workMs,
      overtaking: overtakingOf(pool.predictor.arrivals, slots, nowMs),
      agedInMs: Math.max(0, batchMaxWaitMs - waitedMs) + agedStarts * stepMs,
    };
  }

  /** Of the ready replicas; of all that are configured while none is ready. */
  private slotsOf(pool: PoolRuntime, nowMs: number): { freeInMs: readonly number[]; spreadMs: number } {
    const state = this.scheduler.pools.get(pool.spec.id);
    assert(state !== undefined, "a pool has its queue");
    const freeInMs: number[] = [];
    let variance = 0;
    for (const replica of state.replicas.values())
      for (const left of this.replicaSlots(replica, nowMs)) {
        freeInMs.push(left.mean);
        variance += left.variance;
      }
    if (freeInMs.length > 0) return { freeInMs, spreadMs: Math.sqrt(variance) / freeInMs.length };
    const sinceMs = pool.loadingSinceMs === null ? 0 : nowMs - pool.loadingSinceMs;
    const { meanMs, spreadMs } = loadLeft(pool.predictor, sinceMs);
    const slots = Math.max(1, pool.spec.slots * pool.spec.replicas);
    const waitMs = this.memoryWaitMs(pool.spec.id);
    return { freeInMs: new Array<number>(slots).fill(waitMs + meanMs), spreadMs: spreadMs + waitMs / 2 };
  }

  private replicaSlots(replica: ReplicaSlots, nowMs: number): Estimate[] {
    const slots = replica.slots.map((slot) => this.slotLeft(slot, replica.slots.length, nowMs));
    if (replica.exclusiveLeaseId === null) return slots;
    // The task that has the replica for itself holds its free slots too.
    const whole = slots.reduce((a, b) => (b.mean > a.mean ? b : a), free);
    return slots.map(() => whole);
  }

  private slotLeft(slot: SlotState, slots: number, nowMs: number): Estimate {
    if (slot.kind === "free") return free;
    if (slot.kind === "releasing") return releasing;
    const record = this.registry.find(slot.taskId);
    return record === null ? releasing : this.remainingLately(record, slots, nowMs);
  }

  /** With many slots and many submitters this is most of an admission: a few milliseconds old is as good. */
  private remainingLately(record: TaskRecord, slots: number, nowMs: number): Estimate {
    const known = this.lately.get(record);
    if (known !== undefined && nowMs - known.atMs < remainingValidMs) {
      const { mean, variance } = known.left;
      return { mean: Math.max(1, mean - (nowMs - known.atMs)), variance };
    }
    const left = this.remaining(record, slots, nowMs);
    this.lately.set(record, { atMs: nowMs, left });
    return left;
  }

  /** Of a running task: time to its end at the speed of a full replica. */
  private remaining(record: TaskRecord, slots: number, nowMs: number): Estimate {
    const { spec, tokensOut } = record;
    if (tokensOut === 0 || spec.workload !== "completion") {
      const whole = this.serviceWith(spec, slots);
      const spentMs = nowMs - (record.startedMs ?? nowMs);
      return { mean: Math.max(1, whole.mean - spentMs), variance: whole.variance };
    }
    const { predictor } = this.pools.get(spec.poolId);
    const left = remainingTokens(predictor.lengths, spec.maxTokens, spec.expectedTokens, tokensOut);
    const { mean, variance } = serviceTime(
      predictor,
      { tokensIn: 0, exact: true },
      left,
      streamsBeside(spec, slots),
    );
    return { mean: Math.max(1, mean), variance };
  }

  /** Streams on the replica that it will get: full while others wait, else those that run there and itself. */
  private concurrencyFor(pool: PoolRuntime, ahead: Ahead): number {
    const state = this.scheduler.pools.get(pool.spec.id);
    let least = pool.spec.slots;
    if (ahead.tasks > 0 || state === undefined) return least;
    for (const replica of state.replicas.values()) least = Math.min(least, replica.busy + 1);
    return least;
  }

  private serviceWith(spec: TaskSpec, concurrency: number): Estimate {
    const { predictor } = this.pools.get(spec.poolId);
    const length =
      spec.workload === "completion"
        ? remainingTokens(predictor.lengths, spec.maxTokens, spec.expectedTokens, 0)
        : free;
    return serviceTime(predictor, promptOf(spec), length, streamsBeside(spec, concurrency));
  }
}

/** A place in an empty pool: what is left of a running task depends on nothing else. */
const startsNow: PoolLoad = {
  slotFreeInMs: [0],
  slotSpreadMs: 0,
  workAheadMs: 0,
  overtaking: nothingOvertakes,
  agedInMs: null,
};

const promptOf = ({ tokensIn, tokensInExact }: TaskSpec) => ({ tokensIn, exact: tokensInExact });

/** An exclusive task has none. */
const streamsBeside = ({ determinism }: TaskSpec, concurrency: number): number =>
  determinism === "strict" ? 1 : concurrency;
