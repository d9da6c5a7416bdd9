/**
 * A daemon in virtual time under one of the loads of families.ts: the real scheduler, dispatcher, predictor,
 * attempt runner and supervisor over engines that take realistic times. Streaming from end to end: what has ended
 * is forgotten, so a run of a million tasks needs the memory of its queues.
 */

import { limits } from "../../src/domain/limits.ts";
import type { FullPolicy, PoolSpec } from "../../src/domain/pool.ts";
import type { Preemption } from "../../src/domain/preemption.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { profile } from "../services/rig.ts";
import { poolSpec } from "../support/replicas.ts";
import { SeededEntropy, VirtualClock } from "../support/virtual-clock.ts";
import { Daemon, type Fair, type Parts, realParts } from "./daemon.ts";
import { drawLoad, type Family, type LoadEnd, type LoadPlan, type LoadTask, nominalMs } from "./families.ts";
import { ForgetfulJournal, ForgetfulStore } from "./forgetful-store.ts";
import { LoadChecker } from "./load-checker.ts";
import { LoadAdapter } from "./load-engine.ts";
import { Scores } from "./scores.ts";
import { Draw } from "./workload.ts";

const startMs = 1_000_000;
/** Virtual time between looks at whether all is done. */
const strideMs = 60_000;
/** What is left when the last task was sent ends within this. */
const settleMs = 3_600_000;
const sharingWindowMs = 30_000;

export interface LoadOptions {
  readonly family: Family;
  readonly seed: number;
  readonly tasks: number;
  readonly fair: Fair;
  readonly fullPolicy: FullPolicy;
  /** Of every pool; absent: nobody is cut for others. */
  readonly preempt?: Preemption | null;
  /** Broken on purpose, for tests of the checker. */
  readonly parts?: Parts;
}

export interface LoadResult {
  readonly options: LoadOptions;
  readonly scores: Scores;
  readonly counts: LoadChecker["counts"];
  readonly violations: readonly string[];
  readonly broken: number;
  readonly virtualMs: number;
}

export async function simulateLoad(options: LoadOptions): Promise<LoadResult> {
  const world = new LoadWorld(options);
  return await world.run();
}

interface Live {
  readonly task: LoadTask;
  readonly serviceMs: number;
  record: TaskRecord | null;
  startedMs: number | null;
  readonly ended: (how: LoadEnd) => void;
}

class LoadWorld {
  private readonly clock = new VirtualClock(startMs);
  private readonly entropy: SeededEntropy;
  private readonly plan: LoadPlan;
  private readonly checker: LoadChecker;
  private readonly scores = new Scores(sharingWindowMs);
  private readonly daemon: Daemon;
  private readonly live = new Map<string, Live>();
  private readonly pools: readonly PoolSpec[];
  private lastSentMs = 0;

  constructor(private readonly options: LoadOptions) {
    const { clock } = this;
    this.entropy = new SeededEntropy(options.seed);
    this.plan = drawLoad(options.family, new Draw(this.entropy), options.fullPolicy);
    const { pools, faults, batchMaxWaitMs } = this.plan;
    this.checker = new LoadChecker(
      {
        pools: pools.map(({ id, capacity, replicas, slots }) => ({ id, capacity, slots: replicas * slots })),
        batchMaxWaitMs,
        fair: options.fair,
        affinityWaitMs: limits.affinityWaitMs,
        fairQuantumMs: limits.fairQuantumMs,
        preempt: options.preempt ?? null,
      },
      () => this.nowMs(),
      (taskId) => this.started(taskId),
    );
    const adapter = new LoadAdapter({
      clock,
      draw: new Draw(new SeededEntropy(options.seed + 1)),
      watcher: this.checker,
      faults,
      speedOf: (poolId) => this.planOf(poolId).speed,
      taskOf: (taskId) => this.of(taskId).task,
      cached: (tokens, of) => {
        this.scores.sessionTokensCached += tokens;
        this.scores.sessionTokens += of;
      },
    });
    this.pools = pools.map((pool) => ({ ...specOf(pool), preempt: options.preempt ?? null }));
    this.daemon = new Daemon({
      clock,
      seed: options.seed,
      pools: this.pools,
      adapter,
      batchMaxWaitMs,
      attemptsMax: 3,
      fair: options.fair,
      // As the daemon's own default, so that hopeless deadlines are refused.
      minOnTimeProbability: 0.05,
      retentionMs: 1000,
      store: new ForgetfulStore(),
      journal: new ForgetfulJournal(),
      cutAtDeadline: false,
      metricsEveryMs: 1e9,
      sessions: { ttlMs: 600_000, turnsMax: 1_000_000 },
      disconnectGraceMs: 5000,
      restart: { backoffMs: 250, backoffMaxMs: 30_000, breakerFailures: 5, breakerWindowMs: 60_000 },
      onFatal: (error) => {
        throw error;
      },
      onUnwatched: () => undefined,
      parts: options.parts ?? realParts,
    });
  }

