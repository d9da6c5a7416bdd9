/**
 * Preemption: whom the scheduler cuts for an interactive task, when, and that what is cut goes on. The last tests let
 * random sequences of events happen and hold the scheduler to the bounds that scheduler-preempt.ts states.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { hasRoom, isPreempted } from "../../src/domain/placement.ts";
import { type Candidate, cheapest, type Preemption, type RunningWork } from "../../src/domain/preemption.ts";
import { admit, createScheduler, decide, slotsBusy } from "../../src/domain/scheduler.ts";
import type {
  AttemptOutcome,
  Command,
  CutReason,
  Lease,
  NewTask,
  SchedulerEvent,
} from "../../src/domain/scheduler-protocol.ts";
import { Bench, lost, ordinary } from "./scheduler-bench.ts";

const rules: Preemption = { maxWaitMs: 1000, maxCuts: 2, minGainMs: 100 };
const cutBy = (reason: CutReason = "preempted", tokensProduced = 5): AttemptOutcome => ({
  kind: "cut",
  reason,
  tokensProduced,
});

/** A bench whose forecast is what a test says. */
class Preempting extends Bench {
  constructor(
    more: { preempt?: Preemption; exclusiveMax?: number; batchMaxWaitMs?: number; fair?: "per-key" } = {},
  ) {
    const { preempt = rules, batchMaxWaitMs = 1e6, ...options } = more;
    super("reject", { batchMaxWaitMs, ...options }, 100, preempt);
  }

  /** The time of a `wake` has come; `works` by task: [remaining, to redo, slack]. */
  wake(atMs: number, works: Readonly<Record<string, readonly [number, number, (number | null)?]>> = {}) {
    this.nowMs = atMs;
    const running = [...this.leases].map(([taskId, { leaseId }]): RunningWork => {
      const [remainingMs, redoMs, slackMs = null] = works[taskId] ?? [1e6, 1000];
      return { leaseId, remainingMs, redoMs, slackMs };
    });
    return this.tell({ type: "wake", poolId: "p", running });
  }
}

