/**
 * What the configuration changes and reloads do where the keeper of memory has a pool too: pools that go while they are
 * reloaded, settings that come with other engines, engines that gave up before or meanwhile (ORCHD-CONF-2, ORCHD-CONF-3,
 * ORCHD-MEM-5, ORCHD-MEM-7).
 */
import { afterEach, expect, test } from "bun:test";
import type { MockFault, PoolSpec } from "../../src/domain/pool.ts";
import type { DrainRecord, ModelRecord } from "../../src/ports/pool-store.ts";
import { PoolChanges } from "../../src/services/pool-changes.ts";
import { PoolDrains } from "../../src/services/pool-drain.ts";
import { PoolReloads } from "../../src/services/pool-reload.ts";
import { PoolSpecs } from "../../src/services/pool-specs.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { MemoryRecords } from "../support/memory-records.ts";
import { mockPool, Rig } from "./rig.ts";

let rig: Rig;
let specs: PoolSpecs;
let reloads: PoolReloads;
let drains: PoolDrains;
let changes: PoolChanges;
afterEach(async () => {
  changes.stop();
  reloads.stop();
  drains.stop();
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
    specs: (log) => {
      specs = new PoolSpecs(pools, new MemoryRecords<ModelRecord>(), log);
      return specs.list;
    },
    memory: { devices: [{ id: "host", memoryBytes: bytes, reserveBytes: null }] },
  });
  await rig.start(10);
  const { clock, log, metrics, supervisor: control, dispatcher, registry, keeper } = rig;
  if (keeper === null) throw new Error("the rig has memory");
  const onFatal = (error: unknown): void => void rig.fatal.push(error);
  drains = new PoolDrains({
    ...{ clock, log, store: new MemoryRecords<DrainRecord>() },
    isReloading: (poolId) => reloads.isReloading(poolId),
    retry: (poolId) => control.retryPool(poolId),
    slotsBusy: (poolId) => dispatcher.view.slotsBusyIn(poolId),
    tell: (event) => dispatcher.tell(event),
  });
  reloads = new PoolReloads({
    ...{ clock, log, metrics, control, dispatcher, registry, specs, onFatal, memory: keeper },
    specOf: (taskId) => rig.archive.specOf(taskId),
    targets: {
      resolve: (from, modelRef) => ({ ...from, modelRef }),
      problem: () => Promise.resolve(null),
      compared: async (from, to) => ({ another: from.modelRef !== to.modelRef, sameModel: null }),
    },
    isDrained: (poolId) => drains.isDrained(poolId),
  });
  changes = new PoolChanges({ ...{ clock, log, control, dispatcher, reloads, drains, specs, onFatal } });
}

async function submit(poolId: string, tokens = 5): Promise<TaskRecord> {
  const accepted = rig.submit(rig.spec({ poolId, maxTokens: tokens, modelRef: specs.get(poolId).modelRef }));
  await rig.clock.advance(0);
  return (await accepted).record;
}

function want(pools: readonly PoolSpec[], strategy: "surge" | "recreate" = "recreate"): { ended: boolean } {
  const seen = { ended: false };
  void changes.want(pools, { strategy, deadlineMs: 100 }).then(() => {
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
