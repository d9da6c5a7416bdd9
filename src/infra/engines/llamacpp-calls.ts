/**
 * Calls to one llama-server: collected JSON answers with a time limit, and the streamed generation. The client
 * (llamacpp-client.ts) says which call means what; engine-calls.ts makes them.
 */
import { unnamedId } from "../../domain/continuation.ts";
import { limits } from "../../domain/limits.ts";
import { EngineError, type GenerateResult, type GenerateSink } from "../../ports/engine.ts";
import { BodyCollector, EngineCalls, type Json, type Receiver } from "./engine-calls.ts";
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

const errorBytesMax = 1024 * 1024;
/** Tokens in a row that end inside a character; more are not believed. */
const unnamedIdsMax = 64;

export class LlamaCppCalls extends EngineCalls {
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
    return this.call(
      "/completion",
      body,
      signal,
      null,
      true,
      (done, fail) => new Generation(sink, done, fail),
    );
  }
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
