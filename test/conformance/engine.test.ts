/** The engine suite over the mock and over the real llama-server; and what only the mock does: scripted faults. */
import { describe, expect, test } from "bun:test";
import type { MockFault, MockOptions, PoolSpec } from "../../src/domain/pool.ts";
import type { Workload } from "../../src/domain/task.ts";
import { MockAdapter } from "../../src/infra/engines/mock.ts";
import { OpenAiAdapter } from "../../src/infra/engines/openai.ts";
import {
  clock,
  entropy,
  failureOf,
  llamaPool,
  never,
  RecordingSink,
  request,
  startLlamaCpp,
  startLlamaServer,
  testModel,
  within,
} from "../support/engine.ts";
import { OpenAiServer } from "../support/openai-server.ts";
import { poolSpec } from "../support/replicas.ts";
import { SeededEntropy, VirtualClock } from "../support/virtual-clock.ts";
import { engineConformance } from "./engine.ts";

const mockPool = (mock: Partial<MockOptions>, more: Partial<PoolSpec> = {}) =>
  poolSpec({
    slots: 3,
    ctx: 2048,
    mock: { tokenMs: 0, prefillMsPerToken: 0, loadMs: 0, faults: [], ...mock },
    ...more,
  });

const startMock = (workload: Workload, faults: readonly MockFault[] = []) => {
  const pool = mockPool({ tokenMs: 0.02, faults }, { workloads: [workload] });
  const client = new MockAdapter({ clock, entropy }).connectInProcess(pool, "mock-0");
  return { client, stop: async () => client.close() };
};

const fault = (kind: MockFault["kind"], more: Partial<MockFault> = {}): MockFault => ({
  kind,
  nth: null,
  afterTokens: 0,
  delayMs: 0,
  ...more,
});

engineConformance({
  name: "mock",
  slots: 3,
  ctxPerSlot: 2048,
  followsGrammar: false,
  namesTokens: true,
  rendersChats: true,
  longPrompt: "the small river ".repeat(400),
  tooLongPrompt: "the small river ".repeat(800),
  start: async (workload) => startMock(workload),
  unreachable: async () => {
    const engine = startMock("completion", [fault("crash")]);
    await failureOf(engine.client.generate(request(), new RecordingSink(), never));
    return engine;
  },
});

const realModels = { completion: "demo", embedding: "embedding", rerank: "rerank" } as const;

engineConformance({
  name: "llama.cpp",
  slots: 2,
  ctxPerSlot: 2048,
  followsGrammar: true,
  namesTokens: true,
  rendersChats: true,
  longPrompt: "the small river ".repeat(300),
  tooLongPrompt: "the small river ".repeat(1500),
  start: (workload) =>
    startLlamaCpp({
      modelPath: testModel(realModels[workload]),
      workloads: [workload],
      slots: workload === "completion" ? 2 : 1,
      ctx: 2048,
    }),
  unreachable: async () => {
    const engine = await startLlamaCpp();
    process.kill(-engine.pid, "SIGKILL");
    await engine.exited;
    return engine;
  },
});

/** As a child, and then as if it ran elsewhere: over TCP, with a key, through what it offers of the OpenAI API. */
async function startElsewhere(workload: Workload) {
  const child = await startServer(workload);
  const client = connect(child.pool);
  await client.identity(never);
  return {
    client,
    stop: async () => {
      client.close();
      await child.stop();
    },
    kill: child.kill,
  };
}

async function startServer(workload: Workload) {
  const key = "a-key-for-the-server-elsewhere";
  const server = await startLlamaServer(testModel(realModels[workload]), workload, key);
  const pool = llamaPool({
    id: "elsewhere",
    engine: "openai",
    modelRef: "whatever-it-is-called",
    modelPath: null,
    workloads: [workload],
    slots: workload === "completion" ? 2 : 1,
    remote: {
      baseUrl: server.url,
      kind: "auto",
      key: { from: "env", name: "KEY", secret: { reveal: () => key } },
    },
  });
  return { ...server, pool };
}

const connect = (pool: PoolSpec) => new OpenAiAdapter({ clock, entropy }).connectInProcess(pool);

engineConformance({
  name: "openai, a real llama-server",
  slots: 2,
  ctxPerSlot: 2048,
  followsGrammar: true,
  namesTokens: false,
  rendersChats: true,
  longPrompt: "the small river ".repeat(300),
  tooLongPrompt: "the small river ".repeat(1500),
  start: startElsewhere,
  unreachable: async () => {
    const engine = await startElsewhere("completion");
    await engine.kill();
    return engine;
  },
});

const startWords = async (workload: Workload) => {
  const server = new OpenAiServer({ slots: 3, ctx: 2048, workloads: [workload], key: "words-key" });
  server.pieceBytes = 7;
  const client = connect(server.pool({ slots: 3, workloads: [workload] }));
  await client.identity(never);
  const stop = async () => {
    client.close();
    await server.stop();
  };
  return { client, stop, server };
};

engineConformance({
  name: "openai, as vLLM answers",
  slots: 3,
  ctxPerSlot: 2048,
  followsGrammar: false,
  namesTokens: true,
  rendersChats: false,
  longPrompt: "the small river ".repeat(400),
  tooLongPrompt: "the small river ".repeat(800),
  start: startWords,
  unreachable: async () => {
    const engine = await startWords("completion");
    await engine.server.stop();
    return engine;
  },
});

