/** Looking at pools: what is told of replicas, queues and speeds, and that looking changes nothing. */
import { describe, expect, test } from "bun:test";
import type { PredictionScores } from "../../src/domain/calibration.ts";
import { isOrchestratorError } from "../../src/domain/errors.ts";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { ReloadView } from "../../src/services/pool-reload.ts";
import { type GpuView, Pools, type QueueView, type SpeedView } from "../../src/services/pools.ts";
import { failure, identity, poolSpec, ShownReplicas, snapshot } from "../support/replicas.ts";

const queues = (busy: Record<string, number> = {}): QueueView => ({
  depth: (poolId) =>
    poolId === "chat"
      ? { interactive: 2, batch: 3, capacity: 16 }
      : { interactive: 0, batch: 0, capacity: 16 },
  slotsBusy: (replicaId) => busy[replicaId] ?? 0,
});
const unscored: PredictionScores = {
  startsScored: 0,
  intervalCoverage: null,
  deadlinesScored: 0,
  brierScore: null,
  baseRateBrierScore: null,
};
const scored: PredictionScores = {
  startsScored: 10,
  intervalCoverage: 0.8,
  deadlinesScored: 4,
  brierScore: 0.1,
  baseRateBrierScore: 0.25,
};
const prediction = { basis: "learned", interactive: scored, batch: unscored } as const;
const unknown = { basis: "assumed", interactive: unscored, batch: unscored } as const;
const speeds: SpeedView = {
  prediction: (poolId) => (poolId === "chat" ? prediction : unknown),
  speed: (poolId) =>
    poolId === "chat" ? { prefillTps: 900, decodeTps: 42.5 } : { prefillTps: null, decodeTps: null },
  totals: (poolId) =>
    poolId === "chat" ? { done: 7, failed: 1, tokensOut: 700 } : { done: 0, failed: 0, tokensOut: 0 },
};
const specs: PoolSpec[] = [
  poolSpec({ id: "chat", replicas: 2 }),
  poolSpec({ id: "embed", engine: "llamacpp", modelRef: "file:/m/e.gguf", workloads: ["embedding"] }),
];
const ready = snapshot({
  replicaId: "chat-0",
  state: "busy",
  pid: 4711,
  identity: identity({ slots: 4, ctxPerSlot: 1000 }),
});
const backingOff = snapshot({
  replicaId: "chat-1",
  state: "backoff",
  restarts: 3,
  lastError: failure({ cause: "out_of_host_memory", signal: "SIGKILL", exitCode: null, atMs: 5 }),
});

function poolsShowing(control = new ShownReplicas().show("chat", ready, backingOff)) {
  return new Pools({ pools: specs, control, queues: queues({ "chat-0": 3 }), speeds });
}

describe("the list", () => {
  test("has every pool in the order of the configuration", () => {
    expect(poolsShowing().list()).toEqual([
      {
        id: "chat",
        engine: "mock",
        engineVersion: "mock-1",
        modelRef: "mock:words",
        state: "ready",
        ready: true,
        residence: null,
        replicas: 2,
        slotsTotal: 4,
        slotsBusy: 3,
        queue: { interactive: 2, batch: 3, capacity: 16 },
      },
      {
        id: "embed",
        engine: "llamacpp",
        engineVersion: null,
        modelRef: "file:/m/e.gguf",
        state: "stopped",
        ready: false,
        residence: null,
        replicas: 1,
        slotsTotal: 0,
        slotsBusy: 0,
        queue: { interactive: 0, batch: 0, capacity: 16 },
      },
    ]);
  });

  test("of no pools is empty", () => {
    expect(new Pools({ pools: [], control: new ShownReplicas(), queues: queues(), speeds }).list()).toEqual(
      [],
    );
  });
});

describe("the health of a pool", () => {
  test("tells each replica, the queue, the speed and the newest failure", () => {
    expect(poolsShowing().health("chat")).toEqual({
      id: "chat",
      engine: "mock",
      engineVersion: "mock-1",
      modelRef: "mock:words",
      state: "ready",
      live: true,
      ready: true,
      draining: false,
      residence: null,
      replicas: [
        {
          id: "chat-0",
          state: "busy",
          pid: 4711,
          slotsTotal: 4,
          slotsBusy: 3,
          restarts: 0,
          lastError: null,
          devices: [],
          vramUsedBytes: null,
        },
        {
          id: "chat-1",
          state: "backoff",
          pid: null,
          slotsTotal: 4,
          slotsBusy: 0,
          restarts: 3,
          lastError: backingOff.lastError,
          devices: [],
          vramUsedBytes: null,
        },
      ],
      queue: { interactive: 2, batch: 3, capacity: 16 },
      metrics: { decodeTps: 42.5, prefillTps: 900, tasksDone: 7, tasksFailed: 1, tokensOut: 700, prediction },
      lastError: backingOff.lastError,
      drain: null,
      reload: null,
    });
  });

  test("tells a drain, and is not ready while it lasts, whatever its engines are", () => {
    const drain = { sinceMs: 5, deadlineMs: 1005, running: 3, state: "draining" } as const;
    const control = new ShownReplicas().show("chat", ready);
    const drainOf = (poolId: string) => (poolId === "chat" ? drain : null);
    const pools = new Pools({ pools: specs, control, queues: queues(), speeds, drainOf });
    expect(pools.health("chat")).toMatchObject({ state: "ready", ready: false, draining: true, drain });
    expect(pools.list().map(({ id, ready: isReady }) => [id, isReady])).toEqual([
      ["chat", false],
      ["embed", false],
    ]);
    const gauges = pools.gauges({ tokensInUse: () => null });
    expect(gauges.map((g) => [g.poolId, g.ready, g.draining])).toEqual([
      ["chat", false, true],
      ["embed", false, false],
    ]);
  });

  test("is not ready while a reload lets nothing start, and ready beside a surge (ORCHD-RELOAD-1)", () => {
    const control = new ShownReplicas().show("chat", ready);
    const view: ReloadView = {
      ...{ phase: "draining", strategy: "recreate", modelRef: "mock:other", sinceMs: 5 },
      ...{ replicasReady: 0, replicas: 1, running: 3, held: true, problem: null },
    };
    const healthWith = (reload: ReloadView) =>
      new Pools({ pools: specs, control, queues: queues(), speeds, reloadOf: () => reload }).health("chat");
    expect(healthWith(view)).toMatchObject({ state: "ready", ready: false, draining: true, drain: null });
    const surge = { ...view, strategy: "surge", held: false } as const;
    expect(healthWith(surge)).toMatchObject({ state: "ready", ready: true, draining: false });
  });

  test("changes with the replicas, for nothing is kept", () => {
    const control = new ShownReplicas().show("chat", backingOff);
    const pools = poolsShowing(control);
    expect(pools.health("chat")).toMatchObject({ state: "restarting", ready: false, live: true });
    control.show("chat", { ...backingOff, state: "circuit_open" });
    expect(pools.health("chat")).toMatchObject({ state: "unavailable", ready: false, live: false });
    control.show("chat", { ...ready, state: "draining" });
    expect(pools.health("chat")).toMatchObject({ state: "stopped", ready: false, draining: true });
  });
});

