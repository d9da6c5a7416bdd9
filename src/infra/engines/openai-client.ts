/**
 * The client of a server elsewhere that speaks the OpenAI API (vLLM, SGLang, TGI, a llama-server, a gateway): the
 * engine port without a process. The adapter (openai.ts) makes one for each start of the pool's replica; the
 * supervisor, the attempt runner and admission call it.
 *
 * What such a server does not tell is not made up: which of its own slots works, whether it has let go of what was cut
 * (a slot is free here once its connection is closed), who else uses it. What is found out at `identity` (its kind,
 * whether it tokenizes) holds until the next start.
 *
 * Always: once `exited` has resolved, or after `close`, every call rejects.
 */
import { type EngineIdentity, type PoolSpec, unknownVersion, type WarmUpSpeed } from "../../domain/pool.ts";
import type { ChatMessage, Workload } from "../../domain/task.ts";
import type { Clock, Entropy } from "../../ports/clock.ts";
import {
  type ChatPrompt,
  type EngineClient,
  type EngineEnd,
  EngineError,
  type GenerateRequest,
  type GenerateResult,
  type GenerateSink,
  isChat,
  isEngineError,
  type PromptHandling,
  type SlotSnapshot,
} from "../../ports/engine.ts";
import { HealthWatch, pause } from "./health-watch.ts";
import { OpenAiCalls } from "./openai-calls.ts";
import { isRemoteError, parseJson, readUsage } from "./openai-frames.ts";
import { continuesChats, featuresOf, leavesCacheAlone, remoteRequest } from "./openai-request.ts";
import { cardOf, isJson, num, type ServerFacts } from "./openai-server.ts";

const warmUpTokens = 8;
const warmUpText =
  "The engine reads this line once before it takes work, so that its speed is known. ".repeat(3);
/** A server that is not there when it is first asked has so long to come. */
const connectMs = 10_000;
/** Between two questions to a server that loads or does not answer yet. */
const probeMs = 1_000;
/** A busy server is tried again: so often, after what it says or, doubling, from so long up to so long. */
const busyTriesMax = 32;
const busyMs = 250;
const busyMsMax = 30_000;
const saltBytes = 32;

export interface OpenAiClientOptions {
  readonly clock: Clock;
  readonly entropy: Entropy;
  readonly pool: PoolSpec;
}

export class OpenAiClient implements EngineClient {
  readonly kind = "openai";
  readonly exited: Promise<EngineEnd>;
  readonly #clock: Clock;
  readonly #entropy: Entropy;
  readonly #pool: PoolSpec;
  readonly #calls: OpenAiCalls;
  readonly #watch: HealthWatch;
  readonly #closing = new AbortController();
  readonly #startedMs: number;
  /** Generations under way, by our number of the slot. */
  readonly #running = new Set<{ readonly slot: number; readonly ended: Promise<unknown> }>();
  #resolveExited: (end: EngineEnd) => void = () => undefined;
  #over = false;
  #probedMs = Number.NEGATIVE_INFINITY;
  #facts: ServerFacts;
  #prompts: PromptHandling = { tokenizes: false, chat: "begins", cold: false };

