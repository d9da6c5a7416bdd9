/**
 * A daemon in virtual time: the real scheduler, dispatcher, attempt runner, registry, streams and supervisor over
 * scripted engines, with clients who do what a workload says. One seed is one run, always the same.
 *
 * Two phases: faults while clients send, then engines behave and everything must settle within `settleMs`. In the
 * first one the daemon may be killed, or told to stop, and come back later with what its store and its journal kept.
 */

import { limits } from "../../src/domain/limits.ts";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { profile } from "../services/rig.ts";
import { MemoryJournal } from "../support/memory-journal.ts";
import { MemoryTaskStore } from "../support/memory-store.ts";
import { poolSpec } from "../support/replicas.ts";
import { readableOf } from "../support/viewer-readable.ts";
import { SeededEntropy, VirtualClock } from "../support/virtual-clock.ts";
import { Checker } from "./checker.ts";
import { Daemon, type Parts, realParts } from "./daemon.ts";
import { ScriptedAdapter } from "./scripted-engine.ts";
import {
  type DrainPlan,
  Draw,
  drawWorkload,
  type PoolPlan,
  type StopPlan,
  type TaskPlan,
  type ViewerPlan,
  type Workload,
} from "./workload.ts";

const attemptsMax = 3;
const disconnectGraceMs = 120;
const firstTokenMs = 250;
const interTokenMs = 120;
/** Generous: what waits at the end of the faults is at most the capacities, and engines come back in seconds. */
const settleMs = 60_000;

export interface SimulationResult {
  readonly seed: number;
  readonly violations: readonly string[];
  readonly outcomes: Readonly<Record<string, number>>;
  readonly refused: number;
  readonly starts: number;
  readonly agedStarts: number;
  readonly putBacks: number;
  /** Of them, batch tasks that were cut for interactive ones. */
  readonly preempted: number;
  /** Starts of tasks that had said something, and of those that were suspected. */
  readonly continued: number;
  readonly suspects: number;
  readonly engines: number;
  readonly enginesLost: number;
  readonly restarts: number;
  readonly tokens: number;
  /** Attempts that the deadline of a drain has cut. */
  readonly drainCuts: number;
  readonly virtualMs: number;
}

const specOf = (plan: PoolPlan): PoolSpec =>
  poolSpec({
    id: plan.id,
    replicas: plan.replicas,
    slots: plan.slots,
    preload: plan.preload,
    queueCapacity: plan.capacity,
    fullPolicy: plan.fullPolicy,
    preempt: plan.preempt,
    timeouts: { loadMs: 700, firstTokenMs, interTokenMs, stopGraceMs: 50 },
  });

/** `plain`: see drawWorkload. */
export async function simulate(
  seed: number,
  tasks: number,
  parts: Parts = realParts,
  plain = false,
): Promise<SimulationResult> {
  const workload = drawWorkload(seed, tasks, plain);
  const world = new World(workload, parts);
  await world.run();
  return world.result();
}

interface Viewer {
  readonly judge: () => void;
  readonly drop: () => void;
}

class World {
  private readonly clock = new VirtualClock(1_000_000);
  private readonly checker: Checker;
  private readonly adapter: ScriptedAdapter;
  private readonly pools: readonly PoolSpec[];
  private readonly plans = new Map<string, TaskPlan>();
  private store = new MemoryTaskStore();
  private journal: MemoryJournal;
  /** null while it is away. */
  private daemon: Daemon | null = null;
  private viewers: Viewer[] = [];
  /** Pools that are drained, also while the daemon is away. */
  private readonly drained = new Set<string>();
  private refused = 0;
  private unsent = 0;

  constructor(
    private readonly workload: Workload,
    private readonly parts: Parts,
  ) {
    const { clock } = this;
    const { batchMaxWaitMs, fair, cutAtDeadline, faults, seed, sessions } = workload;
    // With frames that wait for a flush, and without.
    this.journal = new MemoryJournal(new Map(), seed % 2 === 0);
    this.checker = new Checker(
      {
        pools: workload.pools,
        order: { batchMaxWaitMs, fair, affinityWaitMs: limits.affinityWaitMs },
        sessions,
        attemptsMax,
        cutAtDeadline,
        disconnectGraceMs,
        watchdogs: { firstTokenMs, interTokenMs },
      },
      () => clock.nowMs() - 1_000_000,
    );
    this.adapter = new ScriptedAdapter(clock, new Draw(new SeededEntropy(seed + 1)), faults, this.checker);
    this.pools = workload.pools.map(specOf);
    for (const plan of workload.tasks) this.plans.set(plan.taskId, plan);
  }

  async run(): Promise<void> {
    const { clock, workload } = this;
    this.daemon = this.newDaemon();
    this.daemon.start();
    for (const plan of workload.tasks) clock.setTimer(plan.atMs, () => this.send(plan));
    for (const drain of workload.drains) clock.setTimer(drain.atMs, () => this.drain(drain));
    const { stop } = workload;
    if (stop !== null) clock.setTimer(stop.atMs, () => this.stop(stop));
    await clock.advance(workload.faultsUntilMs);
    this.adapter.calm = true;
    await clock.advance(settleMs);
    this.checker.finish();
    for (const { judge } of this.viewers) judge();
    await this.tearDown();
  }

