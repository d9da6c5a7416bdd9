/**
 * The waiting room of one pool: two classes, each in the order of admission; what was cut goes back before
 * everything that came after it, and so do several tasks that one crash cut. Called by the scheduler only.
 * Every operation is O(1), except `positionOf` for a task in the middle and `putBack` behind others put back.
 * `workMs` sums the expected service times, so that a prediction never walks the queue.
 */
import { assert } from "./assert.ts";
import type { Priority } from "./task.ts";

export interface QueueEntry {
  readonly taskId: string;
  /** Counts the admissions: the order within a class. */
  readonly ordinal: number;
  readonly priority: Priority;
  /** When it was accepted: ages batch tasks. */
  readonly admittedMs: number;
  /** Expected service time, ms: the predictor's, fixed at admission. */
  readonly expectedMs: number;
  /** It was cut and goes on: not counted against the capacity, never dropped. */
  readonly resumed: boolean;
}

interface Node {
  readonly entry: QueueEntry;
  before: Node | null;
  after: Node | null;
}

class Fifo {
  private head: Node | null = null;
  private tail: Node | null = null;
  size = 0;
  workMs = 0;

  first(): QueueEntry | null {
    return this.head?.entry ?? null;
  }

  append(entry: QueueEntry): Node {
    assert(this.tail === null || this.tail.entry.ordinal < entry.ordinal, "admissions are counted upwards");
    return this.link(entry, this.tail, null);
  }

  /** Among those that came before it there are only others that were put back: the walk is short. */
  putBack(entry: QueueEntry): Node {
    let after = this.head;
    while (after !== null && after.entry.ordinal < entry.ordinal) after = after.after;
    return this.link(entry, after === null ? this.tail : after.before, after);
  }

  private link(entry: QueueEntry, before: Node | null, after: Node | null): Node {
    const node: Node = { entry, before, after };
    if (before === null) this.head = node;
    else before.after = node;
    if (after === null) this.tail = node;
    else after.before = node;
    this.size++;
    this.workMs += entry.expectedMs;
    return node;
  }

  remove(node: Node): void {
    if (node.before === null) this.head = node.after;
    else node.before.after = node.after;
    if (node.after === null) this.tail = node.before;
    else node.after.before = node.before;
    this.size--;
    // A sum of many additions and subtractions keeps a rounding remainder: empty means zero, less is impossible.
    this.workMs = this.size === 0 ? 0 : Math.max(0, this.workMs - node.entry.expectedMs);
  }

  ahead(node: Node): number {
    let count = 0;
    for (let at = node.before; at !== null; at = at.before) count++;
    return count;
  }

  *entries(): Generator<QueueEntry> {
    for (let at = this.head; at !== null; at = at.after) yield at.entry;
  }
}

export class TaskQueue {
  private readonly classes: Readonly<Record<Priority, Fifo>> = { interactive: new Fifo(), batch: new Fifo() };
  private readonly nodes = new Map<string, Node>();
  private resumedCount = 0;

  get size(): number {
    return this.nodes.size;
  }

  /** What counts against the capacity. */
  get counted(): number {
    return this.nodes.size - this.resumedCount;
  }

  depth(priority: Priority): number {
    return this.classes[priority].size;
  }

  workMs(priority: Priority): number {
    return this.classes[priority].workMs;
  }

  has(taskId: string): boolean {
    return this.nodes.has(taskId);
  }

  push(entry: QueueEntry): void {
    this.note(entry, this.classes[entry.priority].append(this.unqueued(entry)));
  }

  /** Back to where it was: before everything of its class that came later. */
  putBack(entry: QueueEntry): void {
    this.note(entry, this.classes[entry.priority].putBack(this.unqueued(entry)));
  }

  private unqueued(entry: QueueEntry): QueueEntry {
    assert(!this.nodes.has(entry.taskId), `task ${entry.taskId} is queued once`);
    return entry;
  }

  private note(entry: QueueEntry, node: Node): void {
    this.nodes.set(entry.taskId, node);
    if (entry.resumed) this.resumedCount++;
  }

  remove(taskId: string): QueueEntry | null {
    const node = this.nodes.get(taskId);
    if (node === undefined) return null;
    this.nodes.delete(taskId);
    this.classes[node.entry.priority].remove(node);
    if (node.entry.resumed) this.resumedCount--;
    return node.entry;
  }

  first(priority: Priority): QueueEntry | null {
    return this.classes[priority].first();
  }

  /** Tasks that start before it, aging left aside. */
  positionOf(taskId: string): number | null {
    const node = this.nodes.get(taskId);
    if (node === undefined) return null;
    const ahead = this.classes[node.entry.priority].ahead(node);
    return node.entry.priority === "interactive" ? ahead : this.classes.interactive.size + ahead;
  }

  *entries(): Generator<QueueEntry> {
    yield* this.classes.interactive.entries();
    yield* this.classes.batch.entries();
  }
}