describe("an interactive task that waits", () => {
  test("has the cheapest batch task cut once it has waited max_wait_ms, and gets its slot", () => {
    const bench = new Preempting();
    bench.ready(2);
    bench.batch("b1");
    bench.batch("b2");
    expect(bench.admit("i").said).toEqual(["wake_at"]);
    expect(bench.wakes).toEqual([1000]);
    expect(bench.wake(999)).toEqual(["wake_at"]);
    expect(bench.wake(1000, { b1: [5000, 700], b2: [5000, 300] })).toEqual(["cut b2"]);
    expect(bench.ended("b2", cutBy(), false)).toEqual(["requeue b2"]);
    expect(bench.freed(bench.lease("b2"))).toEqual(["start i"]);
    expect(bench.lease("i").slot).toBe(bench.lease("b2").slot);
    expect(bench.ended("i")).toEqual(["finish i done", "start b2"]);
  });

  test("is looked at when it comes where its deadline cannot wait, and else in time for it", () => {
    const bench = new Preempting();
    bench.ready(1);
    bench.batch("b");
    bench.admit("hasty", { latestStartMs: 50 });
    expect(bench.wakes).toEqual([0]);
    expect(bench.wake(0)).toEqual(["cut b"]);
    const later = new Preempting();
    later.ready(1);
    later.batch("b");
    later.admit("i", { latestStartMs: 400 });
    expect(later.wakes).toEqual([400 - rules.minGainMs]);
    expect(later.wake(300)).toEqual(["cut b"]);
  });

  test("has nobody cut while a slot is about to be free, but does not trust that for ever", () => {
    const bench = new Preempting();
    bench.ready(2);
    bench.batch("b1");
    bench.batch("b2");
    bench.admit("i");
    const works = { b1: [90, 10], b2: [5000, 300] } as const;
    expect(bench.wake(1000, works)).toEqual(["wake_at"]);
    expect(bench.wakes.at(-1)).toBe(1100);
    expect(bench.wake(1100, works)).toEqual(["wake_at"]);
    expect(bench.wake(1200, works)).toEqual(["cut b1"]);
  });

  test("takes whichever slot is free first, and then the one that was cut is anybody's", () => {
    const bench = new Preempting();
    bench.ready(2);
    bench.batch("b1");
    bench.batch("b2");
    bench.admit("i");
    bench.wake(1000);
    expect(bench.ended("b1")).toEqual(["finish b1 done", "start i"]);
    expect(bench.ended("b2", cutBy())).toEqual(["requeue b2", "start b2"]);
  });

  test("keeps its slot from later tasks, from an aged batch task and from an exclusive one", () => {
    const bench = new Preempting({ batchMaxWaitMs: 1100, exclusiveMax: 1 });
    bench.ready(1);
    bench.batch("b");
    bench.batch("old");
    bench.admit("i");
    bench.admit("x", { exclusive: true });
    bench.wake(1000);
    bench.nowMs = 5000;
    bench.admit("later");
    bench.ended("b", cutBy(), false);
    expect(bench.freed(bench.lease("b"))).toEqual(["start i"]);
  });

  test("who is canceled meanwhile leaves the slot to the others", () => {
    const bench = new Preempting();
    bench.ready(1);
    bench.batch("b");
    bench.admit("i");
    bench.wake(1000);
    expect(bench.cancel("i")).toEqual(["finish i canceled CANCELED"]);
    expect(bench.ended("b", cutBy())).toEqual(["requeue b", "start b"]);
  });

  test("one cut for each that waits, one after the other in their order", () => {
    const bench = new Preempting();
    bench.ready(3);
    for (const id of ["b1", "b2", "b3"]) bench.batch(id);
    bench.admit("i1");
    bench.nowMs = 400;
    bench.admit("i2");
    expect(bench.wake(1000)).toEqual(["cut b3", "wake_at"]);
    expect(bench.wakes.at(-1)).toBe(1400);
    expect(bench.wake(1300)).toEqual(["wake_at"]);
    expect(bench.wake(1400)).toEqual(["cut b2"]);
    expect(bench.wake(2000)).toEqual([]);
    expect(bench.ended("b2", cutBy())).toEqual(["requeue b2", "start i1"]);
    expect(bench.ended("b3", cutBy())).toEqual(["requeue b3", "start i2"]);
  });

  test("whose cut slot is lost with its engine has another cut", () => {
    const bench = new Preempting();
    bench.ready(1, "p-0");
    bench.ready(1, "p-1", 2);
    bench.batch("b1");
    bench.batch("b2");
    bench.admit("i");
    bench.wake(1000, { b1: [5000, 10], b2: [5000, 20] });
    expect(bench.lose("p-0")).toEqual(["wake_at"]);
    expect(bench.ended("b1", cutBy(), false)).toEqual(["requeue b1"]);
    expect(bench.wake(1001)).toEqual(["cut b2"]);
  });

  test("that runs alone waits for its replica as ever", () => {
    const bench = new Preempting();
    bench.ready(1);
    bench.batch("b");
    expect(bench.admit("x", { exclusive: true }).said).toEqual([]);
    expect(bench.wake(1e5)).toEqual([]);
    expect(bench.admit("i").said).toEqual(["wake_at"]);
    expect(bench.wake(2e5)).toEqual(["cut b"]);
  });

  test("a pool without the option cuts nobody", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.batch("b");
    expect(bench.admit("i").said).toEqual([]);
    bench.nowMs = 1e6;
    expect(bench.tell({ type: "wake", poolId: "p" })).toEqual([]);
  });
});

