/**
 * Pools that share memory, over the mock engine and a virtual clock: who is loaded, who makes room, how long that takes,
 * what never fits, what is lent (ORCHD-MEM-1 to ORCHD-MEM-6).
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { LendRecord } from "../../src/ports/pool-store.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { MemoryRecords } from "../support/memory-records.ts";
import { mockPool, Rig, type RigMemory, type RigOptions } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const shared = (bytes: number, more: Partial<RigMemory> = {}): RigMemory => ({
  devices: [{ id: "host", memoryBytes: bytes, reserveBytes: null }],
  ...more,
});

/** Ten bytes, a second to load, 10 ms a token. */
const onDemand = (id: string, more: Partial<PoolSpec> = {}, bytes = 10): PoolSpec =>
  mockPool({
    id,
    preload: false,
    devices: ["host"],
    queueCapacity: 100,
    timeouts: { loadMs: 10_000, firstTokenMs: 60_000, interTokenMs: 60_000, stopGraceMs: 100 },
    mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 1000, memoryBytes: bytes, faults: [] },
    ...more,
  });

const started = async (options: RigOptions): Promise<Rig> => {
  rig = await new Rig(options).start(10);
  return rig;
};

/** A task of `ms` for that pool; nobody watches it. */
async function submit(poolId: string, ms = 100): Promise<TaskRecord> {
  const accepted = rig.submit(rig.spec({ poolId, maxTokens: Math.max(1, ms / 10) }));
  await rig.clock.advance(0);
  return (await accepted).record;
}

const residence = (poolId: string): string | undefined => rig.keeper?.view(poolId)?.residence;
const loads = (): unknown[] => rig.metrics.of("poolLoaded").map(([labels]) => labels);
const unloads = (): unknown[] => rig.metrics.of("poolUnloaded").map(([labels]) => labels);

describe("on demand", () => {
  test("a pool is loaded at its first task and unloaded once it rested for long (ORCHD-MEM-1)", async () => {
    await started({ pools: [onDemand("a", { idleUnloadMs: 5000 })], memory: shared(10) });
    expect(residence("a")).toBe("unloaded");
    const task = await submit("a");
    expect(residence("a")).toBe("loading");
    expect(task.state).toBe("queued");
    await rig.clock.advance(1200);
    expect([residence("a"), task.state]).toEqual(["loaded", "done"]);
    await rig.clock.advance(4000);
    expect(residence("a")).toBe("loaded");
    await rig.clock.advance(1500);
    expect(residence("a")).toBe("unloaded");
    expect(rig.supervisor.snapshots("a").map(({ state }) => state)).toEqual(["stopped"]);
    expect(loads()).toEqual([{ poolId: "a", reason: "wanted", tookMs: expect.any(Number) }]);
    expect(unloads()).toEqual([{ poolId: "a", reason: "idle" }]);
    const again = await submit("a");
    await rig.clock.advance(1200);
    expect(again.state).toBe("done");
  });

  test("it is unloaded where timers are a little early, too", async () => {
    rig = new Rig({ pools: [onDemand("a", { idleUnloadMs: 5000 })], memory: shared(10) });
    const set = rig.clock.setTimer.bind(rig.clock);
    rig.clock.setTimer = (ms, fn) => set(ms > 1 ? ms - 0.4 : ms, fn);
    await rig.start(10);
    await submit("a");
    await rig.clock.advance(8000);
    expect(residence("a")).toBe("unloaded");
  });

  test("one with preload is loaded at the start and stays", async () => {
    await started({ pools: [onDemand("a", { preload: true })], memory: shared(10) });
    await rig.clock.advance(1200);
    expect(residence("a")).toBe("loaded");
    await rig.clock.advance(3_600_000);
    expect(residence("a")).toBe("loaded");
  });

  test("what a task is told counts the load, from loads that were measured (ORCHD-MEM-4)", async () => {
    await started({ pools: [onDemand("a", { idleUnloadMs: 1000 })], memory: shared(10) });
    await submit("a");
    await rig.clock.advance(5000);
    expect(residence("a")).toBe("unloaded");
    const { promise } = await submit("a");
    expect(promise.startMs).toBeGreaterThan(900);
    expect(promise.startMs).toBeLessThan(1300);
  });
});

