/**
 * Pools that come, change and go (scheduler-pools.ts): tables, then random sequences of events with pools that are taken
 * out and put back. Every task that was taken ends once, nothing starts in a pool that goes, and what is gone is gone.
 */
import { expect, test } from "bun:test";
import fc from "fast-check";
import { admit, assess, createScheduler, decide, type SchedulerState } from "../../src/domain/scheduler.ts";
import type {
  AttemptOutcome,
  Command,
  Lease,
  NewTask,
  ScheduledPool,
  SchedulerEvent,
} from "../../src/domain/scheduler-protocol.ts";
import { lost } from "./scheduler-bench.ts";

const poolOf = (id: string, capacity = 4): ScheduledPool => ({ id, capacity, fullPolicy: "reject" });
const taskOf = (taskId: string, poolId: string, more: Partial<NewTask> = {}): NewTask => ({
  ...{ taskId, poolId, keyId: "k", sessionId: null, priority: "batch", expectedMs: 100 },
  ...{ exclusive: false, prefix: [], ...more },
});
const begun = (...ids: string[]): SchedulerState =>
  createScheduler(
    { attemptsMax: 3, batchMaxWaitMs: 60_000, fair: "fifo" },
    ids.map((id) => poolOf(id)),
  );
const ready = (poolId: string, incarnation = 1, slots = 1): SchedulerEvent => ({
  ...{ type: "replica_ready" as const, poolId, replicaId: `${poolId}-0`, incarnation, slots },
});
const types = (commands: readonly Command[]): string[] => commands.map(({ type }) => type);
const endsOf = (commands: readonly Command[]) =>
  commands.flatMap((c) => (c.type === "finish_task" ? [[c.taskId, c.state, c.code]] : []));

test("a pool that is added takes tasks and asks for its engine", () => {
  const state = begun("p");
  decide(state, { type: "pool_added", poolId: "q", pool: poolOf("q") }, 0);
  const admission = admit(state, taskOf("t", "q"), 0);
  expect(admission.kind === "accepted" && types(admission.commands)).toEqual(["ensure_pool"]);
  expect(types(decide(state, ready("q"), 1))).toContain("start_attempt");
});

test("one that was drained starts nothing", () => {
  const state = begun("p");
  decide(state, { type: "pool_added", poolId: "q", pool: { ...poolOf("q"), drained: true } }, 0);
  admit(state, taskOf("t", "q"), 0);
  expect(types(decide(state, ready("q"), 1))).toEqual([]);
});

test("a changed capacity and a preemption hold from then on", () => {
  const state = begun("p");
  decide(state, ready("p"), 0);
  for (const id of ["a", "b", "c"]) admit(state, taskOf(id, "p"), 0);
  decide(state, { type: "pool_changed", poolId: "p", pool: poolOf("p", 2) }, 0);
  expect(assess(state, "p", "batch").refusal?.code).toBe("ADMISSION_REJECT");
  const preempt = { maxWaitMs: 50, maxCuts: 1, minGainMs: 0 };
  decide(state, { type: "pool_changed", poolId: "p", pool: { ...poolOf("p", 9), preempt } }, 0);
  const admission = admit(state, taskOf("d", "p", { priority: "interactive" }), 10);
  expect(admission.kind === "accepted" && types(admission.commands)).toEqual(["wake_at"]);
});

test("a pool that goes takes nothing, ends what waits, and its engine makes it no better", () => {
  const state = begun("p", "q");
  decide(state, ready("p"), 0);
  for (const id of ["runs", "waits", "waits too"]) admit(state, taskOf(id, "p"), 0);
  const commands = decide(state, { type: "pool_leaving", poolId: "p", message: "it goes" }, 1);
  expect(endsOf(commands)).toEqual([
    ["waits", "failed", "POOL_UNAVAILABLE"],
    ["waits too", "failed", "POOL_UNAVAILABLE"],
  ]);
  decide(state, ready("p", 2, 1) && { type: "pool_unavailable", poolId: "p", message: "no model" }, 1);
  expect(assess(state, "p", "interactive").refusal).toMatchObject({
    code: "POOL_UNAVAILABLE",
    message: "it goes",
  });
  decide(
    state,
    { ...(ready("p") as Extract<SchedulerEvent, { type: "replica_ready" }>), replicaId: "p-1" },
    2,
  );
  expect(assess(state, "p", "interactive").refusal?.code).toBe("POOL_UNAVAILABLE");
});

