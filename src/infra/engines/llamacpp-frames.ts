/**
 * What llama-server's `/completion` stream and its error bodies say: payload bytes in, facts out. Pure; the
 * client calls it. A token frame looks like
 *   {"index":0,"content":" little","tokens":[376],"stop":false,"id_slot":-1,"tokens_predicted":5,…}
 * and is the only frame that comes by the thousand, so it is read by its bytes: no JSON.parse of the frame, one
 * string and one array per token. Whatever looks different in any way goes through JSON.parse.
 */
import { EngineError, type EngineErrorKind } from "../../ports/engine.ts";

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const prefix = Buffer.from('{"index":0,"content":"');
const beforeTokens = Buffer.from('"tokens":[');
const afterTokens = Buffer.from('],"stop":false');
const beforePredicted = Buffer.from('"tokens_predicted":');

const messageCharsMax = 500;

export interface FinalFrame {
  readonly stopType: string;
  readonly truncated: boolean;
  readonly tokensPredicted: number;
  readonly tokensEvaluated: number;
  readonly tokensCached: number;
  readonly promptTokensRun: number;
  readonly promptMs: number;
  readonly decodeMs: number;
}

export type Frame =
  | {
      readonly kind: "token";
      readonly text: string;
      readonly ids: readonly number[];
      readonly final: FinalFrame | null;
    }
  | { readonly kind: "progress"; readonly total: number; readonly cached: number; readonly done: number };

/** A token frame read by its bytes; `text` is "" when the frame is of another shape. Reused: read it at once. */
export interface FastToken {
  text: string;
  ids: number[];
  /** Tokens generated up to here; read only where tokens may be missing, else 0. */
  predicted?: number;
}

function startsWith(bytes: Buffer, at: number, end: number, expected: Buffer): boolean {
  if (end - at < expected.length) return false;
  for (let i = 0; i < expected.length; i++) if (bytes[at + i] !== expected[i]) return false;
  return true;
}

/** Fills `out` and returns true if [start, end) is a plain token frame with text. */
export function readTokenFrame(bytes: Buffer, start: number, end: number, out: FastToken): boolean {
  if (!startsWith(bytes, start, end, prefix)) return false;
  const textStart = start + prefix.length;
  let at = textStart;
  let seen = 0;
  let escaped = false;
  for (; at < end; at++) {
    const byte = bytes[at] ?? 0;
    if (byte === QUOTE) break;
    seen |= byte;
    if (byte === BACKSLASH) {
      escaped = true;
      at += 1;
    }
  }
  const textEnd = at;
  // The quote and a comma; an empty text has another meaning (progress, end of text) and is rare.
  if (textEnd >= end || textEnd === textStart || bytes[at + 1] !== 0x2c) return false;
  at += 2;
  if (!startsWith(bytes, at, end, beforeTokens)) return false;
  at += beforeTokens.length;
  const ids: number[] = [];
  let id = -1;
  for (; at < end; at++) {
    const byte = bytes[at] ?? 0;
    if (byte >= 0x30 && byte <= 0x39) id = (id < 0 ? 0 : id * 10) + (byte - 0x30);
    else if (byte === 0x2c && id >= 0) {
      ids.push(id);
      id = -1;
    } else break;
  }
  if (id >= 0) ids.push(id);
  if (!startsWith(bytes, at, end, afterTokens)) return false;
  out.text = escaped
    ? String(JSON.parse(bytes.toString("utf8", textStart - 1, textEnd + 1)))
    : bytes.toString(seen < 0x80 ? "latin1" : "utf8", textStart, textEnd);
  out.ids = ids;
  // A token that ends inside a character has no frame of its own, so only behind such text ids can be missing.
  out.predicted = seen < 0x80 && !escaped ? 0 : predictedOf(bytes, at, end);
  return true;
}

