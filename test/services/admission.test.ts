/** What admission makes of a request: pool, defaults, sizes; what it refuses and what it says then. */
import { afterEach, describe, expect, test } from "bun:test";
import { anywhere, type PlacementWish } from "../../src/domain/pool-choice.ts";
import type { Submission } from "../../src/services/admission.ts";
import type { Submitted } from "../../src/services/mailbox.ts";
import { mockPool, Rig, type RigOptions, submission } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

async function submit(more: Partial<Submission> = {}): Promise<Submitted> {
  const submitted = rig.admission.submit(submission(more));
  submitted.catch(() => undefined);
  await rig.clock.advance(0);
  return submitted;
}
async function started(options: RigOptions = {}): Promise<Rig> {
  rig = await new Rig(options).start();
  return rig;
}
const refused = async (more: Partial<Submission>, error: Record<string, unknown>): Promise<void> => {
  let seen: unknown = null;
  await submit(more).catch((e: unknown) => {
    seen = e;
  });
  expect(seen).toMatchObject(error);
};

const pin = (pinPoolId: string, more: Partial<PlacementWish> = {}): Partial<Submission> => ({
  placement: { ...anywhere, mode: "pin", pinPoolId, ...more },
});
const place = (more: Partial<PlacementWish>): Partial<Submission> => ({
  placement: { ...anywhere, ...more },
});

const words = (count: number): string => "word ".repeat(count).trim();
const invalid = (field: string) => ({ code: "INVALID_PARAMS", details: { field } });

test("a bare prompt gets every default", async () => {
  await started();
  const { record } = await submit();
  expect(record.spec).toMatchObject({
    workload: "completion",
    poolId: "chat",
    pinned: false,
    modelRef: "mock:words",
    priority: "interactive",
    maxTokens: 8,
    ctx: 4096,
    deadlineMs: null,
    kvHint: "reuse",
    onDisconnect: "cancel",
    samplerProfileVersion: "v1",
    sampling: { temperature: 0.8, topK: 40 },
  });
  expect(record.spec.taskId).toMatch(/^[0-9a-f-]{36}$/);
});

test("what is asked for wins over the profile, the rest of the profile stays", async () => {
  await started();
  const { record } = await submit({ sampling: { temperature: 0, stop: ["x"] }, seed: 4, maxTokens: 3 });
  expect(record.spec).toMatchObject({
    seed: 4,
    maxTokens: 3,
    sampling: { temperature: 0, stop: ["x"], topK: 40 },
  });
});

describe("the pool", () => {
  const two = () =>
    started({
      pools: [
        mockPool({ id: "small", modelRef: "mock:small" }),
        mockPool({ id: "big", modelRef: "mock:big", slots: 4, workloads: ["completion", "embedding"] }),
      ],
    });

  test("is the one that is pinned, or that serves the model by any of its names", async () => {
    await two();
    expect((await submit(pin("big"))).record.spec).toMatchObject({ poolId: "big", pinned: true });
    expect((await submit({ modelRef: "mock:small" })).record.spec).toMatchObject({
      poolId: "small",
      pinned: false,
    });
    expect((await submit({ modelRef: "small" })).record.spec.poolId).toBe("small");
  });

  test("is the one with the least to do for each slot", async () => {
    await two();
    const chosen: string[] = [];
    for (let n = 0; n < 5; n++) chosen.push((await submit({ maxTokens: 500 })).record.spec.poolId);
    expect(chosen).toEqual(["big", "small", "big", "big", "big"]);
  });

  test("must offer the workload and the model; the nearest name is told", async () => {
    await two();
    expect((await submit({ input: { kind: "embedding", inputs: ["a"] } })).record.spec.poolId).toBe("big");
    await refused(pin("bigg"), {
      ...invalid("placement.pin_pool_id"),
      message: expect.stringContaining("big"),
    });
    await refused({ modelRef: "mock:smal" }, { details: { field: "model_ref", nearest: "mock:small" } });
    await refused({ ...pin("big"), modelRef: "small" }, invalid("model_ref"));
    await refused({ engine: "llamacpp" }, { code: "INVALID_PARAMS", details: { engine: "llamacpp" } });
    await refused(
      { input: { kind: "rerank", query: "q", inputs: ["a"] } },
      { details: { workload: "rerank" } },
    );
  });

  test("that is full or given up is passed over while another takes tasks", async () => {
    const broken = { kind: "load_failure" as const, nth: null, afterTokens: 0, delayMs: 0 };
    await started({
      pools: [
        mockPool({ id: "a", mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 0, faults: [broken] } }),
        mockPool({ id: "b" }),
      ],
    });
    await rig.clock.advance(2000);
    expect(rig.admission.probe().map((p) => p.error?.code ?? null)).toEqual(["POOL_UNAVAILABLE", null]);
    expect((await submit()).record.spec.poolId).toBe("b");
    await refused(pin("a"), { code: "POOL_UNAVAILABLE" });
  });
});

