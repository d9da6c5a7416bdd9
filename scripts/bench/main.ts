/**
 * `npm run bench`: orchestratord against the engine alone, in one run. Prints a table and writes
 * bench-results/bench.json. Absolute times say little on a shared machine; the ratios and differences are the
 * figures. `--pairs N` (default 15), `--quick` for a smoke run.
 */
import { type BenchFiles, engineBench, writeFigures } from "./files.ts";
import { measureGeneration } from "./generation.ts";
import { measureLoad } from "./load.ts";

const options = engineBench("bench")
  .option("--pairs <n>", "interleaved pairs for each number of streams", "15")
  .option("--streams <list>", "numbers of concurrent streams", "1,4,16")
  .option("--tokens <n>", "tokens of each stream", "256")
  .option("--quick", "few repetitions: shows that it runs, its figures mean nothing")
  .parse()
  .opts<BenchFiles & { pairs: string; streams: string; tokens: string; quick?: true }>();
const quick = options.quick === true;
const { binary, engineBin, model } = options;
const files: BenchFiles = { binary, engineBin, model };

const say = (line: string): void => void process.stderr.write(`${line}\n`);
const { throughput, firstToken } = await measureGeneration(
  {
    ...files,
    pairs: quick ? 2 : Number(options.pairs),
    tokens: Number(options.tokens),
    streams: options.streams.split(",").map(Number),
    firstTokenRequests: quick ? 20 : 400,
    warmUpRounds: quick ? 1 : 12,
  },
  say,
);
const load = await measureLoad({
  ...files,
  rounds: quick ? 1 : 5,
  tasks: quick ? 2_000 : 20_000,
  clients: 64,
  viewers: 1_000,
});

const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
const rows: [string, string][] = [
  ...throughput.map((t): [string, string] => [
    `throughput, ${t.streams} stream${t.streams === 1 ? "" : "s"}`,
    `${t.ratio.toFixed(3)} of direct [${t.ratioLow.toFixed(3)}, ${t.ratioHigh.toFixed(3)}], ${t.pairs} pairs (${t.directTokensPerSecond.toFixed(0)} and ${t.daemonTokensPerSecond.toFixed(0)} tokens/s)`,
  ]),
  ...throughput.map((t): [string, string] => [
    `daemon CPU per token, ${t.streams} stream${t.streams === 1 ? "" : "s"}`,
    `${t.daemonCpuUsPerToken.toFixed(1)} us [${t.daemonCpuLow.toFixed(1)}, ${t.daemonCpuHigh.toFixed(1)}] (a bare copying proxy in the same run: ${t.proxyCpuUsPerToken.toFixed(1)} us)`,
  ]),
  [
    "added time to first token, median",
    `${firstToken.addedP50Ms.toFixed(2)} ms [${firstToken.addedLowMs.toFixed(2)}, ${firstToken.addedHighMs.toFixed(2)}] (${firstToken.directP50Ms.toFixed(2)} direct, ${firstToken.requests} requests)`,
  ],
  [
    "added time to first token, p99",
    `${firstToken.addedP99Ms.toFixed(2)} ms (${firstToken.directP99Ms.toFixed(2)} direct)`,
  ],
  [
    "accepted tasks, mock engine",
    `${load.acceptedPerSecond.toFixed(0)}/s (worst round ${load.acceptedPerSecondMin.toFixed(0)}, ${load.clients} clients, synced to disk)`,
  ],
  [
    "time to accept, mock engine",
    `median ${load.acceptP50Ms.toFixed(1)} ms, p99 ${load.acceptP99Ms.toFixed(1)} ms`,
  ],
  ["RSS idle", mib(load.rssIdleBytes)],
  [`RSS added by ${load.viewers} idle viewers`, mib(load.rssAddedByViewersBytes)],
];
const width = Math.max(...rows.map(([name]) => name.length));
for (const [name, value] of rows) process.stdout.write(`${name.padEnd(width)}  ${value}\n`);

const file = writeFigures(quick ? "bench-quick" : "bench", { throughput, firstToken, load, quick });
say(`written: ${file}`);
process.exit(0);
