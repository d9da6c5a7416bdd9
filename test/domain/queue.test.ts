/** The waiting room of a pool against a plain sorted array: order, positions, sums, what counts. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type QueueEntry, TaskQueue } from "../../src/domain/queue.ts";
import type { Priority } from "../../src/domain/task.ts";

const entry = (ordinal: number, more: Partial<QueueEntry> = {}): QueueEntry => ({
  taskId: `t${ordinal}`,
  ordinal,
  priority: "interactive",
  admittedMs: ordinal,
  expectedMs: 10,
  resumed: false,
  ...more,
});

const idsOf = (queue: TaskQueue): string[] => [...queue.entries()].map((e) => e.taskId);

describe("a queue", () => {
  test("holds two classes, first come first served within each", () => {
    const queue = new TaskQueue();
    queue.push(entry(1, { priority: "batch" }));
    queue.push(entry(2));
    queue.push(entry(3, { priority: "batch" }));
    queue.push(entry(4));
    expect(idsOf(queue)).toEqual(["t2", "t4", "t1", "t3"]);
    expect(["t2", "t4", "t1", "t3"].map((id) => queue.positionOf(id))).toEqual([0, 1, 2, 3]);
    expect(queue.first("batch")?.taskId).toBe("t1");
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
    // Their attempts end in the order of their leases: each head put-back would turn that order round.
    const queue = new TaskQueue();
    queue.push(entry(9));
    for (const ordinal of [1, 2, 3, 4]) queue.putBack(entry(ordinal, { resumed: true }));
    expect(idsOf(queue)).toEqual(["t1", "t2", "t3", "t4", "t9"]);
    const shuffled = new TaskQueue();
    for (const ordinal of [3, 1, 4, 2]) shuffled.putBack(entry(ordinal, { resumed: true }));
    expect(idsOf(shuffled)).toEqual(["t1", "t2", "t3", "t4"]);
  });

  test("knows nothing of a task that is not in it", () => {
    const queue = new TaskQueue();
    expect([queue.remove("t1"), queue.positionOf("t1"), queue.first("batch")]).toEqual([null, null, null]);
    expect(queue.has("t1")).toBe(false);
  });

  test("refuses to hold a task twice", () => {
    const queue = new TaskQueue();
    queue.push(entry(1));
    expect(() => queue.push(entry(1))).toThrow("queued once");
    expect(() => queue.putBack(entry(1))).toThrow("queued once");
  });
});

type Step =
  | { readonly kind: "push"; readonly priority: Priority; readonly expectedMs: number }
  | { readonly kind: "take"; readonly priority: Priority }
  | { readonly kind: "remove"; readonly at: number }
  /** One of the taken ones comes back. */
  | { readonly kind: "putBack"; readonly at: number };

const priority = fc.constantFrom<Priority>("interactive", "batch");
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    kind: fc.constant("push" as const),
    priority,
    // Sums of such numbers round: nothing may go below zero for it.
    expectedMs: fc.oneof(fc.double({ min: 0, max: 1e6, noNaN: true }), fc.constantFrom(0, 0.1, 0.2, 0.3)),
  }),
  fc.record({ kind: fc.constant("take" as const), priority }),
  fc.record({ kind: fc.constant("remove" as const), at: fc.nat(40) }),
  fc.record({ kind: fc.constant("putBack" as const), at: fc.nat(40) }),
);

test("any sequence of pushes, takes, removals and put-backs agrees with a sorted array", () => {
  fc.assert(
    fc.property(fc.array(step, { minLength: 20, maxLength: 120, size: "max" }), (steps) => {
      const queue = new TaskQueue();
      let model: QueueEntry[] = [];
      const taken: QueueEntry[] = [];
      let ordinal = 0;
      for (const one of steps) {
        if (one.kind === "push") {
          const added = entry(++ordinal, { priority: one.priority, expectedMs: one.expectedMs });
          queue.push(added);
          model.push(added);
        } else if (one.kind === "take") {
          const first = queue.first(one.priority);
          const expected = inOrder(model, one.priority)[0] ?? null;
          expect(first).toEqual(expected);
          if (first === null) continue;
          expect(queue.remove(first.taskId)).toBe(first);
          model = model.filter((e) => e !== first);
          taken.push(first);
        } else if (one.kind === "remove") {
          const victim = model[one.at % Math.max(1, model.length)];
          if (victim === undefined) continue;
          expect(queue.remove(victim.taskId)).toBe(victim);
          model = model.filter((e) => e !== victim);
        } else {
          const [back] = taken.splice(one.at % Math.max(1, taken.length), 1);
          if (back === undefined) continue;
          const resumed = { ...back, resumed: true };
          queue.putBack(resumed);
          model.push(resumed);
        }
        agree(queue, model);
      }
      for (const left of [...model]) queue.remove(left.taskId);
      expect([queue.size, queue.counted, queue.workMs("interactive"), queue.workMs("batch")]).toEqual([
        0, 0, 0, 0,
      ]);
    }),
    { numRuns: 60 },
  );
});

const inOrder = (model: readonly QueueEntry[], of: Priority): QueueEntry[] =>
  model.filter((e) => e.priority === of).sort((a, b) => a.ordinal - b.ordinal);

function agree(queue: TaskQueue, model: readonly QueueEntry[]): void {
  const expected = [...inOrder(model, "interactive"), ...inOrder(model, "batch")];
  expect(idsOf(queue)).toEqual(expected.map((e) => e.taskId));
  for (const [at, e] of expected.entries()) expect(queue.positionOf(e.taskId)).toBe(at);
  expect(queue.size).toBe(model.length);
  expect(queue.counted).toBe(model.filter((e) => !e.resumed).length);
  for (const of of ["interactive", "batch"] as const) {
    const entries = inOrder(model, of);
    const sum = entries.reduce((total, e) => total + e.expectedMs, 0);
    expect(queue.depth(of)).toBe(entries.length);
    expect(queue.workMs(of)).toBeGreaterThanOrEqual(0);
    expect(Math.abs(queue.workMs(of) - sum)).toBeLessThan(1e-3);
  }
}
