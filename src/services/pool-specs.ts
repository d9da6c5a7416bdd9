/**
 * What each pool is now: as the configuration says, with the model that a reload gave it. Made at the start; the list is
 * shared by whoever looks at pools, and changes in place with a reload and with the configuration.
 *
 * Always holds: a model that a reload gave a pool stays across restarts until the configuration of that pool changes.
 */
import { assert } from "../domain/assert.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { KeptRecords, ModelRecord } from "../ports/pool-store.ts";
import type { Log } from "../ports/telemetry.ts";

export class PoolSpecs {
  readonly #configured: Map<string, PoolSpec>;
  readonly #now: PoolSpec[];

  /** @throws StoreError */
  constructor(
    configured: readonly PoolSpec[],
    private readonly store: KeptRecords<ModelRecord>,
    log: Log,
  ) {
    this.#configured = new Map(configured.map((pool) => [pool.id, pool]));
    const kept = new Map(store.all().map((record) => [record.poolId, record]));
    this.#now = configured.map((pool) => {
      const record = kept.get(pool.id);
      if (record === undefined) return pool;
      const { modelRef, modelPath, sameModel = null } = record;
      if (record.configured === settingsOf(pool)) return { ...pool, modelRef, modelPath, sameModel };
      store.remove(pool.id);
      log.warn("pool_model_configured", {
        pool_id: pool.id,
        human: `the configuration of pool ${pool.id} has changed: its model is ${pool.modelRef} again, not ${modelRef}, which a reload had given it`,
      });
      return pool;
    });
  }

  /** In the order of the configuration; changes with reloads. */
  get list(): readonly PoolSpec[] {
    return this.#now;
  }

  get(poolId: string): PoolSpec {
    const pool = this.#now.find(({ id }) => id === poolId);
    assert(pool !== undefined, `pool ${poolId} exists`);
    return pool;
  }

  /** As the configuration says. */
  configured(poolId: string): PoolSpec {
    const pool = this.#configured.get(poolId);
    assert(pool !== undefined, `pool ${poolId} is configured`);
    return pool;
  }

  /** Null: there is none of that name. */
  find(poolId: string): PoolSpec | null {
    return this.#configured.get(poolId) ?? null;
  }

  /** It is seen from now on. */
  add(spec: PoolSpec): void {
    assert(!this.#configured.has(spec.id), `pool ${spec.id} is added once`);
    this.#configured.set(spec.id, spec);
    this.#now.push(spec);
  }

  /** In the order of the configuration; those that it names no longer come last. */
  arrange(order: readonly string[]): void {
    const placeOf = ({ id }: PoolSpec): number => (order.includes(id) ? order.indexOf(id) : order.length);
    this.#now.sort((a, b) => placeOf(a) - placeOf(b));
  }

  /** Nobody sees it any more, nor the model that a reload gave it. @throws StoreError, and nothing has changed */
  remove(poolId: string): void {
    this.store.remove(poolId);
    this.#configured.delete(poolId);
    this.#now.splice(this.#placeOf(poolId), 1);
  }

  /** The configuration says this of it now, and so it is; on the disk as `replace`. @throws StoreError */
  configure(spec: PoolSpec): void {
    // What a reload found of the model's bytes is no setting, and outlives a restart.
    const { sameModel = null, ...configured } = spec;
    const { id: poolId, modelRef, modelPath } = spec;
    if (sameModel === null) this.store.remove(poolId);
    else this.store.put({ poolId, modelRef, modelPath, configured: settingsOf(configured), sameModel });
    this.#configured.set(poolId, configured);
    this.#now[this.#placeOf(spec.id)] = spec;
  }

  #placeOf(poolId: string): number {
    const place = this.#now.findIndex(({ id }) => id === poolId);
    assert(place >= 0, `pool ${poolId} exists`);
    return place;
  }

  /** On the disk when it returns. @throws StoreError, and nothing has changed */
  replace(spec: PoolSpec): void {
    const { id: poolId, modelRef, modelPath, sameModel = null } = spec;
    const configured = this.configured(poolId);
    const isConfigured = configured.modelRef === modelRef && configured.modelPath === modelPath;
    if (isConfigured && sameModel === null) this.store.remove(poolId);
    else this.store.put({ poolId, modelRef, modelPath, configured: settingsOf(configured), sameModel });
    this.#now[this.#placeOf(poolId)] = spec;
  }
}

/** SHA-256, hex, of all that the configuration says of a pool, but keys. */
function settingsOf(pool: PoolSpec): string {
  const remote = pool.remote === null ? null : { ...pool.remote, key: pool.remote.key?.name ?? null };
  return new Bun.CryptoHasher("sha256").update(JSON.stringify({ ...pool, remote })).digest("hex");
}
