/**
 * The dispatcher's promises at their edges: deadlines, full queues, tasks that run alone, the stop of the daemon
 * (ORCHD-TASK-5, ORCHD-TASK-11, ORCHD-ADM-1, ORCHD-CLI-4).
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { mockPool, Rig, type RigOptions, replay } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const tick = () => rig.clock.advance(0);
const pool = (more: Partial<PoolSpec> = {}): RigOptions => ({ pools: [mockPool(more)] });

async function accept(more: Partial<TaskSpec> = {}): Promise<TaskRecord> {
  const submitted = rig.submit(rig.spec(more));
  submitted.catch(() => undefined);
  await tick();
  return (await submitted).record;
}
/** The code and the policy of a refusal. */
async function refused(more: Partial<TaskSpec> = {}): Promise<string> {
  const submitted = rig.submit(rig.spec(more)).then(
    () => "accepted",
    (error) => `${error.code} ${error.policyLabel}`,
  );
  await tick();
  return submitted;
}
const codes = (record: TaskRecord): unknown[] =>
  replay(record)
    .filter(({ event }) => event === "error")
    .map(({ data }) => data.code);
const tookMs = ({ finishedMs, createdMs }: TaskRecord): number => (finishedMs ?? Number.NaN) - createdMs;

describe("a deadline", () => {
  /** A pool that knows how fast it is: 10 ms a token, answers as long as max_tokens. */
  async function learned(options: RigOptions = {}): Promise<void> {
    rig = await new Rig({ minOnTimeProbability: 0, ...options }).start();
    for (let n = 0; n < 12; n++) {
      await accept({ maxTokens: 100 });
      await rig.clock.advance(1_100);
    }
    expect(rig.dispatcher.forecast.prediction("chat").basis).toBe("learned");
  }

  test("fails a task that waits as soon as it can no longer make it", async () => {
    await learned();
    await accept({ maxTokens: 400 });
    const armed = rig.clock.pendingTimers;
    const waiting = await accept({ maxTokens: 100, deadlineMs: 2_000 });
    await rig.clock.advance(2_000);
    expect(codes(waiting)).toEqual(["DEADLINE_UNMET"]);
    // It needs 500 ms at the very least: half of what was measured.
    expect(tookMs(waiting)).toBeGreaterThan(1_000);
    expect(tookMs(waiting)).toBeLessThan(1_600);
    expect(rig.store.find(waiting.spec.taskId)?.ended).toMatchObject({ state: "failed", startedMs: null });
    expect(rig.clock.pendingTimers).toBe(armed);
  });

  test("that is the last moment to start is no matter to a task that runs", async () => {
    await learned();
    const record = await accept({ maxTokens: 100, deadlineMs: 1_050 });
    await rig.clock.advance(2_000);
    expect([record.state, tookMs(record)]).toEqual(["done", 990]);
  });

  for (const cutAtDeadline of [true, false])
    test(`cut_at_deadline ${cutAtDeadline}: a running task ${cutAtDeadline ? "is cut" : "goes on"}`, async () => {
      rig = await new Rig({ minOnTimeProbability: 0, cutAtDeadline }).start();
      const record = await accept({ maxTokens: 200, deadlineMs: 1_000 });
      const next = await accept();
      await rig.clock.advance(1_100);
      if (cutAtDeadline) {
        expect([codes(record), tookMs(record)]).toEqual([["DEADLINE_UNMET"], 1_000]);
        expect(record.tokensOut).toBeGreaterThan(90);
        expect([next.state, rig.runner.size, rig.dispatcher.view.slotsBusy("chat-0")]).toEqual([
          "done",
          0,
          0,
        ]);
      } else {
        expect([record.state, next.state]).toEqual(["running", "queued"]);
        await rig.clock.advance(2_000);
        expect([record.state, next.state]).toEqual(["done", "done"]);
      }
    });

  test("that is met or given up leaves no timer", async () => {
    rig = await new Rig({ minOnTimeProbability: 0 }).start();
    const armed = rig.clock.pendingTimers;
    const records = [await accept({ deadlineMs: 1e6 }), await accept({ deadlineMs: 1e6 })];
    expect(rig.clock.pendingTimers).toBeGreaterThan(armed + 1);
    void rig.dispatcher.cancel(records[1]?.spec.taskId ?? "", "client");
    await rig.clock.advance(10_000);
    expect(records.map(({ state }) => state)).toEqual(["done", "canceled"]);
    expect(rig.clock.pendingTimers).toBe(armed);
  });
});

