/** The supervisor over a virtual clock, scripted processes and a scripted engine. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { OrchestratorError } from "../../src/domain/errors.ts";
import { limits } from "../../src/domain/limits.ts";
import type { PoolSpec } from "../../src/domain/pool.ts";
import { Supervisor } from "../../src/services/supervisor.ts";
import {
  FakeAdapter,
  FakeProcessHost,
  RecordingListener,
  RecordingLog,
  RestartMetrics,
} from "../support/fakes-supervisor.ts";
import { poolSpec } from "../support/replicas.ts";
import { SeededEntropy, VirtualClock } from "../support/virtual-clock.ts";

const runDir = "/run/orchestratord";
const timeouts = { loadMs: 10_000, firstTokenMs: 1000, interTokenMs: 1000, stopGraceMs: 5_000 };
const spawned = (more: Partial<PoolSpec> = {}): PoolSpec =>
  poolSpec({ id: "chat", engine: "llamacpp", modelPath: "/m.gguf", engineBin: "/bin/e", timeouts, ...more });
const inside = (more: Partial<PoolSpec> = {}): PoolSpec =>
  poolSpec({ id: "demo", engine: "mock", timeouts, ...more });

let clock: VirtualClock;
let processes: FakeProcessHost;
let llama: FakeAdapter;
let mock: FakeAdapter;
let listener: RecordingListener;
let log: RecordingLog;
let metrics: RestartMetrics;
let supervisor: Supervisor;
/** Why the catalog lets no file be loaded. */
let distrust: string | null;

beforeEach(() => {
  clock = new VirtualClock();
  processes = new FakeProcessHost();
  llama = new FakeAdapter("llamacpp");
  mock = new FakeAdapter("mock");
  listener = new RecordingListener();
  log = new RecordingLog();
  metrics = new RestartMetrics();
  distrust = null;
  const gate = (): void => {
    if (distrust !== null) throw new OrchestratorError("POOL_UNAVAILABLE", distrust);
  };
  supervisor = new Supervisor({
    clock,
    entropy: new SeededEntropy(7),
    processes,
    adapters: new Map([
      ["llamacpp", llama],
      ["mock", mock],
    ]),
    log,
    metrics: metrics.asMetrics(),
    runDir,
    models: { gate, prepare: () => null },
    restart: { backoffMs: 250, backoffMaxMs: 30_000, breakerFailures: 3, breakerWindowMs: 60_000 },
  });
});

/** Whatever a test did: a stop ends everything, and nothing is left behind. */
afterEach(async () => {
  const stopped = supervisor.stop();
  await clock.runUntilIdle();
  await stopped;
  expect(clock.pendingTimers).toBe(0);
  expect(processes.alive).toEqual([]);
  expect(processes.remembered.size).toBe(0);
  expect([...processes.files]).toEqual([]);
});

const begin = async (...pools: PoolSpec[]): Promise<void> => {
  supervisor.start(pools, listener);
  await clock.advance(0);
};
const stateOf = (poolId: string, at = 0): string | undefined => supervisor.snapshots(poolId)[at]?.state;

