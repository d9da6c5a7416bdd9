/** The rules of the scheduler, one by one. Random sequences of events are in scheduler-random.test.ts. */
import { describe, expect, test } from "bun:test";
import { limits } from "../../src/domain/limits.ts";
import type { FullPolicy } from "../../src/domain/pool.ts";
import {
  admit,
  assess,
  createScheduler,
  decide,
  type SchedulerState,
  slotsBusy,
} from "../../src/domain/scheduler.ts";
import type {
  AttemptOutcome,
  Command,
  Lease,
  NewTask,
  RecoveredTask,
  SchedulerEvent,
  StartReason,
} from "../../src/domain/scheduler-protocol.ts";
import type { SchedulerOptions } from "../../src/domain/scheduler-state.ts";
import { attemptsMax, batchMaxWaitMs } from "./scheduler-model.ts";

const options: SchedulerOptions = { attemptsMax, batchMaxWaitMs, fair: "fifo" };
const lost = (tokensProduced = 0, began = true): AttemptOutcome => ({
  kind: "lost",
  code: "WORKER_RESET",
  message: "gone",
  tokensProduced,
  began,
});

const ordinary: Omit<NewTask, "taskId"> = {
  poolId: "p",
  keyId: "k",
  sessionId: null,
  priority: "interactive",
  expectedMs: 1,
  exclusive: false,
  prefix: [],
};

/** One pool, driven by hand. */
class Bench {
  readonly state: SchedulerState;
  nowMs = 0;
  leases = new Map<string, Lease>();
  reasons = new Map<string, StartReason>();
  wakes: number[] = [];

  constructor(fullPolicy: FullPolicy = "reject", more: Partial<SchedulerOptions> = {}, capacity = 4) {
    this.state = createScheduler({ ...options, ...more }, [{ id: "p", capacity, fullPolicy }]);
  }

