/**
 * Pools that come, change and go under load, through the supervisor, the dispatcher and the mock engine: what is not
 * changed is not touched, what runs goes on, what is removed leaves nothing (ORCHD-CONF-2, ORCHD-CONF-3).
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { MockAdapter } from "../../src/infra/engines/mock.ts";
import type { EngineAdapter, EngineClient } from "../../src/ports/engine.ts";
import type { DrainRecord, ModelRecord } from "../../src/ports/pool-store.ts";
import { StoreError } from "../../src/ports/task-store.ts";
import type { PoolChanges } from "../../src/services/pool-changes.ts";
import type { PoolDrains } from "../../src/services/pool-drain.ts";
import type { PoolReloads } from "../../src/services/pool-reload.ts";
import { PoolSpecs } from "../../src/services/pool-specs.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { MemoryRecords } from "../support/memory-records.ts";
import { SeededEntropy, type VirtualClock } from "../support/virtual-clock.ts";
import { type PoolControl, poolControl } from "./pool-control-rig.ts";
import { mockPool, profile, Rig, replay } from "./rig.ts";

/** Notes each engine that is made; mock:broken does not load. */
class NotedEngines implements EngineAdapter {
  readonly kind = "mock";
  readonly loaded: string[] = [];
  private readonly inner: MockAdapter;
  constructor(clock: VirtualClock) {
    this.inner = new MockAdapter({ clock, entropy: new SeededEntropy(3) });
  }
  plan(): null {
    return null;
  }
  connectInProcess(pool: PoolSpec, replicaId: string): EngineClient {
    this.loaded.push(`${replicaId} ${pool.modelRef}`);
    const load = { kind: "load_failure", nth: null, afterTokens: 0, delayMs: 0 } as const;
    if (pool.modelRef !== "mock:broken" || pool.mock === null)
      return this.inner.connectInProcess(pool, replicaId);
    return this.inner.connectInProcess(
      { ...pool, id: "broken", mock: { ...pool.mock, faults: [load] } },
      replicaId,
    );
  }
}

let rig: Rig;
let engines: NotedEngines;
let specs: PoolSpecs;
let reloads: PoolReloads;
let drains: PoolDrains;
let changes: PoolChanges;
let control: PoolControl;
let models: MemoryRecords<ModelRecord>;
let drainRecords: MemoryRecords<DrainRecord>;

afterEach(async () => {
  control.stop();
  await rig.stop();
});

const a = mockPool({ id: "a", modelRef: "mock:a", queueCapacity: 8 });
const b = mockPool({ id: "b", modelRef: "mock:b", queueCapacity: 8 });
const how = { strategy: "recreate", deadlineMs: 100 } as const;

async function started(
  pools: readonly PoolSpec[] = [a, b],
  prepare: (pool: PoolSpec) => Promise<void> | null = () => null,
): Promise<void> {
  models = new MemoryRecords();
  drainRecords = new MemoryRecords();
  rig = new Rig({
    adapter: (clock) => {
      engines = new NotedEngines(clock);
      return engines;
    },
    specs: (log) => {
      specs = new PoolSpecs(pools, models, log);
      return specs.list;
    },
  });
  await rig.start();
  control = poolControl(rig, specs, { drained: drainRecords, models: { prepare } });
  ({ drains, reloads, changes } = control);
}

/** "" while it is under way, then what is unfinished. */
function want(pools: readonly PoolSpec[], more: Partial<typeof how> = {}): { ended: boolean } {
  const seen = { ended: false };
  void changes.want(pools, { ...how, ...more }).then(() => {
    seen.ended = true;
  });
  return seen;
}

async function accept(poolId: string, more: Partial<TaskSpec> = {}): Promise<TaskRecord> {
  const submitted = rig.submit(rig.spec({ poolId, modelRef: specs.get(poolId).modelRef, ...more }));
  await rig.clock.advance(0);
  return (await submitted).record;
}
/** Null: it was taken. */
async function refusalOf(poolId: string): Promise<string | null> {
  const submitted = rig.submit(rig.spec({ poolId })).then(
    () => null,
    ({ code }: { code: string }) => code,
  );
  await rig.clock.advance(0);
  return await submitted;
}
async function drain(poolId: string): Promise<void> {
  const told = drains.drain(poolId, 0);
  await rig.clock.advance(0);
  await told;
}
const greedy = { ...profile, temperature: 0 };
const last = (record: TaskRecord) => replay(record).at(-1);
const tokensOf = (record: TaskRecord): unknown[] =>
  replay(record).flatMap(({ event, data }) => (event === "token" ? [(data as { i: number }).i] : []));
const incarnations = (poolId: string) =>
  rig.supervisor.snapshots(poolId).map(({ replicaId, incarnation }) => `${replicaId}/${incarnation}`);