test("what is lost or cut there does not wait; what still runs at the end is cut and ends", () => {
  const state = begun("p", "q");
  decide(state, ready("p", 1, 3), 0);
  const leases = ["a", "b", "c"].map((id) => {
    const admission = admit(state, taskOf(id, "p"), 0);
    const start =
      admission.kind === "accepted" ? admission.commands.find((c) => c.type === "start_attempt") : null;
    if (start?.type !== "start_attempt") throw new Error("it starts at once");
    return start.lease;
  });
  decide(state, { type: "pool_leaving", poolId: "p", message: "it goes" }, 1);
  const [first] = leases as [Lease];
  const ended = { type: "attempt_ended", taskId: "a", poolId: "p", lease: first, slotFree: true } as const;
  expect(endsOf(decide(state, { ...ended, outcome: lost(5) }, 2))).toEqual([
    ["a", "failed", "POOL_UNAVAILABLE"],
  ]);
  const over = decide(state, { type: "leaving_over", poolId: "p" }, 3);
  expect(types(over)).toEqual(["abort_attempt", "finish_task", "abort_attempt", "finish_task"]);
  decide(state, { type: "replica_lost", poolId: "p", replicaId: "p-0", incarnation: 1 }, 4);
  decide(state, { type: "pool_removed", poolId: "p" }, 5);
  expect([[...state.pools.keys()], state.tasks.size]).toEqual([["q"], 0]);
  // Whatever is told of it now is late.
  expect(decide(state, { ...ended, outcome: { kind: "finished" } }, 6)).toEqual([]);
  expect(decide(state, ready("p", 2), 6)).toEqual([]);
  expect(decide(state, { type: "wake", poolId: "p" }, 6)).toEqual([]);
});

test("a pool with tasks or replicas is not removed, and none is added twice", () => {
  const state = begun("p");
  decide(state, ready("p"), 0);
  expect(() => decide(state, { type: "pool_added", poolId: "p", pool: poolOf("p") }, 0)).toThrow(
    "added once",
  );
  expect(() => decide(state, { type: "pool_removed", poolId: "p" }, 0)).toThrow("taken out");
  decide(state, { type: "pool_leaving", poolId: "p", message: "it goes" }, 0);
  expect(() => decide(state, { type: "pool_removed", poolId: "p" }, 0)).toThrow("are gone");
});

test("other attempts and ages hold for all pools at once", () => {
  const state = begun("p");
  decide(state, ready("p"), 0);
  admit(state, taskOf("t", "p"), 0);
  decide(state, { type: "options_changed", attemptsMax: 1, batchMaxWaitMs: 5 }, 0);
  expect(state.options).toMatchObject({ attemptsMax: 1, batchMaxWaitMs: 5, fair: "fifo" });
  const lease = state.tasks.get("t")?.lease;
  if (lease == null) throw new Error("it runs");
  const event = { type: "attempt_ended", taskId: "t", poolId: "p", lease, slotFree: true } as const;
  expect(endsOf(decide(state, { ...event, outcome: lost(0) }, 1))).toEqual([["t", "failed", "WORKER_RESET"]]);
});

// ---- random sequences ----

interface Op {
  readonly op: number;
  readonly a: number;
  readonly b: number;
}
const names = ["p", "q", "r"];

/** A world of engines around the scheduler: attempts run until somebody ends them, slots are freed later or die. */
class World {
  readonly state = begun("p", "q");
  readonly ends = new Map<string, number>();
  private running: { taskId: string; poolId: string; lease: Lease }[] = [];
  private releasing: { poolId: string; lease: Lease }[] = [];
  private readonly leaving = new Set<string>();
  private tasks = 0;
  private incarnations = 0;
  private nowMs = 0;

  apply({ op, a, b }: Op): void {
    this.nowMs += b;
    const poolId = names[a % names.length] ?? "p";
    const pool = this.state.pools.get(poolId);
    if (op < 4) this.submit(poolId, b);
    else if (op === 4 && pool?.replicas.size === 0)
      this.tell(ready(poolId, ++this.incarnations, 1 + (b % 3)));
    else if (op === 5) this.lose(poolId);
    else if (op < 8) this.endOne(a, b);
    else if (op === 8) this.freeOne(a);
    else if (op === 9 && pool === undefined)
      this.tell({ type: "pool_added", poolId, pool: poolOf(poolId, 1 + (b % 5)) });
    else if (op === 10 && pool?.leaving === false) {
      this.leaving.add(poolId);
      this.tell({ type: "pool_leaving", poolId, message: "it goes" });
    } else if (op === 11) this.remove(poolId);
    else if (op === 12 && pool !== undefined)
      this.tell({ type: "pool_changed", poolId, pool: poolOf(poolId, 1 + (b % 5)) });
    else if (op === 13)
      this.tell({ type: "options_changed", attemptsMax: 1 + (a % 3), batchMaxWaitMs: 10 * b });
    else if (op === 14)
      this.tell({ type: "cancel_requested", taskId: `t${a % (this.tasks + 1)}`, reason: "client" });
    else if (op === 15) this.tell({ type: "session_forgotten", sessionId: "s" });
    else if (op === 16) this.tell({ type: "pool_held", poolId, by: "drain" });
    else if (op === 17) this.tell({ type: "pool_released", poolId, by: "drain" });
    else if (op === 18) this.tell({ type: "hold_deadline_passed", poolId, by: "drain" });
  }

