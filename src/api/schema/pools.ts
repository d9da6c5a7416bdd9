/**
 * Wire models of /v1/pools (ORCHD-POOL-1, ORCHD-POOL-2). api/pools.ts answers with them; contracts/openapi/control.yaml
 * repeats them and test/contract/schemas.test.ts holds the two together.
 */
import { type Static, Type } from "@sinclair/typebox";
import { type ReplicaFailure, replicaStates } from "../../domain/pool.ts";
import { reloadPhases, reloadStrategies } from "../../domain/pool-reload.ts";
import { poolStates } from "../../domain/pool-state.ts";
import type { PredictionBasis } from "../../domain/predictor.ts";
import { drainStates } from "../../services/pool-drain.ts";
import { Residence } from "./devices.ts";
import { count, epochMs, nullable, oneOf, poolId, strict } from "./wire.ts";

export const PoolState = oneOf(poolStates, {
  description:
    "That of its most hopeful replica. ready: tasks start or queue; loading, restarting, stopped: they queue; unavailable: they are refused.",
});

/** Why a replica is not there. The causes are those of domain/pool.ts. */
export const ReplicaError = strict(
  {
    cause: oneOf([
      "spawn_failed",
      "model_missing",
      "model_corrupt",
      "bad_flag",
      "out_of_gpu_memory",
      "out_of_host_memory",
      "device_failed",
      "bind_failed",
      "load_timeout",
      "warm_up_failed",
      "crashed",
      "exited",
      "wedged",
      "unreachable",
      "refused",
    ] satisfies ReplicaFailure["cause"][]),
    message: Type.String({ description: "What happened and what to do, for a person." }),
    exit_code: nullable(Type.Integer(), "Null when a signal ended it, or when it still runs."),
    signal: nullable(Type.String(), "Such as SIGKILL."),
    log_tail: Type.Array(Type.String(), {
      description: "The last lines that the engine logged. Empty for keys that are not an admin's.",
    }),
    at_ms: epochMs("When it was noticed"),
  },
  { description: "Why an engine process was lost or did not start." },
);

export const PoolQueue = strict(
  {
    interactive: count("Waiting tasks of this class."),
    batch: count("Waiting tasks of this class."),
    capacity: count("Waiting tasks of both classes that fit."),
  },
  { description: "The pool's one bounded queue." },
);

const summary = {
  engine: Type.String(),
  engine_version: nullable(Type.String(), "What the engine reported; null while none has been ready."),
  model_ref: Type.String(),
  state: PoolState,
  residence: nullable(Residence, "Null for a server elsewhere: it takes no memory here."),
};

export const PoolSummary = strict(
  {
    id: poolId("The pool's id."),
    ...summary,
    ready: Type.Boolean({
      description: "A task that came now could start or would queue for a replica that has decoded for real.",
    }),
    replicas: count("Replicas that are configured."),
    slots_total: count("Sequences that its ready replicas can decode at once."),
    slots_busy: count("How many of them are leased."),
    queue: PoolQueue,
  },
  { description: "A pool at a glance." },
);

export const PoolList = strict({ pools: Type.Array(PoolSummary) });
export type PoolListBody = Static<typeof PoolList>;

export const ReplicaHealth = strict(
  {
    id: Type.String(),
    state: oneOf(replicaStates),
    pid: nullable(count("Process id of the engine."), "Null while no process runs."),
    slots_total: count("Sequences that it can decode at once."),
    slots_busy: count("How many of them are leased."),
    restarts: count("Times it was started again after a failure."),
    last_error: nullable(ReplicaError, "Why it was last not there."),
    devices: Type.Array(Type.String(), {
      description: "Where it computes, as the configuration names it; empty: whatever its engine finds.",
    }),
    vram_used_bytes: nullable(
      count("Bytes that it takes of all graphics cards together."),
      "Null where no graphics card tells it: never invented.",
    ),
  },
  { description: "One engine process." },
);

const score = (description: string) => nullable(Type.Number({ minimum: 0, maximum: 1 }), description);

export const PredictionScores = strict(
  {
    starts_scored: count("Promised starts of tasks that had to wait, compared with what happened."),
    interval_coverage: score("Share of them within the promised 80 % interval; null before the first."),
    deadlines_scored: count("Tasks with a deadline that met or missed it."),
    brier_score: score("Mean squared error of on_time_probability, less is better; null before the first."),
    base_rate_brier_score: score("The same had each been told the share of deadlines that was met."),
  },
  { description: "How the promises of one class turned out." },
);

export const PoolPrediction = strict(
  {
    basis: oneOf(["assumed", "warm_up", "learned"] satisfies PredictionBasis[], {
      description:
        "What promises stand on: assumptions while no engine was ever ready, its warm-up decode, or finished tasks.",
    }),
    interactive: PredictionScores,
    batch: PredictionScores,
  },
  { description: "What promises to tasks stand on, and what they were worth." },
);

export const PoolMetrics = strict(
  {
    decode_tokens_per_second: nullable(
      Type.Number({ minimum: 0 }),
      "Of one sequence, learned from what ran; null before.",
    ),
    prefill_tokens_per_second: nullable(Type.Number({ minimum: 0 }), "Learned from what ran; null before."),
    tasks_done: count("Since the daemon started."),
    tasks_failed: count("Since the daemon started."),
    tokens_out_total: count("Since the daemon started."),
    prediction: PoolPrediction,
  },
  { description: "What the pool has done and how fast it is." },
);

export const PoolDrain = strict(
  {
    since_ms: epochMs("When it was drained"),
    deadline_ms: epochMs("When what runs is cut, or was"),
    running: count("Slots that are not free yet."),
    state: oneOf(drainStates, { description: "drained: nothing runs any more." }),
  },
  { description: "A pool in which nothing starts before it is resumed." },
);

export const PoolReload = strict(
  {
    phase: oneOf(reloadPhases, {
      description: "done: the new model serves; failed: the old one is the pool's.",
    }),
    strategy: oneOf(reloadStrategies),
    new_model_ref: Type.String(),
    since_ms: epochMs("When it was asked for"),
    running: count("Slots that are not free."),
    replicas_ready: count("New replicas that have decoded for real."),
    replicas: count("New replicas that there are to be."),
    problem: nullable(Type.String(), "Why it fails or failed, and what to do."),
  },
  { description: "How a pool gets another model." },
);

export const PoolHealth = strict(
  {
    id: poolId("The pool's id."),
    live: Type.Boolean({ description: "The pool can serve or is on its way to; false once it is stuck." }),
    ready: Type.Boolean({ description: "At least one replica has decoded for real and takes tasks." }),
    draining: Type.Boolean({ description: "Nothing starts here; state still tells of its engines." }),
    ...summary,
    replicas: Type.Array(ReplicaHealth),
    queue: PoolQueue,
    metrics: PoolMetrics,
    last_error: nullable(ReplicaError, "The newest of its replicas'."),
    drain: nullable(PoolDrain, "Null: nobody has drained it."),
    reload: nullable(PoolReload, "The newest, also when it is over; null: there was none since the start."),
  },
  { description: "A pool in detail." },
);
export type PoolHealthBody = Static<typeof PoolHealth>;

export const PoolIdParams = strict({ id: poolId("The pool's id.") });
