/**
 * Workloads over models of one size, and what residency and the routers make of them. Run as a program it prints the
 * figures of docs/decisions/0010-which-models-stay-loaded.md: `npx bun test/domain/residency-mixes.ts`.
 */

import { limits } from "../../src/domain/limits.ts";
import type { ResidencyRules } from "../../src/domain/residency-state.ts";
import { runRouter } from "./lru-router.ts";
import { type Chance, seeded } from "./pool-world.ts";
import { type Arrival, type Outcome, runResidency, type Scenario } from "./residency-world.ts";

export const defaults: ResidencyRules = {
  swapMaxWaitMs: limits.swapMaxWaitMsDefault,
  swapTurnMaxMs: limits.swapTurnMaxMsDefault,
};
/** Nobody in use ever has to leave, as with the router. */
export const patient: ResidencyRules = { swapMaxWaitMs: 1e12, swapTurnMaxMs: 1e12 };

export interface Mix {
  readonly models: number;
  /** So many of them fit. */
  readonly resident: number;
  readonly tasks: number;
  /** Mean time between arrivals; they come one by one, independent of each other. */
  readonly everyMs: number;
  readonly runMs: number;
  readonly loadMs: number;
  /** Zipf's exponent; 0: all models alike. */
  readonly zipf: number;
}

const slots = 4;
const unloadMs = 500;
const nameOf = (index: number): string => `m${String(index).padStart(2, "0")}`;

export function scenario(
  { models, resident, loadMs }: Pick<Mix, "models" | "resident" | "loadMs">,
  arrivals: readonly Arrival[],
  rules: ResidencyRules,
): Scenario {
  return {
    rules,
    devices: [{ deviceId: "gpu", totalBytes: resident, reservedBytes: 0 }],
    pools: Array.from({ length: models }, (_, index) => ({
      poolId: nameOf(index),
      needs: new Map([["gpu", 1]]),
      loadMs,
      idleUnloadMs: null,
      preload: false,
      slots,
      unloadMs,
    })),
    arrivals,
  };
}

/** ABCABC… offered at once. */
export const alternating = (rules: ResidencyRules, runMs: number): Scenario =>
  scenario(
    { models: 3, resident: 1, loadMs: 5_000 },
    Array.from({ length: 150 }, (_, index) => ({ atMs: 0, poolId: nameOf(index % 3), runMs })),
    rules,
  );

/** Two agents, each with a model of its own of which one fits, that call it again soon after each answer. */
export const agents = (rules: ResidencyRules, pauseMs: number): Scenario => ({
  ...scenario({ models: 2, resident: 1, loadMs: 5_000 }, [], rules),
  callers: [0, 1].map((index) => ({ atMs: index, poolId: nameOf(index), calls: 100, runMs: 1_000, pauseMs })),
});

/** Three clients that never let a model rest, and one request for another. */
export const relentless = (rules: ResidencyRules): Scenario => ({
  ...scenario(
    { models: 2, resident: 1, loadMs: 5_000 },
    [{ atMs: 60_000, poolId: nameOf(1), runMs: 1_000 }],
    rules,
  ),
  callers: [0, 6_000, 6_700].map((atMs) => ({
    atMs,
    poolId: nameOf(0),
    calls: 300,
    runMs: 2_000,
    pauseMs: 100,
  })),
});

export function mixed(mix: Mix, seed: number, rules: ResidencyRules): Scenario {
  const chance = seeded(seed);
  const weights = Array.from({ length: mix.models }, (_, index) => (index + 1) ** -mix.zipf);
  let atMs = 0;
  const arrivals = Array.from({ length: mix.tasks }, (): Arrival => {
    atMs += exponential(chance, mix.everyMs);
    return { atMs, poolId: nameOf(drawn(chance, weights)), runMs: exponential(chance, mix.runMs) };
  });
  return scenario(mix, arrivals, rules);
}

/** Whole milliseconds. */
const exponential = (chance: Chance, meanMs: number): number => Math.ceil(-Math.log(1 - chance()) * meanMs);

function drawn(chance: Chance, weights: readonly number[]): number {
  let left = chance() * weights.reduce((sum, weight) => sum + weight, 0);
  for (const [index, weight] of weights.entries()) {
    left -= weight;
    if (left < 0) return index;
  }
  return weights.length - 1;
}

const light = { tasks: 600, runMs: 2_000, loadMs: 5_000 };
export const mixes: Readonly<Record<string, Mix>> = {
  "Poisson, 3 models, 1 fits, 10 s apart": { ...light, models: 3, resident: 1, everyMs: 10_000, zipf: 0 },
  "Poisson, 3 models, 1 fits, 2 s apart": { ...light, models: 3, resident: 1, everyMs: 2_000, zipf: 0 },
  "Poisson, 3 models, 1 fits, 0.6 s apart": { ...light, models: 3, resident: 1, everyMs: 600, zipf: 0 },
  "Poisson, 5 models, 2 fit, 10 s apart": { ...light, models: 5, resident: 2, everyMs: 10_000, zipf: 0 },
  "zipf 1, 8 models, 3 fit, 10 s apart": { ...light, models: 8, resident: 3, everyMs: 10_000, zipf: 1 },
  "zipf 1, 8 models, 3 fit, 2 s apart": { ...light, models: 8, resident: 3, everyMs: 2_000, zipf: 1 },
  "zipf 1, 8 models, 3 fit, 0.5 s apart": { ...light, models: 8, resident: 3, everyMs: 500, zipf: 1 },
  "zipf 1.5, 16 models, 4 fit, 10 s apart": { ...light, models: 16, resident: 4, everyMs: 10_000, zipf: 1.5 },
};

if (import.meta.main) {
  const show = (name: string, outcomes: readonly Outcome[]): void => {
    const mean = (of: (outcome: Outcome) => number): number =>
      outcomes.reduce((sum, outcome) => sum + of(outcome), 0) / outcomes.length;
    const worst = Math.max(...outcomes.map(({ worstWaitMs }) => worstWaitMs));
    console.log(
      `| ${name} | ${mean(({ loads }) => loads).toFixed(1)} | ${(mean(({ meanWaitMs }) => meanWaitMs) / 1000).toFixed(1)} | ${(worst / 1000).toFixed(1)} | ${(mean(({ endMs }) => endMs) / 1000).toFixed(0)} |`,
    );
  };
  console.log("| | loads | mean wait s | worst wait s | end s |\n|---|---|---|---|---|");
  const all = (
    name: string,
    resident: number,
    make: (rules: ResidencyRules) => readonly Scenario[],
  ): void => {
    const plain = make(patient);
    show(
      `${name}: in order`,
      plain.map((one) => runRouter(one, resident, "in-order")),
    );
    show(
      `${name}: router`,
      plain.map((one) => runRouter(one, resident, "overtaking")),
    );
    show(`${name}: unbounded`, plain.map(runResidency));
    show(`${name}: bounded`, make(defaults).map(runResidency));
  };
  for (const runMs of [100, 2_000, 10_000])
    all(`ABC x 50, ${runMs} ms each`, 1, (rules) => [alternating(rules, runMs)]);
  for (const pauseMs of [300, 1_000, 10_000])
    all(`2 agents, 100 calls each, ${pauseMs} ms apart`, 1, (rules) => [agents(rules, pauseMs)]);
  all("A without pause, B once", 1, (rules) => [relentless(rules)]);
  const seeds = Array.from({ length: 20 }, (_, index) => index + 1);
  for (const [name, mix] of Object.entries(mixes))
    all(name, mix.resident, (rules) => seeds.map((seed) => mixed(mix, seed, rules)));
}
