/**
 * What a submitter is told when the dispatcher does not take a task: code, message, time to come back. Made here
 * so that /readyz, the submit itself and a later dry run say the same.
 */
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { Prediction } from "../domain/predictor.ts";
import type { TaskSpec } from "../domain/task.ts";

const about = (pool: PoolSpec) => ({ poolId: pool.id, engine: pool.engine });

export function shuttingDown(pool: PoolSpec): OrchestratorError {
  return new OrchestratorError("POOL_UNREADY", "the daemon is shutting down: try again when it is back", {
    ...about(pool),
    retryAfterMs: limits.restartBackoffMsMaxDefault,
  });
}

export function queueFull(pool: PoolSpec, message: string, retryAfterMs: number): OrchestratorError {
  return new OrchestratorError("ADMISSION_REJECT", message, {
    ...about(pool),
    policyLabel: "reject",
    retryAfterMs,
  });
}

export function poolUnavailable(pool: PoolSpec, message: string): OrchestratorError {
  return new OrchestratorError("POOL_UNAVAILABLE", message, {
    ...about(pool),
    retryAfterMs: limits.restartBackoffMsMaxDefault,
  });
}

/** Null: the deadline may be met, or there is none. */
export function infeasible(
  pool: PoolSpec,
  { deadlineMs }: TaskSpec,
  { onTimeProbability, startMs, endMs }: Prediction,
  minOnTimeProbability: number,
): OrchestratorError | null {
  if (onTimeProbability === null || onTimeProbability >= minOnTimeProbability) return null;
  return new OrchestratorError(
    "DEADLINE_UNMET",
    `deadline_ms ${deadlineMs} cannot be met: the end is expected in ${endMs} ms; allow more time or ask for fewer tokens`,
    { ...about(pool), details: { predicted_start_ms: startMs, predicted_end_ms: endMs } },
  );
}