describe("a full queue", () => {
  test("drop-lru: the oldest waiting batch task gives way, told so in its stream, and on disk", async () => {
    rig = await new Rig(pool({ fullPolicy: "drop-lru", queueCapacity: 2 })).start();
    await accept({ maxTokens: 50 });
    const [oldest, younger] = [await accept({ priority: "batch" }), await accept({ priority: "batch" })];
    const first = await accept({ priority: "batch" });
    expect([codes(oldest), younger.state, first.state]).toEqual([
      ["QUEUE_FULL_DROP_LRU"],
      "queued",
      "queued",
    ]);
    expect(replay(oldest).at(-1)?.data).toMatchObject({ retriable: true, engine: "mock" });
    expect(rig.store.find(oldest.spec.taskId)?.ended).toMatchObject({
      state: "failed",
      error: { code: "QUEUE_FULL_DROP_LRU" },
    });
    const [second, third] = [await accept(), await accept()];
    expect([codes(younger), codes(first)]).toEqual([["QUEUE_FULL_DROP_LRU"], ["QUEUE_FULL_DROP_LRU"]]);
    // Only interactive ones are left: none of them may be dropped.
    expect(await refused()).toBe("QUEUE_FULL_DROP_LRU drop-lru");
    expect(await refused({ priority: "batch" })).toBe("QUEUE_FULL_DROP_LRU drop-lru");
    await rig.clock.advance(1_000);
    expect([second.state, third.state]).toEqual(["done", "done"]);
  });

  test("drop-lru: one of the same turn may be the one that gives way: taken, then told", async () => {
    rig = await new Rig(pool({ fullPolicy: "drop-lru", queueCapacity: 1 })).start();
    await accept({ maxTokens: 50 });
    const both = [rig.submit(rig.spec({ priority: "batch" })), rig.submit(rig.spec())];
    await tick();
    const [dropped, kept] = (await Promise.all(both)).map(({ record }) => record);
    expect([dropped?.state, dropped?.error?.code, kept?.state]).toEqual([
      "failed",
      "QUEUE_FULL_DROP_LRU",
      "queued",
    ]);
  });

  test("shed-low-priority: batch is refused from 80 % on, interactive when full; nobody is dropped", async () => {
    rig = await new Rig(pool({ fullPolicy: "shed-low-priority", queueCapacity: 5 })).start();
    const records = [await accept({ maxTokens: 50 })];
    for (let n = 0; n < 4; n++) records.push(await accept({ priority: "batch" }));
    expect(await refused({ priority: "batch" })).toBe("ADMISSION_REJECT shed-low-priority");
    records.push(await accept());
    expect(await refused()).toBe("ADMISSION_REJECT shed-low-priority");
    expect(rig.metrics.of("backpressure").length).toBe(2);
    await rig.clock.advance(2_000);
    expect(new Set(records.map(({ state }) => state))).toEqual(new Set(["done"]));
  });
});

