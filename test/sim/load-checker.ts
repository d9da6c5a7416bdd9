/**
 * The onlooker of long runs: the rules of checker.ts that matter under load, judged in bounded memory and without
 * walking queues, so that a million tasks can be watched. Sees what clients send and hear and what engines do;
 * shares no code with src.
 *
 * Rules, with w the tasks that certainly wait (since before this instant):
 *  order      nothing starts while one of its class (and key, where `fair` is per-key) that came before it waits
 *  fairness   fair-rule.ts, where `fair` is per-key
 *  classes    batch starts before a waiting interactive task only when aged, and at most every fourth time
 *  max wait   the starts that a task watches are bounded, see `judgeWait`
 *  slots      one generation a slot; a free slot and a waiting task do not last beyond an instant
 *  strict     a strict task is alone on its engine
 *  capacity   never more wait than there are places; refused only when they are taken
 *  deadline   nothing starts after its deadline
 *  cuts       what is cut for another is batch, for an interactive task that waits, bounded, and the slot is that one's
 *  once       every accepted task ends exactly once
 */
import type { Preemption } from "../../src/domain/preemption.ts";
import type { Priority } from "../../src/domain/task.ts";
import { FairRule, type Head } from "./fair-rule.ts";
import { type Instance, Line, type Live, type LoadSeen, PoolSight, type Taken } from "./load-sight.ts";
import type { Asked, EngineWatcher } from "./scripted-engine.ts";

export interface LoadCheckerOptions {
  readonly pools: readonly { readonly id: string; readonly capacity: number; readonly slots: number }[];
  readonly batchMaxWaitMs: number;
  readonly fair: "fifo" | "per-key";
  /** A session's turn may be passed so long while it waits for the slot that holds its context. */
  readonly affinityWaitMs: number;
  /** Of deficit round robin, where `fair` is per-key. */
  readonly fairQuantumMs: number;
  /** Of every pool. */
  readonly preempt: Preemption | null;
}

export class LoadChecker implements EngineWatcher {
  readonly violations: string[] = [];
  readonly counts = {
    starts: 0,
    agedStarts: 0,
    putBacks: 0,
    preempted: 0,
    engines: 0,
    enginesLost: 0,
    waitedStartsMax: 0,
  };
  private readonly pools: Map<string, PoolSight>;
  private readonly live = new Map<string, Live>();
  private readonly running = new Map<
    number,
    { live: Live; reached: number; newWords: number; aborted: boolean }
  >();
  private readonly instances = new Map<number, Instance>();
  private sent = 0;
  private instantMs = 0;
  private broken = 0;

  constructor(
    private readonly options: LoadCheckerOptions,
    private readonly nowMs: () => number,
    private readonly began: (taskId: string, first: boolean) => void,
  ) {
    this.pools = new Map(options.pools.map((p) => [p.id, new PoolSight(p.id, p.capacity, p.slots)]));
  }

  violation(what: string): void {
    this.broken++;
    if (this.violations.length < 20) this.violations.push(`at ${this.nowMs().toFixed(3)} ms: ${what}`);
  }
  get brokenCount(): number {
    return this.broken;
  }
  get liveCount(): number {
    return this.live.size;
  }

  // ---- what clients do and hear ----

  submitted(seen: LoadSeen): void {
    const atMs = this.look();
    const pool = this.poolOf(seen.poolId);
    pool.unanswered++;
    this.live.set(seen.taskId, {
      seen,
      nth: this.sent++,
      atMs,
      pool,
      phase: "sent",
      waitsSinceMs: 0,
      stay: 0,
      cut: false,
      reached: 0,
      fruitless: 0,
      losses: 0,
      alone: seen.strict,
      passedSinceMs: null,
      startsBefore: 0,
      ahead: 0,
      putBacksBefore: 0,
      preempted: 0,
    });
  }

  accepted(taskId: string): void {
    this.look();
    const live = this.of(taskId);
    live.pool.cameNow++;
    live.pool.unanswered--;
    if (live.phase !== "sent") return;
    this.noteWait(live);
    this.wait(live, live.atMs);
    this.lineOf(live).push(live);
  }

