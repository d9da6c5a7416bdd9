/**
 * What a pool is, told from its replicas alone: pure. services/pools.ts and services/capabilities.ts ask here,
 * so that /v1/pools, /v1/capabilities and /metrics can never disagree.
 *
 * | state       | the pool's most hopeful replica                                     | a task that comes now |
 * |-------------|---------------------------------------------------------------------|-----------------------|
 * | ready       | ready or busy                                                       | starts or queues      |
 * | loading     | starting, loading or warming for the first time                     | queues                |
 * | restarting  | coming back: failed, backoff, or starting again after a failure     | queues                |
 * | stopped     | stopped, stopping or draining; or there is none yet                 | queues, starts it     |
 * | unavailable | every one is in circuit_open                                        | is refused            |
 */
import { assertNever } from "./assert.ts";
import type { EngineIdentity, PoolSpec, ReplicaFailure, ReplicaSnapshot } from "./pool.ts";

export const poolStates = ["ready", "loading", "restarting", "stopped", "unavailable"] as const;
export type PoolState = (typeof poolStates)[number];

export interface PoolCondition {
  readonly state: PoolState;
  /** It can serve, or is on its way to, or would start when asked. */
  readonly live: boolean;
  /** At least one replica has decoded for real and takes tasks. */
  readonly ready: boolean;
  /** It takes nothing new because what is left of it drains. */
  readonly draining: boolean;
}

/** What counts of a replica for the state of its pool. */
export type ReplicaFacts = Pick<ReplicaSnapshot, "state" | "restarts">;

function stateOfReplica(replica: ReplicaFacts): PoolState {
  switch (replica.state) {
    case "ready":
    case "busy":
      return "ready";
    case "starting":
    case "loading":
    case "warming":
      return replica.restarts > 0 ? "restarting" : "loading";
    case "failed":
    case "backoff":
      return "restarting";
    case "stopped":
    case "stopping":
    case "draining":
      return "stopped";
    case "circuit_open":
      return "unavailable";
    default:
      return assertNever(replica.state, "replica state");
  }
}

/** The best of its replicas decides: `poolStates` is in that order. */
export function poolCondition(replicas: readonly ReplicaFacts[]): PoolCondition {
  const states = replicas.map(stateOfReplica);
  // A pool whose supervisor knows no replica yet was never started: that is stopped, not broken.
  const state = states.length === 0 ? "stopped" : (poolStates.find((s) => states.includes(s)) ?? "stopped");
  const ready = state === "ready";
  return {
    state,
    live: state !== "unavailable",
    ready,
    draining: !ready && replicas.some((r) => r.state === "draining"),
  };
}

/**
 * What is known of the pool's engine: the newest version that a replica reported. Versions compare by their
 * numbers (b9999 before b11669); among equals the replica that serves now wins.
 */
export function newestIdentity(replicas: readonly ReplicaSnapshot[]): EngineIdentity | null {
  let best: ReplicaSnapshot | null = null;
  for (const replica of replicas) {
    if (replica.identity === null) continue;
    if (best === null || best.identity === null) {
      best = replica;
      continue;
    }
    const order = compareVersions(replica.identity.engineVersion, best.identity.engineVersion);
    if (order > 0 || (order === 0 && serves(replica) && !serves(best))) best = replica;
  }
  return best?.identity ?? null;
}

export const compareVersions = (a: string, b: string): number => a.localeCompare(b, "en", { numeric: true });

/** The failure that happened last among the replicas. */
export function newestFailure(
  replicas: readonly Pick<ReplicaSnapshot, "lastError">[],
): ReplicaFailure | null {
  let newest: ReplicaFailure | null = null;
  for (const { lastError } of replicas)
    if (lastError !== null && (newest === null || lastError.atMs > newest.atMs)) newest = lastError;
  return newest;
}

/** Sequences that the replicas which serve now can decode at once. */
export const slotsServing = (replicas: readonly ReplicaSnapshot[]): number =>
  replicas.reduce((sum, replica) => sum + (serves(replica) ? replica.slotsTotal : 0), 0);

/** Tokens of context for each task: what the engine says, before that what the configuration asks for. */
export const ctxPerTask = (pool: PoolSpec, identity: EngineIdentity | null): number | null =>
  identity?.ctxPerSlot ?? pool.ctx;

const serves = (replica: ReplicaFacts): boolean => replica.state === "ready" || replica.state === "busy";
