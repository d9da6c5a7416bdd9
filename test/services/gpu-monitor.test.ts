/** Sampling while somebody wants it, what is whose, and what placement is told; over fake cards and a virtual clock. */
import { beforeEach, describe, expect, test } from "bun:test";
import { limits } from "../../src/domain/limits.ts";
import type { ReplicaSnapshot } from "../../src/domain/pool.ts";
import type { GpuDevice, GpuProcess, GpuSample, GpuTelemetry } from "../../src/ports/gpu.ts";
import { GpuMonitor } from "../../src/services/gpu-monitor.ts";
import { snapshot } from "../support/replicas.ts";
import { RecordingLog } from "../support/test-app.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

const GiB = 2 ** 30;

/** A virtual clock on which a call can take time. */
class SlowClock extends VirtualClock {
  #takenMs = 0;
  override nowMs(): number {
    return super.nowMs() + this.#takenMs;
  }
  take(ms: number): void {
    this.#takenMs += ms;
  }
}

/** Cards that do what the test says. */
class FakeCards implements GpuTelemetry {
  readonly now = new Map<string, GpuSample>();
  sampled = 0;
  reopened = 0;
  closed = false;
  /** Milliseconds of the virtual clock that a sample takes. */
  costMs = 0;

  constructor(
    private readonly clock: SlowClock,
    private readonly cards: readonly GpuDevice[],
  ) {
    for (const { id } of cards) this.set(id, {});
  }
  set(deviceId: string, more: Partial<GpuSample>): void {
    this.now.set(deviceId, {
      deviceId,
      state: "ok",
      utilization: 0.5,
      memory: { usedBytes: 6 * GiB, freeBytes: 10 * GiB, totalBytes: 16 * GiB },
      powerWatts: 100,
      temperatureCelsius: 50,
      eccErrors: null,
      processes: [],
      failed: [],
      ...more,
    });
  }
  computes(deviceId: string, freeBytes: number, ...processes: GpuProcess[]): void {
    this.set(deviceId, {
      processes,
      memory: { usedBytes: 16 * GiB - freeBytes, freeBytes, totalBytes: 16 * GiB },
    });
  }
  devices(): readonly GpuDevice[] {
    return this.closed ? [] : this.cards;
  }
  sample(): readonly GpuSample[] {
    this.sampled += 1;
    this.clock.take(this.costMs);
    return [...this.now.values()];
  }
  reopen(): void {
    this.reopened += 1;
  }
  close(): void {
    this.closed = true;
  }
}

const device = (id: string): GpuDevice => ({
  id,
  vendor: "nvidia",
  model: "Big",
  uuid: `GPU-${id}`,
  driverVersion: "580",
});
const ready = (
  poolId: string,
  at: number,
  pid: number,
  more: Partial<ReplicaSnapshot> = {},
): ReplicaSnapshot => snapshot({ replicaId: `${poolId}-${at}`, poolId, state: "ready", pid, ...more });

let clock: SlowClock;
let cards: FakeCards;
let log: RecordingLog;
let replicas: ReplicaSnapshot[];
let groups: Map<number, number>;
let told: string[];

beforeEach(() => {
  clock = new SlowClock();
  cards = new FakeCards(clock, [device("nvidia0"), device("nvidia1")]);
  log = new RecordingLog();
  replicas = [];
  groups = new Map();
  told = [];
});

function started(telemetries: readonly GpuTelemetry[] = [cards]): GpuMonitor {
  const monitor = new GpuMonitor({
    clock,
    log,
    telemetries,
    replicas: () => replicas,
    groupOf: (pid) => groups.get(pid) ?? null,
    measured: ({ replicaId, incarnation }, free) =>
      told.push(`${replicaId}.${incarnation} ${free === null ? "unknown" : free / GiB}`),
  });
  monitor.start();
  return monitor;
}
const events = () => log.lines.map(({ level, event }) => `${level} ${event}`);
const periods = (count: number) => clock.advance(limits.gpuSampleMs * count);

describe("sampling", () => {
  test("without a card costs nothing: no timer, no figure, no line", async () => {
    const monitor = started([new FakeCards(clock, [])]);
    expect(clock.pendingTimers).toBe(0);
    expect(monitor.figures()).toEqual([]);
    expect(monitor.vramUsedBytes("chat-0")).toBeNull();
    expect(log.lines).toEqual([]);
  });

  test("goes on while somebody reads, and stops when nobody has for a while", async () => {
    const monitor = started();
    expect(events()).toEqual(["info gpu_found", "info gpu_found"]);
    await periods(10);
    expect(cards.sampled).toBe(0);
    expect(monitor.figures()).toHaveLength(2);
    monitor.figures();
    expect(cards.sampled).toBe(1);
    await periods(3);
    expect(cards.sampled).toBeGreaterThanOrEqual(3);
    await clock.advance(limits.gpuReadMs);
    const before = cards.sampled;
    await periods(20);
    expect(cards.sampled).toBe(before);
    monitor.stop();
    expect(clock.pendingTimers).toBe(0);
    expect(cards.closed).toBe(true);
    expect(monitor.figures()).toEqual([]);
  });

  test("goes on while a pool has replicas to choose from", async () => {
    replicas = [ready("chat", 0, 10), ready("other", 0, 12), ready("chat", 1, 11, { state: "loading" })];
    const monitor = started();
    await periods(3);
    expect(cards.sampled).toBe(0);
    replicas[2] = ready("chat", 1, 11, { state: "busy" });
    await periods(3);
    expect(cards.sampled).toBe(3);
    monitor.stop();
  });

  test("that is slow is done less often: it takes its share of the event loop and no more", async () => {
    cards.costMs = 50;
    const monitor = started();
    monitor.figures();
    const beganMs = clock.nowMs();
    while (clock.nowMs() - beganMs < 600_000) {
      await clock.advance(1_000);
      monitor.figures();
    }
    expect(cards.sampled * cards.costMs).toBeLessThanOrEqual(700_000 / limits.gpuCostFactor);
    expect(cards.sampled).toBeGreaterThan(30);
    monitor.stop();
  });

  test("is never so rare that a figure is older than the longest period", async () => {
    cards.costMs = 5_000;
    const monitor = started();
    monitor.figures();
    await clock.advance(limits.gpuSampleMsMax);
    monitor.figures();
    expect(cards.sampled).toBeGreaterThanOrEqual(2);
    monitor.stop();
  });
});

