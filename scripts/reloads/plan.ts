/**
 * Which reloads a run makes, drawn by chance from its seed. Called by run.ts.
 *
 * Always holds: a third of them is made to fail, each kind of failure as often as any other, give or take one; models and
 * strategies are spread over both.
 */
import type { Chance } from "../../test/engine/support.ts";
import { type EngineFault, engineFaults } from "./faulty-engine.ts";
import { type ModelName, modelNames } from "./models.ts";

/** What is wrong with the file: there is none, it ends too early, it is no model, it is not the one that was meant. */
export const fileFaults = ["missing", "truncated", "foreign", "digest"] as const;
export type FileFault = (typeof fileFaults)[number];
export type Fault = FileFault | EngineFault;
export const faults: readonly Fault[] = [...fileFaults, ...engineFaults];

export const strategies = ["surge", "recreate"] as const;
export type Strategy = (typeof strategies)[number];

export interface PlannedReload {
  readonly strategy: Strategy;
  readonly target: ModelName;
  /** What runs may go on so long. */
  readonly deadlineMs: number;
  /** Null: it is to succeed. */
  readonly fault: Fault | null;
}

const deadlinesMs = [0, 100, 500, 3_000] as const;

export function planOf(count: number, strategy: Strategy | "mixed", chance: Chance): PlannedReload[] {
  const failing = Math.round(count / 3);
  const kinds = shuffled(faults, chance);
  const wanted: (Fault | null)[] = Array.from({ length: count }, (_, at) =>
    at < failing ? (kinds[at % kinds.length] ?? null) : null,
  );
  return shuffled(wanted, chance).map((fault) => ({
    strategy: strategy === "mixed" ? chance.pick(strategies) : strategy,
    target: chance.pick(modelNames),
    deadlineMs: chance.pick(deadlinesMs),
    fault,
  }));
}

function shuffled<T>(items: readonly T[], chance: Chance): T[] {
  const left = [...items];
  const taken: T[] = [];
  while (left.length > 0) taken.push(...left.splice(chance.between(0, left.length - 1), 1));
  return taken;
}
