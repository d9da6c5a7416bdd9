/**
 * The client of one llama-server process: the engine port in its HTTP dialect. A LaunchPlan's `connect` makes
 * it; the supervisor, the attempt runner and admission call it. What is particular to this engine was measured
 * on build 11669; docs/ and the comments here name each trap that shaped a line.
 */
import { statSync } from "node:fs";
import { assert } from "../../domain/assert.ts";
import { limits } from "../../domain/limits.ts";
import { modelStampOf } from "../../domain/model-ref.ts";
import type { EngineIdentity, WarmUpSpeed } from "../../domain/pool.ts";
import type { ChatMessage, Sampling, Workload } from "../../domain/task.ts";
import type { Clock } from "../../ports/clock.ts";
import {
  type EngineClient,
  EngineError,
  type GenerateRequest,
  type GenerateResult,
  type GenerateSink,
  isChat,
  type SlotSnapshot,
} from "../../ports/engine.ts";
import type { Endpoint } from "./http-exchange.ts";
import { LlamaCppCalls } from "./llamacpp-calls.ts";
import { httpError, isJson } from "./llamacpp-frames.ts";
import { MemoryLog } from "./llamacpp-memory.ts";
import { SlotWatch } from "./slot-watch.ts";

/** The engine takes this seed as "draw one yourself" (LLAMA_DEFAULT_SEED). */
const randomSeed = 0xffff_ffff;
const warmUpTokens = 8;
const warmUpText =
  "The engine reads this line once before it takes work, so that its speed is known. ".repeat(3);
/** One step after the prompt's: without an accelerator the long one takes as long as some loads. */
const briefWarmUpTokens = 2;
const briefWarmUpText = "The";
/** What the final frame keeps of its 1.5 kB; frames in between ignore this. */
const responseFields = [
  "content",
  "tokens",
  "stop",
  "stop_type",
  "truncated",
  "tokens_predicted",
  "tokens_evaluated",
  "timings",
];
const listening = /listening on http:\/\/([\d.]+):(\d+)/;

type Json = Readonly<Record<string, unknown>>;

export interface LlamaCppClientOptions {
  readonly clock: Clock;
  readonly key: string;
  /** Null: loopback TCP at a port that the engine chooses and logs. */
  readonly socketPath: string | null;
  /** The one workload that the engine was started for. */
  readonly workload: Workload;
}

const num = (value: unknown): number | null =>
  typeof value === "number" && Number.isFinite(value) ? value : null;
const count = (value: unknown): number | null =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= 1 ? value : null;
const text = (value: unknown): string | null => (typeof value === "string" && value !== "" ? value : null);

export class LlamaCppClient implements EngineClient {
  readonly kind = "llamacpp";
  readonly #workload: Workload;
  readonly #clock: Clock;
  readonly #calls: LlamaCppCalls;
  readonly #slotWatch: SlotWatch;
  #endpoint: Endpoint | null;
  #contextMib: number | null = null;
  /** Until it has told: afterwards its lines are about tasks. */
  #memory: MemoryLog | null = new MemoryLog();