describe("placement", () => {
  const three = () =>
    started({
      pools: [
        mockPool({ id: "a", modelRef: "mock:a", devices: ["gpu-0"] }),
        mockPool({ id: "b", modelRef: "mock:b", devices: ["gpu-0", "gpu-1"] }),
        mockPool({ id: "c", modelRef: "mock:c" }),
      ],
    });
  const placed = async (more: Partial<Submission>) => {
    const { poolId, pinned } = (await submit(more)).record.spec;
    return [poolId, pinned];
  };

  test("goes where it is wanted, and elsewhere as far as that is allowed", async () => {
    await three();
    const fill = { ...pin("c"), maxTokens: 2000 };
    expect(await placed(place({ mode: "prefer", preferPools: ["c", "b"] }))).toEqual(["c", false]);
    for (let n = 0; n < 4; n++) await submit(fill);
    await refused(pin("c"), { code: "ADMISSION_REJECT", poolId: "c" });
    expect(await placed(pin("c", { allowFallback: true }))).toEqual(["a", false]);
    expect(await placed(place({ mode: "prefer", preferPools: ["c", "b"] }))).toEqual(["b", false]);
    const only = { mode: "prefer", preferPools: ["c"], allowFallback: false } as const;
    await refused(place(only), { code: "ADMISSION_REJECT", poolId: "c" });
    expect(await placed(place({ avoidPools: ["a", "c"] }))).toEqual(["b", false]);
    expect(await placed(pin("b"))).toEqual(["b", true]);
  });

  test("that leaves no pool is refused with what ruled out each", async () => {
    await three();
    expect(await placed(place({ requireDevices: [0] }))).toEqual(["a", false]);
    await refused(place({ requireDevices: [1] }), {
      code: "REPLICA_EXHAUSTED",
      status: 503,
      message: expect.stringContaining("b is not confined to the devices"),
      details: {
        field: "placement",
        pools: ["a", "b", "c"].map((pool_id) => ({ pool_id, reason: "other_devices" })),
      },
    });
    await refused(place({ avoidPools: ["a", "b", "c"] }), { code: "REPLICA_EXHAUSTED" });
    await refused(place({ avoidPools: ["d"] }), invalid("placement.avoid_pools"));
    await refused(place({ mode: "prefer", preferPools: ["aa"] }), {
      ...invalid("placement.prefer_pools"),
      message: expect.stringContaining("nearest is a"),
    });
  });

  test("and its reasons are logged with the admission", async () => {
    await three();
    await submit(place({ mode: "prefer", preferPools: ["b"] }));
    expect(rig.log.of("task_admitted").at(-1)).toMatchObject({
      placement: "preferred, a less_preferred, c less_preferred",
    });
  });

  test("that leaves no pool is counted and logged with what ruled out each; a dry run and a wrong request are not", async () => {
    await three();
    await refused(place({ avoidPools: ["d"] }), invalid("placement.avoid_pools"));
    await rig.admission.assess(submission(place({ avoidPools: ["a", "b", "c"] }))).catch(() => undefined);
    expect(rig.metrics.of("placement")).toEqual([]);
    expect(rig.log.of("placement_refused")).toEqual([]);

    await refused(place({ avoidPools: ["a", "b", "c"] }), { code: "REPLICA_EXHAUSTED" });
    await refused(pin("c", { requireDevices: [1] }), { code: "REPLICA_EXHAUSTED" });
    expect(rig.metrics.of("placement")).toEqual([
      ["refused", false, false, 0],
      ["refused", true, false, 0],
    ]);
    expect(rig.log.of("placement_refused").map(({ placement }) => placement)).toEqual([
      "a avoided, b avoided, c avoided",
      "a not_pinned, b not_pinned, c other_devices",
    ]);
    expect(rig.log.of("placement_refused")[0]).toMatchObject({ key_id: "alice" });
  });

  test("looks for a pool that is wide enough", async () => {
    await started({
      pools: [mockPool({ id: "narrow", ctx: 64 }), mockPool({ id: "wide", modelRef: "mock:w", ctx: 256 })],
    });
    expect((await submit({ maxTokens: 100 })).record.spec.poolId).toBe("wide");
    expect((await submit({ maxTokens: 8, ctx: 65 })).record.spec.poolId).toBe("wide");
    await refused({ maxTokens: 256 }, { details: { field: "max_tokens", maximum: 255 } });
    await refused({ ctx: 257 }, { details: { field: "ctx", maximum: 256 } });
  });
});

