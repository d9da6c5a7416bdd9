/**
 * The mock engine: `mock:words` in this process, deterministic, with scripted faults. For tests, demonstrations
 * and benchmarks of the daemon itself; it passes the same conformance suite as llama.cpp.
 *
 * Time comes from the clock port only. With delays of 0 all generations share one pump that speaks a bounded
 * number of tokens a turn and then lets the event loop run, so that thousands of tasks a second pass through
 * and timers still fire.
 *
 * A fault's `nth` counts the generations of the pool (the starts, for never_ready and load_failure), over every
 * replica and incarnation: the counters belong to the adapter.
 */
import { assert } from "../../domain/assert.ts";
import type { EngineIdentity, MockFault, MockOptions, PoolSpec, WarmUpSpeed } from "../../domain/pool.ts";
import type { ChatMessage } from "../../domain/task.ts";
import type { Clock, Entropy, Timer } from "../../ports/clock.ts";
import {
  type EngineAdapter,
  type EngineClient,
  EngineError,
  type GenerateRequest,
  type GenerateResult,
  type GenerateSink,
  isChat,
  type SlotSnapshot,
} from "../../ports/engine.ts";
import { MockGeneration } from "./mock-generation.ts";
import { embedText, overlap, tokenize } from "./mock-words.ts";

const ctxDefault = 4096;
const warmUpTokens = 8;
/** Tokens that one turn of the pump speaks at most, shared by the running generations. */
const turnTokensMax = 256;
/** What a delay of 0 counts as, for whoever divides by the speed. */
const tpsMax = 1_000_000;

const plainOptions: MockOptions = { tokenMs: 0, prefillMsPerToken: 0, loadMs: 0, faults: [] };
const startFaults: readonly MockFault["kind"][] = ["never_ready", "load_failure"];

/** What a pool's faults count, over all its replicas. */
interface PoolCounters {
  generations: number;
  starts: number;
}

export interface MockAdapterOptions {
  readonly clock: Clock;
  readonly entropy: Entropy;
}

export class MockAdapter implements EngineAdapter {
  readonly kind = "mock";
  readonly #clock: Clock;
  readonly #counters = new Map<string, PoolCounters>();

  constructor(options: MockAdapterOptions) {
    this.#clock = options.clock;
  }

  plan(): null {
    return null;
  }

  connectInProcess(pool: PoolSpec, replicaId: string): MockEngineClient {
    const counters = this.#counters.get(pool.id) ?? { generations: 0, starts: 0 };
    this.#counters.set(pool.id, counters);
    counters.starts += 1;
    return new MockEngineClient(this.#clock, pool, replicaId, counters);
  }
}

export class MockEngineClient implements EngineClient {
  readonly kind = "mock";
  readonly exited: Promise<string>;
  readonly #clock: Clock;
  readonly #pool: PoolSpec;
  readonly #options: MockOptions;
  readonly #counters: PoolCounters;
  readonly #startFault: MockFault["kind"] | null;
  readonly #readyMs: number;
  readonly #ctx: number;
  readonly #running = new Map<number, MockGeneration>();
  /** The tokens of each slot's last context. */
  readonly #cache = new Map<number, readonly number[]>();
  readonly #freeWaiters = new Set<{ slot: number; settle(error: EngineError | null): void }>();
  readonly #pauses = new Set<(error: EngineError) => void>();
  #resolveExited: (reason: string) => void = () => undefined;
  #dead: string | null = null;
  #closed = false;
  #timer: Timer | null = null;
  #timerMs = Number.POSITIVE_INFINITY;
  #pumping = false;

  constructor(clock: Clock, pool: PoolSpec, replicaId: string, counters: PoolCounters) {
    this.#clock = clock;
    this.#pool = pool;
    this.#options = pool.mock ?? plainOptions;
    this.#counters = counters;
    this.#ctx = pool.ctx ?? ctxDefault;
    this.#readyMs = clock.nowMs() + this.#options.loadMs;
    this.exited = new Promise((resolve) => {
      this.#resolveExited = resolve;
    });
    const fault = this.#options.faults.find(
      (one) => startFaults.includes(one.kind) && isNth(one, counters.starts),
    );
    this.#startFault = fault?.kind ?? null;
    if (this.#startFault === "load_failure") {
      clock.setTimer(this.#options.loadMs, () =>
        this.#die(`scripted: ${replicaId} failed to load its model`),
      );
    }
  }

  async health(signal: AbortSignal): Promise<"ok" | "loading"> {
    this.#assertReachable(signal);
    return this.#startFault === null && this.#clock.nowMs() >= this.#readyMs ? "ok" : "loading";
  }

  async identity(signal: AbortSignal): Promise<EngineIdentity> {
    this.#assertServing(signal);
    return {
      engine: "mock",
      engineVersion: "mock-1",
      slots: this.#pool.slots,
      ctxPerSlot: this.#ctx,
      modelPath: null,
      modelStamp: null,
      modelSizeBytes: null,
      modelParams: null,
      kvBytesPerToken: null,
      ctxTrain: this.#ctx,
      hasChatTemplate: true,
      workloads: this.#pool.workloads,
    };
  }

