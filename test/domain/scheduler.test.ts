/** The rules of the scheduler, one by one. Random sequences of events are in scheduler-random.test.ts. */
import { describe, expect, test } from "bun:test";
import type { FullPolicy } from "../../src/domain/pool.ts";
import { assess, decide, slotsBusy } from "../../src/domain/scheduler.ts";
import type { RecoveredTask, SchedulerEvent } from "../../src/domain/scheduler-protocol.ts";
import { Bench, lost, ordinary } from "./scheduler-bench.ts";
import { attemptsMax, batchMaxWaitMs } from "./scheduler-model.ts";

describe("the scheduler", () => {
  test("starts interactive before batch, each class in its order", () => {
    const bench = new Bench();
    for (const [id, priority] of [
      ["b1", "batch"],
      ["i1", "interactive"],
      ["b2", "batch"],
      ["i2", "interactive"],
    ] as const)
      bench.admit(id, { priority });
    expect(bench.ready(4)).toEqual(["start i1", "start i2", "start b1", "start b2"]);
  });

  test("asks for the pool when a task comes and no replica is there", () => {
    const bench = new Bench();
    const admission = bench.admit("a");
    expect(admission.kind === "accepted" && admission.commands).toEqual([
      { type: "ensure_pool", poolId: "p" },
    ]);
  });

  test("gives every fourth start to an aged batch task", () => {
    const bench = new Bench();
    bench.batch("b1");
    bench.batch("b2");
    bench.nowMs = batchMaxWaitMs;
    const order: string[] = [];
    bench.admit("i0");
    order.push(...bench.ready(1));
    for (let n = 1; n <= 8; n++) {
      bench.admit(`i${n}`);
      const running = order.at(-1)?.slice(6) ?? "";
      order.push(...bench.ended(running).filter((c) => c.startsWith("start")));
    }
    expect(order.map((c) => c.slice(6))).toEqual(["i0", "i1", "i2", "b1", "i3", "i4", "i5", "b2", "i6"]);
  });

  test("refuses beyond the capacity, and takes again when a place is free", () => {
    const bench = new Bench();
    bench.ready(1);
    for (const id of ["a", "b", "c", "d", "e"]) expect(bench.admit(id).kind).toBe("accepted");
    expect(bench.admit("f")).toMatchObject({ kind: "refused", code: "ADMISSION_REJECT" });
    expect(assess(bench.state, "p", "batch").refusal?.code).toBe("ADMISSION_REJECT");
    expect(bench.ended("a")).toEqual(["finish a done", "start b"]);
    expect(bench.admit("f").kind).toBe("accepted");
  });

  test("takes a task for a free slot also where no task may wait", () => {
    const bench = new Bench("reject", {}, 0);
    expect(bench.batch("a").kind).toBe("refused");
    bench.ready(1);
    expect(bench.batch("a").kind).toBe("accepted");
    expect(bench.batch("b").kind).toBe("refused");
  });

  test("puts cut tasks back to their places and does not count them against the capacity", () => {
    const bench = new Bench();
    bench.ready(3);
    for (const id of ["a", "b", "c", "d", "e", "f", "g"]) bench.admit(id);
    bench.lose();
    for (const id of ["a", "b", "c"]) expect(bench.ended(id, lost(), false)).toEqual([`requeue ${id}`]);
    expect(bench.admit("h").kind).toBe("refused");
    expect(bench.ready(7, "p-0", 2)).toEqual([..."abcdefg"].map((id) => `start ${id}`));
  });

  test("gives up after attemptsMax attempts in a row without a token", () => {
    const bench = new Bench();
    bench.admit("a");
    for (let n = 1; n <= attemptsMax; n++) {
      bench.ready(1, "p-0", n);
      bench.lose("p-0", n);
      expect(bench.ended("a", lost(), false)).toEqual(
        n < attemptsMax ? ["requeue a"] : ["finish a failed WORKER_RESET"],
      );
    }
    bench.admit("b");
    for (let n = 4; n <= 9; n++) {
      bench.ready(1, "p-0", n);
      bench.lose("p-0", n);
      expect(bench.ended("b", lost(n % 2), false)).toEqual(["requeue b"]);
    }
  });

  test("tells the log why an attempt was lost, and who has to send its task again to do so", () => {
    const bench = new Bench();
    bench.admit("a");
    const told: string[] = [];
    for (let n = 1; n <= attemptsMax; n++) {
      bench.ready(1, "p-0", n);
      bench.lose("p-0", n);
      const ended = { taskId: "a", poolId: "p", lease: bench.lease("a"), slotFree: false };
      const outcome = { kind: "lost", code: "DECODE_TIMEOUT", message: "silent" } as const;
      const event = { ...ended, outcome: { ...outcome, tokensProduced: 0, began: true } };
      for (const c of decide(bench.state, { type: "attempt_ended", ...event }, 0))
        if ("message" in c) told.push(`${c.type}: ${c.message}`);
    }
    expect(told).toEqual([
      "requeue_task: silent",
      "requeue_task: silent",
      "finish_task: silent: submit the task again, or with a shorter prompt",
    ]);
  });

  test("does not hold it against a task that its engine was gone before it began", () => {
    const bench = new Bench();
    bench.admit("a");
    for (let n = 1; n <= attemptsMax + 2; n++) {
      bench.ready(1, "p-0", n);
      bench.lose("p-0", n);
      expect(bench.ended("a", lost(0, false), false)).toEqual(["requeue a"]);
    }
  });

  test("frees the slot of a canceled task when the engine has freed it, not before (ORCHD-ARCH-14)", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    bench.admit("b");
    expect(bench.cancel("a")).toEqual(["abort_attempt", "finish a canceled CANCELED"]);
    expect(slotsBusy(bench.state, "p", "p-0")).toBe(1);
    expect(bench.ended("a", lost(), false)).toEqual([]);
    expect(bench.freed(bench.lease("a"))).toEqual(["start b"]);
  });

  test("does not lose the slot of an attempt that had finished when the cancel came", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    bench.admit("b");
    bench.cancel("a");
    expect(bench.ended("a", { kind: "finished" }, true)).toEqual(["start b"]);
  });

  test("fails what waits when the pool is given up, and takes tasks when it is back", () => {
    const bench = new Bench();
    bench.admit("a");
    const gone: SchedulerEvent = { type: "pool_unavailable", poolId: "p", message: "no model" };
    expect(bench.tell(gone)).toEqual(["finish a failed POOL_UNAVAILABLE"]);
    expect(bench.admit("b")).toMatchObject({
      kind: "refused",
      code: "POOL_UNAVAILABLE",
      message: "no model",
    });
    bench.ready(1);
    expect(bench.admit("b").kind).toBe("accepted");
  });

  test("lets a running task go beyond its deadline, but does not start it again", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    bench.admit("b");
    expect(bench.tell({ type: "deadline_passed", taskId: "b", cut: false })).toEqual([
      "finish b failed DEADLINE_UNMET",
    ]);
    expect(bench.tell({ type: "deadline_passed", taskId: "a", cut: false })).toEqual([]);
    expect(bench.ended("a", lost())).toEqual(["finish a failed DEADLINE_UNMET"]);
  });

  test("ignores what is about an earlier incarnation (ORCHD-ARCH-12)", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    const old = bench.lease("a");
    bench.lose();
    bench.ready(1, "p-0", 2);
    expect(bench.freed(old)).toEqual([]);
    expect(bench.lose("p-0", 1)).toEqual([]);
    expect(bench.ended("a", lost(), false)).toEqual(["requeue a", "start a"]);
    expect(bench.lease("a").incarnation).toBe(2);
  });
});