describe("a batch task", () => {
  test("is cut max_cuts times and then runs to its end", () => {
    const bench = new Preempting();
    bench.ready(1);
    bench.batch("b");
    for (const n of [1, 2]) {
      bench.admit(`i${n}`);
      expect(bench.wake(n * 10_000)).toEqual(["cut b"]);
      bench.ended("b", cutBy());
      bench.ended(`i${n}`);
    }
    expect(bench.admit("i3").said).toEqual([]);
    expect(bench.wake(30_000)).toEqual([]);
    expect(bench.ended("b")).toEqual(["finish b done", "start i3"]);
  });

  test("that was cut may be lost and crash engines as often as any other: a cut counts for neither", () => {
    const bench = new Preempting({ preempt: { ...rules, maxCuts: 9 } });
    bench.ready(1);
    bench.batch("b");
    for (let n = 1; n <= 5; n++) {
      bench.admit(`i${n}`);
      bench.wake(n * 10_000);
      expect(bench.ended("b", cutBy("preempted", 0))).toContain("requeue b");
      bench.ended(`i${n}`);
    }
    expect(bench.state.tasks.get("b")).toMatchObject({ fruitlessAttempts: 0, crashesInRow: 0, cuts: 5 });
    expect(bench.state.tasks.get("b")?.exclusive).toBe(false);
  });

  test("is not cut where that breaks its own promise, unless it is broken anyway", () => {
    const bench = new Preempting();
    bench.ready(2);
    bench.batch("b1");
    bench.batch("b2");
    bench.admit("i", { expectedMs: 500 });
    const tight = { b1: [5000, 100, 599], b2: [5000, 900, 1400] } as const;
    expect(bench.wake(1000, tight)).toEqual(["cut b2"]);
    const late = new Preempting();
    late.ready(1);
    late.batch("b");
    late.admit("i");
    expect(late.wake(1000, { b: [5000, 100, 50] })).toEqual(["wake_at"]);
    expect(late.wake(2000, { b: [5000, 100, -1] })).toEqual(["cut b"]);
  });

  test("of an interactive task nobody ever cuts the attempt", () => {
    const bench = new Preempting();
    bench.ready(1);
    bench.admit("i1");
    expect(bench.admit("i2").said).toEqual([]);
    expect(bench.wake(1e6)).toEqual([]);
  });

  test("is not cut while an aged one has the next turn", () => {
    const bench = new Preempting({ batchMaxWaitMs: 100 });
    bench.ready(1);
    for (const id of ["b1", "b2"]) bench.batch(id);
    bench.nowMs = 200;
    for (const n of [1, 2, 3, 4]) bench.admit(`i${n}`);
    for (const n of [1, 2, 3]) {
      expect(bench.wake(10_000 * n)).toEqual(n === 1 ? ["cut b1"] : []);
      if (n === 1) bench.ended("b1", cutBy());
      else bench.ended(`i${n - 1}`);
    }
    // i1 to i3 have started while b1 and b2 were aged: the next turn is b1's.
    expect(bench.ended("i3")).toEqual(["finish i3 done", "start b1", "wake_at"]);
    expect(bench.wake(50_000)).toEqual(["cut b1"]);
  });

  test("that holds a replica alone is cut where it is the cheapest, and no other exclusive one waits for that", () => {
    const strict = { exclusive: true } as const;
    const bench = new Preempting();
    bench.ready(2);
    bench.batch("x", strict);
    bench.admit("i");
    expect(bench.wake(1000)).toEqual(["cut x"]);
    expect(bench.ended("x", cutBy())).toEqual(["requeue x", "start i"]);
    const two = new Preempting({ exclusiveMax: 1 });
    two.ready(1, "p-0");
    two.ready(1, "p-1", 2);
    two.batch("x", strict);
    two.batch("y", strict);
    two.admit("j");
    expect([two.lease("x").replicaId, two.lease("j").replicaId]).toEqual(["p-0", "p-1"]);
    two.admit("i");
    expect(two.wake(1000)).toEqual([]);
  });

  test("that ends in the moment of its cut has ended, and its slot goes on", () => {
    const bench = new Preempting();
    bench.ready(1);
    bench.batch("b");
    bench.admit("i");
    bench.wake(1000);
    expect(bench.ended("b")).toEqual(["finish b done", "start i"]);
  });

  test("that is canceled while it is cut is canceled once, and the slot is freed once", () => {
    const bench = new Preempting();
    bench.ready(1);
    bench.batch("b");
    bench.admit("i");
    bench.wake(1000);
    expect(bench.cancel("b")).toEqual(["abort_attempt", "finish b canceled CANCELED"]);
    expect(bench.ended("b", cutBy(), false)).toEqual([]);
    expect(bench.freed(bench.lease("b"))).toEqual(["start i"]);
    expect(bench.ended("i")).toEqual(["finish i done"]);
    expect(slotsBusy(bench.state, "p", "p-0")).toBe(0);
  });

  test("goes back before everything of its class, also where it crashed an engine in the moment of its cut", () => {
    const bench = new Preempting();
    bench.ready(1);
    bench.batch("b1");
    bench.batch("b2");
    bench.admit("i");
    bench.wake(1000);
    expect(bench.ended("b1", lost(3))).toEqual(["requeue b1", "start i"]);
    expect(bench.ended("i")).toEqual(["finish i done", "start b1"]);
  });
});

