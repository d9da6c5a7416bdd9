// Runs the daemon in virtual time and says what went wrong: `bun scripts/simulate.ts --seed N --tasks N --seeds N`.
// Prints the seed before anything runs, so that a crash can be repeated; exits 1 when a rule was broken.

import { parseArgs } from "node:util";
import { simulate } from "../test/sim/world.ts";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: String(crypto.getRandomValues(new Uint32Array(1))[0]) },
    tasks: { type: "string", default: "300" },
    seeds: { type: "string", default: "1" },
  },
});

function count(name: "seed" | "tasks" | "seeds"): number {
  const value = Number(values[name]);
  if (Number.isSafeInteger(value) && value >= 0) return value;
  console.error(`--${name} must be a whole number, not "${values[name]}"`);
  process.exit(2);
}

const first = count("seed");
const tasks = count("tasks");
console.log(`seed ${first}, ${count("seeds")} runs of ${tasks} tasks`);
console.log(
  "      seed  tasks   end error refused starts again aged engines lost tokens virtual-s real-ms broken",
);
let broken = 0;
for (let seed = first; seed < first + count("seeds"); seed++) {
  const beganNs = Bun.nanoseconds();
  const run = await simulate(seed, tasks);
  const realMs = Math.round((Bun.nanoseconds() - beganNs) / 1e6);
  const refused = (run.outcomes.ADMISSION_REJECT ?? 0) + (run.outcomes.POOL_UNAVAILABLE ?? 0);
  const ended = run.outcomes.end ?? 0;
  const columns: [number, number][] = [
    [seed, 10],
    [tasks, 6],
    [ended, 5],
    [tasks - ended - refused, 5],
    [refused, 7],
    [run.starts, 6],
    [run.putBacks, 5],
    [run.agedStarts, 4],
    [run.engines, 7],
    [run.enginesLost, 4],
    [run.tokens, 6],
    [Math.round(run.virtualMs / 1000), 9],
    [realMs, 7],
    [run.violations.length, 6],
  ];
  console.log(columns.map(([value, width]) => String(value).padStart(width)).join(" "));
  for (const violation of run.violations.slice(0, 10)) console.log(`           ${violation}`);
  if (run.violations.length > 0) broken++;
}
console.log(broken === 0 ? "all rules held" : `${broken} runs broke a rule`);
process.exit(broken === 0 ? 0 : 1);
