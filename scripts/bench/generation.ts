/**
 * Generation through orchestratord against the engine alone, in interleaved pairs in one run: throughput ratio,
 * added time to first token, CPU per token of the daemon. The order within a pair alternates.
 */
import type { BenchFiles } from "./files.ts";
import { Connection, type Timing } from "./http-client.ts";
import {
  cpuUs,
  type Daemon,
  type Running,
  startCopyingProxy,
  startDaemon,
  startEngine,
  untilReady,
} from "./processes.ts";
import { median, medianInterval, quantile } from "./statistics.ts";
import { daemonTarget, engineTarget, type Side } from "./targets.ts";

export interface GenerationOptions extends BenchFiles {
  readonly pairs: number;
  readonly tokens: number;
  readonly firstTokenRequests: number;
  /** Rounds of 16 streams before anything counts. */
  readonly warmUpRounds: number;
  /** Numbers of concurrent streams, each measured by itself; at most the 16 slots. */
  readonly streams: readonly number[];
}

export interface ThroughputFigures {
  readonly streams: number;
  readonly pairs: number;
  readonly directTokensPerSecond: number;
  readonly daemonTokensPerSecond: number;
  readonly ratio: number;
  readonly ratioLow: number;
  readonly ratioHigh: number;
  readonly daemonCpuUsPerToken: number;
  readonly daemonCpuLow: number;
  readonly daemonCpuHigh: number;
  /** What a proxy that only copies bytes costs on this machine in the same run: the yardstick for the above. */
  readonly proxyCpuUsPerToken: number;
}

export interface FirstTokenFigures {
  readonly requests: number;
  readonly directP50Ms: number;
  readonly directP99Ms: number;
  readonly daemonP50Ms: number;
  readonly daemonP99Ms: number;
  readonly addedP50Ms: number;
  /** Of the median of the differences within pairs. */
  readonly addedLowMs: number;
  readonly addedHighMs: number;
  readonly addedP99Ms: number;
}

export const slots = 16;
const ctx = 1024;
const words = "The harbour lay quiet while the first boats came home and somebody lit the lamp".split(" ");
/**
 * The same prompts on both sides, each different from its first words on: neither side meets a prompt that it
 * still has in a slot's cache.
 */
const promptOf = (n: number): string =>
  `${n} ${Array.from({ length: 12 }, (_, i) => words[(n * 7 + i * (1 + (n % 5))) % words.length]).join(" ")}`;

interface Sides {
  readonly direct: Side;
  readonly through: Side;
  readonly copying: Side;
  readonly daemonPid: number;
  readonly proxyPid: number;
}

const directSide = (engine: Running): Side => ({
  target: engineTarget(engine),
  body: (n, tokens) =>
    JSON.stringify({
      prompt: promptOf(n),
      n_predict: tokens,
      temperature: 0,
      seed: 1,
      stream: true,
      cache_prompt: true,
    }),
});

export const daemonSide = (daemon: Daemon): Side => ({
  target: daemonTarget(daemon),
  body: (n, tokens) =>
    JSON.stringify({ prompt: promptOf(n), max_tokens: tokens, seed: 1, sampling: { temperature: 0 } }),
});

/** With one replica of sixteen slots, like the engine beside it. */
export const startGenerating = ({ binary, engineBin, model }: BenchFiles): Promise<Daemon> =>
  startDaemon(binary, {
    limits: { rate: { per_second: 1_000_000, burst: 1_000_000 } },
    engines: { llamacpp: { bin: engineBin } },
    pools: [
      {
        id: "bench",
        engine: "llamacpp",
        model: `file:${model}`,
        slots,
        ctx,
        preload: true,
        args: ["-t", "1"],
      },
    ],
  });

/** Connections are open before the clock starts, on both sides. */
async function connections(side: Side, count: number, kept: Connection[]): Promise<Connection[]> {
  if (!side.target.keepAlive)
    return await Promise.all(Array.from({ length: count }, () => Connection.open(side.target)));
  const open = kept.splice(0).filter(({ isGone }) => !isGone);
  while (open.length < count) open.push(await Connection.open(side.target));
  kept.push(...open);
  return open.slice(0, count);
}

