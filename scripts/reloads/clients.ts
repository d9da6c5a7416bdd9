/**
 * The streams of the run of reloads: as many as there are slots, and a few more that wait. Each is held against what the
 * model says uncut that the stream, the record and the transcript name. Called by run.ts.
 *
 * Always holds: a stream that ends otherwise is a failure with its evidence; what runs when `stop` is asked ends in peace.
 */
import type { Chance } from "../../test/engine/support.ts";
import type { SseEvent } from "../../test/support/sse-client.ts";
import { waitFor } from "../../test/support/wait.ts";
import type { DaemonLife } from "../chaos/daemon-life.ts";
import type { Failures } from "../chaos/failures.ts";
import { Broken, ChaosStream, type Json, Refused } from "../chaos/stream.ts";
import { assertSame, promptOf, type Whole, wholeOf } from "../chaos/whole.ts";
import { areSame, type ModelName, type Models, modelNames, otherContext } from "./models.ts";

export interface ClientsOptions {
  readonly life: DaemonLife;
  readonly models: Models;
  readonly chance: Chance;
  readonly failures: Failures;
  readonly streams: number;
  readonly waiting: number;
  readonly tokens: number;
  readonly clientCutMs: number;
}

export interface ClientFigures {
  readonly streams_ended: number;
  /** By the model that said them. */
  readonly by_model: Readonly<Record<string, number>>;
  readonly tokens: number;
  /** Waited for the one model, did not fit the other, and were told to come again. */
  readonly unfit: number;
  /** The same at the door. */
  readonly unfit_refused: number;
  readonly reconnects: number;
  readonly refusals: number;
  readonly client_cuts: number;
  readonly replays_compared: number;
  readonly transcripts_compared: number;
  /** How many streams were continued how often. */
  readonly continuations: Readonly<Record<string, number>>;
  readonly exact: Readonly<Record<string, number>>;
  readonly longest_pause_ms: number;
  readonly longest_pause_p50_ms: number;
  readonly longest_pause_p99_ms: number;
}

interface Attempt {
  readonly model: string;
  readonly model_digest: string | null;
}

const requestsMax = 16;
/** A stream to which nothing comes for so long has failed. */
const patienceMs = 180_000;
const replayShare = 0.1;
const transcriptShare = 0.2;
/** Of those that wait. */
const longShare = 0.5;
/** With its prompt it fits the demo model's context and not the other's. */
const longTokens = otherContext + 16;

export class Clients {
  readonly #options: ClientsOptions;
  readonly #wholes = new Map<ModelName, Whole[]>();
  #long: Whole | null = null;
  readonly #running = new Set<ChaosStream>();
  readonly #cutsMs: number[] = [];
  readonly #pausesMs: number[] = [];
  readonly #continuations = new Map<number, number>();
  readonly #exact = new Map<string, number>();
  readonly #byModel = new Map<string, number>();
  readonly #count = { ended: 0, tokens: 0, unfit: 0, refused: 0, cuts: 0, replays: 0, transcripts: 0 };
  readonly #comebacks = { reconnects: 0, refusals: 0 };
  /** Moves with every reload that is asked for and answered. */
  #turn = 0;
  #work: Promise<unknown> = Promise.resolve();
  #enough = false;
  #patience: ReturnType<typeof setInterval> | null = null;
  #model: () => ModelName = () => "demo";

  constructor(options: ClientsOptions) {
    this.#options = options;
    if (options.tokens > otherContext / 2)
      throw new Error(`at most ${otherContext / 2} tokens fit the other model`);
  }

