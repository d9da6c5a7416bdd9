/**
 * What a remote server is asked: our sampling in the words of its kind. Pure; openai-client.ts sends it.
 *
 * What goes beyond the OpenAI API is sent only to a kind of server that is known to take it: others refuse what they
 * do not know, or ignore it unseen. So a server of kind other or tgi gets no top_k, min_p and repeat_penalty, and
 * what it cannot follow (a grammar) is refused here.
 *
 * Sources: vllm/entrypoints/openai/{completion,chat_completion}/protocol.py and
 * https://docs.vllm.ai/en/latest/features/structured_outputs/ (guided_* ended with 0.12), SGLang's
 * srt/entrypoints/openai/protocol.py, llama-server build 11669.
 */
import { assertNever } from "../../domain/assert.ts";
import type { Sampling } from "../../domain/task.ts";
import { EngineError, type GenerateRequest, isChat } from "../../ports/engine.ts";
import type { Json } from "./engine-calls.ts";
import { type ServerFacts, type ServerKind, versionNumbers } from "./openai-server.ts";

export interface RemoteRequest {
  /** Behind the base URL. */
  readonly path: "/completions" | "/chat/completions";
  readonly body: Json;
}

/** llama-server takes this seed as "draw one yourself". */
const randomSeed = 0xffff_ffff;

/**
 * `salt`: random, so that nothing that was cached for others fits; used where a cache must not be.
 * @throws EngineError of the kind unsupported
 */
export function remoteRequest(
  facts: Pick<ServerFacts, "kind" | "version">,
  model: string,
  request: GenerateRequest,
  salt: string,
): RemoteRequest {
  const { prompt, sampling } = request;
  const chat = isChat(prompt);
  const body = {
    model,
    ...(chat ? chatOf(facts.kind, prompt.messages, prompt.said) : { prompt }),
    // 0 would give one token here, an error there.
    max_tokens: Math.max(1, request.maxTokens),
    seed: facts.kind === "llama-server" && request.seed === randomSeed ? randomSeed - 1 : request.seed,
    temperature: sampling.temperature,
    top_p: sampling.topP,
    presence_penalty: sampling.presencePenalty,
    frequency_penalty: sampling.frequencyPenalty,
    ...(sampling.stop.length === 0 ? {} : { stop: sampling.stop }),
    stream: true,
    ...extensions(facts.kind, request, salt),
    ...constraints(facts, sampling, chat),
  };
  return { path: chat ? "/chat/completions" : "/completions", body };
}

/** Of a server that goes on behind the beginning of an answer that is the last message. */
export const continuesChats = (kind: ServerKind): boolean => kind === "vllm" || kind === "sglang";

/** It takes a request's word that no cached context is to be used. */
export const leavesCacheAlone = (kind: ServerKind): boolean => kind === "vllm" || kind === "llama-server";

function chatOf(
  kind: ServerKind,
  messages: readonly { readonly role: string; readonly content: string }[],
  said: string,
): Json {
  if (said === "") return { messages };
  if (!continuesChats(kind))
    throw new EngineError("unsupported", "this server cannot go on behind the beginning of an answer");
  return {
    messages: [...messages, { role: "assistant", content: said }],
    continue_final_message: true,
    // vLLM takes only one of the two.
    add_generation_prompt: false,
  };
}

const usage = { stream_options: { include_usage: true } } as const;

function extensions(kind: ServerKind, { sampling, cachePrompt }: GenerateRequest, salt: string): Json {
  const { topK, minP, repeatPenalty } = sampling;
  switch (kind) {
    case "vllm":
      return {
        // In every chunk: the first one tells the length of the prompt.
        stream_options: { include_usage: true, continuous_usage_stats: true },
        top_k: topK === 0 ? -1 : topK,
        min_p: minP,
        repetition_penalty: repeatPenalty,
        return_token_ids: true,
        ...(cachePrompt ? {} : { cache_salt: salt }),
      };
    case "sglang":
      return { ...usage, top_k: topK === 0 ? -1 : topK, min_p: minP, repetition_penalty: repeatPenalty };
    case "llama-server":
      return {
        ...usage,
        top_k: topK,
        min_p: minP,
        repeat_penalty: repeatPenalty,
        cache_prompt: cachePrompt,
        // Without progress frames it notices a closed connection only when it writes, seconds later.
        return_progress: true,
      };
    case "tgi":
    case "other":
      return usage;
    default:
      return assertNever(kind, "kind of server");
  }
}

function constraints(
  { kind, version }: Pick<ServerFacts, "kind" | "version">,
  { grammar, jsonSchema }: Sampling,
  chat: boolean,
): Json {
  if (grammar !== null) return grammarOf(kind, version, grammar);
  if (jsonSchema === null) return {};
  if (kind === "llama-server") return { json_schema: jsonSchema };
  if (kind === "sglang" && !chat) return { json_schema: JSON.stringify(jsonSchema) };
  if (kind === "vllm" || kind === "sglang" || chat)
    return {
      response_format: { type: "json_schema", json_schema: { name: "answer", schema: jsonSchema } },
    };
  throw new EngineError(
    "unsupported",
    "this server follows a JSON schema in chats only: send messages instead of prompt",
  );
}

function grammarOf(kind: ServerKind, version: string | null, grammar: string): Json {
  switch (kind) {
    case "llama-server":
      return { grammar };
    case "sglang":
      return { ebnf: grammar };
    case "vllm": {
      const [major, minor] = versionNumbers(version) ?? [1, 0];
      return major === 0 && minor < 11 ? { guided_grammar: grammar } : { structured_outputs: { grammar } };
    }
    case "tgi":
    case "other":
      throw new EngineError("unsupported", "this server follows no grammar; a JSON schema may do");
    default:
      return assertNever(kind, "kind of server");
  }
}

/** What capabilities name of it beside the plain workloads. */
export const featuresOf = (kind: ServerKind): readonly string[] => [
  ...(leavesCacheAlone(kind) ? ["strict"] : []),
  ...(kind === "tgi" || kind === "other" ? [] : ["grammar", "json_schema"]),
];