describe("starting", () => {
  test("a preloaded pool becomes ready; its key is gone then, its process remembered", async () => {
    llama.behaviour.health = "loading";
    await begin(spawned({ replicas: 2 }));
    expect(processes.started.length).toBe(2);
    expect(processes.last.request).toMatchObject({ command: ["engine", "-m", "mock:words"], cwd: runDir });
    expect(processes.files.get(`${runDir}/chat-0.key`)).toBe("key-1");
    expect(processes.remembered).toEqual(
      new Map([
        [100, "chat-0"],
        [101, "chat-1"],
      ]),
    );
    expect(listener.ready).toEqual([]);
    llama.behaviour.health = "ok";
    await clock.advance(50);
    expect(listener.ready.map(({ snapshot }) => snapshot.replicaId)).toEqual(["chat-0", "chat-1"]);
    expect(listener.ready[0]?.snapshot).toMatchObject({
      state: "ready",
      incarnation: 1,
      pid: 100,
      slotsTotal: 2,
    });
    expect(listener.ready[0]?.client).toBe(llama.clients[0] as never);
    expect(processes.files.size).toBe(0);
    expect(log.states("chat-0")).toEqual(["starting", "loading", "warming", "ready"]);
  });

  test("a pool without preload starts when it is first needed, once", async () => {
    await begin(spawned({ preload: false }));
    expect(stateOf("chat")).toBe("stopped");
    supervisor.ensurePool("chat");
    supervisor.ensurePool("chat");
    await clock.advance(0);
    supervisor.ensurePool("chat");
    expect(stateOf("chat")).toBe("ready");
    expect(processes.started.length).toBe(1);
  });

  test("the engine's own word that it listens saves the wait for the next probe", async () => {
    llama.behaviour.health = "unreachable";
    await begin(spawned());
    await clock.advance(20);
    llama.behaviour.health = "ok";
    processes.last.says("srv  llama_server: listening on unix:///x.sock");
    await clock.advance(0);
    expect(stateOf("chat")).toBe("ready");
    expect(llama.last.lines).toEqual(["srv  llama_server: listening on unix:///x.sock"]);
  });

  test("health alone is not enough: no decode, no readiness", async () => {
    llama.behaviour.warmUp = "silent";
    await begin(spawned());
    await clock.advance(9_999);
    expect(stateOf("chat")).toBe("warming");
    expect(listener.ready).toEqual([]);
    await clock.advance(1);
    expect(supervisor.snapshots("chat")[0]?.lastError?.cause).toBe("load_timeout");
    expect(processes.started[0]?.signals).toEqual(["SIGKILL"]);
    expect(listener.lost).toEqual([]);
  });

  test("a first decode that fails is a failed start", async () => {
    llama.behaviour.warmUp = "fails";
    await begin(spawned());
    expect(supervisor.snapshots("chat")[0]).toMatchObject({ state: "backoff", pid: null });
    expect(supervisor.snapshots("chat")[0]?.lastError).toMatchObject({
      cause: "warm_up_failed",
      message: "its first decode failed: an empty answer",
    });
  });

  test("probes that get no answer are given up one by one, and the load timeout ends them", async () => {
    llama.behaviour.health = "silent";
    await begin(spawned());
    await clock.advance(9_000);
    expect(llama.last.healthCalls).toBe(5);
    await clock.advance(1_000);
    expect(supervisor.snapshots("chat")[0]?.lastError?.cause).toBe("load_timeout");
  });

  test("a disk that cannot remember the process does not keep it from serving", async () => {
    processes.diskFull = true;
    await begin(spawned());
    expect(stateOf("chat")).toBe("ready");
    expect(log.lines.some(({ event }) => event === "engine_not_remembered")).toBe(true);
  });

  test("a mistake in an adapter is not swallowed", () => {
    const broken = new FakeAdapter("llamacpp");
    broken.plan = () => {
      throw new TypeError("a bug");
    };
    const other = new Supervisor({
      clock,
      entropy: new SeededEntropy(1),
      processes,
      adapters: new Map([["llamacpp", broken]]),
      log,
      metrics: metrics.asMetrics(),
      runDir,
      restart: { backoffMs: 250, backoffMaxMs: 30_000, breakerFailures: 3, breakerWindowMs: 60_000 },
    });
    expect(() => other.start([spawned()], listener)).toThrow("a bug");
  });
});

