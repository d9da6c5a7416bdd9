/**
 * Calls to one llama-server: collected JSON answers with a time limit, and the streamed generation. The client
 * (llamacpp-client.ts) says which call means what; this file knows how a call is made, cut off and accounted for.
 *
 * Always: a call settles once; after its signal, its time limit or `close` it reports nothing more, and its
 * socket is closed in the same turn.
 */
import { unnamedId } from "../../domain/continuation.ts";
import { limits } from "../../domain/limits.ts";
import type { Clock } from "../../ports/clock.ts";
import { EngineError, type GenerateResult, type GenerateSink, isEngineError } from "../../ports/engine.ts";
import { type Endpoint, HttpExchange, type HttpRequest } from "./http-exchange.ts";
import {
  type FastToken,
  type FinalFrame,
  httpError,
  parseJson,
  predictedOf,
  readFrame,
  readTokenFrame,
} from "./llamacpp-frames.ts";
import { SseDecoder } from "./sse-decoder.ts";

/** 1,024 embeddings of 8,192 numbers as decimal text stay below it. */
const answerBytesMax = 256 * 1024 * 1024;
const errorBytesMax = 1024 * 1024;
/** Tokens in a row that end inside a character; more are not believed. */
const unnamedIdsMax = 64;

type Json = Readonly<Record<string, unknown>>;

export interface Answer {
  readonly status: number;
  readonly text: string;
}

/** A body that is read as a whole. */
class BodyCollector {
  readonly #bytesMax: number;
  #parts: Buffer[] = [];
  #length = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  add(bytes: Buffer, start: number, end: number): void {
    this.#length += end - start;
    if (this.#length > this.#bytesMax) throw new EngineError("protocol", "the engine's answer is too long");
    this.#parts.push(Buffer.from(bytes.subarray(start, end)));
  }

  text(): string {
    return Buffer.concat(this.#parts).toString("utf8");
  }
}

export class LlamaCppCalls {
  readonly #clock: Clock;
  readonly #endpoint: () => Endpoint | null;
  readonly #key: string;
  readonly #onLost: () => void;
  readonly #live = new Set<(error: EngineError) => void>();
  #closed = false;

  /** `onLost` hears of every call that failed because the engine may be gone, before the call rejects. */
  constructor(clock: Clock, key: string, endpoint: () => Endpoint | null, onLost: () => void) {
    this.#clock = clock;
    this.#key = key;
    this.#endpoint = endpoint;
    this.#onLost = onLost;
  }

