/**
 * An engine whose behaviour is drawn: it loads late or never, dies while loading or while it speaks, breaks off one
 * stream, stalls, answers late, refuses, frees a slot late or not at all. Everything it is asked and does is told
 * to an `EngineWatcher`; it decides nothing that the daemon should decide.
 */
import { assert } from "../../src/domain/assert.ts";
import type { EngineIdentity, PoolSpec, WarmUpSpeed } from "../../src/domain/pool.ts";
import type { Clock, Timer } from "../../src/ports/clock.ts";
import {
  type EngineAdapter,
  type EngineClient,
  EngineError,
  type GenerateRequest,
  type GenerateResult,
  type GenerateSink,
  isChat,
} from "../../src/ports/engine.ts";
import type { Draw, FaultRates } from "./workload.ts";

/** What an onlooker beside the engines writes down. */
/** What a generation is asked for: to go on for `taskId` behind so many of its words, up to so many. */
export interface Asked {
  readonly taskId: string;
  readonly position: number;
  readonly upTo: number;
  /** The words in the prompt are the task's own. */
  readonly verbatim: boolean;
}

/** What an engine says for a task: a function of the task and the place, as if its sampling were repeatable. */
export const wordOf = (taskId: string, index: number): string => `${taskId.slice(0, 8)}.${index} `;
const taskIdLength = 36;

/** The prompt is the task's id and the words that were sent already; as tokens, its UTF-16 units. */
function askedOf({ prompt, maxTokens }: GenerateRequest): Asked {
  assert(!isChat(prompt), "it renders templates");
  const text = typeof prompt === "string" ? prompt : String.fromCharCode(...prompt);
  const taskId = text.slice(0, taskIdLength);
  const said = text.slice(taskIdLength);
  const position = said.split(" ").length - 1;
  let expected = "";
  for (let index = 0; index < position; index++) expected += wordOf(taskId, index);
  return { taskId, position, upTo: position + maxTokens, verbatim: said === expected };
}

export interface EngineWatcher {
  engineServes(instance: number, poolId: string, replicaId: string, slots: number): void;
  engineGone(instance: number): void;
  generationBegan(instance: number, slot: number, generation: number, asked: Asked): void;
  generationSpoke(generation: number, words: number): void;
  generationAborted(generation: number): void;
  generationEnded(generation: number, how: "finished" | "refused" | "broken"): void;
  slotFreed(instance: number, slot: number): void;
}

const startFaults = ["never_ready", "dies", "warm_up_fails"] as const;
const generationFaults = [
  "crash",
  "vanish",
  "reset",
  "stall",
  "late",
  "refuse",
  "busy",
  "nonsense",
  "slow_release",
  "wedge",
] as const;
type GenerationFault = (typeof generationFaults)[number];
const noFault = { fault: null, atOnce: false } as const;
/** Of the faults of generations. */
const poisonShare = 0.25;

/** After this an engine that does not free a slot is called wedged. */
const slotConfirmMs = 900;

export class ScriptedAdapter implements EngineAdapter {
  readonly kind = "mock";
  private instances = 0;
  private readonly alive = new Set<ScriptedEngine>();
  /** Counts over all engines. */
  generations = 0;
  /** From then on engines behave; what has gone wrong already stays wrong. */
  calm = false;
  private readonly poisons = new Map<string, GenerationFault>();

  constructor(
    readonly clock: Clock,
    readonly draw: Draw,
    readonly faults: FaultRates,
    readonly watcher: EngineWatcher,
  ) {}

  plan(): null {
    return null;
  }

  connectInProcess(pool: PoolSpec, replicaId: string): EngineClient {
    this.instances++;
    const engine = new ScriptedEngine(this, this.instances, pool, replicaId);
    this.alive.add(engine);
    return engine;
  }

  /** They die with their daemon, and nobody is left to be told. */
  killAll(): void {
    for (const engine of this.alive) engine.kill();
    this.alive.clear();
  }

  dead(engine: ScriptedEngine): void {
    this.alive.delete(engine);
  }

  startFault(): (typeof startFaults)[number] | null {
    const faulty = this.draw.chance(this.faults.start);
    return faulty && !this.calm ? this.draw.of(startFaults) : null;
  }

  /** Some tasks are poisonous: what went wrong with one goes wrong again, before its first word. */
  generationFault(taskId: string): { readonly fault: GenerationFault | null; readonly atOnce: boolean } {
    const faulty = this.draw.chance(this.faults.generation);
    if (this.calm) return noFault;
    const again = this.poisons.get(taskId);
    if (again !== undefined) return { fault: again, atOnce: true };
    if (!faulty) return noFault;
    const fault = this.draw.of(generationFaults);
    if (this.draw.chance(poisonShare)) this.poisons.set(taskId, fault);
    return { fault, atOnce: false };
  }
}

/** A slot from the first word of a generation until the engine has freed it. */
interface Occupied {
  readonly generation: number;
  readonly fault: GenerationFault | null;
  readonly strikeAt: number;
  fail: ((error: EngineError) => void) | null;
  timer: Timer | null;
}

