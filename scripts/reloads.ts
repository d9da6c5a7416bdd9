/**
 * Reloads under streams: a pool of the real engine is given its own model anew, a copy of it, another one, and, a third of
 * the times, something that cannot work, while streams go on. Prints the seed first, then a table; the figures go to
 * bench-results/reloads.json; exits 1 when a rule did not hold. Needs `npm run setup` and `npm run build`.
 *
 * bun scripts/reloads.ts --reloads 100 --streams 16 --tokens 256 --strategy mixed --seed 1
 *                        [--waiting N] [--client-cut-ms N] [--load-ms N] [--binary FILE | --source] [--log FILE]
 */
import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { sourceCommand } from "../test/support/daemon.ts";
import { writeFigures } from "./bench/files.ts";
import { strategies } from "./reloads/plan.ts";
import { runReloads } from "./reloads/run.ts";

const { values } = parseArgs({
  options: {
    reloads: { type: "string", default: "100" },
    streams: { type: "string", default: "16" },
    tokens: { type: "string", default: "256" },
    strategy: { type: "string", default: "mixed" },
    // Streams on top of those that there are slots for.
    waiting: { type: "string", default: "4" },
    "client-cut-ms": { type: "string", default: "500" },
    // What a wedged engine costs; a busy machine takes seconds to load a good one.
    "load-ms": { type: "string", default: "20000" },
    seed: { type: "string", default: String(crypto.getRandomValues(new Uint32Array(1))[0]) },
    binary: { type: "string", default: resolve(import.meta.dir, "../dist/orchestratord") },
    source: { type: "boolean", default: false },
    log: { type: "string" },
  },
});

function number(
  name: "reloads" | "streams" | "tokens" | "waiting" | "client-cut-ms" | "load-ms" | "seed",
  least: number,
): number {
  const value = Number(values[name]);
  if (Number.isFinite(value) && value >= least) return value;
  console.error(`--${name} must be a number of at least ${least}, not "${values[name]}"`);
  process.exit(2);
}

const { log } = values;
const strategy = [...strategies, "mixed" as const].find((one) => one === values.strategy);
if (strategy === undefined) {
  console.error(`--strategy must be surge, recreate or mixed, not "${values.strategy}"`);
  process.exit(2);
}
const seed = number("seed", 0);
console.error(`seed ${seed}`);
const summary = await runReloads({
  seed,
  command: values.source ? sourceCommand : [resolve(values.binary)],
  reloads: number("reloads", 1),
  streams: number("streams", 1),
  waiting: number("waiting", 0),
  tokens: number("tokens", 1),
  strategy,
  clientCutMs: number("client-cut-ms", 0),
  loadMs: number("load-ms", 1),
  say: (line) => console.error(line),
  ...(log === undefined ? {} : { onLog: (text) => writeFileSync(log, text) }),
});

const { kinds, longest_ms, health, footprint, failures, ...rest } = summary;
console.log("reloads                     as they should   longest ms");
for (const [kind, count] of Object.entries(kinds))
  console.log(`${kind.padEnd(28)}${String(count).padStart(14)}${String(longest_ms[kind]).padStart(13)}`);
const rows = {
  ...rest,
  health_polls: health.polls,
  health_mismatch_ms: health.longest_mismatch_ms,
  ...footprint,
};
for (const [name, value] of Object.entries(rows)) console.log(`${name.padEnd(28)}${JSON.stringify(value)}`);
for (const failure of failures) console.log(JSON.stringify(failure, null, 1));
console.log(`${failures.length} broken rules`);
const file = writeFigures("reloads", { options: { ...values, seed }, ...summary });
console.error(`written: ${file}`);
process.exit(failures.length === 0 ? 0 : 1);
