/**
 * Use case "what can be asked for": built from what runs now, never from what was planned (behaviour §12).
 * api/capabilities.ts answers with it.
 *
 * Always: a figure that only the engine knows is null (or 0, where the contract wants a number) until the
 * engine has said it; features name what this version does, not what it will do.
 */
import { limits } from "../domain/limits.ts";
import type { EngineIdentity, EngineKind, PoolSpec } from "../domain/pool.ts";
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
}

export interface EngineCapability {
  readonly engine: EngineKind;
  readonly engineVersion: string | null;
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
  readonly modelRef: string;
  readonly state: PoolState;
  readonly ready: boolean;
  readonly slotsTotal: number;
  readonly ctx: number | null;
  readonly workloads: readonly Workload[];
}

export interface ModelCapability {
  readonly modelRef: string;
  readonly poolIds: readonly string[];
  readonly sizeBytes: number | null;
  readonly params: number | null;
  readonly ctxTrain: number | null;
  readonly state: "Active";
}

export interface CapabilitiesView {
  readonly apiVersion: string;
  readonly engines: readonly EngineCapability[];
  readonly pools: readonly PoolCapability[];
  readonly models: readonly ModelCapability[];
  readonly rateLimits: RateLimits;
}

/** What the daemon does for every engine; resuming a stream survives a reconnect, not yet a restart. */
const commonFeatures = ["sse", "cancel", "resume_in_memory", "idempotent_submit", "continuation", "seed"];
const engineFeatures: Readonly<Record<EngineKind, readonly string[]>> = {
  llamacpp: ["grammar", "json_schema"],
  mock: [],
};

interface KnownPool {
  readonly pool: PoolSpec;
  readonly identity: EngineIdentity | null;
  readonly state: PoolState;
  readonly ready: boolean;
}

export class Capabilities {
  constructor(private readonly deps: CapabilitiesDeps) {}

  /** For /metrics: each model once. */
  models(): { readonly modelId: string; readonly state: "Active" }[] {
    return [...new Set(this.deps.pools.map((pool) => pool.modelRef))].map((modelId) => ({
      modelId,
      state: "Active",
    }));
  }

  view(): CapabilitiesView {
    const known = this.deps.pools.map((pool): KnownPool => {
      const replicas = this.deps.control.snapshots(pool.id);
      const { state, ready } = poolCondition(replicas);
      return { pool, identity: newestIdentity(replicas), state, ready };
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
  const versions = pools.flatMap(({ identity }) => identity?.engineVersion ?? []).sort(compareVersions);
  const templates = pools.some(({ identity }) => identity?.hasChatTemplate === true);
  const served = new Set(pools.flatMap(workloadsOf));
  return {
    engine: kind,
    engineVersion: versions.at(-1) ?? null,
    ctxMax,
    // A prompt has at least one token.
    maxTokensOut: Math.max(0, Math.min(limits.maxTokensMax, ctxMax - 1)),
    concurrency: pools.reduce((sum, known) => sum + slotsOf(known), 0),
    workloads: workloads.filter((workload) => served.has(workload)),
    features: [...commonFeatures, ...engineFeatures[kind], ...(templates ? ["chat_template"] : [])],
  };
}

const poolOf = (known: KnownPool): PoolCapability => ({
  id: known.pool.id,
  engine: known.pool.engine,
  engineVersion: known.identity?.engineVersion ?? null,
  modelRef: known.pool.modelRef,
  state: known.state,
  ready: known.ready,
  slotsTotal: slotsOf(known),
  ctx: ctxPerTask(known.pool, known.identity),
  workloads: workloadsOf(known),
});

function modelOf(modelRef: string, pools: readonly KnownPool[]): ModelCapability {
  const identity = pools.find((known) => known.identity !== null)?.identity ?? null;
  return {
    modelRef,
    poolIds: pools.map(({ pool }) => pool.id),
    sizeBytes: identity?.modelSizeBytes ?? null,
    params: identity?.modelParams ?? null,
    ctxTrain: identity?.ctxTrain ?? null,
    state: "Active",
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
