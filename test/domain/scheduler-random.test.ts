/**
 * Random sequences of events: the scheduler against the plain model in scheduler-model.ts, command by command.
 * The last tests break the scheduler on purpose: the comparison must notice.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { Fairness, TaskQueue } from "../../src/domain/queue.ts";
import {
  admit,
  createScheduler,
  decide,
  type SchedulerState,
  slotsBusy,
} from "../../src/domain/scheduler.ts";
import type {
  AttemptOutcome,
  Command,
  HoldReason,
  Lease,
  NewTask,
  RecoveredTask,
  SchedulerEvent,
} from "../../src/domain/scheduler-protocol.ts";
import type { Priority } from "../../src/domain/task.ts";
import { lost } from "./scheduler-bench.ts";
import { anyMessage, attemptsMax, batchMaxWaitMs, Model } from "./scheduler-model.ts";

const options = { attemptsMax, batchMaxWaitMs };

/** The scheduler or a broken one. */
interface Subject {
  readonly admit: typeof admit;
  readonly decide: typeof decide;
}
const subject: Subject = { admit, decide };

interface Op {
  readonly op: number;
  readonly a: number;
  readonly b: number;
  readonly c: number;
  readonly waitMs: number;
}

const pools = [
  { id: "p", capacity: 3, fullPolicy: "reject" },
  { id: "q", capacity: 2, fullPolicy: "drop-lru" },
  { id: "s", capacity: 5, fullPolicy: "shed-low-priority" },
] as const;
const exclusiveMax = 2;
const reasonOf = (b: number): HoldReason => (b % 3 === 0 ? "reload" : "drain");

/** An attempt as its runner sees it: it ends once; where its slot was not free then, that is told once later. */
interface Running {
  readonly taskId: string;
  readonly poolId: string;
  readonly lease: Lease;
}

class Comparison {
  private readonly model: Model;
  private readonly real: SchedulerState;
  private running: Running[] = [];
  private releasing: Running[] = [];
  private found: readonly RecoveredTask[] = [];
  private incarnations = 0;
  private nowMs = 0;

  constructor(
    private readonly subject: Subject,
    private readonly fair: Fairness,
  ) {
    this.model = new Model(pools, fair, exclusiveMax);
    this.real = createScheduler({ ...options, fair, exclusiveMax }, pools);
  }

  /** What a daemon finds at boot, in the store's order or not. */
  recover(found: readonly Op[]): void {
    const tasks = found.map(
      ({ a, b, c }, at): RecoveredTask => ({
        ...this.taskOf(`t${at}`, a, b, c),
        // 7 and 11 share no divisor: every ordinal once, up and down.
        ordinal: 1 + ((at * 7) % 11),
        admittedMs: 20 * ((at * 7) % 11) - 250,
        resumed: b % 2 === 0,
        hasSent: b % 4 === 0,
      }),
    );
    this.found = tasks;
    this.tell({ type: "recovered", tasks });
  }

