/**
 * Promises mean what they say, whatever the workload: after 300 outcomes four of five starts fall into the
 * promised interval, and the probability to be on time tells more than the base rate. The sums run over seeds,
 * for one run of a few hundred correlated waits says little.
 */
import { describe, expect, test } from "bun:test";
import { scoresOf } from "../../src/domain/predictor.ts";
import type { Priority } from "../../src/domain/task.ts";
import { laws } from "./laws.ts";
import { brierOf, coverageOf, type Outcome, PoolWorld } from "./pool-world.ts";

const seeds = [1, 2, 3, 4, 5, 6];
const warmUpOutcomes = 300;

function pooled(
  runs: readonly (readonly Outcome[])[],
  priority: Priority,
): { scored: number; share: number } {
  let scored = 0;
  let covered = 0;
  for (const outcomes of runs) {
    const run = coverageOf(outcomes, priority, warmUpOutcomes);
    scored += run.scored;
    covered += run.share * run.scored;
  }
  return { scored, share: covered / scored };
}

for (const [name, law] of Object.entries(laws))
  describe(`${name} work`, () => {
    const runs = seeds.map((seed) => new PoolWorld(law, seed).run());

    for (const priority of ["interactive", "batch"] as const)
      test(`keeps 75 to 85 % of its ${priority} intervals`, () => {
        const { scored, share } = pooled(runs, priority);
        expect(scored).toBeGreaterThan(1000);
        expect(share).toBeGreaterThan(0.75);
        expect(share).toBeLessThan(0.85);
      });

    test("has probabilities that beat the base rate in every run", () => {
      for (const [at, outcomes] of runs.entries()) {
        const { brier, baseRate } = brierOf(outcomes, warmUpOutcomes);
        expect({ seed: seeds[at], beats: brier < baseRate }).toEqual({ seed: seeds[at], beats: true });
      }
    });
  });

test("the scores are those of an observer who counts for himself", () => {
  const world = new PoolWorld({ ...laws.stationary, tasks: 400 } as (typeof laws)[string], 9);
  const outcomes = world.run();
  const scores = scoresOf(world.state);
  for (const priority of ["interactive", "batch"] as const) {
    const { scored, share } = coverageOf(outcomes, priority, 0);
    const own = outcomes.filter((o) => o.priority === priority);
    const { brier, baseRate } = brierOf(own, 0);
    expect(scores[priority].startsScored).toBe(scored);
    expect(scores[priority].intervalCoverage).toBeCloseTo(share, 9);
    expect(scores[priority].deadlinesScored).toBe(own.length);
    expect(scores[priority].brierScore).toBeCloseTo(brier, 9);
    expect(scores[priority].baseRateBrierScore).toBeCloseTo(baseRate, 9);
  }
});