  private newDaemon(): Daemon {
    const { workload, checker } = this;
    const daemon = new Daemon({
      clock: this.clock,
      seed: workload.seed,
      pools: this.pools,
      adapter: this.adapter,
      store: this.store,
      journal: this.journal,
      batchMaxWaitMs: workload.batchMaxWaitMs,
      attemptsMax,
      fair: workload.fair,
      cutAtDeadline: workload.cutAtDeadline,
      // Hopeless deadlines too: what becomes of them while they wait is what is looked at here.
      minOnTimeProbability: 0,
      retentionMs: 1e9,
      sessions: workload.sessions,
      disconnectGraceMs,
      metricsEveryMs: 40,
      restart: { backoffMs: 20, backoffMaxMs: 400, breakerFailures: 3, breakerWindowMs: 1500 },
      drained: this.drained,
      onFatal: (error) =>
        checker.violation(`a turn broke: ${error instanceof Error ? error.stack : String(error)}`),
      onUnwatched: (taskId, cancel) => {
        checker.disconnected(taskId);
        void cancel().then(() => {
          if (this.daemon === daemon) checker.cancelResolved(taskId);
        });
      },
      parts: this.parts,
    });
    return daemon;
  }

  result(): SimulationResult {
    const { violations, stories, counts, agedStarts, preempted } = this.checker;
    const outcomes: Record<string, number> = {};
    if (this.unsent > 0) outcomes.unsent = this.unsent;
    for (const { refused, terminal, unheard } of stories.values()) {
      const outcome =
        refused ?? (terminal === null ? (unheard ? "unheard" : "lost") : terminal.code || "end");
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
    }
    const { seed, faultsUntilMs } = this.workload;
    const { refused } = this;
    return {
      seed,
      violations,
      outcomes,
      refused,
      agedStarts,
      preempted,
      ...counts,
      virtualMs: Math.round(faultsUntilMs),
    };
  }

  // ---- an operator drains and resumes ----

  private drain({ poolId, deadlineMs, resumesMs }: DrainPlan): void {
    const { checker, clock, daemon } = this;
    if (daemon === null) return;
    this.drained.add(poolId);
    checker.drained(poolId);
    void daemon.dispatcher.tell({ type: "pool_held", poolId, by: "drain" });
    this.after(deadlineMs, () => {
      if (this.daemon !== daemon || !this.drained.has(poolId)) return;
      checker.drainDeadline(poolId);
      void daemon.dispatcher.tell({ type: "hold_deadline_passed", poolId, by: "drain" });
    });
    clock.setTimer(resumesMs, () => {
      this.drained.delete(poolId);
      checker.resumed(poolId);
      void this.daemon?.dispatcher.tell({ type: "pool_released", poolId, by: "drain" });
    });
  }

  // ---- the daemon goes and comes back ----

  private stop({ drainMs, downMs }: StopPlan): void {
    const { checker, clock, daemon } = this;
    if (daemon === null) return;
    if (drainMs === null) {
      this.leave(daemon);
      this.after(downMs, () => this.comeBack());
      return;
    }
    // As the daemon does at its first signal.
    checker.closed();
    daemon.dispatcher.close();
    void daemon.dispatcher.idle().then(() => {
      if (this.daemon === daemon) checker.idle();
    });
    clock.setTimer(drainMs, () => {
      daemon.halt();
      this.leave(daemon);
      this.after(downMs, () => this.comeBack());
    });
  }

  /** From now on nothing of it happens any more. */
  private leave(daemon: Daemon): void {
    this.daemon = null;
    daemon.kill();
    for (const viewer of this.viewers) viewer.drop();
    this.viewers = [];
    this.adapter.killAll();
    this.checker.gone();
  }

  private comeBack(): void {
    this.store = this.store.reopen("kill");
    this.journal = this.journal.reopen();
    const daemon = this.newDaemon();
    this.daemon = daemon;
    daemon.start();
    const records = daemon.recovered;
    const { checker, store } = this;
    const live = records.map(({ spec: { taskId }, tokensOut, log }) => ({
      taskId,
      words: tokensOut,
      seen: log.length > 0,
    }));
    checker.cameBack(live, (taskId) => (store.find(taskId)?.ended ?? null) !== null);
    for (const record of records) {
      const plan = this.plans.get(record.spec.taskId);
      if (plan !== undefined) this.tap(daemon, record, plan);
    }
  }

  // ---- clients ----

