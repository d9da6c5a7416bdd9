/**
 * The real services of one simulated daemon, wired as app/bootstrap.ts wires them, over a virtual clock and the
 * engines that a world brings. The one place of the simulation that knows how they are made.
 *
 * `kill` is what `kill -9` is: no timer and no turn of this daemon ever comes again. Only what its store and its
 * journal were given is left, for the next one.
 */
import { unlimited } from "../../src/domain/budget.ts";
import { limits } from "../../src/domain/limits.ts";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { ResidencyRules } from "../../src/domain/residency-state.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { Clock, Timer } from "../../src/ports/clock.ts";
import type { EngineAdapter } from "../../src/ports/engine.ts";
import type { Journal } from "../../src/ports/journal.ts";
import type { KeptRecords, LendRecord } from "../../src/ports/pool-store.ts";
import type { TaskStore } from "../../src/ports/task-store.ts";
import type { Metrics } from "../../src/ports/telemetry.ts";
import { AttemptRunner } from "../../src/services/attempt-runner.ts";
import { DeviceLending } from "../../src/services/device-lending.ts";
import { DeviceMemory, type DeviceSpec } from "../../src/services/device-memory.ts";
import { Dispatcher } from "../../src/services/dispatcher.ts";
import { ResidencyKeeper } from "../../src/services/residency-keeper.ts";
import { type SessionMetrics, Sessions } from "../../src/services/sessions.ts";
import { Streams } from "../../src/services/streams.ts";
import { Supervisor, type SupervisorOptions } from "../../src/services/supervisor.ts";
import { TaskArchive } from "../../src/services/task-archive.ts";
import { type TaskRecord, TaskRegistry } from "../../src/services/task-registry.ts";
import { WriteAhead } from "../../src/services/write-ahead.ts";
import { mockNeeds, noProcesses, silentLog } from "../services/rig.ts";
import { SeededEntropy, type VirtualClock } from "../support/virtual-clock.ts";

export type Fair = "fifo" | "per-key";

/** Micro-batching in the runs with odd seeds, longer than a token takes. */
const oddSeedsBatchMs = 15;

/** What a test may put in the place of the real thing, to see the checker notice. */
export interface Parts {
  readonly Dispatcher: typeof Dispatcher;
  readonly AttemptRunner: typeof AttemptRunner;
  readonly WriteAhead: typeof WriteAhead;
  readonly Keeper: typeof ResidencyKeeper;
  /** Stands before the store of each daemon. */
  readonly storeOf: (store: TaskStore) => TaskStore;
}
export const realParts: Parts = {
  Dispatcher,
  AttemptRunner,
  WriteAhead,
  Keeper: ResidencyKeeper,
  storeOf: (store) => store,
};

export interface DaemonOptions {
  readonly clock: VirtualClock;
  readonly seed: number;
  readonly pools: readonly PoolSpec[];
  readonly adapter: EngineAdapter;
  readonly store: TaskStore;
  readonly journal: Journal;
  readonly batchMaxWaitMs: number;
  readonly attemptsMax: number;
  readonly fair: Fair;
  readonly cutAtDeadline: boolean;
  readonly minOnTimeProbability: number;
  readonly retentionMs: number;
  readonly sessions: { readonly ttlMs: number; readonly turnsMax: number };
  readonly disconnectGraceMs: number;
  readonly metricsEveryMs: number;
  readonly restart: SupervisorOptions["restart"];
  /** Pools that an earlier one left drained. */
  readonly drained?: ReadonlySet<string>;
  /** Absent: every pool has memory. */
  readonly memory?: {
    readonly devices: readonly DeviceSpec[];
    readonly rules: ResidencyRules;
    readonly lends: KeptRecords<LendRecord>;
  };
  readonly onFatal: (error: unknown) => void;
  /** The last viewer of a task left and did not come back: the daemon cancels it. */
  readonly onUnwatched: (taskId: string, cancel: () => Promise<void>) => void;
  readonly parts?: Parts;
}

export class Daemon {
  readonly registry: TaskRegistry;
  readonly runner: AttemptRunner;
  readonly supervisor: Supervisor;
  readonly dispatcher: Dispatcher;
  readonly streams: Streams;
  readonly sessions: Sessions;
  readonly keeper: ResidencyKeeper | null;
  readonly lending: DeviceLending | null;
  private readonly ahead: WriteAhead;
  /** What its store still had to do when it started. */
  recovered: readonly TaskRecord[] = [];
  private readonly clock: LifeClock;