  constructor({ clock, entropy, pool }: OpenAiClientOptions) {
    this.#clock = clock;
    this.#entropy = entropy;
    this.#pool = pool;
    this.#startedMs = clock.nowMs();
    this.exited = new Promise((resolve) => {
      this.#resolveExited = resolve;
    });
    this.#calls = new OpenAiCalls(clock, pool, () => this.#watch.doubt());
    this.#facts = { kind: this.#calls.kindNamed ?? "other", version: null, ctx: null };
    this.#watch = new HealthWatch(
      clock,
      (signal) => this.#calls.health(signal),
      (why) => this.#end("unreachable", `does not answer any more (${why}): see what became of it`),
    );
  }

  get prompts(): PromptHandling {
    return this.#prompts;
  }

  async health(signal: AbortSignal): Promise<"ok" | "loading"> {
    // The supervisor asks as often as a child of its own bears.
    const waitMs = this.#probedMs + probeMs - this.#clock.nowMs();
    if (waitMs > 0) await pause(this.#clock, waitMs, AbortSignal.any([signal, this.#closing.signal]));
    try {
      return (await this.#calls.health(signal)) === "ok" ? "ok" : "loading";
    } catch (error) {
      if (isUnavailable(error)) return "loading";
      if (isEngineError(error) && error.engineErrorKind === "unreachable") this.#notThere(error.message);
      throw error;
    } finally {
      this.#probedMs = this.#clock.nowMs();
    }
  }

  async identity(signal: AbortSignal): Promise<EngineIdentity> {
    const cards = await this.#checkAdmitted(signal);
    this.#facts = await this.#calls.facts(cards, signal);
    const { kind, version } = this.#facts;
    const card = cardOf(cards, this.#pool.modelRef) ?? (kind === "llama-server" ? (cards[0] ?? null) : null);
    const known = this.#facts.ctx ?? card?.ctx ?? null;
    const ctxPerSlot = Math.min(
      this.#pool.ctx ?? Number.POSITIVE_INFINITY,
      known ?? Number.POSITIVE_INFINITY,
    );
    if (!Number.isFinite(ctxPerSlot))
      throw this.#end("refused", `does not say how many tokens of context the model has: set "ctx"`);
    this.#prompts = {
      tokenizes: this.#workload === "completion" && (await this.#tokenizes(signal)),
      chat: kind === "llama-server" ? "template" : continuesChats(kind) ? "continues" : "begins",
      cold: leavesCacheAlone(kind),
    };
    return {
      engine: "openai",
      engineVersion: version === null ? unknownVersion : `${kind} ${version}`,
      slots: this.#pool.slots,
      ctxPerSlot,
      modelPath: null,
      modelStamp: null,
      modelSizeBytes: card?.sizeBytes ?? null,
      modelParams: card?.params ?? null,
      ctxTrain: card?.ctxTrain ?? null,
      kvBytesPerToken: null,
      hasChatTemplate: this.#workload === "completion",
      features: this.#workload === "completion" ? featuresOf(kind) : [],
      workloads: this.#pool.workloads,
    };
  }

  async warmUp(signal: AbortSignal): Promise<WarmUpSpeed> {
    const speed =
      this.#workload === "completion" ? await this.#warmUpByDecode(signal) : await this.#warmUpByWall(signal);
    this.#watch.start();
    return speed;
  }

  async countTokens(prompt: string | ChatPrompt, signal: AbortSignal): Promise<number> {
    if (typeof prompt === "string") return (await this.tokenize(prompt, true, signal)).length;
    return (await this.#calls.tokensOfChat(this.#facts.kind, prompt.messages, signal)).length;
  }

  tokenize(content: string, asPrompt: boolean, signal: AbortSignal): Promise<readonly number[]> {
    return this.#calls.tokenize(this.#facts.kind, content, asPrompt, signal);
  }

  async applyTemplate(messages: readonly ChatMessage[], signal: AbortSignal): Promise<string> {
    if (this.#prompts.chat !== "template")
      throw new EngineError("unsupported", "this server renders chats where nobody sees it");
    return await this.#calls.applyTemplate(messages, signal);
  }

  async generate(request: GenerateRequest, sink: GenerateSink, signal: AbortSignal): Promise<GenerateResult> {
    this.#assertWorkload("completion");
    const { path, body } = remoteRequest(
      this.#facts,
      this.#pool.modelRef,
      request,
      this.#entropy.secret(saltBytes),
    );
    const ended = this.#patiently(signal, () =>
      this.#calls.generate(path, body, boundOf(request.prompt), sink, signal),
    );
    const running = { slot: request.slot, ended };
    this.#running.add(running);
    try {
      return await ended;
    } finally {
      this.#running.delete(running);
    }
  }

  async embed(
    inputs: readonly string[],
    signal: AbortSignal,
  ): Promise<{ vectors: number[][]; tokensIn: number }> {
    this.#assertWorkload("embedding");
    const body = { model: this.#pool.modelRef, input: inputs, encoding_format: "float" };
    const answer = parseJson(
      await this.#patiently(signal, () => this.#calls.post("/embeddings", body, signal)),
    );
    const vectors: number[][] = inputs.map(() => []);
    for (const item of Array.isArray(answer.data) ? answer.data : []) {
      const index = isJson(item) ? num(item.index) : null;
      if (isJson(item) && Array.isArray(item.embedding) && index !== null && index in vectors)
        vectors[index] = item.embedding.map(Number);
    }
    if (vectors.some((vector) => vector.length === 0 || vector.some(Number.isNaN)))
      throw new EngineError("protocol", "an embedding is missing");
    return { vectors, tokensIn: readUsage(answer.usage)?.tokensIn ?? boundOfAll(inputs) };
  }

  async rerank(
    query: string,
    inputs: readonly string[],
    signal: AbortSignal,
  ): Promise<{ scores: { index: number; score: number }[]; tokensIn: number }> {
    this.#assertWorkload("rerank");
    const body = { model: this.#pool.modelRef, query, documents: inputs };
    const text = await this.#patiently(signal, () => this.#calls.post("/rerank", body, signal));
    // SGLang answers the list itself.
    const answer = parseJson(text.trimStart().startsWith("[") ? `{"results":${text}}` : text);
    const scores: { index: number; score: number }[] = [];
    for (const item of Array.isArray(answer.results) ? answer.results : []) {
      const index = isJson(item) ? num(item.index) : null;
      const score = isJson(item) ? (num(item.relevance_score) ?? num(item.score)) : null;
      if (index !== null && score !== null && index in inputs) scores.push({ index, score });
    }
    if (new Set(scores.map(({ index }) => index)).size !== inputs.length)
      throw new EngineError("protocol", "a rerank score is missing");
    const bound = boundOfAll(inputs) + inputs.length * boundOf(query);
    return { scores, tokensIn: readUsage(answer.usage)?.tokensIn ?? bound };
  }

  /** Ours: what else the server works at it does not tell. */
  async slots(signal: AbortSignal): Promise<SlotSnapshot[]> {
    this.#assertOpen(signal);
    const busy = new Set([...this.#running].map(({ slot }) => slot));
    return Array.from({ length: this.#pool.slots }, (_, slot) => ({
      slot,
      busy: busy.has(slot),
      tokensCached: 0,
    }));
  }

  async awaitSlotFree(slot: number, signal: AbortSignal): Promise<void> {
    this.#assertOpen(signal);
    // Settles in the turn of its abort; its error is told to whoever called it.
    const running = [...this.#running].filter((one) => one.slot === slot);
    await Promise.allSettled(running.map(({ ended }) => ended));
    await this.#watch.confirm(signal);
  }

  /** What the server caches is its own; a generation that must not use it says so itself. */
  async eraseContext(_slot: number, signal: AbortSignal): Promise<void> {
    this.#assertOpen(signal);
  }

  onLogLine(): void {
    // Its log is elsewhere.
  }

  close(): void {
    if (this.#over) return;
    this.#over = true;
    this.#closing.abort();
    this.#watch.close();
    this.#calls.close();
  }

  get #workload(): Workload {
    return this.#pool.workloads.includes("completion")
      ? "completion"
      : (this.#pool.workloads[0] ?? "completion");
  }

  /**
   * Tried again while the server is busy, before anything of an answer came. A refusal that would meet every task is
   * looked into: it ends the engine instead of the task alone.
   */
  async #patiently<T>(signal: AbortSignal, call: () => Promise<T>): Promise<T> {
    const giveUp = AbortSignal.any([signal, this.#closing.signal]);
    for (let tries = 1; ; tries++) {
      try {
        return await call();
      } catch (error) {
        if (!isRemoteError(error)) throw error;
        if (!isUnavailable(error) || tries >= busyTriesMax) {
          if ([401, 403, 404].includes(error.status)) await this.#checkAdmitted(signal);
          throw error;
        }
        const backoffMs = Math.min(busyMsMax, busyMs * 2 ** Math.min(tries - 1, 10));
        const jittered = backoffMs * (0.5 + this.#entropy.unit() / 2);
        await pause(this.#clock, Math.min(busyMsMax, Math.max(jittered, error.retryAfterMs ?? 0)), giveUp);
      }
    }
  }

  /** Whether the key is taken and the model served; the engine ends where not. */
  async #checkAdmitted(signal: AbortSignal) {
    const listed = await this.#calls.models(signal);
    if (listed === "refused") throw this.#end("refused", this.#keyAdvice());
    // A gateway may list nothing; a llama-server serves what it has, whatever it is called.
    if (listed === null || listed.length === 0) return [];
    const kind = this.#calls.kindOf(listed);
    if (kind !== "llama-server" && cardOf(listed, this.#pool.modelRef) === null) {
      const named = listed.slice(0, 8).map(({ id }) => id);
      throw this.#end(
        "refused",
        `does not serve the model ${this.#pool.modelRef}; it names ${named.join(", ")}: correct "model"`,
      );
    }
    return listed;
  }

  #keyAdvice(): string {
    const key = this.#pool.remote?.key ?? null;
    if (key === null) return 'asks for a key: set "api_key_file" or "api_key_env"';
    const place = key.from === "file" ? `the file ${key.name}` : `the variable ${key.name}`;
    return `refuses the key from ${place}: correct it and start again`;
  }

  async #tokenizes(signal: AbortSignal): Promise<boolean> {
    try {
      return (await this.tokenize("a b", true, signal)).length > 0;
    } catch (error) {
      if (!isEngineError(error) || !["unsupported", "rejected", "protocol"].includes(error.engineErrorKind))
        throw error;
      return false;
    }
  }

  async #warmUpByDecode(signal: AbortSignal): Promise<WarmUpSpeed> {
    const sampling = { temperature: 0, topP: 1, topK: 0, minP: 0, repeatPenalty: 1 };
    const plain = { presencePenalty: 0, frequencyPenalty: 0, stop: [], grammar: null, jsonSchema: null };
    // A chat where there may be nothing but chats; the template's words are few beside it.
    const prompt = this.#facts.kind === "other" ? { messages: [asUser(warmUpText)], said: "" } : warmUpText;
    const result = await this.generate(
      {
        prompt,
        maxTokens: warmUpTokens,
        seed: 1,
        cachePrompt: false,
        slot: 0,
        sampling: { ...sampling, ...plain },
      },
      { onPrompt: () => undefined, onToken: () => undefined },
      signal,
    );
    if (result.tokensOut < 1) throw new EngineError("protocol", "the server's first answer had no token");
    return {
      prefillTps: perSecond(result.tokensIn - result.tokensCached, result.promptMs),
      // By the clock here the first token belongs to the prompt.
      decodeTps: perSecond(Math.max(1, result.tokensOut - 1), Math.max(1, result.decodeMs)),
    };
  }

  async #warmUpByWall(signal: AbortSignal): Promise<WarmUpSpeed> {
    const fromMs = this.#clock.nowMs();
    const { tokensIn } =
      this.#workload === "embedding"
        ? await this.embed([warmUpText], signal)
        : await this.rerank("What does the engine read?", [warmUpText], signal);
    const tps = perSecond(tokensIn, this.#clock.nowMs() - fromMs);
    return { prefillTps: tps, decodeTps: tps };
  }

  /** It does not answer, and has not since this start: after a while that is its end. */
  #notThere(why: string): void {
    if (this.#clock.nowMs() - this.#startedMs >= connectMs)
      this.#end("unreachable", `does not answer (${why}): start it there, or correct "base_url"`);
  }

  /** Ends this start of the engine; returns what the call that found out rejects with. */
  #end(cause: EngineEnd["cause"], what: string): EngineError {
    const message = `the server of pool ${this.#pool.id} at ${this.#pool.remote?.baseUrl ?? ""} ${what}`;
    if (!this.#over) {
      this.#resolveExited({ cause, message });
      this.close();
    }
    // Not "rejected": no task is at fault, those under way go on elsewhere or later.
    return new EngineError("connection", message);
  }

  #assertOpen(signal: AbortSignal): void {
    if (signal.aborted || this.#over) throw new EngineError("aborted", "the call was aborted");
  }

  #assertWorkload(workload: Workload): void {
    if (!this.#pool.workloads.includes(workload))
      throw new EngineError("unsupported", `the pool does not offer ${workload}`);
  }
}

const isUnavailable = (error: unknown): boolean =>
  isEngineError(error) && error.engineErrorKind === "unavailable";

const asUser = (content: string): ChatMessage => ({ role: "user", content });

/** Tokens at most: one is a byte at least. */
function boundOf(prompt: GenerateRequest["prompt"]): number {
  if (typeof prompt === "string") return Buffer.byteLength(prompt, "utf8");
  return isChat(prompt) ? boundOfAll(prompt.messages.map(({ content }) => content)) : prompt.length;
}

const boundOfAll = (texts: readonly string[]): number => texts.reduce((sum, text) => sum + boundOf(text), 0);

/** Never 0 or infinite, however little was measured: it is divided by. */
const perSecond = (tokens: number, ms: number): number =>
  Math.max(0.001, (Math.max(1, tokens) * 1000) / Math.max(0.01, ms));
