/**
 * GET /v1/pools and /v1/pools/{id}/health: parse, ask services/pools.ts, shape the answer.
 * The wire models are in schema/pools.ts.
 */
import { Elysia } from "elysia";
import type { PredictionScores } from "../domain/calibration.ts";
import type { ReplicaFailure } from "../domain/pool.ts";
import type { PoolHealth, PoolSummary, Pools, QueueDepth, ReplicaHealth } from "../services/pools.ts";
import type { RequestContexts } from "./request-context.ts";
import { ErrorEnvelope } from "./schema/errors.ts";
import {
  type PoolHealthBody,
  PoolHealth as PoolHealthModel,
  PoolIdParams,
  PoolList,
  type PoolListBody,
} from "./schema/pools.ts";

export interface PoolsRoutesDeps {
  readonly pools: Pools;
  readonly contexts: RequestContexts;
}

export function poolsRoutes({ pools, contexts }: PoolsRoutesDeps) {
  return new Elysia({ name: "pools" })
    .get("/v1/pools", () => ({ pools: pools.list().map(summaryOf) }), {
      response: { 200: PoolList, 401: ErrorEnvelope, 403: ErrorEnvelope },
      detail: { tags: ["pools"], summary: "All pools at a glance" },
    })
    .get(
      "/v1/pools/:id/health",
      ({ params, request }) => healthOf(pools.health(params.id), contexts.caller(request).admin),
      {
        params: PoolIdParams,
        response: {
          200: PoolHealthModel,
          400: ErrorEnvelope,
          401: ErrorEnvelope,
          403: ErrorEnvelope,
          404: ErrorEnvelope,
        },
        detail: { tags: ["pools"], summary: "One pool in detail" },
      },
    );
}

type SummaryBody = PoolListBody["pools"][number];
type ReplicaBody = PoolHealthBody["replicas"][number];

const summaryOf = (pool: PoolSummary): SummaryBody => ({
  id: pool.id,
  engine: pool.engine,
  engine_version: pool.engineVersion,
  model_ref: pool.modelRef,
  state: pool.state,
  ready: pool.ready,
  residence: pool.residence,
  replicas: pool.replicas,
  slots_total: pool.slotsTotal,
  slots_busy: pool.slotsBusy,
  queue: queueOf(pool.queue),
});

/** What an engine logged may hold paths and pieces of prompts: for admins only. */
export const healthOf = (pool: PoolHealth, admin: boolean): PoolHealthBody => ({
  id: pool.id,
  live: pool.live,
  ready: pool.ready,
  draining: pool.draining,
  engine: pool.engine,
  engine_version: pool.engineVersion,
  model_ref: pool.modelRef,
  state: pool.state,
  residence: pool.residence,
  replicas: pool.replicas.map((replica) => replicaOf(replica, admin)),
  queue: queueOf(pool.queue),
  metrics: {
    decode_tokens_per_second: toTenths(pool.metrics.decodeTps),
    prefill_tokens_per_second: toTenths(pool.metrics.prefillTps),
    tasks_done: pool.metrics.tasksDone,
    tasks_failed: pool.metrics.tasksFailed,
    tokens_out_total: pool.metrics.tokensOut,
    prediction: {
      basis: pool.metrics.prediction.basis,
      interactive: scoresOf(pool.metrics.prediction.interactive),
      batch: scoresOf(pool.metrics.prediction.batch),
    },
  },
  last_error: failureOf(pool.lastError, admin),
  drain: drainOf(pool.drain),
  reload: reloadOf(pool.reload),
});

const reloadOf = (reload: PoolHealth["reload"]): PoolHealthBody["reload"] =>
  reload === null
    ? null
    : {
        phase: reload.phase,
        strategy: reload.strategy,
        new_model_ref: reload.modelRef,
        since_ms: Math.round(reload.sinceMs),
        running: reload.running,
        replicas_ready: reload.replicasReady,
        replicas: reload.replicas,
        problem: reload.problem,
      };

const drainOf = (drain: PoolHealth["drain"]): PoolHealthBody["drain"] =>
  drain === null
    ? null
    : {
        since_ms: Math.round(drain.sinceMs),
        deadline_ms: Math.round(drain.deadlineMs),
        running: drain.running,
        state: drain.state,
      };

const scoresOf = (scores: PredictionScores): PoolHealthBody["metrics"]["prediction"]["batch"] => ({
  starts_scored: scores.startsScored,
  interval_coverage: scores.intervalCoverage,
  deadlines_scored: scores.deadlinesScored,
  brier_score: scores.brierScore,
  base_rate_brier_score: scores.baseRateBrierScore,
});

const replicaOf = (replica: ReplicaHealth, admin: boolean): ReplicaBody => ({
  id: replica.id,
  state: replica.state,
  pid: replica.pid,
  slots_total: replica.slotsTotal,
  slots_busy: replica.slotsBusy,
  restarts: replica.restarts,
  last_error: failureOf(replica.lastError, admin),
  devices: [...replica.devices],
  vram_used_bytes: replica.vramUsedBytes,
});

const failureOf = (failure: ReplicaFailure | null, admin: boolean): ReplicaBody["last_error"] =>
  failure === null
    ? null
    : {
        cause: failure.cause,
        message: failure.message,
        exit_code: failure.exitCode,
        signal: failure.signal,
        log_tail: admin ? [...failure.logTail] : [],
        at_ms: Math.round(failure.atMs),
      };

const queueOf = ({ interactive, batch, capacity }: QueueDepth): SummaryBody["queue"] => ({
  interactive,
  batch,
  capacity,
});

/** A measured speed is no better known than that. */
const toTenths = (value: number | null): number | null =>
  value === null ? null : Math.round(value * 10) / 10;