describe("a pool that the configuration says nothing new of", () => {
  test("is not touched, while another gets other engines and what runs there goes on (ORCHD-CONF-2)", async () => {
    await started();
    const before = incarnations("a");
    const [here, there] = [
      await accept("a", { maxTokens: 40 }),
      await accept("b", { maxTokens: 40, sampling: greedy }),
    ];
    const waiting = await accept("b");
    await rig.clock.advance(50);
    const seen = want([a, { ...b, slots: 2 }]);
    expect(changes.unfinished).toEqual([{ poolId: "b", change: "changed", problem: null }]);
    await rig.clock.advance(3000);
    expect(seen.ended).toBe(true);
    expect(changes.unfinished).toEqual([]);
    expect(incarnations("a")).toEqual(before);
    expect(engines.loaded).toEqual(["a-0 mock:a", "b-0 mock:b", "b-0b mock:b"]);
    expect(last(here)).toMatchObject({ event: "end", data: { continuations: 0 } });
    expect(last(there)).toMatchObject({ event: "end", data: { continuations: 1, tokens_out: 40 } });
    expect(tokensOf(there)).toEqual([...Array(40).keys()]);
    expect(last(waiting)).toMatchObject({ event: "end" });
    expect(rig.dispatcher.runtime("b").spec.slots).toBe(2);
    expect(rig.fatal).toEqual([]);
  });

  test("keeps the model that a reload gave it, until the file speaks of it again (ORCHD-CONF-2)", async () => {
    await started();
    const request = { modelRef: "mock:given", digest: null, ...how };
    const { ended } = reloads.reload("a", request);
    await rig.clock.advance(1000);
    await ended;
    want([a, { ...b, queueCapacity: 9 }]);
    await rig.clock.advance(1000);
    expect([specs.get("a").modelRef, models.all().length]).toEqual(["mock:given", 1]);
    want([{ ...a, queueCapacity: 9 }, b]);
    await rig.clock.advance(1000);
    expect([specs.get("a").modelRef, models.all().length]).toEqual(["mock:a", 0]);
    expect(rig.dispatcher.view.depth("a").capacity).toBe(9);
    expect(engines.loaded.slice(-2)).toEqual(["a-0b mock:given", "a-0 mock:a"]);
  });

  test("keeps the model where the file now says what the reload gave it", async () => {
    await started();
    const { ended } = reloads.reload("a", { modelRef: "mock:given", digest: null, ...how });
    await rig.clock.advance(1000);
    await ended;
    const seen = want([{ ...a, modelRef: "mock:given" }, b]);
    await rig.clock.advance(100);
    expect([seen.ended, models.all().length, engines.loaded.length]).toEqual([true, 0, 3]);
    expect(specs.configured("a").modelRef).toBe("mock:given");
  });
});

describe("other settings of a pool", () => {
  test("take effect without other engines (ORCHD-CONF-2)", async () => {
    await started();
    const running = await accept("a", { maxTokens: 30 });
    const price = { per1kTokensIn: 1, per1kTokensOut: 2 };
    const timeouts = { ...a.timeouts, interTokenMs: 77 };
    want([
      { ...a, queueCapacity: 1, price, timeouts, preempt: { maxWaitMs: 10, maxCuts: 1, minGainMs: 1 } },
      b,
    ]);
    await rig.clock.advance(10);
    expect(rig.dispatcher.view.depth("a").capacity).toBe(1);
    expect(rig.dispatcher.runtime("a").spec).toMatchObject({ price, timeouts });
    expect(rig.dispatcher.runtime("a").ready.get("a-0")?.spec).toMatchObject({ price, timeouts });
    expect(specs.get("a").price).toEqual(price);
    await accept("a");
    expect(await refusalOf("a")).toBe("ADMISSION_REJECT");
    await rig.clock.advance(2000);
    expect(last(running)).toMatchObject({ event: "end", data: { continuations: 0 } });
    expect(engines.loaded).toHaveLength(2);
  });
});

test("restarts wait as the configuration says now, of engines that run already, too (ORCHD-CONF-4)", async () => {
  await started([a, mockPool({ id: "b", modelRef: "mock:broken" })]);
  const tries = (): number => engines.loaded.filter((line) => line.endsWith("mock:broken")).length;
  rig.supervisor.configureRestarts({
    ...{ backoffMs: 400, backoffMaxMs: 400, breakerFailures: 1000, breakerWindowMs: 400 },
  });
  await rig.clock.advance(2000);
  const before = tries();
  await rig.clock.advance(40_000);
  const often = tries() - before;
  rig.supervisor.configureRestarts({
    ...{ backoffMs: 4000, backoffMaxMs: 4000, breakerFailures: 1000, breakerWindowMs: 4000 },
  });
  await rig.clock.advance(4000);
  const later = tries();
  await rig.clock.advance(40_000);
  const seldom = tries() - later;
  expect([often > 20, seldom > 0, seldom < often / 4]).toEqual([true, true, true]);
});

