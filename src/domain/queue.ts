/**
 * The waiting room of one pool: two classes, FIFO within each, put back at the head what was cut.
 * Called by the scheduler only. Every operation is O(1), except `positionOf` for a task in the middle.
 * `workMs` sums the expected service times, so that a prediction never walks the queue.
 */
import { assert } from "./assert.ts";
import type { Priority } from "./task.ts";

export interface QueueEntry {
  readonly taskId: string;
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

  add(entry: QueueEntry, atHead: boolean): Node {
    const node: Node = { entry, before: null, after: null };
    if (this.head === null || this.tail === null) {
      this.head = node;
      this.tail = node;
    } else if (atHead) {
      node.after = this.head;
      this.head.before = node;
      this.head = node;
    } else {
      node.before = this.tail;
      this.tail.after = node;
      this.tail = node;
    }
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
    // Empty means zero: a sum of many additions and subtractions would keep a rounding remainder.
    this.workMs = this.size === 0 ? 0 : this.workMs - node.entry.expectedMs;
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
    this.add(entry, false);
  }

  /** Back to the head of its class: it was there first. */
  putBack(entry: QueueEntry): void {
    this.add(entry, true);
  }

  private add(entry: QueueEntry, atHead: boolean): void {
    assert(!this.nodes.has(entry.taskId), `task ${entry.taskId} is queued once`);
    this.nodes.set(entry.taskId, this.classes[entry.priority].add(entry, atHead));
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