export async function measureGeneration(
  options: GenerationOptions,
  note: (line: string) => void,
): Promise<{ throughput: ThroughputFigures[]; firstToken: FirstTokenFigures }> {
  const engine = await startEngine(options.engineBin, options.model, slots, ctx);
  const daemon = await startGenerating(options);
  const proxy = await startCopyingProxy(engine);
  try {
    await untilReady(daemon);
    const direct = directSide(engine);
    const through = daemonSide(daemon);
    const copying: Side = { ...direct, target: { ...direct.target, port: proxy.port } };
    const kept: Connection[] = [];
    const throughput: ThroughputFigures[] = [];
    // The runtime compiles what is hot for the first ten thousands of tokens; after that a daemon is as it stays.
    for (let n = 0; n < options.warmUpRounds; n++) {
      await round(through, slots, options.tokens, 500_000 + n, kept);
      await round(copying, slots, options.tokens, 500_000 + n, []);
    }
    note("warm");
    const sides = { direct, through, copying, daemonPid: daemon.pid, proxyPid: proxy.pid };
    for (const streams of options.streams)
      throughput.push(await measureThroughput(options, streams, sides, kept, note));
    const firstToken = await measureFirstToken(options, direct, through, kept);
    for (const connection of kept) connection.close();
    return { throughput, firstToken };
  } finally {
    await proxy.stop();
    await daemon.stop();
    await engine.stop();
  }
}

export async function round(
  side: Side,
  streams: number,
  tokens: number,
  n: number,
  kept: Connection[],
): Promise<{ ms: number; timings: Timing[] }> {
  const open = await connections(side, streams, kept);
  const startedMs = performance.now();
  const timings = await Promise.all(
    open.map((connection, i) => connection.stream(side.target, side.body(n * 16 + i, tokens))),
  );
  const ms = performance.now() - startedMs;
  if (!side.target.keepAlive) for (const connection of open) connection.close();
  return { ms, timings };
}

async function measureThroughput(
  options: GenerationOptions,
  streams: number,
  { direct, through, copying, daemonPid, proxyPid }: Sides,
  kept: Connection[],
  note: (line: string) => void,
): Promise<ThroughputFigures> {
  const { pairs, tokens } = options;
  const ratios: number[] = [];
  const rates = { direct: [] as number[], daemon: [] as number[] };
  const cpuPerToken = { daemon: [] as number[], proxy: [] as number[] };
  const generated = streams * tokens;
  // The first pair warms both sides up and is not counted.
  for (let pair = -1; pair < pairs; pair++) {
    const n = streams * 1000 + pair + 1;
    const seconds = { direct: 0, daemon: 0 };
    const order = pair % 2 === 0 ? (["direct", "daemon"] as const) : (["daemon", "direct"] as const);
    for (const which of order) {
      const before = cpuUs(daemonPid);
      const { ms } = await round(which === "direct" ? direct : through, streams, tokens, n, kept);
      seconds[which] = ms / 1000;
      if (which === "daemon" && pair >= 0) cpuPerToken.daemon.push((cpuUs(daemonPid) - before) / generated);
    }
    const before = cpuUs(proxyPid);
    await round(copying, streams, tokens, n, []);
    if (pair < 0) continue;
    cpuPerToken.proxy.push((cpuUs(proxyPid) - before) / generated);
    ratios.push(seconds.direct / seconds.daemon);
    rates.direct.push((streams * tokens) / seconds.direct);
    rates.daemon.push((streams * tokens) / seconds.daemon);
  }
  const { low, high } = medianInterval(ratios);
  const cpu = medianInterval(cpuPerToken.daemon);
  note(`${streams} streams: ${pairs} pairs done`);
  return {
    streams,
    pairs,
    directTokensPerSecond: median(rates.direct),
    daemonTokensPerSecond: median(rates.daemon),
    ratio: median(ratios),
    ratioLow: low,
    ratioHigh: high,
    daemonCpuUsPerToken: median(cpuPerToken.daemon),
    daemonCpuLow: cpu.low,
    daemonCpuHigh: cpu.high,
    proxyCpuUsPerToken: median(cpuPerToken.proxy),
  };
}

async function measureFirstToken(
  options: GenerationOptions,
  direct: Side,
  through: Side,
  kept: Connection[],
): Promise<FirstTokenFigures> {
  const times = { direct: [] as number[], daemon: [] as number[] };
  const tokens = 4;
  for (let i = -5; i < options.firstTokenRequests; i++) {
    const n = 90_000 + i;
    const order = i % 2 === 0 ? (["direct", "daemon"] as const) : (["daemon", "direct"] as const);
    for (const which of order) {
      const { timings } = await round(which === "direct" ? direct : through, 1, tokens, n, kept);
      const first = timings[0];
      if (i >= 0 && first !== undefined) times[which].push(first.firstTokenMs);
    }
  }
  const added = medianInterval(times.daemon.map((ms, at) => ms - (times.direct[at] ?? Number.NaN)));
  const figures = {
    directP50Ms: median(times.direct),
    directP99Ms: quantile(times.direct, 0.99),
    daemonP50Ms: median(times.daemon),
    daemonP99Ms: quantile(times.daemon, 0.99),
  };
  return {
    requests: times.daemon.length,
    ...figures,
    addedP50Ms: figures.daemonP50Ms - figures.directP50Ms,
    addedLowMs: added.low,
    addedHighMs: added.high,
    addedP99Ms: figures.daemonP99Ms - figures.directP99Ms,
  };
}