  async run(): Promise<LoadResult> {
    const { clock, daemon, checker, scores, options } = this;
    daemon.start();
    // Engines load first: a run is about load, not about the very first promise.
    await clock.advance(15_000);
    this.plan.begin(this.sink());
    while (scores.sent < options.tasks) await clock.advance(strideMs);
    const untilMs = this.nowMs() + settleMs;
    while (this.live.size > 0 && this.nowMs() < untilMs) await clock.advance(strideMs);
    checker.finish();
    const { violations, brokenCount } = checker;
    // The engines that end with the daemon are none that were lost.
    const counts = { ...checker.counts };
    await daemon.stop();
    return { options, scores, counts, violations, broken: brokenCount, virtualMs: this.lastSentMs };
  }

  private nowMs(): number {
    return this.clock.nowMs() - startMs;
  }

  private sink() {
    const open = () => this.scores.sent < this.options.tasks;
    return {
      get open() {
        return open();
      },
      uuid: () => this.entropy.uuid(),
      after: (ms: number, fn: () => void) => void this.clock.setTimer(ms, fn),
      send: (task: LoadTask, ended: (how: LoadEnd) => void) => this.send(task, ended),
    };
  }

  private send(task: LoadTask, ended: (how: LoadEnd) => void): void {
    const { scores, checker, daemon } = this;
    if (scores.sent >= this.options.tasks) return;
    scores.sent++;
    this.lastSentMs = this.nowMs();
    const taskId = `t${scores.sent}`;
    const { speed, slots } = this.planOf(task.poolId);
    const serviceMs = nominalMs(speed, slots, task.tokensIn, task.tokensOut);
    this.live.set(taskId, { task, serviceMs, record: null, startedMs: null, ended });
    const spec = specOfTask(taskId, task);
    checker.submitted({ taskId, ...task, expectedMs: daemon.dispatcher.forecast.serviceOf(spec) });
    daemon.submit(spec).then(
      ({ record }) => this.accepted(taskId, record),
      (error: { code?: string }) => this.refused(taskId, error.code ?? String(error)),
    );
  }

  private accepted(taskId: string, record: TaskRecord): void {
    const live = this.of(taskId);
    live.record = record;
    this.scores.accepted++;
    this.checker.accepted(taskId);
    const { poolId, keyId } = live.task;
    this.scores.sharing.accepted(poolId, keyId, live.serviceMs, this.nowMs());
    // Its engine may have been quicker than the answer to its submission.
    if (live.startedMs !== null) this.scoreStart(live, live.startedMs);
    void this.follow(taskId, record);
  }

  private refused(taskId: string, code: string): void {
    const live = this.of(taskId);
    this.live.delete(taskId);
    this.scores.refused(code);
    this.checker.refused(taskId, code);
    live.ended("refused");
  }

