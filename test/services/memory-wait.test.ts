/** What promises are told of the wait for memory (ORCHD-MEM-4). */
import { expect, test } from "bun:test";
import { createResidency, poolOf, type ResidencyPool } from "../../src/domain/residency-state.ts";
import { memoryWaitMs } from "../../src/services/memory-wait.ts";

const unloadMs = 500;
const busyMs = { runningMs: 4000, waitingMs: 60_000 };

/** One device with room for one of three pools that take 3 s to load. */
function world(more: Readonly<Record<string, Partial<ResidencyPool>>>) {
  const spec = { needs: new Map([["gpu", 10]]), loadMs: 3000, idleUnloadMs: null, preload: false };
  const state = createResidency(
    { swapMaxWaitMs: 30_000, swapTurnMaxMs: 300_000 },
    [{ deviceId: "gpu", totalBytes: 10, reservedBytes: 0 }],
    ["a", "b", "c"].map((poolId) => ({ poolId, ...spec })),
  );
  for (const [poolId, changes] of Object.entries(more)) Object.assign(poolOf(state, poolId), changes);
  return (poolId: string, nowMs = 0): number => memoryWaitMs(state, poolId, nowMs, unloadMs, () => busyMs);
}

test("none where there is room, or where it is loaded or loads already", () => {
  expect(world({})("a")).toBe(0);
  expect(world({ a: { residence: "loaded" } })("a")).toBe(0);
  expect(world({ a: { residence: "loading" } })("a")).toBe(0);
});

test("of an idle one's unload, and of its own", () => {
  expect(world({ b: { residence: "loaded" } })("a")).toBe(unloadMs);
  expect(world({ a: { residence: "unloading" } })("a")).toBeGreaterThanOrEqual(unloadMs);
});

test("of one in use until it is done, or until it is held and what runs is done, whichever is first", () => {
  const busy = { residence: "loaded", busy: 1, waiting: 5, oldestMs: 0 } as const;
  expect(world({ b: busy })("a")).toBe(30_000 + 4000 + unloadMs);
  // It has waited most of that time.
  expect(world({ a: { waiting: 1, oldestMs: 0 }, b: busy })("a", 25_000)).toBe(5000 + 4000 + unloadMs);
});

test("whoever wanted before is loaded first", () => {
  const before = { waiting: 1, oldestMs: -10 };
  expect(world({ b: before })("a")).toBe(3000 + unloadMs);
  expect(world({ b: before, c: { residence: "loaded" } })("a")).toBe(3000 + unloadMs + unloadMs);
});
