/**
 * Reloads under streams: a pool of the real engine is given its own model anew, a copy of it, another one, and, a third of
 * the times, something that cannot work, while streams go on. Prints the seed first, then a table; the figures go to
 * bench-results/reloads.json; exits 1 when a rule did not hold. Needs `npm run setup` and `npm run build`.
 *
 * bun scripts/reloads.ts --reloads 100 --streams 16 --tokens 256 --strategy mixed --seed 1
 *                        [--waiting N] [--client-cut-ms N] [--load-ms N] [--binary FILE | --source] [--log FILE]
 */
import { Option } from "commander";
import { writeFigures } from "./bench/files.ts";
import { strategies } from "./reloads/plan.ts";
import { runReloads } from "./reloads/run.ts";
import { atLeast, daemonOf, type StressOptions, stressCommand } from "./stress-options.ts";

type Strategy = (typeof strategies)[number] | "mixed";
const options = stressCommand("reloads")
  .option("--reloads <n>", "of the pool", atLeast(1), 100)
  .option("--streams <n>", "at a time", atLeast(1), 16)
  .option("--waiting <n>", "streams on top of those that there are slots for", atLeast(0), 4)
  .option("--tokens <n>", "of each stream", atLeast(1), 256)
  .addOption(
    new Option("--strategy <name>", "of the reloads").choices([...strategies, "mixed"]).default("mixed"),
  )
  .option("--client-cut-ms <n>", "between two cuts of a connection, on average; 0: none", atLeast(0), 500)
  // What a wedged engine costs; a busy machine takes seconds to load a good one.
  .option("--load-ms <n>", "timeouts.load_ms of the pool", atLeast(1), 20_000)
  .parse()
  .opts<
    StressOptions & {
      reloads: number;
      streams: number;
      waiting: number;
      tokens: number;
      strategy: Strategy;
      clientCutMs: number;
      loadMs: number;
    }
  >();

console.error(`seed ${options.seed}`);
const { binary: _, source: __, log: ___, ...run } = options;
const summary = await runReloads({ ...run, ...daemonOf(options) });

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
const file = writeFigures("reloads", { options, ...summary });
console.error(`written: ${file}`);
process.exit(failures.length === 0 ? 0 : 1);
