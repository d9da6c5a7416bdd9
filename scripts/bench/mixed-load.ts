/**
 * Are the promises true? Sixteen agents load a real engine for minutes, twelve with turns of a conversation and
 * time to think, four with floods of batch work; each promise is compared with what happened: the 80 % interval of
 * the start (of tasks that had to wait), the probability to meet the deadline (Brier score, against that of always
 * answering the base rate).
 *
 * `bun scripts/bench/mixed-load.ts --minutes 30 --seed 1`; prints the table and writes bench-results/mixed-load.json.
 */
import { type BenchFiles, engineBench, writeFigures } from "./files.ts";
import { type Daemon, startDaemon, untilReady } from "./processes.ts";
import { mulberry32, quantile } from "./statistics.ts";

const options = engineBench("mixed-load")
  .option("--minutes <n>", "how long agents submit", "30")
  .option("--seed <n>", "of what they submit", "1")
  .parse()
  .opts<BenchFiles & { minutes: string; seed: string }>();

type Priority = "interactive" | "batch";

interface Outcome {
  readonly priority: Priority;
  readonly queuePosition: number;
  readonly basis: string;
  readonly startLowMs: number;
  readonly startHighMs: number;
  readonly startMs: number;
  readonly onTimeProbability: number | null;
  readonly actualStartMs: number | null;
  readonly onTime: boolean | null;
}

interface Promised {
  readonly task_id: string;
  readonly queue_position: number;
  readonly predicted_start_ms: number;
  readonly predicted_start_low_ms: number;
  readonly predicted_start_high_ms: number;
  readonly prediction_basis: string;
  readonly on_time_probability: number | null;
}

interface View {
  readonly state: string;
  readonly created_ms: number;
  readonly started_ms: number | null;
  readonly finished_ms: number | null;
}

const minutes = Number(options.minutes);
const seed = Number(options.seed);
const slots = 4;
const outcomes: Outcome[] = [];
const refused = new Map<string, number>();
let untilMs = 0;

const words =
  "the quiet harbour kept its lamps lit while boats came home and somebody sang of rain on slate".split(" ");

class Agent {
  private readonly unit: () => number;

  constructor(
    private readonly daemon: Daemon,
    number: number,
  ) {
    this.unit = mulberry32(seed * 1000 + number);
  }

  /** A conversation: each turn begins as the one before did. */
  async converse(): Promise<void> {
    while (performance.now() < untilMs) {
      let text = this.text(this.int(5, 40));
      for (let turns = this.int(1, 6); turns > 0 && performance.now() < untilMs; turns--) {
        // Some turns ask several things at once, as agents with tools do.
        const calls = this.unit() < 0.3 ? this.int(2, 4) : 1;
        await Promise.all(
          Array.from({ length: calls }, (_, n) =>
            this.run("interactive", n === 0 ? text : `${text} ${this.text(3)}`),
          ),
        );
        text += ` ${this.text(this.int(5, 20))}`;
        await Bun.sleep(this.exponential(2_000));
      }
      await Bun.sleep(this.exponential(3_000));
    }
  }

  /** Nothing for a while, then many at once. */
  async flood(): Promise<void> {
    while (performance.now() < untilMs) {
      await Bun.sleep(this.exponential(15_000));
      const size = this.int(4, 16);
      await Promise.all(Array.from({ length: size }, () => this.run("batch", this.text(this.int(10, 80)))));
    }
  }

  private async run(priority: Priority, prompt: string): Promise<void> {
    const max_tokens = 2 ** this.int(4, 8);
    const deadline_ms = this.unit() < 0.5 ? Math.round(300 * 2 ** (this.unit() * 6)) : undefined;
    const body = { prompt, max_tokens, priority, seed: this.int(0, 1e6), deadline_ms };
    const answer = await this.fetch("/v1/tasks", { method: "POST", body: JSON.stringify(body) });
    if (answer.status !== 202) {
      const { code } = (await answer.json()) as { code: string };
      refused.set(code, (refused.get(code) ?? 0) + 1);
      return;
    }
    const promised = (await answer.json()) as Promised;
    // Observed only: what counts is when it starts and ends, not who reads.
    await (await this.fetch(`/v1/tasks/${promised.task_id}/stream?observe=1`)).text();
    const view = (await (await this.fetch(`/v1/tasks/${promised.task_id}`)).json()) as View;
    outcomes.push({
      priority,
      queuePosition: promised.queue_position,
      basis: promised.prediction_basis,
      startLowMs: promised.predicted_start_low_ms,
      startHighMs: promised.predicted_start_high_ms,
      startMs: promised.predicted_start_ms,
      onTimeProbability: promised.on_time_probability,
      actualStartMs: view.started_ms === null ? null : view.started_ms - view.created_ms,
      onTime:
        deadline_ms === undefined
          ? null
          : view.state === "done" &&
            (view.finished_ms ?? Number.POSITIVE_INFINITY) - view.created_ms <= deadline_ms,
    });
  }

