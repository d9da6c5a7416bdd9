/** Reloads of pools that share memory: room beside, room instead, none at all, and pools that are not loaded (ORCHD-MEM-7). */
import { afterEach, expect, test } from "bun:test";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { ReloadStrategy } from "../../src/domain/pool-reload.ts";
import type { PoolReloads } from "../../src/services/pool-reload.ts";
import type { PoolSpecs } from "../../src/services/pool-specs.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { type PoolControl, poolControl, specsInto } from "./pool-control-rig.ts";
import { mockPool, Rig } from "./rig.ts";

const sizes: Readonly<Record<string, number>> = { "mock:words": 10, "mock:small": 4, "mock:huge": 100 };
/** These never load. */
const broken = new Set<string>();

let rig: Rig;
let specs: PoolSpecs;
let reloads: PoolReloads;
let control: PoolControl;
afterEach(async () => {
  broken.clear();
  control.stop();
  await rig.stop();
});

const pool = (id: string, more: Partial<PoolSpec> = {}): PoolSpec =>
  mockPool({
    id,
    preload: false,
    devices: ["host"],
    mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 200, faults: [] },
    ...more,
  });

async function started(bytes: number, pools: readonly PoolSpec[]): Promise<void> {
  rig = new Rig({
    specs: specsInto(pools, (made) => {
      specs = made;
    }),
    memory: {
      devices: [{ id: "host", memoryBytes: bytes, reserveBytes: null }],
      needs: {
        of: ({ modelRef, replicas }) => new Map([["host", (sizes[modelRef] ?? 0) * replicas]]),
        learn: () => undefined,
      },
    },
  });
  await rig.start(10);
  control = poolControl(rig, specs, {
    resolve: (from, modelRef) =>
      broken.has(modelRef)
        ? { ...from, modelRef, mock: { ...from.mock, faults: [never] } as PoolSpec["mock"] }
        : { ...from, modelRef },
  });
  ({ reloads } = control);
}
const never = { kind: "load_failure", nth: null, afterTokens: 0, delayMs: 0 } as const;

async function submit(poolId: string, tokens = 5): Promise<TaskRecord> {
  const accepted = rig.submit(rig.spec({ poolId, maxTokens: tokens, modelRef: specs.get(poolId).modelRef }));
  await rig.clock.advance(0);
  return (await accepted).record;
}

function reload(poolId: string, modelRef: string, strategy: ReloadStrategy): { how: string | null } {
  const seen: { how: string | null } = { how: null };
  reloads.reload(poolId, { modelRef, strategy, digest: null, deadlineMs: 100 }).ended.then(
    () => {
      seen.how = "";
    },
    (error: Error) => {
      seen.how = error.message;
    },
  );
  return seen;
}

const residence = (poolId: string): string | undefined => rig.keeper?.view(poolId)?.residence;
const needs = (poolId: string): number | undefined => rig.keeper?.view(poolId)?.needs.get("host");

test("a surge without room for both fails, names recreate, and disturbs nobody", async () => {
  await started(13, [pool("a"), pool("b")]);
  await submit("a");
  await rig.clock.advance(1000);
  const running = await submit("a", 50);
  const seen = reload("a", "mock:small", "surge");
  await rig.clock.advance(1000);
  expect(seen.how).toContain("use the strategy recreate");
  expect(seen.how).toContain("4 B of host, where 3 B are free");
  expect([running.state, running.attempts, needs("a")]).toEqual(["done", 1, 10]);
});

test("a surge with room counts both until it is over, then the new one alone", async () => {
  await started(14, [pool("a"), pool("b")]);
  await submit("a");
  await rig.clock.advance(1000);
  const seen = reload("a", "mock:small", "surge");
  await rig.clock.advance(50);
  expect(needs("a")).toBe(14);
  await rig.clock.advance(2000);
  expect([seen.how, needs("a"), residence("a")]).toEqual(["", 4, "loaded"]);
  // What became free is others'.
  const other = await submit("b");
  await rig.clock.advance(1000);
  expect([other.state, residence("a"), residence("b")]).toEqual(["done", "loaded", "loaded"]);
});

test("recreate takes the place of what was loaded", async () => {
  await started(10, [pool("a"), pool("b")]);
  await submit("a");
  await rig.clock.advance(1000);
  const seen = reload("a", "mock:small", "recreate");
  const waiting = await submit("a");
  await rig.clock.advance(3000);
  expect([seen.how, waiting.state, needs("a"), residence("a")]).toEqual(["", "done", 4, "loaded"]);
});

test("a pool that is not loaded waits for its turn and gets the new model", async () => {
  await started(10, [pool("a"), pool("b")]);
  await submit("b");
  await rig.clock.advance(1000);
  for (const strategy of ["recreate", "surge"] as const) {
    const running = await submit("b", 100);
    await rig.clock.advance(300);
    const seen = reload("a", strategy === "surge" ? "mock:small" : "mock:words", strategy);
    await rig.clock.advance(300);
    expect([running.state, residence("a"), seen.how]).toEqual(["running", "waiting_for_memory", null]);
    await rig.clock.advance(4000);
    expect([running.state, residence("a"), seen.how]).toEqual(["done", "loaded", ""]);
    await submit("b");
    await rig.clock.advance(3000);
    expect(residence("b")).toBe("loaded");
  }
  expect(specs.get("a").modelRef).toBe("mock:small");
});

test("what can never fit is refused, and the old model is loaded again", async () => {
  await started(10, [pool("a"), pool("b")]);
  await submit("a");
  await rig.clock.advance(1000);
  const seen = reload("a", "mock:huge", "recreate");
  const waiting = await submit("a");
  await rig.clock.advance(5000);
  expect(seen.how).toContain("100 B of host, which has 10 B for models");
  expect([waiting.state, needs("a"), residence("a")]).toEqual(["done", 10, "loaded"]);
});

for (const strategy of ["recreate", "surge"] as const)
  test(`${strategy}: a new model that does not load leaves its memory, and the old one serves`, async () => {
    await started(14, [pool("a"), pool("b")]);
    await submit("a");
    await rig.clock.advance(1000);
    broken.add("mock:small");
    const seen = reload("a", "mock:small", strategy);
    await rig.clock.advance(2000);
    expect(seen.how).toContain("the reload failed");
    const task = await submit("a");
    await rig.clock.advance(2000);
    expect([task.state, needs("a"), residence("a")]).toEqual(["done", 10, "loaded"]);
  });

test("surge of a pool that is not loaded, with a model that does not load, leaves nothing behind", async () => {
  await started(10, [pool("a"), pool("b")]);
  broken.add("mock:small");
  const seen = reload("a", "mock:small", "surge");
  await rig.clock.advance(3000);
  expect(seen.how).toContain("the reload failed");
  expect([needs("a"), residence("a")]).toEqual([10, "unloaded"]);
  const other = await submit("b");
  await rig.clock.advance(1000);
  expect([other.state, residence("b")]).toEqual(["done", "loaded"]);
});
