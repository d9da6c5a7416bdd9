/**
 * Does a viewer who hardly reads cost the others anything? Hundreds of viewers follow a few streaming tasks on the
 * mock engine; in every other round one more reads a byte a second of a stream that it has fallen behind in from its
 * first moment. Compared, pair by pair in alternating order: the gaps between two tokens at the other viewers, and CPU;
 * over the whole run: resident memory.
 *
 * `bun scripts/bench/slow-viewer.ts --pairs 12`; prints the figures and writes bench-results/slow-viewer.json.
 */
import { daemonBench, writeFigures } from "./files.ts";
import { cpuUs, type Daemon, rssBytes, startDaemon, untilReady } from "./processes.ts";
import { median, medianInterval, quantile } from "./statistics.ts";

const options = daemonBench("slow-viewer")
  .option("--pairs <n>", "pairs of rounds, one with and one without", "12")
  .option("--round-s <n>", "length of a round", "8")
  .option("--viewers <n>", "that read as fast as it comes", "200")
  .option("--slow <n>", "that read one byte a second", "1")
  .option("--tasks <n>", "that stream at the same time", "4")
  .option("--token-ms <n>", "time of a token", "20")
  .option("--warm-up-s <n>", "before the first round: what a slow viewer is behind by", "120")
  .parse()
  .opts<
    Record<"binary" | "pairs" | "roundS" | "viewers" | "slow" | "tasks" | "tokenMs" | "warmUpS", string>
  >();

const pairs = Number(options.pairs);
const roundMs = Number(options.roundS) * 1000;
const tasks = Number(options.tasks);
const tokenMs = Number(options.tokenMs);
const warmUpMs = Number(options.warmUpS) * 1000;
const settleMs = 1_000;
/** Twice what the run takes. */
const maxTokens = Math.ceil((2 * (warmUpMs + 2 * pairs * (roundMs + settleMs))) / tokenMs);

const say = (line: string): void => void process.stderr.write(`${line}\n`);
const tokenMark = Buffer.from("event: token");
const heads = (daemon: Daemon, path: string): string =>
  `GET ${path} HTTP/1.1\r\nHost: ${daemon.host}:${daemon.port}\r\nX-API-Key: ${daemon.key}\r\n\r\n`;

/** What all viewers saw in one round: milliseconds between two tokens, 0 where they came together. */
let gaps: number[] | null = null;

function tokensIn(chunk: Buffer): number {
  let count = 0;
  for (let at = chunk.indexOf(tokenMark); at >= 0; at = chunk.indexOf(tokenMark, at + 1)) count++;
  return count;
}

/** Reads as fast as it comes; its gaps go to the round that is on. */
async function watch(daemon: Daemon, path: string): Promise<void> {
  let lastMs: number | null = null;
  let opened: () => void = () => undefined;
  const open = new Promise<void>((resolve) => {
    opened = resolve;
  });
  await Bun.connect({
    hostname: daemon.host,
    port: daemon.port,
    socket: {
      open: (socket) => void socket.write(heads(daemon, path)),
      data: (_socket, chunk) => {
        opened();
        const tokens = tokensIn(chunk);
        if (tokens === 0) return;
        const nowMs = performance.now();
        if (gaps !== null && lastMs !== null) {
          gaps.push(nowMs - lastMs);
          for (let more = 1; more < tokens; more++) gaps.push(0);
        }
        lastMs = nowMs;
      },
      close: () => {
        if (measuring) throw new Error("a viewer lost its stream");
      },
    },
  });
  await open;
}

/** One byte a second, read as such: a runtime of ours would read what is there. */
const dripping = `exec 3<>"/dev/tcp/$1/$2"; printf '%s' "$3" >&3; while IFS= read -r -d '' -N 1 -u 3 byte; do sleep 1; done`;
function startSlow(daemon: Daemon, path: string): () => Promise<void> {
  const command = [
    "bash",
    "-c",
    dripping,
    "slow-viewer",
    daemon.host,
    String(daemon.port),
    heads(daemon, path),
  ];
  const child = Bun.spawn(command, { stdout: "ignore", stderr: "ignore" });
  return async () => {
    if (child.exitCode !== null) throw new Error("a slow viewer lost its stream");
    child.kill("SIGKILL");
    await child.exited;
  };
}

interface Round {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly cpuUsPerToken: number;
  readonly rssBytes: number;
}

