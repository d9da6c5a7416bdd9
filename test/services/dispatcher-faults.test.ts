/** The dispatcher when engines crash, stall and stay away, when deadlines pass and when the daemon drains. */
import { afterEach, describe, expect, test } from "bun:test";
import type { MockFault, PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { mockPool, Rig, type RigOptions, replay } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const fault = (more: Partial<MockFault>): MockFault => ({
  kind: "crash",
  nth: null,
  afterTokens: 0,
  delayMs: 0,
  ...more,
});
const faulty = (faults: readonly MockFault[], more: Partial<PoolSpec> = {}): RigOptions => ({
  pools: [mockPool({ mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 0, faults }, ...more })],
});

async function accept(more: Partial<TaskSpec> = {}): Promise<TaskRecord> {
  const submitted = rig.submit(rig.spec(more));
  await rig.clock.advance(0);
  return (await submitted).record;
}
const lastOf = (record: TaskRecord): unknown => replay(record).at(-1)?.data.code ?? record.state;

describe("an engine that is lost", () => {
  test("before the first token costs the task nothing but time", async () => {
    rig = await new Rig(faulty([fault({ nth: 1 })])).start();
    const record = await accept();
    const next = await accept();
    await rig.clock.advance(2000);
    expect([record.state, record.attempts, next.state, next.attempts]).toEqual(["done", 2, "done", 1]);
    expect(record.startedMs ?? 0).toBeLessThan(next.startedMs ?? 0);
    expect(replay(record).filter((e) => e.event === "started").length).toBe(1);
    expect(rig.log.of("task_requeued").length).toBe(1);
  });

  test("again and again fails the task after attemptsMax attempts", async () => {
    rig = await new Rig(faulty([fault({})])).start();
    const record = await accept();
    await rig.clock.advance(10_000);
    expect([record.state, record.attempts, lastOf(record)]).toEqual(["failed", 3, "WORKER_RESET"]);
    expect(replay(record).at(-1)?.data).toMatchObject({ retriable: true, engine: "mock" });
    // Its client is told to send it again, the log of a task that waits again is not.
    const again = ": submit the task again";
    const told = String(replay(record).at(-1)?.data.message);
    expect(told.slice(-again.length)).toBe(again);
    const cause = told.slice(0, -again.length);
    expect(rig.log.of("task_requeued").map(({ human }) => human)).toEqual(
      [1, 2].map((n) => `attempt ${n} was cut and the task waits again: ${cause}`),
    );
  });

  test("after tokens costs the task nothing but time, too", async () => {
    rig = await new Rig(faulty([fault({ nth: 1, afterTokens: 3 })])).start();
    const record = await accept({ maxTokens: 9 });
    const next = await accept();
    await rig.clock.advance(2000);
    const events = replay(record).filter((e) => e.event !== "metrics");
    expect(events.map((e) => e.event)).toEqual(["started", ...Array(9).fill("token"), "end"]);
    expect([record.attempts, record.state, next.state]).toEqual([2, "done", "done"]);
    expect(record.startedMs ?? 0).toBeLessThan(next.startedMs ?? 0);
  });

  // ORCHD-ATT-3
  test("twice in a row under tasks makes them run alone, and only the one that crashes it fails", async () => {
    const faults = [1, 4, 7].map((nth) => fault({ nth }));
    rig = await new Rig(faulty(faults, { slots: 3 })).start();
    const submitted = [1, 2, 3, 4].map(() => rig.submit(rig.spec()));
    await rig.clock.advance(10_000);
    const records = (await Promise.all(submitted)).map((s) => s.record);
    expect(records.map((r) => r.state)).toEqual(["failed", "done", "done", "done"]);
    expect(records.map((r) => r.attempts)).toEqual([3, 3, 3, 1]);
    const names = new Map(records.map((record, index) => [record.spec.taskId, "abcd"[index]]));
    const told = rig.log.lines
      .filter(({ event }) => /^task_(started|done|failed)$/.test(event))
      .map(({ event, fields }) => `${names.get(String(fields.task_id))} ${event}`);
    const shared = ["a", "b", "c"].map((name) => `${name} task_started`);
    const alone = (name: string, end: string) => [`${name} task_started`, `${name} task_${end}`];
    const afterwards = [alone("a", "failed"), ...["b", "c", "d"].map((name) => alone(name, "done"))];
    expect(told).toEqual([...shared, ...shared, ...afterwards.flat()]);
  });

  test("takes all its tasks with it, and they come back in their order", async () => {
    rig = await new Rig(faulty([fault({ nth: 1 })], { slots: 3 })).start();
    // All in one turn: the crash comes before any of them has spoken.
    const submitted = [1, 2, 3, 4].map(() => rig.submit(rig.spec()));
    await rig.clock.advance(2000);
    const records = (await Promise.all(submitted)).map((s) => s.record);
    expect(records.map((r) => r.state)).toEqual(["done", "done", "done", "done"]);
    const starts = rig.log.of("task_started").map((line) => line.task_id);
    const ids = records.map((r) => r.spec.taskId);
    expect(starts.slice(3)).toEqual([ids[0] ?? "", ids[1] ?? "", ids[2] ?? "", ids[3] ?? ""]);
  });

  test("while a task is canceled leaves neither token nor slot behind", async () => {
    rig = await new Rig(faulty([fault({ nth: 1, afterTokens: 2 })])).start();
    const record = await accept({ maxTokens: 50 });
    rig.clock.setTimer(20, () => void rig.dispatcher.cancel(record.spec.taskId, "client"));
    await rig.clock.advance(2000);
    expect(record.error?.code).toBe("CANCELED");
    expect([await accept().then((r) => r.state), rig.registry.liveCount]).toEqual(["running", 1]);
  });
});