describe("restarting", () => {
  test("a crash is told, and the replica comes back after its backoff with a new incarnation and key", async () => {
    await begin(spawned());
    processes.last.says("llama.cpp:1: GGML_ASSERT(x) failed");
    processes.last.exit({ code: null, signal: "SIGABRT" });
    await clock.advance(0);
    expect(listener.lost).toHaveLength(1);
    expect(listener.lost[0]).toMatchObject({ replicaId: "chat-0", incarnation: 1 });
    expect(listener.lost[0]?.failure).toMatchObject({ cause: "crashed", signal: "SIGABRT" });
    expect(listener.lost[0]?.failure?.logTail).toEqual(["llama.cpp:1: GGML_ASSERT(x) failed"]);
    expect(llama.clients[0]?.closed).toBe(true);
    expect(stateOf("chat")).toBe("backoff");
    await clock.advance(250);
    expect(supervisor.snapshots("chat")[0]).toMatchObject({ state: "ready", incarnation: 2, restarts: 1 });
    expect(llama.plans).toBe(2);
    expect(metrics.restarts).toEqual([{ poolId: "chat", replicaId: "chat-0", cause: "crashed" }]);
  });

  test("speed is measured at the first start; later ones only show that it decodes, and tell the same speed", async () => {
    await begin(spawned());
    expect(llama.last.brief).toBe(false);
    processes.last.exit({ code: null, signal: "SIGABRT" });
    await clock.advance(250);
    expect(stateOf("chat")).toBe("ready");
    expect(llama.clients).toHaveLength(2);
    expect(llama.last.brief).toBe(true);
    const [first, second] = listener.ready.map(({ speed }) => speed);
    expect(second).toEqual(first as never);
  });

  test("a first start that did not decode measured nothing: the next one does", async () => {
    llama.behaviour.warmUp = "fails";
    await begin(spawned());
    llama.behaviour.warmUp = "ok";
    await clock.advance(250);
    expect(stateOf("chat")).toBe("ready");
    expect(llama.last.brief).toBe(false);
  });

  test("the log outlives the restart, but does not explain the next failure", async () => {
    await begin(spawned());
    processes.last.says("std::bad_alloc");
    processes.last.exit({ code: null, signal: "SIGABRT" });
    await clock.advance(250);
    processes.last.says("fine");
    processes.last.exit({ code: null, signal: "SIGSEGV" });
    await clock.advance(0);
    expect(listener.lost.map(({ failure }) => failure?.cause)).toEqual(["out_of_host_memory", "crashed"]);
    expect(supervisor.logTail("chat-0")).toEqual(["std::bad_alloc", "fine"]);
  });

  test("decoded tokens keep the backoff at its first step", async () => {
    await begin(spawned());
    for (let incarnation = 1; incarnation <= 6; incarnation += 1) {
      supervisor.noteProgress("chat-0", incarnation);
      processes.last.exit({ code: null, signal: "SIGSEGV" });
      await clock.advance(250);
      expect(stateOf("chat")).toBe("ready");
    }
    for (let incarnation = 7; incarnation <= 9; incarnation += 1) {
      processes.last.exit({ code: null, signal: "SIGSEGV" });
      await clock.advance(250);
    }
    expect(stateOf("chat")).toBe("backoff");
  });

  test("a restart storm opens the circuit: told once every replica of the pool is there", async () => {
    llama.behaviour.health = "unreachable";
    await begin(spawned({ replicas: 2 }));
    const [first, second] = processes.started;
    for (let n = 0; n < 3; n += 1) {
      processes.started
        .findLast((process) => process.alive && process !== second)
        ?.exit({ code: 1, signal: null });
      await clock.advance(1_000);
    }
    expect(first?.alive).toBe(false);
    expect([stateOf("chat", 0), stateOf("chat", 1)]).toEqual(["circuit_open", "loading"]);
    expect(listener.unavailable).toEqual([]);
    second?.says("error: invalid argument: --x");
    second?.exit({ code: 1, signal: null });
    await clock.advance(0);
    expect(listener.unavailable).toHaveLength(1);
    expect(listener.unavailable[0]?.failure.cause).toBe("bad_flag");
    const starts = processes.started.length;
    await clock.advance(30_000);
    expect(processes.started.length).toBe(starts);
    llama.behaviour.health = "ok";
    await clock.advance(30_000);
    expect([stateOf("chat", 0), stateOf("chat", 1)]).toEqual(["ready", "circuit_open"]);
    processes.outside = "another build of the engine";
    await clock.advance(2 * limits.changeLookMs);
    expect([stateOf("chat", 0), stateOf("chat", 1)]).toEqual(["ready", "ready"]);
  });

  test("a missing program opens the circuit at once; it is tried again once it is there, whole (ORCHD-POOL-6)", async () => {
    processes.refusal = "cannot start engine: not found (ENOENT)";
    await begin(spawned({ engineBin: "/opt/engine", args: ["--lora=/m/a.gguf", "-fa", "on"] }));
    expect(listener.unavailable[0]?.failure).toMatchObject({ cause: "spawn_failed" });
    expect(processes.stamped.at(-1)).toEqual(["/opt/engine", "/m.gguf", "/m/a.gguf"]);
    for (let n = 0; n < 100; n += 1) supervisor.ensurePool("chat");
    await clock.advance(3_600_000);
    expect(llama.plans).toBe(1);
    processes.refusal = null;
    for (const outside of ["half of it", "more of it", "all of it"]) {
      processes.outside = outside;
      await clock.advance(limits.changeLookMs);
      expect(stateOf("chat")).toBe("circuit_open");
    }
    await clock.advance(limits.changeLookMs);
    expect(stateOf("chat")).toBe("ready");
    expect(processes.started.length).toBe(1);
  });

  test("given up for good, it is tried once more when the operator asks, and then as seldom as before", async () => {
    processes.refusal = "cannot start engine: not found (ENOENT)";
    await begin(spawned());
    supervisor.retryPool("chat");
    await clock.advance(60_000);
    expect(llama.plans).toBe(2);
    processes.refusal = null;
    supervisor.retryPool("chat");
    await clock.advance(60_000);
    expect(stateOf("chat")).toBe("ready");
    // One that serves is left alone.
    supervisor.retryPool("chat");
    await clock.advance(60_000);
    expect(llama.plans).toBe(3);
  });

  test("what the catalog says of the model counts as well", async () => {
    distrust = "the model chat was not verified";
    await begin(spawned());
    expect(listener.unavailable[0]?.failure.message).toContain("not verified");
    await clock.advance(60_000);
    expect(processes.started).toEqual([]);
    distrust = null;
    await clock.advance(2 * limits.changeLookMs);
    expect(stateOf("chat")).toBe("ready");
  });

  test("a wedged engine is killed and replaced", async () => {
    await begin(spawned());
    supervisor.noteSlotsBusy("chat-0", 1, 2);
    expect(stateOf("chat")).toBe("busy");
    processes.last.diesOf = ["SIGKILL"];
    supervisor.reportWedged("chat-0", 1, "no token for 20 s");
    expect(listener.lost[0]?.failure).toMatchObject({
      cause: "wedged",
      message: expect.stringMatching(/no token for 20 s.*raise "timeouts\.first_token_ms"/),
    });
    // Late words of the same incarnation, and words of one long gone.
    supervisor.noteSlotsBusy("chat-0", 1, 0);
    supervisor.reportWedged("chat-0", 1, "again");
    await clock.advance(250);
    expect(supervisor.snapshots("chat")[0]).toMatchObject({ state: "ready", incarnation: 2, slotsBusy: 0 });
    supervisor.noteSlotsBusy("chat-0", 1, 1);
    expect(stateOf("chat")).toBe("ready");
    expect(listener.lost).toHaveLength(1);
  });

  test("lines of a process that is gone are not of the next one", async () => {
    await begin(spawned());
    const old = processes.last;
    old.exit({ code: 1, signal: null });
    await clock.advance(250);
    old.says("from the grave");
    expect(llama.last.lines).toEqual([]);
    expect(supervisor.logTail("chat-0")).toEqual([]);
  });
});

