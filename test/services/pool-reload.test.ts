/**
 * Reloads through the supervisor, the dispatcher and the mock engine: the old model goes on until its time is over, the
 * new one serves once it has decoded, and whatever fails leaves the old one.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { type EngineIdentity, type PoolSpec, type SameModel, sameModelOf } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { MockAdapter } from "../../src/infra/engines/mock.ts";
import type { EngineAdapter, EngineClient } from "../../src/ports/engine.ts";
import type { ModelFiles } from "../../src/ports/model-source.ts";
import type { ModelRecord } from "../../src/ports/pool-store.ts";
import { PoolReloads, type ReloadRequest } from "../../src/services/pool-reload.ts";
import { PoolSpecs } from "../../src/services/pool-specs.ts";
import { ReloadTargets } from "../../src/services/reload-targets.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { MemoryRecords } from "../support/memory-records.ts";
import { SeededEntropy, type VirtualClock } from "../support/virtual-clock.ts";
import { mockPool, profile, Rig, replay } from "./rig.ts";

const fileOf = (modelRef: string): string => `/models/${modelRef}`;
const stampOf = (modelRef: string): string => `stamp of ${modelRef}`;

/** mock:broken does not load, mock:narrow has 32 tokens of context, mock:copy says what mock:words says. */
class NamedModels implements EngineAdapter {
  readonly kind = "mock";
  readonly loaded: string[] = [];
  private readonly inner: MockAdapter;
  constructor(clock: VirtualClock) {
    this.inner = new MockAdapter({ clock, entropy: new SeededEntropy(3) });
  }
  plan(): null {
    return null;
  }
  connectInProcess(pool: PoolSpec, replicaId: string): EngineClient {
    this.loaded.push(`${replicaId} ${pool.modelRef}`);
    const load = { kind: "load_failure", nth: null, afterTokens: 0, delayMs: 0 } as const;
    const broken = pool.modelRef === "mock:broken" && pool.mock !== null;
    const named = pool.modelRef === "mock:copy" ? { ...pool, modelRef: "mock:words" } : pool;
    const as = broken && pool.mock !== null ? { ...pool, mock: { ...pool.mock, faults: [load] } } : named;
    // Its faults are counted by pool: a broken model's are its own.
    const client = this.inner.connectInProcess({ ...as, id: broken ? "broken" : as.id }, replicaId);
    const identity = client.identity.bind(client);
    client.identity = async (signal): Promise<EngineIdentity> => {
      const told = await identity(signal);
      const file = { modelPath: fileOf(pool.modelRef), modelStamp: stampOf(pool.modelRef) };
      return { ...told, ...file, ctxPerSlot: pool.modelRef === "mock:narrow" ? 32 : told.ctxPerSlot };
    };
    return client;
  }
}

const noFiles = {} as ModelFiles;
const noCatalog = { get: () => unasked() };
function unasked(): never {
  throw new Error("no file is asked for");
}

let rig: Rig;
let reloads: PoolReloads;
let specs: PoolSpecs;
let models: NamedModels;
let store: MemoryRecords<ModelRecord>;
let drained = false;
let problem: string | null = null;
/** Two names for the same bytes. */
let same: ((from: PoolSpec, to: PoolSpec) => SameModel | null) | null = null;
afterEach(async () => {
  reloads.stop();
  await rig.stop();
  drained = false;
  problem = null;
  same = null;
});

async function started(pool: Partial<PoolSpec> = {}, kept = new MemoryRecords<ModelRecord>()): Promise<void> {
  store = kept;
  rig = new Rig({
    pools: [],
    adapter: (clock) => {
      models = new NamedModels(clock);
      return models;
    },
    specs: (log) => {
      specs = new PoolSpecs([mockPool({ queueCapacity: 8, ...pool })], store, log);
      return specs.list;
    },
  });
  await rig.start();
  const targets = new ReloadTargets({ catalog: noCatalog, files: noFiles });
  reloads = new PoolReloads({
    clock: rig.clock,
    log: rig.log,
    metrics: rig.metrics,
    control: rig.supervisor,
    dispatcher: rig.dispatcher,
    registry: rig.registry,
    specOf: (taskId) => rig.archive.specOf(taskId),
    specs,
    targets: {
      resolve: (...of) => targets.resolve(...of),
      problem: () => Promise.resolve(problem),
      compared: async (from, to, stamps, signal) => {
        const found = same?.(from, to) ?? null;
        return found === null
          ? await targets.compared(from, to, stamps, signal)
          : { another: false, sameModel: found };
      },
    },
    isDrained: () => drained,
    onFatal: (error) => rig.fatal.push(error),
  });
}