  private send(plan: TaskPlan): void {
    const { checker, daemon } = this;
    const { taskId } = plan;
    if (daemon === null) {
      this.unsent++;
      return;
    }
    checker.submitted(plan);
    daemon.submit(taskSpecOf(plan)).then(
      ({ record }) => {
        // What a daemon says after its end reaches nobody.
        if (this.daemon !== daemon) return;
        checker.accepted(taskId);
        this.tap(daemon, record, plan);
        for (const viewer of plan.viewers)
          this.after(viewer.comesMs, () => void this.watch(daemon, record, viewer));
      },
      (error: { code?: string }) => {
        if (this.daemon !== daemon) return;
        this.refused++;
        checker.refused(taskId, error.code ?? String(error));
      },
    );
    if (plan.cancelMs !== null) this.after(plan.cancelMs, () => this.cancel(taskId));
  }

  private cancel(taskId: string): void {
    const { checker, daemon } = this;
    if (daemon === null) return;
    checker.cancelRequested(taskId);
    void daemon.dispatcher.cancel(taskId, "client").then(() => {
      if (this.daemon === daemon) checker.cancelResolved(taskId);
    });
  }

  /** Zero means now, in the same turn. */
  private after(ms: number, fn: () => void): void {
    if (ms === 0) fn();
    else this.clock.setTimer(ms, fn);
  }

  /** The first and fastest reader of every log. */
  private tap(daemon: Daemon, record: TaskRecord, { cancelAtToken, taskId }: TaskPlan): void {
    const cursor = record.log.open(-1);
    const decoder = new TextDecoder();
    let canceled = cancelAtToken === null;
    const read = (): void => {
      while (this.daemon === daemon) {
        const bytes = cursor.take();
        if (bytes !== null) this.checker.frames(taskId, decoder.decode(bytes, { stream: true }));
        else if (cursor.done) break;
        else if (!canceled && record.log.tokenCount >= (cancelAtToken ?? 0)) {
          canceled = true;
          this.cancel(taskId);
        } else {
          cursor.next(read);
          return;
        }
      }
      cursor.close();
    };
    read();
  }

  /** A client with a stream, at its own pace; it stays or leaves. */
  private async watch(daemon: Daemon, record: TaskRecord, plan: ViewerPlan): Promise<void> {
    if (this.daemon !== daemon) return;
    const { checker, clock } = this;
    const { taskId } = record.spec;
    const from = Math.min(plan.after + 1, record.log.length);
    const live = !record.log.sealed;
    const viewer = daemon.streams.open(record, "client", plan.after, plan.observes);
    const reader = readableOf(viewer).getReader();
    let text = "";
    let here = true;
    let closed = false;
    const left = () => {
      if (!here) return;
      here = false;
      if (!plan.observes && this.daemon === daemon) checker.viewerLeft(taskId);
    };
    this.viewers.push({
      judge: () => checker.viewerRead(taskId, from, text, closed),
      drop: () => {
        here = false;
      },
    });
    if (!plan.observes) checker.viewerCame(taskId);
    if (plan.leavesMs !== null)
      clock.setTimer(plan.leavesMs, () => {
        if (!here) return;
        left();
        void reader.cancel();
      });
    const decoder = new TextDecoder();
    while (here) {
      const { done, value } = await reader.read();
      if (!here) break;
      if (done) {
        closed = true;
        left();
        break;
      }
      const chunk = decoder.decode(value, { stream: true });
      text += chunk;
      if (live) checker.viewed(taskId, chunk);
      if (plan.paceMs > 0) await new Promise<void>((resolve) => clock.setTimer(plan.paceMs, resolve));
    }
  }

  /** Nothing may be left: no timer, no attempt, no viewer, no byte. */
  private async tearDown(): Promise<void> {
    const { checker, clock, daemon } = this;
    if (daemon === null) {
      checker.violation("the daemon did not come back");
      return;
    }
    await daemon.stop();
    const left = {
      timers: clock.pendingTimers,
      attempts: daemon.runner.size,
      streams: daemon.streams.size,
      records: daemon.registry.size,
      bytes: daemon.registry.account.bytes,
    };
    for (const [what, count] of Object.entries(left))
      if (count !== 0) checker.violation(`${count} ${what} are left at the end`);
  }
}

const taskSpecOf = (plan: TaskPlan): TaskSpec => ({
  taskId: plan.taskId,
  keyId: plan.keyId,
  correlationId: "c",
  sessionId: plan.sessionId,
  workload: "completion",
  // The scripted engine reads there whose generation it is.
  input: { kind: "prompt", prompt: plan.taskId },
  poolId: plan.poolId,
  engine: "mock",
  pinned: false,
  modelRef: "mock:words",
  priority: plan.priority,
  seed: 1,
  determinism: plan.strict ? "strict" : "best_effort",
  samplerProfileVersion: "v1",
  sampling: plan.greedy ? { ...profile, temperature: 0 } : profile,
  maxTokens: plan.tokens,
  ctx: 4096,
  deadlineMs: plan.deadlineMs,
  expectedTokens: null,
  budget: plan.budgetTokens === null ? null : { tokens: plan.budgetTokens, timeMs: null, cost: null },
  kvHint: "reuse",
  onDisconnect: plan.onDisconnect,
  metadata: {},
  tokensIn: plan.tokensIn,
  tokensInExact: true,
  renderedPrompt: null,
  bodyDigest: "",
});
