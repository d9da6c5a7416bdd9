/**
 * Streams on the real engine while its processes, the daemon and the clients' connections are killed; each stream is
 * compared byte for byte with what the same request says when nothing cuts it. Prints the seed first and one JSON
 * object last; exits 1 when a rule did not hold. Kills come at moments drawn by chance, so far apart on average.
 * Needs `npm run setup` and `npm run build`.
 *
 * bun scripts/chaos.ts --minutes 15 --streams 16 --tokens 512 --engine-kill-ms 1000 --daemon-kill-ms 10000
 *                      [--temperature 0.8 --strict] [--replicas N] [--client-cut-ms N] [--max-attempts N] [--seed N]
 *                      [--binary dist/orchestratord | --source] [--log FILE]
 */
import { runChaos } from "./chaos/run.ts";
import { atLeast, daemonOf, type StressOptions, stressCommand } from "./stress-options.ts";

const options = stressCommand("chaos")
  .option("--minutes <n>", "how long", atLeast(0), 1)
  .option("--streams <n>", "at a time", atLeast(1), 16)
  .option("--tokens <n>", "of each stream", atLeast(1), 512)
  .option("--replicas <n>", "of the pool", atLeast(1), 1)
  .option("--engine-kill-ms <n>", "between two kills of an engine, on average; 0: none", atLeast(0), 1000)
  .option("--daemon-kill-ms <n>", "between two kills of the daemon, on average; 0: none", atLeast(0), 10_000)
  .option("--client-cut-ms <n>", "between two cuts of a connection, on average; 0: none", atLeast(0), 500)
  .option("--temperature <n>", "0: greedy", atLeast(0), 0)
  .option("--strict", "determinism of the tasks", false)
  // Kills come whatever a task has said by then: three in a row may leave it no time for a token.
  .option("--max-attempts <n>", "without a new token", atLeast(1), 10)
  .parse()
  .opts<
    StressOptions & {
      minutes: number;
      streams: number;
      tokens: number;
      replicas: number;
      engineKillMs: number;
      daemonKillMs: number;
      clientCutMs: number;
      temperature: number;
      strict: boolean;
      maxAttempts: number;
    }
  >();

console.error(`seed ${options.seed}`);
const { minutes, binary: _, source: __, log: ___, ...figures } = options;
const summary = await runChaos({ ...figures, ...daemonOf(options), durationMs: minutes * 60_000 });
console.log(JSON.stringify({ options, ...summary }, null, 2));
process.exit(summary.failures.length === 0 ? 0 : 1);