describe("the deadline of a task that has sent something", () => {
  const cutB = () => {
    const bench = new Preempting();
    bench.ready(1);
    bench.batch("b");
    bench.admit("i");
    bench.wake(1000);
    bench.ended("b", cutBy());
    return bench;
  };
  const passed = (cut: boolean): SchedulerEvent => ({ type: "deadline_passed", taskId: "b", cut });

  test("does not end it while it waits to go on, unless deadlines cut", () => {
    const bench = cutB();
    expect(bench.tell({ type: "start_deadline_passed", taskId: "b" })).toEqual([]);
    expect(bench.tell(passed(false))).toEqual([]);
    expect(bench.ended("i")).toEqual(["finish i done", "start b"]);
    expect(cutB().tell(passed(true))).toEqual(["finish b failed DEADLINE_UNMET"]);
  });

  test("does not end it when its engine dies behind it; one that sent nothing it does", () => {
    const bench = new Preempting();
    bench.ready(2);
    bench.batch("b");
    bench.batch("mute");
    bench.tell(passed(false));
    bench.tell({ type: "deadline_passed", taskId: "mute", cut: false });
    expect(bench.ended("b", lost(4))).toEqual(["requeue b", "start b"]);
    expect(bench.ended("mute", lost(0))).toEqual(["finish mute failed DEADLINE_UNMET"]);
  });

  test("a task that was recovered with what it had sent goes on, too", () => {
    const bench = new Preempting();
    const found = { ...ordinary, admittedMs: 0, resumed: true, priority: "batch" as const };
    bench.tell({
      type: "recovered",
      tasks: [
        { ...found, taskId: "b", ordinal: 1, hasSent: true },
        { ...found, taskId: "mute", ordinal: 2 },
      ],
    });
    expect(bench.tell(passed(false))).toEqual([]);
    expect(bench.tell({ type: "deadline_passed", taskId: "mute", cut: false })).toEqual([
      "finish mute failed DEADLINE_UNMET",
    ]);
    expect(bench.ready(1)).toEqual(["start b"]);
  });
});

test("a task whose attempts have run too long together ends, running or waiting", () => {
  const bench = new Preempting();
  bench.ready(1);
  bench.batch("a");
  bench.batch("b");
  const over = (taskId: string) => bench.tell({ type: "run_time_passed", taskId, message: "too long" });
  expect(over("a")).toEqual(["abort_attempt", "finish a failed DECODE_TIMEOUT"]);
  expect(over("b")).toEqual(["finish b failed DECODE_TIMEOUT"]);
  expect(over("b")).toEqual([]);
});

describe("the cheapest", () => {
  const candidate = (taskId: string, redoMs: number, more: Partial<Candidate> = {}): Candidate => ({
    taskId,
    preempted: 0,
    ordinal: 1,
    ...more,
    work: { leaseId: 1, remainingMs: 1000, redoMs, slackMs: null },
  });
  const chosen = (...candidates: Candidate[]) => cheapest(candidates, [], rules, 0, false)?.taskId;

  test("has the least to redo; then it was cut less often; then it came later", () => {
    expect(chosen(candidate("a", 3), candidate("b", 2), candidate("c", 9))).toBe("b");
    expect(chosen(candidate("a", 3, { preempted: 1 }), candidate("b", 3))).toBe("b");
    expect(chosen(candidate("a", 3, { ordinal: 7 }), candidate("b", 3, { ordinal: 6 }))).toBe("a");
    expect(chosen(candidate("a", 1, { preempted: rules.maxCuts }))).toBeUndefined();
    expect(chosen()).toBeUndefined();
  });
});