  async warmUp(signal: AbortSignal, speedKnown = false): Promise<WarmUpSpeed> {
    this.#assertServing(signal);
    const { tokenMs, prefillMsPerToken } = this.#options;
    await this.#pause((speedKnown ? 1 : warmUpTokens) * (tokenMs + prefillMsPerToken), signal);
    const perSecond = (ms: number) => (ms > 0 ? Math.min(tpsMax, 1000 / ms) : tpsMax);
    return { prefillTps: perSecond(prefillMsPerToken), decodeTps: perSecond(tokenMs) };
  }

  async countTokens(text: string, signal: AbortSignal): Promise<number> {
    this.#assertServing(signal);
    return tokenize(text).length;
  }

  /** `asPrompt`: with the token for the beginning, as a generation reads a prompt. */
  async tokenize(text: string, asPrompt: boolean, signal: AbortSignal): Promise<number[]> {
    this.#assertServing(signal);
    return asPrompt ? tokenize(text) : tokenize(text).slice(1);
  }

  async applyTemplate(messages: readonly ChatMessage[], signal: AbortSignal): Promise<string> {
    this.#assertServing(signal);
    return `${messages.map(({ role, content }) => `<|${role}|>\n${content}\n`).join("")}<|assistant|>\n`;
  }

  async generate(request: GenerateRequest, sink: GenerateSink, signal: AbortSignal): Promise<GenerateResult> {
    this.#assertServing(signal);
    this.#assertWorkload("completion");
    const { prompt } = request;
    assert(!isChat(prompt), "it renders templates");
    const promptIds = typeof prompt === "string" ? tokenize(prompt) : prompt;
    this.#assertAcceptable(request, promptIds.length);
    this.#counters.generations += 1;
    const nth = this.#counters.generations;
    return new Promise((resolve, reject) => {
      const onAbort = () => generation.fail(new EngineError("aborted", "the generation was aborted"));
      const settle = () => {
        signal.removeEventListener("abort", onAbort);
        this.#freed(generation);
      };
      const generation = new MockGeneration({
        request,
        promptIds,
        tokensCached: request.cachePrompt ? commonPrefix(this.#cache.get(request.slot) ?? [], promptIds) : 0,
        ctx: this.#ctx,
        options: this.#options,
        fault: this.#options.faults.find((one) => !startFaults.includes(one.kind) && isNth(one, nth)) ?? null,
        nth,
        startedMs: this.#clock.nowMs(),
        sink,
        onDone: (result) => {
          settle();
          resolve(result);
        },
        onFailed: (error) => {
          settle();
          reject(error);
        },
        onCrash: () => this.#die("scripted: the engine crashed"),
      });
      this.#running.set(request.slot, generation);
      signal.addEventListener("abort", onAbort, { once: true });
      this.#schedule(generation.dueMs);
    });
  }

  async embed(
    inputs: readonly string[],
    signal: AbortSignal,
  ): Promise<{ vectors: number[][]; tokensIn: number }> {
    this.#assertServing(signal);
    this.#assertWorkload("embedding");
    const tokensIn = await this.#prefill(inputs, signal);
    return { vectors: inputs.map(embedText), tokensIn };
  }

  async rerank(
    query: string,
    inputs: readonly string[],
    signal: AbortSignal,
  ): Promise<{ scores: { index: number; score: number }[]; tokensIn: number }> {
    this.#assertServing(signal);
    this.#assertWorkload("rerank");
    const tokensIn = await this.#prefill([query, ...inputs], signal);
    const scores = inputs.map((text, index) => ({ index, score: overlap(query, text) }));
    return { scores: scores.sort((a, b) => b.score - a.score || a.index - b.index), tokensIn };
  }

  async slots(signal: AbortSignal): Promise<SlotSnapshot[]> {
    this.#assertServing(signal);
    return Array.from({ length: this.#pool.slots }, (_, slot) => ({
      slot,
      busy: this.#running.has(slot),
      tokensCached: this.#cache.get(slot)?.length ?? 0,
    }));
  }

