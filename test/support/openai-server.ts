/**
 * A server that speaks the OpenAI API as vLLM does, or as a plain gateway: the mock engine behind HTTP, with a script
 * of what goes wrong. For tests of the openai adapter; what it is asked can be read afterwards.
 */
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { Sampling, Workload } from "../../src/domain/task.ts";
import { MockAdapter, type MockEngineClient } from "../../src/infra/engines/mock.ts";
import { type GenerateRequest, type GenerateResult, isEngineError } from "../../src/ports/engine.ts";
import { clock, entropy } from "./engine.ts";
import { poolSpec } from "./replicas.ts";

/** What happens to one request for an answer; after: tokens that still come. */
export type Mishap =
  | { readonly kind: "busy"; readonly status: number; readonly retryAfterSeconds?: number }
  | { readonly kind: "refuse"; readonly status: number; readonly body: unknown }
  | { readonly kind: "error" | "drop" | "early_end" | "stall"; readonly after: number };

export interface OpenAiServerOptions {
  /** vllm: tells what it is and takes vLLM's own parameters. gateway: the OpenAI API and nothing else. */
  readonly like?: "vllm" | "gateway";
  readonly model?: string;
  readonly key?: string | null;
  readonly slots?: number;
  readonly ctx?: number;
  readonly tokenMs?: number;
  readonly workloads?: readonly Workload[];
  readonly port?: number;
}

export interface Asked {
  readonly path: string;
  readonly key: string | null;
  readonly host: string | null;
  readonly body: Readonly<Record<string, unknown>>;
}

type Body = Readonly<Record<string, unknown>>;

export class OpenAiServer {
  readonly asked: Asked[] = [];
  /** One for each request for an answer, first come; what is not there goes well. */
  mishaps: Mishap[] = [];
  healthStatus = 200;
  readonly port: number;
  /** The key that it takes now. */
  key: string | null;
  models: string[];
  /** Its streams end without `[DONE]`, as some gateways' do. */
  withoutDone = false;
  withoutUsage = false;
  /** Comments between its events, and events cut into pieces of so many bytes; 0: whole. */
  pieceBytes = 0;
  /** So many pieces of reasoning before the answer, so far apart. */
  thoughts = 0;
  thoughtMs = 0;
  generations = 0;
  aborted = 0;
  readonly #like: "vllm" | "gateway";
  readonly #ctx: number;
  readonly #engine: MockEngineClient;
  readonly #server: ReturnType<typeof Bun.serve>;
  readonly #freeSlots: number[];
  readonly #abortWaiters: (() => void)[] = [];