describe("a pool that is new", () => {
  test("takes tasks, loads where it is preloaded, and stands in its place (ORCHD-CONF-2)", async () => {
    await started();
    const c = mockPool({ id: "c", modelRef: "mock:c" });
    const seen = want([a, c, b]);
    await rig.clock.advance(100);
    expect(seen.ended).toBe(true);
    expect(specs.list.map(({ id }) => id)).toEqual(["a", "c", "b"]);
    expect(engines.loaded.at(-1)).toBe("c-0 mock:c");
    const record = await accept("c");
    await rig.clock.advance(1000);
    expect(last(record)).toMatchObject({ event: "end" });
    want([b, a, c]);
    expect(specs.list.map(({ id }) => id)).toEqual(["b", "a", "c"]);
    want([a, c, b, mockPool({ id: "d", preload: false })]);
    await rig.clock.advance(100);
    expect(rig.supervisor.snapshots("d").map(({ state }) => state)).toEqual(["stopped"]);
    await accept("d");
    await rig.clock.advance(1000);
    expect(engines.loaded.at(-1)).toBe("d-0 mock:words");
  });

  test("that never loaded gets other engines at once", async () => {
    await started([a, mockPool({ id: "d", preload: false })]);
    want([a, mockPool({ id: "d", preload: false, modelRef: "mock:e", replicas: 2 })]);
    await rig.clock.advance(0);
    expect(changes.unfinished).toEqual([]);
    expect(rig.supervisor.snapshots("d").map(({ replicaId, state }) => [replicaId, state])).toEqual([
      ["d-0", "stopped"],
      ["d-1", "stopped"],
    ]);
    const record = await accept("d");
    await rig.clock.advance(1000);
    expect(last(record)).toMatchObject({ event: "end" });
    expect(engines.loaded.slice(1).sort()).toEqual(["d-0 mock:e", "d-1 mock:e"]);
  });
});

describe("a pool that is no longer named", () => {
  test("takes nothing, ends what waits, lets go on what runs, then leaves nothing (ORCHD-CONF-3)", async () => {
    await started();
    const running = await accept("b", { maxTokens: 8 });
    const waiting = await accept("b");
    const elsewhere = await accept("a", { maxTokens: 60 });
    const seen = want([a]);
    await rig.clock.advance(10);
    expect(specs.list.map(({ id }) => id)).toEqual(["a"]);
    expect(last(waiting)).toMatchObject({
      event: "error",
      data: {
        code: "POOL_UNAVAILABLE",
        retriable: true,
        message: expect.stringContaining("no longer configured"),
      },
    });
    expect(await refusalOf("b")).toBe("POOL_UNAVAILABLE");
    expect(seen.ended).toBe(false);
    await rig.clock.advance(500);
    expect(last(running)).toMatchObject({ event: "end", data: { tokens_out: 8 } });
    expect(seen.ended).toBe(true);
    expect(await refusalOf("b")).toBe("POOL_UNAVAILABLE");
    expect(() => rig.dispatcher.runtime("b")).toThrow("no longer configured");
    expect(() => rig.dispatcher.view.depth("b")).toThrow();
    expect(() => rig.supervisor.snapshots("b")).toThrow();
    await rig.clock.advance(1000);
    expect(last(elsewhere)).toMatchObject({ event: "end" });
    expect(rig.fatal).toEqual([]);
  });

  test("ends at the deadline what still runs (ORCHD-CONF-3)", async () => {
    await started();
    const running = await accept("b", { maxTokens: 1000 });
    const seen = want([a]);
    await rig.clock.advance(90);
    expect(running.finishedMs).toBeNull();
    await rig.clock.advance(200);
    expect(last(running)).toMatchObject({ event: "error", data: { code: "POOL_UNAVAILABLE" } });
    expect(seen.ended).toBe(true);
    expect(rig.fatal).toEqual([]);
  });

  test("and is named again before it is gone comes back once it is, not drained any more", async () => {
    await started();
    await drain("b");
    const running = await accept("a", { maxTokens: 1000 });
    want([b]);
    await rig.clock.advance(10);
    want([a, b]);
    expect(specs.list.map(({ id }) => id)).toEqual(["b"]);
    await rig.clock.advance(1000);
    expect(last(running)).toMatchObject({ event: "error", data: { code: "POOL_UNAVAILABLE" } });
    expect(specs.list.map(({ id }) => id)).toEqual(["a", "b"]);
    const record = await accept("a");
    await rig.clock.advance(1000);
    expect(last(record)).toMatchObject({ event: "end" });
    expect(drains.isDrained("b")).toBe(true);
    want([a]);
    await rig.clock.advance(1000);
    want([a, b]);
    await rig.clock.advance(1000);
    expect([drains.isDrained("b"), drainRecords.all()]).toEqual([false, []]);
    const again = await accept("b");
    await rig.clock.advance(1000);
    expect(last(again)).toMatchObject({ event: "end" });
  });

  test("goes only when another takes tasks: at each turn there is a pool", async () => {
    await started();
    const sizes = new Set<number>();
    rig.dispatcher.afterTurn.push(() => {
      sizes.add(specs.list.length);
    });
    const c = mockPool({ id: "c" });
    want([c]);
    await rig.clock.advance(1000);
    expect(specs.list).toEqual([c]);
    want([a]);
    await rig.clock.advance(1000);
    expect(specs.list).toEqual([a]);
    expect(sizes.has(0)).toBe(false);
  });
});

