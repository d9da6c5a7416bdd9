/**
 * What is known of a pool while the daemon runs: its ready replicas and their clients, its predictor, its
 * totals. Owned by the dispatcher's turn; the forecast and the views of the API read it.
 */
import { assert } from "../domain/assert.ts";
import { OrchestratorError } from "../domain/errors.ts";
import type { EngineIdentity, PoolSpec } from "../domain/pool.ts";
import { withSettingsOf } from "../domain/pool-diff.ts";
import { createPredictor, type PredictorState } from "../domain/predictor.ts";
import type { EngineClient } from "../ports/engine.ts";

export interface ReadyReplica {
  readonly incarnation: number;
  readonly client: EngineClient;
  readonly identity: EngineIdentity;
  /** Of its warm-up: tokens per second. */
  readonly decodeTps: number;
  /** What it was started with: another model than the pool's while that is replaced. */
  readonly spec: PoolSpec;
}

export interface PoolRuntime {
  /** Changes with a reload. */
  spec: PoolSpec;
  predictor: PredictorState;
  readonly ready: Map<string, ReadyReplica>;
  /** Of the replica that became ready last; kept while none is ready. */
  identity: EngineIdentity | null;
  loadingSinceMs: number | null;
  /** Submissions posted and not decided yet. */
  submitting: number;
  done: number;
  failed: number;
  tokensOut: number;
}

const runtimeOf = (spec: PoolSpec): PoolRuntime => ({
  spec,
  predictor: createPredictor(),
  ready: new Map(),
  identity: null,
  loadingSinceMs: null,
  submitting: 0,
  done: 0,
  failed: 0,
  tokensOut: 0,
});

/** To whom a pool was named before it was taken out. */
export const poolGone = (poolId: string): OrchestratorError =>
  new OrchestratorError("POOL_UNAVAILABLE", `pool ${poolId} is no longer configured: submit the task again`, {
    poolId,
  });

export class PoolRuntimes {
  private readonly pools: Map<string, PoolRuntime>;

  constructor(specs: readonly PoolSpec[]) {
    this.pools = new Map(specs.map((spec) => [spec.id, runtimeOf(spec)]));
  }

  add(spec: PoolSpec): void {
    assert(!this.pools.has(spec.id), `pool ${spec.id} is added once`);
    this.pools.set(spec.id, runtimeOf(spec));
  }

  remove(poolId: string): void {
    this.pools.delete(poolId);
  }

  /** Something that its engines need not be replaced for; what runs goes on as it began. */
  configure(spec: PoolSpec): void {
    const pool = this.get(spec.id);
    pool.spec = withSettingsOf(pool.spec, spec);
    for (const [replicaId, ready] of pool.ready)
      pool.ready.set(replicaId, { ...ready, spec: withSettingsOf(ready.spec, spec) });
  }

  has(poolId: string): boolean {
    return this.pools.has(poolId);
  }

  /** Null: the configuration names it no longer; tasks of an earlier run may. */
  find(poolId: string): PoolRuntime | null {
    return this.pools.get(poolId) ?? null;
  }

  /** Null: no such replica is ready. */
  clientOf(replicaId: string): EngineClient | null {
    for (const { ready } of this.pools.values()) {
      const replica = ready.get(replicaId);
      if (replica !== undefined) return replica.client;
    }
    return null;
  }

  /** The pool has another model, or was started again with its own; what was learnt of another one is forgotten. */
  replace(spec: PoolSpec): void {
    const pool = this.get(spec.id);
    const isSame =
      spec.modelRef === pool.spec.modelRef || spec.sameModel?.modelRefs.includes(pool.spec.modelRef);
    if (!isSame) pool.predictor = createPredictor();
    // Its replicas say anew what they are.
    pool.identity = null;
    pool.spec = spec;
  }

  /** @throws POOL_UNAVAILABLE: it was taken out since it was named */
  get(poolId: string): PoolRuntime {
    const pool = this.pools.get(poolId);
    if (pool === undefined) throw poolGone(poolId);
    return pool;
  }
}