describe("sizes", () => {
  const small = () => started({ pools: [mockPool({ ctx: 64 })] });

  test("prompt and output fit into the context by the engine's own count", async () => {
    await small();
    // 5 bytes a word: the byte length proves nothing, the engine counts one token for each and one more.
    const { record } = await submit({ input: { kind: "prompt", prompt: words(50) }, maxTokens: 13 });
    expect(record.spec).toMatchObject({ tokensIn: 51, tokensInExact: true });
    await refused(
      { input: { kind: "prompt", prompt: words(50) }, maxTokens: 14 },
      { code: "INVALID_PARAMS", details: { tokens_in: 51, max_tokens: 14, ctx: 64 } },
    );
  });

  test("a prompt whose bytes prove that it fits is not counted", async () => {
    await small();
    expect((await submit({ input: { kind: "prompt", prompt: "hi" } })).record.spec.tokensInExact).toBe(false);
  });

  test("messages are rendered and counted as one prompt", async () => {
    await small();
    const input = { kind: "messages" as const, messages: [{ role: "user" as const, content: words(20) }] };
    const { record } = await submit({ input });
    expect(record.spec.renderedPrompt).toContain("<|user|>");
    expect(record.spec.tokensInExact).toBe(true);
    await refused({ input, maxTokens: 60 }, { code: "INVALID_PARAMS" });
  });

  test("ctx and max_tokens beyond the pool are refused with what it has", async () => {
    await small();
    await refused({ ctx: 65 }, { ...invalid("ctx"), details: { field: "ctx", maximum: 64 } });
    await refused({ maxTokens: 64 }, { details: { field: "max_tokens", maximum: 63 } });
    await refused({ ctx: 10, maxTokens: 10 }, { details: { field: "max_tokens", maximum: 9 } });
  });

  test("of a pool that is not loaded are checked before the first attempt", async () => {
    await started({ pools: [mockPool({ ctx: 64, preload: false })] });
    const { record } = await submit({ input: { kind: "prompt", prompt: words(50) }, maxTokens: 14 });
    expect(record.spec.tokensInExact).toBe(false);
    await rig.clock.advance(1000);
    expect([record.state, record.error?.code]).toEqual(["failed", "INVALID_PARAMS"]);
    expect(record.error?.message).toContain("51 tokens");
  });
});

describe("what does not go together", () => {
  test("is told: a workload with the wrong input, max_tokens where there are none", async () => {
    await started({ pools: [mockPool({ workloads: ["completion", "embedding"] })] });
    await refused({ workload: "embedding" }, invalid("workload"));
    await refused({ input: { kind: "embedding", inputs: ["a"] }, maxTokens: 5 }, invalid("max_tokens"));
  });
});

describe("a deadline", () => {
  test("that has passed is refused", async () => {
    await started();
    await refused({ deadlineMs: 0 }, { code: "DEADLINE_UNMET", status: 400 });
    await refused({ deadlineMs: -5 }, { code: "DEADLINE_UNMET" });
  });

  test("that cannot be met is refused with the prediction, a generous one is taken", async () => {
    await started();
    await submit({ maxTokens: 2000 });
    await refused(
      { maxTokens: 1000, deadlineMs: 2000 },
      {
        code: "DEADLINE_UNMET",
        details: {
          earliest_feasible_ms: expect.any(Number),
          on_time_probability: expect.any(Number),
          predicted_start_ms: expect.any(Number),
        },
      },
    );
    const { record } = await submit({ maxTokens: 10, deadlineMs: 60_000 });
    expect(record.promise.onTimeProbability).toBeGreaterThan(0.9);
  });

  test("is the configured one where the client gives none", async () => {
    await started({ admission: { defaultDeadlineMs: 90_000 } });
    expect((await submit()).record.spec.deadlineMs).toBe(90_000);
  });
});