  refused(taskId: string, code: string): void {
    this.look();
    const live = this.of(taskId);
    const { pool } = live;
    this.live.delete(taskId);
    pool.unanswered--;
    if (live.phase !== "sent") this.violation(`task ${live.nth} was refused after it started`);
    // Some that came before it in this instant may not have heard that they wait.
    const most = pool.counted + pool.leftNow + pool.unanswered;
    if (code === "ADMISSION_REJECT" && most < pool.capacity)
      this.violation(`task ${live.nth} was refused, but ${most} of ${pool.capacity} tasks waited`);
    if (code === "POOL_UNAVAILABLE" && pool.instances.size > 0)
      this.violation(`task ${live.nth} was told POOL_UNAVAILABLE while an engine served`);
  }

  ended(taskId: string, code: string): void {
    const nowMs = this.look();
    const live = this.live.get(taskId);
    if (live === undefined) {
      this.violation(`a task ended twice: ${taskId}`);
      return;
    }
    if (code === "" && live.phase !== "ending")
      this.violation(`task ${live.nth} is done but was ${live.phase}`);
    if (live.phase === "running") this.violation(`task ${live.nth} ended with ${code} while it ran`);
    if (code === "DEADLINE_UNMET" && live.seen.deadlineMs === null)
      this.violation(`task ${live.nth} has no deadline and missed it at ${nowMs}`);
    if (code === "WORKER_RESET" && live.fruitless < attemptsMax)
      this.violation(`task ${live.nth} was given up after ${live.fruitless} attempts without a new word`);
    if (live.phase === "waiting") {
      this.leave(live);
      // It may have been the one that a slot was cut for.
      if (live.seen.priority === "interactive") this.forgetCuts(live.pool);
    }
    this.live.delete(taskId);
  }

  /** For whom a slot was cut may have gone: then it is anybody's. */
  private forgetCuts(pool: PoolSight): void {
    pool.cutsSure = false;
    pool.startsSinceOvertaken = Number.POSITIVE_INFINITY;
  }

  // ---- what engines see ----

  engineServes(id: number, poolId: string, _replicaId: string, slots: number): void {
    this.look();
    this.counts.engines++;
    const pool = this.poolOf(poolId);
    const instance = { pool, slots, taken: new Map<number, Taken>(), gone: false };
    this.instances.set(id, instance);
    pool.instances.add(instance);
    pool.slots += slots;
  }

  engineGone(id: number): void {
    this.look();
    const instance = this.instances.get(id);
    if (instance === undefined) return;
    this.counts.enginesLost++;
    instance.gone = true;
    const { pool } = instance;
    pool.instances.delete(instance);
    pool.slots -= instance.slots;
    for (const { weight } of instance.taken.values()) pool.busy -= weight;
    // Starts that were decided for it may never reach it: they cannot be counted from here.
    this.forgetCuts(pool);
    this.instances.delete(id);
  }

  generationBegan(instanceId: number, slot: number, id: number, { taskId, position }: Asked): void {
    const nowMs = this.look();
    const live = this.of(taskId);
    const instance = this.instances.get(instanceId);
    this.counts.starts++;
    if (live.phase === "running" || live.phase === "ending")
      this.violation(`task ${live.nth} started while it was ${live.phase}`);
    if (live.phase === "sent") this.noteWait(live);
    this.judgeOrder(live, nowMs);
    this.judgeWait(live);
    const { deadlineMs } = live.seen;
    const begins = live.reached === 0 && live.preempted === 0;
    if (deadlineMs !== null && live.atMs + deadlineMs < nowMs - 0.001 && begins)
      this.violation(`task ${live.nth} started after its deadline`);
    const first = !live.cut;
    if (live.phase === "waiting") this.leave(live);
    live.phase = "running";
    live.pool.starts++;
    if (instance !== undefined) {
      this.judgeSlot(live, instance, slot);
      const { alone } = live;
      const weight = alone ? instance.slots : 1;
      instance.taken.set(slot, { live, alone, weight });
      instance.pool.busy += weight;
      this.running.set(id, { live, reached: position, newWords: 0, aborted: false });
    }
    if (first) this.began(taskId, first);
  }

