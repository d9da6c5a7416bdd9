/**
 * An engine for long runs: it takes the time that a real one would take and says as many tokens, but in a few
 * portions instead of one by one. Its speed falls with the streams it decodes at once; a slot keeps what its last
 * session held, so that affinity saves prefill as it does in life. Now and then it dies or breaks a stream off.
 */
import type { EngineIdentity, PoolSpec, WarmUpSpeed } from "../../src/domain/pool.ts";
import type { Clock, Timer } from "../../src/ports/clock.ts";
import {
  type EngineAdapter,
  type EngineClient,
  EngineError,
  type GenerateRequest,
  type GenerateResult,
  type GenerateSink,
} from "../../src/ports/engine.ts";
import type { EngineSpeed, LoadTask } from "./families.ts";
import type { EngineWatcher } from "./scripted-engine.ts";
import type { Draw } from "./workload.ts";

/** A generation is told in so many portions of its tokens. */
const portions = 5;
const word = "w ";

/** The prompt is the task's id and the words that were sent already, which are all the same. */
function askedOf(prompt: string): { readonly taskId: string; readonly position: number } {
  const at = prompt.indexOf(word);
  if (at < 0) return { taskId: prompt, position: 0 };
  return { taskId: prompt.slice(0, at), position: (prompt.length - at) / word.length };
}

export interface LoadEngineDeps {
  readonly clock: Clock;
  readonly draw: Draw;
  readonly watcher: EngineWatcher;
  readonly faults: { readonly crash: number; readonly reset: number };
  speedOf(poolId: string): EngineSpeed;
  /** Of a task that is live. */
  taskOf(taskId: string): LoadTask;
  /** Of a session's turn: how much of its prompt the slot still had. */
  cached(tokens: number, of: number): void;
}

export class LoadAdapter implements EngineAdapter {
  readonly kind = "mock";
  private instances = 0;
  generations = 0;

  constructor(readonly deps: LoadEngineDeps) {}

  plan(): null {
    return null;
  }

  connectInProcess(pool: PoolSpec, replicaId: string): EngineClient {
    this.instances++;
    return new LoadEngine(this, this.instances, pool, replicaId);
  }
}

interface Running {
  readonly generation: number;
  readonly slot: number;
  readonly task: LoadTask;
  /** Words that earlier attempts have said. */
  readonly position: number;
  readonly sink: GenerateSink;
  readonly tokensCached: number;
  readonly beganMs: number;
  /** How this one differs from the mean speed. */
  readonly pace: number;
  /** It breaks off before this portion; -1: never. */
  readonly breaksAt: number;
  readonly crash: boolean;
  readonly settle: PromiseWithResolvers<GenerateResult>;
  promptMs: number;
  said: number;
  portion: number;
  timer: Timer | null;
  over: boolean;
}

class LoadEngine implements EngineClient {
  readonly kind = "mock";
  readonly exited: Promise<string>;
  private readonly running = new Set<Running>();
  private readonly kept = new Map<number, { readonly sessionId: string; readonly tokens: number }>();
  private readonly readyAtMs: number;
  private readonly speed: EngineSpeed;
  private exit: (reason: string) => void = () => undefined;
  private gone: EngineError | null = null;

  constructor(
    private readonly by: LoadAdapter,
    private readonly instance: number,
    private readonly pool: PoolSpec,
    private readonly replicaId: string,
  ) {
    this.exited = new Promise((resolve) => {
      this.exit = resolve;
    });
    this.speed = by.deps.speedOf(pool.id);
    this.readyAtMs = by.deps.clock.nowMs() + by.deps.draw.between(3000, 9000);
  }

  async health(): Promise<"ok" | "loading"> {
    this.assertHere();
    return this.by.deps.clock.nowMs() >= this.readyAtMs ? "ok" : "loading";
  }

  async identity(): Promise<EngineIdentity> {
    this.assertHere();
    const { slots, workloads } = this.pool;
    return {
      engine: "mock",
      engineVersion: "load-1",
      slots,
      ctxPerSlot: 16_384,
      modelPath: null,
      modelStamp: null,
      modelSizeBytes: null,
      modelParams: null,
      kvBytesPerToken: null,
      ctxTrain: null,
      hasChatTemplate: false,
      workloads,
    };
  }

  async warmUp(): Promise<WarmUpSpeed> {
    this.assertHere();
    this.by.deps.watcher.engineServes(this.instance, this.pool.id, this.replicaId, this.pool.slots);
    const { prefillTps, decodeTps } = this.speed;
    return { prefillTps, decodeTps };
  }

