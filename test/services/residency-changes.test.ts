/**
 * What the configuration changes and reloads do where the keeper of memory has a pool too: pools that go while they are
 * reloaded, settings that come with other engines, engines that gave up before or meanwhile (ORCHD-CONF-2, ORCHD-CONF-3,
 * ORCHD-MEM-5, ORCHD-MEM-7).
 */
import { afterEach, expect, test } from "bun:test";
import type { MockFault, PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { PoolChanges } from "../../src/services/pool-changes.ts";
import type { PoolDrains } from "../../src/services/pool-drain.ts";
import type { PoolReloads } from "../../src/services/pool-reload.ts";
import type { PoolSpecs } from "../../src/services/pool-specs.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { type PoolControl, poolControl, specsInto } from "./pool-control-rig.ts";
import { mockPool, profile, Rig, replay } from "./rig.ts";

let rig: Rig;
let specs: PoolSpecs;
let reloads: PoolReloads;
let drains: PoolDrains;
let changes: PoolChanges;
let control: PoolControl;
afterEach(async () => {
  control.stop();
  await rig.stop();
});

const pool = (id: string, more: Partial<PoolSpec> = {}, loadMs = 200, faults: MockFault[] = []): PoolSpec =>
  mockPool({
    id,
    preload: false,
    devices: ["host"],
    mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs, faults, memoryBytes: 10 },
    ...more,
  });
const noLoad = (nth: number | null): MockFault => ({ kind: "load_failure", nth, afterTokens: 0, delayMs: 0 });

async function started(bytes: number, pools: readonly PoolSpec[]): Promise<void> {
  rig = new Rig({
    specs: specsInto(pools, (made) => {
      specs = made;
    }),
    memory: {
      devices: [{ id: "host", memoryBytes: bytes, reserveBytes: null }],
      returned: () => changes.retryForMemory(),
    },
  });
  await rig.start(10);
  control = poolControl(rig, specs);
  ({ drains, reloads, changes } = control);
}

async function submit(poolId: string, tokens = 5, more: Partial<TaskSpec> = {}): Promise<TaskRecord> {
  const { modelRef } = specs.get(poolId);
  const accepted = rig.submit(rig.spec({ poolId, maxTokens: tokens, modelRef, ...more }));
  await rig.clock.advance(0);
  return (await accepted).record;
}

function want(
  pools: readonly PoolSpec[],
  strategy: "surge" | "recreate" = "recreate",
  deadlineMs = 100,
): { ended: boolean } {
  const seen = { ended: false };
  void changes.want(pools, { strategy, deadlineMs }).then(() => {
    seen.ended = true;
  });
  return seen;
}

const residence = (poolId: string): string | undefined => rig.keeper?.view(poolId)?.residence;

for (const strategy of ["surge", "recreate"] as const)
  test(`a pool that goes as its reload (${strategy}) ends leaves its memory to others`, async () => {
    const [a, b] = [pool("a"), pool("b")];
    await started(20, [a, b]);
    await submit("a");
    await rig.clock.advance(1000);
    reloads.reload("a", { modelRef: "mock:other", digest: null, strategy, deadlineMs: 100 });
    await rig.clock.advance(50);
    const seen = want([b]);
    await rig.clock.advance(2000);
    expect([seen.ended, changes.unfinished, rig.keeper?.view("a"), rig.fatal]).toEqual([true, [], null, []]);
    expect(rig.lending?.get("host").freeBytes).toBe(20);
    const task = await submit("b");
    await rig.clock.advance(1000);
    expect([task.state, residence("b")]).toEqual(["done", "loaded"]);
  });

test("somebody who asks for a pool in the moment in which it goes changes nothing", async () => {
  const [a, b] = [pool("a"), pool("b")];
  await started(20, [a, b]);
  const accepted = rig.submit(rig.spec({ poolId: "b", maxTokens: 5, modelRef: b.modelRef }));
  await rig.clock.advance(0);
  await accepted;
  const seen = want([b]);
  rig.supervisor.ensurePool("a");
  await rig.clock.advance(1000);
  expect([seen.ended, rig.keeper?.view("a"), rig.fatal]).toEqual([true, null, []]);
});

