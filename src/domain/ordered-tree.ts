/**
 * Tasks in the order of their ordinals, with sums: a weight-balanced tree whose nodes know how many tasks lie below
 * them and how much service those expect. Called by the queue (queue.ts) and its lines (fair-lines.ts).
 * Every operation takes O(log n) steps; the balance follows from the counts alone, nothing is drawn.
 *
 * Balance: weight = count + 1; neither child weighs more than three times the other (Hirai and Yamamoto, "Balancing
 * weight-balanced trees", 2011: the one pair of small integers, 3 and 2, that insertion and removal both keep).
 *
 * Work is counted in whole ticks: sums of whole numbers do not depend on the order of the additions, so that what is
 * predicted by sums is what happens one by one.
 */
import { assert } from "./assert.ts";

export interface Ordered {
  readonly taskId: string;
  readonly ordinal: number;
  /** Expected service time, ms. */
  readonly expectedMs: number;
  /** It needs a replica of its own. */
  readonly exclusive: boolean;
}

/** Tasks at the front of an order, and their expected service. */
export interface Front {
  readonly tasks: number;
  readonly ticks: number;
}

/** Which tasks a decision looks at. */
export interface Pass {
  /** Passed over by task id; few at a time (limits.heldMax). */
  readonly skip: ReadonlySet<string>;
  /** False: those that need a replica of their own are passed over. */
  readonly exclusiveToo: boolean;
}

export const everyone: Pass = { skip: new Set(), exclusiveToo: true };

export const ticksPerMs = 1024;
/** At least a millisecond each: a flood of tasks that expect nothing is work too. */
export const costTicks = (entry: { readonly expectedMs: number }): number =>
  Math.max(ticksPerMs, Math.round(entry.expectedMs * ticksPerMs));

export class TreeNode<E extends Ordered> {
  left: TreeNode<E> | null = null;
  right: TreeNode<E> | null = null;
  count = 1;
  ticks: number;
  /** How many of them need no replica of their own. */
  shared: number;

  constructor(readonly entry: E) {
    this.ticks = costTicks(entry);
    this.shared = entry.exclusive ? 0 : 1;
  }
}

type Tree<E extends Ordered> = TreeNode<E> | null;

const heavier = 3;
const inner = 2;

export class OrderedTree<E extends Ordered> {
  root: Tree<E> = null;

  get count(): number {
    return this.root?.count ?? 0;
  }

  get ticks(): number {
    return this.root?.ticks ?? 0;
  }

  insert(entry: E): void {
    this.root = inserted(this.root, entry);
  }

  /** It is in there. */
  remove(entry: E): void {
    this.root = removed(this.root, entry.ordinal);
  }

  /** The first that the pass lets through; each one passed over costs O(log n) more. */
  first(pass: Pass = everyone): E | null {
    return firstOf(this.root, pass);
  }

  /** Everything before this ordinal. */
  before(ordinal: number): Front {
    let tasks = 0;
    let ticks = 0;
    let at = this.root;
    while (at !== null) {
      if (ordinal <= at.entry.ordinal) at = at.left;
      else {
        tasks += at.count - (at.right?.count ?? 0);
        ticks += at.ticks - (at.right?.ticks ?? 0);
        at = at.right;
      }
    }
    return { tasks, ticks };
  }

  /** The longest front that expects no more service than this. */
  within(budgetTicks: number): Front {
    let tasks = 0;
    let ticks = 0;
    let at = this.root;
    while (at !== null) {
      const upToHere = at.ticks - (at.right?.ticks ?? 0);
      if (ticks + upToHere > budgetTicks) at = at.left;
      else {
        tasks += at.count - (at.right?.count ?? 0);
        ticks += upToHere;
        at = at.right;
      }
    }
    return { tasks, ticks };
  }

