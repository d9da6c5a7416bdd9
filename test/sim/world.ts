/**
 * A daemon in virtual time: the real scheduler, dispatcher, attempt runner, registry, streams and supervisor over
 * scripted engines, with clients who do what a workload says. One seed is one run, always the same.
 *
 * Two phases: faults while clients send, then engines behave and everything must settle within `settleMs`.
 */

import type { PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { AttemptRunner } from "../../src/services/attempt-runner.ts";
import { Dispatcher } from "../../src/services/dispatcher.ts";
import { Streams } from "../../src/services/streams.ts";
import { Supervisor } from "../../src/services/supervisor.ts";
import { type TaskRecord, TaskRegistry } from "../../src/services/task-registry.ts";
import { noProcesses, profile, RecordingMetrics, silentLog } from "../services/rig.ts";
import { poolSpec } from "../support/replicas.ts";
import { readableOf } from "../support/viewer-readable.ts";
import { SeededEntropy, VirtualClock } from "../support/virtual-clock.ts";
import { Checker } from "./checker.ts";
import { ScriptedAdapter } from "./scripted-engine.ts";
import {
  Draw,
  drawWorkload,
  type PoolPlan,
  type TaskPlan,
  type ViewerPlan,
  type Workload,
} from "./workload.ts";

const attemptsMax = 3;
const disconnectGraceMs = 120;
/** Generous: what waits at the end of the faults is at most the capacities, and engines come back in seconds. */
const settleMs = 60_000;

/** What a test may put in the place of the real thing, to see the checker notice. */
export interface Parts {
  readonly Dispatcher: typeof Dispatcher;
  readonly AttemptRunner: typeof AttemptRunner;
}

export interface SimulationResult {
  readonly seed: number;
  readonly violations: readonly string[];
  readonly outcomes: Readonly<Record<string, number>>;
  readonly starts: number;
  readonly agedStarts: number;
  readonly putBacks: number;
  readonly engines: number;
  readonly enginesLost: number;
  readonly tokens: number;
  readonly virtualMs: number;
}

const specOf = (plan: PoolPlan): PoolSpec =>
  poolSpec({
    id: plan.id,
    replicas: plan.replicas,
    slots: plan.slots,
    preload: plan.preload,
    queueCapacity: plan.capacity,
    timeouts: { loadMs: 700, firstTokenMs: 250, interTokenMs: 120, stopGraceMs: 50 },
  });

export async function simulate(
  seed: number,
  tasks: number,
  parts: Parts = { Dispatcher, AttemptRunner },
): Promise<SimulationResult> {
  const workload = drawWorkload(seed, tasks);
  const world = new World(workload, parts);
  await world.run();
  return world.result();
}

class World {
  private readonly clock = new VirtualClock(1_000_000);
  private readonly checker: Checker;
  private readonly adapter: ScriptedAdapter;
  private readonly registry = new TaskRegistry(1e9);
  private readonly runner: AttemptRunner;
  private readonly supervisor: Supervisor;
  private readonly dispatcher: Dispatcher;
  private readonly streams: Streams;
  private readonly pools: readonly PoolSpec[];
  private readonly viewers: (() => void)[] = [];

  constructor(
    private readonly workload: Workload,
    parts: Parts,
  ) {
    const { clock, registry } = this;
    const { batchMaxWaitMs, faults, seed } = workload;
    const metrics = new RecordingMetrics();
    this.checker = new Checker(
      { pools: workload.pools, batchMaxWaitMs, attemptsMax, disconnectGraceMs },
      () => clock.nowMs() - 1_000_000,
    );
    this.adapter = new ScriptedAdapter(clock, new Draw(new SeededEntropy(seed + 1)), faults, this.checker);
    this.pools = workload.pools.map(specOf);
    this.runner = new parts.AttemptRunner(clock, 40);
    this.supervisor = new Supervisor({
      clock,
      entropy: new SeededEntropy(seed + 2),
      processes: noProcesses,
      log: silentLog,
      metrics,
      runDir: "/nowhere",
      adapters: new Map([["mock", this.adapter]]),
      restart: { backoffMs: 20, backoffMaxMs: 400, breakerFailures: 3, breakerWindowMs: 1500 },
    });
    this.dispatcher = new parts.Dispatcher({
      clock,
      log: silentLog,
      metrics,
      control: this.supervisor,
      registry,
      runner: this.runner,
      pools: this.pools,
      attemptsMax,
      batchMaxWaitMs,
      // Hopeless deadlines too: what becomes of them while they wait is what is looked at here.
      minOnTimeProbability: 0,
      onFatal: (error) => this.checker.violation(`a turn broke: ${String(error)}`),
    });
    this.streams = new Streams(
      clock,
      { heartbeatMs: 100, disconnectGraceMs, streamsPerKeyMax: 1e9 },
      (taskId, reason) => {
        this.checker.disconnected(taskId);
        void this.dispatcher.cancel(taskId, reason).then(() => this.checker.cancelResolved(taskId));
      },
    );
  }

  async run(): Promise<void> {
    const { clock, workload } = this;
    this.supervisor.start(this.pools, this.dispatcher);
    for (const plan of workload.tasks) clock.setTimer(plan.atMs, () => this.send(plan));
    const { stop } = workload;
    if (stop !== null) clock.setTimer(stop.atMs, () => this.drain(stop.drainMs));
    await clock.advance(workload.faultsUntilMs);
    this.adapter.calm = true;
    await clock.advance(settleMs);
    this.checker.finish();
    for (const judge of this.viewers) judge();
    await this.tearDown();
  }

  result(): SimulationResult {
    const { violations, stories, counts } = this.checker;
    const outcomes: Record<string, number> = {};
    for (const { refused, terminal } of stories.values()) {
      const outcome = refused ?? (terminal === null ? "lost" : terminal.code || "end");
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
    }
    const { seed, faultsUntilMs } = this.workload;
    return { seed, violations, outcomes, ...counts, virtualMs: Math.round(faultsUntilMs) };
  }

  /** As the daemon does at its first signal. */
  private drain(drainMs: number): void {
    const { checker, clock, dispatcher } = this;
    checker.closed();
    dispatcher.close();
    void dispatcher.idle().then(() => checker.idle());
    clock.setTimer(drainMs, () => {
      checker.drained();
      dispatcher.endAll();
    });
  }

  private send(plan: TaskPlan): void {
    const { checker, dispatcher } = this;
    const { taskId } = plan;
    checker.submitted(plan);
    dispatcher.submit(taskSpecOf(plan)).then(
      ({ record }) => {
        checker.accepted(taskId);
        void this.tap(record, plan);
        for (const viewer of plan.viewers) this.after(viewer.comesMs, () => void this.watch(record, viewer));
      },
      (error: { code?: string }) => checker.refused(taskId, error.code ?? String(error)),
    );
    if (plan.cancelMs !== null) this.after(plan.cancelMs, () => this.cancel(taskId));
  }

  private cancel(taskId: string): void {
    this.checker.cancelRequested(taskId);
    void this.dispatcher.cancel(taskId, "client").then(() => this.checker.cancelResolved(taskId));
  }

  /** Zero means now, in the same turn. */
  private after(ms: number, fn: () => void): void {
    if (ms === 0) fn();
    else this.clock.setTimer(ms, fn);
  }

  /** The first and fastest reader of every log. */
  private async tap(record: TaskRecord, { cancelAtToken, taskId }: TaskPlan): Promise<void> {
    const cursor = record.log.open(-1);
    const decoder = new TextDecoder();
    let canceled = cancelAtToken === null;
    for (;;) {
      const bytes = cursor.take();
      if (bytes !== null) this.checker.frames(taskId, decoder.decode(bytes, { stream: true }));
      else if (cursor.done) break;
      else if (!canceled && record.log.tokenCount >= (cancelAtToken ?? 0)) {
        canceled = true;
        this.cancel(taskId);
      } else await cursor.next();
    }
    cursor.close();
  }

  /** A client with a stream, at its own pace; it stays or leaves. */
  private async watch(record: TaskRecord, plan: ViewerPlan): Promise<void> {
    const { checker, clock } = this;
    const { taskId } = record.spec;
    const from = Math.min(plan.after + 1, record.log.length);
    const live = !record.log.sealed;
    const viewer = this.streams.open(record, "client", plan.after, plan.observes);
    const reader = readableOf(viewer).getReader();
    let text = "";
    let here = true;
    let closed = false;
    this.viewers.push(() => checker.viewerRead(taskId, from, text, closed));
    const left = () => {
      if (!here) return;
      here = false;
      if (!plan.observes) checker.viewerLeft(taskId);
    };
    if (!plan.observes) checker.viewerCame(taskId);
    if (plan.leavesMs !== null)
      clock.setTimer(plan.leavesMs, () => {
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
    const { checker, clock, registry } = this;
    this.dispatcher.close();
    this.dispatcher.endAll();
    void this.supervisor.stop();
    await clock.advance(2000);
    this.streams.close();
    registry.prune(Number.MAX_SAFE_INTEGER);
    const left = {
      timers: clock.pendingTimers,
      attempts: this.runner.size,
      streams: this.streams.size,
      records: registry.size,
      bytes: registry.account.bytes,
    };
    for (const [what, count] of Object.entries(left))
      if (count !== 0) checker.violation(`${count} ${what} are left at the end`);
  }
}

const taskSpecOf = (plan: TaskPlan): TaskSpec => ({
  taskId: plan.taskId,
  keyId: "client",
  correlationId: "c",
  sessionId: null,
  workload: "completion",
  // The scripted engine reads there whose generation it is.
  input: { kind: "prompt", prompt: plan.taskId },
  poolId: plan.poolId,
  pinned: false,
  modelRef: "mock:words",
  priority: plan.priority,
  seed: 1,
  samplerProfileVersion: "v1",
  sampling: profile,
  maxTokens: plan.tokens,
  ctx: 4096,
  deadlineMs: plan.deadlineMs,
  expectedTokens: null,
  kvHint: "reuse",
  onDisconnect: plan.onDisconnect,
  metadata: {},
  tokensIn: 5,
  tokensInExact: true,
  renderedPrompt: null,
  bodyDigest: "",
});
