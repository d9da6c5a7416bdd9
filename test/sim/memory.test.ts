/**
 * Pools that share devices under loans, failing loads and kills, seed after seed (ORCHD-MEM-2, ORCHD-MEM-5, ORCHD-MEM-6); and
 * that the onlooker notices keepers of memory that are broken on purpose. A seed that breaks a rule is printed.
 */
import { describe, expect, test } from "bun:test";
import { ResidencyKeeper, type ResidencyKeeperDeps } from "../../src/services/residency-keeper.ts";
import { realParts } from "./daemon.ts";
import { type MemoryRun, simulateMemory } from "./memory-world.ts";

async function holds(seed: number): Promise<MemoryRun> {
  const run = await simulateMemory(seed);
  if (run.violations.length > 0)
    throw new Error(`simulateMemory(${seed}) broke:\n  ${run.violations.slice(0, 5).join("\n  ")}`);
  return run;
}

test("every rule holds for fixed seeds, and they do meet what the rules are about", async () => {
  const seen = { loads: 0, swaps: 0, lends: 0, kills: 0, done: 0, unavailable: 0 };
  for (let seed = 1; seed <= 100; seed++) {
    const run = await holds(seed);
    for (const name of Object.keys(seen) as (keyof typeof seen)[]) seen[name] += run[name];
  }
  for (const [name, count] of Object.entries(seen)) expect([name, count > 20]).toEqual([name, true]);
});

test("the same seed is the same run", async () => {
  expect(await simulateMemory(3)).toEqual(await simulateMemory(3));
});

class Boundless extends ResidencyKeeper {
  constructor(deps: ResidencyKeeperDeps) {
    super({ ...deps, needs: { ...deps.needs, of: () => new Map(), learn: () => undefined } });
  }
}

class Ruthless extends ResidencyKeeper {
  constructor(deps: ResidencyKeeperDeps) {
    const { dispatcher } = deps;
    const view = new Proxy(dispatcher.view, {
      get: (of, name) =>
        name === "workOf"
          ? (poolId: string) => ({ ...of.workOf(poolId), busy: 0 })
          : Reflect.get(of, name).bind(of),
    });
    const blind = new Proxy(dispatcher, {
      get: (of, name) => {
        if (name === "view") return view;
        const member: unknown = Reflect.get(of, name);
        return typeof member === "function" ? member.bind(of) : member;
      },
    });
    super({ ...deps, dispatcher: blind });
  }
}

class Patient extends ResidencyKeeper {
  constructor(deps: ResidencyKeeperDeps) {
    super({ ...deps, rules: { swapMaxWaitMs: 60_000, swapTurnMaxMs: 60_000 } });
  }
}

class Deaf extends ResidencyKeeper {
  override deviceChanged(): void {
    // Loans are none of its business.
  }
}

describe("the onlooker notices a keeper of memory that", () => {
  const mutants = [
    { what: "counts no memory", Keeper: Boundless, noticed: /engines took \d+ of/ },
    { what: "ends engines that work", Keeper: Ruthless, noticed: /was ended while \d+ tasks ran/ },
    { what: "lets pools wait for ever", Keeper: Patient, noticed: /waited \d+ ms for its load/ },
    { what: "keeps what is lent", Keeper: Deaf, noticed: /engines took \d+ of/ },
  ];
  for (const { what, Keeper, noticed } of mutants)
    test(what, async () => {
      const said: string[] = [];
      for (let seed = 1; seed <= 150 && !said.some((line) => noticed.test(line)); seed++)
        said.push(...(await simulateMemory(seed, 60, { ...realParts, Keeper })).violations);
      expect(said.find((line) => noticed.test(line)) ?? said.slice(0, 5).join("\n")).toMatch(noticed);
    });
});
