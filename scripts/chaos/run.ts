/**
 * The chaos run: streams on the real engine while engines, the daemon and connections are killed, each compared with
 * what the same request says when nothing cuts it. Called by scripts/chaos.ts and by the tests of the real engine.
 *
 * Always holds: it ends; a rule that did not hold is in `failures` with its evidence; nothing is left running.
 */
import { Chance } from "../../test/engine/support.ts";
import { enginePool } from "../../test/support/daemon.ts";
import { testModel } from "../../test/support/engine.ts";
import type { SseEvent } from "../../test/support/sse-client.ts";
import { DaemonLife } from "./daemon-life.ts";
import { type Failure, Failures } from "./failures.ts";
import { Broken, ChaosStream, type Json } from "./stream.ts";
import { assertSame, promptOf, type Whole, wholeOf } from "./whole.ts";

export interface ChaosOptions {
  readonly seed: number;
  /** How to start the daemon. */
  readonly command: readonly string[];
  readonly durationMs: number;
  readonly streams: number;
  readonly tokens: number;
  readonly replicas: number;
  /** Times between two kills on average; 0: never. */
  readonly engineKillMs: number;
  readonly daemonKillMs: number;
  readonly clientCutMs: number;
  readonly temperature: number;
  readonly strict: boolean;
  readonly maxAttempts: number;
  readonly say: (line: string) => void;
  /** Hears the log of all the daemon's lives at the end. */
  readonly onLog?: (log: string) => void;
}

export interface ChaosSummary {
  readonly seed: number;
  readonly streams_ended: number;
  readonly tokens: number;
  readonly engine_kills: number;
  readonly daemon_kills: number;
  readonly client_cuts: number;
  readonly reconnects: number;
  readonly resubmits: number;
  readonly refusals: number;
  readonly replays_compared: number;
  /** How many streams were continued how often. */
  readonly continuations: Readonly<Record<string, number>>;
  readonly exact: Readonly<Record<string, number>>;
  readonly longest_pause_ms: number;
  readonly longest_pause_p50_ms: number;
  readonly longest_pause_p99_ms: number;
  readonly failures: readonly Failure[];
}

const poolId = "chat";
const requestsMax = 16;
/** A stream to which nothing comes for so long has failed. */
const patienceMs = 120_000;
const replayShare = 0.1;

export async function runChaos(options: ChaosOptions): Promise<ChaosSummary> {
  let chaos: Chaos | null = null;
  const life = await DaemonLife.begin({
    command: options.command,
    poolId,
    settings: {
      pools: [
        enginePool(poolId, testModel("demo"), {
          slots: Math.ceil(options.streams / options.replicas),
          replicas: options.replicas,
          ctx: 256 * Math.ceil((options.tokens + 256) / 256),
          // Without an end token a task is as long as it was asked to be.
          // One thread: on a machine that others use, two wait for each other most of the time.
          args: ["--ignore-eos", "-t", "1"],
        }),
      ],
      // A kill may meet an engine that loads: many in a row are no reason to leave the pool alone.
      restart: { backoff_ms: 20, backoff_max_ms: 100, breaker_failures: 1_000 },
      tasks: { max_attempts: options.maxAttempts },
      // Events that no second run would repeat at the same place: a stream that begins again cannot hide.
      streaming: { metrics_every_ms: 100 },
    },
    onDeath: (why) => chaos?.giveUp(why),
  });
  try {
    chaos = new Chaos(options, life);
    return await chaos.run();
  } finally {
    options.onLog?.(life.log);
    await life.dispose();
  }
}

class Chaos {
  readonly #options: ChaosOptions;
  readonly #life: DaemonLife;
  readonly #chance: Chance;
  readonly #failures: Failures;
  readonly #running = new Set<ChaosStream>();
  /** Moments at which an engine or the daemon was killed. */
  readonly #killsMs: number[] = [];
  readonly #pausesMs: number[] = [];
  readonly #continuations = new Map<number, number>();
  readonly #exact = new Map<string, number>();
  readonly #count = { ended: 0, tokens: 0, engines: 0, daemons: 0, cuts: 0, replays: 0 };
  readonly #clients = { reconnects: 0, resubmits: 0, refusals: 0 };
  #enough = false;

  constructor(options: ChaosOptions, life: DaemonLife) {
    this.#options = options;
    this.#life = life;
    this.#chance = new Chance(options.seed);
    this.#failures = new Failures(life, options.say);
  }