  admit(taskId: string, more: Partial<NewTask> = {}) {
    const admission = admit(this.state, { ...ordinary, taskId, ...more }, this.nowMs);
    const commands = admission.kind === "accepted" ? this.note(admission.commands) : [];
    return { ...admission, said: commands };
  }
  batch(taskId: string, more: Partial<NewTask> = {}) {
    return this.admit(taskId, { priority: "batch", ...more });
  }
  ready(slots: number, replicaId = "p-0", incarnation = 1): string[] {
    return this.tell({ type: "replica_ready", poolId: "p", replicaId, incarnation, slots });
  }
  lose(replicaId = "p-0", incarnation = 1): string[] {
    return this.tell({ type: "replica_lost", poolId: "p", replicaId, incarnation });
  }
  ended(taskId: string, outcome: AttemptOutcome = { kind: "finished" }, slotFree = true): string[] {
    return this.tell({
      type: "attempt_ended",
      taskId,
      poolId: "p",
      lease: this.lease(taskId),
      outcome,
      slotFree,
    });
  }
  cancel(taskId: string): string[] {
    return this.tell({ type: "cancel_requested", taskId, reason: "client" });
  }
  freed(lease: Lease): string[] {
    return this.tell({ type: "slot_freed", poolId: "p", ...lease });
  }
  tell(event: SchedulerEvent): string[] {
    return this.note(decide(this.state, event, this.nowMs));
  }
  lease(taskId: string): Lease {
    const lease = this.leases.get(taskId);
    if (lease === undefined) throw new Error(`${taskId} never started`);
    return lease;
  }
  /** Commands in short: `start a`, `finish a done`, … */
  private note(commands: readonly Command[]): string[] {
    return commands.flatMap((c) => {
      if (c.type === "note_slots_busy") return [];
      if (c.type === "wake_at") this.wakes.push(c.atMs);
      if (c.type === "start_attempt") {
        this.leases.set(c.taskId, c.lease);
        this.reasons.set(c.taskId, c.why);
      }
      if (c.type === "start_attempt") return [`start ${c.taskId}`];
      if (c.type === "finish_task")
        return [`finish ${c.taskId} ${c.state}${c.code === null ? "" : ` ${c.code}`}`];
      if (c.type === "requeue_task") return [`requeue ${c.taskId}`];
      return [c.type];
    });
  }
}

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
    const state = createScheduler(options, [{ id: "p", capacity: 0, fullPolicy: "reject" }]);
    const task: Omit<NewTask, "taskId"> = { ...ordinary, priority: "batch" };
    expect(admit(state, { ...task, taskId: "a" }, 0).kind).toBe("refused");
    decide(state, { type: "replica_ready", poolId: "p", replicaId: "r", incarnation: 1, slots: 1 }, 0);
    expect(admit(state, { ...task, taskId: "a" }, 0).kind).toBe("accepted");
    expect(admit(state, { ...task, taskId: "b" }, 0).kind).toBe("refused");
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

  test("gives up after attemptsMax fruitless attempts, at once after tokens", () => {
    const bench = new Bench();
    bench.admit("a");
    for (let n = 1; n <= attemptsMax; n++) {
      bench.ready(1, "p-0", n);
      bench.lose("p-0", n);
      expect(bench.ended("a", lost(), false)).toEqual(
        n < attemptsMax ? ["requeue a"] : ["finish a failed WORKER_RESET"],
      );
    }
    bench.ready(1, "p-0", 9);
    bench.admit("b");
    expect(bench.ended("b", lost(1))).toEqual(["finish b failed WORKER_RESET"]);
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

  test("frees the slot of a canceled task when the engine has freed it, not before", () => {
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

  test("ends waiting and running tasks at the shutdown deadline, each once", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    bench.admit("b");
    const failed = (id: string) => `finish ${id} failed WORKER_RESET`;
    expect(bench.tell({ type: "shutdown_deadline_passed" })).toEqual([
      "abort_attempt",
      failed("a"),
      failed("b"),
    ]);
    expect(bench.ended("a", { kind: "finished" }, true)).toEqual([]);
    expect(bench.state.tasks.size).toBe(0);
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

  test("ignores what is about an earlier incarnation", () => {
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

describe("an exclusive task", () => {
  const strict = { exclusive: true };

  test("runs alone: its replica is reserved, drained, held and given back", () => {
    const bench = new Bench();
    bench.ready(2);
    bench.admit("a");
    expect(bench.admit("x", strict).said).toEqual([]);
    expect(bench.admit("b").said).toEqual([]);
    expect(bench.ended("a")).toEqual(["finish a done", "start x"]);
    expect(bench.admit("c").said).toEqual([]);
    expect(bench.ended("x")).toEqual(["finish x done", "start b", "start c"]);
  });

  test("lets others go on elsewhere, and no more than exclusiveMax replicas are withheld", () => {
    const bench = new Bench("reject", { exclusiveMax: 1 });
    bench.ready(1, "p-0");
    bench.ready(2, "p-1", 2);
    bench.admit("a");
    bench.admit("b");
    // One slot is left: p-1's. The least busy is reserved; a runs on p-0 and b on p-1.
    bench.admit("x", strict);
    const reserved = () =>
      [...(bench.state.pools.get("p")?.replicas.values() ?? [])].filter((r) => r.reservedFor !== null);
    expect(reserved()).toHaveLength(1);
    bench.admit("y", strict);
    bench.admit("c");
    expect(reserved().map((r) => r.reservedFor)).toEqual(["x"]);
    const [withheld] = reserved();
    const there = [...bench.leases].find(([, lease]) => lease.replicaId === withheld?.replicaId)?.[0] ?? "";
    expect(bench.ended(there)).toContain("start x");
    expect(bench.ended("x")).toContain("start y");
  });

  test("gives its replica back when it is canceled, and takes another when that one is lost", () => {
    const bench = new Bench();
    bench.ready(2);
    bench.admit("a");
    bench.admit("x", strict);
    bench.admit("b");
    expect(bench.cancel("x")).toEqual(["finish x canceled CANCELED", "start b"]);
    bench.admit("c");
    bench.ended("a");
    bench.admit("y", strict);
    bench.lose();
    expect(bench.ended("b", lost(), false)).toEqual(["requeue b"]);
    expect(bench.ready(1, "p-9", 9)).toContain("start b");
  });

  test("is not kept waiting by what comes later, and keeps others waiting for one draining only", () => {
    const bench = new Bench("reject", {}, 1000);
    bench.ready(4);
    for (const id of ["a", "b", "c"]) bench.admit(id);
    bench.admit("x", strict);
    for (let n = 0; n < 100; n++) bench.admit(`late${n}`);
    expect([bench.ended("a"), bench.ended("b")]).toEqual([["finish a done"], ["finish b done"]]);
    expect(bench.ended("c")).toEqual(["finish c done", "start x"]);
    expect(bench.ended("x").slice(1)).toEqual([0, 1, 2, 3].map((n) => `start late${n}`));
  });
});

test("exclusive tasks wait apart in bounded number, and ordinary ones pass the rest", () => {
  const bench = new Bench("reject", { exclusiveMax: 1 }, 1000);
  bench.ready(2, "p-0");
  bench.ready(2, "p-1", 2);
  for (let n = 0; n < 40; n++) bench.admit(`x${n}`, { exclusive: true });
  expect([...(bench.state.pools.get("p")?.queue.called() ?? [])].map((e) => e.taskId)).toEqual(
    Array.from({ length: limits.exclusiveCalledMax }, (_, n) => `x${n + 1}`),
  );
  expect(bench.admit("a").said).toEqual(["start a"]);
  expect(bench.ended("x0")).toEqual(["finish x0 done", "start x1"]);
});

test("a full queue stays within its capacity where a cut task that was held may start first", () => {
  const bench = new Bench("reject", {}, 1);
  const turn = { sessionId: "s", expectedMs: limits.affinityWaitMs + 500 };
  bench.ready(1, "p-0");
  bench.admit("s1", turn);
  bench.ready(1, "p-1", 2);
  expect(bench.admit("s2", turn).said).toEqual(["start s2"]);
  bench.nowMs = 1000;
  bench.lose("p-1", 2);
  bench.ended("s2", lost(), false);
  expect(bench.ready(1, "p-1", 3)).toEqual(["wake_at"]);
  expect(bench.admit("s3", turn).said).toEqual([]);
  bench.nowMs = 1000 + limits.affinityWaitMs;
  expect(bench.admit("new")).toMatchObject({ kind: "refused", code: "ADMISSION_REJECT" });
});

describe("a session", () => {
  const turn = { sessionId: "s", expectedMs: 500 };
  const withTurnRunning = () => {
    const bench = new Bench();
    bench.ready(1, "p-0");
    bench.admit("s1", turn);
    bench.ready(1, "p-1", 2);
    return bench;
  };

  test("comes back to the slot that holds its KV", () => {
    const bench = new Bench();
    bench.ready(2, "p-0");
    bench.ready(2, "p-1", 2);
    bench.admit("s1", turn);
    bench.ended("s1");
    bench.admit("other");
    bench.admit("another");
    bench.admit("s2", turn);
    expect(bench.lease("s2")).toMatchObject({ replicaId: "p-0", slot: bench.lease("s1").slot });
    expect(bench.reasons.get("s2")).toEqual({
      rule: "interactive",
      replica: "session",
      slot: "session",
      held: false,
    });
  });

  test("waits for its replica while that is soon free, and others behind it start", () => {
    const bench = withTurnRunning();
    expect(bench.admit("s2", turn).said).toEqual(["wake_at"]);
    expect(bench.admit("other").said).toEqual(["start other"]);
    expect(bench.ended("s1")).toEqual(["finish s1 done", "start s2"]);
    expect(bench.lease("s2").replicaId).toBe("p-0");
    expect(bench.reasons.get("s2")).toMatchObject({ replica: "only", slot: "session", held: true });
  });

  test("waits no longer than affinityWaitMs in all", () => {
    const bench = withTurnRunning();
    bench.admit("s2", turn);
    expect(bench.wakes).toEqual([limits.affinityWaitMs]);
    bench.nowMs = limits.affinityWaitMs - 1;
    // A timer that is early is asked for bench.
    expect(bench.tell({ type: "wake", poolId: "p" })).toEqual(["wake_at"]);
    bench.nowMs = limits.affinityWaitMs;
    expect(bench.tell({ type: "wake", poolId: "p" })).toEqual(["start s2"]);
    expect(bench.lease("s2").replicaId).toBe("p-1");
  });

  test("does not wait where its replica is busy for longer, is lost, or the session is forgotten", () => {
    const long = withTurnRunning();
    long.admit("l1", { expectedMs: limits.affinityWaitMs + 1, sessionId: "l" });
    long.ready(1, "p-2", 3);
    expect(long.admit("l2", { sessionId: "l" }).said).toEqual(["start l2"]);
    const gone = withTurnRunning();
    gone.admit("s2", turn);
    expect(gone.lose("p-0")).toEqual(["start s2"]);
    const forgotten = withTurnRunning();
    forgotten.admit("s2", turn);
    expect(forgotten.tell({ type: "session_forgotten", sessionId: "s" })).toEqual(["start s2"]);
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

test("every start says by which rules it was made", () => {
  const bench = new Bench();
  bench.batch("b");
  bench.admit("i");
  bench.ready(1);
  bench.nowMs = batchMaxWaitMs;
  bench.ended("i");
  const why = { replica: "only", slot: "idle", held: false };
  expect(bench.reasons.get("i")).toEqual({ rule: "interactive", ...why } as StartReason);
  expect(bench.reasons.get("b")).toEqual({ rule: "aged", ...why } as StartReason);
});
