/**
 * What attempts tell while they run and when they end: into the dispatcher's mailbox, to the supervisor, and as
 * metrics frames into the task's stream. Made by the dispatcher, called by the attempt runner.
 */
import { isWarm } from "../domain/prefix.ts";
import type { AttemptOutcome } from "../domain/scheduler-protocol.ts";
import type { Clock } from "../ports/clock.ts";
import type { ReplicaControl } from "../ports/supervision.ts";
import type { Attempt, AttemptListener } from "./attempt-runner.ts";
import { otherEnginesMessage, unfitMessage } from "./fitting-prompt.ts";
import type { Forecast } from "./forecast.ts";
import type { Post } from "./mailbox.ts";
import type { PoolRuntimes } from "./pool-runtime.ts";
import type { QueueView } from "./queue-view.ts";
import type { Sessions } from "./sessions.ts";
import type { AttemptResult } from "./task-registry.ts";
import type { TaskTelemetry } from "./task-telemetry.ts";

export interface AttemptFeedbackDeps {
  readonly clock: Clock;
  readonly control: ReplicaControl;
  readonly forecast: Forecast;
  readonly sessions: Sessions;
  readonly telemetry: TaskTelemetry;
  readonly pools: PoolRuntimes;
  readonly view: QueueView;
  readonly post: Post;
  readonly onFatal: (error: unknown) => void;
}

export class AttemptFeedback implements AttemptListener {
  constructor(private readonly deps: AttemptFeedbackDeps) {}

  attemptEnded(
    attempt: Attempt,
    outcome: AttemptOutcome,
    slotFree: boolean,
    result: AttemptResult | null,
  ): void {
    this.deps.post({ kind: "attempt_ended", attempt, outcome: judged(attempt, outcome), slotFree, result });
  }

  slotFreed(attempt: Attempt): void {
    const { leaseId, replicaId, incarnation } = attempt.lease;
    const poolId = attempt.pool.id;
    this.deps.post({ kind: "event", event: { type: "slot_freed", poolId, replicaId, incarnation, leaseId } });
  }

  /** In the turn that decides what becomes of the task. */
  noteResult(attempt: Attempt, result: AttemptResult): void {
    const { forecast, sessions, pools } = this.deps;
    const { record, lease, pool } = attempt;
    // What another model took says nothing of this one.
    if (pool.modelRef === pools.get(pool.id).spec.modelRef) forecast.learn(attempt, result);
    const { sessionId } = record.spec;
    if (sessionId === null) return;
    const { kvBytesPerToken = null } = pools.get(pool.id).ready.get(lease.replicaId)?.identity ?? {};
    const cachedTokens = result.tokensIn + result.tokensOut;
    sessions.noteKv(sessionId, {
      warm: isWarm(result.tokensCached),
      cachedTokens,
      kvBytes: kvBytesPerToken === null ? null : cachedTokens * kvBytesPerToken,
      replicaId: lease.replicaId,
      slot: lease.slot,
    });
  }

  engineWedged(attempt: Attempt, message: string): void {
    this.deps.control.reportWedged(attempt.lease.replicaId, attempt.lease.incarnation, message);
  }

  firstToken(attempt: Attempt, sinceAdmissionMs: number): void {
    const { record, lease } = attempt;
    if (record.firstTokenMs === null) {
      record.firstTokenMs = this.deps.clock.nowMs();
      this.deps.telemetry.firstToken(record, sinceAdmissionMs);
    }
    this.deps.control.noteProgress(lease.replicaId, lease.incarnation);
  }

  metricsDue(attempt: Attempt, tokensPerSecond: number): void {
    const { record, pool } = attempt;
    const { interactive, batch } = this.deps.view.depth(pool.id);
    const remaining = this.deps.sessions.remaining(record.spec.taskId);
    record.log.append({
      type: "metrics",
      data: {
        queue_depth: interactive + batch,
        on_time_probability: this.deps.forecast.ofLive(record)?.onTimeProbability ?? null,
        kv_warmth: record.kvWarmth,
        tokens_out: record.tokensOut,
        tokens_per_second: Math.round(tokensPerSecond * 10) / 10,
        tokens_budget_remaining: remaining?.tokens ?? null,
        time_budget_remaining_ms: remaining?.timeMs ?? null,
        cost_budget_remaining: remaining?.cost ?? null,
      },
    });
  }

  unexpected(error: unknown): void {
    this.deps.onFatal(error);
  }
}

/** What another model, or its other engines, would have taken is no mistake of its client: what a reload finds of those that wait as well. */
function judged({ record, pool }: Attempt, outcome: AttemptOutcome): AttemptOutcome {
  const { acceptedFor } = record;
  if (outcome.kind !== "failed" || outcome.code !== "INVALID_PARAMS" || acceptedFor === null) return outcome;
  const { message: problem } = outcome;
  const message =
    acceptedFor === "another_model" ? unfitMessage(pool.modelRef, problem) : otherEnginesMessage(problem);
  return { ...outcome, code: "WORKER_RESET", message };
}