  constructor(options: OpenAiServerOptions = {}) {
    const { slots = 8, ctx = 2048, tokenMs = 0.02, workloads = ["completion"] } = options;
    this.#like = options.like ?? "vllm";
    this.#ctx = ctx;
    this.key = options.key ?? null;
    this.models = [options.model ?? "words-7b"];
    this.#freeSlots = Array.from({ length: slots }, (_, slot) => slot);
    const mock = { tokenMs, prefillMsPerToken: 0, loadMs: 0, faults: [] };
    this.#engine = new MockAdapter({ clock, entropy }).connectInProcess(
      poolSpec({ slots, ctx, workloads, mock }),
      "remote",
    );
    this.#server = Bun.serve({
      port: options.port ?? 0,
      hostname: "127.0.0.1",
      idleTimeout: 0,
      fetch: (request) => this.#answer(request),
    });
    this.port = this.#server.port ?? 0;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}/v1`;
  }

  /** The pool that has this server. */
  pool(more: Partial<PoolSpec> = {}): PoolSpec {
    const secret = { reveal: () => this.key ?? "" };
    const key = this.key === null ? null : { from: "env" as const, name: "REMOTE_KEY", secret };
    return poolSpec({
      id: "remote",
      engine: "openai",
      modelRef: this.models[0] ?? "",
      modelPath: null,
      mock: null,
      remote: { baseUrl: this.url, kind: "auto", key },
      ...more,
    });
  }

  /** Resolves once so many answers were broken off by their callers. */
  async abortedAtLeast(times: number): Promise<void> {
    while (this.aborted < times) await new Promise<void>((resolve) => this.#abortWaiters.push(resolve));
  }

  of(path: string): readonly Asked[] {
    return this.asked.filter((one) => one.path === path);
  }

  async stop(): Promise<void> {
    this.#engine.close();
    await this.#server.stop(true);
  }

  async #answer(request: Request): Promise<Response> {
    const { pathname: path } = new URL(request.url);
    const key = /^Bearer (.+)$/.exec(request.headers.get("authorization") ?? "")?.[1] ?? null;
    const body = request.method === "POST" ? ((await request.json()) as Body) : {};
    this.asked.push({ path, key, host: request.headers.get("host"), body });
    if (path.startsWith("/v1") && this.key !== null && key !== this.key)
      return json({ error: "Unauthorized" }, 401);
    switch (path) {
      case "/v1/models":
        return json({ object: "list", data: this.models.map((id) => this.#card(id)) });
      case "/v1/completions":
      case "/v1/chat/completions":
        return await this.#generate(body, path.includes("chat"), request.signal);
      case "/v1/embeddings":
        return await this.#embed(body);
      case "/v1/rerank":
        return await this.#rerank(body);
      default:
        return this.#like === "vllm" ? await this.#beside(path, body) : json({ detail: "Not Found" }, 404);
    }
  }

  #card(id: string): Body {
    const card = { id, object: "model", created: 1, owned_by: this.#like === "vllm" ? "vllm" : "somebody" };
    return this.#like === "vllm" ? { ...card, max_model_len: this.#ctx } : card;
  }

  /** vLLM's pages beside the OpenAI API: no key. */
  async #beside(path: string, body: Body): Promise<Response> {
    switch (path) {
      case "/health":
        return new Response("", { status: this.healthStatus });
      case "/version":
        return json({ version: "0.11.0" });
      case "/tokenize": {
        const asPrompt = body.add_special_tokens !== false;
        const text = Array.isArray(body.messages) ? render(body) : String(body.prompt);
        const tokens = await this.#engine.tokenize(text, asPrompt, never);
        return json({ tokens, count: tokens.length, max_model_len: this.#ctx });
      }
      default:
        return json({ detail: "Not Found" }, 404);
    }
  }

  async #generate(body: Body, chat: boolean, signal: AbortSignal): Promise<Response> {
    const mishap = this.mishaps.shift() ?? null;
    if (mishap?.kind === "busy") {
      const after = mishap.retryAfterSeconds;
      const headers = after === undefined ? {} : { "retry-after": String(after) };
      return json(vllmError(mishap.status, "overloaded"), mishap.status, headers);
    }
    if (mishap?.kind === "refuse") return json(mishap.body, mishap.status);
    if (!this.models.includes(String(body.model)))
      return json(vllmError(404, `The model \`${body.model}\` does not exist.`, "NotFoundError"), 404);
    if (body.structured_outputs !== undefined || body.response_format !== undefined)
      return json(vllmError(501, "no structured outputs here", "NotImplementedError"), 501);
    const prompt = chat ? render(body) : (body.prompt as string | number[]);
    const tokens = typeof prompt === "string" ? await this.#engine.tokenize(prompt, true, never) : prompt;
    const maxTokens = Number(body.max_tokens ?? 16);
    if (tokens.length + (this.#like === "vllm" ? 0 : maxTokens) > this.#ctx) {
      const text = `This model's maximum context length is ${this.#ctx} tokens. However, you requested more.`;
      return json(vllmError(400, text), 400);
    }
    const slot = this.#freeSlots.shift();
    if (slot === undefined) return json(vllmError(503, "no slot"), 503);
    this.generations += 1;
    const answer = new StreamedAnswer(this, this.#like, body, chat, tokens.length, mishap);
    const request = requestOf(body, prompt, maxTokens, slot);
    return answer.respond(this.#engine, request, signal, (aborted) => {
      // The one used last first: what it caches is the most likely to fit.
      this.#freeSlots.unshift(slot);
      if (!aborted) return;
      this.aborted += 1;
      for (const wake of this.#abortWaiters.splice(0)) wake();
    });
  }

  async #embed(body: Body): Promise<Response> {
    const inputs = body.input as string[];
    return await this.#orRefused(async () => {
      const { vectors, tokensIn } = await this.#engine.embed(inputs, never);
      const data = vectors.map((embedding, index) => ({ object: "embedding", index, embedding }));
      // In another order than they were asked for: the index tells.
      return { object: "list", data: data.reverse(), usage: { prompt_tokens: tokensIn } };
    });
  }

  async #rerank(body: Body): Promise<Response> {
    return await this.#orRefused(async () => {
      const documents = body.documents as string[];
      const { scores, tokensIn } = await this.#engine.rerank(String(body.query), documents, never);
      const results = scores.map(({ index, score }) => ({ index, relevance_score: score }));
      return { results, usage: { total_tokens: tokensIn } };
    });
  }

  async #orRefused(work: () => Promise<unknown>): Promise<Response> {
    try {
      return json(await work());
    } catch (error) {
      if (!isEngineError(error)) throw error;
      return json(vllmError(501, error.message, "NotImplementedError"), 501);
    }
  }
}

