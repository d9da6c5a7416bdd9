/**
 * How a task ends, in two steps: `conclude` fixes what happened and hands it to the turn's transaction; `seal`,
 * once that is stored, appends the terminal frame and tells everybody. Called by the dispatcher within its turn.
 */
import { assert } from "../domain/assert.ts";
import { errorTable } from "../domain/errors.ts";
import type { Command } from "../domain/scheduler-protocol.ts";
import type { Clock } from "../ports/clock.ts";
import type { StoredEnd } from "../ports/task-store.ts";
import { usedBy } from "./amounts.ts";
import type { Deadlines } from "./deadlines.ts";
import type { Forecast } from "./forecast.ts";
import type { PoolRuntimes } from "./pool-runtime.ts";
import type { Sessions } from "./sessions.ts";
import type { AttemptResult, TaskRecord, TaskRegistry } from "./task-registry.ts";
import type { TaskTelemetry } from "./task-telemetry.ts";
import { canceledMessage, endEvent, errorEvent } from "./terminal-events.ts";
import type { TurnStore } from "./turn-store.ts";

type Finish = Extract<Command, { type: "finish_task" }>;

export interface EndingsDeps {
  readonly clock: Clock;
  readonly registry: TaskRegistry;
  readonly pools: PoolRuntimes;
  readonly forecast: Forecast;
  readonly sessions: Sessions;
  readonly store: TurnStore;
  readonly deadlines: Deadlines;
  readonly telemetry: TaskTelemetry;
}

export class Endings {
  constructor(private readonly deps: EndingsDeps) {}

  /** `result`: what the attempt brought; there is one where the task is done. */
  conclude({ taskId, state, code, message }: Finish, result: AttemptResult | null): void {
    const { registry, pools, forecast, sessions, store, deadlines, clock } = this.deps;
    const record = registry.get(taskId);
    const pool = pools.find(record.spec.poolId);
    const nowMs = clock.nowMs();
    deadlines.disarm(taskId);
    record.state = state;
    record.finishedMs = nowMs;
    if (state === "done") {
      assert(result !== null, "a finished attempt has a result");
      record.finishReason = result.finishReason;
      record.tokensIn = result.tokensIn;
      // What the engine counted: a stop string or a torn character makes fewer pieces than tokens.
      record.tokensOut = result.tokensOut;
    } else {
      record.error = {
        code: code ?? "INTERNAL",
        message: state === "canceled" ? canceledMessage(message) : message,
      };
    }
    if (pool !== null) {
      forecast.noteEnded(record, nowMs);
      sessions.settle(taskId, usedBy(record, pool.spec, nowMs), nowMs);
    }
    store.add({ kind: "task_ended", taskId, end: storedEndOf(record, nowMs) });
  }

  seal({ taskId, state, message }: Finish, result: AttemptResult | null): void {
    const { registry, pools, forecast, telemetry } = this.deps;
    const record = registry.get(taskId);
    const { poolId } = record.spec;
    const pool = pools.find(poolId);
    const engine = pool?.spec.engine ?? "mock";
    const nowMs = record.finishedMs ?? this.deps.clock.nowMs();
    if (record.error === null) {
      assert(result !== null, "a finished attempt has a result");
      record.log.seal(endEvent(record, result, nowMs), false);
    } else {
      const { retriable } = errorTable[record.error.code];
      const retryAfterMs = retriable && pools.has(poolId) ? forecast.retryAfterMs(poolId) : null;
      record.log.seal(errorEvent(record.error, engine, retryAfterMs), state === "canceled");
    }
    if (pool !== null) {
      if (state === "done") pool.done++;
      if (state === "failed") pool.failed++;
      pool.tokensOut += record.tokensOut;
    }
    telemetry.ended(record, engine, state, message, nowMs);
    registry.noteEnded(record, nowMs);
  }
}

function storedEndOf(record: TaskRecord, nowMs: number): StoredEnd {
  assert(record.state === "done" || record.state === "failed" || record.state === "canceled", "it has ended");
  return {
    state: record.state,
    finishedMs: nowMs,
    startedMs: record.startedMs,
    firstTokenMs: record.firstTokenMs,
    attempts: record.attempts,
    replicaId: record.replicaId,
    engineVersion: record.engineVersion,
    tokensIn: record.tokensIn,
    tokensOut: record.tokensOut,
    finishReason: record.finishReason,
    error: record.error,
  };
}
