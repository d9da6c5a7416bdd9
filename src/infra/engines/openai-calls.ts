/**
 * Calls to one server that speaks the OpenAI API: where each thing is asked, and what its answer means. The client
 * (openai-client.ts) says when; engine-calls.ts makes them. The key goes with every call and into no message.
 *
 * Sources: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html for /health, /version, /tokenize;
 * llama-server build 11669 for /health, /props, /tokenize, /apply-template.
 */
import { assert } from "../../domain/assert.ts";
import { limits } from "../../domain/limits.ts";
import type { PoolSpec } from "../../domain/pool.ts";
import type { ChatMessage } from "../../domain/task.ts";
import type { Clock } from "../../ports/clock.ts";
import { EngineError, type GenerateResult, type GenerateSink } from "../../ports/engine.ts";
import { type Answer, EngineCalls, type Json } from "./engine-calls.ts";
import type { Endpoint } from "./http-exchange.ts";
import { httpError, parseJson } from "./openai-frames.ts";
import {
  isTgi,
  kindByCards,
  type ModelCard,
  modelCards,
  moreAbout,
  type ServerFacts,
  type ServerKind,
} from "./openai-server.ts";
import { RemoteAnswer } from "./openai-stream.ts";

export class OpenAiCalls {
  /** What the configuration says that it is; null: it is asked. */
  readonly kindNamed: ServerKind | null;
  readonly #clock: Clock;
  readonly #calls: EngineCalls;
  readonly #model: string;
  /** Path before /models and /completions. */
  readonly #base: string;
  /** Path before /health and whatever else is no part of the OpenAI API. */
  readonly #root: string;
  /** Where the server says that it serves; found by the first that answers. */
  #healthPath: string;

  constructor(clock: Clock, pool: PoolSpec, onLost: () => void) {
    assert(pool.remote !== null, `pool ${pool.id} names a server`);
    const { baseUrl, kind, key } = pool.remote;
    const url = new URL(baseUrl);
    const tls = url.protocol === "https:";
    const endpoint: Endpoint = {
      host: url.hostname.replace(/^\[|\]$/g, ""),
      port: url.port === "" ? (tls ? 443 : 80) : Number(url.port),
      tls,
    };
    this.kindNamed = kind === "auto" ? null : kind;
    this.#clock = clock;
    this.#model = pool.modelRef;
    this.#base = url.pathname.replace(/\/+$/, "");
    this.#root = this.#base.replace(/\/v1$/, "");
    this.#healthPath = `${this.#root}/health`;
    this.#calls = new EngineCalls(clock, key === null ? null : key.secret.reveal(), () => endpoint, onLost);
  }

  /** Throws EngineError: unavailable while it loads or is overrun. */
  async health(signal: AbortSignal): Promise<"ok"> {
    const asked = this.#healthPath;
    const answer = await this.#calls.answer(asked, null, signal);
    if (answer.status === 200) return "ok";
    const models = `${this.#base}/models`;
    // A gateway without a page for it: then its list of models will do, with the key or without.
    if (asked === models && (answer.status === 401 || answer.status === 403)) return "ok";
    if (asked !== models && [401, 403, 404, 405].includes(answer.status)) {
      this.#healthPath = models;
      return await this.health(signal);
    }
    throw errorOf(answer);
  }

  /** Null: it lists none. refused: not with this key. */
  async models(signal: AbortSignal): Promise<ModelCard[] | "refused" | null> {
    const answer = await this.#calls.answer(`${this.#base}/models`, null, signal);
    if (answer.status === 401 || answer.status === 403) return "refused";
    if (answer.status === 404 || answer.status === 405) return null;
    if (answer.status !== 200) throw errorOf(answer);
    return modelCards(parseJson(answer.text));
  }

  kindOf(cards: readonly ModelCard[]): ServerKind | null {
    return this.kindNamed ?? kindByCards(cards);
  }