describe("a pool that is given up", () => {
  test("fails what waits, refuses what comes, and takes tasks again when it is back", async () => {
    const failures = [1, 2, 3].map((nth) => fault({ kind: "load_failure", nth }));
    rig = new Rig(faulty(failures, { preload: false }));
    rig.supervisor.start(rig.pools, rig.dispatcher);
    const record = await accept();
    await rig.clock.advance(2000);
    expect(lastOf(record)).toBe("POOL_UNAVAILABLE");
    expect(rig.dispatcher.refusalFor("chat", "batch")).toMatchObject({
      code: "POOL_UNAVAILABLE",
      status: 503,
    });
    await rig.clock.advance(12_000);
    const later = await accept();
    await rig.clock.advance(1000);
    expect(later.state).toBe("done");
  });
});

describe("the watchdog", () => {
  test("cuts an attempt without a first token; the task fails when all its attempts were such", async () => {
    rig = await new Rig(faulty([fault({ kind: "stall" })])).start();
    const record = await accept();
    await rig.clock.advance(499);
    expect(record.attempts).toBe(1);
    await rig.clock.advance(2);
    expect(record.attempts).toBe(2);
    await rig.clock.advance(2000);
    expect([record.state, record.attempts, lastOf(record)]).toEqual(["failed", 3, "DECODE_TIMEOUT"]);
  });

  test("cuts an attempt that stops speaking", async () => {
    rig = await new Rig(faulty([fault({ kind: "stall", nth: 1, afterTokens: 4 })])).start();
    const record = await accept({ maxTokens: 9 });
    const next = await accept();
    await rig.clock.advance(229);
    expect(record.state).toBe("running");
    await rig.clock.advance(2);
    expect([record.attempts, record.state, next.state]).toEqual([2, "running", "queued"]);
    await rig.clock.advance(200);
    expect([record.state, record.tokensOut, next.state]).toEqual(["done", 9, "done"]);
  });

  test("lets a slow engine be slow", async () => {
    const mock = {
      tokenMs: 199,
      prefillMsPerToken: 0,
      loadMs: 0,
      faults: [fault({ kind: "late", delayMs: 480 })],
    };
    rig = await new Rig({ pools: [mockPool({ mock })] }).start();
    await rig.clock.advance(2000);
    const record = await accept({ maxTokens: 20 });
    await rig.clock.advance(10_000);
    expect([record.state, record.attempts]).toEqual(["done", 1]);
  });
});