  *entries(): Generator<E> {
    const above: TreeNode<E>[] = [];
    let at = this.root;
    while (at !== null || above.length > 0) {
      for (; at !== null; at = at.left) above.push(at);
      const node = above.pop();
      assert(node !== undefined, "a node is left to visit");
      yield node.entry;
      at = node.right;
    }
  }
}

const weight = (node: TreeNode<Ordered> | null): number => (node?.count ?? 0) + 1;

function inserted<E extends Ordered>(node: Tree<E>, entry: E): TreeNode<E> {
  if (node === null) return new TreeNode(entry);
  assert(entry.ordinal !== node.entry.ordinal, `ordinal ${entry.ordinal} is queued once`);
  if (entry.ordinal < node.entry.ordinal) node.left = inserted(node.left, entry);
  else node.right = inserted(node.right, entry);
  return balanced(node);
}

function removed<E extends Ordered>(node: Tree<E>, ordinal: number): Tree<E> {
  assert(node !== null, `ordinal ${ordinal} is queued`);
  if (ordinal < node.entry.ordinal) node.left = removed(node.left, ordinal);
  else if (ordinal > node.entry.ordinal) node.right = removed(node.right, ordinal);
  else {
    if (node.left === null) return node.right;
    if (node.right === null) return node.left;
    const successor = leftmost(node.right);
    const right = withoutLeftmost(node.right);
    successor.left = node.left;
    successor.right = right;
    return balanced(successor);
  }
  return balanced(node);
}

function leftmost<E extends Ordered>(node: TreeNode<E>): TreeNode<E> {
  let at = node;
  while (at.left !== null) at = at.left;
  return at;
}

function withoutLeftmost<E extends Ordered>(node: TreeNode<E>): Tree<E> {
  if (node.left === null) return node.right;
  node.left = withoutLeftmost(node.left);
  return balanced(node);
}

/** Its subtrees are right and changed by one task at most. */
function balanced<E extends Ordered>(node: TreeNode<E>): TreeNode<E> {
  const { left, right } = node;
  if (right !== null && weight(right) > heavier * weight(left)) {
    if (right.left !== null && weight(right.left) >= inner * weight(right.right))
      node.right = turnedRight(right, right.left);
    assert(node.right !== null, "a heavy side is not empty");
    return turnedLeft(node, node.right);
  }
  if (left !== null && weight(left) > heavier * weight(right)) {
    if (left.right !== null && weight(left.right) >= inner * weight(left.left))
      node.left = turnedLeft(left, left.right);
    assert(node.left !== null, "a heavy side is not empty");
    return turnedRight(node, node.left);
  }
  sumUp(node);
  return node;
}

function turnedLeft<E extends Ordered>(node: TreeNode<E>, right: TreeNode<E>): TreeNode<E> {
  node.right = right.left;
  right.left = node;
  sumUp(node);
  sumUp(right);
  return right;
}

function turnedRight<E extends Ordered>(node: TreeNode<E>, left: TreeNode<E>): TreeNode<E> {
  node.left = left.right;
  left.right = node;
  sumUp(node);
  sumUp(left);
  return left;
}

function sumUp(node: TreeNode<Ordered>): void {
  const { left, right, entry } = node;
  node.count = 1 + (left?.count ?? 0) + (right?.count ?? 0);
  node.ticks = costTicks(entry) + (left?.ticks ?? 0) + (right?.ticks ?? 0);
  node.shared = (entry.exclusive ? 0 : 1) + (left?.shared ?? 0) + (right?.shared ?? 0);
}

function firstOf<E extends Ordered>(node: Tree<E>, pass: Pass): E | null {
  if (node === null || (!pass.exclusiveToo && node.shared === 0)) return null;
  const found = firstOf(node.left, pass);
  if (found !== null) return found;
  const { entry } = node;
  const fits = (pass.exclusiveToo || !entry.exclusive) && !pass.skip.has(entry.taskId);
  return fits ? entry : firstOf(node.right, pass);
}