  /** Each pool goes; then nothing may be left but what ended once. */
  finish(): void {
    for (const poolId of this.state.pools.keys())
      if (!this.leaving.has(poolId)) {
        this.leaving.add(poolId);
        this.tell({ type: "pool_leaving", poolId, message: "it goes" });
      }
    for (const poolId of [...this.state.pools.keys()]) this.remove(poolId);
    expect([this.state.pools.size, this.state.tasks.size]).toEqual([0, 0]);
    for (const [taskId, ends] of this.ends) expect([taskId, ends]).toEqual([taskId, 1]);
    // Late facts of what ran there.
    for (const one of this.running)
      this.tell({ type: "attempt_ended", ...one, outcome: { kind: "finished" }, slotFree: true });
    for (const { poolId, lease } of this.releasing) this.tell({ type: "slot_freed", poolId, ...lease });
  }

  private submit(poolId: string, b: number): void {
    if (!this.state.pools.has(poolId)) return;
    const priority = b % 2 === 0 ? "batch" : "interactive";
    const sessionId = b % 3 === 0 ? "s" : null;
    const task = taskOf(`t${this.tasks}`, poolId, { priority, sessionId, exclusive: b % 7 === 0 });
    const admission = admit(this.state, task, this.nowMs);
    if (this.leaving.has(poolId))
      expect(admission).toMatchObject({ kind: "refused", code: "POOL_UNAVAILABLE" });
    if (admission.kind === "refused") return;
    this.tasks++;
    this.ends.set(task.taskId, 0);
    this.follow(admission.commands);
  }

  private lose(poolId: string): void {
    const replica = this.state.pools.get(poolId)?.replicas.get(`${poolId}-0`);
    if (replica === undefined) return;
    const { replicaId, incarnation } = replica;
    this.tell({ type: "replica_lost", poolId, replicaId, incarnation });
    this.releasing = this.releasing.filter((one) => one.poolId !== poolId);
    for (const one of this.running.filter((r) => r.poolId === poolId)) this.end(one, lost(1), false);
  }

  private remove(poolId: string): void {
    if (!this.leaving.has(poolId)) return;
    this.tell({ type: "leaving_over", poolId });
    this.lose(poolId);
    this.tell({ type: "pool_removed", poolId });
    this.leaving.delete(poolId);
  }

  private endOne(a: number, b: number): void {
    const one = this.running[a % Math.max(1, this.running.length)];
    if (one === undefined) return;
    const outcomes: AttemptOutcome[] = [
      { kind: "finished" },
      lost(0),
      lost(9),
      { kind: "failed", code: "INVALID_PARAMS", message: "no" },
    ];
    this.end(one, outcomes[b % outcomes.length] ?? lost(0), b % 2 === 0);
  }

  private end(one: (typeof this.running)[number], outcome: AttemptOutcome, slotFree: boolean): void {
    this.running = this.running.filter((r) => r !== one);
    const alive =
      this.state.pools.get(one.poolId)?.replicas.get(one.lease.replicaId)?.incarnation ===
      one.lease.incarnation;
    if (!slotFree && alive) this.releasing.push(one);
    this.tell({ type: "attempt_ended", ...one, outcome, slotFree });
  }

  private freeOne(a: number): void {
    const one = this.releasing[a % Math.max(1, this.releasing.length)];
    if (one === undefined) return;
    this.releasing = this.releasing.filter((r) => r !== one);
    this.tell({ type: "slot_freed", poolId: one.poolId, ...one.lease });
  }

  private tell(event: SchedulerEvent): void {
    this.follow(decide(this.state, event, this.nowMs));
  }

  private follow(commands: readonly Command[]): void {
    for (const command of commands) {
      if (command.type === "start_attempt") {
        expect(this.leaving.has(command.poolId)).toBe(false);
        const { taskId, poolId, lease } = command;
        this.running.push({ taskId, poolId, lease });
      }
      if (command.type !== "finish_task") continue;
      const ends = this.ends.get(command.taskId) ?? 0;
      expect(ends).toBe(0);
      this.ends.set(command.taskId, ends + 1);
    }
  }
}

const op = fc.record({ op: fc.nat(18), a: fc.nat(11), b: fc.nat(13) });

test("random sequences: every task ends once, nothing starts in a pool that goes, nothing of it is left (ORCHD-CONF-3)", () => {
  fc.assert(
    fc.property(fc.array(op, { maxLength: 80 }), (ops) => {
      const world = new World();
      for (const one of ops) world.apply(one);
      world.finish();
    }),
    { numRuns: 1500 },
  );
});