  constructor(options: LlamaCppClientOptions) {
    this.#clock = options.clock;
    this.#workload = options.workload;
    this.#endpoint = options.socketPath === null ? null : { unix: options.socketPath };
    this.#slotWatch = new SlotWatch(options.clock, (signal) => this.#askSlots(signal));
    this.#calls = new LlamaCppCalls(
      options.clock,
      options.key,
      () => this.#endpoint,
      () => this.#slotWatch.doubt(),
    );
  }

  async health(signal: AbortSignal): Promise<"ok" | "loading"> {
    const { status, text: body } = await this.#calls.answer("/health", null, signal);
    if (status === 200) return "ok";
    if (status === 503) return "loading";
    throw httpError(status, body);
  }

  async identity(signal: AbortSignal): Promise<EngineIdentity> {
    // Together: whoever waits for the model waits for them, too.
    const [props, models, open] = await Promise.all([
      this.#calls.json("/props", null, signal),
      this.#calls.json("/v1/models", null, signal),
      // An engine whose key file was empty is open to everybody; then this one is not what the plan started.
      this.#calls.answer("/slots", null, signal, limits.engineControlTimeoutMs, false),
    ]);
    if (open.status !== 401) throw new EngineError("protocol", "the engine answers without its key");
    const settings = isJson(props.default_generation_settings) ? props.default_generation_settings : {};
    const model = Array.isArray(models.data) && isJson(models.data[0]) ? models.data[0] : {};
    const meta = isJson(model.meta) ? model.meta : {};
    const slots = count(props.total_slots);
    const ctxPerSlot = count(settings.n_ctx);
    if (slots === null || ctxPerSlot === null)
      throw new EngineError("protocol", "the engine names no usable number of slots or context");
    return {
      engine: "llamacpp",
      engineVersion: text(props.build_info) ?? "unknown",
      slots,
      ctxPerSlot,
      modelPath: text(props.model_path),
      modelStamp: stampOf(text(props.model_path)),
      modelSizeBytes: num(meta.size),
      modelParams: num(meta.n_params),
      ctxTrain: num(meta.n_ctx_train),
      kvBytesPerToken:
        this.#contextMib === null ? null : Math.round((this.#contextMib * 2 ** 20) / (slots * ctxPerSlot)),
      hasChatTemplate: text(props.chat_template) !== null,
      workloads: [this.#workload],
      memory: this.#takeMemory(),
    };
  }

  async warmUp(signal: AbortSignal, speedKnown = false): Promise<WarmUpSpeed> {
    if (this.#workload !== "completion")
      return this.#warmUpByWall(speedKnown ? briefWarmUpText : warmUpText, signal);
    this.#slotWatch.begin(0);
    const result = await this.#calls.generate(
      {
        prompt: speedKnown ? briefWarmUpText : warmUpText,
        n_predict: speedKnown ? briefWarmUpTokens : warmUpTokens,
        ignore_eos: true,
        temperature: 0,
        seed: 1,
        id_slot: 0,
        cache_prompt: false,
        ...streaming,
      },
      { onPrompt: () => undefined, onToken: () => undefined },
      signal,
    );
    if (result.tokensOut < 1) throw new EngineError("protocol", "the engine's first decode gave no token");
    return {
      prefillTps: perSecond(result.tokensIn - result.tokensCached, result.promptMs),
      decodeTps: perSecond(result.tokensOut, result.decodeMs),
    };
  }

  async countTokens(content: string, signal: AbortSignal): Promise<number> {
    return (await this.tokenize(content, true, signal)).length;
  }

  /** `asPrompt`: with the special tokens, just as a generation reads a prompt; else the text's own tokens. */
  async tokenize(content: string, asPrompt: boolean, signal: AbortSignal): Promise<number[]> {
    const { tokens } = await this.#calls.json(
      "/tokenize",
      { content, add_special: asPrompt, parse_special: asPrompt },
      signal,
      limits.engineTokenizeTimeoutMs,
    );
    if (!Array.isArray(tokens) || !tokens.every((id): id is number => Number.isSafeInteger(id)))
      throw new EngineError("protocol", "the engine told no tokens");
    return tokens;
  }

  async applyTemplate(messages: readonly ChatMessage[], signal: AbortSignal): Promise<string> {
    const { prompt } = await this.#calls.json(
      "/apply-template",
      { messages },
      signal,
      limits.engineTokenizeTimeoutMs,
    );
    if (typeof prompt !== "string") throw new EngineError("protocol", "the engine rendered no prompt");
    return prompt.toWellFormed();
  }

  generate(request: GenerateRequest, sink: GenerateSink, signal: AbortSignal): Promise<GenerateResult> {
    if (this.#workload !== "completion") return Promise.reject(this.#unsupported("completion"));
    this.#slotWatch.begin(request.slot);
    return this.#calls.generate(completionBody(request), sink, signal);
  }

  async embed(
    inputs: readonly string[],
    signal: AbortSignal,
  ): Promise<{ vectors: number[][]; tokensIn: number }> {
    if (this.#workload !== "embedding") throw this.#unsupported("embedding");
    const answer = await this.#calls.json(
      "/v1/embeddings",
      { input: inputs, encoding_format: "float" },
      signal,
      null,
    );
    const vectors: number[][] = inputs.map(() => []);
    for (const item of Array.isArray(answer.data) ? answer.data : []) {
      const index = isJson(item) ? num(item.index) : null;
      if (isJson(item) && Array.isArray(item.embedding) && index !== null && index in vectors) {
        vectors[index] = item.embedding.map(Number);
      }
    }
    if (vectors.some((vector) => vector.length === 0))
      throw new EngineError("protocol", "an embedding is missing");
    return { vectors, tokensIn: tokensOf(answer) };
  }

  async rerank(
    query: string,
    inputs: readonly string[],
    signal: AbortSignal,
  ): Promise<{ scores: { index: number; score: number }[]; tokensIn: number }> {
    if (this.#workload !== "rerank") throw this.#unsupported("rerank");
    const answer = await this.#calls.json("/v1/rerank", { query, documents: inputs }, signal, null);
    const scores: { index: number; score: number }[] = [];
    for (const item of Array.isArray(answer.results) ? answer.results : []) {
      const index = isJson(item) ? num(item.index) : null;
      const score = isJson(item) ? num(item.relevance_score) : null;
      if (index !== null && score !== null) scores.push({ index, score });
    }
    if (scores.length !== inputs.length) throw new EngineError("protocol", "a rerank score is missing");
    return { scores, tokensIn: tokensOf(answer) };
  }

  slots(signal: AbortSignal): Promise<SlotSnapshot[]> {
    return this.#slotWatch.ask(signal);
  }

  awaitSlotFree(slot: number, signal: AbortSignal): Promise<void> {
    // A wedged engine must not look free: it chooses the slots of embeddings itself, so its answer has to do.
    if (this.#workload !== "completion") return this.#slotWatch.waitAnswer(signal);
    return this.#slotWatch.waitFree(slot, signal);
  }

  async eraseContext(slot: number, signal: AbortSignal): Promise<void> {
    await this.#calls.json(`/slots/${slot}?action=erase`, {}, signal);
  }

  #takeMemory(): NonNullable<EngineIdentity["memory"]> | null {
    const report = this.#memory?.report() ?? null;
    this.#memory = null;
    return report === null ? null : { host: report.host, device: report.device };
  }

  onLogLine(line: string): void {
    this.#memory?.line(line);
    if (line.includes("fit_memory_breakdown")) this.#contextMib = contextMibOf(line) ?? this.#contextMib;
    if (this.#endpoint === null && line.includes("listening on")) {
      const match = listening.exec(line);
      if (match !== null) this.#endpoint = { host: match[1] ?? "127.0.0.1", port: Number(match[2]) };
    }
    this.#slotWatch.onLogLine(line);
  }

  close(): void {
    this.#slotWatch.close();
    this.#calls.close();
  }

  #unsupported(workload: Workload): EngineError {
    return new EngineError(
      "unsupported",
      `this engine was started for ${this.#workload}, not for ${workload}`,
    );
  }

  async #askSlots(signal: AbortSignal): Promise<SlotSnapshot[]> {
    const list = await this.#calls.list("/slots", signal);
    return list.map((item) => {
      const slot = isJson(item) ? num(item.id) : null;
      if (!isJson(item) || slot === null)
        throw new EngineError("protocol", "the engine named a slot without id");
      return { slot, busy: item.is_processing === true, tokensCached: num(item.n_prompt_tokens_cache) ?? 0 };
    });
  }

  async #warmUpByWall(content: string, signal: AbortSignal): Promise<WarmUpSpeed> {
    const fromMs = this.#clock.nowMs();
    const { tokensIn } =
      this.#workload === "embedding"
        ? await this.embed([content], signal)
        : await this.rerank("What does the engine read?", [content], signal);
    const tps = perSecond(tokensIn, this.#clock.nowMs() - fromMs);
    // Such a model decodes nothing; its prompt speed is the only one that it has.
    return { prefillTps: tps, decodeTps: tps };
  }
}

