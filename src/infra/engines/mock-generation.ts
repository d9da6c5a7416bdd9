/**
 * One generation of the mock engine: what it says, when, and which scripted fault strikes it. It has no timer of
 * its own: mock.ts asks when it is due and lets it say what is due by then.
 *
 * Always: settles once; the sink hears nothing after that. A text that may be the beginning of a stop string is
 * held back, as the real engine does it, and all that waits with it: the ids that were told are those of the text
 * that was told, so a continuation by ids neither loses nor doubles a character. Only the piece before a stop string
 * also has the stop string's ids, with the real engine too.
 */
import type { MockFault, MockOptions } from "../../domain/pool.ts";
import { openStopUnits } from "../../domain/stop-strings.ts";
import {
  EngineError,
  type GenerateRequest,
  type GenerateResult,
  type GenerateSink,
} from "../../ports/engine.ts";
import { hashContext, mix, nextToken, textOf } from "./mock-words.ts";

export interface MockGenerationInput {
  readonly request: GenerateRequest;
  readonly promptIds: readonly number[];
  readonly tokensCached: number;
  readonly ctx: number;
  readonly options: MockOptions;
  readonly fault: MockFault | null;
  /** Number of this generation in its pool. */
  readonly nth: number;
  readonly startedMs: number;
  readonly sink: GenerateSink;
  onDone(result: GenerateResult): void;
  onFailed(error: EngineError): void;
  /** The scripted crash: the whole engine goes. */
  onCrash(): void;
}

export class MockGeneration {
  readonly slot: number;
  /** The tokens of the slot's cache: the prompt and what was said. */
  readonly ids: number[];
  settled = false;
  readonly #input: MockGenerationInput;
  readonly #salt: number;
  readonly #tokensMax: number;
  readonly #prefillMs: number;
  /** When the first token is due. */
  readonly #firstMs: number;
  readonly #tornDecoder = new TextDecoder();
  #hash: number;
  #prefilled = false;
  #said = 0;
  #held = "";
  #heldIds: number[] = [];

  constructor(input: MockGenerationInput) {
    const { request, options, fault, promptIds } = input;
    this.#input = input;
    this.slot = request.slot;
    this.ids = [...promptIds];
    this.#hash = hashContext(promptIds);
    this.#salt = request.sampling.temperature === 0 ? 0 : mix(0x9e3779b9, request.seed);
    this.#tokensMax = Math.min(Math.max(1, request.maxTokens), input.ctx - promptIds.length);
    this.#prefillMs = (promptIds.length - input.tokensCached) * options.prefillMsPerToken;
    this.#firstMs = input.startedMs + this.#prefillMs + (fault?.kind === "late" ? fault.delayMs : 0);
  }

  /** When there is something to say next; Infinity while a scripted stall lasts. */
  get dueMs(): number {
    if (this.#fault("stall")) return Number.POSITIVE_INFINITY;
    if (!this.#prefilled) return this.#input.startedMs + this.#prefillMs;
    return this.#firstMs + this.#said * this.#input.options.tokenMs;
  }

  /** Says what is due at `nowMs`, `tokensMax` tokens at most. Returns how many tokens that were. */
  run(nowMs: number, tokensMax: number): number {
    let spoken = 0;
    while (!this.settled && spoken < tokensMax && this.dueMs <= nowMs) {
      if (!this.#prefilled) this.#prefill();
      else if (!this.#struck()) {
        this.#say(nowMs);
        spoken += 1;
      }
    }
    return spoken;
  }

  fail(error: EngineError): void {
    if (this.settled) return;
    this.settled = true;
    this.#input.onFailed(error);
  }

  #fault(kind: MockFault["kind"]): boolean {
    const fault = this.#input.fault;
    return fault !== null && fault.kind === kind && this.#said >= fault.afterTokens;
  }

  #prefill(): void {
    this.#prefilled = true;
    const total = this.#input.promptIds.length;
    const { sink, tokensCached } = this.#input;
    sink.onPrompt(total, tokensCached, tokensCached);
    if (!this.settled) sink.onPrompt(total, tokensCached, total);
  }

  /** True when a scripted fault ended the generation instead of a token. */
  #struck(): boolean {
    if (this.#fault("crash")) {
      this.#input.onCrash();
      return true;
    }
    if (this.#fault("wrong_status")) {
      this.fail(new EngineError("protocol", "the engine answered 418"));
      return true;
    }
    return false;
  }

  #say(nowMs: number): void {
    const salt = this.#fault("diverge") ? mix(this.#salt, this.#input.nth) ^ 0x5bd1e995 : this.#salt;
    const id = nextToken(this.#hash, this.ids.at(-1) ?? 0, salt);
    this.#hash = mix(this.#hash, id);
    this.ids.push(id);
    this.#said += 1;
    this.#heldIds.push(id);
    const stopped = this.#fault("torn_utf8") ? this.#tornPiece(textOf(id)) : this.#piece(textOf(id));
    if (this.settled) return;
    if (stopped) this.#finish("stop", nowMs);
    else if (this.#said >= this.#tokensMax) {
      this.#flush(this.#held);
      this.#finish("length", nowMs);
    }
  }

  /** As if the piece came in two chunks, cut inside its last character where that has several bytes. */
  #tornPiece(text: string): boolean {
    const bytes = Buffer.from(text, "utf8");
    const cut = bytes.length - 1;
    const first = this.#tornDecoder.decode(bytes.subarray(0, cut), { stream: true });
    const stopped = first !== "" && this.#part(first);
    return stopped || this.#piece(this.#tornDecoder.decode(bytes.subarray(cut), { stream: true }));
  }

  /** Text of which the token is not whole yet: its id comes with the rest. */
  #part(text: string): boolean {
    const id = this.#heldIds.pop();
    const stopped = this.#piece(text);
    if (id !== undefined) this.#heldIds.push(id);
    return stopped;
  }

  /** Takes text; passes on what cannot be part of a stop string. True when a stop string is complete. */
  #piece(text: string): boolean {
    const { stop } = this.#input.request.sampling;
    const held = this.#held + text;
    if (stop.length === 0) {
      this.#flush(held);
      return false;
    }
    const at = stop.reduce((first, one) => earlier(first, held.indexOf(one)), -1);
    if (at >= 0) {
      this.#flush(held.slice(0, at));
      return true;
    }
    if (openStopUnits(held, stop) > 0) this.#held = held;
    else this.#flush(held);
    return false;
  }

  #flush(text: string): void {
    this.#held = "";
    this.#pass(text);
  }

  #pass(text: string): void {
    if (text === "" || this.settled) return;
    const ids = this.#heldIds;
    this.#heldIds = [];
    this.#input.sink.onToken(text, ids);
  }

  #finish(finishReason: "stop" | "length", nowMs: number): void {
    if (this.settled) return;
    this.settled = true;
    this.#input.onDone({
      finishReason,
      tokensIn: this.#input.promptIds.length,
      tokensCached: this.#input.tokensCached,
      tokensOut: this.#said,
      promptMs: this.#prefillMs,
      decodeMs: Math.max(0, nowMs - this.#firstMs),
    });
  }
}

const earlier = (first: number, at: number): number =>
  at < 0 ? first : first < 0 ? at : Math.min(first, at);
