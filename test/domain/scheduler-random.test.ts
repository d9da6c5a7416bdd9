/**
 * Random sequences of events: the scheduler against the plain model in scheduler-model.ts, command by command.
 * The last tests break the scheduler on purpose: the comparison must notice.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { admit, createScheduler, decide, slotsBusy } from "../../src/domain/scheduler.ts";
import type { AttemptOutcome, Command, Lease, SchedulerEvent } from "../../src/domain/scheduler-protocol.ts";
import type { Priority } from "../../src/domain/task.ts";
import { anyMessage, attemptsMax, batchMaxWaitMs, Model } from "./scheduler-model.ts";

const options = { attemptsMax, batchMaxWaitMs };
const lost = (tokensProduced: number): AttemptOutcome => ({
  kind: "lost",
  code: "WORKER_RESET",
  message: "gone",
  tokensProduced,
  began: true,
});

type Decide = typeof decide;
interface Op {
  readonly op: number;
  readonly a: number;
  readonly b: number;
  readonly waitMs: number;
}

const pools = [
  { id: "p", capacity: 3 },
  { id: "q", capacity: 1 },
];

/** An attempt as its runner sees it: it ends once; where its slot was not free then, that is told once later. */
interface Running {
  readonly taskId: string;
  readonly poolId: string;
  readonly lease: Lease;
}

class Comparison {
  private readonly model = new Model(pools);
  private readonly real = createScheduler(options, pools);
  private running: Running[] = [];
  private releasing: Running[] = [];
  private incarnations = 0;
  private nowMs = 0;

  constructor(private readonly decide: Decide) {}

  apply({ op, a, b, waitMs }: Op): void {
    this.nowMs += waitMs;
    const pool = pools[a % pools.length] ?? pools[0];
    if (pool === undefined) throw new Error("there is a pool");
    const poolId = pool.id;
    const replicaId = `${poolId}-${b % 3}`;
    const known = this.model.pool(poolId).replicas.find((r) => r.id === replicaId);
    if (op < 8) this.submit(poolId, b % 3 === 0 ? "interactive" : "batch");
    else if (op < 10 && known === undefined)
      this.tell({
        type: "replica_ready",
        poolId,
        replicaId,
        incarnation: ++this.incarnations,
        slots: 1 + (a % 3),
      });
    else if (op === 10 && known !== undefined)
      this.tell({
        type: "replica_lost",
        poolId,
        replicaId,
        incarnation: known.incarnation - (b % 5 === 4 ? 1 : 0),
      });
    else if (op < 18) this.endAttempt(a, b);
    else if (op < 22) this.freeSlot(a);
    else if (op < 24) this.tell({ type: "cancel_requested", taskId: this.anyTask(a), reason: "client" });
    else if (op === 24) this.tell({ type: "deadline_passed", taskId: this.anyTask(a) });
    else if (op === 25 && this.model.pool(poolId).replicas.length === 0)
      this.tell({ type: "pool_unavailable", poolId, message: "no model" });
    else if (op === 26 && b === 0) this.tell({ type: "shutdown_deadline_passed" });
  }

  /** Every attempt ends, every slot is freed, what waits is ended: nothing may be left. */
  finish(): void {
    for (let n = 0; this.running.length + this.releasing.length > 0 && n < 1000; n++) {
      this.endAttempt(0, 0);
      this.freeSlot(0);
    }
    this.tell({ type: "shutdown_deadline_passed" });
    while (this.running.length + this.releasing.length > 0) {
      this.endAttempt(0, 1);
      this.freeSlot(0);
    }
    expect(this.real.tasks.size).toBe(0);
    for (const task of this.model.tasks) expect(task.finishes).toBe(1);
    for (const { id } of pools)
      for (const r of this.model.pool(id).replicas) expect(slotsBusy(this.real, id, r.id)).toBe(0);
  }

  private submit(poolId: string, priority: Priority): void {
    const taskId = `t${this.model.tasks.length}`;
    const expected = this.model.admit(taskId, poolId, priority, this.nowMs);
    const actual = admit(this.real, { taskId, poolId, priority, expectedMs: 1 }, this.nowMs);
    if ("refused" in expected) expect(actual).toMatchObject({ kind: "refused", code: expected.refused });
    else {
      expect(actual).toEqual({
        kind: "accepted",
        queuePosition: expected.position,
        commands: expected.commands,
      });
      this.follow(expected.commands);
    }
    this.agree();
  }