  /** Nothing more is begun, and what runs is given up. */
  giveUp(why: string): void {
    this.#failures.add(null, why);
    this.#enough = true;
    for (const stream of this.#running) stream.giveUp(why.slice(0, 200));
  }

  async run(): Promise<ChaosSummary> {
    const { durationMs, streams, engineKillMs, daemonKillMs, clientCutMs, say } = this.#options;
    const wholes = await this.#wholes();
    say(`${wholes.length} requests uncut; ${streams} streams for ${Math.round(durationMs / 1000)} s`);
    const untilMs = performance.now() + durationMs;
    const patience = setInterval(() => this.#look(untilMs), 500);
    try {
      const troubles = [
        this.#every(engineKillMs, () => this.#killEngine()),
        this.#every(daemonKillMs, () => this.#killDaemon()),
        this.#every(clientCutMs, () => this.#cutClient()),
      ];
      const clients = Array.from({ length: streams }, () => this.#keepStreaming(wholes));
      // The streams that are under way end in peace.
      await Promise.all([...clients, ...troubles]);
      await this.#stop();
    } finally {
      clearInterval(patience);
    }
    return this.#summary();
  }

  #look(untilMs: number): void {
    const nowMs = performance.now();
    if (nowMs >= untilMs || this.#failures.isFull) this.#enough = true;
    for (const stream of this.#running) stream.lookAtPatience(nowMs);
  }

  /** Each alone on a quiet daemon. */
  async #wholes(): Promise<Whole[]> {
    const { streams, tokens, temperature, strict } = this.#options;
    const wholes: Whole[] = [];
    for (let at = 0; at < Math.min(streams, requestsMax); at++) {
      const body: Json = {
        prompt: promptOf(at),
        max_tokens: tokens,
        seed: this.#chance.between(0, 2 ** 32 - 1),
        sampling: { temperature },
        ...(strict ? { determinism: "strict" } : {}),
      };
      wholes.push(await wholeOf(this.#stream(body, true), body));
    }
    return wholes;
  }

  #stream(body: Json, inOneRequest: boolean): ChaosStream {
    return new ChaosStream({ server: this.#life, body, inOneRequest, patienceMs });
  }

  async #keepStreaming(wholes: readonly Whole[]): Promise<void> {
    while (!this.#enough) {
      const whole = this.#chance.pick(wholes);
      const more = this.#chance.unit() < 0.5 ? { on_disconnect: "continue" } : {};
      const stream = this.#stream({ ...whole.body, ...more }, this.#chance.unit() < 0.5);
      this.#running.add(stream);
      try {
        const terminal = await stream.run();
        this.#note(stream, terminal);
        this.#judge(stream, terminal, whole);
        if (this.#chance.unit() < replayShare && (await stream.replays())) this.#count.replays++;
      } catch (error) {
        if (!(error instanceof Broken)) throw error;
        this.#failures.add(stream, error.message);
      } finally {
        this.#running.delete(stream);
      }
    }
  }

  #note(stream: ChaosStream, { data }: SseEvent): void {
    this.#count.ended++;
    this.#count.tokens += stream.tokens;
    for (const name of ["reconnects", "resubmits", "refusals"] as const) this.#clients[name] += stream[name];
    this.#pausesMs.push(stream.longestPauseMs);
    const [continuations, exact] = [Number(data.continuations ?? 0), String(data.exact)];
    this.#continuations.set(continuations, (this.#continuations.get(continuations) ?? 0) + 1);
    this.#exact.set(exact, (this.#exact.get(exact) ?? 0) + 1);
  }

  /** Throws `Broken`. */
  #judge(stream: ChaosStream, terminal: SseEvent, whole: Whole): void {
    const { temperature, strict } = this.#options;
    assertSame(stream, terminal, whole, { temperature, strict, cutsMs: this.#killsMs });
  }

  /** Until there is enough: at moments drawn by chance, `ms` apart on average. */
  async #every(ms: number, act: () => Promise<void> | void): Promise<void> {
    while (ms > 0 && !this.#enough) {
      const untilMs = performance.now() + ms * (0.5 + this.#chance.unit());
      while (!this.#enough && performance.now() < untilMs)
        await Bun.sleep(Math.min(100, Math.max(1, untilMs - performance.now())));
      if (this.#enough) return;
      try {
        await act();
      } catch (error) {
        this.giveUp(error instanceof Error ? error.message : String(error));
      }
    }
  }

  async #killEngine(): Promise<void> {
    if (!(await this.#life.killEngine((pids) => this.#chance.pick(pids)))) return;
    this.#killsMs.push(performance.now());
    this.#count.engines++;
  }

  async #killDaemon(): Promise<void> {
    this.#killsMs.push(performance.now());
    await this.#life.killAndStart();
    this.#count.daemons++;
  }

  #cutClient(): void {
    if (this.#running.size === 0) return;
    this.#chance.pick([...this.#running]).cut();
    this.#count.cuts++;
  }

  async #stop(): Promise<void> {
    // What was given up above may still run.
    const wrong = await this.#life.endInPeace(this.#failures.list.length === 0);
    for (const what of wrong) this.#failures.add(null, what);
  }

  #summary(): ChaosSummary {
    const pauses = [...this.#pausesMs].sort((a, b) => a - b);
    const at = (share: number) =>
      Math.round(pauses[Math.min(pauses.length - 1, Math.floor(share * pauses.length))] ?? 0);
    const { ended, tokens, engines, daemons, cuts, replays } = this.#count;
    const continuations = [...this.#continuations].sort(([a], [b]) => a - b);
    return {
      seed: this.#options.seed,
      streams_ended: ended,
      tokens,
      engine_kills: engines,
      daemon_kills: daemons,
      client_cuts: cuts,
      ...this.#clients,
      replays_compared: replays,
      continuations: Object.fromEntries(continuations),
      exact: Object.fromEntries(this.#exact),
      longest_pause_ms: at(1),
      longest_pause_p50_ms: at(0.5),
      longest_pause_p99_ms: at(0.99),
      failures: this.#failures.list,
    };
  }
}
