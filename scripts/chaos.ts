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
import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { sourceCommand } from "../test/support/daemon.ts";
import { runChaos } from "./chaos/run.ts";

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "1" },
    streams: { type: "string", default: "16" },
    tokens: { type: "string", default: "512" },
    replicas: { type: "string", default: "1" },
    "engine-kill-ms": { type: "string", default: "1000" },
    "daemon-kill-ms": { type: "string", default: "10000" },
    "client-cut-ms": { type: "string", default: "500" },
    temperature: { type: "string", default: "0" },
    strict: { type: "boolean", default: false },
    // Kills come whatever a task has said by then: three in a row may leave it no time for a token.
    "max-attempts": { type: "string", default: "10" },
    seed: { type: "string", default: String(crypto.getRandomValues(new Uint32Array(1))[0]) },
    binary: { type: "string", default: resolve(import.meta.dir, "../dist/orchestratord") },
    source: { type: "boolean", default: false },
    log: { type: "string" },
  },
});

function number(
  name: Exclude<keyof typeof values, "strict" | "source" | "binary" | "log">,
  least: number,
): number {
  const value = Number(values[name]);
  if (Number.isFinite(value) && value >= least) return value;
  console.error(`--${name} must be a number of at least ${least}, not "${values[name]}"`);
  process.exit(2);
}

const { log } = values;
const seed = number("seed", 0);
console.error(`seed ${seed}`);
const summary = await runChaos({
  seed,
  command: values.source ? sourceCommand : [resolve(values.binary)],
  durationMs: number("minutes", 0) * 60_000,
  streams: number("streams", 1),
  tokens: number("tokens", 1),
  replicas: number("replicas", 1),
  engineKillMs: number("engine-kill-ms", 0),
  daemonKillMs: number("daemon-kill-ms", 0),
  clientCutMs: number("client-cut-ms", 0),
  temperature: number("temperature", 0),
  strict: values.strict,
  maxAttempts: number("max-attempts", 1),
  say: (line) => console.error(line),
  ...(log === undefined ? {} : { onLog: (text) => writeFileSync(log, text) }),
});
console.log(JSON.stringify({ options: { ...values, seed }, ...summary }, null, 2));
process.exit(summary.failures.length === 0 ? 0 : 1);