  private fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const { host, port, key } = this.daemon;
    const headers = { "X-API-Key": key, "Content-Type": "application/json" };
    return fetch(`http://${host}:${port}${path}`, { ...init, headers });
  }

  private int(from: number, to: number): number {
    return from + Math.floor(this.unit() * (to - from + 1));
  }

  private exponential(meanMs: number): number {
    return -Math.log(1 - this.unit()) * meanMs;
  }

  private text(count: number): string {
    return Array.from({ length: count }, () => words[this.int(0, words.length - 1)]).join(" ");
  }
}

const share = (hits: number, all: number): number => (all === 0 ? Number.NaN : hits / all);

function figuresOf(priority: Priority) {
  const own = outcomes.filter((o) => o.priority === priority);
  const waited = own.filter((o) => o.queuePosition > 0 && o.actualStartMs !== null);
  // Milliseconds are rounded on both sides.
  const below = waited.filter((o) => (o.actualStartMs ?? 0) < o.startLowMs - 1).length;
  const above = waited.filter((o) => (o.actualStartMs ?? 0) > o.startHighMs + 1).length;
  const withDeadline = own.filter((o) => o.onTimeProbability !== null);
  return {
    priority,
    tasks: own.length,
    waited: waited.length,
    coverage: 1 - share(below + above, waited.length),
    below: share(below, waited.length),
    above: share(above, waited.length),
    waitMsMedian:
      waited.length === 0
        ? Number.NaN
        : quantile(
            waited.map((o) => o.actualStartMs ?? 0),
            0.5,
          ),
    intervalMsMedian:
      waited.length === 0
        ? Number.NaN
        : quantile(
            waited.map((o) => o.startHighMs - o.startLowMs),
            0.5,
          ),
    ...brier(withDeadline),
  };
}

function brier(of: readonly Outcome[]) {
  const base = share(of.filter((o) => o.onTime === true).length, of.length);
  const score = (p: (o: Outcome) => number): number =>
    share(
      of.reduce((sum, o) => sum + (p(o) - (o.onTime === true ? 1 : 0)) ** 2, 0),
      of.length,
    );
  return {
    withDeadline: of.length,
    onTimeShare: base,
    brier: score((o) => o.onTimeProbability ?? 0),
    brierOfBaseRate: score(() => base),
  };
}

const daemon = await startDaemon(options.binary, {
  limits: { rate: { per_second: 100_000, burst: 100_000 } },
  engines: { llamacpp: { bin: options.engineBin } },
  pools: [
    {
      id: "mixed",
      engine: "llamacpp",
      model: `file:${options.model}`,
      slots,
      ctx: 1024,
      preload: true,
      queue: { capacity: 1024 },
      args: ["-t", "1"],
    },
  ],
});
try {
  await untilReady(daemon);
  console.log(`seed ${seed}, ${minutes} minutes, 12 agents that converse, 4 that flood`);
  untilMs = performance.now() + minutes * 60_000;
  const agents = Array.from({ length: 16 }, (_, n) => new Agent(daemon, n));
  await Promise.all(agents.map((agent, n) => (n < 12 ? agent.converse() : agent.flood())));
  const health = (await (
    await fetch(`http://${daemon.host}:${daemon.port}/v1/pools/mixed/health`, {
      headers: { "X-API-Key": daemon.key },
    })
  ).json()) as { metrics: unknown };
  const figures = {
    seed,
    minutes,
    classes: [figuresOf("interactive"), figuresOf("batch")],
    all: brier(outcomes.filter((o) => o.onTimeProbability !== null)),
    refused: Object.fromEntries(refused),
    ownScores: health.metrics,
  };
  for (const row of figures.classes) {
    console.log(
      `${row.priority.padEnd(12)} ${row.tasks} tasks, ${row.waited} waited (median ${row.waitMsMedian.toFixed(0)} ms): ` +
        `80 % interval covered ${(100 * row.coverage).toFixed(1)} % (${(100 * row.below).toFixed(1)} % earlier, ${(100 * row.above).toFixed(1)} % later), ` +
        `median width ${row.intervalMsMedian.toFixed(0)} ms; Brier ${row.brier.toFixed(4)} against ${row.brierOfBaseRate.toFixed(4)} of the base rate ` +
        `(${row.withDeadline} with a deadline, ${(100 * row.onTimeShare).toFixed(1)} % on time)`,
    );
  }
  console.log(
    `all          Brier ${figures.all.brier.toFixed(4)} against ${figures.all.brierOfBaseRate.toFixed(4)}`,
  );
  console.log(`refused      ${JSON.stringify(figures.refused)}`);
  console.log(`the daemon's own scores: ${JSON.stringify(figures.ownScores)}`);
  writeFigures("mixed-load", { ...figures, outcomes });
} finally {
  await daemon.stop();
}
