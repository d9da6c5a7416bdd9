/**
 * What a server that speaks the OpenAI API says: payloads of its streams and its error bodies, read into facts. Pure;
 * openai-stream.ts and openai-client.ts call it. Servers differ in everything that is not a choice with text, so
 * each field is taken where it is and missed where it is not.
 */
import { EngineError, type EngineErrorKind, isEngineError } from "../../ports/engine.ts";
import type { Json } from "./engine-calls.ts";
import { isJson, num, text } from "./openai-server.ts";

export interface Usage {
  readonly tokensIn: number;
  readonly tokensCached: number;
  readonly tokensOut: number;
}

export interface Chunk {
  /** "" where it carries none. */
  readonly text: string;
  readonly ids: readonly number[];
  /** Text that is no answer: the model thinks, and the server sets that apart. */
  readonly thinks: boolean;
  readonly finishReason: string | null;
  readonly usage: Usage | null;
  /** It has no choice: the accounts behind the answer. */
  readonly isLast: boolean;
  /** llama-server's: tokens of the prompt, how many came from its cache, how many are read. */
  readonly progress: { readonly total: number; readonly cached: number; readonly done: number } | null;
  /** llama-server's own clock. */
  readonly timings: { readonly promptMs: number; readonly decodeMs: number } | null;
}

const messageCharsMax = 500;

/** An answer with a status that is no 200. */
export class RemoteError extends EngineError {
  readonly status: number;
  /** Null: it did not say. */
  readonly retryAfterMs: number | null;

  constructor(kind: EngineErrorKind, message: string, status: number, retryAfterMs: number | null) {
    super(kind, message);
    this.status = status;
    this.retryAfterMs = retryAfterMs;
  }
}

export const isRemoteError = (error: unknown): error is RemoteError =>
  isEngineError(error) && typeof (error as Partial<RemoteError>).status === "number";

/** One payload of a stream, not `[DONE]`. Throws EngineError: the server's own error, or "protocol" for nonsense. */
export function readChunk(payload: string): Chunk {
  const json = parseJson(payload);
  const broken = errorIn(json);
  if (broken !== null) throw midStream(broken);
  const choice = Array.isArray(json.choices) && isJson(json.choices[0]) ? json.choices[0] : null;
  if (choice === null && !isJson(json.usage))
    throw new EngineError("protocol", "the server sent a chunk with neither a choice nor its usage");
  const delta = choice !== null && isJson(choice.delta) ? choice.delta : {};
  const ids = Array.isArray(choice?.token_ids) ? choice.token_ids : [];
  const thought = text(delta.reasoning_content) ?? text(delta.reasoning);
  return {
    text: (text(choice?.text) ?? text(delta.content) ?? "").toWellFormed(),
    ids: ids.filter((id): id is number => Number.isSafeInteger(id)),
    thinks: thought !== null,
    finishReason: text(choice?.finish_reason),
    usage: readUsage(json.usage),
    isLast: choice === null,
    progress: readProgress(json.prompt_progress),
    timings: readTimings(json.timings),
  };
}

export function readUsage(usage: unknown): Usage | null {
  if (!isJson(usage)) return null;
  const tokensIn = num(usage.prompt_tokens) ?? num(usage.total_tokens);
  if (tokensIn === null) return null;
  const details = isJson(usage.prompt_tokens_details) ? usage.prompt_tokens_details : {};
  return {
    tokensIn,
    tokensCached: num(details.cached_tokens) ?? 0,
    tokensOut: num(usage.completion_tokens) ?? 0,
  };
}

function readProgress(progress: unknown): Chunk["progress"] {
  if (!isJson(progress)) return null;
  const [total, cached, done] = [num(progress.total), num(progress.cache), num(progress.processed)];
  return total === null ? null : { total, cached: cached ?? 0, done: done ?? 0 };
}

function readTimings(timings: unknown): Chunk["timings"] {
  const promptMs = isJson(timings) ? num(timings.prompt_ms) : null;
  const decodeMs = isJson(timings) ? num(timings.predicted_ms) : null;
  return promptMs === null || decodeMs === null ? null : { promptMs, decodeMs };
}