  private judgeSlot(live: Live, instance: Instance, slot: number): void {
    if (instance.pool !== live.pool) this.violation(`task ${live.nth} started in another pool`);
    if (slot < 0 || slot >= instance.slots) this.violation(`task ${live.nth} started in slot ${slot}`);
    if (instance.taken.has(slot)) this.violation(`task ${live.nth} started in slot ${slot}, which is busy`);
    if (live.alone && instance.taken.size > 0)
      this.violation(`strict task ${live.nth} is not alone on its engine`);
    for (const other of instance.taken.values())
      if (other.alone) this.violation(`task ${live.nth} started beside strict task ${other.live.nth}`);
  }

  generationSpoke(id: number, words: number): void {
    const generation = this.running.get(id);
    if (generation === undefined) return;
    const { live } = generation;
    generation.reached += words;
    if (generation.reached <= live.reached) return;
    generation.newWords += generation.reached - live.reached;
    live.reached = generation.reached;
  }
  generationAborted(id: number): void {
    const generation = this.running.get(id);
    if (generation !== undefined) generation.aborted = true;
  }

  generationEnded(id: number, how: "finished" | "refused" | "broken"): void {
    const nowMs = this.look();
    const generation = this.running.get(id);
    this.running.delete(id);
    if (generation === undefined) return;
    const { live, newWords, aborted } = generation;
    if (live.phase !== "running") return;
    if (how !== "broken") {
      live.phase = "ending";
      return;
    }
    // No client cancels here, and no engine is silent for as long as a watchdog waits.
    if (aborted) this.judgeCut(live, nowMs);
    if (newWords > 0) live.fruitless = 0;
    else if (!aborted) live.fruitless++;
    if (!aborted) live.losses = newWords >= clearingWords ? 0 : live.losses + 1;
    live.alone = live.seen.strict || live.losses >= sharedLosses;
    this.counts.putBacks++;
    live.pool.putBacks++;
    live.cut = true;
    live.passedSinceMs = null;
    this.wait(live, nowMs);
    this.lineOf(live).putBack(live);
  }

  slotFreed(instanceId: number, slot: number): void {
    this.look();
    const instance = this.instances.get(instanceId);
    const taken = instance?.taken.get(slot);
    if (instance === undefined || taken === undefined) return;
    instance.taken.delete(slot);
    instance.pool.busy -= taken.weight;
  }

  // ---- rules ----

  private judgeCut(live: Live, nowMs: number): void {
    const { pool, nth } = live;
    this.counts.preempted++;
    live.preempted++;
    if (pool.owedSince.length === 0) pool.cutsSure = true;
    pool.owedSince.push(nowMs);
    pool.startsSinceOvertaken = Number.POSITIVE_INFINITY;
    const most = this.options.preempt?.maxCuts ?? 0;
    if (live.preempted > most) this.violation(`task ${nth} was cut ${live.preempted} of ${most} times`);
    if (live.seen.priority !== "batch") this.violation(`interactive task ${nth} was cut`);
    if (pool.waiting.interactive + pool.unanswered + pool.leftNow === 0)
      this.violation(`task ${nth} was cut for nobody`);
  }

  /** Its slot may be one that was cut for it, or for one of its class. Infinity: it is not; else since when. */
  private servedSinceMs({ pool, seen }: Live, nowMs: number): number {
    const sinceMs = pool.owedSince[0];
    if (sinceMs === undefined) return Number.POSITIVE_INFINITY;
    pool.startsSinceOvertaken = Number.POSITIVE_INFINITY;
    if (seen.priority === "interactive") {
      pool.owedSince.shift();
      return sinceMs;
    }
    const passed = this.oldestCertain(pool, "interactive", nowMs);
    if (passed !== null && pool.cutsSure && passed.waitsSinceMs < sinceMs && sinceMs < nowMs)
      this.violation(`a batch task took a slot that was cut for one like ${passed.nth}`);
    return Number.POSITIVE_INFINITY;
  }

