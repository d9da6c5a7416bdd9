/** The balanced tree against a sorted array: order, sums, fronts; and its height, which makes everything O(log n). */
import { expect, test } from "bun:test";
import fc from "fast-check";
import {
  costTicks,
  type Ordered,
  OrderedTree,
  type TreeNode,
  ticksPerMs,
} from "../../src/domain/ordered-tree.ts";

const entry = (ordinal: number, expectedMs: number, exclusive = false): Ordered => ({
  taskId: `t${ordinal}`,
  ordinal,
  expectedMs,
  exclusive,
});

const heightOf = (node: TreeNode<Ordered> | null): number =>
  node === null ? 0 : 1 + Math.max(heightOf(node.left), heightOf(node.right));
/** Neither side weighs more than three times the other: each level down keeps at most 3/4 of the weight. */
const heightMax = (count: number): number => Math.ceil(Math.log(count + 1) / Math.log(4 / 3));

function checkNode(node: TreeNode<Ordered> | null): void {
  if (node === null) return;
  const [left, right] = [(node.left?.count ?? 0) + 1, (node.right?.count ?? 0) + 1];
  expect(left).toBeLessThanOrEqual(3 * right);
  expect(right).toBeLessThanOrEqual(3 * left);
  checkNode(node.left);
  checkNode(node.right);
}

const step = fc.record({
  add: fc.boolean(),
  ordinal: fc.nat(60),
  expectedMs: fc.oneof(fc.double({ min: 0, max: 1e6, noNaN: true }), fc.constantFrom(0, 0.1, 3)),
  exclusive: fc.boolean(),
});

test("agrees with a sorted array after any insertions and removals", () => {
  fc.assert(
    fc.property(
      fc.array(step, { minLength: 10, maxLength: 150, size: "max" }),
      fc.nat(70),
      (steps, probe) => {
        const tree = new OrderedTree<Ordered>();
        let model: Ordered[] = [];
        for (const { add, ordinal, expectedMs, exclusive } of steps) {
          const there = model.find((e) => e.ordinal === ordinal);
          if (add && there === undefined) {
            const added = entry(ordinal, expectedMs, exclusive);
            tree.insert(added);
            model = [...model, added].sort((a, b) => a.ordinal - b.ordinal);
          } else if (!add && there !== undefined) {
            tree.remove(there);
            model = model.filter((e) => e !== there);
          }
          checkNode(tree.root);
        }
        expect([...tree.entries()]).toEqual(model);
        const sum = (entries: Ordered[]) => entries.reduce((ticks, e) => ticks + costTicks(e), 0);
        const before = model.filter((e) => e.ordinal < probe);
        expect(tree.before(probe)).toEqual({ tasks: before.length, ticks: sum(before) });
        expect([tree.count, tree.ticks]).toEqual([model.length, sum(model)]);
        for (let tasks = 0; tasks <= model.length; tasks++) {
          const ticks = sum(model.slice(0, tasks));
          expect(tree.within(ticks)).toEqual({ tasks, ticks });
          if (tasks > 0) expect(tree.within(ticks - 1).tasks).toBe(tasks - 1);
        }
        const skip = new Set(model.slice(0, 2).map((e) => e.taskId));
        const left = model.filter((e) => !skip.has(e.taskId));
        expect(tree.first({ skip, exclusiveToo: true })).toBe(left[0] ?? null);
        expect(tree.first({ skip, exclusiveToo: false })).toBe(left.find((e) => !e.exclusive) ?? null);
      },
    ),
    { numRuns: 150 },
  );
});

test("stays flat whatever the order in which tasks come and go", () => {
  const orders: Record<string, (at: number) => number> = {
    upwards: (at) => at,
    downwards: (at) => 20_000 - at,
    "from both ends": (at) => (at % 2 === 0 ? at : 40_000 - at),
  };
  for (const order of Object.values(orders)) {
    const tree = new OrderedTree<Ordered>();
    const entries = Array.from({ length: 20_000 }, (_, at) => entry(order(at), 1));
    for (const e of entries) tree.insert(e);
    expect(heightOf(tree.root)).toBeLessThanOrEqual(heightMax(20_000));
    for (const e of entries.slice(0, 15_000)) tree.remove(e);
    expect(heightOf(tree.root)).toBeLessThanOrEqual(heightMax(5_000));
    expect(tree.ticks).toBe(5_000 * ticksPerMs);
  }
});

test("counts a task that expects nothing as a millisecond, and refuses one ordinal twice", () => {
  const tree = new OrderedTree<Ordered>();
  tree.insert(entry(1, 0));
  expect(tree.ticks).toBe(ticksPerMs);
  expect(() => tree.insert(entry(1, 0))).toThrow("queued once");
  expect(() => tree.remove(entry(2, 0))).toThrow("is queued");
});
