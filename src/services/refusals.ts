/**
 * What a submitter is told when its task is not taken: code, message, time to come back. Made here so that
 * /readyz, the submit itself and a dry run say the same. Called by admission and within the dispatcher's turn.
 */
import { closest } from "fastest-levenshtein";
import { assertNever } from "../domain/assert.ts";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { NoPool, PassedOver, PoolReason, PoolRequest } from "../domain/pool-choice.ts";
import type { Prediction } from "../domain/predictor.ts";
import type { TaskSpec } from "../domain/task.ts";
import { isStoreError, type StoreError, type StoreErrorKind } from "../ports/task-store.ts";

const about = (pool: Pick<PoolSpec, "id" | "engine">) => ({ poolId: pool.id, engine: pool.engine });

// ---- no pool ----

/** A model is called by its reference, by its file's name with or without .gguf, or by its pool's id. */
export function modelNames(pool: PoolSpec): string[] {
  const file = pool.modelPath?.split("/").pop() ?? null;
  const names = [pool.modelRef, pool.id];
  if (file !== null) names.push(file, file.replace(/\.gguf$/i, ""));
  return names;
}

/** Why no pool was chosen; a context that is too small is told by admission, which knows the figures. */
export function noPool(
  choice: Exclude<NoPool, { kind: "ctx_too_large" }>,
  { modelRef, engine, workload, wish }: PoolRequest,
  pools: readonly PoolSpec[],
): OrchestratorError {
  switch (choice.kind) {
    case "unknown_pool": {
      const field = `placement.${choice.field}`;
      const ids = pools.map(({ id }) => id);
      return invalid(
        `${field} names no pool: the nearest is ${closest(choice.poolId, ids)}, see GET /v1/pools`,
        { field },
      );
    }
    case "unknown_model": {
      const where = wish.pinPoolId === null ? "" : ` in pool ${wish.pinPoolId}`;
      const nearest = closest(modelRef ?? "", pools.flatMap(modelNames));
      return invalid(`model_ref is not served${where}: the nearest is ${nearest}, see GET /v1/capabilities`, {
        field: "model_ref",
        nearest,
      });
    }
    case "no_workload":
      return invalid(
        `no pool offers workload ${workload}${engine === null ? "" : ` on engine ${engine}`}` +
          `${modelRef === null ? "" : ` for model ${modelRef}`}: see GET /v1/capabilities`,
        { workload, engine, model_ref: modelRef },
      );
    case "ruled_out":
      return ruledOut(choice.reasons);
    default:
      return assertNever(choice, "refusal of the pool choice");
  }
}

const invalid = (message: string, details: Readonly<Record<string, unknown>>): OrchestratorError =>
  new OrchestratorError("INVALID_PARAMS", message, { details });

const sentenceOf: Partial<Record<PassedOver, string>> = {
  other_devices: "is not confined to the devices of require_device_mask",
  avoided: "is one of avoid_pools",
  not_preferred: "is none of prefer_pools",
};

function ruledOut(reasons: readonly PoolReason[]): OrchestratorError {
  const told = reasons.flatMap(({ poolId, reason }) => {
    const sentence = sentenceOf[reason as PassedOver];
    return sentence === undefined ? [] : [`${poolId} ${sentence}`];
  });
  const eased = reasons.some(({ reason }) => reason === "avoided" || reason === "not_preferred");
  const advice = eased ? "rule out less, or set placement.allow_fallback" : "rule out less";
  return new OrchestratorError(
    "REPLICA_EXHAUSTED",
    `the placement leaves no pool for this task (${told.join(", ")}): ${advice}`,
    {
      retryAfterMs: limits.poolRetryMs,
      details: {
        field: "placement",
        pools: reasons.map(({ poolId, reason }) => ({ pool_id: poolId, reason })),
      },
    },
  );
}

// ---- not now ----

export function shuttingDown(pool: Pick<PoolSpec, "id" | "engine">): OrchestratorError {
  return new OrchestratorError("POOL_UNREADY", "the daemon is shutting down: try again when it is back", {
    ...about(pool),
    retryAfterMs: limits.poolRetryMs,
  });
}

/** Nothing starts there before an operator resumes it. */
export function poolDrained(pool: PoolSpec): OrchestratorError {
  return new OrchestratorError(
    "POOL_UNREADY",
    `pool ${pool.id} is drained and starts nothing: use another, or wait until it is resumed`,
    { ...about(pool), retryAfterMs: limits.poolRetryMs },
  );
}

/** The words of the queue itself: which policy refused and why. */
export interface QueueRefusal {
  readonly code: "ADMISSION_REJECT" | "QUEUE_FULL_DROP_LRU";
  readonly policyLabel: string;
  readonly message: string;
}

export function queueFull(
  pool: PoolSpec,
  { code, policyLabel, message }: QueueRefusal,
  retryAfterMs: number,
): OrchestratorError {
  return new OrchestratorError(code, message, { ...about(pool), policyLabel, retryAfterMs });
}

export function poolUnavailable(pool: PoolSpec, message: string): OrchestratorError {
  return new OrchestratorError("POOL_UNAVAILABLE", message, {
    ...about(pool),
    retryAfterMs: limits.poolRetryMs,
  });
}

const storageSentence: Readonly<Record<StoreErrorKind, string>> = {
  full: "the disk that holds the daemon's state is full",
  io: "the disk that holds the daemon's state fails",
  damaged: "the daemon's state is damaged",
  newer: "the daemon's state was written by a newer version",
  locked: "the daemon's state is held by another process",
};

/** Not the store's own message: it names files. */
export function storageUnavailable({ storeErrorKind, cause }: StoreError): OrchestratorError {
  return new OrchestratorError(
    "STORAGE_UNAVAILABLE",
    `${storageSentence[storeErrorKind]}, so that nothing new can be promised: try again later, the operator's log has the details`,
    { retryAfterMs: limits.storageRetryMs, cause },
  );
}

/** What a store refuses is told as the refusal of the request that needed it. */
export function storing(work: () => void): void {
  try {
    work();
  } catch (error) {
    if (isStoreError(error)) throw storageUnavailable(error);
    throw error;
  }
}

// ---- not in that time ----

/**
 * Null: the deadline may be met, or there is none. `earliestEndMs`: milliseconds from now in which such a task
 * can end at best, which is what a client may ask for instead.
 */
export function infeasible(
  pool: PoolSpec,
  { deadlineMs }: TaskSpec,
  { onTimeProbability, startMs, endMs }: Prediction,
  minOnTimeProbability: number,
  earliestEndMs: () => number,
): OrchestratorError | null {
  if (onTimeProbability === null || onTimeProbability >= minOnTimeProbability) return null;
  const earliestMs = earliestEndMs();
  return new OrchestratorError(
    "DEADLINE_UNMET",
    `deadline_ms ${deadlineMs} cannot be met: the end is expected in ${endMs} ms, in ${earliestMs} ms at the earliest; allow more time or ask for fewer tokens`,
    {
      ...about(pool),
      details: {
        earliest_feasible_ms: earliestMs,
        on_time_probability: onTimeProbability,
        predicted_start_ms: startMs,
        predicted_end_ms: endMs,
      },
    },
  );
}
