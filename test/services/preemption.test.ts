/**
 * Preemption through the dispatcher, the attempt runner and the mock engine: who is cut goes on with what was sent,
 * its end is that of an uncut task, and it all shows in logs and metrics. Who is cut when is test/domain's.
 * Also the bound on a whole task (timeouts.task_ms), and which watchdog guards a continued attempt.
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { MockFault, PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { mockPool, profile, Rig, type RigOptions, told } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const greedy = { ...profile, temperature: 0 };
const preempt = { maxWaitMs: 100, maxCuts: 2, minGainMs: 20 };
const mockOf = (faults: readonly MockFault[] = []): PoolSpec["mock"] => ({
  ...{ tokenMs: 10, prefillMsPerToken: 0, loadMs: 0 },
  faults,
});
const fault = (kind: MockFault["kind"], nth: number, afterTokens: number): MockFault => ({
  ...{ kind, nth, afterTokens, delayMs: 0 },
});

const started = async (pool: Partial<PoolSpec> = {}, more: RigOptions = {}): Promise<void> => {
  rig = await new Rig({ pools: [mockPool({ preempt, mock: mockOf(), ...pool })], ...more }).start();
};
const batch = (more: Partial<TaskSpec> = {}) =>
  accept({ priority: "batch", sampling: greedy, maxTokens: 60, ...more });
async function accept(more: Partial<TaskSpec>): Promise<TaskRecord> {
  const submitted = rig.submit(rig.spec(more));
  await rig.clock.advance(0);
  return (await submitted).record;
}

describe("a batch task that is cut for an interactive one", () => {
  test.each([
    ["greedy, by prefix", {}, "unverified"],
    ["sampled and strict, by replay", { determinism: "strict", sampling: profile }, "yes"],
    ["sampled", { sampling: profile }, "no"],
  ] as const)("goes on afterwards, %s: all its words, each once", async (_, more, exact) => {
    await started({ preempt: null });
    const whole = await batch(more);
    await rig.clock.advance(5000);
    const { text } = told(whole);
    await rig.stop();

    await started();
    const task = await batch(more);
    await rig.clock.advance(100);
    const quick = await accept({ maxTokens: 5 });
    await rig.clock.advance(5000);
    // It waited no longer than the bound and what the engine took to free the slot.
    expect((quick.startedMs ?? 0) - quick.createdMs).toBeLessThanOrEqual(preempt.maxWaitMs + 20);
    expect(quick.finishedMs ?? 0).toBeLessThan(task.finishedMs ?? 0);
    const seen = told(task);
    if (exact !== "no") expect(seen.text).toBe(text);
    expect(seen.numbers).toEqual(Array.from({ length: 60 }, (_n, at) => at));
    expect(seen.started).toBe(1);
    expect(seen.last).toMatchObject({
      event: "end",
      data: { exact, continuations: 1, tokens_out: 60, finish_reason: "length" },
    });
    expect(task.attempts).toBe(2);
    expect(rig.metrics.of("taskPreempted")).toEqual([
      [{ engine: "mock", engineVersion: task.engineVersion, poolId: "chat", replicaId: "chat-0" }],
    ]);
    expect(rig.log.of("task_requeued")).toEqual([
      expect.objectContaining({ task_id: task.spec.taskId, cut: "preempted", attempt: 1 }),
    ]);
  });

  test("is cut no more than max_cuts times, whoever comes", async () => {
    await started();
    const task = await batch({ maxTokens: 200 });
    const quick: TaskRecord[] = [];
    for (let n = 0; n < 4; n++) {
      quick.push(await accept({ maxTokens: 5 }));
      await rig.clock.advance(400);
    }
    await rig.clock.advance(5000);
    expect(rig.metrics.of("taskPreempted")).toHaveLength(preempt.maxCuts);
    expect(told(task).last).toMatchObject({ event: "end", data: { continuations: 2, tokens_out: 200 } });
    for (const record of quick) expect(told(record).last?.event).toBe("end");
  });

  test("an interactive one that would miss its deadline does not wait for the bound", async () => {
    await started({ preempt: { ...preempt, maxWaitMs: 10_000 } }, { minOnTimeProbability: 0 });
    const task = await batch({ maxTokens: 300 });
    await rig.clock.advance(200);
    const quick = await accept({ maxTokens: 5, deadlineMs: 600 });
    await rig.clock.advance(600);
    expect(told(quick).last?.event).toBe("end");
    await rig.clock.advance(5000);
    expect(told(task).last).toMatchObject({ event: "end", data: { continuations: 1, tokens_out: 300 } });
  });

  test("canceled in the moment of its cut it is canceled, and its slot goes on", async () => {
    await started();
    const task = await batch();
    await rig.clock.advance(50);
    const quick = await accept({ maxTokens: 5 });
    await rig.clock.advance(preempt.maxWaitMs - 1);
    rig.clock.setTimer(1, () => void rig.dispatcher.cancel(task.spec.taskId, "client"));
    await rig.clock.advance(1);
    await rig.clock.advance(500);
    expect(told(task).last).toMatchObject({ event: "error", data: { code: "CANCELED" } });
    expect(told(quick).last?.event).toBe("end");
    expect(rig.runner.size).toBe(0);
  });

  test("nobody is cut where nobody waits, and where the pool does not say so", async () => {
    await started({ preempt: null });
    const task = await batch();
    await accept({ maxTokens: 5 });
    await rig.clock.advance(5000);
    expect(task.attempts).toBe(1);
    expect(rig.metrics.of("taskPreempted")).toEqual([]);
  });
});

describe("a cut", () => {
  const running = async () => {
    await started({ preempt: null });
    const record = await batch();
    await rig.clock.advance(105);
    return record;
  };
  // The first lease of a scheduler.
  const leaseId = 1;

  test("ends the attempt once, whatever else comes for it, and nothing is said after it", async () => {
    const record = await running();
    const { tokensOut } = record;
    rig.runner.cut(leaseId, "drain");
    rig.runner.cut(leaseId, "reload");
    rig.runner.abort(leaseId);
    rig.runner.cut(99, "drain");
    expect(record.log.tokenCount).toBe(tokensOut);
    await rig.clock.advance(5000);
    expect(rig.log.of("task_requeued").map(({ cut }) => cut)).toEqual(["drain"]);
    expect(told(record).last).toMatchObject({ event: "end", data: { tokens_out: 60, continuations: 1 } });
    rig.runner.cut(leaseId, "drain");
  });

  test("counts for nothing: a task may be cut more often than tasks.max_attempts", async () => {
    const record = await running();
    for (let lease = leaseId; lease < leaseId + 5; lease++) {
      rig.runner.cut(lease, "reload");
      await rig.clock.advance(1);
    }
    await rig.clock.advance(5000);
    expect(record.attempts).toBe(6);
    expect(told(record).last?.event).toBe("end");
  });

  test("does nothing to an attempt that was canceled before", async () => {
    const record = await running();
    const canceled = rig.dispatcher.cancel(record.spec.taskId, "client");
    await rig.clock.advance(0);
    await canceled;
    rig.runner.cut(leaseId, "drain");
    await rig.clock.advance(500);
    expect(record.state).toBe("canceled");
    expect(rig.log.of("task_requeued")).toEqual([]);
  });
});

describe("timeouts.task_ms", () => {
  test("ends a task that runs longer and names the key; its engine is not blamed", async () => {
    await started({ taskTimeoutMs: 300 });
    const record = await batch({ maxTokens: 500 });
    await rig.clock.advance(299);
    expect(record.state).toBe("running");
    await rig.clock.advance(2);
    expect(record.state).toBe("failed");
    const { last } = told(record);
    expect(last).toMatchObject({ event: "error", data: { code: "DECODE_TIMEOUT", retriable: true } });
    expect(String(last?.data.message)).toContain("timeouts.task_ms");
    const next = await accept({ maxTokens: 5 });
    await rig.clock.advance(500);
    expect(next.state).toBe("done");
    expect(rig.supervisor.snapshots("chat").map(({ restarts }) => restarts)).toEqual([0]);
  });

  test("counts the attempts together and not the time between them", async () => {
    await started({ taskTimeoutMs: 700 });
    const record = await batch({ maxTokens: 500 });
    await rig.clock.advance(100);
    await accept({ maxTokens: 50 });
    await rig.clock.advance(100);
    expect(record.state).toBe("queued");
    await rig.clock.advance(500);
    expect(record.state).toBe("running");
    const cutMs = 100 + preempt.maxWaitMs;
    await rig.clock.advance(700 - cutMs + 500);
    expect(record.error?.code).toBe("DECODE_TIMEOUT");
    const ranMs = (record.finishedMs ?? 0) - record.createdMs;
    expect(ranMs).toBeGreaterThan(700 + 400);
  });

  test("leaves alone what ends in time, and no timer stays", async () => {
    await started({ taskTimeoutMs: 1000 });
    const record = await batch({ maxTokens: 20 });
    await rig.clock.advance(2000);
    expect(record.state).toBe("done");
  });
});

test("inter_token_ms guards an engine that only repeats what was sent, once it has said anything", async () => {
  await started({ preempt: null, mock: mockOf([fault("crash", 1, 12), fault("stall", 2, 3)]) });
  const record = await batch({ determinism: "strict", sampling: profile, maxTokens: 24 });
  await rig.clock.advance(20_000);
  expect(told(record).last).toMatchObject({ event: "end", data: { exact: "yes", tokens_out: 24 } });
  const messages = rig.log.of("task_requeued").map(({ human }) => String(human));
  expect(messages[1]).toContain("timeouts.inter_token_ms");
});
