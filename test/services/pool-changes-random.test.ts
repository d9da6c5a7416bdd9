/**
 * The configuration changes at random moments, under load, over engines that crash, while operators drain and reload: every
 * task that was taken ends once, what it was sent has no gap, every pool is in the end what is wanted, and one that is
 * removed leaves nothing. A seed that fails is in the message. `CHANGES_SEEDS` for more.
 */
import { expect, test } from "bun:test";
import type { PoolSpec } from "../../src/domain/pool.ts";
import { poolChange } from "../../src/domain/pool-diff.ts";
import { MockAdapter } from "../../src/infra/engines/mock.ts";
import type { EngineAdapter, EngineClient } from "../../src/ports/engine.ts";
import { PoolSpecs } from "../../src/services/pool-specs.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { MemoryRecords } from "../support/memory-records.ts";
import { SeededEntropy, type VirtualClock } from "../support/virtual-clock.ts";
import { poolControl } from "./pool-control-rig.ts";
import { mockPool, profile, Rig, replay } from "./rig.ts";

const seeds = Number(process.env.CHANGES_SEEDS ?? 30);

/** Now and then a generation crashes its engine; mock:broken does not load. */
class Unsteady implements EngineAdapter {
  readonly kind = "mock";
  private readonly inner: MockAdapter;
  private starts = 0;
  constructor(
    clock: VirtualClock,
    private readonly entropy: SeededEntropy,
    private readonly calm: () => boolean,
  ) {
    this.inner = new MockAdapter({ clock, entropy });
  }
  plan(): null {
    return null;
  }
  connectInProcess(pool: PoolSpec, replicaId: string): EngineClient {
    const id = `${pool.id}-${this.starts++}`;
    const draw = this.calm() ? 1 : this.entropy.unit();
    const crash = { kind: "crash", nth: 1 + Math.floor(draw * 12), afterTokens: 3, delayMs: 0 } as const;
    const broken = { kind: "load_failure", nth: null, afterTokens: 0, delayMs: 0 } as const;
    const faults = pool.modelRef === "mock:broken" ? [broken] : draw < 0.5 ? [crash] : [];
    const mock = { tokenMs: 5, prefillMsPerToken: 1, loadMs: 20, faults };
    return this.inner.connectInProcess({ ...pool, id, mock }, replicaId);
  }
}

interface Seen {
  added: number;
  removed: number;
  replaced: number;
  configured: number;
  failed: number;
  untouched: number;
  end: number;
  POOL_UNAVAILABLE: number;
  WORKER_RESET: number;
  CANCELED: number;
}

