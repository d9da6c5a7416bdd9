/**
 * Use case "what can be asked for": built from what runs now, never from what was planned (ORCHD-CAP-1).
 * api/capabilities.ts answers with it.
 *
 * Always: a figure that only the engine knows is null (or 0, where the contract wants a number) until the
 * engine has said it; features name what this version does, not what it will do.
 */

import type { CatalogState } from "../domain/catalog.ts";
import type { EngineKind } from "../domain/engine-kind.ts";
import { limits } from "../domain/limits.ts";
import type { EngineIdentity, PoolSpec } from "../domain/pool.ts";
import {
  compareVersions,
  ctxPerTask,
  newestIdentity,
  type PoolState,
  poolCondition,
} from "../domain/pool-state.ts";
import { type Workload, workloads } from "../domain/task.ts";
import type { ReplicaControl } from "../ports/supervision.ts";

export interface RateLimits {
  /** Per key; null: no limit. */
  readonly requestsPerSecond: number | null;
  readonly burst: number | null;
  readonly streamsPerKey: number;
}

export interface CapabilitiesDeps {
  readonly apiVersion: string;
  readonly pools: readonly PoolSpec[];
  readonly control: ReplicaControl;
  readonly rateLimits: RateLimits;
  /** Absent: nobody drains pools. */
  readonly isDrained?: (poolId: string) => boolean;
  /** Absent: no model is retired. */
  readonly isRetired?: (pool: PoolSpec) => boolean;
}

export interface EngineCapability {
  readonly engine: EngineKind;
  /** The newest. */
  readonly engineVersion: string | null;
  /** Of all replicas that have told theirs, oldest first: they differ while an engine is being replaced. */
  readonly engineVersions: readonly string[];
  /** Tokens; 0 while unknown. */
  readonly ctxMax: number;
  /** Tokens; 0 while unknown. */
  readonly maxTokensOut: number;
  /** Sequences that all its pools together can decode at once. */
  readonly concurrency: number;
  readonly workloads: readonly Workload[];
  readonly features: readonly string[];
}

export interface PoolCapability {
  readonly id: string;
  readonly engine: EngineKind;
  readonly engineVersion: string | null;
  readonly engineVersions: readonly string[];
  readonly modelRef: string;
  readonly state: PoolState;
  readonly ready: boolean;
  readonly slotsTotal: number;
  readonly ctx: number | null;
  /** Tokens; null while the context is unknown. */
  readonly maxTokensOut: number | null;
  readonly samplerProfileVersion: string;
  readonly workloads: readonly Workload[];
  readonly features: readonly string[];
}

export interface ModelCapability {
  readonly modelRef: string;
  readonly poolIds: readonly string[];
  readonly sizeBytes: number | null;
  readonly params: number | null;
  readonly ctxTrain: number | null;
  readonly state: CatalogState;
}

export interface CapabilitiesView {
  readonly apiVersion: string;
  readonly engines: readonly EngineCapability[];
  readonly pools: readonly PoolCapability[];
  readonly models: readonly ModelCapability[];
  readonly rateLimits: RateLimits;
}

/** What the daemon does whatever the engine. */
const commonFeatures = ["sse", "cancel", "resume", "idempotent_submit", "dry_run", "sessions", "budgets"];
/** ... and where text is generated. */
const generationFeatures = ["continuation", "seed"];
const engineFeatures: Readonly<Record<EngineKind, readonly string[]>> = {
  llamacpp: ["grammar", "json_schema"],
  // A server says it itself, or is known by its kind (EngineIdentity.features).
  openai: [],
  mock: [],
};

interface KnownPool {
  readonly pool: PoolSpec;
  readonly identity: EngineIdentity | null;
  readonly versions: readonly string[];
  readonly state: PoolState;
  readonly ready: boolean;
  readonly retired: boolean;
}

export class Capabilities {
  constructor(private readonly deps: CapabilitiesDeps) {}

  /** For /metrics: each model once. */
  models(): { readonly modelId: string; readonly state: CatalogState }[] {
    const states = new Map(this.deps.pools.map((pool) => [pool.modelRef, this.stateOf(pool)]));
    return [...states].map(([modelId, state]) => ({ modelId, state }));
  }

  private stateOf(pool: PoolSpec): CatalogState {
    return this.deps.isRetired?.(pool) === true ? "Retired" : "Active";
  }