/** Throws EngineError("protocol") for anything but one JSON object. */
export function parseJson(payload: string): Json {
  let json: unknown;
  try {
    json = JSON.parse(payload);
  } catch (cause) {
    throw new EngineError("protocol", "the server sent JSON that does not parse", { cause });
  }
  if (!isJson(json)) throw new EngineError("protocol", "the server sent JSON that is no object");
  return json;
}

interface ServerError {
  readonly message: string;
  /** Type and code, as far as there are some. */
  readonly type: string;
  readonly status: number;
}

/** {error: {message, type, code}} (OpenAI, vLLM, llama-server), {object: "error", message} (SGLang), {error: "…"} (TGI). */
function errorIn(json: Json): ServerError | null {
  if (typeof json.error === "string")
    return { message: json.error, type: String(json.error_type ?? ""), status: 0 };
  const error = isJson(json.error) ? json.error : json.object === "error" ? json : null;
  if (error === null) return null;
  return {
    message: text(error.message) ?? "",
    type: `${String(error.type ?? "")} ${String(error.code ?? "")}`,
    status: num(error.code) ?? 0,
  };
}

/** The answer had begun: nothing can be tried again unseen, so it is never "busy". */
function midStream(error: ServerError): EngineError {
  const message = cleaned(error.message, "the server broke its answer off");
  const kind = errorKind(error.status === 0 ? 500 : error.status, error.type, message);
  return new EngineError(kind === "unavailable" ? "connection" : kind, message);
}

/** What an answer other than 200 means to us; `body` as received. */
export function httpError(status: number, headers: ReadonlyMap<string, string>, body: string): RemoteError {
  let json: unknown = null;
  try {
    json = JSON.parse(body);
  } catch (error) {
    // A proxy's page, or nothing: only its status means something.
    if (!(error instanceof SyntaxError)) throw error;
  }
  const said = isJson(json) ? (errorIn(json) ?? detailIn(json)) : null;
  const message = cleaned(said?.message ?? "", `the server answered ${status}`);
  const kind = errorKind(status, said?.type ?? "", message);
  return new RemoteError(kind, message, status, retryAfterMs(headers));
}

/** FastAPI's own refusals: {detail: "…"} or {detail: [{msg}]}. */
function detailIn({ detail }: Json): ServerError | null {
  const first = Array.isArray(detail) ? detail[0] : detail;
  const message = isJson(first) ? text(first.msg) : text(first);
  return message === null ? null : { message, type: "", status: 0 };
}

const tooLong =
  /maximum context length|context_length_exceeded|(?:longer than|exceeds?) the (?:model's|maximum|available) (?:context|model)|exceed_context_size|context size has been exceeded|must be <= \d+\. given:|too large to process/i;

function errorKind(status: number, type: string, message: string): EngineErrorKind {
  if (tooLong.test(type) || tooLong.test(message)) return "context";
  switch (status) {
    case 400:
    case 401:
    case 403:
    case 413:
    case 422:
      return "rejected";
    case 404:
    case 405:
    case 501:
      return "unsupported";
    // Busy, restarting, or a gateway without anybody behind it.
    case 408:
    case 425:
    case 429:
    case 502:
    case 503:
    case 504:
    case 529:
      return "unavailable";
    default:
      return "protocol";
  }
}

/** Delta seconds only: a date would need the server's clock to be ours (RFC 9110, 10.2.3). */
function retryAfterMs(headers: ReadonlyMap<string, string>): number | null {
  const seconds = headers.get("retry-after");
  return seconds !== undefined && /^\d{1,6}$/.test(seconds) ? Number(seconds) * 1000 : null;
}

/** One line, no control characters, bounded: it may be shown to a client. */
function cleaned(message: string, otherwise: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is removed
  const line = message.replace(/[\u0000-\u001f\u007f]+/g, " ").trim();
  if (line === "") return otherwise;
  return line.length > messageCharsMax ? `${line.slice(0, messageCharsMax)}…` : line;
}