describe("one place, several pools", () => {
  const abc = () => [onDemand("a"), onDemand("b"), onDemand("c")];

  test("an idle one makes room at once; waiting work is grouped (ORCHD-MEM-2)", async () => {
    await started({ pools: abc(), memory: shared(10) });
    const tasks: TaskRecord[] = [];
    for (let round = 0; round < 5; round++)
      for (const poolId of ["a", "b", "c"]) tasks.push(await submit(poolId, 100));
    expect(["a", "b", "c"].map(residence)).toEqual(["loading", "waiting_for_memory", "waiting_for_memory"]);
    await rig.clock.advance(10_000);
    expect(tasks.every(({ state }) => state === "done")).toBe(true);
    expect(loads()).toHaveLength(3);
    expect(unloads()).toEqual([
      { poolId: "a", reason: "evicted" },
      { poolId: "b", reason: "evicted" },
    ]);
  });

  test("one in use finishes what runs before it goes, after the bounded wait (ORCHD-MEM-2)", async () => {
    await started({ pools: abc(), memory: shared(10) });
    const first = await submit("a", 6000);
    const behind = await submit("a", 6000);
    await rig.clock.advance(1200);
    const other = await submit("b", 100);
    const later = await submit("a", 100);
    await rig.clock.advance(4800);
    // Both that waited when it was loaded have their turn first.
    expect([first.state, residence("a")]).toEqual(["running", "loaded"]);
    await rig.clock.advance(1500);
    expect([first.state, behind.state, residence("a")]).toEqual(["done", "running", "loaded"]);
    await rig.clock.advance(6000);
    // Now its turn is over: the one that came later waits for its next.
    expect([behind.state, later.state]).toEqual(["done", "queued"]);
    await rig.clock.advance(2000);
    expect([other.state, residence("b")]).toEqual(["done", expect.any(String)]);
    await rig.clock.advance(3000);
    expect([later.state, later.attempts]).toEqual(["done", 1]);
    expect([first.attempts, behind.attempts]).toEqual([1, 1]);
  });

  test("a task for a pool that waits for memory is told more than a load (ORCHD-MEM-4)", async () => {
    await started({ pools: abc(), memory: shared(10) });
    await submit("b", 100);
    await rig.clock.advance(2000);
    await submit("a", 4000);
    await rig.clock.advance(1700);
    expect(residence("a")).toBe("loaded");
    const waiting = await submit("b", 100);
    expect(waiting.promise.startMs).toBeGreaterThan(1200);
    await rig.clock.advance(10_000);
    expect(waiting.state).toBe("done");
  });

  test("two that fit together stay together", async () => {
    await started({ pools: abc(), memory: shared(20) });
    for (const poolId of ["a", "b", "a", "b"]) {
      await submit(poolId, 100);
      await rig.clock.advance(1500);
    }
    expect(["a", "b"].map(residence)).toEqual(["loaded", "loaded"]);
    expect(unloads()).toEqual([]);
  });
});

describe("what never fits", () => {
  test("is refused with what it needs and what there is (ORCHD-MEM-3)", async () => {
    await started({
      pools: [onDemand("big", {}, 3 * 2 ** 30), onDemand("small", {}, 2 ** 20)],
      memory: shared(2 ** 30),
    });
    const refusal = rig.submit(rig.spec({ poolId: "big" })).catch((error: unknown) => error);
    await rig.clock.advance(0);
    expect(await refusal).toMatchObject({
      code: "POOL_UNAVAILABLE",
      message: expect.stringContaining("it needs 3 GiB of host, which has 1 GiB for models"),
    });
    expect(rig.keeper?.view("big")?.problem?.cause).toBe("out_of_host_memory");
    await rig.clock.advance(60_000);
    expect(rig.supervisor.snapshots("big").map(({ incarnation }) => incarnation)).toEqual([0]);
    const task = await submit("small");
    await rig.clock.advance(2000);
    expect(task.state).toBe("done");
  });
});

describe("loads that fail", () => {
  const failing = (id: string, more: Partial<PoolSpec> = {}) =>
    onDemand(id, {
      mock: {
        ...{ tokenMs: 10, prefillMsPerToken: 0, loadMs: 100, memoryBytes: 10 },
        faults: [{ kind: "load_failure", nth: null, afterTokens: 0, delayMs: 0 }],
      },
      ...more,
    });

  test("give their memory back, and others are loaded (ORCHD-MEM-5)", async () => {
    await started({ pools: [failing("a"), onDemand("b")], memory: shared(10) });
    const doomed = await submit("a");
    const other = await submit("b");
    await rig.clock.advance(20_000);
    expect([doomed.state, doomed.error?.code]).toEqual(["failed", "POOL_UNAVAILABLE"]);
    expect(other.state).toBe("done");
    expect(residence("a")).toBe("unloaded");
    expect(unloads()).toContainEqual({ poolId: "a", reason: "failed" });
  });

  test("one with preload is tried again, not in a row", async () => {
    await started({ pools: [failing("a", { preload: true })], memory: shared(10) });
    await rig.clock.advance(60_000);
    const tries = rig.supervisor.snapshots("a")[0]?.incarnation ?? 0;
    expect(tries).toBeGreaterThan(4);
    expect(tries).toBeLessThan(20);
  });
});

