/**
 * The daemon in virtual time under faults, seed after seed: some kept, some fixed, some that change with every
 * commit. A seed that breaks a rule is printed with the command that repeats it; put it into regressions/.
 */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Dispatcher } from "../../src/services/dispatcher.ts";
import type { DispatcherDeps } from "../../src/services/dispatcher-deps.ts";
import { realParts } from "./daemon.ts";
import { drainMutants } from "./drain-mutants.ts";
import { families } from "./families.ts";
import { simulateLoad } from "./load-world.ts";
import { mutants } from "./mutants.ts";
import { preemptionMutants } from "./preemption-mutants.ts";
import { type SimulationResult, simulate } from "./world.ts";

const tasks = 300;

async function holds(seed: number, count = tasks, plain = false): Promise<SimulationResult> {
  const run = await simulate(seed, count, realParts, plain);
  if (run.violations.length > 0)
    throw new Error(
      `seed ${seed} broke ${run.violations.length} rules:\n  ${run.violations.slice(0, 5).join("\n  ")}\n` +
        `repeat it: bun scripts/simulate.ts --seed ${seed} --tasks ${count}${plain ? " --plain" : ""}`,
    );
  return run;
}

/** Different for every commit, the same for everyone who has that commit. */
function seedOfCommit(): number {
  const git = Bun.spawnSync(["git", "rev-parse", "--short=8", "HEAD"], { stdout: "pipe", stderr: "ignore" });
  const commit = Number.parseInt(git.stdout.toString().trim(), 16);
  return git.success && Number.isSafeInteger(commit) ? commit : 20_260_101;
}

describe("every rule holds", () => {
  const folder = join(import.meta.dir, "regressions");
  for (const file of readdirSync(folder).filter((name) => name.endsWith(".json"))) {
    const kept: { seed: number; tasks: number; plain: boolean; found: string } = JSON.parse(
      readFileSync(join(folder, file), "utf8"),
    );
    test(`for the kept seed ${kept.seed}: ${kept.found}`, async () => {
      await holds(kept.seed, kept.tasks, kept.plain);
    });
  }

  test("for fixed seeds, and they do meet what the rules are about", async () => {
    const seen = {
      ...{ engines: 0, enginesLost: 0, agedStarts: 0, restarts: 0 },
      ...{ putBacks: 0, preempted: 0, continued: 0, suspects: 0, tokens: 0, drainCuts: 0 },
    };
    const outcomes = new Map<string, number>();
    for (let seed = 1; seed <= 20; seed++) {
      const run = await holds(seed);
      for (const name of Object.keys(seen) as (keyof typeof seen)[]) seen[name] += run[name];
      for (const [outcome, count] of Object.entries(run.outcomes))
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + count);
    }
    // Rules that nothing puts to the test hold easily.
    for (const [name, count] of Object.entries(seen)) expect([name, count > 5]).toEqual([name, true]);
    for (const outcome of [
      "end",
      "CANCELED",
      "WORKER_RESET",
      "DECODE_TIMEOUT",
      "DEADLINE_UNMET",
      "INVALID_PARAMS",
      "ADMISSION_REJECT",
      "QUEUE_FULL_DROP_LRU",
      "SESSION_EXHAUSTED",
      "BUDGET_EXHAUSTED",
      "POOL_UNAVAILABLE",
    ])
      expect([outcome, (outcomes.get(outcome) ?? 0) > 5]).toEqual([outcome, true]);
  });

  const base = seedOfCommit();
  test(`for seeds of this commit: ${base} to ${base + 19}`, async () => {
    for (let seed = base; seed < base + 20; seed++) await holds(seed);
  });

  test("for long runs", async () => {
    for (const seed of [base + 20, base + 21, base + 22]) await holds(seed, 3000);
  });
});

test("the same seed is the same run", async () => {
  expect(await simulate(3, 120)).toEqual(await simulate(3, 120));
});

describe("the checker notices a daemon that", () => {
  for (const { what, parts, noticed } of [...mutants, ...preemptionMutants, ...drainMutants])
    test(what, async () => {
      const said: string[] = [];
      for (let seed = 1; seed <= 90 && !said.some((line) => noticed.test(line)); seed++)
        said.push(...(await simulate(seed, tasks, { ...realParts, ...parts })).violations);
      expect(said.find((line) => noticed.test(line)) ?? said.join("\n")).toMatch(noticed);
    });
});

describe("a load of the family", () => {
  for (const family of families)
    for (const fair of ["fifo", "per-key"] as const)
      test(`${family}, ${fair}, keeps the rules`, async () => {
        const run = await simulateLoad({ family, seed: 7, tasks: 2000, fair, fullPolicy: "reject" });
        expect(run.violations).toEqual([]);
        const { accepted, refusals } = run.scores;
        expect(accepted + [...refusals.values()].reduce((a, b) => a + b, 0)).toBe(2000);
      });
});

describe("a load with preemption of the family", () => {
  const preempt = { maxWaitMs: 500, maxCuts: 2, minGainMs: 100 };
  for (const family of families)
    for (const fair of ["fifo", "per-key"] as const)
      test(`${family}, ${fair}, keeps the rules`, async () => {
        const run = await simulateLoad({
          family,
          seed: 11,
          tasks: 2000,
          fair,
          fullPolicy: "reject",
          preempt,
        });
        expect(run.violations).toEqual([]);
        expect(run.counts.preempted).toBeGreaterThan(5);
        expect(run.scores.failures.get("WORKER_RESET") ?? 0).toBe(0);
      });
});

class InOrderDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super({ ...deps, fair: "fifo" });
  }
}

test("the checker of loads notices a daemon that lets one key wait for another's flood", async () => {
  const parts = { ...realParts, Dispatcher: InOrderDispatcher };
  const options = { family: "diurnal", seed: 3, tasks: 6000, fair: "per-key", fullPolicy: "reject" } as const;
  const run = await simulateLoad({ ...options, parts });
  expect(run.violations.join("\n")).toMatch(/watched \d+ ms of key/);
});
