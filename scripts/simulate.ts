/**
 * Runs the daemon in virtual time. Prints the seed before anything runs, so that a crash can be repeated; exits 1
 * when a rule was broken.
 *
 * bun scripts/simulate.ts --seed N --tasks N [--seeds N] [--jobs N] [--plain]        hostile clients and engines
 * bun scripts/simulate.ts --family poisson|agents|heavy-tail|diurnal --seed N --tasks N
 *                         [--fair per-key] [--full-policy P] [--preempt MS] [--json]
 *                         a load, measured; MS: preempt.max_wait_ms of all pools
 */
import { parseArgs } from "node:util";
import { limits } from "../src/domain/limits.ts";
import { type FullPolicy, fullPolicies } from "../src/domain/pool.ts";
import { realParts } from "../test/sim/daemon.ts";
import { families } from "../test/sim/families.ts";
import { simulateLoad } from "../test/sim/load-world.ts";
import { reportOf, tableOf } from "../test/sim/report.ts";
import { simulate } from "../test/sim/world.ts";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: String(crypto.getRandomValues(new Uint32Array(1))[0]) },
    tasks: { type: "string", default: "300" },
    seeds: { type: "string", default: "1" },
    jobs: { type: "string", default: "1" },
    family: { type: "string" },
    fair: { type: "string", default: "fifo" },
    "full-policy": { type: "string", default: "reject" },
    json: { type: "boolean", default: false },
    preempt: { type: "string" },
    plain: { type: "boolean", default: false },
    quiet: { type: "boolean", default: false },
  },
});

function usage(message: string): never {
  console.error(message);
  process.exit(2);
}

function count(name: "seed" | "tasks" | "seeds" | "jobs" | "preempt"): number {
  const value = Number(values[name]);
  if (Number.isSafeInteger(value) && value >= 0) return value;
  return usage(`--${name} must be a whole number, not "${values[name]}"`);
}

function oneOf<T extends string>(name: "family" | "fair" | "full-policy", known: readonly T[]): T {
  const value = known.find((one) => one === values[name]);
  return value ?? usage(`--${name} must be one of ${known.join(", ")}, not "${values[name]}"`);
}

/** The defaults of `pools[].preempt`. */
const preemption = {
  maxCuts: limits.preemptCutsDefault,
  minGainMs: limits.preemptGainMsDefault,
};

/** One long run of a family, and how it was. */
async function measure(): Promise<number> {
  const options = {
    family: oneOf("family", families),
    seed: count("seed"),
    tasks: count("tasks"),
    fair: oneOf("fair", ["fifo", "per-key"] as const),
    fullPolicy: oneOf<FullPolicy>("full-policy", fullPolicies),
    preempt: values.preempt === undefined ? null : { ...preemption, maxWaitMs: count("preempt") },
  };
  if (!values.json) console.log(`family ${options.family}, seed ${options.seed}, ${options.tasks} tasks`);
  const beganNs = Bun.nanoseconds();
  const result = await simulateLoad(options);
  const realSeconds = Math.round((Bun.nanoseconds() - beganNs) / 1e9);
  const rssMb = Math.round(process.memoryUsage.rss() / 1024 / 1024);
  if (values.json)
    console.log(JSON.stringify({ ...reportOf(result), real_seconds: realSeconds, rss_mb: rssMb }));
  else {
    console.log(tableOf(result));
    for (const violation of result.violations) console.log(violation);
    console.log(`${realSeconds} s of real time, ${rssMb} MB resident at the end`);
  }
  return result.broken === 0 ? 0 : 1;
}

const header =
  "      seed  tasks   end error refused starts again  cut aged engines lost tokens virtual-s real-ms broken";

/** One seed after the other. */
async function check(first: number, seeds: number, tasks: number): Promise<number> {
  let broken = 0;
  for (let seed = first; seed < first + seeds; seed++) {
    const beganNs = Bun.nanoseconds();
    const run = await simulate(seed, tasks, realParts, values.plain);
    const realMs = Math.round((Bun.nanoseconds() - beganNs) / 1e6);
    const ended = run.outcomes.end ?? 0;
    const columns: [number, number][] = [
      [seed, 10],
      [tasks, 6],
      [ended, 5],
      [tasks - ended - run.refused, 5],
      [run.refused, 7],
      [run.starts, 6],
      [run.putBacks, 5],
      [run.preempted, 4],
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
  return broken;
}

/** The seeds in equal parts, each in a process of its own. */
async function checkInParallel(first: number, seeds: number, tasks: number, jobs: number): Promise<boolean> {
  const part = Math.ceil(seeds / jobs);
  const exits: Promise<number>[] = [];
  for (let from = first; from < first + seeds; from += part) {
    const size = Math.min(part, first + seeds - from);
    const command = [process.execPath, import.meta.path, "--quiet", ...(values.plain ? ["--plain"] : [])];
    const flags = ["--seed", String(from), "--seeds", String(size), "--tasks", String(tasks)];
    exits.push(Bun.spawn([...command, ...flags], { stdout: "inherit", stderr: "inherit" }).exited);
  }
  return (await Promise.all(exits)).every((code) => code === 0);
}

async function checkAll(): Promise<number> {
  const first = count("seed");
  const seeds = count("seeds");
  const tasks = count("tasks");
  const jobs = Math.max(1, count("jobs"));
  if (!values.quiet) {
    console.log(`seed ${first}, ${seeds} runs of ${tasks} tasks`);
    console.log(header);
  }
  if (jobs > 1) {
    const held = await checkInParallel(first, seeds, tasks, jobs);
    console.log(held ? "all rules held" : "a rule was broken");
    return held ? 0 : 1;
  }
  const broken = await check(first, seeds, tasks);
  if (!values.quiet || broken > 0)
    console.log(broken === 0 ? "all rules held" : `${broken} runs broke a rule`);
  return broken === 0 ? 0 : 1;
}

process.exit(values.family === undefined ? await checkAll() : await measure());