test("a pool that failed is tried when somebody asks for it, as the breaker spaces it (ORCHD-MEM-5)", async () => {
  const faults = [1, 2, 3].map((nth) => ({
    ...({ kind: "load_failure", nth, afterTokens: 0, delayMs: 0 } as const),
  }));
  const mock = { tokenMs: 10, prefillMsPerToken: 0, loadMs: 100, memoryBytes: 10, faults };
  await started({ pools: [onDemand("a", { mock })], memory: shared(10) });
  const doomed = await submit("a");
  await rig.clock.advance(3000);
  expect(doomed.error?.code).toBe("POOL_UNAVAILABLE");
  const refusal = rig.submit(rig.spec({ poolId: "a" })).catch((error: unknown) => error);
  await rig.clock.advance(0);
  expect(await refusal).toMatchObject({ code: "POOL_UNAVAILABLE" });
  await rig.clock.advance(3000);
  expect(residence("a")).toBe("loaded");
  const task = await submit("a");
  await rig.clock.advance(200);
  expect(task.state).toBe("done");
});

describe("a model that is not there yet", () => {
  /** Fetched in two seconds, 10 bytes then; or never. */
  const fetching = (comes: boolean) => {
    const seen = { there: false, asked: 0 };
    const arrive = Promise.withResolvers<void>();
    const memory = shared(10, {
      needs: {
        of: ({ id }) => (id === "a" && !seen.there ? null : new Map([["host", 10]])),
        learn: () => undefined,
      },
      models: {
        prepare: ({ id }) => {
          if (id !== "a" || seen.there) return null;
          seen.asked++;
          return arrive.promise;
        },
      },
    });
    const come = (): void => {
      seen.there = comes;
      arrive.resolve();
    };
    return { seen, memory, come };
  };

  test("is fetched before it takes anybody's place, once", async () => {
    const { seen, memory, come } = fetching(true);
    await started({ pools: [onDemand("a"), onDemand("b")], memory });
    await submit("b");
    await rig.clock.advance(1200);
    const first = await submit("a");
    const second = await submit("a");
    await rig.clock.advance(5000);
    expect([residence("a"), residence("b"), seen.asked]).toEqual(["unloaded", "loaded", 1]);
    come();
    await rig.clock.advance(3000);
    expect([first.state, second.state, residence("a"), residence("b")]).toEqual([
      ...["done", "done", "loaded", "unloaded"],
    ]);
  });

  test("of a pool with preload is fetched at the start; what does not come, its load tells", async () => {
    const { seen, memory, come } = fetching(false);
    await started({ pools: [onDemand("a", { preload: true })], memory });
    expect([residence("a"), seen.asked]).toEqual(["unloaded", 1]);
    come();
    await rig.clock.advance(3000);
    expect(residence("a")).toBe("loaded");
  });
});

test("pools that come, change and go while the daemon runs take part", async () => {
  const pools = [onDemand("a")];
  await started({ pools, memory: shared(10) });
  await submit("a");
  await rig.clock.advance(1500);
  const late = onDemand("late", { devices: ["gpu-3", "host"] });
  void rig.dispatcher.roster.add(late, false);
  rig.supervisor.addPool(late);
  pools.push(late);
  await rig.clock.advance(0);
  expect(residence("late")).toBe("unloaded");
  expect(rig.lending?.list().map(({ id, totalBytes }) => [id, totalBytes])).toEqual([
    ["host", 10],
    ["gpu-3", null],
  ]);
  const task = await submit("late");
  await rig.clock.advance(2500);
  expect([task.state, residence("late"), residence("a")]).toEqual(["done", "loaded", "unloaded"]);
  const restless = { ...late, idleUnloadMs: 1000 };
  pools[1] = restless;
  rig.supervisor.configurePool(restless);
  await rig.clock.advance(2000);
  expect(residence("late")).toBe("unloaded");
  await submit("late");
  await rig.clock.advance(1300);
  expect(residence("late")).toBe("loaded");
  void rig.dispatcher.roster.leave("late", "it goes");
  void rig.supervisor.removePool("late");
  pools.pop();
  const waiting = await submit("a");
  await rig.clock.advance(200);
  void rig.dispatcher.roster.remove("late");
  await rig.clock.advance(2000);
  expect([rig.keeper?.view("late"), waiting.state]).toEqual([null, "done"]);
});