class ScriptedEngine implements EngineClient {
  readonly kind = "mock";
  readonly exited: Promise<string>;
  private readonly readyAtMs: number;
  private readonly startFault: ReturnType<ScriptedAdapter["startFault"]>;
  private readonly slotsTaken = new Map<number, Occupied>();
  private readonly waiters = new Set<{ slot: number; settle(error: EngineError | null): void }>();
  private readonly timers = new Set<Timer>();
  private exit: (reason: string) => void = () => undefined;
  private gone: EngineError | null = null;

  constructor(
    private readonly by: ScriptedAdapter,
    private readonly instance: number,
    private readonly pool: PoolSpec,
    private readonly replicaId: string,
  ) {
    this.exited = new Promise((resolve) => {
      this.exit = resolve;
    });
    const { clock, draw } = by;
    this.startFault = by.startFault();
    const loadMs = draw.between(1, 60);
    this.readyAtMs = clock.nowMs() + loadMs;
    if (this.startFault === "dies") this.after(loadMs / 2, () => this.die());
  }

  async health(): Promise<"ok" | "loading"> {
    this.assertHere();
    return this.startFault !== "never_ready" && this.by.clock.nowMs() >= this.readyAtMs ? "ok" : "loading";
  }

  async identity(): Promise<EngineIdentity> {
    this.assertHere();
    const { slots, workloads } = this.pool;
    return {
      engine: "mock",
      engineVersion: "scripted-1",
      slots,
      ctxPerSlot: 4096,
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

  async warmUp(signal: AbortSignal): Promise<WarmUpSpeed> {
    await this.pause(this.by.draw.between(1, 20), signal);
    if (this.startFault === "warm_up_fails") throw new EngineError("protocol", "scripted: no token came");
    this.by.watcher.engineServes(this.instance, this.pool.id, this.replicaId, this.pool.slots);
    return { prefillTps: 1000, decodeTps: 100 };
  }

  async generate(request: GenerateRequest, sink: GenerateSink, signal: AbortSignal): Promise<GenerateResult> {
    const { by, instance } = this;
    const { slot } = request;
    // Canceled in the turn that started it: a client sends no request then.
    if (signal.aborted) throw new EngineError("aborted", "aborted");
    const asked = askedOf(request);
    const generation = ++by.generations;
    by.watcher.generationBegan(instance, slot, generation, asked);
    const refuse = (error: EngineError, how: "refused" | "broken"): never => {
      by.watcher.generationEnded(generation, how);
      by.watcher.slotFreed(instance, slot);
      throw error;
    };
    if (this.gone !== null) refuse(this.gone, "broken");
    const { fault, atOnce } = by.generationFault(asked.taskId);
    const strikeAt = by.draw.chance(0.5) || atOnce ? 0 : by.draw.int(0, request.maxTokens);
    if (fault === "refuse") refuse(new EngineError("rejected", "scripted: a bad request"), "refused");
    if (fault === "busy") refuse(new EngineError("unavailable", "scripted: no slot"), "broken");
    const occupied: Occupied = { generation, fault, strikeAt, fail: null, timer: null };
    this.slotsTaken.set(slot, occupied);
    const { promise, resolve, reject } = Promise.withResolvers<GenerateResult>();
    const onAbort = () => {
      by.watcher.generationAborted(generation);
      occupied.fail?.(new EngineError("aborted", "aborted"));
    };
    signal.addEventListener("abort", onAbort, { once: true });
    occupied.fail = (error) => {
      occupied.fail = null;
      occupied.timer?.cancel();
      signal.removeEventListener("abort", onAbort);
      by.watcher.generationEnded(generation, "broken");
      this.releaseLater(slot, occupied);
      reject(error);
    };
    this.speak(request, asked, sink, occupied, (result) => {
      occupied.fail = null;
      signal.removeEventListener("abort", onAbort);
      by.watcher.generationEnded(generation, "finished");
      this.release(slot, occupied);
      resolve(result);
    });
    return promise;
  }

  async awaitSlotFree(slot: number, signal: AbortSignal): Promise<void> {
    this.assertHere();
    if (!this.slotsTaken.has(slot)) return;
    return new Promise((resolve, reject) => {
      const waiter = {
        slot,
        settle: (error: EngineError | null) => {
          this.waiters.delete(waiter);
          late.cancel();
          if (error === null) resolve();
          else reject(error);
        },
      };
      const late = this.by.clock.setTimer(slotConfirmMs, () =>
        waiter.settle(new EngineError("timeout", "scripted: the slot stays busy")),
      );
      this.waiters.add(waiter);
      signal.addEventListener("abort", () => waiter.settle(new EngineError("aborted", "aborted")));
    });
  }

  async countTokens(text: string): Promise<number> {
    return text.length;
  }
  async applyTemplate(): Promise<string> {
    throw new EngineError("unsupported", "scripted: no template");
  }
  async embed(): Promise<never> {
    throw new EngineError("unsupported", "scripted: no embedding");
  }
  async rerank(): Promise<never> {
    throw new EngineError("unsupported", "scripted: no rerank");
  }
  async slots(): Promise<[]> {
    return [];
  }
  async tokenize(text: string): Promise<number[]> {
    return Array.from(text, (unit) => unit.charCodeAt(0));
  }
  async eraseContext(): Promise<void> {
    // Nothing is kept that could be seen.
  }
  onLogLine(): void {
    // It writes no log.
  }

  close(): void {
    this.end(new EngineError("aborted", "the client was closed"), true);
  }

  private die(): void {
    if (this.gone !== null) return;
    this.end(new EngineError("connection", "scripted: the engine died"), true);
    this.exit("scripted: the engine died");
  }

  /** The process is gone, but its connections hang: nobody tells the streams. */
  private vanish(): void {
    if (this.gone !== null) return;
    this.end(new EngineError("connection", "scripted: the engine vanished"), false);
    this.exit("scripted: the engine vanished");
  }

  kill(): void {
    this.end(new EngineError("connection", "scripted: its daemon died"), false);
  }

  private end(error: EngineError, tell: boolean): void {
    if (this.gone === null) {
      this.by.dead(this);
      this.gone = error;
      for (const timer of this.timers) timer.cancel();
      for (const { timer } of this.slotsTaken.values()) timer?.cancel();
      this.by.watcher.engineGone(this.instance);
    }
    for (const waiter of this.waiters) waiter.settle(error);
    if (tell) for (const { fail } of this.slotsTaken.values()) fail?.(error);
  }

  /** Prompt, then token after token; a fault strikes before one of them. */
  private speak(
    request: GenerateRequest,
    { taskId, position }: Asked,
    sink: GenerateSink,
    occupied: Occupied,
    finish: (result: GenerateResult) => void,
  ): void {
    const { draw, clock, watcher } = this.by;
    const { generation, fault, strikeAt } = occupied;
    const tokenMs = draw.between(0.5, 18);
    const beganMs = clock.nowMs();
    let said = 0;
    const next = () => {
      if (occupied.fail === null) return;
      if (said >= strikeAt && this.strike(fault, occupied)) return;
      if (said === 0) sink.onPrompt(5 + position, 0, 5 + position);
      watcher.generationSpoke(generation, 1);
      sink.onToken(wordOf(taskId, position + said), []);
      said++;
      if (occupied.fail === null) return;
      if (said < request.maxTokens) occupied.timer = this.after(tokenMs, next);
      // All is said, and the last word, that it is over, is lost.
      else if (said === strikeAt && this.strike(fault, occupied)) return;
      else
        finish({
          finishReason: "length",
          tokensIn: 5 + position,
          tokensCached: 0,
          tokensOut: said,
          promptMs: 1,
          decodeMs: clock.nowMs() - beganMs,
        });
    };
    const lateMs = fault === "late" ? draw.between(0, 1.3 * this.pool.timeouts.firstTokenMs) : 0;
    occupied.timer = this.after(draw.between(0, 15) + lateMs, next);
  }

  /** True when the generation does not go on. */
  private strike(fault: GenerationFault | null, occupied: Occupied): boolean {
    switch (fault) {
      case "crash":
        this.die();
        return true;
      case "vanish":
        this.vanish();
        return true;
      case "reset":
        occupied.fail?.(new EngineError("connection", "scripted: the stream broke"));
        return true;
      case "nonsense":
        occupied.fail?.(new EngineError("protocol", "scripted: nonsense"));
        return true;
      case "stall":
      case "wedge":
        return true;
      default:
        return false;
    }
  }

  private releaseLater(slot: number, occupied: Occupied): void {
    if (this.gone !== null) return;
    if (occupied.fault === "wedge") return;
    const { draw } = this.by;
    const delayMs =
      occupied.fault === "slow_release" ? draw.between(0, 700) : draw.chance(0.5) ? 0 : draw.between(0, 8);
    if (delayMs === 0) this.release(slot, occupied);
    else this.after(delayMs, () => this.release(slot, occupied));
  }

  private release(slot: number, occupied: Occupied): void {
    if (this.slotsTaken.get(slot) === occupied) this.slotsTaken.delete(slot);
    this.by.watcher.slotFreed(this.instance, slot);
    for (const waiter of this.waiters) if (waiter.slot === slot) waiter.settle(null);
  }

  private after(ms: number, fn: () => void): Timer {
    const timer = this.by.clock.setTimer(ms, () => {
      this.timers.delete(timer);
      fn();
    });
    this.timers.add(timer);
    return timer;
  }

  private pause(ms: number, signal: AbortSignal): Promise<void> {
    this.assertHere();
    return new Promise((resolve, reject) => {
      const timer = this.after(ms, resolve);
      signal.addEventListener("abort", () => {
        timer.cancel();
        reject(new EngineError("aborted", "aborted"));
      });
    });
  }

  private assertHere(): void {
    if (this.gone !== null) throw this.gone;
  }
}
