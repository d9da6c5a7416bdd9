/**
 * The waiting room of a pool against the plainest simulation: arrays, and deficit round robin turn by turn. Order,
 * positions, work ahead, what counts; the bound that one key cannot push another beyond.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Fairness, type QueueEntry, TaskQueue } from "../../src/domain/queue.ts";
import type { Priority } from "../../src/domain/task.ts";
import { PlainQueue } from "./plain-queue.ts";

const entry = (ordinal: number, more: Partial<QueueEntry> = {}): QueueEntry => ({
  taskId: `t${ordinal}`,
  ordinal,
  keyId: "k",
  priority: "interactive",
  admittedMs: ordinal,
  expectedMs: 10,
  resumed: false,
  exclusive: false,
  ...more,
});

const idsOf = (queue: TaskQueue): string[] => [...queue.entries()].map((e) => e.taskId);
const drained = (queue: TaskQueue, priority: Priority): string[] => {
  const ids: string[] = [];
  for (let e = queue.next(priority); e !== null; e = queue.next(priority))
    ids.push(queue.take(e.taskId).taskId);
  return ids;
};

describe("a queue", () => {
  test("holds two classes, first come first served within each", () => {
    const queue = new TaskQueue("fifo");
    queue.push(entry(1, { priority: "batch", keyId: "a" }));
    queue.push(entry(2, { keyId: "b" }));
    queue.push(entry(3, { priority: "batch", keyId: "b" }));
    queue.push(entry(4, { keyId: "a" }));
    expect(idsOf(queue)).toEqual(["t2", "t4", "t1", "t3"]);
    expect(["t2", "t4", "t1", "t3"].map((id) => queue.aheadOf(id))).toEqual(
      [0, 1, 2, 3].map((tasks) => ({ tasks, workMs: tasks * 10 })),
    );
    expect(queue.next("batch")?.taskId).toBe("t1");
    expect(queue.ahead("interactive", "a", 10)).toEqual({ tasks: 2, workMs: 20 });
    expect(queue.ahead("batch", "a", 10)).toEqual({ tasks: 4, workMs: 40 });
  });

  test("takes back what was cut before what never started, and does not count it", () => {
    const queue = new TaskQueue();
    queue.push(entry(5));
    queue.push(entry(6));
    queue.putBack(entry(4, { resumed: true }));
    expect(idsOf(queue)).toEqual(["t4", "t5", "t6"]);
    expect([queue.size, queue.counted]).toEqual([3, 2]);
    queue.remove("t4");
    expect([queue.size, queue.counted]).toEqual([2, 2]);
  });

  test("gives the tasks of one crashed replica back in the order in which they came", () => {
    const queue = new TaskQueue();
    queue.push(entry(9));
    for (const ordinal of [3, 1, 4, 2]) queue.putBack(entry(ordinal, { resumed: true }));
    expect(idsOf(queue)).toEqual(["t1", "t2", "t3", "t4", "t9"]);
  });

  test("drops the oldest batch task that was never cut, waiting apart or not", () => {
    const queue = new TaskQueue();
    queue.push(entry(2, { priority: "interactive" }));
    expect(queue.oldestDroppable()).toBeNull();
    queue.push(entry(3, { priority: "batch", resumed: true }));
    expect(queue.oldestDroppable()).toBeNull();
    queue.push(entry(4, { priority: "batch", exclusive: true }));
    queue.push(entry(5, { priority: "batch" }));
    expect(queue.oldestDroppable()?.taskId).toBe("t4");
    queue.setApart("t4");
    expect(queue.oldestDroppable()?.taskId).toBe("t4");
    queue.remove("t4");
    expect(queue.oldestDroppable()?.taskId).toBe("t5");
  });

  test("counts what waits apart as ahead of all others", () => {
    const queue = new TaskQueue("per-key");
    for (const ordinal of [1, 2, 3]) queue.push(entry(ordinal, { priority: "batch", keyId: `k${ordinal}` }));
    queue.push(entry(4));
    queue.setApart("t1");
    expect(queue.aheadOf("t1")).toEqual({ tasks: 0, workMs: 0 });
    expect(queue.aheadOf("t4")).toEqual({ tasks: 1, workMs: 10 });
    expect(queue.aheadOf("t2")).toEqual({ tasks: 2, workMs: 20 });
    expect([queue.size, queue.depth("batch"), queue.workMs("batch")]).toEqual([4, 3, 30]);
    expect(idsOf(queue)).toEqual(["t1", "t4", "t2", "t3"]);
    expect(queue.remove("t1")?.taskId).toBe("t1");
    expect([queue.size, queue.depth("batch")]).toEqual([3, 2]);
  });

  test("knows nothing of a task that is not in it, and refuses to hold one twice", () => {
    const queue = new TaskQueue();
    expect([queue.remove("t1"), queue.aheadOf("t1"), queue.next("batch")]).toEqual([null, null, null]);
    queue.push(entry(1));
    expect(queue.has("t1")).toBe(true);
    expect(() => queue.push(entry(1))).toThrow("queued once");
    expect(() => queue.putBack(entry(1))).toThrow("queued once");
  });
});

describe("fair: per-key", () => {
  test("lets a key that comes late in beside one that floods", () => {
    const queue = new TaskQueue("per-key");
    for (let n = 1; n <= 6; n++) queue.push(entry(n, { keyId: "busy", expectedMs: 500 }));
    queue.push(entry(7, { keyId: "rare", expectedMs: 400 }));
    expect(queue.aheadOf("t7")).toEqual({ tasks: 2, workMs: 1000 });
    expect(queue.ahead("interactive", "new", 400)).toEqual({ tasks: 3, workMs: 1400 });
    expect(drained(queue, "interactive")).toEqual(["t1", "t2", "t7", "t3", "t4", "t5", "t6"]);
  });

  test("serves by expected time, not by count: three short ones for one long", () => {
    const queue = new TaskQueue("per-key");
    for (let n = 1; n <= 4; n++) queue.push(entry(n, { keyId: "long", expectedMs: 3000 }));
    for (let n = 5; n <= 16; n++) queue.push(entry(n, { keyId: "short", expectedMs: 1000 }));
    const firstEight = drained(queue, "interactive").slice(0, 8);
    expect(firstEight.filter((id) => Number(id.slice(1)) <= 4)).toHaveLength(2);
  });

  test("starts a huge task after as many turns as it costs, without walking them", () => {
    const queue = new TaskQueue("per-key");
    queue.push(entry(1, { keyId: "huge", expectedMs: 1e9 }));
    queue.push(entry(2, { keyId: "small", expectedMs: 1 }));
    expect(drained(queue, "interactive")).toEqual(["t2", "t1"]);
  });
});

const step = fc.record({
  op: fc.nat(9),
  priority: fc.constantFrom<Priority>("interactive", "batch"),
  keyId: fc.constantFrom("a", "b", "c", "d"),
  expectedMs: fc.oneof(
    fc.double({ min: 0, max: 6000, noNaN: true }),
    fc.constantFrom(0, 1, 999, 1000, 1001, 2500),
  ),
  at: fc.nat(40),
});

function agree(queue: TaskQueue, plain: PlainQueue, keyId: string, expectedMs: number): void {
  expect(queue.size).toBe(plain.entries.length);
  expect(queue.counted).toBe(plain.entries.filter((e) => !e.resumed).length);
  for (const priority of ["interactive", "batch"] as const) {
    const waiting = plain.waiting(priority);
    expect(queue.depth(priority)).toBe(waiting.length);
    expect(queue.next(priority)).toBe(plain.next(priority, []));
    const skip = waiting.filter((e) => e.ordinal % 3 === 0).map((e) => e.taskId);
    expect(queue.next(priority, { skip: new Set(skip), exclusiveToo: true })).toBe(
      plain.next(priority, skip),
    );
    expect(queue.ahead(priority, keyId, expectedMs)).toEqual(plain.ahead(priority, keyId, expectedMs));
  }
  for (const e of plain.entries) expect(queue.aheadOf(e.taskId)).toEqual(plain.aheadOf(e));
}

for (const fair of ["fifo", "per-key"] satisfies Fairness[])
  test(`${fair}: whatever comes and goes, order and what is ahead agree with draining a plain copy`, () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 10, maxLength: 45, size: "max" }), (steps) => {
        const queue = new TaskQueue(fair);
        const plain = new PlainQueue(fair);
        const taken: QueueEntry[] = [];
        let ordinal = 0;
        for (const { op, priority, keyId, expectedMs, at } of steps) {
          if (op < 5) {
            const added = entry(++ordinal, { priority, keyId, expectedMs });
            queue.push(added);
            plain.add(added);
          } else if (op < 7) {
            // Some starts pass over others, as held tasks are.
            const skip =
              op === 6
                ? plain
                    .waiting(priority)
                    .slice(0, 2)
                    .map((e) => e.taskId)
                : [];
            const next = plain.next(priority, skip);
            if (next === null) continue;
            queue.take(next.taskId, { skip: new Set(skip), exclusiveToo: true });
            plain.take(next, skip);
            taken.push(next);
          } else if (op === 7) {
            const victim = plain.entries[at % Math.max(1, plain.entries.length)];
            if (victim === undefined) continue;
            expect(queue.remove(victim.taskId)).toBe(victim);
            plain.remove(victim);
          } else {
            const [back] = taken.splice(at % Math.max(1, taken.length), 1);
            if (back === undefined) continue;
            const resumed = { ...back, resumed: true };
            queue.putBack(resumed);
            plain.add(resumed);
          }
          agree(queue, plain, keyId, expectedMs);
        }
      }),
      { numRuns: 60 },
    );
  });

test("per-key: the head of a line waits no longer than the bound says, whatever the others submit", () => {
  const arrivals = fc.array(
    fc.record({ keyId: fc.constantFrom("x", "y", "z"), expectedMs: fc.integer({ min: 1, max: 5000 }) }),
    { minLength: 60, maxLength: 200, size: "max" },
  );
  fc.assert(
    fc.property(arrivals, fc.integer({ min: 1, max: 9000 }), fc.nat(30), (others, costMs, before) => {
      const queue = new TaskQueue("per-key");
      let ordinal = 0;
      const pushNext = () => {
        const other = others[ordinal % others.length];
        if (other !== undefined) queue.push(entry(++ordinal, other));
      };
      for (let n = 0; n < 10 + before; n++) pushNext();
      for (let n = 0; n < before; n++) queue.take(queue.next("interactive")?.taskId ?? "");
      const longest = Math.max(...others.map((o) => o.expectedMs));
      queue.push(entry(++ordinal, { taskId: "mine", keyId: "me", expectedMs: costMs }));
      const served: Record<string, number> = {};
      for (let next = queue.next("interactive"); next?.taskId !== "mine"; next = queue.next("interactive")) {
        if (next === null || ordinal > 2000) throw new Error("mine is queued, and its turn comes");
        served[next.keyId] = (served[next.keyId] ?? 0) + next.expectedMs;
        queue.take(next.taskId);
        // The others never run dry.
        pushNext();
        pushNext();
      }
      for (const ms of Object.values(served))
        expect(ms).toBeLessThan(Math.ceil(costMs / 1000) * 1000 + longest);
    }),
    { numRuns: 100 },
  );
});
