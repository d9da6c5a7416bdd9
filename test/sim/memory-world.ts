/**
 * Pools that share devices, in virtual time: the real dispatcher, supervisor, keeper of memory and lending over mock
 * engines, with tasks, loans, failing loads and kills drawn from one seed. The onlooker sees engines begin and end and
 * what clients are told, nothing else, shares no code with src, and says what was wrong:
 *
 *  - engines never take more of a device than it has, nor than is left once the deadline of a loan has passed;
 *  - an engine that works is not ended, but for a loan whose deadline has passed;
 *  - a pool with work is loaded within the bound that the head of src/domain/residency.ts proves (where no load fails,
 *    nothing is lent and nothing is killed);
 *  - every task that was taken ends, and ends well where its pool can be loaded.
 */
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { MockAdapter, type MockEngineClient } from "../../src/infra/engines/mock.ts";
import type { LendRecord } from "../../src/ports/pool-store.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { profile } from "../services/rig.ts";
import { MemoryJournal } from "../support/memory-journal.ts";
import { MemoryRecords } from "../support/memory-records.ts";
import { MemoryTaskStore } from "../support/memory-store.ts";
import { poolSpec } from "../support/replicas.ts";
import { SeededEntropy, VirtualClock } from "../support/virtual-clock.ts";
import { Daemon, type Parts, realParts } from "./daemon.ts";
import { Draw } from "./workload.ts";

const tokenMs = 10;
const stopGraceMs = 50;
/** Probes, the warm-up decode, the stop ladder: what a load and an unload take beside their own time. */
const slackMs = 400;
const lendDeadlineSlackMs = 400;

export interface MemoryRun {
  readonly seed: number;
  readonly violations: readonly string[];
  readonly loads: number;
  readonly swaps: number;
  readonly lends: number;
  readonly kills: number;
  readonly done: number;
  readonly unavailable: number;
  /** The longest wait of a pool with work until its engine began, as a share of the bound. */
  readonly worstShareOfBound: number;
}

interface Plan {
  readonly pools: readonly PoolSpec[];
  readonly bytes: ReadonlyMap<string, number>;
  readonly rules: { readonly swapMaxWaitMs: number; readonly swapTurnMaxMs: number };
  readonly untilMs: number;
  readonly tasks: readonly { readonly atMs: number; readonly poolId: string; readonly tokens: number }[];
  readonly lends: readonly {
    readonly atMs: number;
    readonly deviceId: string;
    readonly bytes: number | null;
    readonly deadlineMs: number;
    readonly forMs: number;
  }[];
  readonly kills: readonly number[];
  readonly loadsFail: boolean;
}

function drawPlan(draw: Draw, count: number): Plan {
  const devices = draw.chance(0.3) ? ["host", "gpu-0"] : ["host"];
  const bytes = new Map(devices.map((id) => [id, draw.int(10, 30)]));
  const loadsFail = draw.chance(0.3);
  const pools = Array.from({ length: draw.int(2, 5) }, (_, at): PoolSpec => {
    const failing = loadsFail && draw.chance(0.5);
    const faults = failing
      ? [
          {
            kind: "load_failure",
            nth: draw.chance(0.4) ? null : draw.int(1, 6),
            afterTokens: 0,
            delayMs: 0,
          } as const,
        ]
      : [];
    const loadMs = draw.int(20, 800);
    return poolSpec({
      id: `p${at}`,
      preload: draw.chance(0.2),
      idleUnloadMs: null,
      devices: devices.length === 1 || draw.chance(0.5) ? [draw.of(devices)] : devices,
      slots: draw.int(1, 3),
      replicas: draw.chance(0.2) ? 2 : 1,
      queueCapacity: 1000,
      timeouts: { loadMs: 5000, firstTokenMs: 60_000, interTokenMs: 60_000, stopGraceMs },
      mock: { tokenMs, prefillMsPerToken: 0, loadMs, memoryBytes: draw.int(2, 6), faults },
    });
  }).map((pool) => (pool.preload || draw.chance(0.5) ? pool : { ...pool, idleUnloadMs: draw.int(0, 1000) }));
  let atMs = 0;
  const gapMs = draw.of([20, 80, 250]);
  const tasks = Array.from({ length: count }, () => {
    atMs += draw.chance(0.3) ? 0 : draw.exponential(gapMs);
    return { atMs, poolId: draw.of(pools).id, tokens: draw.int(1, 25) };
  });
  // One that never rests, for as long as any bound.
  if (draw.chance(0.3))
    for (let ms = 0; ms < 25_000; ms += 90) tasks.push({ atMs: ms, poolId: "p0", tokens: 20 });
  const untilMs = Math.max(atMs, ...tasks.map((task) => task.atMs)) + 1000;
  const lends = draw.chance(0.4)
    ? devices.map((deviceId) => ({
        ...{ atMs: draw.between(0, atMs), deviceId },
        bytes: draw.chance(0.5) ? null : draw.int(1, 10),
        ...{ deadlineMs: draw.int(0, 200), forMs: draw.between(100, 3000) },
      }))
    : [];
  const kills = draw.chance(0.3) ? [draw.between(0, atMs)] : [];
  const rules = { swapMaxWaitMs: draw.of([0, 300, 1500]), swapTurnMaxMs: draw.of([0, 400, 2000]) };
  return { pools, bytes, rules, untilMs, tasks, lends, kills, loadsFail };
}

