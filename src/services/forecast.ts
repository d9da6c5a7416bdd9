/**
 * Feeds the pure predictor with what runs and waits now, and turns its answers into promises. Called by the
 * dispatcher within its turn, and by reads of the API between turns; changes nothing but the predictors.
 */
import { assert } from "../domain/assert.ts";
import {
  decodeTps,
  expectedTokensOut,
  learnAttempt,
  type PoolLoad,
  type Prediction,
  predict,
  score,
  serviceMs,
} from "../domain/predictor.ts";
import { assess, type SchedulerState, slotsBusy } from "../domain/scheduler.ts";
import type { Priority, TaskSpec } from "../domain/task.ts";
import type { Clock } from "../ports/clock.ts";
import type { Attempt } from "./attempt-runner.ts";
import type { PoolRuntime, PoolRuntimes } from "./pool-runtime.ts";
import type { AttemptResult, TaskRecord, TaskRegistry } from "./task-registry.ts";

/** A place in an empty pool: what is left of a running task depends on nothing else. */
const alreadyRunning: PoolLoad = { slotFreeInMs: [0], workAheadMs: 0, slotsExpected: 1 };
const retryAfterMsMin = 100;
/** Until an engine has freed a slot whose attempt was cut: milliseconds while decoding, up to a second before. */
const releasingMs = 250;

export class Forecast {
  constructor(
    private readonly clock: Clock,
    private readonly registry: TaskRegistry,
    private readonly scheduler: SchedulerState,
    private readonly pools: PoolRuntimes,
  ) {}

  /** What would be promised to such a task now. */
  ofNew(spec: TaskSpec): Prediction {
    const pool = this.pools.get(spec.poolId);
    const { queuePosition } = assess(this.scheduler, spec.poolId, spec.priority);
    const load = this.loadOf(pool, spec.priority);
    return predict(pool.predictor, load, queuePosition, this.serviceOf(spec), spec.deadlineMs);
  }

  /** What is expected of a task that waits or runs; null once it has ended. */
  ofLive(record: TaskRecord): Prediction | null {
    const { spec } = record;
    const pool = this.pools.get(spec.poolId);
    const sinceMs = this.clock.nowMs() - record.createdMs;
    const deadlineLeftMs = spec.deadlineMs === null ? null : spec.deadlineMs - sinceMs;
    if (record.state === "running") {
      const tokenMs = 1000 / decodeTps(pool.predictor, pool.spec.slots);
      const leftMs = this.remainingMs(record, tokenMs, this.clock.nowMs());
      return predict(pool.predictor, alreadyRunning, 0, leftMs, deadlineLeftMs);
    }
    const position = this.scheduler.pools.get(spec.poolId)?.queue.positionOf(spec.taskId) ?? null;
    if (position === null) return null;
    const { queuePosition: all } = assess(this.scheduler, spec.poolId, spec.priority);
    const load = this.loadOf(pool, spec.priority);
    // The work ahead of a task in the middle is taken in proportion: its position is exact, its time an estimate.
    const workAheadMs = all === 0 ? 0 : load.workAheadMs * Math.min(1, position / all);
    return predict(pool.predictor, { ...load, workAheadMs }, position, this.serviceOf(spec), deadlineLeftMs);
  }

  /** Expected time on a slot, milliseconds. */
  serviceOf(spec: TaskSpec): number {
    const { predictor, spec: pool } = this.pools.get(spec.poolId);
    const tokensOut = spec.workload === "completion" ? this.tokensOutOf(spec) : 0;
    return serviceMs(predictor, spec.tokensIn, tokensOut, pool.slots);
  }

  tokensOutOf(spec: TaskSpec): number {
    return expectedTokensOut(this.pools.get(spec.poolId).predictor, spec.maxTokens, spec.expectedTokens);
  }

  /** Time until a place is expected: the soonest end of what runs. */
  retryAfterMs(poolId: string): number {
    const pool = this.pools.get(poolId);
    const { slotFreeInMs } = this.loadOf(pool, "interactive");
    const soonest = slotFreeInMs.length > 0 ? Math.min(...slotFreeInMs) : (pool.predictor.loadMs ?? 1000);
    return Math.max(retryAfterMsMin, Math.round(soonest));
  }

  learn(attempt: Attempt, result: AttemptResult): void {
    if (result.tokensOut === 0) return;
    const { pool, record, lease } = attempt;
    const concurrency = Math.max(1, slotsBusy(this.scheduler, pool.id, lease.replicaId));
    learnAttempt(this.pools.get(pool.id).predictor, {
      ...result,
      maxTokens: record.spec.maxTokens,
      concurrency,
    });
  }

  score(record: TaskRecord, endedMs: number): void {
    score(this.pools.get(record.spec.poolId).predictor, record.promise.endMs, endedMs - record.createdMs);
  }

  /** Tokens per second of a single stream, as measured; null until something was. */
  speed(poolId: string): { prefillTps: number | null; decodeTps: number | null } {
    const { predictor } = this.pools.get(poolId);
    const measured = predictor.decodeTps.some((tps) => tps !== null && tps !== undefined);
    return { prefillTps: predictor.prefillTps, decodeTps: measured ? decodeTps(predictor, 1) : null };
  }

  private loadOf(pool: PoolRuntime, priority: Priority): PoolLoad {
    const state = this.scheduler.pools.get(pool.spec.id);
    assert(state !== undefined, "a pool has its queue");
    const slotFreeInMs: number[] = [];
    const nowMs = this.clock.nowMs();
    const tokenMs = 1000 / decodeTps(pool.predictor, pool.spec.slots);
    for (const replica of state.replicas.values())
      for (const slot of replica.slots)
        slotFreeInMs.push(
          slot.kind === "leased"
            ? this.remainingMs(this.registry.get(slot.taskId), tokenMs, nowMs)
            : slot.kind === "releasing"
              ? releasingMs
              : 0,
        );
    const { queue } = state;
    const workAheadMs = queue.workMs("interactive") + (priority === "batch" ? queue.workMs("batch") : 0);
    return { slotFreeInMs, workAheadMs, slotsExpected: pool.spec.slots * pool.spec.replicas };
  }

  /** Of a running task: what is left of its expected output, at the speed of a full replica. */
  private remainingMs(record: TaskRecord, tokenMs: number, nowMs: number): number {
    const tokensLeft = Math.max(1, record.expectedTokensOut - record.tokensOut);
    if (record.tokensOut > 0) return tokensLeft * tokenMs;
    const spentMs = nowMs - (record.startedMs ?? record.createdMs);
    return Math.max(1, this.serviceOf(record.spec) - spentMs);
  }
}