  generate(request: GenerateRequest, sink: GenerateSink, signal: AbortSignal): Promise<GenerateResult> {
    if (signal.aborted) return Promise.reject(new EngineError("aborted", "aborted"));
    const { by } = this;
    const { clock, draw, watcher, faults, taskOf } = by.deps;
    const { taskId, position } = askedOf(String(request.prompt));
    const task = taskOf(taskId);
    const fault = draw.unit();
    const crash = fault < faults.crash;
    const breaks = crash || fault < faults.crash + faults.reset;
    const run: Running = {
      generation: ++by.generations,
      slot: request.slot,
      task,
      sink,
      position,
      tokensCached: this.cachedOf(task, request),
      beganMs: clock.nowMs(),
      pace: draw.between(0.9, 1.1),
      breaksAt: breaks ? draw.int(0, portions - 1) : -1,
      crash,
      settle: Promise.withResolvers<GenerateResult>(),
      promptMs: 0,
      said: position,
      portion: 0,
      timer: null,
      over: false,
    };
    watcher.generationBegan(this.instance, request.slot, run.generation, {
      taskId,
      position,
      upTo: position + request.maxTokens,
      verbatim: true,
    });
    this.running.add(run);
    if (this.gone !== null) {
      this.fail(run, this.gone);
      return run.settle.promise;
    }
    signal.addEventListener("abort", () => {
      if (run.over) return;
      watcher.generationAborted(run.generation);
      this.fail(run, new EngineError("aborted", "aborted"));
    });
    const prefillMs =
      ((task.tokensIn + position - run.tokensCached) * 1000 * run.pace) / this.speed.prefillTps;
    run.timer = clock.setTimer(prefillMs, () => this.prompted(run));
    return run.settle.promise;
  }

  private cachedOf(task: LoadTask, { slot, cachePrompt }: GenerateRequest): number {
    if (task.sessionId === null) {
      this.kept.delete(slot);
      return 0;
    }
    const kept = this.kept.get(slot);
    const tokens =
      cachePrompt && kept?.sessionId === task.sessionId ? Math.min(kept.tokens, task.tokensIn - 1) : 0;
    this.by.deps.cached(tokens, task.tokensIn);
    this.kept.set(slot, { sessionId: task.sessionId, tokens: task.tokensIn });
    return tokens;
  }

  private prompted(run: Running): void {
    run.promptMs = this.by.deps.clock.nowMs() - run.beganMs;
    const tokensIn = run.task.tokensIn + run.position;
    run.sink.onPrompt(tokensIn, run.tokensCached, tokensIn);
    this.decode(run);
  }

  /** The next portion, at the speed of the crowd that is there when it begins. */
  private decode(run: Running): void {
    if (run.portion === run.breaksAt) {
      if (run.crash) this.die();
      else this.fail(run, new EngineError("connection", "load: the stream broke"));
      return;
    }
    const left = run.task.tokensOut - run.position;
    const upTo = run.position + Math.ceil((left * (run.portion + 1)) / portions);
    const tokens = upTo - run.said;
    run.portion++;
    const { decodeTps, crowding } = this.speed;
    const tokenMs = ((1000 * run.pace) / decodeTps) * (1 + crowding * (this.running.size - 1));
    run.timer = this.by.deps.clock.setTimer(tokens * tokenMs, () => this.speak(run, tokens));
  }

  private speak(run: Running, tokens: number): void {
    for (let n = 0; n < tokens && !run.over; n++) run.sink.onToken(word, []);
    if (run.over) return;
    run.said += tokens;
    if (tokens > 0) this.by.deps.watcher.generationSpoke(run.generation, tokens);
    if (run.said >= run.task.tokensOut) this.finish(run);
    else this.decode(run);
  }

  private finish(run: Running): void {
    const { task, settle } = run;
    this.leave(run, "finished");
    settle.resolve({
      finishReason: run.said < task.maxTokens ? "stop" : "length",
      tokensIn: task.tokensIn + run.position,
      tokensCached: run.tokensCached,
      tokensOut: run.said - run.position,
      promptMs: run.promptMs,
      decodeMs: this.by.deps.clock.nowMs() - run.beganMs - run.promptMs,
    });
  }

  private fail(run: Running, error: EngineError): void {
    if (run.over) return;
    this.leave(run, "broken");
    run.settle.reject(error);
  }

  private leave(run: Running, how: "finished" | "broken"): void {
    const { watcher } = this.by.deps;
    run.over = true;
    run.timer?.cancel();
    this.running.delete(run);
    watcher.generationEnded(run.generation, how);
    watcher.slotFreed(this.instance, run.slot);
  }

  private die(): void {
    if (this.gone !== null) return;
    this.end(new EngineError("connection", "load: the engine died"));
    this.exit("load: the engine died");
  }

  private end(error: EngineError): void {
    if (this.gone !== null) return;
    this.gone = error;
    this.by.deps.watcher.engineGone(this.instance);
    for (const run of [...this.running]) this.fail(run, error);
  }

  /** Whatever was aborted here is free at once. */
  async awaitSlotFree(): Promise<void> {
    this.assertHere();
  }
  async countTokens(text: string): Promise<number> {
    return text.length;
  }
  async applyTemplate(): Promise<string> {
    throw new EngineError("unsupported", "load: no template");
  }
  async embed(): Promise<never> {
    throw new EngineError("unsupported", "load: no embedding");
  }
  async rerank(): Promise<never> {
    throw new EngineError("unsupported", "load: no rerank");
  }
  async slots(): Promise<[]> {
    return [];
  }
  async tokenize(): Promise<never> {
    throw new EngineError("unsupported", "load: no tokens, its tasks are sampled");
  }
  async eraseContext(): Promise<void> {
    // Nothing is kept that could be seen.
  }
  onLogLine(): void {
    // It writes no log.
  }
  close(): void {
    this.end(new EngineError("aborted", "the client was closed"));
  }

  private assertHere(): void {
    if (this.gone !== null) throw this.gone;
  }
}