/** One answer as a stream of events. */
class StreamedAnswer {
  readonly #server: OpenAiServer;
  readonly #like: "vllm" | "gateway";
  readonly #body: Body;
  readonly #chat: boolean;
  readonly #tokensIn: number;
  readonly #mishap: Mishap | null;
  readonly #encoder = new TextEncoder();
  #controller: ReadableStreamDefaultController<Uint8Array> | null = null;
  #tokensCached = 0;
  #tokensOut = 0;
  #closed = false;
  /** What is sent goes out in this order, each part by itself. */
  #sending: Promise<void> = Promise.resolve();

  constructor(
    server: OpenAiServer,
    like: "vllm" | "gateway",
    body: Body,
    chat: boolean,
    tokensIn: number,
    mishap: Mishap | null,
  ) {
    this.#server = server;
    this.#like = like;
    this.#body = body;
    this.#chat = chat;
    this.#tokensIn = tokensIn;
    this.#mishap = mishap;
  }

  respond(
    engine: MockEngineClient,
    request: GenerateRequest,
    signal: AbortSignal,
    ended: (aborted: boolean) => void,
  ): Response {
    const cut = new AbortController();
    const stream = new ReadableStream<Uint8Array>({
      start: (controller) => {
        this.#controller = controller;
        if (this.#chat) this.#event([this.#choice("", [], null, { role: "assistant", content: "" })]);
        const onPrompt = (_: number, tokensCached: number): void => {
          this.#tokensCached = tokensCached;
        };
        const onToken = (text: string, ids: readonly number[]): void => {
          if (cut.signal.aborted) return;
          this.#tokensOut += Math.max(1, ids.length);
          this.#event([this.#choice(text, ids, null)]);
          if (this.#strikes()) cut.abort();
        };
        this.#think()
          .then(() => engine.generate(request, { onPrompt, onToken }, AbortSignal.any([cut.signal, signal])))
          .then(
            (result) => this.#finish(result),
            () => this.#break(),
          )
          .finally(() => ended(signal.aborted));
      },
      cancel: () => {
        this.#closed = true;
        cut.abort();
      },
    });
    signal.addEventListener("abort", () => cut.abort(), { once: true });
    return new Response(stream, { headers: { "content-type": "text/event-stream; charset=utf-8" } });
  }

  async #think(): Promise<void> {
    const { thoughts, thoughtMs } = this.#server;
    for (let i = 0; i < thoughts && this.#chat; i++) {
      if (thoughtMs > 0) await new Promise<void>((resolve) => clock.setTimer(thoughtMs, resolve));
      this.#event([this.#choice("", [], null, { reasoning_content: `thought ${i}` })]);
    }
  }

  #strikes(): boolean {
    const mishap = this.#mishap;
    return mishap !== null && "after" in mishap && this.#tokensOut >= mishap.after;
  }