interface Engine {
  readonly pool: PoolSpec;
  running: number;
}

class Onlooker {
  readonly violations: string[] = [];
  readonly engines = new Set<Engine>();
  loads = 0;
  swaps = 0;
  worstShareOfBound = 0;
  /** By pool: since when it has work and no engine. */
  private readonly wantsSinceMs = new Map<string, number>();
  private readonly lent = new Map<string, { readonly bytes: number; readonly deadlineMs: number }>();

  constructor(
    private readonly plan: Plan,
    private readonly nowMs: () => number,
    private readonly hasWork: (poolId: string) => boolean,
  ) {}

  violation(what: string): void {
    if (this.violations.length < 20) this.violations.push(`at ${Math.round(this.nowMs())} ms: ${what}`);
  }

  opened(pool: PoolSpec): Engine {
    const engine = { pool, running: 0 };
    this.engines.add(engine);
    this.loads++;
    this.judgeWait(pool.id);
    for (const [deviceId, bytes] of this.plan.bytes) this.judgeDevice(deviceId, bytes);
    return engine;
  }

  closed(engine: Engine): void {
    if (!this.engines.delete(engine)) return;
    const { id, devices } = engine.pool;
    const mayCut = devices.some((deviceId) => {
      const loan = this.lent.get(deviceId);
      return loan !== undefined && this.nowMs() >= loan.deadlineMs;
    });
    if (engine.running > 0 && !mayCut)
      this.violation(`an engine of ${id} was ended while ${engine.running} tasks ran on it`);
    this.swaps++;
    if (this.hasWork(id) && !this.serves(id)) this.wantsSinceMs.set(id, this.nowMs());
  }

  died(engine: Engine): void {
    engine.running = 0;
    this.closed(engine);
  }

  killed(): void {
    this.engines.clear();
    this.wantsSinceMs.clear();
  }

  wanted(poolId: string): void {
    if (!this.serves(poolId) && !this.wantsSinceMs.has(poolId)) this.wantsSinceMs.set(poolId, this.nowMs());
  }

  lend(deviceId: string, bytes: number, deadlineMs: number): void {
    this.lent.set(deviceId, { bytes, deadlineMs: this.nowMs() + deadlineMs });
  }

  returned(deviceId: string): void {
    this.lent.delete(deviceId);
  }

  private serves(poolId: string): boolean {
    return [...this.engines].some(({ pool }) => pool.id === poolId);
  }

  judgeDevice(deviceId: string, bytes: number): void {
    let taken = 0;
    for (const { pool } of this.engines)
      if (pool.devices.includes(deviceId)) taken += pool.mock?.memoryBytes ?? 0;
    const loan = this.lent.get(deviceId);
    const isOver = loan !== undefined && this.nowMs() > loan.deadlineMs + lendDeadlineSlackMs;
    const has = isOver ? Math.max(0, bytes - loan.bytes) : bytes;
    if (taken > has) this.violation(`engines took ${taken} of ${deviceId}, which has ${has}`);
  }

  private judgeWait(poolId: string): void {
    const sinceMs = this.wantsSinceMs.get(poolId);
    this.wantsSinceMs.delete(poolId);
    const { pools, rules, loadsFail, lends, kills } = this.plan;
    if (sinceMs === undefined || loadsFail || lends.length > 0 || kills.length > 0) return;
    const loadMs = Math.max(...pools.map(({ mock }) => mock?.loadMs ?? 0)) + slackMs;
    const turnMs = loadMs + rules.swapTurnMaxMs + 25 * tokenMs + stopGraceMs + slackMs;
    const boundMs = rules.swapMaxWaitMs + pools.length * turnMs + loadMs;
    const waitedMs = this.nowMs() - sinceMs;
    this.worstShareOfBound = Math.max(this.worstShareOfBound, waitedMs / boundMs);
    if (waitedMs > boundMs)
      this.violation(
        `pool ${poolId} waited ${Math.round(waitedMs)} ms for its load, the bound is ${boundMs}`,
      );
  }
}

class WatchedAdapter extends MockAdapter {
  constructor(
    clock: VirtualClock,
    private readonly onlooker: Onlooker,
  ) {
    super({ clock, entropy: new SeededEntropy(1) });
  }

  override connectInProcess(pool: PoolSpec, replicaId: string): MockEngineClient {
    const client = super.connectInProcess(pool, replicaId);
    const { onlooker } = this;
    const engine = onlooker.opened(pool);
    const close = client.close.bind(client);
    const generate = client.generate.bind(client);
    client.close = () => {
      onlooker.closed(engine);
      close();
    };
    client.generate = async (...of) => {
      engine.running++;
      try {
        return await generate(...of);
      } finally {
        engine.running = Math.max(0, engine.running - 1);
      }
    };
    void client.exited.then(() => onlooker.died(engine));
    return client;
  }
}