describe("a step that fails", () => {
  test("leaves the pool as it was, is told, and is tried again when something is wanted anew (ORCHD-CONF-2)", async () => {
    await started();
    const running = await accept("b", { maxTokens: 20 });
    const broken = { ...b, modelRef: "mock:broken" };
    const seen = want([a, broken]);
    await rig.clock.advance(3000);
    expect(seen.ended).toBe(true);
    expect(changes.unfinished).toMatchObject([
      { poolId: "b", change: "changed", problem: expect.stringContaining("keeps mock:b") },
    ]);
    expect(rig.log.of("pool_change_failed")).toHaveLength(1);
    expect(specs.get("b").modelRef).toBe("mock:b");
    expect(last(running)).toMatchObject({ event: "end" });
    const later = await accept("b");
    await rig.clock.advance(1000);
    expect(last(later)).toMatchObject({ event: "end" });
    const loads = engines.loaded.length;
    want([a, broken]);
    await rig.clock.advance(3000);
    expect(engines.loaded.length).toBeGreaterThan(loads);
    want([a, b]);
    await rig.clock.advance(0);
    expect(changes.unfinished).toEqual([]);
  });

  test("for the disk's sake, too", async () => {
    await started();
    models.remove = () => {
      throw new StoreError("io", "no room");
    };
    want([{ ...a, queueCapacity: 3 }]);
    await rig.clock.advance(1000);
    expect(changes.unfinished.map(({ poolId, problem }) => [poolId, problem])).toEqual([
      ["a", "no room"],
      ["b", "no room"],
    ]);
    expect(specs.list).toEqual([a, b]);
  });
});

describe("what is wanted last", () => {
  test("counts, whatever is under way", async () => {
    await started();
    const running = await accept("b", { maxTokens: 60 });
    const first = want([a, { ...b, modelRef: "mock:c" }]);
    await rig.clock.advance(10);
    const second = want([a, { ...b, modelRef: "mock:d" }]);
    await rig.clock.advance(5000);
    expect([first.ended, second.ended]).toEqual([true, true]);
    expect(specs.get("b").modelRef).toBe("mock:d");
    expect(last(running)).toMatchObject({ event: "end" });
  });

  test("is not held up by a model that is fetched for what was wanted before", async () => {
    const never = new Promise<void>(() => undefined);
    await started([a, b], ({ modelRef }) => (modelRef === "mock:far" ? never : null));
    want([a, { ...b, modelRef: "mock:far" }]);
    await rig.clock.advance(1000);
    expect(changes.unfinished).toEqual([{ poolId: "b", change: "changed", problem: null }]);
    const seen = want([a, { ...b, modelRef: "mock:near" }]);
    await rig.clock.advance(1000);
    expect([seen.ended, specs.get("b").modelRef]).toEqual([true, "mock:near"]);
  });

  test("waits for a reload that somebody asked for", async () => {
    await started();
    const { ended } = reloads.reload("b", { modelRef: "mock:given", digest: null, ...how });
    want([a, { ...b, slots: 2 }]);
    await rig.clock.advance(3000);
    await ended;
    expect(engines.loaded.slice(2)).toEqual(["b-0b mock:given", "b-0 mock:b"]);
    expect(specs.get("b")).toMatchObject({ slots: 2, modelRef: "mock:b" });
  });

  test("reaches a drained pool, which stays drained", async () => {
    await started();
    await drain("b");
    want([a, { ...b, modelRef: "mock:c" }]);
    await rig.clock.advance(1000);
    expect([specs.get("b").modelRef, rig.dispatcher.view.isDrained("b")]).toEqual(["mock:c", true]);
    const record = await accept("b", { modelRef: "mock:c" });
    await rig.clock.advance(1000);
    expect(record.startedMs).toBeNull();
    void drains.resume("b");
    await rig.clock.advance(1000);
    expect(last(record)).toMatchObject({ event: "end" });
  });
});