  private judgeOrder(live: Live, nowMs: number): void {
    const { pool } = live;
    const { priority } = live.seen;
    // Turns were given that nobody saw.
    if (live.alone || pool.strict > 0) pool.startsSinceOvertaken = Number.POSITIVE_INFINITY;
    // Its turn was when it was called up.
    if (live.alone) return;
    const servedSinceMs = this.servedSinceMs(live, nowMs);
    if (this.options.fair === "per-key") this.judgeFairness(live, nowMs);
    for (const other of this.lineOf(live).before(live.nth)) {
      if (other === live || !certain(other, nowMs) || other.alone) continue;
      if (other.waitsSinceMs >= servedSinceMs) continue;
      if (this.mayBePassed(other, nowMs)) continue;
      this.violation(`task ${live.nth} started before task ${other.nth} of its class`);
      break;
    }
    const overtaken = priority === "batch" ? this.oldestCertain(pool, "interactive", nowMs) : null;
    if (overtaken === null) {
      pool.startsSinceOvertaken++;
      return;
    }
    this.counts.agedStarts++;
    if (nowMs - this.oldestBatchMs(live) < this.options.batchMaxWaitMs - 0.001)
      this.violation(`batch task ${live.nth} started before interactive task ${overtaken.nth}`);
    if (pool.startsSinceOvertaken < 3)
      this.violation(`batch task ${live.nth} overtook after ${pool.startsSinceOvertaken} other starts`);
    pool.startsSinceOvertaken = 0;
  }

  /** By key, the aged one may give its turn to a task of a key that is before its own. */
  private oldestBatchMs(live: Live): number {
    let oldestMs = live.atMs;
    if (this.options.fair === "fifo") return oldestMs;
    for (const [name, line] of live.pool.lines) {
      if (!name.startsWith("batch")) continue;
      const [first] = line.before(Number.POSITIVE_INFINITY);
      if (first !== undefined) oldestMs = Math.min(oldestMs, first.atMs);
    }
    return oldestMs;
  }

  private judgeFairness(live: Live, nowMs: number): void {
    const { pool, seen } = live;
    const rule = pool.fair[seen.priority] ?? this.newFairRule();
    pool.fair[seen.priority] = rule;
    const heads: Head[] = [];
    for (const [name, line] of pool.lines) {
      if (!name.startsWith(seen.priority)) continue;
      const [first] = line.before(Number.POSITIVE_INFINITY);
      // Strict tasks and sessions may have to wait for their engine, whoever's turn it is.
      if (first === undefined || first === live || !certain(first, nowMs)) continue;
      if (first.alone || first.seen.sessionId !== null) continue;
      const { keyId, expectedMs } = first.seen;
      heads.push({ keyId, expectedMs, nth: first.nth, stay: first.stay });
    }
    rule.started(seen.keyId, seen.expectedMs, heads);
  }

  private newFairRule(): FairRule {
    return new FairRule(this.options.fairQuantumMs, (what) => this.violation(what));
  }

  /** While the slot that holds its session's context is soon free. */
  private mayBePassed(other: Live, nowMs: number): boolean {
    if (other.seen.sessionId === null) return false;
    other.passedSinceMs ??= nowMs;
    return nowMs - other.passedSinceMs <= this.options.affinityWaitMs;
  }

  private oldestCertain(pool: PoolSight, priority: Priority, nowMs: number): Live | null {
    let oldest: Live | null = null;
    for (const [name, line] of pool.lines) {
      if (!name.startsWith(priority)) continue;
      for (const other of line.before(Number.POSITIVE_INFINITY)) {
        if (!certain(other, nowMs) || other.alone || this.mayBePassed(other, nowMs)) continue;
        if (oldest === null || other.nth < oldest.nth) oldest = other;
        break;
      }
    }
    return oldest;
  }

  /**
   * The maximum wait, in starts of the pool. An interactive task with a others of its class before it starts
   * after at most a+1 starts of its class; at most one start in four is an aged batch task's, and each task that
   * was cut meanwhile starts once more: 4/3 (a + 1 + put-backs) + 1. Holds for order "fifo"; strict tasks and
   * session turns that wait for their slot are judged by time, not by starts.
   */
  private judgeWait(live: Live): void {
    const { pool, seen } = live;
    if (this.options.fair !== "fifo" || seen.priority !== "interactive") return;
    if (live.cut || live.alone || seen.sessionId !== null) return;
    const watched = pool.starts - live.startsBefore;
    const bound = Math.ceil((4 * (live.ahead + 1 + pool.putBacks - live.putBacksBefore)) / 3) + 1;
    this.counts.waitedStartsMax = Math.max(this.counts.waitedStartsMax, watched);
    if (watched > bound)
      this.violation(`task ${live.nth} watched ${watched} starts with ${live.ahead} tasks before it`);
  }

