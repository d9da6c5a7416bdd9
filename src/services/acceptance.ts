/**
 * Whether a task is taken, and what follows when it is: the checks of one turn in one order, the same for a
 * submit and a dry run. Called by the dispatcher within its turn; `assess` also between turns, it changes nothing.
 *
 * The order: shutting down, disk, model, pool and queue, deadline, session and budget. What was accepted is in the
 * registry, the scheduler, the session's account and the turn's transaction, or in none of them.
 */
import { assert } from "../domain/assert.ts";
import type { Amounts } from "../domain/budget.ts";
import type { OrchestratorError } from "../domain/errors.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { Prediction } from "../domain/predictor.ts";
import { beginningOf, prefixOf } from "../domain/prefix.ts";
import { admit, assess, decide, isDrained, type SchedulerState } from "../domain/scheduler.ts";
import type { Command, Lease } from "../domain/scheduler-protocol.ts";
import type { Priority, TaskSpec } from "../domain/task.ts";
import type { Clock } from "../ports/clock.ts";
import type { Recovered, StoredTask } from "../ports/task-store.ts";
import { amountsOf } from "./amounts.ts";
import type { Deadlines } from "./deadlines.ts";
import type { Forecast } from "./forecast.ts";
import type { PoolRuntimes } from "./pool-runtime.ts";
import {
  infeasible,
  poolDrained,
  poolUnavailable,
  queueFull,
  shuttingDown,
  storageUnavailable,
} from "./refusals.ts";
import type { Remaining, Sessions } from "./sessions.ts";
import type { TaskRecord, TaskRegistry } from "./task-registry.ts";
import type { TurnStore } from "./turn-store.ts";
import type { WriteAhead } from "./write-ahead.ts";

export interface AcceptanceDeps {
  readonly clock: Clock;
  readonly scheduler: SchedulerState;
  readonly registry: TaskRegistry;
  readonly forecast: Forecast;
  readonly pools: PoolRuntimes;
  readonly sessions: Sessions;
  readonly store: TurnStore;
  readonly deadlines: Deadlines;
  /** As they are now. */
  readonly rules: { readonly minOnTimeProbability: number };
  readonly modelRefusal: (pool: PoolSpec) => OrchestratorError | null;
}

/** What would be said to such a task now. */
export interface Assessment {
  readonly promise: Prediction;
  readonly refusal: OrchestratorError | null;
  /** What its session and key may still spend; null where nothing bounds it. */
  readonly remaining: Remaining | null;
}

export type Accepted =
  | { readonly kind: "accepted"; readonly record: TaskRecord; readonly commands: readonly Command[] }
  | { readonly kind: "refused"; readonly refusal: OrchestratorError };

export class Acceptance {
  private closing = false;

  constructor(private readonly deps: AcceptanceDeps) {}

  /** From now on nothing new is taken. */
  close(): void {
    this.closing = true;
  }

  /** As `refusalFor`, and POOL_UNREADY of a drained pool: it takes what can go nowhere else, and starts nothing. */
  reluctanceOf(poolId: string, priority: Priority): OrchestratorError | null {
    const refusal = this.refusalFor(poolId, priority);
    if (refusal !== null || !isDrained(this.deps.scheduler, poolId)) return refusal;
    return poolDrained(this.deps.pools.get(poolId).spec);
  }

  /** The refusal that a task of this class would get now whatever it asks for; null: none. */
  refusalFor(
    poolId: string,
    priority: Priority,
    task?: { readonly keyId: string; readonly expectedMs: number; readonly exclusive: boolean },
  ): OrchestratorError | null {
    const { scheduler, forecast, pools, store } = this.deps;
    const { spec } = pools.get(poolId);
    if (this.closing) return shuttingDown(spec);
    if (store.refusal !== null) return storageUnavailable(store.refusal);
    const retired = this.deps.modelRefusal(spec);
    if (retired !== null) return retired;
    const { refusal } = assess(scheduler, poolId, priority, task);
    if (refusal === null) return null;
    const { code, policyLabel, message } = refusal;
    if (code === "POOL_UNAVAILABLE" || policyLabel === null) return poolUnavailable(spec, message);
    return queueFull(spec, { code, policyLabel, message }, forecast.retryAfterMs(poolId));
  }

  assess(spec: TaskSpec, nowMs: number): Assessment {
    const { forecast, sessions } = this.deps;
    const promise = forecast.ofNew(spec);
    return {
      promise,
      refusal: this.refusalOf(spec, promise, nowMs),
      remaining: sessions.remainingFor(spec, nowMs),
    };
  }

  budgetRefusal(spec: TaskSpec, nowMs: number): OrchestratorError | null {
    return this.deps.sessions.check(spec, this.amountsOf(spec), nowMs);
  }

