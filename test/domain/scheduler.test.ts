/** The rules of the scheduler, one by one. Random sequences of events are in scheduler-random.test.ts. */
import { describe, expect, test } from "bun:test";
import {
  admit,
  assess,
  createScheduler,
  decide,
  type SchedulerState,
  slotsBusy,
} from "../../src/domain/scheduler.ts";
import type { AttemptOutcome, Command, Lease, SchedulerEvent } from "../../src/domain/scheduler-protocol.ts";
import type { Priority } from "../../src/domain/task.ts";
import { attemptsMax, batchMaxWaitMs } from "./scheduler-model.ts";

const options = { attemptsMax, batchMaxWaitMs };
const lost = (tokensProduced = 0, began = true): AttemptOutcome => ({
  kind: "lost",
  code: "WORKER_RESET",
  message: "gone",
  tokensProduced,
  began,
});

/** One pool, driven by hand. */
class Bench {
  readonly state: SchedulerState = createScheduler(options, [{ id: "p", capacity: 4 }]);
  nowMs = 0;
  leases = new Map<string, Lease>();

  admit(taskId: string, priority: Priority = "interactive") {
    const admission = admit(this.state, { taskId, poolId: "p", priority, expectedMs: 1 }, this.nowMs);
    if (admission.kind === "accepted") this.note(admission.commands);
    return admission;
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
      if (c.type === "start_attempt") this.leases.set(c.taskId, c.lease);
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
      bench.admit(id, priority);
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
    bench.admit("b1", "batch");
    bench.admit("b2", "batch");
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
    const state = createScheduler(options, [{ id: "p", capacity: 0 }]);
    const task = { poolId: "p", priority: "batch" as const, expectedMs: 1 };
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
    expect(bench.tell({ type: "deadline_passed", taskId: "b" })).toEqual(["finish b failed DEADLINE_UNMET"]);
    expect(bench.tell({ type: "deadline_passed", taskId: "a" })).toEqual([]);
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
