/** Promises over the real scheduler: what runs and waits is what they count, what happens is what scores them. */
import { beforeEach, describe, expect, test } from "bun:test";
import type { PoolSpec } from "../../src/domain/pool.ts";
import { learnAttempt, learnWarmUp } from "../../src/domain/predictor.ts";
import { admit, createScheduler, decide, type SchedulerState } from "../../src/domain/scheduler.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { Forecast } from "../../src/services/forecast.ts";
import { PoolRuntimes } from "../../src/services/pool-runtime.ts";
import { type TaskRecord, TaskRegistry } from "../../src/services/task-registry.ts";
import { poolSpec } from "../support/replicas.ts";
import { storedSpec, uuidOf } from "../support/stored-tasks.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

/** Dispatcher, runner and engine left out: the test says what happens. */
class Desk {
  readonly clock = new VirtualClock();
  readonly registry = new TaskRegistry(1e9);
  readonly scheduler: SchedulerState;
  readonly pools: PoolRuntimes;
  readonly forecast: Forecast;
  private tasks = 0;

  constructor(pool: PoolSpec) {
    this.scheduler = createScheduler({ attemptsMax: 3, batchMaxWaitMs: 60_000, fair: "fifo" }, [
      { id: pool.id, capacity: 1000, fullPolicy: "reject" },
    ]);
    this.pools = new PoolRuntimes([pool]);
    this.forecast = new Forecast(this.clock, this.registry, this.scheduler, this.pools);
  }

  get predictor() {
    return this.pools.get("chat").predictor;
  }

  ready(slots: number): void {
    const event = {
      type: "replica_ready",
      poolId: "chat",
      replicaId: "chat-0",
      incarnation: 1,
      slots,
    } as const;
    decide(this.scheduler, event, this.clock.nowMs());
  }

  /** A warm-up of 10 ms a token; prompts cost nothing. */
  warm(): void {
    learnWarmUp(this.predictor, { prefillTps: 1e9, decodeTps: 100 }, 4000);
  }

  spec(more: Partial<TaskSpec> = {}): TaskSpec {
    return storedSpec(uuidOf(++this.tasks), { poolId: "chat", deadlineMs: null, maxTokens: 100, ...more });
  }

  accept(more: Partial<TaskSpec> = {}): TaskRecord {
    const spec = this.spec(more);
    const nowMs = this.clock.nowMs();
    const promise = this.forecast.ofNew(spec);
    const record = this.registry.add(spec, promise, this.forecast.tokensOutOf(spec), nowMs);
    const { taskId, poolId, keyId, sessionId, priority } = spec;
    const expectedMs = this.forecast.serviceOf(spec);
    const exclusive = spec.determinism === "strict";
    const task = { taskId, poolId, keyId, sessionId, priority, expectedMs, exclusive, prefix: [] };
    const admission = admit(this.scheduler, task, nowMs);
    if (admission.kind === "refused") throw new Error(admission.message);
    this.forecast.noteArrival(spec);
    for (const command of admission.commands) if (command.type === "start_attempt") this.started(record);
    return record;
  }

  started(record: TaskRecord): void {
    record.state = "running";
    record.attempts = 1;
    record.replicaId = "chat-0";
    record.startedMs = this.clock.nowMs();
    this.forecast.noteStarted(record, record.startedMs);
  }

  ended(record: TaskRecord, state: "done" | "failed" | "canceled", code?: "DEADLINE_UNMET"): void {
    record.state = state;
    if (code !== undefined) record.error = { code, message: "" };
    this.forecast.noteEnded(record, this.clock.nowMs());
  }
}

let desk: Desk;
beforeEach(() => {
  desk = new Desk(poolSpec({ slots: 2 }));
});

describe("what is counted", () => {
  test("the load of a pool that is not there, then the slots, then the work ahead", () => {
    expect(desk.forecast.ofNew(desk.spec())).toMatchObject({
      basis: "assumed",
      queuePosition: 0,
      startMs: 10_000,
    });
    desk.warm();
    expect(desk.forecast.ofNew(desk.spec())).toMatchObject({ basis: "warm_up", startMs: 4000, endMs: 5000 });
    desk.ready(2);
    expect(desk.forecast.ofNew(desk.spec())).toMatchObject({ startMs: 0, startHighMs: 0, endMs: 1000 });
    for (let n = 0; n < 6; n++) desk.accept();
    // Two run for a second, four of a second wait before it.
    expect(desk.forecast.ofNew(desk.spec())).toMatchObject({ queuePosition: 4, startMs: 3000, endMs: 4000 });
    expect(desk.forecast.ofNew(desk.spec({ expectedTokens: 10 }))).toMatchObject({
      startMs: 3000,
      endMs: 3100,
    });
  });

  test("interactive work goes before batch, for new tasks and for those that wait", () => {
    desk.warm();
    desk.ready(1);
    desk.accept();
    const batch = desk.accept({ priority: "batch" });
    desk.accept();
    desk.accept();
    expect(desk.forecast.ofLive(batch)).toMatchObject({ queuePosition: 2 });
    expect(desk.forecast.ofNew(desk.spec())).toMatchObject({ queuePosition: 2, startMs: 3000 });
    expect(desk.forecast.ofNew(desk.spec({ priority: "batch" })).queuePosition).toBe(3);
    // More interactive work will come before it than waits now.
    expect(desk.forecast.ofLive(batch)?.startMs).toBeGreaterThan(3000);
  });

  test("what a running task has produced", () => {
    desk.warm();
    desk.ready(1);
    const running = desk.accept({ deadlineMs: 5000 });
    running.tokensOut = 60;
    expect(desk.forecast.ofLive(running)).toMatchObject({ queuePosition: 0, startMs: 0, endMs: 400 });
    expect(desk.forecast.ofNew(desk.spec()).startMs).toBe(400);
    expect(desk.forecast.retryAfterMs("chat")).toBe(400);
  });

  test("an exclusive task holds the whole replica", () => {
    desk.warm();
    desk.ready(2);
    desk.accept({ determinism: "strict" });
    expect(desk.forecast.ofNew(desk.spec()).startMs).toBe(1000);
  });

  test("a task that has ended has no forecast", () => {
    desk.ready(1);
    const record = desk.accept();
    desk.ended(record, "done");
    expect(desk.forecast.ofLive(record)).toBeNull();
  });
});

