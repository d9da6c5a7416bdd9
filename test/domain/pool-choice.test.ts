/** The choice of a pool: each rule in its place, what the client rules out, and laws over random worlds. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  anywhere,
  choosePool,
  type NoPool,
  type PlacementWish,
  type PoolCandidate,
  type PoolChoice,
  type PoolRequest,
} from "../../src/domain/pool-choice.ts";

const pool = (id: string, more: Partial<PoolCandidate> = {}): PoolCandidate => ({
  id,
  engine: "mock",
  modelNames: [id, "any"],
  workloads: ["completion"],
  ctxPerSlot: 4096,
  slots: 2,
  readyReplicas: 1,
  slotsBusy: 0,
  waiting: 0,
  refusal: null,
  devices: [],
  holdsSession: false,
  ...more,
});

const request = (wish: Partial<PlacementWish> = {}, more: Partial<PoolRequest> = {}): PoolRequest => ({
  modelRef: null,
  engine: null,
  workload: "completion",
  ctxMin: 0,
  wish: { ...anywhere, ...wish },
  ...more,
});

const pin = (pinPoolId: string, more: Partial<PlacementWish> = {}) => ({
  mode: "pin" as const,
  pinPoolId,
  ...more,
});
const prefer = (preferPools: string[], more: Partial<PlacementWish> = {}) => ({
  mode: "prefer" as const,
  preferPools,
  ...more,
});

/** `chosen by rule; other reason, …` or the refusal's kind. */
function told(choice: PoolChoice | NoPool): string {
  if (choice.kind !== "chosen") return choice.kind;
  const others = choice.reasons
    .filter(({ poolId }) => poolId !== choice.poolId)
    .map(({ poolId, reason }) => `${poolId} ${reason}`);
  const chosen = `${choice.poolId} by ${choice.rule}${choice.fallback ? " as fallback" : ""}`;
  return [chosen, ...others].join(", ");
}

const full = { refusal: "ADMISSION_REJECT" as const };
const down = { refusal: "POOL_UNAVAILABLE" as const };

describe("left to itself", () => {
  test.each<[string, PoolCandidate[], string]>([
    ["the only one", [pool("a")], "a by only"],
    ["one that takes tasks", [pool("a", full), pool("b", { waiting: 9 })], "b by takes_tasks, a queue_full"],
    ["one that runs", [pool("a", down), pool("b", { readyReplicas: 0 })], "b by takes_tasks, a unavailable"],
    [
      "the one that holds the session's context",
      [pool("a"), pool("b", { holdsSession: true, waiting: 5 })],
      "b by session, a no_session",
    ],
    [
      "a loaded one",
      [pool("a", { readyReplicas: 0 }), pool("b", { waiting: 5 })],
      "b by loaded, a not_loaded",
    ],
    [
      "the one with the least waiting for each slot",
      [pool("a", { waiting: 2 }), pool("b", { slots: 8, slotsBusy: 7 })],
      "b by least_busy, a busier",
    ],
    ["the first by name", [pool("b"), pool("a")], "a by id, b later_id"],
    // Its own refusal is what the client is told.
    ["the best of those that refuse", [pool("a", down), pool("b", full)], "a by id, b later_id"],
    [
      "the loaded one of those that refuse",
      [pool("a", { ...down, readyReplicas: 0 }), pool("b", full)],
      "b by loaded, a not_loaded",
    ],
  ])("%s", (_name, pools, expected) => {
    expect(told(choosePool(request(), pools))).toBe(expected);
  });
});