describe("an engine inside the daemon", () => {
  test("goes the same way without a process", async () => {
    await begin(inside());
    expect(listener.ready[0]?.snapshot).toMatchObject({ state: "ready", pid: null, poolId: "demo" });
    mock.last.die("scripted crash");
    await clock.advance(0);
    expect(listener.lost[0]?.failure?.message).toBe("the engine ended: scripted crash");
    await clock.advance(250);
    expect(stateOf("demo")).toBe("ready");
    expect(processes.started).toEqual([]);
  });

  test("that never gets ready meets the load timeout, and the breaker", async () => {
    mock.behaviour.health = "loading";
    await begin(inside());
    await clock.advance(10_000 + 250 + 10_000 + 500 + 10_000);
    expect(stateOf("demo")).toBe("circuit_open");
    expect(listener.unavailable[0]?.failure.cause).toBe("load_timeout");
  });

  test("is stopped by closing its client", async () => {
    await begin(inside());
    const stopped = supervisor.stop();
    await stopped;
    expect(mock.last.closed).toBe(true);
    expect(listener.lost[0]).toEqual({ replicaId: "demo-0", incarnation: 1, failure: null });
  });
});

describe("stopping", () => {
  test("clients are closed in the turn of the first SIGTERM; it resolves when the last process is reaped", async () => {
    await begin(spawned({ replicas: 2 }), inside());
    for (const process of processes.started) process.diesOf = ["SIGKILL"];
    let done = false;
    const stopped = supervisor.stop().then(() => {
      done = true;
    });
    expect(llama.clients.every((client) => client.closed)).toBe(true);
    expect(processes.started.map((process) => process.signals)).toEqual([["SIGTERM"], ["SIGTERM"]]);
    await clock.advance(2_150);
    expect(processes.last.signals).toEqual(["SIGTERM", "SIGTERM"]);
    await clock.advance(999);
    expect(done).toBe(false);
    await clock.advance(1);
    await stopped;
    expect(processes.last.signals).toEqual(["SIGTERM", "SIGTERM", "SIGKILL"]);
    expect(listener.lost).toHaveLength(3);
  });

  test("a working engine gets its SIGTERM after it could notice that its clients left", async () => {
    await begin(spawned());
    supervisor.noteSlotsBusy("chat-0", 1, 1);
    const stopped = supervisor.stop();
    expect(llama.last.closed).toBe(true);
    expect(processes.last.signals).toEqual([]);
    await clock.advance(150);
    expect(processes.last.signals).toEqual(["SIGTERM"]);
    await stopped;
  });

  test("forced: SIGKILL at once, also in the middle of a stop", async () => {
    await begin(spawned());
    processes.last.diesOf = ["SIGKILL"];
    const stopped = supervisor.stop();
    supervisor.forceStop();
    expect(processes.last.signals).toEqual(["SIGTERM", "SIGKILL"]);
    await stopped;
  });

  test("during a backoff, with an open circuit, while loading: nothing is started again", async () => {
    llama.behaviour.health = "loading";
    await begin(spawned({ replicas: 3 }));
    processes.started[0]?.exit({ code: 1, signal: null });
    processes.started[1]?.says("error: invalid argument: --x");
    processes.started[1]?.exit({ code: 1, signal: null });
    await clock.advance(0);
    expect([0, 1, 2].map((at) => stateOf("chat", at))).toEqual(["backoff", "circuit_open", "loading"]);
    await supervisor.stop();
    supervisor.ensurePool("chat");
    await clock.advance(100_000);
    expect([0, 1, 2].map((at) => stateOf("chat", at))).toEqual(["stopped", "stopped", "stopped"]);
    expect(processes.started.length).toBe(3);
  });
});

test("secrets are in no log line", async () => {
  await begin(spawned());
  processes.last.exit({ code: 1, signal: null });
  await clock.advance(300);
  expect(JSON.stringify(log.lines)).not.toContain("key-");
  const human = log.lines.map(({ fields }) => fields.human);
  expect(human.every((sentence) => typeof sentence === "string" && sentence.endsWith("."))).toBe(true);
});