describe("a full queue", () => {
  const full = (policy: FullPolicy, waiting: number, priority: "interactive" | "batch", capacity = 5) => {
    const bench = new Bench(policy, {}, capacity);
    for (let n = 1; n <= waiting; n++) bench.admit(`w${n}`, { priority });
    return bench;
  };
  const rows: [FullPolicy, number, "interactive" | "batch", "interactive" | "batch", string][] = [
    ["reject", 4, "batch", "batch", "accepted"],
    ["reject", 5, "batch", "interactive", "ADMISSION_REJECT reject"],
    ["drop-lru", 4, "batch", "interactive", "accepted"],
    ["drop-lru", 5, "batch", "interactive", "finish w1 failed QUEUE_FULL_DROP_LRU"],
    ["drop-lru", 5, "batch", "batch", "finish w1 failed QUEUE_FULL_DROP_LRU"],
    ["drop-lru", 5, "interactive", "batch", "QUEUE_FULL_DROP_LRU drop-lru"],
    ["shed-low-priority", 3, "batch", "batch", "accepted"],
    ["shed-low-priority", 4, "batch", "batch", "ADMISSION_REJECT shed-low-priority"],
    ["shed-low-priority", 4, "batch", "interactive", "accepted"],
    ["shed-low-priority", 5, "interactive", "interactive", "ADMISSION_REJECT shed-low-priority"],
  ];
  for (const [policy, waiting, of, priority, outcome] of rows)
    test(`${policy}, ${waiting} of 5 places taken by ${of} tasks, ${priority} comes: ${outcome}`, () => {
      const bench = full(policy, waiting, of);
      const assessed = assess(bench.state, "p", priority);
      const result = bench.admit("new", { priority });
      const { said } = result;
      if (result.kind === "refused") expect(`${result.code} ${result.policyLabel}`).toBe(outcome);
      else expect(said.find((c) => c.startsWith("finish")) ?? "accepted").toBe(outcome);
      expect(assessed.refusal?.code ?? "taken").toBe(result.kind === "refused" ? result.code : "taken");
    });

  test("drop-lru never drops what was cut and waits to go on", () => {
    const bench = new Bench("drop-lru", {}, 2);
    bench.ready(1);
    bench.batch("a");
    bench.batch("b");
    bench.batch("c");
    bench.lose();
    expect(bench.ended("a", lost(), false)).toEqual(["requeue a"]);
    expect(bench.admit("d").said).toContain("finish b failed QUEUE_FULL_DROP_LRU");
    expect(bench.admit("e").said).toContain("finish c failed QUEUE_FULL_DROP_LRU");
    expect(bench.admit("f")).toMatchObject({ kind: "refused", code: "QUEUE_FULL_DROP_LRU" });
    expect(bench.ready(3, "p-0", 2)).toEqual(["start d", "start e", "start a"]);
  });
});