describe("what the task needs", () => {
  const pools = [
    pool("small", { ctxPerSlot: 64 }),
    pool("texts", { workloads: ["embedding"] }),
    pool("real", { engine: "llamacpp", waiting: 3 }),
  ];
  test.each<[string, Partial<PoolRequest>, string]>([
    ["a model", { modelRef: "real" }, "real by only, small other_model, texts other_model"],
    ["an engine", { engine: "llamacpp" }, "real by only, small other_engine, texts other_engine"],
    ["a workload", { workload: "embedding" }, "texts by only, small other_workload, real other_workload"],
    ["a context", { ctxMin: 65 }, "real by only, small ctx_too_small, texts other_workload"],
    ["a model that nobody has", { modelRef: "none" }, "unknown_model"],
    ["a workload that nobody offers", { workload: "rerank" }, "no_workload"],
    ["a workload that the model's pool does not offer", { modelRef: "texts" }, "no_workload"],
    ["more context than there is", { ctxMin: 5000 }, "ctx_too_large"],
  ])("%s", (_name, more, expected) => {
    expect(told(choosePool(request({}, more), pools))).toBe(expected);
  });

  test("the widest pool is named where the context is too large", () => {
    const narrow = [pool("a", { ctxPerSlot: 10 }), pool("b", { ctxPerSlot: 20 })];
    expect(choosePool(request({}, { ctxMin: 30 }), narrow)).toEqual({ kind: "ctx_too_large", poolId: "b" });
  });
  test("a context that is not known yet may do", () => {
    expect(told(choosePool(request({}, { ctxMin: 5000 }), [pool("a", { ctxPerSlot: null })]))).toBe(
      "a by only",
    );
  });
});

describe("what the client wants", () => {
  const pools = [pool("a"), pool("b", { waiting: 1 }), pool("c", { waiting: 2 })];
  const with_ = (id: string, more: Partial<PoolCandidate>) =>
    pools.map((one) => (one.id === id ? { ...one, ...more } : one));

  test.each<[string, Partial<PlacementWish>, readonly PoolCandidate[], string]>([
    ["a pin", pin("c"), pools, "c by pinned, a not_pinned, b not_pinned"],
    ["a pin that is full", pin("c"), with_("c", full), "c by pinned, a not_pinned, b not_pinned"],
    [
      "a pin with fallback that takes tasks",
      pin("c", { allowFallback: true }),
      pools,
      "c by pinned, a not_pinned, b not_pinned",
    ],
    [
      "a pin with fallback that is full",
      pin("c", { allowFallback: true }),
      with_("c", full),
      "a by least_busy as fallback, b busier, c queue_full",
    ],
    [
      "preferences in their order",
      prefer(["c", "b"]),
      pools,
      "c by preferred, a less_preferred, b less_preferred",
    ],
    [
      "the next preference",
      prefer(["c", "b"]),
      with_("c", down),
      "b by preferred, a less_preferred, c unavailable",
    ],
    [
      "no preference to be had",
      prefer(["c"]),
      with_("c", full),
      "a by least_busy as fallback, b busier, c queue_full",
    ],
    [
      "only preferences",
      prefer(["c"], { allowFallback: false }),
      with_("c", full),
      "c by only, a not_preferred, b not_preferred",
    ],
    ["not some", { avoidPools: ["a"] }, pools, "b by least_busy, a avoided, c busier"],
    [
      "not some, while others refuse",
      { avoidPools: ["a"] },
      pools.map((p) => (p.id === "a" ? p : { ...p, ...full })),
      "b by least_busy, a avoided, c busier",
    ],
    [
      "not some, but rather than nothing",
      { avoidPools: ["a"], allowFallback: true },
      pools.map((p) => (p.id === "a" ? p : { ...p, ...full })),
      "a by takes_tasks as fallback, b queue_full, c queue_full",
    ],
    [
      "not some, but rather than nothing, and there is something",
      { avoidPools: ["a", "b"], allowFallback: true },
      pools,
      "c by not_avoided, a avoided, b avoided",
    ],
    ["not any", { avoidPools: ["a", "b", "c"] }, pools, "ruled_out"],
    ["a device that no pool is confined to", { requireDevices: [0] }, pools, "ruled_out"],
    [
      "devices",
      { requireDevices: [0, 2] },
      pools.map((one, at) => ({ ...one, devices: [[0, 1], [0, 2], [2]][at] ?? [] })),
      "b by least_busy, a other_devices, c busier",
    ],
    [
      "devices of a pin that has others",
      pin("a", { requireDevices: [0] }),
      with_("a", { devices: [1] }),
      "ruled_out",
    ],
  ])("%s", (_name, wish, from, expected) => {
    expect(told(choosePool(request(wish), from))).toBe(expected);
  });

  test.each<[Partial<PlacementWish>, string]>([
    [pin("x"), "pin_pool_id"],
    [prefer(["a", "x"]), "prefer_pools"],
    [{ avoidPools: ["x"] }, "avoid_pools"],
  ])("a pool that there is not (%j)", (wish, field) => {
    expect(choosePool(request(wish), pools)).toEqual({ kind: "unknown_pool", field, poolId: "x" } as NoPool);
  });

  test("what a pinned pool cannot do is told of it alone", () => {
    const asked = request(pin("a"), { workload: "embedding" });
    expect(choosePool(asked, [pool("a"), pool("b", { workloads: ["embedding"] })])).toEqual({
      kind: "no_workload",
    });
  });
});