  async awaitSlotFree(slot: number, signal: AbortSignal): Promise<void> {
    this.#assertReachable(signal);
    if (!this.#running.has(slot)) return;
    return new Promise((resolve, reject) => {
      const onAbort = () => waiter.settle(new EngineError("aborted", "waiting for a slot was given up"));
      const waiter = {
        slot,
        settle: (error: EngineError | null) => {
          this.#freeWaiters.delete(waiter);
          signal.removeEventListener("abort", onAbort);
          if (error === null) resolve();
          else reject(error);
        },
      };
      this.#freeWaiters.add(waiter);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }

  async eraseContext(slot: number, signal: AbortSignal): Promise<void> {
    this.#assertReachable(signal);
    this.#cache.delete(slot);
  }

  onLogLine(): void {
    // It has no log: a slot is free in the turn in which its generation settles.
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#end(() => new EngineError("aborted", "the engine's client was closed"));
  }

  #die(reason: string): void {
    if (this.#closed || this.#dead !== null) return;
    this.#dead = reason;
    this.#end(() => new EngineError("connection", reason));
    this.#resolveExited(reason);
  }

  #end(error: () => EngineError): void {
    this.#timer?.cancel();
    this.#timer = null;
    for (const waiter of this.#freeWaiters) waiter.settle(error());
    for (const generation of this.#running.values()) generation.fail(error());
    for (const cut of this.#pauses) cut(error());
  }

  #freed(generation: MockGeneration): void {
    this.#running.delete(generation.slot);
    this.#cache.set(generation.slot, generation.ids);
    for (const waiter of this.#freeWaiters) if (waiter.slot === generation.slot) waiter.settle(null);
  }

  #assertReachable(signal: AbortSignal): void {
    if (signal.aborted || this.#closed) throw new EngineError("aborted", "the call was aborted");
    if (this.#dead !== null) throw new EngineError("unreachable", this.#dead);
  }

  #assertServing(signal: AbortSignal): void {
    this.#assertReachable(signal);
    if (this.#startFault !== null || this.#clock.nowMs() < this.#readyMs) {
      throw new EngineError("unavailable", "the engine is loading its model");
    }
  }

  #assertWorkload(workload: EngineIdentity["workloads"][number]): void {
    if (!this.#pool.workloads.includes(workload)) {
      throw new EngineError("unsupported", `the pool does not offer ${workload}`);
    }
  }

  #assertAcceptable(request: GenerateRequest, tokensIn: number): void {
    const { slot, sampling } = request;
    if (sampling.grammar !== null || sampling.jsonSchema !== null) {
      throw new EngineError("unsupported", "the mock engine follows neither a grammar nor a JSON schema");
    }
    if (slot < 0 || slot >= this.#pool.slots) throw new EngineError("rejected", `there is no slot ${slot}`);
    if (tokensIn >= this.#ctx) {
      throw new EngineError("context", `the prompt has ${tokensIn} tokens, the context ${this.#ctx}`);
    }
    if (this.#running.has(slot)) throw new EngineError("unavailable", `slot ${slot} is busy`);
  }

  async #prefill(texts: readonly string[], signal: AbortSignal): Promise<number> {
    const tokens = texts.reduce((sum, text) => sum + tokenize(text).length, 0);
    await this.#pause(tokens * this.#options.prefillMsPerToken, signal);
    return tokens;
  }

  #pause(ms: number, signal: AbortSignal): Promise<void> {
    if (ms <= 0) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const settle = () => {
        timer.cancel();
        this.#pauses.delete(cut);
        signal.removeEventListener("abort", onAbort);
      };
      const cut = (error: EngineError) => {
        settle();
        reject(error);
      };
      const onAbort = () => cut(new EngineError("aborted", "the call was aborted"));
      const timer = this.#clock.setTimer(ms, () => {
        settle();
        resolve();
      });
      this.#pauses.add(cut);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }

  /** One timer for the earliest thing due; the pump where that is now. */
  #schedule(dueMs: number): void {
    if (this.#pumping || dueMs === Number.POSITIVE_INFINITY) return;
    const nowMs = this.#clock.nowMs();
    if (dueMs <= nowMs) {
      this.#timer?.cancel();
      this.#timer = null;
      this.#pumping = true;
      this.#clock.soon(() => this.#pump());
    } else if (this.#timer === null || dueMs < this.#timerMs) {
      this.#timer?.cancel();
      this.#timerMs = dueMs;
      this.#timer = this.#clock.setTimer(dueMs - nowMs, () => {
        this.#timer = null;
        this.#pump();
      });
    }
  }

  #pump(): void {
    // A sink may start a generation meanwhile: that one is found below, not scheduled twice.
    this.#pumping = true;
    const nowMs = this.#clock.nowMs();
    const running = [...this.#running.values()];
    const shareTokens = Math.max(1, Math.floor(turnTokensMax / Math.max(1, running.length)));
    for (const generation of running) generation.run(nowMs, shareTokens);
    this.#pumping = false;
    let dueMs = Number.POSITIVE_INFINITY;
    for (const generation of this.#running.values()) dueMs = Math.min(dueMs, generation.dueMs);
    this.#schedule(dueMs);
  }
}

const isNth = (fault: MockFault, count: number): boolean => fault.nth === null || fault.nth === count;

/** As the real engine: the last prompt token is always evaluated anew. */
function commonPrefix(cached: readonly number[], prompt: readonly number[]): number {
  const most = Math.min(cached.length, prompt.length - 1);
  let length = 0;
  while (length < most && cached[length] === prompt[length]) length += 1;
  return Math.max(0, length);
}