  apply({ op, a, b, c, waitMs }: Op): void {
    this.nowMs += waitMs;
    const pool = pools[a % pools.length] ?? pools[0];
    const poolId = pool.id;
    const replicaId = `${poolId}-${b % 3}`;
    const known = this.model.replica(poolId, replicaId);
    const incarnation = (known?.incarnation ?? 0) - (b % 5 === 4 ? 1 : 0);
    if (op < 11) this.submit(this.taskOf(`t${this.model.tasks.length}`, a, b, c));
    else if (op < 14 && known === null) {
      const slots = 1 + (c % 3);
      this.tell({ type: "replica_ready", poolId, replicaId, incarnation: ++this.incarnations, slots });
    } else if (op === 14) this.tell({ type: "replica_lost", poolId, replicaId, incarnation });
    else if (op < 21) this.endAttempt(a, b);
    else if (op < 24) this.freeSlot(a);
    else if (op < 26) this.tell({ type: "cancel_requested", taskId: this.anyTask(a), reason: "client" });
    else if (op === 26) this.tell({ type: "deadline_passed", taskId: this.anyTask(a), cut: b % 2 === 0 });
    else if (op === 27) this.tell({ type: "start_deadline_passed", taskId: this.anyTask(a) });
    else if (op === 28) this.tell({ type: "session_forgotten", sessionId: `s${b % 3}` });
    else if (op === 29) this.tell({ type: "wake", poolId });
    else if (op === 30) {
      const [vramFreeBytes, decodeTps] = [a % 3 === 0 ? null : a % 3, c % 3];
      this.tell({ type: "replica_measured", poolId, replicaId, incarnation, vramFreeBytes, decodeTps });
    } else if (op === 31 && this.model.pool(poolId).replicas.length === 0)
      this.tell({ type: "pool_unavailable", poolId, message: "no model" });
    else if (op === 33) this.tell({ type: "pool_held", poolId, by: reasonOf(b) });
    else if (op === 34 || op === 35) this.tell({ type: "pool_released", poolId, by: reasonOf(b) });
    else if (op === 36) this.tell({ type: "hold_deadline_passed", poolId, by: reasonOf(b) });
    else if (op === 32) this.tell({ type: "run_time_passed", taskId: this.anyTask(a), message: "too long" });
  }

  private taskOf(taskId: string, a: number, b: number, c: number): NewTask {
    return {
      taskId,
      poolId: pools[a % pools.length]?.id ?? "p",
      keyId: `k${c % 4}`,
      sessionId: (a + c) % 3 === 0 ? `s${b % 3}` : null,
      priority: b % 3 === 0 ? "interactive" : "batch",
      expectedMs: [1, 400, 1500, 5000][(a + b) % 4] ?? 1,
      exclusive: (b + c) % 6 === 0,
      prefix: [],
    };
  }

  /** Every attempt ends, every slot is freed, what waits is ended: nothing may be left. */
  finish(): void {
    for (let n = 0; this.running.length + this.releasing.length > 0 && n < 1000; n++) {
      this.endAttempt(0, 0);
      this.freeSlot(0);
    }
    for (const { taskId } of this.model.tasks)
      this.tell({ type: "cancel_requested", taskId, reason: "client" });
    while (this.running.length + this.releasing.length > 0) {
      this.endAttempt(0, 1);
      this.freeSlot(0);
    }
    expect(this.real.tasks.size).toBe(0);
    for (const task of this.model.tasks) expect(task.finishes).toBe(1);
    for (const { id } of pools) {
      for (const r of this.model.pool(id).replicas) expect(slotsBusy(this.real, id, r.id)).toBe(0);
      for (const r of this.real.pools.get(id)?.replicas.values() ?? [])
        expect([r.reservedFor, r.exclusiveLeaseId]).toEqual([null, null]);
    }
  }

  private submit(task: NewTask): void {
    const expected = this.model.admit(task, this.nowMs);
    const actual = this.subject.admit(this.real, task, this.nowMs);
    if ("refused" in expected) {
      const { refused: code, policy: policyLabel } = expected;
      expect(actual).toMatchObject({ kind: "refused", code, policyLabel });
    } else {
      if (actual.kind !== "accepted") throw new Error(`refused: ${actual.message}`);
      const { ordinal, position, commands } = expected;
      expect([actual.ordinal, actual.queuePosition]).toEqual([ordinal, position]);
      expect(actual.commands.map((c, at) => comparable(c, commands[at]))).toEqual(commands);
      this.follow(commands);
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
      lost(0, false),
      lost(2),
      lost(4),
      { kind: "failed", code: "INVALID_PARAMS", message: "no" },
      { kind: "cut", reason: "drain", tokensProduced: 0 },
      { kind: "cut", reason: "drain", tokensProduced: 3 },
    ];
    const outcome = outcomes[b % outcomes.length] ?? lost(0);
    const slotFree = (outcome.kind !== "lost" && outcome.kind !== "cut") || b % 3 === 0;
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
    const actual = this.subject.decide(this.real, event, this.nowMs);
    expect(actual.map((c, at) => comparable(c, expected[at]))).toEqual(expected);
    this.follow(expected);
    this.agree();
  }