  async facts(cards: readonly ModelCard[], signal: AbortSignal): Promise<ServerFacts> {
    const kind = this.kindOf(cards) ?? ((await this.#isTgi(signal)) ? "tgi" : "other");
    const more = moreAbout[kind];
    const told = more === null ? null : await this.#told(more.path, signal);
    return { kind, ...(told === null || more === null ? { version: null, ctx: null } : more.read(told)) };
  }

  /** Ids of a text as a prompt, or without the special ones. Throws EngineError: unsupported where it does not say. */
  tokenize(kind: ServerKind, content: string, asPrompt: boolean, signal: AbortSignal): Promise<number[]> {
    const body =
      kind === "llama-server"
        ? { content, add_special: asPrompt, parse_special: asPrompt }
        : { model: this.#model, prompt: content, add_special_tokens: asPrompt };
    return this.#tokens(kind, body, signal);
  }

  /** Ids of a chat as its template renders it. */
  tokensOfChat(kind: ServerKind, messages: readonly ChatMessage[], signal: AbortSignal): Promise<number[]> {
    if (kind !== "vllm")
      return Promise.reject(new EngineError("unsupported", "this server counts no chat's tokens"));
    return this.#tokens(kind, { model: this.#model, messages, add_generation_prompt: true }, signal);
  }

  async applyTemplate(messages: readonly ChatMessage[], signal: AbortSignal): Promise<string> {
    const path = `${this.#root}/apply-template`;
    const answer = await this.#calls.answer(path, { messages }, signal, limits.engineTokenizeTimeoutMs);
    if (answer.status !== 200) throw errorOf(answer);
    const { prompt } = parseJson(answer.text);
    if (typeof prompt !== "string") throw new EngineError("protocol", "the server rendered no prompt");
    return prompt.toWellFormed();
  }

  /** The body of a 200. `path`: behind the base URL. */
  async post(path: string, body: Json, signal: AbortSignal): Promise<string> {
    const answer = await this.#calls.answer(this.#base + path, body, signal, null);
    if (answer.status !== 200) throw errorOf(answer);
    return answer.text;
  }

  generate(
    path: string,
    body: Json,
    tokensInBound: number,
    sink: GenerateSink,
    signal: AbortSignal,
  ): Promise<GenerateResult> {
    return this.#calls.call(
      this.#base + path,
      body,
      signal,
      null,
      true,
      (done, fail) => new RemoteAnswer({ clock: this.#clock, sink, tokensInBound, done, fail }),
    );
  }

  close(): void {
    this.#calls.close();
  }

  async #tokens(kind: ServerKind, body: Json, signal: AbortSignal): Promise<number[]> {
    if (kind === "other" || kind === "tgi")
      throw new EngineError("unsupported", "this server counts no tokens");
    const path = `${this.#root}/tokenize`;
    const answer = await this.#calls.answer(path, body, signal, limits.engineTokenizeTimeoutMs);
    if (answer.status !== 200) throw errorOf(answer);
    const { tokens } = parseJson(answer.text);
    if (!Array.isArray(tokens) || !tokens.every((id): id is number => Number.isSafeInteger(id)))
      throw new EngineError("protocol", "the server told no tokens");
    return tokens;
  }

  async #isTgi(signal: AbortSignal): Promise<boolean> {
    const info = await this.#told("/info", signal);
    return info !== null && isTgi(info);
  }

  /** What a page beside the API says; null: it is not there, or says nothing that can be read. */
  async #told(path: string, signal: AbortSignal): Promise<Json | null> {
    const { status, text } = await this.#calls.answer(this.#root + path, null, signal);
    if (status !== 200) return null;
    try {
      return parseJson(text);
    } catch {
      // A gateway's page of that name: it tells nothing of the server.
      return null;
    }
  }
}

const errorOf = ({ status, headers, text }: Answer): EngineError => httpError(status, headers, text);