  /** Called with every observation: when time has moved, what was left of the instant before is judged. */
  private look(): number {
    const nowMs = this.nowMs();
    if (nowMs === this.instantMs) return nowMs;
    for (const pool of this.pools.values()) {
      pool.leftNow = 0;
      pool.cameNow = 0;
      if (pool.counted > pool.capacity)
        this.violation(`${pool.counted} tasks waited in ${pool.id}, which has ${pool.capacity} places`);
      this.judgeIdle(pool, nowMs);
    }
    this.instantMs = nowMs;
    return nowMs;
  }

  private judgeIdle(pool: PoolSight, nowMs: number): void {
    const waits = pool.waiting.interactive + pool.waiting.batch > 0;
    // A strict task may wait until an engine is empty.
    if (!waits || pool.strict > 0 || pool.busy >= pool.slots) {
      pool.idleSinceMs = null;
      return;
    }
    // Free since the end of the instant before this one.
    pool.idleSinceMs ??= this.instantMs;
    const allowedMs = pool.sessions > 0 ? this.options.affinityWaitMs : 0;
    if (allowedMs > 0 && nowMs - pool.idleSinceMs <= allowedMs) return;
    this.violation(`${pool.id} had ${pool.slots - pool.busy} free slots while tasks waited`);
  }

  /** After everything had its time to settle. */
  finish(): void {
    this.look();
    for (const live of this.live.values()) this.violation(`task ${live.nth} is lost: it is ${live.phase}`);
    if (this.running.size > 0) this.violation(`${this.running.size} generations still run`);
  }

  private noteWait(live: Live): void {
    const { pool } = live;
    live.startsBefore = pool.starts;
    live.putBacksBefore = pool.putBacks;
    live.ahead = pool.waiting.interactive + pool.cameNow;
  }

  private wait(live: Live, sinceMs: number): void {
    const { pool, seen } = live;
    live.phase = "waiting";
    live.waitsSinceMs = sinceMs;
    live.stay++;
    pool.waiting[seen.priority]++;
    if (live.cut) pool.cut++;
    if (live.alone) pool.strict++;
    if (seen.sessionId !== null) pool.sessions++;
  }

  private leave(live: Live): void {
    const { pool, seen } = live;
    pool.waiting[seen.priority]--;
    pool.leftNow++;
    if (live.cut) pool.cut--;
    if (live.alone) pool.strict--;
    if (seen.sessionId !== null) pool.sessions--;
    live.phase = "ending";
  }

  private lineOf(live: Live): Line {
    const { priority, keyId } = live.seen;
    const name = this.options.fair === "fifo" ? priority : `${priority} ${keyId}`;
    let line = live.pool.lines.get(name);
    if (line === undefined) {
      line = new Line();
      live.pool.lines.set(name, line);
    }
    return line;
  }

  private of(taskId: string): Live {
    const live = this.live.get(taskId);
    if (live === undefined) throw new Error(`task ${taskId} is not live`);
    return live;
  }

  private poolOf(poolId: string): PoolSight {
    const pool = this.pools.get(poolId);
    if (pool === undefined) throw new Error(`there is no pool ${poolId}`);
    return pool;
  }
}

/** After so many losses in a row a task runs alone, unless an attempt said so many new words. */
const sharedLosses = 2;
const clearingWords = 4;
const attemptsMax = 3;

/** It waited before this instant, and its deadline may not have ended it in this one. */
const certain = (other: Live, nowMs: number): boolean =>
  other.waitsSinceMs < nowMs &&
  (other.seen.deadlineMs === null || other.atMs + other.seen.deadlineMs > nowMs + deadlineSlackMs);

/** A task that can no longer make its deadline is ended before that has passed. */
const deadlineSlackMs = 10_000;