  view(): CapabilitiesView {
    const known = this.deps.pools.map((pool): KnownPool => {
      const replicas = this.deps.control.snapshots(pool.id);
      const { state, ready: served } = poolCondition(replicas);
      const ready = served && this.deps.isDrained?.(pool.id) !== true;
      const versions = sortedVersions(replicas.flatMap(({ identity }) => identity?.engineVersion ?? []));
      const retired = this.stateOf(pool) === "Retired";
      return { pool, identity: newestIdentity(replicas), versions, state, ready, retired };
    });
    return {
      apiVersion: this.deps.apiVersion,
      engines: grouped(known, ({ pool }) => pool.engine).map(([kind, pools]) => engineOf(kind, pools)),
      pools: known.map(poolOf),
      models: grouped(known, ({ pool }) => pool.modelRef).map(([ref, pools]) => modelOf(ref, pools)),
      rateLimits: this.deps.rateLimits,
    };
  }
}

function engineOf(kind: EngineKind, pools: readonly KnownPool[]): EngineCapability {
  const ctxMax = Math.max(0, ...pools.map(({ pool, identity }) => ctxPerTask(pool, identity) ?? 0));
  const versions = sortedVersions(pools.flatMap((known) => known.versions));
  const served = new Set(pools.flatMap(workloadsOf));
  return {
    engine: kind,
    engineVersion: versions.at(-1) ?? null,
    engineVersions: versions,
    ctxMax,
    maxTokensOut: maxTokensOf(ctxMax),
    concurrency: pools.reduce((sum, known) => sum + slotsOf(known), 0),
    workloads: workloads.filter((workload) => served.has(workload)),
    features: [...new Set(pools.flatMap(featuresOf))],
  };
}

const sortedVersions = (versions: readonly string[]): string[] =>
  [...new Set(versions)].sort(compareVersions);

/** A prompt has at least one token. */
const maxTokensOf = (ctx: number): number => Math.max(0, Math.min(limits.maxTokensMax, ctx - 1));

function featuresOf(known: KnownPool): string[] {
  if (!workloadsOf(known).includes("completion")) return commonFeatures;
  const { pool, identity } = known;
  return [
    ...commonFeatures,
    ...generationFeatures,
    // Whether a server elsewhere can do without cached context it says itself.
    ...(pool.engine === "openai" ? [] : ["strict"]),
    ...engineFeatures[pool.engine],
    ...(identity?.features ?? []),
    ...(identity?.hasChatTemplate === true ? ["chat_template"] : []),
    ...(pool.preempt === null ? [] : ["preemption"]),
  ];
}

function poolOf(known: KnownPool): PoolCapability {
  const { pool, identity, versions, state, ready } = known;
  const ctx = ctxPerTask(pool, identity);
  return {
    id: pool.id,
    engine: pool.engine,
    engineVersion: identity?.engineVersion ?? null,
    engineVersions: versions,
    modelRef: pool.modelRef,
    state,
    ready,
    slotsTotal: slotsOf(known),
    ctx,
    maxTokensOut: ctx === null ? null : maxTokensOf(ctx),
    samplerProfileVersion: pool.samplerProfileVersion,
    workloads: workloadsOf(known),
    features: featuresOf(known),
  };
}

function modelOf(modelRef: string, pools: readonly KnownPool[]): ModelCapability {
  const identity = pools.find((known) => known.identity !== null)?.identity ?? null;
  return {
    modelRef,
    poolIds: pools.map(({ pool }) => pool.id),
    sizeBytes: identity?.modelSizeBytes ?? null,
    params: identity?.modelParams ?? null,
    ctxTrain: identity?.ctxTrain ?? null,
    state: pools.every(({ retired }) => retired) ? "Retired" : "Active",
  };
}

/** Whether or not they run now: a pool on demand starts when asked. */
const slotsOf = ({ pool, identity }: KnownPool): number => pool.replicas * (identity?.slots ?? pool.slots);

const workloadsOf = ({ pool, identity }: KnownPool): readonly Workload[] =>
  identity?.workloads ?? pool.workloads;

/** Groups in the order in which they first appear. */
function grouped<K extends string>(pools: readonly KnownPool[], keyOf: (known: KnownPool) => K) {
  const groups = new Map<K, KnownPool[]>();
  for (const known of pools) {
    const group = groups.get(keyOf(known));
    if (group === undefined) groups.set(keyOf(known), [known]);
    else group.push(known);
  }
  return [...groups];
}