  private started(taskId: string): void {
    const live = this.of(taskId);
    live.startedMs = this.clock.nowMs();
    if (live.record !== null) this.scoreStart(live, live.startedMs);
  }

  private scoreStart({ task, record, serviceMs }: Live, startedMs: number): void {
    if (record === null) return;
    this.scores.started(task.priority, record.promise, startedMs - record.createdMs);
    this.scores.sharing.started(task.poolId, task.keyId, serviceMs, this.nowMs());
  }

  /** Reads the log to its end, as a client does; only the last frame is looked at. */
  private async follow(taskId: string, record: TaskRecord): Promise<void> {
    const cursor = record.log.open(-1);
    let last: Uint8Array | null = null;
    while (!cursor.done) {
      const bytes = cursor.take();
      if (bytes === null) await new Promise<void>((resolve) => cursor.next(resolve));
      else last = bytes;
    }
    const code = last === null ? "nothing" : codeOfEnd(last);
    cursor.close();
    this.ended(taskId, record, code);
  }

  private ended(taskId: string, record: TaskRecord, code: string): void {
    const { scores } = this;
    const live = this.of(taskId);
    const { task, serviceMs } = live;
    this.live.delete(taskId);
    this.checker.ended(taskId, code);
    const tookMs = this.clock.nowMs() - record.createdMs;
    scores.ended(task.priority, record.promise, task.deadlineMs, code, tookMs);
    if (live.startedMs === null) scores.sharing.gone(task.poolId, task.keyId, serviceMs, this.nowMs());
    if (code === "") scores.tokensOut += task.tokensOut;
    live.ended(code === "" ? "done" : "failed");
  }

  private of(taskId: string): Live {
    const live = this.live.get(taskId);
    if (live === undefined) throw new Error(`task ${taskId} is not live`);
    return live;
  }

  private planOf(poolId: string) {
    const pool = this.plan.pools.find((p) => p.id === poolId);
    if (pool === undefined) throw new Error(`there is no pool ${poolId}`);
    return pool;
  }
}

const specOf = (plan: LoadPlan["pools"][number]): PoolSpec =>
  poolSpec({
    id: plan.id,
    replicas: plan.replicas,
    slots: plan.slots,
    ctx: 16_384,
    queueCapacity: plan.capacity,
    fullPolicy: plan.fullPolicy,
    timeouts: { loadMs: 60_000, firstTokenMs: 120_000, interTokenMs: 60_000, stopGraceMs: 50 },
  });

const decoder = new TextDecoder();

/** "" for an end, else the code of the error. */
function codeOfEnd(bytes: Uint8Array): string {
  const text = decoder.decode(bytes.subarray(Math.max(0, bytes.length - 2000)));
  const at = Math.max(text.lastIndexOf("event: end"), text.lastIndexOf("event: error"));
  if (at < 0) return "nothing";
  if (text.startsWith("event: end", at)) return "";
  return /"code":"([A-Z_]+)"/.exec(text.slice(at))?.[1] ?? "nothing";
}

const specOfTask = (taskId: string, task: LoadTask): TaskSpec => ({
  taskId,
  keyId: task.keyId,
  correlationId: "c",
  sessionId: task.sessionId,
  workload: "completion",
  // The engine reads there whose generation it is.
  input: { kind: "prompt", prompt: taskId },
  poolId: task.poolId,
  engine: "mock",
  pinned: false,
  modelRef: "mock:words",
  priority: task.priority,
  seed: 1,
  determinism: task.strict ? "strict" : "best_effort",
  budget: null,
  samplerProfileVersion: "v1",
  sampling: profile,
  maxTokens: task.maxTokens,
  ctx: 16_384,
  deadlineMs: task.deadlineMs,
  expectedTokens: null,
  kvHint: "reuse",
  onDisconnect: "continue",
  metadata: {},
  tokensIn: task.tokensIn,
  tokensInExact: true,
  renderedPrompt: null,
  bodyDigest: "",
});