const streaming = {
  stream: true,
  // Without progress frames the engine writes nothing while it reads a prompt, and so never notices a gone client.
  return_progress: true,
  timings_per_token: false,
  response_fields: responseFields,
} as const;

function completionBody(request: GenerateRequest): Json {
  assert(!isChat(request.prompt), "it renders templates");
  return {
    prompt: request.prompt,
    // 0 would still give one token.
    n_predict: Math.max(1, request.maxTokens),
    seed: request.seed === randomSeed ? randomSeed - 1 : request.seed,
    id_slot: request.slot,
    cache_prompt: request.cachePrompt,
    ...streaming,
    ...samplingBody(request.sampling),
  };
}

function samplingBody(sampling: Sampling): Json {
  return {
    temperature: sampling.temperature,
    top_p: sampling.topP,
    top_k: sampling.topK,
    min_p: sampling.minP,
    repeat_penalty: sampling.repeatPenalty,
    presence_penalty: sampling.presencePenalty,
    frequency_penalty: sampling.frequencyPenalty,
    stop: sampling.stop,
    ...(sampling.grammar === null ? {} : { grammar: sampling.grammar }),
    ...(sampling.jsonSchema === null ? {} : { json_schema: sampling.jsonSchema }),
  };
}

/** The engine's table of its memory by device, whole MiB; null: nothing, or too little to tell. */
function contextMibOf(line: string): number | null {
  let parsed: unknown;
  try {
    parsed = JSON.parse(line);
  } catch {
    return null;
  }
  const data = isJson(parsed) && isJson(parsed.data) ? parsed.data : {};
  if (data.unit !== "MiB" || !Array.isArray(data.rows)) return null;
  let mib = 0;
  for (const row of data.rows) mib += (isJson(row) ? num(row.context) : null) ?? 0;
  return mib > 0 ? mib : null;
}

function tokensOf(answer: Json): number {
  const usage = isJson(answer.usage) ? answer.usage : {};
  return num(usage.prompt_tokens) ?? num(usage.total_tokens) ?? 0;
}

/** Never 0 or infinite, however little was measured: it is divided by. */
function perSecond(tokens: number, ms: number): number {
  return Math.max(0.001, (Math.max(1, tokens) * 1000) / Math.max(0.01, ms));
}

function stampOf(path: string | null): string | null {
  const found = path === null ? undefined : statSync(path, { throwIfNoEntry: false });
  return found === undefined ? null : modelStampOf(found);
}