describe("a deadline", () => {
  test("ends a task that waits beyond it", async () => {
    rig = await new Rig({ minOnTimeProbability: 0 }).start();
    await accept({ maxTokens: 300 });
    const record = await accept({ deadlineMs: 1000 });
    await rig.clock.advance(999);
    expect(record.state).toBe("queued");
    await rig.clock.advance(2);
    expect([record.state, lastOf(record)]).toEqual(["failed", "DEADLINE_UNMET"]);
  });

  test("does not end a task that runs", async () => {
    rig = await new Rig({ minOnTimeProbability: 0 }).start();
    const record = await accept({ maxTokens: 300, deadlineMs: 1000 });
    await rig.clock.advance(5000);
    expect(record.state).toBe("done");
  });

  test("that passed while the task ran ends it when it would have to start again", async () => {
    rig = await new Rig(faulty([fault({ kind: "stall", nth: 1 })])).start();
    const record = await accept({ deadlineMs: 300 });
    await rig.clock.advance(600);
    expect([record.state, record.attempts, lastOf(record)]).toEqual(["failed", 1, "DEADLINE_UNMET"]);
  });

  test("leaves no timer when the task ends before it", async () => {
    rig = await new Rig().start();
    const armed = rig.clock.pendingTimers;
    await accept({ deadlineMs: 1e6 });
    await rig.clock.advance(10_000);
    expect(rig.clock.pendingTimers).toBe(armed);
  });
});

describe("draining", () => {
  test("is over when the last task is done", async () => {
    rig = await new Rig().start();
    const record = await accept({ maxTokens: 50 });
    let idle = false;
    rig.dispatcher.close();
    const done = rig.dispatcher.idle().then(() => {
      idle = true;
    });
    await rig.clock.advance(400);
    expect(idle).toBe(false);
    await rig.clock.advance(300);
    await done;
    expect([idle, record.state]).toEqual([true, "done"]);
    await rig.dispatcher.idle();
  });

  test("starts nothing that still waits, and keeps it", async () => {
    rig = await new Rig().start();
    const running = await accept({ maxTokens: 20 });
    const waiting = await accept();
    rig.dispatcher.close();
    const done = rig.dispatcher.idle();
    await rig.clock.advance(1000);
    await done;
    expect([running.state, waiting.state, waiting.log.sealed]).toEqual(["done", "queued", false]);
    const kept = rig.store.reopen("kill").recover().live;
    expect(kept.map(({ spec }) => spec.taskId)).toEqual([waiting.spec.taskId]);
  });

  test("keeps at the deadline what still runs and waits; both run in the next process, in their order", async () => {
    rig = await new Rig().start();
    const records = [await accept({ maxTokens: 500 }), await accept()];
    await rig.clock.advance(100);
    rig.dispatcher.close();
    const done = rig.dispatcher.idle();
    rig.dispatcher.halt();
    await rig.clock.advance(0);
    await done;
    expect(records.map(({ log }) => log.sealed)).toEqual([false, false]);
    await rig.clock.advance(100);
    expect(rig.runner.size).toBe(0);
    const store = rig.store.reopen("power");
    await rig.stop();
    rig = await new Rig({ store }).start();
    await rig.clock.advance(10_000);
    const ids = records.map(({ spec }) => spec.taskId);
    expect(rig.log.of("task_started").map((line) => line.task_id)).toEqual(ids);
    expect(ids.map((id) => rig.registry.get(id).state)).toEqual(["done", "done"]);
  });
});

test("looking at a slot that is still being freed does not need the record of its task", async () => {
  rig = await new Rig({ retentionMs: 0 }).start();
  const record = await accept({ maxTokens: 300 });
  await rig.clock.advance(100);
  void rig.dispatcher.cancel(record.spec.taskId, "client");
  await rig.clock.advance(0);
  rig.registry.prune(rig.clock.nowMs() + 1);
  expect(rig.dispatcher.view.tokensInUse("chat-0")).toBe(0);
});
