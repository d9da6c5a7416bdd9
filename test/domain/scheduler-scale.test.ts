/**
 * What an event costs as the queue grows, counted in reads of a task's place and cost and not in time: from a hundred
 * to a hundred thousand waiting tasks it may grow as the logarithm does, and a waiting task must stay small.
 */
import { expect, test } from "bun:test";
import type { Fairness } from "../../src/domain/queue.ts";
import { admit, createScheduler, decide, type SchedulerState } from "../../src/domain/scheduler.ts";
import type { Command, Lease, NewTask } from "../../src/domain/scheduler-protocol.ts";
import type { ScheduledTask } from "../../src/domain/scheduler-state.ts";

const task = (n: number): NewTask => ({
  taskId: `task-${n}`,
  poolId: "p",
  keyId: `k${n % 8}`,
  sessionId: null,
  priority: n % 2 === 0 ? "interactive" : "batch",
  expectedMs: 100 + (n % 977),
  exclusive: false,
  prefix: [],
});

/** Counts how often a task's place or cost is looked at: every comparison and every sum does. */
class Counted {
  steps = 0;

  watch(waiting: ScheduledTask): void {
    const { ordinal, expectedMs } = waiting;
    const counting = (value: number) => ({
      configurable: true,
      get: () => {
        this.steps++;
        return value;
      },
    });
    Object.defineProperties(waiting, { ordinal: counting(ordinal), expectedMs: counting(expectedMs) });
  }

  during(act: () => void): number {
    const before = this.steps;
    act();
    return this.steps - before;
  }
}

interface Rig {
  readonly state: SchedulerState;
  readonly counted: Counted;
  running: { taskId: string; lease: Lease }[];
}

function filled(size: number, fair: Fairness): Rig {
  const state = createScheduler({ attemptsMax: 3, batchMaxWaitMs: 1e9, fair }, [
    { id: "p", capacity: 1e6, fullPolicy: "reject" },
  ]);
  const rig: Rig = { state, counted: new Counted(), running: [] };
  for (let n = 0; n < size; n++) {
    admit(state, task(n), n);
    const waiting = state.tasks.get(`task-${n}`);
    if (waiting !== undefined) rig.counted.watch(waiting);
  }
  follow(
    rig,
    decide(state, { type: "replica_ready", poolId: "p", replicaId: "r", incarnation: 1, slots: 4 }, size),
  );
  return rig;
}

function follow(rig: Rig, commands: readonly Command[]): void {
  for (const c of commands)
    if (c.type === "start_attempt") rig.running.push({ taskId: c.taskId, lease: c.lease });
}

/** The dearest of each kind of event with so many waiting. */
function costs(size: number, fair: Fairness): Record<string, number> {
  const rig = filled(size, fair);
  const { state, counted } = rig;
  const dearest: Record<string, number> = {};
  const note = (kind: string, act: () => void) => {
    dearest[kind] = Math.max(dearest[kind] ?? 0, counted.during(act));
  };
  for (let n = 0; n < 40; n++) {
    note("admit", () => void admit(state, task(size + n), size));
    const added = state.tasks.get(`task-${size + n}`);
    if (added !== undefined) counted.watch(added);
    const middle = `task-${Math.floor(size * 0.3) + n * 2}`;
    note("ahead", () => void state.pools.get("p")?.queue.aheadOf(middle));
    note(
      "cancel",
      () => void decide(state, { type: "cancel_requested", taskId: middle, reason: "client" }, size),
    );
    const [ended] = rig.running.splice(0, 1);
    if (ended === undefined) throw new Error("four tasks run");
    const lost = n % 2 === 0;
    note(lost ? "put back" : "end", () =>
      follow(
        rig,
        decide(
          state,
          {
            type: "attempt_ended",
            poolId: "p",
            ...ended,
            outcome: lost
              ? { kind: "lost", code: "WORKER_RESET", message: "gone", tokensProduced: 0, began: false }
              : { kind: "finished" },
            slotFree: true,
          },
          size,
        ),
      ),
    );
  }
  return dearest;
}

for (const fair of ["fifo", "per-key"] satisfies Fairness[])
  test(`${fair}: every kind of event costs as the logarithm of what waits`, () => {
    const [few, many] = [costs(100, fair), costs(100_000, fair)];
    // A tree of 100,000 is at most 41 high; per-key looks at one line for each of eight keys as well.
    const most = fair === "fifo" ? 500 : 1500;
    for (const [kind, steps] of Object.entries(many)) {
      expect([kind, steps]).toEqual([kind, Math.min(steps, most)]);
      // log(100,000) / log(100) = 2.5
      expect([kind, steps]).toEqual([kind, Math.min(steps, 4 * Math.max(10, few[kind] ?? 0))]);
    }
  });

test("a waiting task takes less than 700 bytes of scheduler, per-key fairness included", () => {
  Bun.gc(true);
  const before = process.memoryUsage().heapUsed;
  const state = createScheduler({ attemptsMax: 3, batchMaxWaitMs: 1e9, fair: "per-key" }, [
    { id: "p", capacity: 1e6, fullPolicy: "reject" },
  ]);
  for (let n = 0; n < 100_000; n++) admit(state, task(n), n);
  Bun.gc(true);
  const bytes = (process.memoryUsage().heapUsed - before) / 100_000;
  expect(state.tasks.size).toBe(100_000);
  expect(bytes).toBeLessThan(700);
});