  private follow(commands: readonly Command[]): void {
    for (const c of commands) {
      if (c.type !== "start_attempt") continue;
      this.running.push({ taskId: c.taskId, poolId: c.poolId, lease: c.lease });
      const task = this.model.task(c.taskId);
      expect(task?.attempts).toBe(c.attempt);
      // The bound that the scheduler states; one that waits for its session or a replica of its own has another.
      const ordinary = task?.sessionId === null && !task.exclusive && this.fair === "fifo";
      if (ordinary && task.priority === "batch" && task.aheadWhenAged !== null)
        expect(task.startsSinceAged).toBeLessThanOrEqual(4 * (task.aheadWhenAged + 1));
    }
  }

  private agree(): void {
    for (const { id, capacity } of pools) {
      const pool = this.model.pool(id);
      const real = this.real.pools.get(id);
      const counted = this.model.waiting(id).filter((t) => !t.resumed);
      // What was found at boot may be more than would be taken; it only shrinks.
      const found = this.found.filter((t) => t.poolId === id && !t.resumed).length;
      expect(counted.length).toBeLessThanOrEqual(Math.max(capacity, found));
      const apart = pool.apart.map((t) => t.taskId);
      const inLine = (p: Priority) =>
        this.model
          .waiting(id, p)
          .map((t) => t.taskId)
          .filter((t) => !apart.includes(t));
      expect([...(real?.queue.entries() ?? [])].map((e) => e.taskId)).toEqual([
        ...apart,
        ...inLine("interactive"),
        ...inLine("batch"),
      ]);
      this.agreeOnExclusive(id);
    }
  }

  private agreeOnExclusive(poolId: string): void {
    const pool = this.model.pool(poolId);
    expect(this.model.alone(pool)).toBeLessThanOrEqual(Math.min(exclusiveMax, pool.replicas.length));
    for (const r of this.real.pools.get(poolId)?.replicas.values() ?? []) {
      expect(r.reservedFor).toBe(this.model.replica(poolId, r.replicaId)?.reservedFor ?? null);
      if (r.exclusiveLeaseId !== null) expect(r.busy).toBe(1);
    }
  }
}

/** Texts are free, and which criterion decided is placement.test.ts's; all else must be the same. */
function comparable(actual: Command, expected: Command | undefined): Command {
  if (actual.type === "finish_task" && expected?.type === "finish_task" && expected.message === anyMessage)
    return { ...actual, message: anyMessage };
  if (actual.type === "requeue_task" && expected?.type === "requeue_task" && expected.message === anyMessage)
    return { ...actual, message: anyMessage };
  if (actual.type === "start_attempt")
    return { ...actual, why: { ...actual.why, replica: "id", slot: "idle" } };
  return actual;
}

const op: fc.Arbitrary<Op> = fc.record({
  op: fc.nat(36),
  a: fc.nat(30),
  b: fc.nat(30),
  c: fc.nat(30),
  waitMs: fc.constantFrom(0, 0, 1, 7, 40, 900),
});

function compare(tested: Subject, fair: Fairness, numRuns: number): void {
  const ops = fc.array(op, { minLength: 30, maxLength: 120, size: "max" });
  fc.assert(
    fc.property(fc.array(op, { maxLength: 11 }), ops, (found, all) => {
      const comparison = new Comparison(tested, fair);
      comparison.recover(found);
      for (const one of all) comparison.apply(one);
      comparison.finish();
    }),
    // What a mutant fails on need not be the shortest.
    { numRuns, endOnFailure: tested !== subject },
  );
}

for (const fair of ["fifo", "per-key"] satisfies Fairness[])
  test(`${fair}: any sequence of events gives the commands of the model, in their order`, () => {
    compare(subject, fair, 150);
  });

