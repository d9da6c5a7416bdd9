/**
 * The supervisor over real processes: the lying llama-server stand-in, started through the real adapter and the
 * real process host, meets everything that an engine can do to its supervisor, and nothing of it is left behind (ORCHD-POOL-5).
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { limits } from "../../src/domain/limits.ts";
import type { PoolSpec, ReplicaSnapshot } from "../../src/domain/pool.ts";
import { BunProcessHost } from "../../src/infra/bun-process.ts";
import { LlamaCppAdapter } from "../../src/infra/engines/llamacpp.ts";
import { SystemClock, SystemEntropy } from "../../src/infra/system-clock.ts";
import { Supervisor } from "../../src/services/supervisor.ts";
import { RecordingListener, RecordingLog, RestartMetrics } from "../support/fakes-supervisor.ts";
import { writeLyingServer } from "../support/lying-llama-server.ts";
import { argvOf, endIfRunning, isRunning } from "../support/process-probe.ts";
import { poolSpec } from "../support/replicas.ts";
import { waitFor } from "../support/wait.ts";

let folder: string;
let runDir: string;
let engineBin: string;
let log: RecordingLog;
let listener: RecordingListener;
let supervisor: Supervisor;
let pids: Set<number>;

const clock = new SystemClock();
const entropy = new SystemEntropy();

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "orchd-supervision-"));
  runDir = join(folder, "run");
  engineBin = writeLyingServer(folder);
  log = new RecordingLog();
  listener = new RecordingListener();
  pids = new Set();
  supervisor = new Supervisor({
    clock,
    entropy,
    processes: new BunProcessHost({ runDir, guardCommand: null, log }),
    adapters: new Map([["llamacpp", new LlamaCppAdapter({ clock, entropy, log })]]),
    log,
    metrics: new RestartMetrics().asMetrics(),
    runDir,
    restart: { backoffMs: 50, backoffMaxMs: 1_000, breakerFailures: 3, breakerWindowMs: 60_000 },
  });
});
afterEach(async () => {
  supervisor.forceStop();
  await supervisor.stop();
  for (const { fields } of log.lines) if (typeof fields.pid === "number") pids.add(fields.pid);
  const left = [...pids].filter(isRunning);
  for (const pid of left) endIfRunning(pid);
  const files = existsSync(runDir) ? readdirSync(runDir, { recursive: true }) : [];
  rmSync(folder, { recursive: true, force: true });
  expect(left).toEqual([]);
  // No socket, no key, nobody remembered.
  expect(files.filter((name) => name !== "children")).toEqual([]);
});

function begin(lies: string, more: Partial<PoolSpec> = {}): void {
  const pool = poolSpec({
    id: "chat",
    engine: "llamacpp",
    modelRef: "file:m.gguf",
    modelPath: join(folder, "m.gguf"),
    engineBin,
    slots: 2,
    env: { LYING_LLAMA: lies },
    timeouts: { loadMs: 10_000, firstTokenMs: 1_000, interTokenMs: 1_000, stopGraceMs: 5_000 },
    ...more,
  });
  supervisor.start([pool], listener);
}

const replica = (): ReplicaSnapshot => {
  const [first] = supervisor.snapshots("chat");
  if (first === undefined) throw new Error("the pool has a replica");
  return first;
};
const ready = (incarnation = 1): Promise<ReplicaSnapshot> =>
  waitFor(() => (replica().state === "ready" && replica().incarnation === incarnation ? replica() : null));
const pidOf = (snapshot: ReplicaSnapshot): number => {
  if (snapshot.pid === null) throw new Error("it has a process");
  pids.add(snapshot.pid);
  return snapshot.pid;
};

describe("up and down", () => {
  test("ready, with its key neither on disk nor in its arguments any more; SIGTERM ends it in good order", async () => {
    begin("loading=30");
    const snapshot = await ready();
    const pid = pidOf(snapshot);
    expect(snapshot.identity?.engineVersion).toBe("b0-lying");
    expect(readdirSync(runDir).sort()).toEqual(["chat-0.sock", "children"]);
    expect(argvOf(pid).join(" ")).toContain("--api-key-file");
    expect(argvOf(pid)).not.toContain("--api-key");
    expect(log.states("chat-0")).toEqual(["starting", "loading", "warming", "ready"]);
    const startedAt = performance.now();
    await supervisor.stop();
    expect(performance.now() - startedAt).toBeLessThan(1_500);
    expect(isRunning(pid)).toBe(false);
    expect(replica()).toMatchObject({ state: "stopped", pid: null, lastError: null });
  });

  test("an engine that ignores SIGTERM, and its child, are killed at the end of the grace", async () => {
    begin("ignore-sigterm,fork", {
      timeouts: { loadMs: 10_000, firstTokenMs: 1_000, interTokenMs: 1_000, stopGraceMs: 600 },
    });
    const pid = pidOf(await ready());
    const forked = supervisor.logTail("chat-0").find((line) => line.includes("forked"));
    const grandchild = Number(/forked ([0-9]+)/.exec(forked ?? "")?.[1]);
    pids.add(grandchild);
    expect([isRunning(pid), isRunning(grandchild)]).toEqual([true, true]);
    const startedAt = performance.now();
    await supervisor.stop();
    const tookMs = performance.now() - startedAt;
    expect(tookMs).toBeGreaterThanOrEqual(595);
    expect(tookMs).toBeLessThan(2_000);
    expect([isRunning(pid), isRunning(grandchild)]).toEqual([false, false]);
    // Twice asked, then killed.
    const ignored = supervisor.logTail("chat-0").filter((line) => line.includes("SIGTERM ignored"));
    expect(ignored.length).toBe(2);
  });

  test("a second signal does not wait for the grace", async () => {
    begin("ignore-sigterm");
    const pid = pidOf(await ready());
    const stopped = supervisor.stop();
    supervisor.forceStop();
    await stopped;
    expect(isRunning(pid)).toBe(false);
  });

  test("while it loads a stop does not wait for the load", async () => {
    begin("never-ready");
    await waitFor(() => replica().state === "loading" && supervisor.logTail("chat-0").length > 0);
    const pid = pidOf(replica());
    await supervisor.stop();
    expect(isRunning(pid)).toBe(false);
    expect(listener.ready).toEqual([]);
  });
});

describe("failures", () => {
  test("killed from outside, it is back after the backoff as another incarnation", async () => {
    begin("");
    const pid = pidOf(await ready());
    process.kill(pid, "SIGKILL");
    const again = await ready(2);
    expect(pidOf(again)).not.toBe(pid);
    expect(again).toMatchObject({ restarts: 1 });
    expect(again.lastError).toMatchObject({ cause: "crashed", signal: "SIGKILL" });
    expect(listener.lost.map(({ incarnation }) => incarnation)).toEqual([1]);
    expect(log.states("chat-0")).toContain("backoff");
  });

  test("a storm of failed starts opens the circuit and leaves no process", async () => {
    begin("die-while-loading");
    await waitFor(() => replica().state === "circuit_open", 10_000);
    expect(replica()).toMatchObject({ incarnation: 3, restarts: 2, pid: null });
    expect(replica().lastError).toMatchObject({ cause: "crashed", signal: "SIGABRT" });
    expect(listener.unavailable).toHaveLength(1);
  });

  for (const [lie, cause, message] of [
    ["model-missing", "model_missing", /m\.gguf does not exist/],
    ["corrupt-model", "model_corrupt", /no complete GGUF file/],
    ["bad-flag", "bad_flag", /--bogus/],
  ] as const) {
    test(`${lie} opens the circuit at the first start`, async () => {
      begin(lie);
      await waitFor(() => replica().state === "circuit_open");
      expect(replica()).toMatchObject({ incarnation: 1, pid: null });
      expect(listener.unavailable[0]?.failure).toMatchObject({ cause, exitCode: 1 });
      expect(listener.unavailable[0]?.failure.message).toMatch(message);
    });
  }

  test("a program that is not there opens the circuit at the first start", async () => {
    engineBin = join(folder, "nowhere");
    begin("");
    await waitFor(() => replica().state === "circuit_open");
    expect(replica()).toMatchObject({ incarnation: 1, pid: null });
    expect(replica().lastError?.cause).toBe("spawn_failed");
  });

  test("out of memory is told apart and tried again", async () => {
    begin("out-of-memory");
    await waitFor(() => replica().state === "circuit_open", 10_000);
    expect(replica().lastError?.cause).toBe("out_of_host_memory");
    expect(replica().incarnation).toBe(3);
  });

  test("one that never gets ready meets the load timeout", async () => {
    begin("never-ready", {
      timeouts: { loadMs: 400, firstTokenMs: 1_000, interTokenMs: 1_000, stopGraceMs: 1_000 },
    });
    const failure = await waitFor(() => replica().lastError);
    expect(failure.cause).toBe("load_timeout");
    expect(failure.logTail.some((line) => line.includes("listening on"))).toBe(true);
    expect(listener.ready).toEqual([]);
  });

  test("healthy but unable to decode is not ready", async () => {
    begin("wedge", {
      timeouts: { loadMs: 600, firstTokenMs: 1_000, interTokenMs: 1_000, stopGraceMs: 1_000 },
    });
    const failure = await waitFor(() => replica().lastError);
    expect(failure).toMatchObject({ cause: "load_timeout" });
    expect(failure.message).toContain("first decode did not end");
    expect(listener.ready).toEqual([]);
  });

  test("reported wedged, it is killed, though it ignores signals, and replaced", async () => {
    begin("ignore-sigterm");
    const pid = pidOf(await ready());
    supervisor.noteSlotsBusy("chat-0", 1, 1);
    supervisor.reportWedged("chat-0", 1, "no token within 20 s");
    expect(listener.lost[0]?.failure?.cause).toBe("wedged");
    await ready(2);
    expect(isRunning(pid)).toBe(false);
  });

  test("a flood of log lines is drained and bounded, and does not keep it from serving", async () => {
    begin("flood-logs");
    await ready();
    const tail = supervisor.logTail("chat-0");
    expect(tail.length).toBe(limits.engineLogLinesMax);
    expect(tail.every((line) => line.length <= limits.engineLogLineCharsMax)).toBe(true);
  });
});

test("what is remembered of a running engine is what a later daemon needs to find it", async () => {
  begin("");
  const pid = pidOf(await ready());
  const text = readFileSync(join(runDir, "children", `${pid}.json`), "utf8");
  expect(JSON.parse(text)).toMatchObject({ pid, replicaId: "chat-0" });
  expect(text).not.toContain("key");
});