// ---- any sequence of events ----

interface Step {
  readonly op: number;
  readonly a: number;
  readonly b: number;
  readonly waitMs: number;
}

/** An attempt as its runner sees it. */
interface Attempt {
  readonly taskId: string;
  readonly lease: Lease;
  cut: boolean;
  over: boolean;
}

/** Drives one pool at random and looks on. */
class Walk {
  private readonly state = createScheduler(
    { attemptsMax: 3, batchMaxWaitMs: 300, fair: "fifo", exclusiveMax: 1 },
    [{ id: "p", capacity: 1000, fullPolicy: "reject", preempt: { maxWaitMs: 50, maxCuts: 2, minGainMs: 5 } }],
  );
  private readonly tasks = new Map<string, NewTask>();
  private readonly attempts: Attempt[] = [];
  private readonly cutsOf = new Map<string, number>();
  private readonly ends = new Map<string, number>();
  private nowMs = 0;
  private replicas = 0;
  cuts = 0;

  apply({ op, a, b, waitMs }: Step): void {
    this.nowMs += waitMs;
    if (op < 10) this.submit(a, b);
    else if (op < 12 && this.replicas < 3)
      this.tell({
        type: "replica_ready",
        poolId: "p",
        replicaId: `r${this.replicas}`,
        incarnation: ++this.replicas,
        slots: 1 + (b % 3),
      });
    else if (op < 20) this.wake(b);
    else if (op < 24) this.endAttempt(a, b);
    else if (op === 24) this.cancel(a);
    else if (op === 25) this.lose();
  }

  /** The rest runs to its end. */
  finish(): void {
    if (this.replicas === 0) this.apply({ op: 10, a: 0, b: 1, waitMs: 0 });
    this.tell({ type: "replica_ready", poolId: "p", replicaId: "last", incarnation: 99, slots: 2 });
    for (let n = 0; this.state.tasks.size > 0 && n < 5000; n++) {
      this.nowMs += 7;
      this.wake(n);
      this.endAttempt(n, 0);
    }
    expect(this.state.tasks.size).toBe(0);
    for (const taskId of this.tasks.keys()) expect([taskId, this.ends.get(taskId)]).toEqual([taskId, 1]);
    while (this.attempts.some(({ over }) => !over)) this.endAttempt(0, 0);
    for (const { replicaId } of this.state.pools.get("p")?.replicas.values() ?? [])
      expect(slotsBusy(this.state, "p", replicaId)).toBe(0);
  }

  private submit(a: number, b: number): void {
    const task: NewTask = {
      ...ordinary,
      taskId: `t${this.tasks.size}`,
      priority: a % 3 === 0 ? "interactive" : "batch",
      expectedMs: 1 + (b % 40),
      exclusive: b % 9 === 0,
      latestStartMs: b % 4 === 0 ? this.nowMs + b : null,
    };
    this.tasks.set(task.taskId, task);
    const admission = admit(this.state, task, this.nowMs);
    if (admission.kind === "accepted") this.follow(admission.commands);
  }

  private wake(b: number): void {
    const running = this.attempts
      .filter(({ over }) => !over)
      .map(({ lease: { leaseId } }, at) => ({
        leaseId,
        remainingMs: ((at + b) % 5) * 40,
        redoMs: (at * b) % 70,
        slackMs: (at + b) % 7 === 0 ? 20 : null,
      }));
    this.tell({ type: "wake", poolId: "p", running });
  }

  private endAttempt(a: number, b: number): void {
    const open = this.attempts.filter(({ over }) => !over);
    const attempt = open.find(({ cut }) => cut) ?? open[a % Math.max(1, open.length)];
    if (attempt === undefined) return;
    attempt.over = true;
    const outcomes: AttemptOutcome[] = [{ kind: "finished" }, lost(b % 2), { kind: "finished" }];
    // It may have ended by itself in the moment of its cut.
    const outcome = attempt.cut && b % 4 !== 3 ? cutBy("preempted", b % 3) : (outcomes[b % 3] ?? lost(0));
    const slotFree = outcome.kind === "finished" || b % 2 === 0;
    const { taskId, lease } = attempt;
    this.tell({ type: "attempt_ended", taskId, poolId: "p", lease, outcome, slotFree });
    if (!slotFree) this.tell({ type: "slot_freed", poolId: "p", ...lease });
  }

