/**
 * Use case "look at pools": what each pool is, has and does now. api/pools.ts answers with it, and /metrics
 * reads its gauges here, so that both tell the same.
 *
 * Always: looking changes nothing and starts nothing; the order of pools is that of the configuration.
 */

import { closest } from "fastest-levenshtein";
import { assert } from "../domain/assert.ts";
import { devicesOfReplica, replicaNumberOf } from "../domain/device-plan.ts";
import type { EngineKind } from "../domain/engine-kind.ts";
import { OrchestratorError } from "../domain/errors.ts";
import type {
  EngineIdentity,
  PoolSpec,
  ReplicaFailure,
  ReplicaSnapshot,
  ReplicaState,
} from "../domain/pool.ts";
import {
  newestFailure,
  newestIdentity,
  type PoolCondition,
  type PoolState,
  poolCondition,
  slotsServing,
} from "../domain/pool-state.ts";
import type { ReplicaControl } from "../ports/supervision.ts";
import type { GpuGauges, PoolGauges, PoolPrediction } from "../ports/telemetry.ts";
import type { GpuFigures } from "./gpu-monitor.ts";
import type { DrainView } from "./pool-drain.ts";
import type { PoolResidence, ResidenceView } from "./pool-memory.ts";
import type { ReloadView } from "./pool-reload.ts";

/** The queues and leases, as the dispatcher knows them. Unknown ids have nothing queued and nothing busy. */
export interface QueueView {
  depth(poolId: string): {
    readonly interactive: number;
    readonly batch: number;
    readonly capacity: number;
  };
  slotsBusy(replicaId: string): number;
}

/** What the pools did since the daemon started. Speeds in tokens per second of one sequence. */
export interface SpeedView {
  speed(poolId: string): { readonly prefillTps: number | null; readonly decodeTps: number | null };
  prediction(poolId: string): PoolPrediction;
  totals(poolId: string): { readonly done: number; readonly failed: number; readonly tokensOut: number };
}

/** Prompt and output tokens of the tasks that a replica runs now; null where that is not known. */
export interface KvView {
  tokensInUse(replicaId: string): number | null;
}

/** The graphics cards, and what replicas take of them. */
export interface GpuView {
  figures(): readonly GpuFigures[];
  /** Bytes on all cards together; null: nobody tells it, or there is no card. */
  vramUsedBytes(replicaId: string): number | null;
}

export interface PoolsDeps {
  readonly pools: readonly PoolSpec[];
  readonly control: ReplicaControl;
  readonly queues: QueueView;
  readonly speeds: SpeedView;
  /** Absent: no card is watched. */
  readonly gpus?: GpuView;
  /** Absent: every pool has memory. Null: it takes none here. */
  readonly residenceOf?: (poolId: string) => ResidenceView | null;
  /** Absent: nobody drains pools. Null: this one is not drained. */
  readonly drainOf?: (poolId: string) => DrainView | null;
  /** Absent: nobody reloads pools. Null: this one never was. */
  readonly reloadOf?: (poolId: string) => ReloadView | null;
  /** Replicas that are to replace those of the pool. */
  readonly stagedOf?: (poolId: string) => readonly ReplicaSnapshot[];
}

export interface QueueDepth {
  readonly interactive: number;
  readonly batch: number;
  readonly capacity: number;
}

export interface PoolSummary {
  readonly id: string;
  readonly engine: EngineKind;
  readonly engineVersion: string | null;
  readonly modelRef: string;
  readonly state: PoolState;
  readonly ready: boolean;
  /** Null: it takes no memory here. */
  readonly residence: PoolResidence | null;
  /** As configured. */
  readonly replicas: number;
  /** Of the replicas that serve now. */
  readonly slotsTotal: number;
  readonly slotsBusy: number;
  readonly queue: QueueDepth;
}

export interface ReplicaHealth {
  readonly id: string;
  readonly state: ReplicaState;
  readonly pid: number | null;
  readonly slotsTotal: number;
  readonly slotsBusy: number;
  readonly restarts: number;
  readonly lastError: ReplicaFailure | null;
  /** As the configuration names them; none: whatever its engine finds. */
  readonly devices: readonly string[];
  /** Null: nobody tells it, and a guess would be worse. */
  readonly vramUsedBytes: number | null;
}

export interface PoolHealth {
  readonly id: string;
  readonly live: boolean;
  readonly residence: PoolResidence | null;
  readonly ready: boolean;
  readonly draining: boolean;
  readonly state: PoolState;
  readonly engine: EngineKind;
  readonly engineVersion: string | null;
  readonly modelRef: string;
  readonly replicas: readonly ReplicaHealth[];
  readonly queue: QueueDepth;
  readonly metrics: {
    readonly decodeTps: number | null;
    readonly prefillTps: number | null;
    readonly tasksDone: number;
    readonly tasksFailed: number;
    readonly tokensOut: number;
    readonly prediction: PoolPrediction;
  };
  readonly lastError: ReplicaFailure | null;
  /** Null: nobody has drained it. */
  readonly drain: DrainView | null;
  /** The newest; null: there was none since the start. */
  readonly reload: ReloadView | null;
}

export class Pools {
  private readonly deps: PoolsDeps;

  constructor(deps: PoolsDeps) {
    this.deps = deps;
    assert(new Set(deps.pools.map(({ id }) => id)).size === deps.pools.length, "pool ids are unique");
  }

