/**
 * The receiver of one streamed answer of a server that speaks the OpenAI API: chunks in, sink calls and one result
 * out. openai-client.ts makes one a generation.
 *
 * Always: an answer is whole once the server gave a reason for its end (`finish_reason`), whatever becomes of the
 * connection then; without one it is broken off, however cleanly the stream ends. The accounts behind it are waited
 * for, but not for long.
 */
import { limits } from "../../domain/limits.ts";
import type { Clock, Timer } from "../../ports/clock.ts";
import { EngineError, type GenerateResult, type GenerateSink } from "../../ports/engine.ts";
import { BodyCollector, type Receiver } from "./engine-calls.ts";
import { type Chunk, httpError, readChunk, type Usage } from "./openai-frames.ts";
import { SseDecoder } from "./sse-decoder.ts";

const errorBytesMax = 1024 * 1024;
/** From the reason for the end to `[DONE]`; some servers send none and leave the connection open. */
const lastWordsMs = 2_000;

export interface AnswerDeps {
  readonly clock: Clock;
  readonly sink: GenerateSink;
  /** Tokens of the prompt at most: what counts where the server gives no account. */
  readonly tokensInBound: number;
  readonly done: (result: GenerateResult) => void;
  readonly fail: (error: unknown) => void;
}

export class RemoteAnswer implements Receiver {
  readonly #deps: AnswerDeps;
  readonly #decoder: SseDecoder;
  readonly #sentMs: number;
  #status = 0;
  #headers: ReadonlyMap<string, string> = new Map();
  /** Of an answer that is no stream: an HTTP error's body. */
  #errorBody: BodyCollector | null = null;
  #firstMs: number | null = null;
  #lastMs = 0;
  /** Ids of chunks that had no text of their own. */
  #heldIds: number[] = [];
  #pieces = 0;
  #ids = 0;
  #promptTold = false;
  #usage: Usage | null = null;
  #timings: Chunk["timings"] = null;
  #finish: GenerateResult["finishReason"] | null = null;
  #lastWords: Timer | null = null;
  #stopped = false;

  constructor(deps: AnswerDeps) {
    this.#deps = deps;
    this.#sentMs = deps.clock.nowMs();
    this.#decoder = new SseDecoder(limits.engineFrameBytesMax, (bytes, start, end) =>
      this.#payload(bytes.toString("utf8", start, end)),
    );
  }

  onHead(status: number, headers: ReadonlyMap<string, string>): void {
    this.#status = status;
    this.#headers = headers;
    if (status !== 200) this.#errorBody = new BodyCollector(errorBytesMax);
  }

  onBody(bytes: Buffer, start: number, end: number): void {
    if (this.#errorBody !== null) this.#errorBody.add(bytes, start, end);
    else this.#decoder.push(bytes, start, end);
  }

  onEnd(): void {
    if (this.#errorBody !== null) this.#fail(httpError(this.#status, this.#headers, this.#errorBody.text()));
    else this.#over(new EngineError("connection", "the server ended its answer without a reason"));
  }

  onFailed(error: unknown): void {
    this.#over(error);
  }

  stop(): void {
    this.#stopped = true;
    this.#decoder.stop();
    this.#lastWords?.cancel();
  }

  #payload(payload: string): void {
    if (payload.trim() === "[DONE]") {
      this.#over(new EngineError("connection", "the server ended its answer without a reason"));
      return;
    }
    const chunk = readChunk(payload);
    this.#usage = chunk.usage ?? this.#usage;
    this.#timings = chunk.timings ?? this.#timings;
    this.#tellPrompt(chunk);
    if (chunk.thinks && chunk.text === "") {
      this.#lastMs = this.#deps.clock.nowMs();
      this.#firstMs ??= this.#lastMs;
      this.#deps.sink.onHeard?.();
    }
    this.#piece(chunk);
    if (this.#stopped) return;
    if (chunk.finishReason !== null) this.#finished(chunk.finishReason);
    if (chunk.isLast && this.#finish !== null) this.#over(null);
  }

  /** Before the first text: from llama-server's progress, or where each chunk carries the accounts so far. */
  #tellPrompt({ progress, usage, isLast }: Chunk): void {
    if (progress !== null) this.#deps.sink.onPrompt(progress.total, progress.cached, progress.done);
    else if (usage !== null && !isLast && !this.#promptTold && this.#pieces === 0)
      this.#deps.sink.onPrompt(usage.tokensIn, usage.tokensCached, usage.tokensIn);
    else return;
    this.#promptTold = true;
  }

  #piece({ text, ids }: Chunk): void {
    if (this.#stopped) return;
    this.#ids += ids.length;
    if (text === "") {
      this.#heldIds.push(...ids);
      return;
    }
    this.#lastMs = this.#deps.clock.nowMs();
    this.#firstMs ??= this.#lastMs;
    this.#pieces += 1;
    const all = ids.length === 0 ? [] : [...this.#heldIds, ...ids];
    this.#heldIds = [];
    this.#deps.sink.onToken(text, all);
  }

  #finished(reason: string): void {
    switch (reason) {
      case "content_filter":
        this.#fail(new EngineError("rejected", "the server's content filter cut the answer off"));
        return;
      case "abort":
      case "error":
      case "cancelled":
        this.#fail(new EngineError("connection", `the server broke its answer off (${reason})`));
        return;
      default:
        this.#finish = reason === "length" ? "length" : "stop";
        this.#lastWords ??= this.#deps.clock.setTimer(lastWordsMs, () => this.#over(null));
    }
  }

  /** Nothing more comes; `error` tells why, should the answer not be whole. */
  #over(error: unknown): void {
    if (this.#stopped) return;
    if (this.#finish === null) {
      this.#fail(error);
      return;
    }
    const finishReason = this.#finish;
    const firstMs = this.#firstMs ?? this.#deps.clock.nowMs();
    const wall = { promptMs: firstMs - this.#sentMs, decodeMs: Math.max(0, this.#lastMs - firstMs) };
    const usage = this.#usage ?? {
      tokensIn: this.#deps.tokensInBound,
      tokensCached: 0,
      tokensOut: Math.max(this.#pieces, this.#ids),
    };
    this.stop();
    this.#deps.done({ finishReason, ...usage, ...(this.#timings ?? wall) });
  }

  #fail(error: unknown): void {
    this.stop();
    this.#deps.fail(error);
  }
}