  #finish(result: GenerateResult): void {
    this.#tokensOut = result.tokensOut;
    this.#event([this.#choice("", [], result.finishReason)]);
    const options = this.#body.stream_options as { include_usage?: boolean } | undefined;
    if (options?.include_usage === true && !this.#server.withoutUsage) this.#event([], true);
    if (!this.#server.withoutDone) this.#send("data: [DONE]\n\n");
    this.#end();
  }

  #break(): void {
    switch (this.#mishap?.kind) {
      case "error":
        this.#send(`data: ${JSON.stringify(vllmError(500, "EngineCore encountered an issue"))}\n\n`);
        this.#send("data: [DONE]\n\n");
        this.#end();
        break;
      case "drop":
        // What was sent before has left by then.
        for (let turns = 0; turns < 5; turns++) this.#sending = this.#sending.then(() => clock.yieldTurn());
        this.#then(() => this.#controller?.error(new Error("scripted: the connection broke")));
        break;
      case "early_end":
        this.#end();
        break;
      default:
      // A stall, or its caller left: nothing more.
    }
  }

  #choice(text: string, ids: readonly number[], finishReason: string | null, delta?: Body): Body {
    const said = this.#chat ? { delta: delta ?? (text === "" ? {} : { content: text }) } : { text };
    const named = this.#like === "vllm" && this.#body.return_token_ids === true ? { token_ids: ids } : {};
    return { index: 0, ...said, logprobs: null, finish_reason: finishReason, ...named };
  }

  #event(choices: readonly Body[], last = false): void {
    const options = this.#body.stream_options as { continuous_usage_stats?: boolean } | undefined;
    const counted = last || (options?.continuous_usage_stats === true && this.#like === "vllm");
    const usage = {
      prompt_tokens: this.#tokensIn,
      total_tokens: this.#tokensIn + this.#tokensOut,
      completion_tokens: this.#tokensOut,
      prompt_tokens_details: { cached_tokens: this.#tokensCached },
    };
    const chunk = { id: "cmpl-1", object: "chunk", created: 1, model: this.#body.model, choices };
    this.#send(`data: ${JSON.stringify(counted ? { ...chunk, usage } : chunk)}\n\n`);
  }

  #send(text: string): void {
    const { pieceBytes } = this.#server;
    const bytes = this.#encoder.encode(pieceBytes > 0 ? `: keep-alive\n\n${text}` : text);
    if (pieceBytes === 0) {
      this.#then(() => this.#controller?.enqueue(bytes));
      return;
    }
    for (let at = 0; at < bytes.length; at += pieceBytes) {
      const piece = bytes.slice(at, at + pieceBytes);
      this.#then(() => this.#controller?.enqueue(piece));
      this.#sending = this.#sending.then(() => clock.yieldTurn());
    }
  }

  #end(): void {
    this.#then(() => {
      this.#closed = true;
      this.#controller?.close();
    });
  }

  #then(act: () => void): void {
    this.#sending = this.#sending.then(() => {
      if (!this.#closed) act();
    });
  }
}

const never = new AbortController().signal;

/** The mock engine's template, with the last message left open where that is asked for. */
function render(body: Body): string {
  const messages = body.messages as { role: string; content: string }[];
  const open = body.continue_final_message === true ? messages.at(-1) : undefined;
  const closed = open === undefined ? messages : messages.slice(0, -1);
  const said = closed.map(({ role, content }) => `<|${role}|>\n${content}\n`).join("");
  return `${said}<|assistant|>\n${open?.content ?? ""}`;
}

function requestOf(body: Body, prompt: string | number[], maxTokens: number, slot: number): GenerateRequest {
  const sampling: Sampling = {
    temperature: Number(body.temperature ?? 1),
    topP: Number(body.top_p ?? 1),
    topK: Math.max(0, Number(body.top_k ?? 0)),
    minP: Number(body.min_p ?? 0),
    repeatPenalty: Number(body.repetition_penalty ?? 1),
    presencePenalty: Number(body.presence_penalty ?? 0),
    frequencyPenalty: Number(body.frequency_penalty ?? 0),
    stop: (body.stop as string[] | undefined) ?? [],
    grammar: null,
    jsonSchema: null,
  };
  const cachePrompt = body.cache_salt === undefined;
  return { prompt, maxTokens, seed: Number(body.seed ?? 0), sampling, cachePrompt, slot };
}

const vllmError = (code: number, message: string, type = "BadRequestError") => ({
  error: { message, type, param: null, code },
});

function json(body: unknown, status = 200, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), {
    status,
    headers: { "content-type": "application/json", ...headers },
  });
}