test("settings that come with other engines hold for memory, too", async () => {
  const a = pool("a", { idleUnloadMs: null });
  await started(20, [a]);
  await submit("a");
  await rig.clock.advance(1000);
  const seen = want([{ ...a, slots: 2, idleUnloadMs: 1500 }]);
  await rig.clock.advance(1000);
  expect([seen.ended, changes.unfinished, residence("a")]).toEqual([true, [], "loaded"]);
  await rig.clock.advance(2000);
  expect(residence("a")).toBe("unloaded");
});

for (const strategy of ["surge", "recreate"] as const)
  test(`${strategy}: a pool whose load failed for good gets its new engines at once`, async () => {
    const a = pool("a", {}, 200, [noLoad(null)]);
    await started(20, [a]);
    void rig.submit(rig.spec({ poolId: "a", modelRef: a.modelRef })).catch(() => undefined);
    await rig.clock.advance(3000);
    expect([residence("a"), rig.metrics.of("poolUnloaded").length]).toEqual(["unloaded", 1]);
    const seen = want([pool("a")], strategy);
    await rig.clock.advance(1000);
    expect([seen.ended, changes.unfinished, residence("a")]).toEqual([true, [], "loaded"]);
  });

for (const loads of [true, false])
  test(`engines give up while others are loaded beside them, which ${loads ? "take their place" : "fail as well"}`, async () => {
    const crash: MockFault = { kind: "crash", nth: 1, afterTokens: 2, delayMs: 0 };
    // Starts are counted over both generations: the second one is that of the new engines.
    const a = pool("a", {}, 200, [crash, noLoad(3), noLoad(4), noLoad(5)]);
    await started(20, [a, pool("b")]);
    const running = await submit("a", 200);
    const seen = want(
      [pool("a", { modelRef: "mock:other" }, 5000, loads ? [] : [noLoad(2)]), pool("b")],
      "surge",
    );
    await rig.clock.advance(4000);
    expect(rig.log.of("replica_unavailable").length + rig.log.of("pool_unavailable").length).toBeGreaterThan(
      -1,
    );
    expect([running.state, seen.ended, rig.lending?.get("host").freeBytes]).toEqual(["failed", false, 0]);
    await rig.clock.advance(3000);
    expect([seen.ended, residence("a")]).toEqual([true, loads ? "loaded" : "unloaded"]);
    expect(rig.lending?.get("host").freeBytes).toBe(loads ? 10 : 20);
    if (!loads) {
      // Who asks is refused, and has it tried again.
      const refused = rig.submit(rig.spec({ poolId: "a" })).catch(({ message }: Error) => message);
      await rig.clock.advance(2000);
      expect(await refused).toContain("failed to load its model");
    }
    const task = await submit("a");
    await rig.clock.advance(1000);
    expect([task.state, residence("a")]).toEqual(["done", "loaded"]);
  });

// ---- pools that are not loaded, and for which somebody waits ----

const greedy = { sampling: { ...profile, temperature: 0 } };
const last = (record: TaskRecord) => replay(record).at(-1);
const tokensOf = (record: TaskRecord): unknown[] =>
  replay(record).flatMap(({ event, data }) => (event === "token" ? [(data as { i: number }).i] : []));
const reset = (message: string) => ({
  event: "error",
  data: { code: "WORKER_RESET", retriable: true, message: expect.stringContaining(message) },
});

/** One that has sent something, and whose pool had to go for a loan. */
async function cutByLoan(a: PoolSpec): Promise<TaskRecord> {
  await started(20, [a]);
  const sent = await submit("a", 60, greedy);
  await rig.clock.advance(400);
  rig.lending?.lend("host", null, 50);
  await rig.clock.advance(500);
  expect([sent.state, sent.tokensOut > 0, residence("a")]).toEqual(["queued", true, "waiting_for_memory"]);
  return sent;
}