describe("at boot", () => {
  const found = (taskId: string, ordinal: number, more: Partial<RecoveredTask> = {}): RecoveredTask => ({
    ...ordinary,
    taskId,
    ordinal,
    admittedMs: -1000,
    resumed: false,
    ...more,
  });

  test("the queues are rebuilt in the order of admission, whatever the capacity, and counting goes on above", () => {
    const bench = new Bench("reject", {}, 1);
    const tasks = [found("c", 9), found("a", 3, { resumed: true }), found("b", 7)];
    expect(bench.tell({ type: "recovered", tasks })).toEqual(["ensure_pool"]);
    expect(bench.admit("d")).toMatchObject({ kind: "refused", code: "ADMISSION_REJECT" });
    expect(bench.ready(3)).toEqual(["start a", "start b", "start c"]);
    expect(bench.admit("d")).toMatchObject({ kind: "accepted", ordinal: 10 });
    const empty = new Bench();
    expect(empty.tell({ type: "recovered", tasks: [], ordinal: 41 })).toEqual([]);
    expect(empty.admit("a")).toMatchObject({ ordinal: 42 });
  });
});

describe("deadlines", () => {
  test("fail what can no longer be done in time while it waits, and leave alone what runs", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    bench.admit("b");
    expect(bench.tell({ type: "start_deadline_passed", taskId: "a" })).toEqual([]);
    expect(bench.tell({ type: "start_deadline_passed", taskId: "b" })).toEqual([
      "finish b failed DEADLINE_UNMET",
    ]);
  });

  test("cut what runs, where that is asked for", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    bench.admit("b");
    expect(bench.tell({ type: "deadline_passed", taskId: "a", cut: true })).toEqual([
      "abort_attempt",
      "finish a failed DEADLINE_UNMET",
    ]);
    expect(bench.ended("a", lost(3), true)).toEqual(["start b"]);
  });
});
