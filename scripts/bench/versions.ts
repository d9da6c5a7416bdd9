/**
 * Two builds of orchestratord against each other, each with an engine of its own, in interleaved pairs: what a change
 * costs in throughput and in CPU per token. `--old FILE` is the build to compare with; absolute times say little.
 */
import { type BenchFiles, engineBench, writeFigures } from "./files.ts";
import { daemonSide, round, slots, startGenerating } from "./generation.ts";
import type { Connection } from "./http-client.ts";
import { cpuUs, untilReady } from "./processes.ts";
import { median, medianInterval } from "./statistics.ts";

const options = engineBench("versions")
  .requiredOption("--old <file>", "the build to compare with")
  .option("--pairs <n>", "interleaved pairs for each number of streams", "15")
  .option("--streams <list>", "numbers of concurrent streams", "16")
  .option("--tokens <n>", "tokens of each stream", "256")
  .option("--warm-up <n>", "rounds of 16 streams before anything counts", "12")
  .parse()
  .opts<BenchFiles & { old: string; pairs: string; streams: string; tokens: string; warmUp: string }>();
const tokens = Number(options.tokens);

const daemons = {
  old: await startGenerating({ ...options, binary: options.old }),
  now: await startGenerating(options),
};
const kept: Record<keyof typeof daemons, Connection[]> = { old: [], now: [] };
const names = ["old", "now"] as const;

async function measure(which: (typeof names)[number], streams: number, n: number) {
  const { pid } = daemons[which];
  const before = cpuUs(pid);
  const { ms } = await round(daemonSide(daemons[which]), streams, tokens, n, kept[which]);
  return { ms, cpuUs: (cpuUs(pid) - before) / (streams * tokens) };
}

try {
  for (const which of names) await untilReady(daemons[which]);
  for (let n = 0; n < Number(options.warmUp); n++)
    for (const which of names) await measure(which, slots, 500_000 + n);
  const figures = [];
  for (const streams of options.streams.split(",").map(Number)) {
    const throughput: number[] = [];
    const cpu = { ratio: [] as number[], old: [] as number[], now: [] as number[] };
    // The first pair is not counted.
    for (let pair = -1; pair < Number(options.pairs); pair++) {
      const n = streams * 1000 + pair + 1;
      const order = pair % 2 === 0 ? names : names.toReversed();
      const seen = { old: { ms: 0, cpuUs: 0 }, now: { ms: 0, cpuUs: 0 } };
      for (const which of order) seen[which] = await measure(which, streams, n);
      if (pair < 0) continue;
      throughput.push(seen.old.ms / seen.now.ms);
      cpu.ratio.push(seen.now.cpuUs / seen.old.cpuUs);
      cpu.old.push(seen.old.cpuUs);
      cpu.now.push(seen.now.cpuUs);
    }
    const figure = {
      streams,
      pairs: throughput.length,
      throughput: { ratio: median(throughput), ...medianInterval(throughput) },
      cpu: {
        ratio: median(cpu.ratio),
        ...medianInterval(cpu.ratio),
        oldUs: median(cpu.old),
        nowUs: median(cpu.now),
      },
    };
    figures.push(figure);
    const ratioOf = ({ ratio, low, high }: { ratio: number; low: number; high: number }): string =>
      `${ratio.toFixed(3)} [${low.toFixed(3)}, ${high.toFixed(3)}]`;
    process.stdout.write(
      `${streams} streams, ${figure.pairs} pairs: throughput ${ratioOf(figure.throughput)} of the old build, ` +
        `CPU per token ${ratioOf(figure.cpu)} (${figure.cpu.oldUs.toFixed(1)} and ${figure.cpu.nowUs.toFixed(1)} us)\n`,
    );
  }
  process.stderr.write(`written: ${writeFigures("versions", figures)}\n`);
} finally {
  for (const which of names) {
    for (const connection of kept[which]) connection.close();
    await daemons[which].stop();
  }
}
process.exit(0);