describe("lending (ORCHD-MEM-6)", () => {
  const pair = () => [onDemand("a", { preload: true }), onDemand("b", { preload: true })];

  test("what runs is finished or cut at the deadline, and goes on after the return", async () => {
    await started({ pools: pair(), memory: shared(20) });
    await rig.clock.advance(1200);
    const short = await submit("a", 500);
    const long = await submit("b", 5000);
    await rig.clock.advance(100);
    rig.lending?.lend("host", null, 2000);
    await rig.clock.advance(1000);
    expect([short.state, residence("a"), residence("b")]).toEqual(["done", "unloaded", "loaded"]);
    const meanwhile = await submit("a", 100);
    await rig.clock.advance(1500);
    expect([long.state, residence("b")]).toEqual(["queued", "waiting_for_memory"]);
    await rig.clock.advance(60_000);
    expect([meanwhile.state, long.state]).toEqual(["queued", "queued"]);
    expect(rig.lending?.get("host")).toMatchObject({ freeBytes: 0, lentBytes: 20 });
    rig.lending?.giveBack("host");
    await rig.clock.advance(10_000);
    expect([meanwhile.state, long.state]).toEqual(["done", "done"]);
    expect(long.continuations).toBe(1);
    expect(unloads()).toEqual([
      { poolId: "a", reason: "lent" },
      { poolId: "b", reason: "lent" },
    ]);
  });

  test("of a part only as much leaves as has to", async () => {
    await started({ pools: pair(), memory: shared(20) });
    await rig.clock.advance(1200);
    rig.lending?.lend("host", 10, 1000);
    await rig.clock.advance(2000);
    expect([residence("a"), residence("b")].sort()).toEqual(["loaded", "unloaded"]);
    rig.lending?.giveBack("host");
    await rig.clock.advance(2000);
    expect([residence("a"), residence("b")]).toEqual(["loaded", "loaded"]);
  });

  test("twice is a conflict, an unknown device is not found", async () => {
    await started({ pools: pair(), memory: shared(20) });
    rig.lending?.lend("host", null, 0);
    expect(() => rig.lending?.lend("host", 5, 0)).toThrow(expect.objectContaining({ code: "CONFLICT" }));
    expect(() => rig.lending?.lend("gpu-7", null, 0)).toThrow(
      expect.objectContaining({ code: "NOT_FOUND", message: expect.stringContaining('"host"') }),
    );
    rig.lending?.giveBack("host");
    rig.lending?.giveBack("host");
    await rig.clock.advance(3000);
    expect(residence("a")).toBe("loaded");
  });

  test("outlives a restart", async () => {
    const lends = new MemoryRecords<LendRecord>();
    await started({ pools: pair(), memory: shared(20, { lends }) });
    rig.lending?.lend("host", null, 0);
    await rig.clock.advance(2000);
    await rig.stop();
    await started({ pools: pair(), memory: shared(20, { lends }) });
    const task = await submit("a");
    await rig.clock.advance(10_000);
    expect([residence("a"), task.state]).toEqual(["waiting_for_memory", "queued"]);
    rig.lending?.giveBack("host");
    await rig.clock.advance(3000);
    expect([residence("a"), residence("b"), task.state]).toEqual(["loaded", "loaded", "done"]);
    expect(lends.all()).toEqual([]);
  });

  test("is returned, also where nobody names the device any more", async () => {
    const lends = new MemoryRecords<LendRecord>();
    lends.put({ deviceId: "gpu-1", bytes: 5, sinceMs: 0, deadlineMs: 0 });
    await started({ pools: pair(), memory: shared(20, { lends }) });
    expect(rig.lending?.get("gpu-1").lentBytes).toBe(5);
    expect(rig.lending?.giveBack("gpu-1").lent).toBeNull();
    expect(lends.all()).toEqual([]);
  });

  test("nothing is lent that the disk does not know of", async () => {
    const lends = new MemoryRecords<LendRecord>();
    await started({ pools: pair(), memory: shared(20, { lends }) });
    await rig.clock.advance(1200);
    lends.full = true;
    expect(() => rig.lending?.lend("host", null, 0)).toThrow(
      expect.objectContaining({ code: "STORAGE_UNAVAILABLE" }),
    );
    await rig.clock.advance(1000);
    expect(residence("a")).toBe("loaded");
  });
});