describe("the comparison notices a scheduler that", () => {
  const deciding = (broken: typeof decide): Subject => ({ admit, decide: broken });
  /** Breaks the state before every step. */
  const breaking = (harm: (state: SchedulerState) => void): Subject => ({
    admit: (state, ...rest) => {
      harm(state);
      return admit(state, ...rest);
    },
    decide: (state, ...rest) => {
      harm(state);
      return decide(state, ...rest);
    },
  });
  const eachQueue = (harm: (queue: TaskQueue) => void): Subject =>
    breaking((state) => {
      for (const { queue } of state.pools.values()) harm(queue);
    });
  const mutants: Record<string, [Fairness, Subject]> = {
    "drops a task that was cut": [
      "fifo",
      deciding((...args) => decide(...args).filter((c) => c.type !== "requeue_task")),
    ],
    "starts tasks in a pool that is held": [
      "fifo",
      breaking((state) => {
        for (const pool of state.pools.values()) pool.holds.clear();
      }),
    ],
    "cuts nothing at the deadline of a hold": [
      "fifo",
      deciding((...args) => decide(...args).filter((c) => c.type !== "cut_attempt")),
    ],
    "starts on a slot that is busy": [
      "fifo",
      deciding((...args) =>
        decide(...args).map((c) =>
          c.type === "start_attempt" ? { ...c, lease: { ...c.lease, slot: 0 } } : c,
        ),
      ),
    ],
    "ends a canceled task twice": [
      "fifo",
      deciding((...args) =>
        decide(...args).flatMap((c) => (c.type === "finish_task" && c.state === "canceled" ? [c, c] : [c])),
      ),
    ],
    "forgets to cut what was canceled": [
      "fifo",
      deciding((...args) => decide(...args).filter((c) => c.type !== "abort_attempt")),
    ],
    "frees a slot before the engine did": [
      "fifo",
      deciding((state, event, nowMs) =>
        decide(state, event.type === "attempt_ended" ? { ...event, slotFree: true } : event, nowMs),
      ),
    ],
    "ages nobody": [
      "fifo",
      breaking((state) => {
        for (const pool of state.pools.values()) pool.startsSinceAged = 0;
      }),
    ],
    "gives every start to aged tasks": [
      "fifo",
      breaking((state) => {
        for (const pool of state.pools.values()) pool.startsSinceAged = 3;
      }),
    ],
    "drops a task that was cut for a new one": [
      "fifo",
      eachQueue((queue) => {
        queue.oldestDroppable = () => queue.oldest("batch");
      }),
    ],
    "serves keys in turn without charging them": [
      "per-key",
      eachQueue((queue) => {
        queue.take = (taskId) => queue.remove(taskId) ?? expect.unreachable();
      }),
    ],
    "knows no keys": [
      "per-key",
      eachQueue((queue) => {
        queue.next = (priority, pass) => queue.oldest(priority, pass);
      }),
    ],
    "starts beside an exclusive task": [
      "fifo",
      breaking((state) => {
        for (const pool of state.pools.values())
          for (const replica of pool.replicas.values()) replica.exclusiveLeaseId = null;
      }),
    ],
    "forgets for whom a replica is reserved": [
      "fifo",
      breaking((state) => {
        for (const pool of state.pools.values())
          for (const replica of pool.replicas.values()) replica.reservedFor = null;
      }),
    ],
    "tries nobody alone": [
      "fifo",
      breaking((state) => {
        for (const task of state.tasks.values()) task.crashesInRow = 0;
      }),
    ],
    "holds a task for its session again and again": [
      "fifo",
      breaking((state) => {
        for (const task of state.tasks.values()) task.heldSinceMs = null;
      }),
    ],
  };
  for (const [what, [fair, mutant]] of Object.entries(mutants))
    test(what, () => {
      expect(() => compare(mutant, fair, 400)).toThrow();
    });
});