async function round(daemon: Daemon, streams: readonly string[], slow: number): Promise<Round> {
  const stops = Array.from({ length: slow }, (_, n) => startSlow(daemon, streams[n % streams.length] ?? ""));
  await Bun.sleep(settleMs);
  const beforeUs = cpuUs(daemon.pid);
  const seen: number[] = [];
  gaps = seen;
  await Bun.sleep(roundMs);
  gaps = null;
  const figures = {
    p50Ms: median(seen),
    p99Ms: quantile(seen, 0.99),
    cpuUsPerToken: (cpuUs(daemon.pid) - beforeUs) / seen.length,
    rssBytes: rssBytes(daemon.pid),
  };
  for (const stop of stops) await stop();
  return figures;
}

let measuring = false;
const daemon = await startDaemon(options.binary, {
  limits: { rate: { per_second: 1_000_000, burst: 1_000_000 }, streams_per_key: 20_000 },
  shutdown: { drain_deadline_ms: 100 },
  pools: [
    {
      id: "mock",
      engine: "mock",
      model: "mock:words",
      slots: tasks,
      ctx: maxTokens + 1000,
      preload: true,
      mock: { token_ms: tokenMs, prefill_ms_per_token: 0 },
    },
  ],
});
const rounds: { readonly with: Round; readonly without: Round }[] = [];
try {
  await untilReady(daemon);
  const streams: string[] = [];
  for (let n = 0; n < tasks; n++) {
    const answer = await fetch(`http://${daemon.host}:${daemon.port}/v1/tasks`, {
      method: "POST",
      headers: { "X-API-Key": daemon.key, "Content-Type": "application/json" },
      body: JSON.stringify({
        prompt: `Tell me story ${n}`,
        max_tokens: maxTokens,
        on_disconnect: "continue",
      }),
    });
    if (answer.status !== 202)
      throw new Error(`a task was answered with ${answer.status}: ${await answer.text()}`);
    streams.push(((await answer.json()) as { stream_url: string }).stream_url);
  }
  await Promise.all(
    Array.from({ length: Number(options.viewers) }, (_, n) => watch(daemon, streams[n % tasks] ?? "")),
  );
  measuring = true;
  say(`${options.viewers} viewers of ${tasks} tasks; warming up for ${warmUpMs / 1000} s`);
  await Bun.sleep(warmUpMs);
  for (let pair = 0; pair < pairs; pair++) {
    const figures: Partial<Record<"with" | "without", Round>> = {};
    for (const arm of pair % 2 === 0 ? (["with", "without"] as const) : (["without", "with"] as const))
      figures[arm] = await round(daemon, streams, arm === "with" ? Number(options.slow) : 0);
    const { with: slowed, without } = figures;
    if (slowed === undefined || without === undefined) throw new Error("a round did not run");
    rounds.push({ with: slowed, without });
    say(
      `pair ${pair + 1}: p99 ${slowed.p99Ms.toFixed(2)} and ${without.p99Ms.toFixed(2)} ms, RSS ${(slowed.rssBytes / 2 ** 20).toFixed(1)} MiB`,
    );
  }
  measuring = false;
} finally {
  await daemon.stop();
}

/** Median and 95 % interval of what one arm is of the other, pair by pair. */
function ratioOf(figure: "p50Ms" | "p99Ms" | "cpuUsPerToken") {
  const ratios = rounds.map((pair) => pair.with[figure] / pair.without[figure]);
  const both = (arm: "with" | "without") => median(rounds.map((pair) => pair[arm][figure]));
  return { with: both("with"), without: both("without"), ratio: median(ratios), ...medianInterval(ratios) };
}
const figures = { p50Ms: ratioOf("p50Ms"), p99Ms: ratioOf("p99Ms"), cpuUsPerToken: ratioOf("cpuUsPerToken") };
const names = {
  p50Ms: "between tokens, median, ms",
  p99Ms: "between tokens, p99, ms",
  cpuUsPerToken: "daemon CPU per token and viewer, us",
};
for (const [name, one] of Object.entries(figures) as [keyof typeof names, (typeof figures)["p50Ms"]][])
  process.stdout.write(
    `${names[name].padEnd(36)} ${one.with.toFixed(2)} with, ${one.without.toFixed(2)} without: ${one.ratio.toFixed(3)} [${one.low.toFixed(3)}, ${one.high.toFixed(3)}]\n`,
  );
const rss = rounds.flatMap((pair) => [pair.with.rssBytes, pair.without.rssBytes]);
const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);
process.stdout.write(
  `${"RSS in the rounds, MiB".padEnd(36)} first ${mib(rss[0] ?? 0)}, last ${mib(rss.at(-1) ?? 0)}, ${mib(Math.min(...rss))} to ${mib(Math.max(...rss))}\n`,
);
say(`written: ${writeFigures("slow-viewer", { options, figures, rounds })}`);
process.exit(0);
