/**
 * Calls to one engine over HTTP: collected answers with a time limit, and streams. llamacpp-calls.ts and
 * openai-calls.ts say what the bytes mean; this file knows how a call is made, cut off and accounted for.
 *
 * Always: a call settles once; after its signal, its time limit or `close` it reports nothing more, and its
 * socket is closed in the same turn.
 */
import { limits } from "../../domain/limits.ts";
import type { Clock } from "../../ports/clock.ts";
import { EngineError, isEngineError } from "../../ports/engine.ts";
import { type Endpoint, type ExchangeSink, HttpExchange, type HttpRequest } from "./http-exchange.ts";

/** 1,024 embeddings of 8,192 numbers as decimal text stay below it. */
const answerBytesMax = 256 * 1024 * 1024;

export type Json = Readonly<Record<string, unknown>>;

export interface Answer {
  readonly status: number;
  /** Names in lower case. */
  readonly headers: ReadonlyMap<string, string>;
  readonly text: string;
}

/** Who hears the answer of one call. */
export interface Receiver extends ExchangeSink {
  /** Nothing may be reported to anybody after this. */
  stop?(): void;
}

/** A body that is read as a whole. */
export class BodyCollector {
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

export class EngineCalls {
  readonly #clock: Clock;
  readonly #endpoint: () => Endpoint | null;
  readonly #key: string | null;
  readonly #onLost: () => void;
  readonly #live = new Set<(error: EngineError) => void>();
  #closed = false;

  /** `onLost` hears of every call that failed because the engine may be gone, before the call rejects. */
  constructor(clock: Clock, key: string | null, endpoint: () => Endpoint | null, onLost: () => void) {
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
    return this.call(path, body, signal, timeoutMs, withKey, (done, fail) => {
      const collected = new BodyCollector(answerBytesMax);
      let status = 0;
      let headers: Answer["headers"] = new Map();
      return {
        onHead: (code, named) => {
          status = code;
          headers = named;
        },
        onBody: (bytes, start, end) => collected.add(bytes, start, end),
        onEnd: () => done({ status, headers, text: collected.text() }),
        onFailed: fail,
      };
    });
  }

  close(): void {
    this.#closed = true;
    for (const cut of this.#live) cut(new EngineError("aborted", "the engine's client was closed"));
  }

  call<T>(
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