async function live(seed: number, seen: Seen): Promise<void> {
  const entropy = new SeededEntropy(seed);
  const int = (n: number): number => Math.floor(entropy.unit() * n);
  let calm = false;
  const shape = (id: string): PoolSpec =>
    mockPool({
      id,
      modelRef: ["mock:words", "mock:other", "mock:third", "mock:broken"][int(calm ? 3 : 4)] ?? "mock:words",
      replicas: 1 + int(2),
      slots: 1 + int(3),
      queueCapacity: 1 + int(16),
      preload: int(3) > 0,
      preempt: int(2) === 0 ? { maxWaitMs: 20, maxCuts: 2, minGainMs: 5 } : null,
    });
  /** A few of the pools that there are are as they were. */
  const draw = (before: readonly PoolSpec[]): PoolSpec[] => {
    const pools = ["a", "b", "c", "d"].flatMap((id) => {
      const was = before.find((pool) => pool.id === id);
      if (int(3) === 0) return [];
      if (was === undefined || int(3) === 0) return [shape(id)];
      return [
        int(2) === 0
          ? was
          : { ...was, queueCapacity: 1 + int(16), price: { per1kTokensIn: int(3), per1kTokensOut: 0 } },
      ];
    });
    return pools.length === 0 ? [shape("a")] : pools;
  };
  let wanted = draw([]);
  let specs: PoolSpecs | null = null;
  const rig = new Rig({
    adapter: (clock) => new Unsteady(clock, entropy, () => calm),
    specs: (log) => {
      specs = new PoolSpecs(wanted, new MemoryRecords(), log);
      return specs.list;
    },
  });
  await rig.start(200);
  if (specs === null) throw new Error("the rig asked for no pools");
  const pools: PoolSpecs = specs;
  const { clock, dispatcher, supervisor } = rig;
  const { drains, reloads, changes } = poolControl(rig, pools);
  const anyPool = (): PoolSpec => {
    const pool = pools.list[int(pools.list.length)];
    if (pool === undefined) throw new Error("there is always a pool that takes tasks");
    return pool;
  };
  const records: TaskRecord[] = [];
  const task = (): void => {
    const { id: poolId, modelRef } = anyPool();
    const spec = rig.spec({
      ...{ poolId, modelRef, maxTokens: 1 + int(40) },
      priority: int(2) === 0 ? "batch" : "interactive",
      determinism: int(6) === 0 ? "strict" : "best_effort",
      sessionId: int(3) === 0 ? `s${int(4)}-${records.length >> 3}` : null,
      sampling: int(2) === 0 ? profile : { ...profile, temperature: 0 },
    });
    rig.submit(spec).then(
      ({ record }) => records.push(record),
      () => undefined,
    );
  };
  let settled = 0;
  let tries = 0;
  const want = (next: readonly PoolSpec[]): void => {
    for (const pool of next) {
      const have = pools.find(pool.id);
      const change = have === null ? null : poolChange(have, pool);
      if (have === null) seen.added++;
      else if (change === null) seen.untouched++;
      else seen[change.reach === "engines" ? "replaced" : "configured"]++;
    }
    seen.removed += pools.list.filter(({ id }) => next.every((pool) => pool.id !== id)).length;
    wanted = [...next];
    tries++;
    const how = { strategy: int(2) === 0 ? ("surge" as const) : ("recreate" as const), deadlineMs: int(120) };
    void changes.want(next, how).then(() => settled++);
  };
  for (let step = 0; step < 150; step++) {
    const op = int(24);
    if (op < 14) task();
    else if (op < 17) want(draw(wanted));
    else if (op === 17) {
      const { id, modelRef } = anyPool();
      if (!reloads.isReloading(id) && !drains.isDrained(id))
        reloads
          .reload(id, {
            modelRef: int(2) === 0 ? modelRef : "mock:given",
            digest: null,
            strategy: "recreate",
            deadlineMs: int(90),
          })
          .ended.catch(() => undefined);
    } else if (op === 18) {
      const { id } = anyPool();
      if (!reloads.isReloading(id)) void drains.drain(id, int(60));
    } else if (op === 19) void drains.resume(anyPool().id);
    else if (op === 20 && records.length > 0)
      void dispatcher.cancel(records[int(records.length)]?.spec.taskId ?? "", "client");
    await clock.advance(int(40));
  }
  seen.failed += rig.log.of("pool_change_failed").length;
  // At last what is wanted can be had.
  calm = true;
  want(wanted.map((pool) => (pool.modelRef === "mock:broken" ? { ...pool, modelRef: "mock:words" } : pool)));
  await clock.advance(1000);
  for (const { id } of pools.list) void drains.resume(id);
  await clock.advance(60_000);

  expect(rig.fatal).toEqual([]);
  expect([settled, changes.unfinished]).toEqual([tries, []]);
  expect(pools.list.map(({ id }) => id)).toEqual(wanted.map(({ id }) => id));
  for (const pool of wanted) {
    expect(poolChange(pools.configured(pool.id), pool)).toBeNull();
    expect(dispatcher.view.depth(pool.id)).toEqual({
      interactive: 0,
      batch: 0,
      capacity: pool.queueCapacity,
    });
    expect(dispatcher.view.slotsBusyIn(pool.id)).toBe(0);
    for (const { state } of supervisor.snapshots(pool.id)) expect(["ready", "stopped"]).toContain(state);
  }
  for (const id of ["a", "b", "c", "d"].filter((name) => wanted.every((pool) => pool.id !== name))) {
    expect(() => supervisor.snapshots(id)).toThrow();
    expect(() => dispatcher.view.depth(id)).toThrow();
    expect(() => dispatcher.runtime(id)).toThrow();
  }
  for (const record of records) {
    const events = replay(record);
    const last = events.at(-1);
    const said = events.flatMap(({ event, data }) => (event === "token" ? [data.i] : []));
    expect(said).toEqual(said.map((_, at) => at));
    expect(events.filter(({ event }) => event === "end" || event === "error")).toHaveLength(1);
    const how = last?.event === "end" ? "end" : String(last?.data.code);
    expect(["end", "POOL_UNAVAILABLE", "WORKER_RESET", "CANCELED"]).toContain(how);
    seen[how as "end"]++;
  }
  expect(rig.runner.size).toBe(0);
  changes.stop();
  reloads.stop();
  drains.stop();
  await rig.stop();
}

test("the configuration changes at random moments and no task is lost (ORCHD-CONF-2, ORCHD-CONF-3)", async () => {
  const seen: Seen = {
    ...{ added: 0, removed: 0, replaced: 0, configured: 0, failed: 0, untouched: 0 },
    ...{ end: 0, POOL_UNAVAILABLE: 0, WORKER_RESET: 0, CANCELED: 0 },
  };
  for (let seed = 1; seed <= seeds; seed++) {
    try {
      await live(seed, seen);
    } catch (error) {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.stack : String(error)}`);
    }
  }
  console.info(`pool changes: ${JSON.stringify(seen)}`);
  // Rules that nothing puts to the test hold easily.
  for (const [what, count] of Object.entries(seen)) expect([what, count > 0]).toEqual([what, true]);
}, 120_000);