async function accept(more: Partial<TaskSpec> = {}): Promise<TaskRecord> {
  const submitted = rig.submit(rig.spec({ modelRef: specs.get("chat").modelRef, ...more }));
  await rig.clock.advance(0);
  return (await submitted).record;
}
const request = (modelRef: string, more: Partial<ReloadRequest> = {}): ReloadRequest => ({
  ...{ modelRef, digest: null, strategy: "recreate" as const, deadlineMs: 300 },
  ...more,
});
/** How it ended: "" or the code. */
function reload(modelRef: string, more: Partial<ReloadRequest> = {}): { how: string | null } {
  const seen: { how: string | null } = { how: null };
  reloads.reload("chat", request(modelRef, more)).ended.then(
    () => {
      seen.how = "";
    },
    (error: { code: string }) => {
      seen.how = error.code;
    },
  );
  return seen;
}
const last = (record: TaskRecord) => replay(record).at(-1);
const greedy = { ...profile, temperature: 0 };

/** What is found where both files have the same bytes. */
const copyOf = (from: PoolSpec, to: PoolSpec): SameModel => ({
  modelRefs: [from.modelRef, ...(from.sameModel?.modelRefs ?? [])],
  stamp: stampOf(to.modelRef),
  modelPath: from.sameModel?.modelPath ?? fileOf(from.modelRef),
  modelStamp: from.sameModel?.modelStamp ?? stampOf(from.modelRef),
});

describe("a reload to a copy under another name", () => {
  test.each(["recreate", "surge"] as const)(
    "cuts at the deadline (%s), and what was cut goes on there as with the same model (ORCHD-RELOAD-3)",
    async (strategy) => {
      await started({ slots: 1, replicas: 2 });
      same = copyOf;
      const running = await accept({ maxTokens: 80, sampling: greedy });
      const strict = await accept({ maxTokens: 80, determinism: "strict", kvHint: "cold" });
      const waiting = await accept({ maxTokens: 5 });
      await rig.clock.advance(100);
      const seen = reload("mock:copy", { strategy, deadlineMs: 50 });
      await rig.clock.advance(5000);
      expect(seen.how).toBe("");
      expect(last(running)).toMatchObject({
        data: { tokens_out: 80, continuations: 1, exact: "unverified" },
      });
      expect(last(strict)).toMatchObject({ data: { tokens_out: 80, continuations: 1, exact: "yes" } });
      expect(last(waiting)?.event).toBe("end");
      for (const { spec } of [running, strict, waiting]) expect(spec.modelRef).toBe("mock:copy");
      // And back again, with what was said before; another model ends that.
      const more = await accept({ maxTokens: 80, sampling: greedy });
      await rig.clock.advance(100);
      reload("mock:words", { strategy, deadlineMs: 0 });
      await rig.clock.advance(600);
      // A transcript names the file that was loaded, not the one that it is a copy of.
      const files = more.runs.map(({ build }) => build.model);
      expect(files).toEqual([fileOf("mock:copy"), fileOf("mock:words")]);
      await rig.clock.advance(5000);
      expect(last(more)).toMatchObject({ data: { tokens_out: 80, continuations: 1, exact: "unverified" } });
      same = null;
      reload("mock:other", { strategy, deadlineMs: 0 });
      await rig.clock.advance(5000);
      expect(specs.get("chat")).toMatchObject({ modelRef: "mock:other", sameModel: null });
    },
  );

  test("is remembered across restarts, and with a file that was replaced since it counts no more", async () => {
    await started();
    same = copyOf;
    reload("mock:copy");
    await rig.clock.advance(2000);
    const { sameModel } = specs.get("chat");
    expect(sameModel?.modelRefs).toEqual(["mock:words"]);
    reloads.stop();
    await rig.stop();
    await started({}, store);
    expect(specs.get("chat")).toMatchObject({ modelRef: "mock:copy", sameModel });
    const known = { modelStamp: stampOf("mock:copy") };
    expect(sameModelOf(specs.get("chat"), known)).toEqual(sameModel ?? null);
    expect(sameModelOf(specs.get("chat"), { modelStamp: "another" })).toBeNull();
    expect(sameModelOf(mockPool({}), known)).toBeNull();
  });
});