describe("memory of a replica", () => {
  test("is that of its processes on all cards; other people's is nobody's", () => {
    replicas = [ready("chat", 0, 10), ready("chat", 1, 20), ready("idle", 0, 30)];
    // A wrapper started the engine that computes: 11 is in the group of 10. 99 is a stranger's.
    groups = new Map([
      [11, 10],
      [99, 98],
    ]);
    const of = (pid: number, usedBytes: number | null) => ({ pid, usedBytes });
    cards.computes("nvidia0", 4 * GiB, of(11, 3 * GiB), of(20, GiB), of(99, 2 * GiB), of(77, GiB));
    cards.computes("nvidia1", 9 * GiB, of(11, 2 * GiB));
    const monitor = started();
    expect(monitor.vramUsedBytes("chat-0")).toBe(5 * GiB);
    expect(monitor.vramUsedBytes("chat-1")).toBe(GiB);
    expect(monitor.vramUsedBytes("idle-0")).toBeNull();
    const shares = monitor.figures().map((gpu) => gpu.replicas.map(({ replica }) => replica.replicaId));
    expect(shares).toEqual([["chat-0", "chat-1"], ["chat-0"]]);
    monitor.stop();
  });

  test("that the driver does not tell is unknown, and not the rest of it", () => {
    replicas = [ready("chat", 0, 10)];
    cards.computes("nvidia0", 4 * GiB, { pid: 10, usedBytes: null });
    cards.computes("nvidia1", 4 * GiB, { pid: 10, usedBytes: GiB });
    const monitor = started();
    expect(monitor.vramUsedBytes("chat-0")).toBeNull();
    monitor.stop();
  });
});

describe("placement", () => {
  const mine = (pid: number) => ({ pid, usedBytes: GiB });

  test("is told what is free where a replica runs: on several cards, the least", async () => {
    replicas = [ready("chat", 0, 10), ready("chat", 1, 20), ready("chat", 2, 30, { state: "loading" })];
    cards.computes("nvidia0", 4 * GiB, mine(10), mine(30));
    cards.computes("nvidia1", 9 * GiB, mine(10), mine(20));
    const monitor = started();
    await periods(2);
    expect(told).toEqual(["chat-0.1 4", "chat-1.1 9"]);
    monitor.stop();
  });

  test("is told again when it changes by a step, and when the engine is another", async () => {
    replicas = [ready("chat", 0, 10), ready("chat", 1, 20)];
    cards.computes("nvidia0", 8 * GiB, mine(10));
    const monitor = started();
    await periods(1);
    cards.computes("nvidia0", 8 * GiB + limits.gpuFreeStepBytes - 1, mine(10));
    await periods(1);
    expect(told.splice(0)).toEqual(["chat-0.1 8"]);
    cards.computes("nvidia0", 6 * GiB, mine(10));
    await periods(1);
    expect(told.splice(0)).toEqual(["chat-0.1 6"]);
    replicas[0] = ready("chat", 0, 12, { incarnation: 2 });
    cards.computes("nvidia0", 6 * GiB, mine(12));
    await periods(2);
    expect(told.splice(0)).toEqual(["chat-0.2 6"]);
    cards.set("nvidia0", { state: "lost", memory: null, processes: null });
    await periods(2);
    expect(told).toEqual(["chat-0.2 unknown"]);
    monitor.stop();
  });
});

describe("a card that fails", () => {
  test("is told once, counted each time, and told when it is back", async () => {
    const monitor = started();
    log.lines.length = 0;
    cards.set("nvidia0", { failed: ["nvmlDeviceGetPowerUsage 999"], powerWatts: null });
    monitor.figures();
    await periods(2);
    expect(events()).toEqual(["warn gpu_read_failed"]);
    expect(monitor.figures().map(({ failures }) => failures)).toEqual([3, 0]);
    cards.set("nvidia0", { state: "lost", memory: null });
    await periods(1);
    cards.set("nvidia0", {});
    await periods(1);
    expect(events()).toEqual(["warn gpu_read_failed", "warn gpu_state_changed", "info gpu_state_changed"]);
    expect(monitor.figures().map(({ failures }) => failures)).toEqual([4, 0]);
    monitor.stop();
  });

  test("is looked for anew once a minute while it is lost, and not otherwise", async () => {
    const monitor = started();
    const read = async (ms: number) => {
      for (let at = 0; at < ms; at += limits.gpuSampleMs) {
        monitor.figures();
        await periods(1);
      }
    };
    await read(3 * limits.gpuReopenMs);
    expect(cards.reopened).toBe(0);
    cards.set("nvidia1", { state: "lost", memory: null });
    await read(3 * limits.gpuReopenMs);
    expect(cards.reopened).toBeGreaterThanOrEqual(2);
    expect(cards.reopened).toBeLessThanOrEqual(3);
    cards.set("nvidia1", {});
    await periods(1);
    const before = cards.reopened;
    await read(3 * limits.gpuReopenMs);
    expect(cards.reopened).toBe(before);
    monitor.stop();
  });
});