  private cancel(a: number): void {
    this.tell({ type: "cancel_requested", taskId: `t${a % (this.tasks.size + 1)}`, reason: "client" });
  }

  private lose(): void {
    const [replica] = this.state.pools.get("p")?.replicas.values() ?? [];
    if (replica === undefined) return;
    const { replicaId, incarnation } = replica;
    this.tell({ type: "replica_lost", poolId: "p", replicaId, incarnation });
    for (const attempt of this.attempts) {
      if (attempt.over || attempt.lease.incarnation !== incarnation) continue;
      attempt.over = true;
      const { taskId, lease } = attempt;
      const outcome = attempt.cut ? cutBy() : lost(1);
      this.tell({ type: "attempt_ended", taskId, poolId: "p", lease, outcome, slotFree: false });
    }
  }

  private tell(event: SchedulerEvent): void {
    const commands = decide(this.state, event, this.nowMs);
    this.follow(commands);
    this.look(commands.some(({ type }) => type === "cut_attempt"));
  }

  private follow(commands: readonly Command[]): void {
    for (const c of commands) {
      if (c.type === "start_attempt")
        this.attempts.push({ taskId: c.taskId, lease: c.lease, cut: false, over: false });
      if (c.type === "finish_task") this.ends.set(c.taskId, (this.ends.get(c.taskId) ?? 0) + 1);
      if (c.type === "cut_attempt") this.noteCut(c.taskId, c.leaseId);
    }
  }

  private noteCut(taskId: string, leaseId: number): void {
    this.cuts++;
    const attempt = this.attempts.find((one) => one.lease.leaseId === leaseId);
    expect(attempt).toMatchObject({ taskId, cut: false, over: false });
    if (attempt !== undefined) attempt.cut = true;
    expect(this.tasks.get(taskId)?.priority).toBe("batch");
    const cuts = (this.cutsOf.get(taskId) ?? 0) + 1;
    this.cutsOf.set(taskId, cuts);
    expect(cuts).toBeLessThanOrEqual(2);
  }

  private look(cutNow: boolean): void {
    const pool = this.state.pools.get("p");
    if (pool === undefined) return;
    const apart = [...pool.queue.called()].filter(({ exclusive }) => !exclusive);
    for (const { priority } of apart) expect(priority).toBe("interactive");
    const replicas = [...pool.replicas.values()];
    // Whoever waits apart for a slot has the first one.
    if (apart.length > 0) expect(replicas.some(hasRoom)).toBe(false);
    for (const replica of replicas) {
      const busy = replica.slots.filter(({ kind }) => kind !== "free").length;
      expect(replica.busy).toBe(busy);
      if (replica.slots.some(isPreempted)) expect(replica.reservedFor).toBeNull();
    }
    const cutting = replicas.flatMap(({ slots }) => slots.filter(isPreempted)).length;
    if (cutNow) expect(cutting).toBeLessThanOrEqual(apart.length);
    // The turns of those for whom others were cut count: an aged one waits for no more of them.
    expect(pool.startsSinceAged).toBeLessThanOrEqual(3);
  }
}

test("any sequence of events: bounded cuts of batch tasks only, no slot lost, every task ends once", () => {
  const step = fc.record({
    op: fc.nat(25),
    a: fc.nat(40),
    b: fc.nat(40),
    waitMs: fc.constantFrom(0, 1, 5, 30, 60, 200),
  });
  let cuts = 0;
  fc.assert(
    fc.property(fc.array(step, { minLength: 40, maxLength: 150, size: "max" }), (steps) => {
      const walk = new Walk();
      for (const one of steps) walk.apply(one);
      walk.finish();
      cuts += walk.cuts;
    }),
    { numRuns: 150 },
  );
  expect(cuts).toBeGreaterThan(150);
});