  accept(spec: TaskSpec, watched: boolean, nowMs: number): Accepted {
    const { scheduler, forecast, pools, registry, sessions, store } = this.deps;
    const promise = forecast.ofNew(spec);
    const refusal = this.refusalOf(spec, promise, nowMs);
    if (refusal !== null) {
      sessions.noteRefusal(refusal);
      return { kind: "refused", refusal };
    }
    sessions.admit(spec, this.amountsOf(spec), nowMs);
    const record = registry.add(spec, promise, forecast.tokensOutOf(spec), nowMs);
    record.watched = watched;
    record.engineVersion = pools.get(spec.poolId).identity?.engineVersion ?? "unknown";
    const admission = admit(scheduler, this.scheduled(spec, nowMs), nowMs);
    assert(admission.kind === "accepted", "what was not refused is admitted");
    assert(admission.ordinal === record.ordinal, "queue and store count alike");
    forecast.noteArrival(spec);
    this.armDeadline(spec, nowMs, nowMs);
    store.add({ kind: "task_admitted", task: storedOf(record) });
    return { kind: "accepted", record, commands: admission.commands };
  }

  /**
   * The disk refused it: as if it had never come. `lease`: of the start that was decided for it in the turn, also where
   * it ended in the turn. Its own end and starts are not among the commands.
   */
  undo(record: TaskRecord, lease: Lease | null, nowMs: number): readonly Command[] {
    const { scheduler, registry, sessions, deadlines } = this.deps;
    const { taskId, poolId } = record.spec;
    const reason = "not stored";
    const commands = [...decide(scheduler, { type: "cancel_requested", taskId, reason }, nowMs)];
    if (lease !== null) {
      const { replicaId, incarnation, leaseId } = lease;
      const freed = { type: "slot_freed" as const, poolId, replicaId, incarnation, leaseId };
      commands.push(...decide(scheduler, freed, nowMs));
    }
    deadlines.disarm(taskId);
    sessions.undo(taskId);
    registry.discard(record);
    return commands.filter(
      (command) =>
        !(command.type === "finish_task" && command.taskId === taskId) && command.type !== "abort_attempt",
    );
  }

  /** What the last process had accepted waits again, in its order. The tasks of pools that are gone are returned. */
  recover(
    recovered: Recovered,
    ahead: WriteAhead,
    nowMs: number,
  ): { commands: readonly Command[]; homeless: TaskRecord[] } {
    const { scheduler, registry, sessions, pools } = this.deps;
    registry.continueAfter(recovered.ordinal);
    const homeless: TaskRecord[] = [];
    const live: TaskRecord[] = [];
    for (const stored of recovered.live) {
      const record = registry.restore(stored, ahead.toldOf(stored.spec.taskId));
      if (pools.has(stored.spec.poolId)) live.push(record);
      else homeless.push(record);
    }
    sessions.recover(
      recovered.sessions,
      recovered.allowances,
      live.map(({ spec }) => ({ spec, amounts: this.amountsOf(spec) })),
      nowMs,
    );
    const tasks = live.map(({ spec, ordinal, createdMs, tokensOut, log }) => ({
      ...this.scheduled(spec, createdMs),
      ordinal,
      admittedMs: createdMs,
      // It was seen to run; what only waited still waits for its place.
      resumed: log.length > 0,
      hasSent: tokensOut > 0,
    }));
    const commands = decide(scheduler, { type: "recovered", tasks, ordinal: recovered.ordinal }, nowMs);
    for (const { spec, createdMs } of live) this.armDeadline(spec, createdMs, nowMs);
    return { commands, homeless };
  }

  private refusalOf(spec: TaskSpec, promise: Prediction, nowMs: number): OrchestratorError | null {
    const { pools, forecast, rules } = this.deps;
    return (
      this.refusalFor(spec.poolId, spec.priority, {
        keyId: spec.keyId,
        expectedMs: forecast.serviceOf(spec),
        exclusive: spec.determinism === "strict",
      }) ??
      infeasible(pools.get(spec.poolId).spec, spec, promise, rules.minOnTimeProbability, () =>
        forecast.earliestEndMs(spec),
      ) ??
      this.budgetRefusal(spec, nowMs)
    );
  }

  private amountsOf(spec: TaskSpec): Amounts {
    const { forecast, pools } = this.deps;
    return amountsOf(spec, pools.get(spec.poolId).spec, forecast.reserveTimeMs(spec));
  }

  private scheduled(spec: TaskSpec, createdMs: number) {
    const { taskId, poolId, keyId, sessionId, priority, deadlineMs } = spec;
    const expectedMs = this.deps.forecast.serviceOf(spec);
    return {
      taskId,
      poolId,
      keyId,
      sessionId,
      priority,
      expectedMs,
      exclusive: spec.determinism === "strict",
      prefix: prefixOf(beginningOf(spec)),
      latestStartMs: deadlineMs === null ? null : createdMs + deadlineMs - expectedMs,
    };
  }

  private armDeadline(spec: TaskSpec, createdMs: number, nowMs: number): void {
    const { deadlines, forecast } = this.deps;
    if (spec.deadlineMs === null) return;
    deadlines.arm(spec.taskId, createdMs + spec.deadlineMs - nowMs, forecast.leastServiceMs(spec));
  }
}

function storedOf({ ordinal, spec, createdMs, promise, expectedTokensOut, watched }: TaskRecord): StoredTask {
  return { ordinal, spec, createdMs, promise, expectedTokensOut, watched, ended: null };
}

/** Of a task of an earlier process, whose pool the configuration names no longer. */
export const endOfHomeless = ({ taskId, poolId }: TaskSpec): Command => ({
  type: "finish_task",
  taskId,
  state: "failed",
  code: "POOL_UNAVAILABLE",
  message: `pool ${poolId} is no longer configured: submit the task again`,
  replicaId: null,
});