  /** The whole answer, whatever its status. `timeoutMs` null: the caller's signal alone bounds it. */
  answer(
    path: string,
    body: Json | null,
    signal: AbortSignal,
    timeoutMs: number | null = limits.engineControlTimeoutMs,
    withKey = true,
  ): Promise<Answer> {
    return this.#call(path, body, signal, timeoutMs, withKey, (done, fail) => {
      const collected = new BodyCollector(answerBytesMax);
      let status = 0;
      return {
        onHead: (code) => {
          status = code;
        },
        onBody: (bytes, start, end) => collected.add(bytes, start, end),
        onEnd: () => done({ status, text: collected.text() }),
        onFailed: fail,
      };
    });
  }

  /** The JSON object of a 200; any other status becomes an EngineError. */
  async json(path: string, body: Json | null, signal: AbortSignal, timeoutMs?: number | null): Promise<Json> {
    const { status, text } = await this.answer(path, body, signal, timeoutMs);
    if (status !== 200) throw httpError(status, text);
    return parseJson(text);
  }

  /** As `json`, for the endpoints that answer an array. */
  async list(path: string, signal: AbortSignal): Promise<unknown[]> {
    const { status, text } = await this.answer(path, null, signal);
    if (status !== 200) throw httpError(status, text);
    const { list } = parseJson(`{"list":${text}}`);
    if (!Array.isArray(list)) throw new EngineError("protocol", `the engine's answer to ${path} is no list`);
    return list;
  }

  /** One `/completion` stream. Resolves on its final frame only. */
  generate(body: Json, sink: GenerateSink, signal: AbortSignal): Promise<GenerateResult> {
    return this.#call(
      "/completion",
      body,
      signal,
      null,
      true,
      (done, fail) => new Generation(sink, done, fail),
    );
  }

  close(): void {
    this.#closed = true;
    for (const cut of this.#live) cut(new EngineError("aborted", "the engine's client was closed"));
  }

  #call<T>(
    path: string,
    body: Json | null,
    signal: AbortSignal,
    timeoutMs: number | null,
    withKey: boolean,
    receiver: (done: (value: T) => void, fail: (error: unknown) => void) => Receiver,
  ): Promise<T> {
    if (signal.aborted || this.#closed)
      return Promise.reject(new EngineError("aborted", `${path} was not called`));
    const endpoint = this.#endpoint();
    if (endpoint === null)
      return Promise.reject(new EngineError("unreachable", "the engine does not listen yet"));
    const request: HttpRequest = {
      method: body === null ? "GET" : "POST",
      path,
      key: withKey ? this.#key : null,
      body: body === null ? null : JSON.stringify(body),
    };
    return new Promise<T>((resolve, reject) => {
      let settled = false;
      const settle = () => {
        if (settled) return false;
        settled = true;
        timer?.cancel();
        signal.removeEventListener("abort", onAbort);
        this.#live.delete(cut);
        return true;
      };
      const fail = (error: unknown) => {
        if (!settle()) return;
        if (isGone(error)) this.#onLost();
        reject(error);
      };
      const received = receiver((value) => {
        if (!settle()) return;
        // A stream's final frame comes before its end, which a broken engine may never send.
        exchange.cancel();
        resolve(value);
      }, fail);
      const cut = (error: EngineError) => {
        received.stop?.();
        exchange.cancel();
        fail(error);
      };
      const onAbort = () => cut(new EngineError("aborted", `${path} was aborted`));
      const timer =
        timeoutMs === null
          ? null
          : this.#clock.setTimer(timeoutMs, () =>
              cut(new EngineError("timeout", `the engine did not answer ${path} in ${timeoutMs} ms`)),
            );
      const exchange = new HttpExchange(endpoint, request, received);
      this.#live.add(cut);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }
}

/** The engine is gone, or may be. */
export function isGone(error: unknown): boolean {
  return isEngineError(error) && ["connection", "unreachable"].includes(error.engineErrorKind);
}

interface Receiver {
  onHead(status: number): void;
  onBody(bytes: Buffer, start: number, end: number): void;
  onEnd(): void;
  onFailed(error: unknown): void;
  /** Nothing may be reported to anybody after this. */
  stop?(): void;
}

/** The receiver of one `/completion` stream: frames in, sink calls and one result out. */
class Generation implements Receiver {
  readonly #sink: GenerateSink;
  readonly #done: (result: GenerateResult) => void;
  readonly #fail: (error: unknown) => void;
  readonly #decoder: SseDecoder;
  readonly #token: FastToken = { text: "", ids: [], predicted: 0 };
  /** Of an answer that is no stream: an HTTP error's body. */
  #errorBody: BodyCollector | null = null;
  #status = 0;
  /** Ids of frames that had no text of their own. */
  #heldIds: number[] = [];
  /** Tokens that frames told of by now. */
  #tokens = 0;

  constructor(sink: GenerateSink, done: (result: GenerateResult) => void, fail: (error: unknown) => void) {
    this.#sink = sink;
    this.#done = done;
    this.#fail = fail;
    this.#decoder = new SseDecoder(limits.engineFrameBytesMax, (bytes, start, end) =>
      this.#frame(bytes, start, end),
    );
  }

  onHead(status: number): void {
    this.#status = status;
    if (status !== 200) this.#errorBody = new BodyCollector(errorBytesMax);
  }

  onBody(bytes: Buffer, start: number, end: number): void {
    if (this.#errorBody !== null) this.#errorBody.add(bytes, start, end);
    else this.#decoder.push(bytes, start, end);
  }

  onEnd(): void {
    // A clean end proves nothing: only the final frame does, and that has settled this call already.
    if (this.#errorBody !== null) this.#fail(httpError(this.#status, this.#errorBody.text()));
    else this.#fail(new EngineError("connection", "the engine ended the stream without its final frame"));
  }

  onFailed(error: unknown): void {
    this.#fail(error);
  }

  stop(): void {
    this.#decoder.stop();
  }

  #frame(bytes: Buffer, start: number, end: number): void {
    if (readTokenFrame(bytes, start, end, this.#token)) {
      const { text, ids, predicted } = this.#token;
      this.#piece(text, ids, predicted ?? 0);
    } else this.#otherFrame(bytes.toString("utf8", start, end), predictedOf(bytes, start, end));
  }

  #otherFrame(payload: string, predicted: number): void {
    if (payload === "[DONE]") return;
    const frame = readFrame(payload);
    if (frame.kind === "progress") {
      this.#sink.onPrompt(frame.total, frame.cached, frame.done);
      return;
    }
    this.#piece(frame.text, frame.ids, predicted);
    if (frame.final !== null) {
      this.#decoder.stop();
      this.#done(toResult(frame.final));
    }
  }

  /**
   * The engine keeps back the frames of tokens that end inside a character (build 11669): its own count tells how
   * many, and they are passed on as unnamed. `predicted` 0: nothing can be missing. A count that no character
   * explains is nonsense: then the piece has no ids at all.
   */
  #piece(text: string, ids: readonly number[], predicted: number): void {
    const missing = predicted - this.#tokens - ids.length;
    this.#tokens += ids.length + Math.max(0, missing);
    if (missing > unnamedIdsMax) {
      this.#heldIds = [];
      if (text !== "") this.#sink.onToken(text, []);
      return;
    }
    for (let i = 0; i < missing; i++) this.#heldIds.push(unnamedId);
    if (text === "") this.#heldIds.push(...ids);
    else if (this.#heldIds.length === 0) this.#sink.onToken(text, ids);
    else {
      const all = [...this.#heldIds, ...ids];
      this.#heldIds = [];
      this.#sink.onToken(text, all);
    }
  }
}

function toResult(frame: FinalFrame): GenerateResult {
  return {
    finishReason: frame.stopType === "limit" ? "length" : "stop",
    tokensIn: frame.tokensEvaluated,
    tokensCached: frame.tokensCached,
    tokensOut: frame.tokensPredicted,
    promptMs: frame.promptMs,
    decodeMs: frame.decodeMs,
  };
}