describe("a reload that recreates the engines", () => {
  test("lets go on what runs, then the new model serves, and what waited goes on there (ORCHD-RELOAD-1)", async () => {
    await started();
    const running = await accept({ maxTokens: 20 });
    const waiting = await accept();
    await rig.clock.advance(20);
    const seen = reload("mock:other");
    await rig.clock.advance(50);
    expect(reloads.view("chat")).toMatchObject({ phase: "draining", running: 1, modelRef: "mock:other" });
    expect(reloads.view("chat")?.held).toBe(true);
    const held = await accept();
    await rig.clock.advance(3000);
    expect(seen.how).toBe("");
    expect(models.loaded).toEqual(["chat-0 mock:words", "chat-0b mock:other"]);
    expect(last(running)).toMatchObject({ event: "end", data: { continuations: 0, tokens_out: 20 } });
    for (const task of [waiting, held]) {
      expect(last(task)?.event).toBe("end");
      expect([task.replicaId, task.spec.modelRef]).toEqual(["chat-0b", "mock:other"]);
    }
    expect(reloads.view("chat")).toMatchObject({
      phase: "done",
      replicasReady: 1,
      problem: null,
      held: false,
    });
    expect(rig.metrics.of("poolReloaded")).toEqual([[{ poolId: "chat", result: "done" }]]);
    expect(specs.get("chat").modelRef).toBe("mock:other");
    expect(rig.supervisor.snapshots("chat").map(({ replicaId, state }) => [replicaId, state])).toEqual([
      ["chat-0b", "ready"],
    ]);
  });

  test("with the same model cuts at the deadline what runs, and it goes on with the new engines (ORCHD-RELOAD-1)", async () => {
    await started({ replicas: 2 });
    const running = await accept({ maxTokens: 80, sampling: greedy });
    const other = await accept({ maxTokens: 80, determinism: "strict", kvHint: "cold" });
    await rig.clock.advance(100);
    const seen = reload("mock:words", { deadlineMs: 200 });
    await rig.clock.advance(400);
    expect([running.state, other.state]).not.toContain("done");
    await rig.clock.advance(5000);
    expect(seen.how).toBe("");
    expect(models.loaded.slice(2)).toEqual(["chat-0b mock:words", "chat-1b mock:words"]);
    expect(last(running)).toMatchObject({ data: { tokens_out: 80, continuations: 1, exact: "unverified" } });
    expect(last(other)).toMatchObject({ data: { tokens_out: 80, continuations: 1, exact: "yes" } });
  });

  test("with another model lets finish what has sent something, however long, and cuts the rest (ORCHD-RELOAD-3)", async () => {
    await started({ slots: 2, mock: { tokenMs: 10, prefillMsPerToken: 20, loadMs: 0, faults: [] } });
    const sent = await accept({ maxTokens: 100, tokensIn: 2, input: { kind: "prompt", prompt: "Say" } });
    await rig.clock.advance(200);
    expect(sent.tokensOut).toBeGreaterThan(0);
    const prompt = "many words come before anything is said here and this goes on for a while";
    const silent = await accept({ maxTokens: 5, input: { kind: "prompt", prompt } });
    const seen = reload("mock:other", { deadlineMs: 50 });
    await rig.clock.advance(100);
    expect([sent.state, silent.state]).toEqual(["running", "queued"]);
    await rig.clock.advance(5000);
    expect(seen.how).toBe("");
    expect(last(sent)).toMatchObject({ event: "end", data: { continuations: 0, tokens_out: 100 } });
    expect([sent.replicaId, silent.replicaId]).toEqual(["chat-0", "chat-0b"]);
    expect(last(silent)?.event).toBe("end");
  });

  test("ends what waits and does not fit the new model, with an error that asks to try again (ORCHD-RELOAD-3)", async () => {
    await started();
    const running = await accept({ maxTokens: 20 });
    const large = await accept({ maxTokens: 100, tokensInExact: true });
    const small = await accept({ maxTokens: 5, input: { kind: "prompt", prompt: "Say" } });
    const seen = reload("mock:narrow");
    await rig.clock.advance(3000);
    expect(seen.how).toBe("");
    expect(last(running)?.event).toBe("end");
    expect(last(large)).toMatchObject({ event: "error", data: { code: "WORKER_RESET", retriable: true } });
    expect(String(last(large)?.data.message)).toContain("the context of 32 tokens");
    expect(last(small)?.event).toBe("end");
  });

  test("that fails to load leaves the old model, and loses nothing (ORCHD-RELOAD-2)", async () => {
    await started();
    const running = await accept({ maxTokens: 80, sampling: greedy });
    const waiting = await accept();
    await rig.clock.advance(50);
    const seen = reload("mock:broken", { deadlineMs: 10_000 });
    await rig.clock.advance(5000);
    expect(seen.how).toBe("RELOAD_FAILED");
    expect(last(running)).toMatchObject({ event: "end", data: { tokens_out: 80 } });
    expect(last(waiting)?.event).toBe("end");
    expect(waiting.replicaId).toBe("chat-0");
    expect(reloads.view("chat")).toMatchObject({
      phase: "failed",
      problem: "the engine ended: scripted: chat-0b failed to load its model",
    });
    expect(rig.metrics.of("poolReloaded")).toEqual([[{ poolId: "chat", result: "failed" }]]);
    expect(specs.get("chat").modelRef).toBe("mock:words");
    expect(store.all()).toEqual([]);
    // And it can be tried again.
    const again = reload("mock:other");
    await rig.clock.advance(3000);
    expect(again.how).toBe("");
    expect((await accept()).spec.modelRef).toBe("mock:other");
  });

  test("of a file that is wrong touches nothing (ORCHD-RELOAD-2)", async () => {
    await started();
    problem = "the digest is another";
    const running = await accept({ maxTokens: 50 });
    const seen = reload("mock:other", { deadlineMs: 0 });
    await rig.clock.advance(1000);
    expect(seen.how).toBe("RELOAD_FAILED");
    expect(last(running)).toMatchObject({ event: "end", data: { continuations: 0 } });
    expect(models.loaded).toEqual(["chat-0 mock:words"]);
  });

  test("that cannot be stored is rolled back (ORCHD-RELOAD-2)", async () => {
    await started();
    store.full = true;
    const seen = reload("mock:other");
    await rig.clock.advance(3000);
    expect(seen.how).toBe("RELOAD_FAILED");
    const task = await accept();
    await rig.clock.advance(1000);
    expect([last(task)?.event, task.replicaId]).toEqual(["end", "chat-0"]);
  });

  test("is one at a time, and none in a drained pool", async () => {
    await started();
    await accept({ maxTokens: 50 });
    const seen = reload("mock:other");
    await rig.clock.advance(10);
    expect(() => reloads.reload("chat", request("mock:more"))).toThrow("is being reloaded");
    await rig.clock.advance(3000);
    expect(seen.how).toBe("");
    drained = true;
    expect(() => reloads.reload("chat", request("mock:more"))).toThrow("is drained");
    drained = false;
    expect(() => reloads.reload("chat", request("file:/m/a.gguf"))).toThrow("mock:NAME");
    expect(() => reloads.reload("chat", request("mock:more", { digest: "0".repeat(64) }))).toThrow(
      "no model file",
    );
  });

  test("back and forth uses the same names, and no fact of an earlier engine counts", async () => {
    await started();
    for (const [model, replica] of [
      ["mock:other", "chat-0b"],
      ["mock:words", "chat-0"],
      ["mock:other", "chat-0b"],
    ] as const) {
      const running = await accept({ maxTokens: 60 });
      await rig.clock.advance(20);
      const seen = reload(model, { deadlineMs: 10 });
      await rig.clock.advance(3000);
      expect([seen.how, last(running)?.event]).toEqual(["", "end"]);
      const task = await accept();
      await rig.clock.advance(1000);
      expect([last(task)?.event, task.replicaId]).toEqual(["end", replica]);
    }
    expect(rig.supervisor.snapshots("chat")[0]?.incarnation).toBe(2);
  });
});