describe("what a task needs", () => {
  const learnt = (tokensOut: number) => {
    for (let n = 0; n < 100; n++)
      learnAttempt(desk.predictor, {
        tokensIn: 100,
        tokensInAdmitted: 100,
        tokensInExact: true,
        tokensCached: 0,
        tokensOut,
        tokensAnswered: tokensOut,
        promptMs: 200,
        decodeMs: (tokensOut - 1) * 10,
        maxTokens: 100,
        concurrency: 1,
      });
  };

  test("at least: nothing while nothing was measured, then less than any answer took", () => {
    expect(desk.forecast.leastServiceMs(desk.spec())).toBe(0);
    learnt(50);
    const least = desk.forecast.leastServiceMs(desk.spec());
    expect(least).toBeGreaterThan(100);
    expect(least).toBeLessThan(500);
    const cold = desk.forecast.leastServiceMs(desk.spec({ tokensIn: 100, kvHint: "cold" }));
    expect(cold - least).toBe(100);
  });

  test("of time to reserve: more than expected, no more than the limit takes", () => {
    learnt(50);
    const spec = desk.spec({ tokensIn: 100 });
    expect(desk.forecast.serviceOf(spec)).toBeCloseTo(700, -1);
    expect(desk.forecast.reserveTimeMs(spec)).toBeGreaterThan(700);
    expect(desk.forecast.reserveTimeMs(spec)).toBeLessThanOrEqual(1200);
  });

  test("the earliest feasible end is one that would be met more likely than not", () => {
    learnt(50);
    desk.ready(1);
    for (let n = 0; n < 4; n++) desk.accept();
    const earliest = desk.forecast.earliestEndMs(desk.spec());
    const p = (deadlineMs: number) => desk.forecast.ofNew(desk.spec({ deadlineMs })).onTimeProbability ?? -1;
    expect(p(earliest)).toBeGreaterThanOrEqual(0.5);
    expect(p(earliest - 1)).toBeLessThan(0.5);
  });
});

describe("what is scored", () => {
  const scores = () => desk.forecast.prediction("chat").interactive;
  beforeEach(() => {
    desk.warm();
    desk.ready(1);
  });

  test("starts of tasks with others before them, each once", async () => {
    const [first, second, third] = [desk.accept(), desk.accept(), desk.accept()];
    expect([first, second, third].map(({ promise }) => promise.queuePosition)).toEqual([0, 0, 1]);
    await desk.clock.advance(1000);
    desk.ended(first, "done");
    desk.started(second);
    expect(scores().startsScored).toBe(0);
    await desk.clock.advance(1000);
    desk.ended(second, "done");
    desk.started(third);
    expect(scores()).toMatchObject({ startsScored: 1, intervalCoverage: 1 });
    desk.ended(third, "done");
    expect(scores().startsScored).toBe(1);
  });

  test("deadlines that were met or missed, and nothing that was canceled", async () => {
    const [met, missed, canceled] = [1100, 1100, 1100].map((deadlineMs) => desk.accept({ deadlineMs }));
    await desk.clock.advance(1000);
    desk.ended(met as TaskRecord, "done");
    await desk.clock.advance(100);
    desk.ended(missed as TaskRecord, "failed", "DEADLINE_UNMET");
    desk.ended(canceled as TaskRecord, "canceled");
    expect(scores()).toMatchObject({ deadlinesScored: 2, baseRateBrierScore: 0.25 });
    const p = (record: TaskRecord | undefined) => record?.promise.onTimeProbability ?? -1;
    const expected = ((1 - p(met)) ** 2 + p(missed) ** 2) / 2;
    expect(scores().brierScore).toBeCloseTo(expected, 9);
  });

  test("no promise of an earlier process", () => {
    const { spec, promise } = desk.accept({ deadlineMs: 5000 });
    const expectedTokensOut = 1;
    const other = new Desk(poolSpec({ slots: 2 }));
    const restored = other.registry.add(spec, { ...promise, queuePosition: 3 }, expectedTokensOut, 0);
    other.started(restored);
    other.ended(restored, "done");
    expect(other.forecast.prediction("chat").interactive).toMatchObject({
      startsScored: 0,
      deadlinesScored: 0,
    });
  });
});

test("what was learnt is taken over for the same model and slots only", () => {
  desk.warm();
  const kept = JSON.parse(JSON.stringify(desk.forecast.snapshotOf("chat")));
  const fresh = (more: Partial<PoolSpec>) => new Desk(poolSpec({ slots: 2, ...more })).forecast;
  const same = fresh({});
  expect(same.restore("chat", kept)).toBe(true);
  expect(same.speed("chat").decodeTps).toBe(100);
  for (const other of [{ slots: 3 }, { modelRef: "mock:other" }])
    expect(fresh(other).restore("chat", kept)).toBe(false);
  for (const bad of [null, "x", {}, { ...kept, predictor: {} }])
    expect(fresh({}).restore("chat", bad)).toBe(false);
});