describe("determinism strict", () => {
  test("runs alone on its replica: what runs there ends first, what comes later waits", async () => {
    rig = await new Rig(pool({ slots: 3, queueCapacity: 8 })).start();
    const before = [await accept({ maxTokens: 20 }), await accept({ maxTokens: 30 })];
    const strict = await accept({ determinism: "strict", maxTokens: 20 });
    const after = [await accept(), await accept()];
    expect([strict, ...after].map(({ state }) => state)).toEqual(["queued", "queued", "queued"]);
    await rig.clock.advance(305);
    expect(before.map(({ state }) => state)).toEqual(["done", "done"]);
    expect([strict.state, rig.runner.size]).toEqual(["running", 1]);
    await accept();
    await rig.clock.advance(100);
    expect([strict.state, rig.runner.size, rig.dispatcher.view.slotsBusy("chat-0")]).toEqual([
      "running",
      1,
      1,
    ]);
    await rig.clock.advance(1_000);
    expect(after.every(({ startedMs }) => (startedMs ?? 0) >= (strict.finishedMs ?? Infinity))).toBe(true);
    expect(replay(strict)[0]?.data).toMatchObject({ determinism: "strict", kv_warmth: false });
    expect([strict.state, rig.registry.liveCount]).toEqual(["done", 0]);
  });

  test("that is canceled while it waits for its replica opens that again", async () => {
    rig = await new Rig(pool({ slots: 2, queueCapacity: 8 })).start();
    await accept({ maxTokens: 50 });
    const strict = await accept({ determinism: "strict" });
    const next = await accept();
    expect(next.state).toBe("queued");
    void rig.dispatcher.cancel(strict.spec.taskId, "client");
    await tick();
    expect([strict.state, next.state]).toEqual(["canceled", "running"]);
  });

  test("leaves the other replicas to the others", async () => {
    rig = await new Rig(pool({ slots: 2, replicas: 2, queueCapacity: 8 })).start();
    const strict = await accept({ determinism: "strict", maxTokens: 50 });
    const others = [await accept({ maxTokens: 30 }), await accept({ maxTokens: 30 }), await accept()];
    expect(others.map(({ state }) => state)).toEqual(["running", "running", "queued"]);
    expect(others.slice(0, 2).every(({ replicaId }) => replicaId !== strict.replicaId)).toBe(true);
    await rig.clock.advance(2_000);
    expect(others[2]?.replicaId).not.toBe(strict.replicaId);
  });
});

describe("the stop", () => {
  test("close: nothing starts, also not in a slot that becomes free; what runs may end; the rest is kept", async () => {
    rig = await new Rig(pool({ slots: 2 })).start();
    const running = [await accept({ maxTokens: 10 }), await accept({ maxTokens: 20 })];
    const waiting = [await accept({ deadlineMs: 60_000 }), await accept({ priority: "batch" })];
    rig.dispatcher.close();
    expect(await refused()).toBe("POOL_UNREADY undefined");
    await rig.clock.advance(5_000);
    await rig.dispatcher.idle();
    expect([...running, ...waiting].map(({ state }) => state)).toEqual(["done", "done", "queued", "queued"]);
    expect(rig.runner.size).toBe(0);
    rig.dispatcher.halt();
    expect(
      rig.store
        .reopen("kill")
        .recover()
        .live.map(({ ordinal }) => ordinal),
    ).toEqual([3, 4]);
  });

  test("close: a task that waits can still be canceled, and is not kept then", async () => {
    rig = await new Rig().start();
    const [running, waiting] = [await accept({ maxTokens: 30 }), await accept()];
    rig.dispatcher.close();
    await rig.clock.advance(1_000);
    const canceled = rig.dispatcher.cancel(waiting.spec.taskId, "client");
    await tick();
    await canceled;
    expect([running.state, waiting.state, codes(waiting)]).toEqual(["done", "canceled", ["CANCELED"]]);
    expect(rig.store.reopen("kill").recover().live).toEqual([]);
  });

  test("halt: no end, no timer, and every live task is there again", async () => {
    rig = await new Rig().start();
    const records = [
      await accept({ maxTokens: 50, deadlineMs: 60_000 }),
      await accept({ deadlineMs: 60_000 }),
    ];
    await rig.clock.advance(100);
    rig.dispatcher.close();
    rig.dispatcher.halt();
    const length = records[0]?.log.length;
    await rig.clock.advance(120_000);
    expect(records.map(({ log }) => log.sealed)).toEqual([false, false]);
    expect([records[0]?.log.length, rig.runner.size]).toEqual([length ?? -1, 0]);
    expect(
      rig.store
        .reopen("power")
        .recover()
        .live.map(({ ordinal }) => ordinal),
    ).toEqual([1, 2]);
  });
});