export async function simulateMemory(seed: number, count = 60, parts: Parts = realParts): Promise<MemoryRun> {
  const draw = new Draw(new SeededEntropy(seed));
  const plan = drawPlan(draw, count);
  const clock = new VirtualClock(1_000_000);
  const live = new Map<string, TaskRecord>();
  const hasWork = (poolId: string): boolean =>
    [...live.values()].some(({ spec, finishedMs }) => spec.poolId === poolId && finishedMs === null);
  const onlooker = new Onlooker(plan, () => clock.nowMs() - 1_000_000, hasWork);
  const adapter = new WatchedAdapter(clock, onlooker);
  const lends = new MemoryRecords<LendRecord>();
  let store = new MemoryTaskStore();
  let journal = new MemoryJournal();
  const fresh = (): Daemon =>
    new Daemon({
      ...{ clock, seed, pools: plan.pools, adapter, store, journal, parts },
      ...{ batchMaxWaitMs: 60_000, attemptsMax: 3, fair: "fifo", cutAtDeadline: false },
      ...{ minOnTimeProbability: 0, retentionMs: 1e9, disconnectGraceMs: 1000, metricsEveryMs: 1000 },
      sessions: { ttlMs: 600_000, turnsMax: 8 },
      restart: { backoffMs: 20, backoffMaxMs: 200, breakerFailures: 3, breakerWindowMs: 1500 },
      memory: {
        devices: [...plan.bytes].map(([id, memoryBytes]) => ({ id, memoryBytes, reserveBytes: null })),
        ...{ rules: plan.rules, lends },
      },
      onFatal: (error) =>
        onlooker.violation(`a turn broke: ${error instanceof Error ? error.stack : String(error)}`),
      onUnwatched: () => undefined,
    });
  let daemon = fresh();
  daemon.start();
  let kills = 0;
  for (const { atMs, poolId, tokens } of plan.tasks)
    clock.setTimer(atMs, () => {
      const to = daemon;
      onlooker.wanted(poolId);
      to.submit(specOf(draw.entropy.uuid(), poolId, tokens)).then(
        ({ record }) => {
          if (daemon === to) live.set(record.spec.taskId, record);
        },
        () => undefined,
      );
    });
  for (const { atMs, deviceId, bytes, deadlineMs, forMs } of plan.lends) {
    const has = plan.bytes.get(deviceId) ?? 0;
    clock.setTimer(atMs, () => {
      daemon.lending?.lend(deviceId, bytes, deadlineMs);
      onlooker.lend(deviceId, bytes ?? has, deadlineMs);
    });
    clock.setTimer(atMs + deadlineMs + lendDeadlineSlackMs + 50, () => onlooker.judgeDevice(deviceId, has));
    clock.setTimer(atMs + forMs, () => {
      onlooker.returned(deviceId);
      daemon.lending?.giveBack(deviceId);
    });
  }
  for (const atMs of plan.kills)
    clock.setTimer(atMs, () => {
      kills++;
      daemon.kill();
      onlooker.killed();
      store = store.reopen("kill");
      journal = journal.reopen();
      daemon = fresh();
      daemon.start();
      live.clear();
      for (const record of daemon.recovered) live.set(record.spec.taskId, record);
    });
  await clock.advance(plan.untilMs);
  await clock.advance(120_000);
  let done = 0;
  let unavailable = 0;
  for (const { spec, state, error } of live.values()) {
    if (state === "done") done++;
    else if (error?.code === "POOL_UNAVAILABLE" && plan.loadsFail) unavailable++;
    else onlooker.violation(`a task of ${spec.poolId} is ${state}: ${error?.code ?? "no error"}`);
  }
  await daemon.stop();
  if (clock.pendingTimers > 0) onlooker.violation(`${clock.pendingTimers} timers are left at the end`);
  const { violations, loads, swaps, worstShareOfBound } = onlooker;
  return {
    ...{ seed, violations, loads, swaps, lends: plan.lends.length, kills, done, unavailable },
    worstShareOfBound,
  };
}

const specOf = (taskId: string, poolId: string, maxTokens: number): TaskSpec => ({
  ...{ taskId, poolId, maxTokens, keyId: "k", correlationId: "c", sessionId: null, workload: "completion" },
  input: { kind: "prompt", prompt: taskId },
  ...{ engine: "mock", pinned: false, modelRef: "mock:words", priority: "interactive", seed: 1 },
  ...{ determinism: "best_effort", samplerProfileVersion: "v1", sampling: profile, ctx: 4096 },
  ...{ deadlineMs: null, expectedTokens: null, budget: null, kvHint: "reuse", onDisconnect: "continue" },
  ...{ metadata: {}, tokensIn: 5, tokensInExact: true, renderedPrompt: null, bodyDigest: "" },
});