  private endAttempt(a: number, b: number): void {
    const at = a % Math.max(1, this.running.length);
    const attempt = this.running[at];
    if (attempt === undefined) return;
    this.running = this.running.filter((r) => r !== attempt);
    const replica = this.model.pool(attempt.poolId).replicas.find((r) => r.id === attempt.lease.replicaId);
    const alive = replica?.incarnation === attempt.lease.incarnation;
    const outcomes: AttemptOutcome[] = [
      { kind: "finished" },
      lost(0),
      lost(2),
      { kind: "failed", code: "INVALID_PARAMS", message: "no" },
    ];
    const outcome = outcomes[b % outcomes.length] ?? lost(0);
    const slotFree = outcome.kind !== "lost" || b % 3 === 0;
    if (!slotFree && alive) this.releasing.push(attempt);
    this.tell({ type: "attempt_ended", ...attempt, outcome, slotFree });
  }

  private freeSlot(a: number): void {
    const attempt = this.releasing[a % Math.max(1, this.releasing.length)];
    if (attempt === undefined) return;
    this.releasing = this.releasing.filter((r) => r !== attempt);
    this.tell({ type: "slot_freed", poolId: attempt.poolId, ...attempt.lease });
  }

  private anyTask(a: number): string {
    return `t${a % (this.model.tasks.length + 1)}`;
  }

  private tell(event: SchedulerEvent): void {
    const expected = this.model.decide(event, this.nowMs);
    const actual = this.decide(this.real, event, this.nowMs);
    expect(actual.map((c, at) => sameMessage(c, expected[at]))).toEqual(expected);
    this.follow(expected);
    this.agree();
  }

  private follow(commands: readonly Command[]): void {
    for (const c of commands) {
      if (c.type !== "start_attempt") continue;
      this.running.push({ taskId: c.taskId, poolId: c.poolId, lease: c.lease });
      const task = this.model.task(c.taskId);
      expect(task?.attempts).toBe(c.attempt);
      // The bound that the scheduler states in its header.
      if (task?.priority === "batch" && task.aheadWhenAged !== null)
        expect(task.startsSinceAged).toBeLessThanOrEqual(4 * (task.aheadWhenAged + 1));
    }
  }

  private agree(): void {
    for (const { id, capacity } of pools) {
      const waiting = this.model.waiting(id);
      expect(waiting.filter((t) => !t.resumed).length).toBeLessThanOrEqual(capacity);
      // A full queue and a free slot never come together.
      if (this.model.freeSlots(id) > 0) expect(waiting).toEqual([]);
      const real = this.real.pools.get(id);
      expect([...(real?.queue.entries() ?? [])].map((e) => e.taskId)).toEqual([
        ...this.model.waiting(id, "interactive").map((t) => t.id),
        ...this.model.waiting(id, "batch").map((t) => t.id),
      ]);
    }
  }
}

const sameMessage = (actual: Command, expected: Command | undefined): Command =>
  actual.type === "finish_task" && expected?.type === "finish_task" && expected.message === anyMessage
    ? { ...actual, message: anyMessage }
    : actual;

const op: fc.Arbitrary<Op> = fc.record({
  op: fc.nat(26),
  a: fc.nat(30),
  b: fc.nat(30),
  waitMs: fc.constantFrom(0, 0, 1, 7, 40),
});

function compare(subject: Decide, numRuns: number): void {
  fc.assert(
    fc.property(fc.array(op, { minLength: 30, maxLength: 120, size: "max" }), (ops) => {
      const comparison = new Comparison(subject);
      for (const one of ops) comparison.apply(one);
      comparison.finish();
    }),
    // What a mutant fails on need not be the shortest.
    { numRuns, endOnFailure: subject !== decide },
  );
}

test("any sequence of events gives the commands of the model, in their order", () => {
  compare(decide, 150);
});

describe("the comparison notices a scheduler that", () => {
  const mutants: Record<string, Decide> = {
    "drops a task that was cut": (state, event, nowMs) =>
      decide(state, event, nowMs).filter((c) => c.type !== "requeue_task"),
    "starts on a slot that is busy": (state, event, nowMs) =>
      decide(state, event, nowMs).map((c) =>
        c.type === "start_attempt" ? { ...c, lease: { ...c.lease, slot: 0 } } : c,
      ),
    "ends a canceled task twice": (state, event, nowMs) =>
      decide(state, event, nowMs).flatMap((c) =>
        c.type === "finish_task" && c.state === "canceled" ? [c, c] : [c],
      ),
    "forgets to cut what was canceled": (state, event, nowMs) =>
      decide(state, event, nowMs).filter((c) => c.type !== "abort_attempt"),
    "frees a slot before the engine did": (state, event, nowMs) =>
      decide(state, event.type === "attempt_ended" ? { ...event, slotFree: true } : event, nowMs),
    "ages nobody": (state, event, nowMs) => {
      for (const pool of state.pools.values()) pool.startsSinceAged = 0;
      return decide(state, event, nowMs);
    },
  };
  for (const [what, mutant] of Object.entries(mutants))
    test(what, () => {
      expect(() => compare(mutant, 300)).toThrow();
    });
});
