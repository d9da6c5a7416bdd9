/**
 * Swaps: residency beside a router that evicts the least recently used, over the same workloads in the same virtual
 * time. docs/decisions/0010-which-models-stay-loaded.md has the figures.
 */
import { describe, expect, test } from "bun:test";
import { runRouter } from "./lru-router.ts";
import { agents, alternating, defaults, mixed, mixes, patient, relentless } from "./residency-mixes.ts";
import { type Outcome, runResidency, type Scenario } from "./residency-world.ts";

const seeds = Array.from({ length: 10 }, (_, index) => index + 1);
const loadsOf = (outcomes: readonly Outcome[]): number => outcomes.reduce((sum, { loads }) => sum + loads, 0);

describe("A, B, C in turn, 50 times, offered at once", () => {
  for (const runMs of [100, 2_000, 10_000])
    test(`${runMs} ms each: three loads, as few as the router, and done as soon`, () => {
      const offered = alternating(defaults, runMs);
      const residency = runResidency(offered);
      const router = runRouter(offered, 1, "overtaking");
      expect(residency.loads).toBe(3);
      expect(router.loads).toBe(3);
      expect(residency.endMs).toBe(router.endMs);
      // Who starts in order loads for each.
      expect(runRouter(offered, 1, "in-order").loads).toBe(150);
    });
});

describe("mixes that come over time", () => {
  for (const [name, mix] of Object.entries(mixes)) {
    const all = (rules = defaults): Scenario[] => seeds.map((seed) => mixed(mix, seed, rules));

    test(`${name}: fewer loads than in order, and every task is served`, () => {
      const residency = all().map(runResidency);
      const inOrder = all().map((one) => runRouter(one, mix.resident, "in-order"));
      for (const { started } of residency) expect(started).toBe(mix.tasks);
      // Where arrivals have no memory and all models are alike no choice is better than another.
      expect(loadsOf(residency)).toBeLessThanOrEqual(loadsOf(inOrder) * (mix.zipf === 0 ? 1.01 : 1));
    });

    test(`${name}: without a bound no more loads than the router, which has none`, () => {
      const residency = all(patient).map(runResidency);
      const router = all().map((one) => runRouter(one, mix.resident, "overtaking"));
      expect(loadsOf(residency)).toBeLessThanOrEqual(loadsOf(router) * (mix.zipf === 0 ? 1.01 : 1));
    });
  }
});

describe("clients that call again", () => {
  test("two agents whose models do not fit together: a turn each, not a load for each call", () => {
    for (const pauseMs of [300, 1_000]) {
      const residency = runResidency(agents(defaults, pauseMs));
      const router = runRouter(agents(defaults, pauseMs), 1, "overtaking");
      expect(residency.loads * 5).toBeLessThan(router.loads);
      expect(residency.endMs * 2).toBeLessThan(router.endMs);
      const { swapMaxWaitMs } = defaults;
      // Then it is unloaded and the other loaded; the one that runs has finished by then.
      expect(residency.worstWaitMs).toBeLessThanOrEqual(swapMaxWaitMs + 1_000 + 500 + 5_000);
    }
  });

  test("one request for B while A never rests: within the bound, where the router waits for the end of A", () => {
    const residency = runResidency(relentless(defaults));
    expect(residency.worstWaitMs).toBeLessThanOrEqual(defaults.swapMaxWaitMs + 2_000 + 500 + 5_000);
    expect(residency.loads).toBe(3);
    expect(runRouter(relentless(defaults), 1, "overtaking").worstWaitMs).toBeGreaterThan(500_000);
  });
});