/** Tokens generated up to a frame, as the frame has it; 0 where it does not say. */
export function predictedOf(bytes: Buffer, start: number, end: number): number {
  const found = bytes.indexOf(beforePredicted, start);
  if (found < 0 || found >= end) return 0;
  let value = 0;
  for (let at = found + beforePredicted.length; at < end; at++) {
    const byte = bytes[at] ?? 0;
    if (byte < 0x30 || byte > 0x39) break;
    value = value * 10 + (byte - 0x30);
  }
  return value;
}

type Json = Readonly<Record<string, unknown>>;

export const isJson = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const num = (value: unknown): number => (typeof value === "number" && Number.isFinite(value) ? value : 0);

/** Any frame, by JSON.parse. Throws EngineError: the engine's own error frame, or "protocol" for nonsense. */
export function readFrame(payload: string): Frame {
  const json = parseJson(payload);
  if (isJson(json.error)) throw toEngineError(num(json.error.code) || 500, json);
  if (isJson(json.prompt_progress)) {
    const progress = json.prompt_progress;
    // Its "tokens":[0] is bogus.
    return {
      kind: "progress",
      total: num(progress.total),
      cached: num(progress.cache),
      done: num(progress.processed),
    };
  }
  if (typeof json.content !== "string" || typeof json.stop !== "boolean") {
    throw new EngineError("protocol", "the engine sent a frame without text");
  }
  const ids = Array.isArray(json.tokens)
    ? json.tokens.filter((id): id is number => typeof id === "number")
    : [];
  return { kind: "token", text: json.content.toWellFormed(), ids, final: json.stop ? readFinal(json) : null };
}

function readFinal(json: Json): FinalFrame {
  const timings = isJson(json.timings) ? json.timings : {};
  return {
    stopType: String(json.stop_type),
    truncated: json.truncated === true,
    tokensPredicted: num(json.tokens_predicted),
    tokensEvaluated: num(json.tokens_evaluated),
    tokensCached: num(timings.cache_n),
    promptTokensRun: num(timings.prompt_n),
    promptMs: num(timings.prompt_ms),
    decodeMs: num(timings.predicted_ms),
  };
}

/** Throws EngineError("protocol") for anything but one JSON object. */
export function parseJson(text: string): Json {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new EngineError("protocol", "the engine sent JSON that does not parse", { cause });
  }
  if (!isJson(json)) throw new EngineError("protocol", "the engine sent JSON that is no object");
  return json;
}

/** What an HTTP error answer means to us; `body` as received. */
export function httpError(status: number, body: string): EngineError {
  let json: unknown = null;
  try {
    json = JSON.parse(body);
  } catch (cause) {
    // No JSON: a proxy, a wedged engine, or no llama-server at all. Only its status means something.
    return new EngineError(status === 503 ? "unavailable" : "protocol", `the engine answered ${status}`, {
      cause,
    });
  }
  return toEngineError(status, isJson(json) ? json : {});
}

function toEngineError(status: number, json: Json): EngineError {
  const error = isJson(json.error) ? json.error : {};
  const said = typeof error.message === "string" ? cleaned(error.message) : "";
  const message = said === "" ? `the engine answered ${status}` : said;
  return new EngineError(errorKind(status, String(error.type ?? ""), message), message);
}

function errorKind(status: number, type: string, message: string): EngineErrorKind {
  if (type === "exceed_context_size_error") return "context";
  // Embedding and rerank inputs beyond the batch are a 500 in this engine, yet the request is at fault.
  if (/too large to process|context size has been exceeded/i.test(message)) return "context";
  if (status === 501 || type === "not_supported_error") return "unsupported";
  if (status === 503) return "unavailable";
  if (status === 400 || status === 422) return "rejected";
  return "protocol";
}

/** One line, no control characters, bounded: it may be shown to a client. */
function cleaned(message: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is removed
  const line = message.replace(/[\u0000-\u001f\u007f]+/g, " ").trim();
  return line.length > messageCharsMax ? `${line.slice(0, messageCharsMax)}…` : line;
}
