/**
 * How a task ends, in two steps: `conclude` fixes what happened and hands it to the turn's transaction; `seal`,
 * once that is stored, appends the terminal frame and tells everybody. Called by the dispatcher within its turn.
 */
import { assert } from "../domain/assert.ts";
import { errorTable } from "../domain/errors.ts";
import type { Command } from "../domain/scheduler-protocol.ts";
import type { TaskSpec } from "../domain/task.ts";
import type { Ending } from "../domain/transcript.ts";
import type { Clock } from "../ports/clock.ts";
import type { NewTranscript, StoredEnd } from "../ports/task-store.ts";
import { usedBy } from "./amounts.ts";
import type { Deadlines } from "./deadlines.ts";
import type { Forecast } from "./forecast.ts";
import type { PoolRuntimes } from "./pool-runtime.ts";
import type { Sessions } from "./sessions.ts";
import type { AttemptResult, TaskRecord, TaskRegistry } from "./task-registry.ts";
import type { TaskTelemetry } from "./task-telemetry.ts";
import { canceledMessage, endEvent, errorEvent, namingArtifact } from "./terminal-events.ts";
import type { Transcripts } from "./transcripts.ts";
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
  /** Null: tasks leave none. */
  readonly transcripts: Pick<Transcripts, "of"> | null;
  /** What was stored of a live task. */
  readonly specOf: (taskId: string) => TaskSpec;
}

export class Endings {
  /** Between the two steps: what the viewers will see last. An end that was undone goes with its record. */
  readonly #endings = new WeakMap<TaskRecord, { readonly ending: Ending; readonly seq: number }>();

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
    const ending = this.endingOf(record, result, nowMs);
    const transcript = this.transcriptOf(record, ending);
    record.artifactId = transcript?.artifactId ?? null;
    this.#endings.set(record, { ending: namingArtifact(ending, record.artifactId), seq: record.log.length });
    store.add({ kind: "task_ended", taskId, end: storedEndOf(record, nowMs), transcript });
  }

  private endingOf(record: TaskRecord, result: AttemptResult | null, nowMs: number): Ending {
    const { pools, forecast } = this.deps;
    const { error, spec } = record;
    if (error === null) {
      assert(result !== null, "a finished attempt has a result");
      return endEvent(record, result, nowMs);
    }
    const pool = pools.find(spec.poolId);
    const retryAfterMs =
      errorTable[error.code].retriable && pool !== null ? forecast.retryAfterMs(spec.poolId) : null;
    return errorEvent(error, spec.engine, retryAfterMs);
  }

  private transcriptOf(record: TaskRecord, ending: Ending): NewTranscript | undefined {
    const { transcripts, pools, specOf } = this.deps;
    const { spec, inputBytes } = record;
    // The input of one that waited may be on disk only.
    const whole = (): TaskSpec => (inputBytes === null ? specOf(spec.taskId) : spec);
    return transcripts?.of(record, whole, pools.find(spec.poolId)?.spec ?? null, ending) ?? undefined;
  }

  seal({ taskId, state, message }: Finish): void {
    const { registry, pools, telemetry } = this.deps;
    const record = registry.get(taskId);
    const pool = pools.find(record.spec.poolId);
    const nowMs = record.finishedMs ?? this.deps.clock.nowMs();
    const concluded = this.#endings.get(record);
    assert(concluded !== undefined, "what is sealed was concluded");
    assert(concluded.seq === record.log.length, "a task that is concluded says nothing any more");
    this.#endings.delete(record);
    record.log.seal(concluded.ending, state === "canceled");
    if (pool !== null) {
      if (state === "done") pool.done++;
      if (state === "failed") pool.failed++;
      pool.tokensOut += record.tokensOut;
    }
    telemetry.ended(record, state, message, nowMs);
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
    artifactId: record.artifactId,
  };
}
