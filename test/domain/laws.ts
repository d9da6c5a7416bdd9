/** Workloads for the pool in miniature: how tasks arrive and how long their answers are. */
import type { Chance, Law } from "./pool-world.ts";

export const exponential = (chance: Chance, mean: number): number => -mean * Math.log(1 - chance());
/** Long-tailed: the mean is set by few. */
export const pareto = (chance: Chance, least: number, shape: number): number =>
  least / (1 - chance()) ** (1 / shape);

const normal = (chance: Chance): number =>
  Math.sqrt(-2 * Math.log(1 - chance())) * Math.cos(2 * Math.PI * chance());

const base: Law = {
  slots: 4,
  tasks: 3000,
  arrival: (chance) => ({ afterMs: exponential(chance, 290), tasks: 1 }),
  tokensOut: (chance) => 100 * Math.exp(0.5 * normal(chance)) * 0.88,
  maxTokens: 512,
  tokenMs: () => 10,
  batchShare: 0.4,
};

export const laws: Readonly<Record<string, Law>> = {
  stationary: base,
  "exponential lengths": { ...base, tokensOut: (chance) => exponential(chance, 100) },
  "one slot": { ...base, slots: 1, arrival: (chance) => ({ afterMs: exponential(chance, 1150), tasks: 1 }) },
  drifting: {
    ...base,
    arrival: (chance, number) => ({ afterMs: exponential(chance, 290 + 290 * (number / 3000)), tasks: 1 }),
    tokenMs: (number) => 10 + 10 * (number / 3000),
  },
  "heavy-tailed": {
    ...base,
    maxTokens: 4096,
    arrival: (chance) => ({ afterMs: exponential(chance, 330), tasks: 1 }),
    tokensOut: (chance) => pareto(chance, 40, 1.5),
  },
  bursty: {
    ...base,
    arrival: (chance) => ({ afterMs: exponential(chance, 16 * 400), tasks: 1 + Math.floor(chance() * 31) }),
  },
  "overloaded by turns": {
    ...base,
    arrival: (chance, number) => ({
      afterMs: exponential(chance, Math.floor(number / 300) % 2 === 0 ? 200 : 420),
      tasks: 1,
    }),
  },
};