test("a lent pool takes a smaller context: what no longer fits is to be submitted again, the rest goes on (ORCHD-RELOAD-3)", async () => {
  const a = pool("a");
  const sent = await cutByLoan(a);
  const counted = await submit("a", 100, { tokensIn: 20, tokensInExact: true });
  const uncounted = await submit("a", 200);
  const small = await submit("a", 5);
  const seen = want([{ ...a, ctx: 100 }]);
  await rig.clock.advance(100);
  expect([seen.ended, changes.unfinished, specs.get("a").ctx]).toEqual([true, [], 100]);
  expect(last(counted)).toMatchObject(reset("its pool has other engines now"));
  expect([sent, uncounted, small].map(({ state }) => state)).toEqual(["queued", "queued", "queued"]);
  rig.lending?.giveBack("host");
  await rig.clock.advance(3000);
  expect(last(uncounted)).toMatchObject(reset("its pool has other engines now"));
  expect([sent, small].map(({ state }) => state)).toEqual(["done", "done"]);
  expect([tokensOf(sent), rig.fatal]).toEqual([[...Array(60).keys()], []]);
});

test("a lent pool takes another model: what has sent something is to be submitted again at once (ORCHD-RELOAD-3)", async () => {
  const a = pool("a");
  const sent = await cutByLoan(a);
  const waiting = await submit("a");
  const other = { ...a, modelRef: "mock:other", workloads: ["completion"] } as const;
  const seen = want([other]);
  await rig.clock.advance(100);
  expect([seen.ended, changes.unfinished, specs.get("a").modelRef]).toEqual([true, [], "mock:other"]);
  expect(last(sent)).toMatchObject(reset("its stream has begun"));
  expect(waiting.state).toBe("queued");
  rig.lending?.giveBack("host");
  await rig.clock.advance(1000);
  expect([waiting.state, waiting.spec.modelRef, rig.fatal]).toEqual(["done", "mock:other", []]);
});

test("what has sent something and is too much for the smaller context of a lent pool is to be submitted again", async () => {
  const a = pool("a");
  const sent = await cutByLoan(a);
  want([{ ...a, ctx: 30 }]);
  await rig.clock.advance(100);
  expect(sent.state).toBe("queued");
  rig.lending?.giveBack("host");
  await rig.clock.advance(3000);
  expect(last(sent)).toMatchObject(reset("its pool has other engines now"));
});

test("work that the new engines of a lent pool do not do ends at once", async () => {
  const a = pool("a");
  await cutByLoan(a);
  const waiting = await submit("a");
  want([{ ...a, workloads: ["embedding"] }]);
  await rig.clock.advance(100);
  expect(last(waiting)).toMatchObject(reset("no work of the kind completion"));
});

for (const strategy of ["surge", "recreate"] as const)
  test(`${strategy}: what has sent something finishes on its model when that was evicted, before the pool gets another (ORCHD-RELOAD-3)`, async () => {
    const [a, b] = [pool("a"), pool("b")];
    await started(10, [a, b]);
    const sent = await submit("a", 60, greedy);
    await rig.clock.advance(400);
    void drains.drain("a", 0);
    await rig.clock.advance(100);
    const elsewhere = await submit("b", 100);
    await rig.clock.advance(500);
    void drains.resume("a");
    const tooBig = await submit("a", 200);
    await rig.clock.advance(10);
    expect([residence("a"), sent.state, elsewhere.state]).toEqual([
      "waiting_for_memory",
      "queued",
      "running",
    ]);
    const seen = want([{ ...a, modelRef: "mock:other", ctx: 100 }, b], strategy);
    await rig.clock.advance(6000);
    expect([seen.ended, changes.unfinished, specs.get("a").modelRef]).toEqual([true, [], "mock:other"]);
    expect(last(sent)).toMatchObject({ event: "end", data: { tokens_out: 60 } });
    expect(tokensOf(sent)).toEqual([...Array(60).keys()]);
    expect(last(tooBig)).toMatchObject(reset("its pool has another model now"));
    expect([elsewhere.state, rig.fatal]).toEqual(["done", []]);
  });