  /** Throws NOT_FOUND, naming the pool that was probably meant. */
  get(id: string): PoolSpec {
    const pool = this.deps.pools.find((one) => one.id === id);
    if (pool !== undefined) return pool;
    const ids = this.deps.pools.map((one) => one.id);
    const hint = ids.length === 0 ? "no pool is configured" : `the nearest one is "${closest(id, ids)}"`;
    throw new OrchestratorError("NOT_FOUND", `no pool "${id}"; ${hint}; GET /v1/pools lists them all`);
  }

  list(): PoolSummary[] {
    return this.deps.pools.map((pool) => {
      const replicas = this.deps.control.snapshots(pool.id);
      const { state, ready } = this.condition(pool.id, replicas);
      return {
        residence: this.residenceOf(pool.id),
        ...identified(pool, newestIdentity(replicas)),
        state,
        ready,
        replicas: pool.replicas,
        slotsTotal: slotsServing(replicas),
        slotsBusy: replicas.reduce((sum, r) => sum + this.deps.queues.slotsBusy(r.replicaId), 0),
        queue: this.deps.queues.depth(pool.id),
      };
    });
  }

  /** Throws NOT_FOUND. */
  health(id: string): PoolHealth {
    const pool = this.get(id);
    const replicas = this.deps.control.snapshots(id);
    const { decodeTps, prefillTps } = this.deps.speeds.speed(id);
    const totals = this.deps.speeds.totals(id);
    return {
      ...identified(pool, newestIdentity(replicas)),
      ...this.condition(id, replicas),
      residence: this.residenceOf(id),
      replicas: [...replicas, ...(this.deps.stagedOf?.(id) ?? [])].map((replica) => ({
        id: replica.replicaId,
        state: replica.state,
        pid: replica.pid,
        slotsTotal: replica.slotsTotal,
        slotsBusy: this.deps.queues.slotsBusy(replica.replicaId),
        restarts: replica.restarts,
        lastError: replica.lastError,
        devices: devicesOfReplica(pool, replicaNumberOf(replica.replicaId)),
        vramUsedBytes: this.deps.gpus?.vramUsedBytes(replica.replicaId) ?? null,
      })),
      queue: this.deps.queues.depth(id),
      metrics: {
        decodeTps,
        prefillTps,
        tasksDone: totals.done,
        tasksFailed: totals.failed,
        tokensOut: totals.tokensOut,
        prediction: this.deps.speeds.prediction(id),
      },
      lastError: this.deps.residenceOf?.(id)?.problem ?? newestFailure(replicas),
      drain: this.drainOf(id),
      reload: this.deps.reloadOf?.(id) ?? null,
    };
  }

  private residenceOf(poolId: string): PoolResidence | null {
    return this.deps.residenceOf?.(poolId)?.residence ?? null;
  }

  private drainOf(poolId: string): DrainView | null {
    return this.deps.drainOf?.(poolId) ?? null;
  }

  /** What its engines can do, and whether it takes anything up. */
  private condition(poolId: string, replicas: readonly ReplicaSnapshot[]): PoolCondition {
    const unfit = (this.deps.residenceOf?.(poolId)?.problem ?? null) !== null;
    const condition: PoolCondition = unfit
      ? { state: "unavailable", live: false, ready: false, draining: false }
      : poolCondition(replicas);
    const held = this.drainOf(poolId) !== null || this.deps.reloadOf?.(poolId)?.held === true;
    return held ? { ...condition, ready: false, draining: true } : condition;
  }

  /** For /metrics. */
  gauges(kv: KvView): PoolGauges[] {
    return this.deps.pools.map((pool) => {
      const replicas = this.deps.control.snapshots(pool.id);
      const { interactive, batch } = this.deps.queues.depth(pool.id);
      return {
        poolId: pool.id,
        engine: pool.engine,
        engineVersion: newestIdentity(replicas)?.engineVersion ?? null,
        ready: this.condition(pool.id, replicas).ready,
        draining: this.drainOf(pool.id) !== null,
        queue: { interactive, batch },
        prediction: this.deps.speeds.prediction(pool.id),
        replicas: replicas.map(({ replicaId, identity }) => {
          const used = kv.tokensInUse(replicaId);
          const known = used !== null && identity !== null;
          return {
            replicaId,
            kvTokens: known ? { used, total: identity.slots * identity.ctxPerSlot } : null,
          };
        }),
      };
    });
  }

  /** For /metrics: the cards, each with the replicas that compute on it. */
  gpuGauges(): GpuGauges[] {
    return (this.deps.gpus?.figures() ?? []).map(({ device, sample, failures, replicas }) => ({
      device,
      sample,
      failures,
      replicas: replicas.flatMap(({ replica: { poolId, replicaId, identity }, usedBytes }) => {
        // The sample may be older than the pool's end.
        const engine = this.deps.pools.find(({ id }) => id === poolId)?.engine;
        const engineVersion = identity?.engineVersion ?? "";
        return engine === undefined ? [] : [{ engine, engineVersion, poolId, replicaId, usedBytes }];
      }),
    }));
  }
}

const identified = (pool: PoolSpec, identity: EngineIdentity | null) => ({
  id: pool.id,
  engine: pool.engine,
  engineVersion: identity?.engineVersion ?? null,
  modelRef: pool.modelRef,
});
