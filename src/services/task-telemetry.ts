/**
 * The log lines and metrics of a task's life: one line for each of admission, start and end, never per token.
 * Called by the dispatcher within its turn. Prompts and secrets never pass through here.
 */

import type { EngineKind } from "../domain/engine-kind.ts";
import type { OrchestratorError } from "../domain/errors.ts";
import type { Command, CutReason } from "../domain/scheduler-protocol.ts";
import type { TerminalState } from "../domain/task.ts";
import type { EngineLabels, Log, Metrics } from "../ports/telemetry.ts";
import type { PlacementNote } from "./mailbox.ts";
import type { TaskRecord } from "./task-registry.ts";

/** A placement that left no pool. `why`: what ruled out each, as `pool reason, ...`. */
export interface Unplaced {
  readonly pinned: boolean;
  readonly why: string;
}

export class TaskTelemetry {
  constructor(
    private readonly log: Log,
    private readonly metrics: Metrics,
  ) {}

  admitted(record: TaskRecord, placement: PlacementNote): void {
    const { promise, spec } = record;
    this.metrics.taskEnqueued({ ...labels(record), priority: spec.priority });
    this.metrics.placement("placed", spec.pinned, placement.fallback, placement.candidates);
    this.log.info("task_admitted", {
      ...fields(record),
      priority: spec.priority,
      workload: spec.workload,
      placement: placement.why,
      human:
        promise.queuePosition === 0
          ? `accepted, expected to start ${promise.startMs === 0 ? "at once" : `in ${promise.startMs} ms`}`
          : `accepted behind ${promise.queuePosition} others, expected to start in ${promise.startMs} ms`,
    });
  }

  refused(engine: EngineKind, error: OrchestratorError): void {
    this.metrics.taskRejected({ engine, reason: error.code });
    if (error.policyLabel !== undefined) this.metrics.backpressure({ engine, policy: error.policyLabel });
  }

  /** No pool may take what was asked for: a decision like any other, and the reasons are what it is looked up for. */
  unplaced(correlationId: string, keyId: string, { pinned, why }: Unplaced): void {
    this.metrics.placement("refused", pinned, false, 0);
    this.log.info("placement_refused", {
      correlation_id: correlationId,
      key_id: keyId,
      placement: why,
      human: `the placement that was asked for leaves no pool: ${why}`,
    });
  }

  started(record: TaskRecord, { lease, candidates, why }: Extract<Command, { type: "start_attempt" }>): void {
    const { priority } = record.spec;
    const { replicaId, slot } = lease;
    this.metrics.taskStarted({ ...labels(record), replicaId, priority });
    this.log.info("task_started", {
      ...fields(record),
      attempt: record.attempts,
      slot,
      candidates,
      why: `${why.rule}; replica by ${why.replica}, slot by ${why.slot}${why.held ? ", held for its session" : ""}`,
      human: `attempt ${record.attempts} starts on ${replicaId}, slot ${slot}; ${candidates} with room`,
    });
  }

  /** `cut`: why the daemon itself did that; null: the attempt was lost. */
  requeued(record: TaskRecord, message: string, cut: CutReason | null): void {
    const told = {
      ...fields(record),
      attempt: record.attempts,
      cut,
      tokens_out: record.tokensOut,
      human: `attempt ${record.attempts} was cut and the task waits again: ${message}`,
    };
    if (cut === null) this.log.warn("task_requeued", told);
    else this.log.info("task_requeued", told);
    if (cut === "preempted")
      this.metrics.taskPreempted({ ...labels(record), replicaId: record.replicaId ?? "" });
  }

  firstToken(record: TaskRecord, sinceAdmissionMs: number): void {
    this.metrics.firstToken({ ...labels(record), priority: record.spec.priority }, sinceAdmissionMs);
  }

  /** `reason` says who canceled; it is a metrics label, one of a few words. */
  ended(record: TaskRecord, state: TerminalState, reason: string, nowMs: number): void {
    const { metrics } = this;
    const { priority } = record.spec;
    const replica = { ...labels(record), replicaId: record.replicaId ?? "" };
    const decodeMs = record.firstTokenMs === null ? 0 : Math.round(nowMs - record.firstTokenMs);
    metrics.tokens(replica, record.startedMs === null ? 0 : (record.tokensIn ?? 0), record.tokensOut);
    metrics.taskFinished({ ...replica, priority, result: state });
    if (record.error?.code === "QUEUE_FULL_DROP_LRU")
      metrics.backpressure({ engine: record.spec.engine, policy: "drop-lru" });
    if (state === "canceled") metrics.taskCanceled({ ...replica, reason });
    if (state === "done") metrics.decode({ ...labels(record), priority }, decodeMs);
    const told = {
      ...fields(record),
      tokens_in: record.tokensIn,
      tokens_out: record.tokensOut,
      decode_time_ms: decodeMs,
      code: record.error?.code ?? null,
      human:
        state === "done"
          ? `done after ${Math.round(nowMs - record.createdMs)} ms, ${record.tokensOut} tokens`
          : `${state}: ${record.error?.message ?? reason}`,
    };
    if (state === "failed") this.log.warn("task_failed", told);
    else this.log.info(state === "done" ? "task_done" : "task_canceled", told);
  }
}

const labels = (record: TaskRecord): EngineLabels => ({
  engine: record.spec.engine,
  engineVersion: record.engineVersion,
  poolId: record.spec.poolId,
});

function fields(record: TaskRecord) {
  const { spec, promise } = record;
  return {
    correlation_id: spec.correlationId,
    key_id: spec.keyId,
    task_id: spec.taskId,
    job_id: spec.taskId,
    session_id: spec.sessionId,
    engine: spec.engine,
    engine_version: record.engineVersion,
    sampler_profile_version: spec.samplerProfileVersion,
    pool_id: spec.poolId,
    replica_id: record.replicaId,
    queue_position: promise.queuePosition,
    predicted_start_ms: promise.startMs,
  };
}