  constructor(private readonly options: DaemonOptions) {
    const { seed, pools, adapter } = options;
    const clock = new LifeClock(options.clock);
    this.clock = clock;
    const parts = options.parts ?? realParts;
    const store = parts.storeOf(options.store);
    const ahead = new parts.WriteAhead(options.journal, clock, silentLog, options.onFatal);
    ahead.recover();
    this.ahead = ahead;
    this.registry = new TaskRegistry(options.retentionMs, limits.waitingInputBytesMax, ahead);
    this.runner = new parts.AttemptRunner(clock, options.metricsEveryMs);
    this.supervisor = new Supervisor({
      clock,
      entropy: new SeededEntropy(seed + 2),
      processes: noProcesses,
      log: silentLog,
      metrics: silentMetrics,
      runDir: "/nowhere",
      adapters: new Map([["mock", adapter]]),
      restart: options.restart,
    });
    this.sessions = new Sessions({
      clock,
      metrics: silentMetrics,
      rules: { ...options.sessions, budget: unlimited },
      allowanceOf: () => null,
      onRemoved: (removed) => this.dispatcher.sessionRemoved(removed),
    });
    this.dispatcher = new parts.Dispatcher({
      clock,
      log: silentLog,
      metrics: silentMetrics,
      control: this.supervisor,
      registry: this.registry,
      archive: new TaskArchive(this.registry, store),
      store,
      ahead,
      sessions: this.sessions,
      runner: this.runner,
      pools,
      drained: options.drained ?? new Set(),
      managed: () => options.memory !== undefined,
      attemptsMax: options.attemptsMax,
      batchMaxWaitMs: options.batchMaxWaitMs,
      fair: options.fair,
      rules: {
        cutAtDeadline: options.cutAtDeadline,
        minOnTimeProbability: options.minOnTimeProbability,
      },
      onFatal: options.onFatal,
    });
    const { memory, onFatal } = options;
    const { dispatcher } = this;
    this.keeper =
      memory === undefined
        ? null
        : new parts.Keeper({
            ...{ clock, log: silentLog, metrics: silentMetrics, dispatcher, specs: pools, onFatal },
            control: this.supervisor,
            rules: memory.rules,
            needs: mockNeeds(silentLog),
            devices: () =>
              new DeviceMemory(
                {
                  configured: memory.devices,
                  gpus: { figures: () => [] },
                  host: { sample: () => null },
                },
                pools,
              ),
            retryMs: options.restart.breakerWindowMs,
          });
    if (this.keeper !== null) this.supervisor.obey(this.keeper);
    this.lending =
      this.keeper === null || memory === undefined
        ? null
        : new DeviceLending({
            ...{ clock, log: silentLog, keeper: this.keeper, store: memory.lends },
            tell: (event) => dispatcher.tell(event),
          });
    this.streams = new Streams(
      clock,
      {
        heartbeatMs: 100,
        disconnectGraceMs: options.disconnectGraceMs,
        microbatchMs: seed % 2 === 0 ? 0 : oddSeedsBatchMs,
        streamsPerKeyMax: 1e9,
      },
      (taskId, reason) => options.onUnwatched(taskId, () => this.dispatcher.cancel(taskId, reason)),
      (taskId) => this.dispatcher.noteWatched(taskId),
    );
  }

  start(): void {
    this.supervisor.start(this.options.pools, this.keeper ?? this.dispatcher);
    this.keeper?.start(this.lending?.lent ?? new Map());
    this.recovered = this.dispatcher.recover();
    for (const record of this.recovered) this.streams.expect(record);
  }

  submit(spec: TaskSpec): Promise<{ readonly record: TaskRecord }> {
    return this.dispatcher.submit(spec, { why: "simulated", fallback: false, candidates: 1 });
  }

  /** The drain is over. */
  halt(): void {
    this.dispatcher.halt();
    this.streams.suspend();
  }

  kill(): void {
    this.clock.die();
  }

  /** An orderly end. */
  async stop(): Promise<void> {
    const { clock } = this.options;
    this.dispatcher.close();
    await clock.advance(0);
    this.halt();
    await clock.advance(0);
    this.lending?.stop();
    this.keeper?.stop();
    void this.supervisor.stop();
    await clock.advance(2000);
    this.streams.close();
    this.sessions.close();
    await this.ahead.close();
    this.registry.prune(Number.MAX_SAFE_INTEGER);
  }
}

/** The virtual clock as long as its daemon lives. */
class LifeClock implements Clock {
  private dead = false;
  private readonly timers = new Set<Timer>();

  constructor(private readonly clock: VirtualClock) {}

  nowMs(): number {
    return this.clock.nowMs();
  }

  setTimer(delayMs: number, fn: () => void): Timer {
    if (this.dead) return { cancel: nothing };
    const timer = this.clock.setTimer(delayMs, () => {
      this.timers.delete(handle);
      fn();
    });
    const handle: Timer = {
      cancel: () => {
        this.timers.delete(handle);
        timer.cancel();
      },
    };
    this.timers.add(handle);
    return handle;
  }

  soon(fn: () => void): void {
    this.clock.soon(() => {
      if (!this.dead) fn();
    });
  }

  yieldTurn(): Promise<void> {
    return new Promise((resolve) => this.soon(resolve));
  }

  die(): void {
    this.dead = true;
    for (const timer of [...this.timers]) timer.cancel();
  }
}

const nothing = (): void => undefined;
/** Nobody looks: a recording one would grow with every task. */
const silentMetrics: Metrics & SessionMetrics = new Proxy({} as Metrics & SessionMetrics, {
  get: () => nothing,
});