  /** What the pool's model says to each request, alone on a quiet daemon. */
  async learn(model: ModelName): Promise<void> {
    const { streams, tokens } = this.#options;
    const wholes: Whole[] = [];
    for (let at = 0; at < Math.min(streams, requestsMax); at++) {
      const body = { prompt: promptOf(at), max_tokens: tokens, seed: at, sampling: { temperature: 0 } };
      wholes.push(await wholeOf(this.#stream(body, true), body));
    }
    this.#wholes.set(model, wholes);
    if (model === "demo") {
      const body = { prompt: promptOf(1), max_tokens: longTokens, seed: 0, sampling: { temperature: 0 } };
      this.#long = await wholeOf(this.#stream(body, true), body);
    }
    const [demo, other] = [this.#wholes.get("demo"), this.#wholes.get("other")];
    for (const [at, whole] of (other === undefined ? [] : (demo ?? [])).entries())
      if (whole.text === other?.[at]?.text) throw new Error("two models say the same: they prove nothing");
  }

  /** `model`: the one that the pool has, while no reload is under way. */
  start(model: () => ModelName): void {
    const { streams, waiting } = this.#options;
    this.#model = model;
    this.#patience = setInterval(() => {
      for (const stream of this.#running) stream.lookAtPatience(performance.now());
    }, 500);
    const clients = Array.from({ length: streams + waiting }, (_, at) => this.#keepStreaming(at >= streams));
    this.#work = Promise.all([...clients, this.#cutClients()]);
  }

  /** A reload is asked for now, or was answered: what is cut is cut in between. */
  mayCut(): void {
    this.#turn++;
    this.#cutsMs.push(performance.now());
  }

  /** Resolves when the streams have said so many tokens more, on average. */
  async hasSaidMore(tokens: number): Promise<void> {
    const { streams, failures } = this.#options;
    const from = this.#said();
    const enough = () => failures.isFull || this.#enough || this.#said() - from >= tokens * streams;
    await waitFor(enough, patienceMs, "the streams go on");
  }

  giveUp(why: string): void {
    this.#enough = true;
    for (const stream of this.#running) stream.giveUp(why);
  }

  async stop(): Promise<ClientFigures> {
    this.#enough = true;
    await this.#work;
    if (this.#patience !== null) clearInterval(this.#patience);
    const pauses = [...this.#pausesMs].sort((a, b) => a - b);
    const at = (share: number) =>
      Math.round(pauses[Math.min(pauses.length - 1, Math.floor(share * pauses.length))] ?? 0);
    const { ended, tokens, unfit, refused, cuts, replays, transcripts } = this.#count;
    return {
      streams_ended: ended,
      by_model: Object.fromEntries([...this.#byModel].sort()),
      ...{ tokens, unfit, unfit_refused: refused, ...this.#comebacks },
      ...{ client_cuts: cuts, replays_compared: replays, transcripts_compared: transcripts },
      continuations: Object.fromEntries([...this.#continuations].sort(([a], [b]) => a - b)),
      exact: Object.fromEntries(this.#exact),
      longest_pause_ms: at(1),
      longest_pause_p50_ms: at(0.5),
      longest_pause_p99_ms: at(0.99),
    };
  }

  #said(): number {
    let tokens = this.#count.tokens;
    for (const stream of this.#running) tokens += stream.tokens;
    return tokens;
  }

  #stream(body: Json, inOneRequest: boolean): ChaosStream {
    return new ChaosStream({ server: this.#options.life, body, inOneRequest, patienceMs });
  }

  async #keepStreaming(waits: boolean): Promise<void> {
    const { chance, failures } = this.#options;
    const requests = this.#wholes.get("demo") ?? [];
    while (!this.#enough && !failures.isFull) {
      const isLong = waits && chance.unit() < longShare;
      const at = chance.between(0, requests.length - 1);
      const body = (isLong ? this.#long : requests[at])?.body ?? {};
      const more = chance.unit() < 0.5 ? { on_disconnect: "continue" } : {};
      const stream = this.#stream({ ...body, ...more }, chance.unit() < 0.5);
      this.#running.add(stream);
      const turn = this.#turn;
      const model = this.#model();
      try {
        const terminal = await stream.run();
        const isQuiet = turn === this.#turn && turn % 2 === 0;
        await this.#judge(stream, terminal, isLong ? null : at, isQuiet ? model : null);
        this.#note(stream, terminal);
        if (chance.unit() < replayShare && (await stream.replays())) this.#count.replays++;
      } catch (error) {
        if (!(error instanceof Broken)) throw error;
        if (isLong && error instanceof Refused) await this.#refusedLong(stream, error);
        else failures.add(stream, error.message);
      } finally {
        this.#running.delete(stream);
      }
    }
  }

  /** `at`: the request; null: the long one. `quiet`: the pool's model, where no reload was under way. Throws `Broken`. */
  async #judge(
    stream: ChaosStream,
    terminal: SseEvent,
    at: number | null,
    quiet: ModelName | null,
  ): Promise<void> {
    const { data, type } = terminal;
    if (at === null && type === "error") return this.#judgeUnfit(stream, data);
    const task = await this.#options.life.now.json<{ model_ref: string; artifact_id: string | null }>(
      `/v1/tasks/${stream.taskId}`,
    );
    const model = this.#named(stream.started?.model_ref);
    if (!areSame(model, this.#named(task.model_ref)))
      throw new Broken(`it started with ${model}, and its record names ${task.model_ref}`);
    if (quiet !== null && model !== quiet) throw new Broken(`the pool has ${quiet}, and ${model} answered`);
    const whole = at === null ? this.#long : this.#wholes.get(model === "other" ? "other" : "demo")?.[at];
    if (at === null && model === "other") throw new Broken("it does not fit, and was answered");
    if (whole === undefined || whole === null) throw new Error("every request was asked uncut");
    assertSame(stream, terminal, whole, { temperature: 0, strict: false, cutsMs: this.#cutsMs });
    this.#byModel.set(model, (this.#byModel.get(model) ?? 0) + 1);
    if (this.#options.chance.unit() < transcriptShare) await this.#judgeTranscript(model, task.artifact_id);
  }

  /** What no longer fits has said nothing, and is told to come again. */
  #judgeUnfit(stream: ChaosStream, { code, retriable, message }: SseEvent["data"]): void {
    const isTold = code === "WORKER_RESET" && retriable === true && /another model/.test(String(message));
    if (!isTold || stream.tokens > 0)
      throw new Broken(`ended with ${code} (${message}) behind ${stream.tokens} tokens`);
    this.#count.unfit++;
  }

  /** At the door: only of the model that it does not fit. */
  async #refusedLong(stream: ChaosStream, { status, body }: Refused): Promise<void> {
    if (status !== 400 || !/INVALID_PARAMS/.test(body) || !body.includes(String(otherContext)))
      this.#options.failures.add(stream, `answered ${status} ${body.slice(0, 300)}`);
    this.#count.refused++;
    // Another moment, another model: meanwhile a short one.
    await Bun.sleep(100);
  }

  async #judgeTranscript(model: ModelName, artifactId: string | null): Promise<void> {
    const path = `/v1/artifacts/${artifactId}`;
    const { content } = await this.#options.life.now.json<{ content: { attempts: readonly Attempt[] } }>(
      path,
    );
    for (const attempt of content.attempts) {
      const its = this.#named(`/${attempt.model}`);
      if (!areSame(its, model))
        throw new Broken(`${model} began it, and its transcript names ${attempt.model}`);
      if (attempt.model_digest !== null && attempt.model_digest !== this.#options.models.digestOf(its))
        throw new Broken(`its transcript names another digest of ${its}: ${attempt.model_digest}`);
    }
    this.#count.transcripts++;
  }

  #named(ref: unknown): ModelName {
    const model = modelNames.find((name) => String(ref).endsWith(`/${name}.gguf`));
    if (model === undefined) throw new Broken(`${ref} is no model of this run`);
    return model;
  }

  #note(stream: ChaosStream, { type, data }: SseEvent): void {
    this.#count.ended++;
    this.#count.tokens += stream.tokens;
    this.#comebacks.reconnects += stream.reconnects;
    this.#comebacks.refusals += stream.refusals;
    if (type !== "end") return;
    this.#pausesMs.push(stream.longestPauseMs);
    const [continuations, exact] = [Number(data.continuations ?? 0), String(data.exact)];
    this.#continuations.set(continuations, (this.#continuations.get(continuations) ?? 0) + 1);
    this.#exact.set(exact, (this.#exact.get(exact) ?? 0) + 1);
  }

  async #cutClients(): Promise<void> {
    const { clientCutMs, chance, failures } = this.#options;
    while (clientCutMs > 0 && !this.#enough && !failures.isFull) {
      await Bun.sleep(clientCutMs * (0.5 + chance.unit()));
      if (this.#running.size === 0 || this.#enough) continue;
      chance.pick([...this.#running]).cut();
      this.#count.cuts++;
    }
  }
}