// ---- laws ----

const ids = ["a", "b", "c", "d"];
const worlds = fc.array(
  fc.record({
    slots: fc.integer({ min: 1, max: 4 }),
    readyReplicas: fc.integer({ min: 0, max: 2 }),
    slotsBusy: fc.integer({ min: 0, max: 4 }),
    waiting: fc.integer({ min: 0, max: 3 }),
    refusal: fc.constantFrom(null, null, "ADMISSION_REJECT" as const, "POOL_UNAVAILABLE" as const),
    devices: fc.subarray([0, 1]),
    holdsSession: fc.boolean(),
    workloads: fc.constantFrom(["completion" as const], ["completion" as const], ["embedding" as const]),
  }),
  { minLength: ids.length, maxLength: ids.length },
);
const wishes = fc
  .record({
    mode: fc.constantFrom("auto" as const, "pin" as const, "prefer" as const),
    named: fc.shuffledSubarray(ids, { minLength: 1 }),
    avoidPools: fc.subarray(ids),
    requireDevices: fc.option(fc.subarray([0, 1], { minLength: 1 })),
    allowFallback: fc.option(fc.boolean()),
  })
  .map(
    ({ mode, named, ...rest }): PlacementWish => ({
      ...rest,
      mode,
      pinPoolId: mode === "pin" ? (named[0] ?? null) : null,
      preferPools: mode === "prefer" ? named : [],
    }),
  );

test("in any world: a reason for every pool, nothing ruled out is chosen, nothing wanted more is passed over", () => {
  fc.assert(
    fc.property(worlds, wishes, (drawn, wish) => {
      const pools = drawn.map((more, at) => pool(ids[at] ?? "", more));
      const choice = choosePool(request(wish), pools);
      if (choice.kind !== "chosen") return;
      expect(choice.reasons.map(({ poolId }) => poolId)).toEqual(ids);
      const best = pools.find(({ id }) => id === choice.poolId);
      if (best === undefined) throw new Error("the chosen pool is one of them");
      expect(best.workloads).toContain("completion");
      if (wish.requireDevices !== null) {
        expect(best.devices.length).toBeGreaterThan(0);
        expect(best.devices.filter((device) => !wish.requireDevices?.includes(device))).toEqual([]);
      }
      if (wish.avoidPools.includes(best.id)) expect(wish.allowFallback).toBe(true);
      if (wish.mode === "pin" && wish.allowFallback !== true) expect(best.id).toBe(wish.pinPoolId ?? "");
      if (wish.mode === "prefer" && wish.allowFallback === false) expect(wish.preferPools).toContain(best.id);
      // A reason that only rules out belongs to a pool that was ruled out; all others were candidates.
      const outs = ["other_workload", "other_devices", "not_preferred"];
      const out = choice.reasons.filter(({ reason }) => outs.includes(reason)).length;
      expect(choice.candidates).toBeLessThanOrEqual(ids.length - out);
      // Who refuses is chosen only where every candidate refuses.
      if (best.refusal !== null)
        for (const { poolId, reason } of choice.reasons)
          if (["less_preferred", "no_session", "not_loaded", "busier", "later_id"].includes(reason))
            expect(pools.find(({ id }) => id === poolId)?.refusal).not.toBeNull();
    }),
    { numRuns: 500 },
  );
});

test("the order in which pools are configured does not matter", () => {
  fc.assert(
    fc.property(worlds, wishes, (drawn, wish) => {
      const pools = drawn.map((more, at) => pool(ids[at] ?? "", more));
      const one = choosePool(request(wish), pools);
      const other = choosePool(request(wish), [...pools].reverse());
      expect(other.kind).toBe(one.kind);
      if (one.kind === "chosen" && other.kind === "chosen")
        expect([other.poolId, other.rule]).toEqual([one.poolId, one.rule]);
    }),
    { numRuns: 200 },
  );
});