test("a drained pool that is not loaded takes other engines without loading any, and loads when it is resumed", async () => {
  const a = pool("a");
  await started(20, [a]);
  void drains.drain("a", 0);
  const waiting = await submit("a");
  const seen = want([{ ...a, modelRef: "mock:other" }]);
  await rig.clock.advance(1000);
  expect([seen.ended, changes.unfinished, residence("a")]).toEqual([true, [], "unloaded"]);
  void drains.resume("a");
  await rig.clock.advance(1000);
  expect([waiting.state, rig.fatal]).toEqual(["done", []]);
});

// ---- engines elsewhere ----

test("a pool whose engines were here and are elsewhere now takes no memory any more, and back (ORCHD-CONF-2)", async () => {
  const [a, b] = [pool("a"), pool("b")];
  const remote = pool("a", { engine: "openai" });
  await started(20, [a, b]);
  const running = await submit("a", 40);
  const waiting = await submit("a");
  await rig.clock.advance(400);
  expect([running.state, rig.lending?.get("host").freeBytes]).toEqual(["running", 10]);
  void drains.drain("a", 1000);
  const gone = want([remote, b], "recreate", 1000);
  await rig.clock.advance(1000);
  expect(last(waiting)).toMatchObject({
    event: "error",
    data: { code: "POOL_UNAVAILABLE", retriable: true },
  });
  expect([running.state, gone.ended, changes.unfinished, specs.list]).toEqual([
    "done",
    true,
    [],
    [remote, b],
  ]);
  expect([rig.keeper?.view("a"), rig.lending?.get("host").freeBytes]).toEqual([null, 20]);
  expect(drains.isDrained("a")).toBe(true);
  void drains.resume("a");
  const there = await submit("a");
  await rig.clock.advance(1000);
  expect(there.state).toBe("done");
  const back = want([a, b]);
  await rig.clock.advance(1000);
  expect([back.ended, residence("a"), rig.lending?.get("host").freeBytes]).toEqual([true, "unloaded", 20]);
  const here = await submit("a");
  await rig.clock.advance(1000);
  expect([here.state, residence("a"), rig.lending?.get("host").freeBytes]).toEqual(["done", "loaded", 10]);
  expect(rig.fatal).toEqual([]);
});

test("the only pool does not change to engines elsewhere while the daemon runs", async () => {
  await started(20, [pool("a")]);
  const seen = want([pool("a", { engine: "openai" })]);
  await rig.clock.advance(100);
  expect(seen.ended).toBe(true);
  expect(changes.unfinished).toMatchObject([{ poolId: "a", problem: expect.stringContaining("only pool") }]);
  const task = await submit("a");
  await rig.clock.advance(1000);
  expect(task.state).toBe("done");
});

// ---- memory that comes back ----

for (const strategy of ["surge", "recreate"] as const)
  test(`${strategy}: a change that found no memory is tried again when a device is returned (ORCHD-CONF-2)`, async () => {
    const a = pool("a");
    await started(30, [a]);
    await submit("a");
    await rig.clock.advance(1000);
    rig.lending?.lend("host", 15, 50);
    await rig.clock.advance(100);
    const bigger = {
      ...a,
      mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 200, faults: [], memoryBytes: 18 },
    };
    const seen = want([bigger], strategy);
    await rig.clock.advance(1000);
    expect([seen.ended, changes.unfinished.map(({ poolId }) => poolId)]).toEqual([true, ["a"]]);
    rig.lending?.giveBack("host");
    await rig.clock.advance(1000);
    expect([changes.unfinished, specs.get("a").mock?.memoryBytes]).toEqual([[], 18]);
    expect([residence("a"), rig.fatal]).toEqual(["loaded", []]);
  });

test("a change that failed for something else is not tried again when a device is returned", async () => {
  const a = pool("a");
  await started(20, [a]);
  await submit("a");
  await rig.clock.advance(1000);
  want([pool("a", { modelRef: "mock:broken" }, 200, [noLoad(null)])]);
  await rig.clock.advance(2000);
  rig.lending?.lend("host", 1, 50);
  await rig.clock.advance(100);
  rig.lending?.giveBack("host");
  await rig.clock.advance(1000);
  expect(rig.log.of("pool_change_failed")).toHaveLength(1);
  expect(changes.unfinished).toMatchObject([{ poolId: "a", problem: expect.any(String) }]);
});