describe("a task_id that comes again", () => {
  const taskId = "0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e";
  const body = { task_id: taskId, prompt: "x", deadline_ms: 3000 };

  test("gets its first answer, also when the request would be refused by now", async () => {
    await started();
    const asked = { taskId, body, deadlineMs: 3000, maxTokens: 20 };
    const { record } = await submit(asked);
    // The queue has grown: a new task with this deadline would be refused.
    await submit({ maxTokens: 2000 });
    await submit({ maxTokens: 2000 });
    await refused({ deadlineMs: 3000, maxTokens: 20 }, { code: "DEADLINE_UNMET" });
    expect(await submit(asked)).toMatchObject({ repeated: true, record: { spec: record.spec } });
  });

  test("with its keys in another order is the same body", async () => {
    await started();
    await submit({ taskId, body });
    const shuffled = { deadline_ms: 3000, prompt: "x", task_id: taskId };
    expect((await submit({ taskId, body: shuffled })).repeated).toBe(true);
    await refused({ taskId, body: { ...body, prompt: "y" } }, { code: "CONFLICT" });
    await refused({ taskId, body, keyId: "bob" }, { code: "CONFLICT" });
  });

  test("that was drawn here is nobody's to repeat", async () => {
    await started();
    const { record } = await submit();
    await refused({ taskId: record.spec.taskId }, { code: "CONFLICT" });
  });
});

describe("determinism strict", () => {
  test("goes without cached context", async () => {
    await started();
    const { spec } = (await submit({ determinism: "strict" })).record;
    expect(spec).toMatchObject({ determinism: "strict", kvHint: "cold" });
    expect((await submit()).record.spec.determinism).toBe("best_effort");
    await refused({ determinism: "strict", kvHint: "reuse" }, invalid("kv_hint"));
  });
});

describe("a dry run", () => {
  const assess = async (more: Partial<Submission> = {}) => {
    const assessed = rig.admission.assess(submission(more));
    assessed.catch(() => undefined);
    await rig.clock.advance(0);
    return assessed;
  };
  const taskId = "0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e";

  test("promises what the task would be promised, and leaves no trace", async () => {
    await started();
    await submit({ maxTokens: 500 });
    await submit({ maxTokens: 500 });
    const calls = rig.metrics.calls.length;
    const lines = rig.log.lines.length;
    const before = rig.registry.accepted;
    const { promise, choice } = await assess({ taskId, maxTokens: 20, deadlineMs: 60_000 });
    expect(choice).toMatchObject({ poolId: "chat", rule: "only" });
    expect([rig.registry.accepted, rig.metrics.calls.length, rig.log.lines.length]).toEqual([
      before,
      calls,
      lines,
    ]);
    const { record } = await submit({ taskId, maxTokens: 20, deadlineMs: 60_000 });
    expect(record.promise).toEqual(promise);
    expect(promise.queuePosition).toBe(1);
  });

  test("is refused as the task would be, and that is not counted", async () => {
    await started();
    for (let n = 0; n < 5; n++) await submit({ maxTokens: 2000 });
    for (const more of [{}, { modelRef: "none" }, { deadlineMs: 0 }, { maxTokens: 10_000 }] as const) {
      const seen = await assess(more).catch((error: unknown) => error);
      const rejected = rig.metrics.of("taskRejected").length;
      await refused(more, { code: (seen as { code: string }).code, message: (seen as Error).message });
      expect(rig.metrics.of("taskRejected").length).toBe(rejected + 1);
    }
    expect(rig.metrics.of("taskRejected").map(([labels]) => (labels as { reason: string }).reason)).toEqual([
      "ADMISSION_REJECT",
      "INVALID_PARAMS",
      "DEADLINE_UNMET",
      "INVALID_PARAMS",
    ]);
  });

  test("of a task that was accepted before tells its first promise; of another body, the conflict", async () => {
    await started();
    const body = { task_id: taskId, prompt: "x" };
    const { record } = await submit({ taskId, body });
    await submit({ maxTokens: 500 });
    expect(await assess({ taskId, body })).toMatchObject({ promise: record.promise, choice: null });
    const other = assess({ taskId, body: { ...body, prompt: "y" } });
    expect(await other.catch((error: unknown) => error)).toMatchObject({ code: "CONFLICT" });
  });
});

describe("a budget", () => {
  test("is not refused for the bound of a prompt's length: the engine counts where that decides", async () => {
    rig = await new Rig().start();
    const prompt = "word ".repeat(40).trim();
    const fits = submission({ input: { kind: "prompt", prompt }, maxTokens: 4 });
    // 201 by the bytes, 40 or so by the tokenizer.
    const budget = { tokens: 100, timeMs: null, cost: null };
    const told = rig.admission.assess({ ...fits, budget });
    await rig.clock.advance(0);
    expect((await told).spec).toMatchObject({ tokensInExact: true });
    const submitted = rig.admission.submit({ ...fits, budget });
    await rig.clock.advance(100);
    const { record } = await submitted;
    expect(record.spec.tokensIn).toBeLessThan(96);
    const tooSmall = { ...fits, budget: { ...budget, tokens: 20 } };
    await refused(tooSmall, { code: "BUDGET_EXHAUSTED", policyLabel: "budget-tokens" });
  });
});