describe("mock engine: scripted faults", () => {
  const start = (mock: Partial<MockOptions>) => {
    const virtual = new VirtualClock();
    const adapter = new MockAdapter({ clock: virtual, entropy: new SeededEntropy(1) });
    return {
      virtual,
      client: adapter.connectInProcess(mockPool(mock), "mock-0"),
      adapter,
      pool: mockPool(mock),
    };
  };
  const run = async (
    engine: ReturnType<typeof start>,
    sink = new RecordingSink(),
    client = engine.client,
  ) => {
    const call = client.generate(request({ maxTokens: 12 }), sink, never);
    const outcome = failureOf(call);
    await engine.virtual.runUntilIdle();
    return outcome;
  };

  test("time: prefill, then one token each tokenMs", async () => {
    const engine = start({ tokenMs: 10, prefillMsPerToken: 2 });
    const fromMs = engine.virtual.nowMs();
    const atMs: number[] = [];
    const sink = new RecordingSink((now) => {
      if (now.pieces.length > atMs.length) atMs.push(engine.virtual.nowMs() - fromMs);
    });
    expect(await run(engine, sink)).toBe("it succeeded");
    const prefillMs = (sink.prompts[0]?.[0] ?? 0) * 2;
    expect(atMs).toEqual(Array.from({ length: 12 }, (_, i) => prefillMs + i * 10));
    expect(engine.virtual.pendingTimers).toBe(0);
  });

  test("crash: the nth generation of the pool ends it, over incarnations, and only that one", async () => {
    const engine = start({ faults: [fault("crash", { nth: 2, afterTokens: 3 })] });
    expect(await run(engine)).toBe("it succeeded");
    const sink = new RecordingSink();
    expect(await run(engine, sink)).toBe("connection");
    expect(sink.pieces).toHaveLength(3);
    expect(await engine.client.exited).toContain("crashed");
    expect(await failureOf(engine.client.health(never))).toBe("unreachable");
    const next = engine.adapter.connectInProcess(engine.pool, "mock-0");
    expect(await next.health(never)).toBe("ok");
    expect(await run(engine, new RecordingSink(), next)).toBe("it succeeded");
  });

  test("stall: says some tokens, then nothing until it is aborted", async () => {
    const engine = start({ tokenMs: 1, faults: [fault("stall", { afterTokens: 2 })] });
    const abort = new AbortController();
    const sink = new RecordingSink();
    const outcome = failureOf(engine.client.generate(request(), sink, abort.signal));
    await engine.virtual.advance(60_000);
    expect(sink.pieces).toHaveLength(2);
    abort.abort();
    expect(await outcome).toBe("aborted");
    await engine.client.awaitSlotFree(0, never);
  });

  test("late: the first token comes after the delay", async () => {
    const engine = start({ faults: [fault("late", { nth: 1, delayMs: 5_000 })] });
    const sink = new RecordingSink();
    const outcome = failureOf(engine.client.generate(request(), sink, never));
    await engine.virtual.advance(4_999);
    expect(sink.pieces).toHaveLength(0);
    await engine.virtual.advance(2);
    expect(await outcome).toBe("it succeeded");
  });

  test("torn_utf8: what the sink hears is whole, and the same text", async () => {
    const clean = new RecordingSink();
    await run(start({}), clean);
    const torn = new RecordingSink();
    await run(start({ faults: [fault("torn_utf8")] }), torn);
    expect(torn.text).toBe(clean.text);
    expect(torn.pieces.every((piece) => piece.isWellFormed() && !piece.includes("\ufffd"))).toBe(true);
    expect(torn.ids.flat()).toEqual(clean.ids.flat());
  });

  test("wrong_status and diverge", async () => {
    expect(await run(start({ faults: [fault("wrong_status")] }))).toBe("protocol");
    const clean = new RecordingSink();
    await run(start({}), clean);
    const diverging = new RecordingSink();
    await run(start({ faults: [fault("diverge", { afterTokens: 4 })] }), diverging);
    expect(diverging.pieces.slice(0, 4)).toEqual(clean.pieces.slice(0, 4));
    expect(diverging.text).not.toBe(clean.text);
  });

  test("never_ready loads for ever, load_failure dies; the next start is another one", async () => {
    const never1 = start({ loadMs: 100, faults: [fault("never_ready", { nth: 1 })] });
    await never1.virtual.advance(3_600_000);
    expect(await never1.client.health(never)).toBe("loading");
    const failing = start({ loadMs: 100, faults: [fault("load_failure", { nth: 1 })] });
    expect(await failing.client.health(never)).toBe("loading");
    await failing.virtual.advance(101);
    expect(await failing.client.exited).toContain("failed to load");
    const next = failing.adapter.connectInProcess(failing.pool, "mock-0");
    await failing.virtual.advance(101);
    expect(await next.health(never)).toBe("ok");
  });

  test("without delays thousands of tasks a second pass, and timers still fire", async () => {
    const client = new MockAdapter({ clock, entropy }).connectInProcess(
      mockPool({}, { slots: 16 }),
      "mock-0",
    );
    let fired = 0;
    let timer = clock.setTimer(1, function again() {
      fired += 1;
      timer = clock.setTimer(1, again);
    });
    const before = process.cpuUsage();
    const slots = Array.from({ length: 16 }, async (_, slot) => {
      for (let i = 0; i < 125; i++) await client.generate(request({ slot }), new RecordingSink(), never);
    });
    await within(10_000, "2,000 tasks", Promise.all(slots));
    timer.cancel();
    // By CPU time: the machine may be busy with other tests.
    const cpu = process.cpuUsage(before);
    expect(2_000 / ((cpu.user + cpu.system) / 1e6)).toBeGreaterThan(5_000);
    expect(fired).toBeGreaterThan(0);
    client.close();
  });
});
