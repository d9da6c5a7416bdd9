/**
 * What a person feels when 300 batch tasks came first: the time to the first token of interactive requests through
 * orchestratord, against the same requests sent straight to llama-server in the order of arrival. Same engine flags,
 * same prompts, one after the other in one run.
 *
 * `bun scripts/bench/behind-batch.ts --batch 300 --interactive 40`; prints both 95th percentiles and their ratio.
 */
import { type BenchFiles, engineBench, writeFigures } from "./files.ts";
import { Connection, type Target } from "./http-client.ts";
import { startDaemon, startEngine, untilReady } from "./processes.ts";
import { quantile } from "./statistics.ts";
import { daemonTarget, engineTarget } from "./targets.ts";

const options = engineBench("behind-batch")
  .option("--batch <n>", "batch tasks that come first", "300")
  .option("--interactive <n>", "interactive requests behind them", "40")
  .parse()
  .opts<BenchFiles & { batch: string; interactive: string }>();

const batch = Number(options.batch);
const interactive = Number(options.interactive);
const slots = 4;
const ctx = 1024;
const batchTokens = 192;
const interactiveTokens = 32;
/** Between two interactive requests; on both sides. */
const spacingMs = 100;

interface Side {
  readonly target: Target;
  readonly body: (n: number, tokens: number, priority: string) => string;
}

const promptOf = (n: number): string => `${n} the lamps of the harbour were lit one by one and`;

/** First-token times of the interactive requests, sent while all the batch work waits. */
async function measure({ target, body }: Side): Promise<number[]> {
  const flood = await Promise.all(
    Array.from({ length: batch }, async (_, n) => {
      const connection = await Connection.open(target);
      // Its end is not waited for here: the side is stopped when the interactive ones are through.
      return { connection, done: connection.stream(target, body(n, batchTokens, "batch")) };
    }),
  );
  for (const { done } of flood) done.catch(() => undefined);
  await Bun.sleep(500);
  const waiting: Promise<number>[] = [];
  for (let n = 0; n < interactive; n++) {
    const connection = await Connection.open(target);
    waiting.push(
      connection
        .stream(target, body(10_000 + n, interactiveTokens, "interactive"))
        .then(({ firstTokenMs }) => firstTokenMs),
    );
    await Bun.sleep(spacingMs);
  }
  const firstTokenMs = await Promise.all(waiting);
  for (const { connection } of flood) connection.close();
  return firstTokenMs;
}

async function throughDaemon(): Promise<number[]> {
  const daemon = await startDaemon(options.binary, {
    limits: { rate: { per_second: 100_000, burst: 100_000 }, streams_per_key: 20_000 },
    engines: { llamacpp: { bin: options.engineBin } },
    shutdown: { drain_deadline_ms: 0 },
    pools: [
      {
        id: "chat",
        engine: "llamacpp",
        model: `file:${options.model}`,
        slots,
        ctx,
        preload: true,
        queue: { capacity: 1024 },
        args: ["-t", "1", "--ignore-eos"],
      },
    ],
  });
  try {
    await untilReady(daemon);
    return await measure({
      target: daemonTarget(daemon),
      body: (n, max_tokens, priority) =>
        JSON.stringify({ prompt: promptOf(n), max_tokens, priority, seed: 1 }),
    });
  } finally {
    await daemon.stop();
  }
}

async function direct(): Promise<number[]> {
  const engine = await startEngine(options.engineBin, options.model, slots, ctx, ["--ignore-eos"]);
  try {
    return await measure({
      target: engineTarget(engine),
      body: (n, n_predict) =>
        JSON.stringify({ prompt: promptOf(n), n_predict, seed: 1, stream: true, cache_prompt: true }),
    });
  } finally {
    await engine.stop();
  }
}

const figures = { batch, interactive, through: await throughDaemon(), direct: await direct() };
const p95 = { through: quantile(figures.through, 0.95), direct: quantile(figures.direct, 0.95) };
const show = (name: string, samples: readonly number[]): void =>
  console.log(
    `${name.padEnd(16)} first token of ${interactive} interactive behind ${batch} batch: median ${quantile(samples, 0.5).toFixed(0)} ms, p95 ${quantile(samples, 0.95).toFixed(0)} ms`,
  );
show("orchestratord", figures.through);
show("llama-server", figures.direct);
console.log(`p95 ratio        1/${(p95.direct / p95.through).toFixed(0)}`);
writeFigures("behind-batch", { ...figures, p95, ratio: p95.through / p95.direct });