describe("a reload beside what serves", () => {
  const surge = { strategy: "surge" } as const;

  test("pauses nothing: the old one serves until the new one has decoded, then what is new starts there (ORCHD-RELOAD-5)", async () => {
    await started({ slots: 2, mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 400, faults: [] } });
    await rig.clock.advance(1000);
    const running = await accept({ maxTokens: 100 });
    const seen = reload("mock:other", { ...surge, deadlineMs: 2000 });
    await rig.clock.advance(100);
    expect(reloads.view("chat")).toMatchObject({ phase: "loading", strategy: "surge" });
    // Still the old one's.
    const early = await accept({ maxTokens: 5 });
    await rig.clock.advance(100);
    expect([last(early)?.event, early.replicaId]).toEqual(["end", "chat-0"]);
    await rig.clock.advance(400);
    expect(reloads.view("chat")).toMatchObject({ phase: "draining", running: 1 });
    const late = await accept({ maxTokens: 5 });
    await rig.clock.advance(100);
    expect([last(late)?.event, late.replicaId, late.spec.modelRef]).toEqual(["end", "chat-0b", "mock:other"]);
    expect(running.state).toBe("running");
    await rig.clock.advance(3000);
    expect(seen.how).toBe("");
    expect(last(running)).toMatchObject({ event: "end", data: { continuations: 0, tokens_out: 100 } });
    expect(rig.supervisor.snapshots("chat").map(({ replicaId }) => replicaId)).toEqual(["chat-0b"]);
  });

  test("with the same model cuts at the deadline what runs, and it goes on with the new engines (ORCHD-RELOAD-5)", async () => {
    await started();
    const running = await accept({ maxTokens: 80, sampling: greedy });
    await rig.clock.advance(100);
    const seen = reload("mock:words", { ...surge, deadlineMs: 200 });
    await rig.clock.advance(5000);
    expect(seen.how).toBe("");
    expect(last(running)).toMatchObject({ data: { tokens_out: 80, continuations: 1, exact: "unverified" } });
    expect(running.replicaId).toBe("chat-0b");
  });

  test("with another model lets finish what has sent something, and cuts the rest (ORCHD-RELOAD-3)", async () => {
    await started({ slots: 2, mock: { tokenMs: 10, prefillMsPerToken: 20, loadMs: 0, faults: [] } });
    const sent = await accept({ maxTokens: 100, tokensIn: 2, input: { kind: "prompt", prompt: "Say" } });
    await rig.clock.advance(200);
    const prompt = "many words come before anything is said here and this goes on for a while";
    const silent = await accept({ maxTokens: 5, input: { kind: "prompt", prompt } });
    const seen = reload("mock:other", { ...surge, deadlineMs: 50 });
    await rig.clock.advance(5000);
    expect(seen.how).toBe("");
    expect(last(sent)).toMatchObject({ event: "end", data: { continuations: 0, tokens_out: 100 } });
    expect([sent.replicaId, silent.replicaId]).toEqual(["chat-0", "chat-0b"]);
    expect(last(silent)?.event).toBe("end");
  });

  test.each(["surge", "recreate"] as const)(
    "%s with another model lets finish what has told which model it starts with, and no word yet (ORCHD-RELOAD-3)",
    async (strategy) => {
      const late = { kind: "late", nth: 1, afterTokens: 0, delayMs: 400 } as const;
      await started({ mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 0, faults: [late] } });
      const begun = await accept({ maxTokens: 2 });
      await rig.clock.advance(100);
      expect([begun.log.length, begun.tokensOut]).toEqual([1, 0]);
      const seen = reload("mock:other", { strategy, deadlineMs: 50 });
      await rig.clock.advance(5000);
      expect(seen.how).toBe("");
      const [first] = replay(begun);
      expect(first).toMatchObject({ event: "started", data: { model_ref: "mock:words" } });
      expect([begun.spec.modelRef, begun.replicaId, begun.attempts]).toEqual(["mock:words", "chat-0", 1]);
      expect(last(begun)?.event).toBe("end");
    },
  );

  test("never continues an answer with another model: where the old engine is lost it ends (ORCHD-RELOAD-3)", async () => {
    const crash = { kind: "crash", nth: 1, afterTokens: 30, delayMs: 0 } as const;
    await started({ mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 0, faults: [crash] } });
    const running = await accept({ maxTokens: 100 });
    await rig.clock.advance(100);
    const seen = reload("mock:other", { ...surge, deadlineMs: 10_000 });
    await rig.clock.advance(5000);
    expect(seen.how).toBe("");
    expect(last(running)).toMatchObject({ event: "error", data: { code: "WORKER_RESET", retriable: true } });
    expect(models.loaded).toEqual(["chat-0 mock:words", "chat-0b mock:other"]);
    const next = await accept();
    await rig.clock.advance(1000);
    expect([last(next)?.event, next.replicaId]).toEqual(["end", "chat-0b"]);
  });

  test("that fails disturbs nobody (ORCHD-RELOAD-5)", async () => {
    await started();
    const running = await accept({ maxTokens: 80, sampling: greedy });
    const waiting = await accept();
    const seen = reload("mock:broken", surge);
    await rig.clock.advance(3000);
    expect(seen.how).toBe("RELOAD_FAILED");
    expect(last(running)).toMatchObject({ data: { tokens_out: 80, continuations: 0 } });
    expect([last(waiting)?.event, waiting.replicaId]).toEqual(["end", "chat-0"]);
    store.full = true;
    const again = reload("mock:other", surge);
    await rig.clock.advance(3000);
    expect(again.how).toBe("RELOAD_FAILED");
    const next = await accept();
    await rig.clock.advance(1000);
    expect([last(next)?.event, next.replicaId]).toEqual(["end", "chat-0"]);
  });

  test("ends what waits and does not fit the new model (ORCHD-RELOAD-3)", async () => {
    await started();
    const running = await accept({ maxTokens: 60 });
    const large = await accept({ maxTokens: 100, tokensInExact: true });
    const seen = reload("mock:narrow", { ...surge, deadlineMs: 5000 });
    await rig.clock.advance(5000);
    expect([seen.how, last(running)?.event]).toEqual(["", "end"]);
    expect(last(large)).toMatchObject({ event: "error", data: { code: "WORKER_RESET" } });
  });

  test("cuts what has said nothing and does not fit the new model: it is told the same (ORCHD-RELOAD-3)", async () => {
    await started({ slots: 2, mock: { tokenMs: 10, prefillMsPerToken: 20, loadMs: 0, faults: [] } });
    const prompt = "many words come before anything is said here and this goes on for a while";
    const silent = await accept({ maxTokens: 100, input: { kind: "prompt", prompt } });
    await rig.clock.advance(20);
    const seen = reload("mock:narrow", { ...surge, deadlineMs: 20 });
    await rig.clock.advance(5000);
    expect(seen.how).toBe("");
    expect(last(silent)).toMatchObject({ event: "error", data: { code: "WORKER_RESET", retriable: true } });
    expect(String(last(silent)?.data.message)).toContain("its pool has another model now (mock:narrow), and");
  });

  test("back and forth, strict and with sessions, every task ends as it should", async () => {
    await started({ replicas: 2, slots: 2, queueCapacity: 64 });
    const tasks: TaskRecord[] = [];
    const ends: { how: string | null }[] = [];
    for (const [round, model] of ["mock:other", "mock:words", "mock:words", "mock:other"].entries()) {
      for (let n = 0; n < 8; n++)
        tasks.push(
          await accept({
            maxTokens: 10 + 7 * n,
            ...(n % 4 === 3 ? { determinism: "strict", kvHint: "cold" } : { sessionId: `s${n % 3}${round}` }),
            priority: n % 2 === 0 ? "interactive" : "batch",
          }),
        );
      await rig.clock.advance(60);
      ends.push(reload(model, { strategy: round % 2 === 0 ? "surge" : "recreate", deadlineMs: 40 }));
      await rig.clock.advance(4000);
    }
    expect(ends.map(({ how }) => how)).toEqual(["", "", "", ""]);
    expect(tasks.map((task) => last(task)?.event)).toEqual(tasks.map(() => "end"));
    expect(rig.supervisor.snapshots("chat")).toHaveLength(2);
  });
});

describe("the model that a reload gave", () => {
  test("stays across restarts, until the configuration of the pool changes (ORCHD-RELOAD-4)", async () => {
    await started();
    reload("mock:other");
    await rig.clock.advance(3000);
    reloads.stop();
    await rig.stop();
    await started({}, store);
    expect(models.loaded).toEqual(["chat-0 mock:other"]);
    reloads.stop();
    await rig.stop();
    await started({ slots: 2 }, store);
    expect(models.loaded).toEqual(["chat-0 mock:words"]);
    expect(rig.log.of("pool_model_configured")).toHaveLength(1);
    expect(store.all()).toEqual([]);
  });
});
