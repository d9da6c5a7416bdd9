/**
 * The chaos run: streams on the real engine while engines, the daemon and connections are killed, each compared with
 * what the same request says when nothing cuts it. Called by scripts/chaos.ts and by the tests of the real engine.
 *
 * Always holds: it ends; a rule that did not hold is in `failures` with its evidence; nothing is left running.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Chance } from "../../test/engine/support.ts";
import { enginePool } from "../../test/support/daemon.ts";
import { testModel } from "../../test/support/engine.ts";
import type { SseEvent } from "../../test/support/sse-client.ts";
import { DaemonLife } from "./daemon-life.ts";
import { Broken, ChaosStream, type Json } from "./stream.ts";

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

export interface Failure {
  readonly taskId: string | null;
  readonly what: string;
  readonly events: readonly string[];
  readonly log: readonly string[];
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

/** What a request says when nothing cuts it. */
interface Whole {
  readonly body: Json;
  readonly text: string;
  readonly end: Json;
}

const poolId = "chat";
const requestsMax = 16;
/** A stream to which nothing comes for so long has failed. */
const patienceMs = 120_000;
const failuresMax = 20;
const logLinesMax = 40;
/** A cut so shortly behind the last token may have taken the engine's last word only. */
const lastWordMs = 1_000;
const replayShare = 0.1;

const beginnings = ["The harbour", "Once upon a time", "Zoë said «", "😀 東京 → ", "Two friends"];
const words = readFileSync(join(import.meta.dir, "../model/corpus.txt"), "utf8").match(/[a-z]{2,}/g) ?? [];

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
  readonly #failures: Failure[] = [];
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
  }

  /** Nothing more is begun, and what runs is given up. */
  giveUp(why: string): void {
    this.#fail(null, why);
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
    if (nowMs >= untilMs || this.#failures.length >= failuresMax) this.#enough = true;
    for (const stream of this.#running) stream.lookAtPatience(nowMs);
  }

  /** Each alone on a quiet daemon. */
  async #wholes(): Promise<Whole[]> {
    const { streams, tokens, temperature, strict } = this.#options;
    const wholes: Whole[] = [];
    for (let at = 0; at < Math.min(streams, requestsMax); at++) {
      const body: Json = {
        prompt: `${beginnings[at % beginnings.length]} ${words.slice(at * 7, at * 7 + at).join(" ")}`,
        max_tokens: tokens,
        seed: this.#chance.between(0, 2 ** 32 - 1),
        sampling: { temperature },
        ...(strict ? { determinism: "strict" } : {}),
      };
      const stream = this.#stream(body, true);
      const { type, data } = await stream.run();
      const { continuations, exact } = data;
      if (type !== "end" || continuations !== 0 || exact !== "yes" || stream.tokens === 0)
        throw new Error(`uncut, request ${at} ended with ${type} ${JSON.stringify(data)}`);
      wholes.push({ body, text: stream.text, end: data });
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
        this.#fail(stream, error.message);
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
  #judge(stream: ChaosStream, { type, data }: SseEvent, whole: Whole): void {
    if (type !== "end") throw new Broken(`ended with ${type}: ${JSON.stringify(data)}`);
    const { temperature, strict } = this.#options;
    const continuations = Number(data.continuations);
    const { exact } = data;
    const sampled = temperature > 0 && !strict;
    if (strict || continuations === 0) {
      if (exact !== "yes") throw new Broken(`exact is ${exact} behind ${continuations} continuations`);
    } else if (exact === "yes") {
      const cuts = this.#killsMs.filter((ms) => ms > stream.lastTokenMs - lastWordMs).length;
      if (cuts < continuations) throw new Broken(`exact is yes behind ${continuations} continuations`);
    } else if (exact !== (sampled ? "no" : "unverified"))
      throw new Broken(`exact is ${exact} behind ${continuations} continuations`);
    // Cut in the middle, a sampled answer is made of other pieces than the uncut one.
    for (const name of ["tokens_in", "tokens_out", "finish_reason"])
      if (data[name] !== whole.end[name] && !(sampled && continuations > 0))
        throw new Broken(`${name} is ${data[name]}, uncut ${whole.end[name]}`);
    if (exact === "no") return;
    if (!Buffer.from(stream.text).equals(Buffer.from(whole.text)))
      throw new Broken(`the text differs from the uncut one ${differenceOf(stream.text, whole.text)}`);
  }

  #fail(stream: ChaosStream | null, what: string): void {
    if (this.#failures.length >= failuresMax) return;
    const taskId = stream?.taskId ?? null;
    const log = taskId === null ? [] : this.#life.logOf(taskId).slice(-logLinesMax);
    this.#failures.push({ taskId, what, events: stream?.recent ?? [], log });
    this.#options.say(`FAILED ${taskId ?? ""}: ${what}`);
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

  /** Nothing waits or runs, and SIGTERM leaves nothing behind. */
  async #stop(): Promise<void> {
    const daemon = this.#life.now;
    try {
      for (const state of ["queued", "running", "suspended"]) {
        const { tasks } = await daemon.json<{ tasks: readonly { task_id: string }[] }>(
          `/v1/tasks?state=${state}`,
        );
        // What was given up above may still run.
        if (tasks.length > 0 && this.#failures.length === 0)
          this.#fail(
            null,
            `${tasks.length} ${state} after all streams have ended, such as ${tasks[0]?.task_id}`,
          );
      }
      const code = await this.#life.stop();
      if (code !== 143) this.#fail(null, `SIGTERM: exit ${code}`);
    } catch (error) {
      this.#fail(null, error instanceof Error ? error.message : String(error));
    }
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
      failures: this.#failures,
    };
  }
}

function differenceOf(text: string, whole: string): string {
  let at = 0;
  while (at < text.length && text[at] === whole[at]) at++;
  const shown = (one: string) => JSON.stringify(one.slice(Math.max(0, at - 20), at + 20));
  return `at character ${at} of ${whole.length} (it has ${text.length}): ${shown(text)}, uncut ${shown(whole)}`;
}