describe("a pool that is not there", () => {
  const refusal = (look: () => unknown) => {
    try {
      look();
    } catch (error) {
      if (isOrchestratorError(error)) return error;
      throw error;
    }
    throw new Error("nothing was thrown");
  };

  test("is NOT_FOUND, with the one that was probably meant", () => {
    for (const look of [() => poolsShowing().get("chta"), () => poolsShowing().health("chta")]) {
      const error = refusal(look);
      expect(error.code).toBe("NOT_FOUND");
      expect(error.message).toContain('the nearest one is "chat"');
    }
    expect(refusal(() => poolsShowing().get("embedding")).message).toContain('"embed"');
  });

  test("is NOT_FOUND where there is none at all", () => {
    const none = new Pools({ pools: [], control: new ShownReplicas(), queues: queues(), speeds });
    expect(refusal(() => none.get("chat")).message).toContain("no pool is configured");
  });

  test("is not mistaken for a property of objects", () => {
    expect(refusal(() => poolsShowing().get("constructor")).code).toBe("NOT_FOUND");
  });
});

test("get gives the pool as configured", () => {
  expect(poolsShowing().get("chat")).toBe(specs[0] as PoolSpec);
});

test("two pools of one id are a mistake of ours", () => {
  const twice = [poolSpec(), poolSpec()];
  expect(() => new Pools({ pools: twice, control: new ShownReplicas(), queues: queues(), speeds })).toThrow(
    "pool ids are unique",
  );
});

describe("graphics cards", () => {
  const card = { id: "nvidia0", vendor: "nvidia", model: null, uuid: null, driverVersion: null } as const;
  const sample = {
    deviceId: "nvidia0",
    state: "ok",
    utilization: 0.5,
    memory: null,
    powerWatts: null,
    temperatureCelsius: null,
    eccErrors: null,
    processes: null,
    failed: [],
  } as const;
  const figures = [{ device: card, sample, failures: 3, replicas: [{ replica: ready, usedBytes: 123 }] }];
  const gpus: GpuView = {
    figures: () => figures,
    vramUsedBytes: (replicaId) => (replicaId === "chat-0" ? 123 : null),
  };
  const watched = new Pools({
    pools: specs,
    control: new ShownReplicas().show("chat", ready, backingOff),
    queues: queues(),
    speeds,
    gpus,
  });

  test("show in the health of a pool what each replica takes of them, where that is told", () => {
    expect(watched.health("chat").replicas.map(({ id, vramUsedBytes }) => [id, vramUsedBytes])).toEqual([
      ["chat-0", 123],
      ["chat-1", null],
    ]);
  });

  test("have gauges that name pool and engine of who computes on them", () => {
    const replica = { engine: "mock", engineVersion: "mock-1", poolId: "chat", replicaId: "chat-0" } as const;
    expect(watched.gpuGauges()).toEqual([
      { device: card, sample, failures: 3, replicas: [{ ...replica, usedBytes: 123 }] },
    ]);
    expect(poolsShowing().gpuGauges()).toEqual([]);
  });
});

describe("the gauges for /metrics", () => {
  test("derive the use of the KV cache from tokens, slots and context, and only where all are known", () => {
    const known = poolsShowing().gauges({ tokensInUse: () => 1000 });
    expect(known).toEqual([
      {
        poolId: "chat",
        engine: "mock",
        engineVersion: "mock-1",
        ready: true,
        draining: false,
        queue: { interactive: 2, batch: 3 },
        prediction,
        replicas: [
          { replicaId: "chat-0", kvTokens: { used: 1000, total: 4000 } },
          { replicaId: "chat-1", kvTokens: null },
        ],
      },
      {
        poolId: "embed",
        engine: "llamacpp",
        engineVersion: null,
        ready: false,
        draining: false,
        queue: { interactive: 0, batch: 0 },
        prediction: unknown,
        replicas: [],
      },
    ]);
    const untold = poolsShowing().gauges({ tokensInUse: () => null });
    expect(untold[0]?.replicas.map((r) => r.kvTokens)).toEqual([null, null]);
  });
});
