/**
 * The waiting room of one pool: two classes, interactive before batch. Within a class `fair: fifo` takes the order of
 * admission, `fair: per-key` deficit round robin over keys (fair-lines.ts) with the order of admission within a key.
 * What was cut goes back to its place in that order. Called by the scheduler; read by predictions and views.
 *
 * An exclusive task whose turn has come may wait apart until a replica is empty: it counts as ahead of all others.
 * Every operation is O(log n) in the tasks that wait (per-key: plus what fair-lines.ts says for the keys).
 */
import { assert } from "./assert.ts";
import { FairLines } from "./fair-lines.ts";
import { costTicks, everyone, type Front, OrderedTree, type Pass, ticksPerMs } from "./ordered-tree.ts";
import type { Priority } from "./task.ts";

export type Fairness = "fifo" | "per-key";

export interface QueueEntry {
  readonly taskId: string;
  /** Counts the admissions: the order within a class. */
  readonly ordinal: number;
  readonly keyId: string;
  readonly priority: Priority;
  /** When it was accepted: ages batch tasks. */
  readonly admittedMs: number;
  /** Expected service time, ms: the predictor's, fixed at admission. */
  readonly expectedMs: number;
  /** It was cut and goes on: not counted against the capacity, never dropped. */
  readonly resumed: boolean;
  /** It needs a replica of its own. */
  readonly exclusive: boolean;
}

export interface Ahead {
  readonly tasks: number;
  readonly workMs: number;
}

class ClassQueue {
  readonly order = new OrderedTree<QueueEntry>();
  private readonly lines: FairLines<QueueEntry> | null;

  constructor(fair: Fairness) {
    this.lines = fair === "per-key" ? new FairLines() : null;
  }

  add(entry: QueueEntry): void {
    this.order.insert(entry);
    this.lines?.add(entry);
  }

  remove(entry: QueueEntry): void {
    this.order.remove(entry);
    this.lines?.remove(entry);
  }

  next(pass: Pass): QueueEntry | null {
    return this.lines === null ? this.order.first(pass) : this.lines.next(pass);
  }

  charge(entry: QueueEntry, pass: Pass): void {
    this.lines?.charge(entry, pass);
  }

  aheadOf(entry: QueueEntry): Front {
    return this.lines === null ? this.order.before(entry.ordinal) : this.lines.aheadOf(entry);
  }

  aheadOfNew(keyId: string, expectedMs: number): Front {
    if (this.lines !== null) return this.lines.aheadOfNew(keyId, expectedMs);
    return { tasks: this.order.count, ticks: this.order.ticks };
  }
}

export class TaskQueue {
  private readonly classes: Readonly<Record<Priority, ClassQueue>>;
  private readonly byId = new Map<string, QueueEntry>();
  /** Called up and waiting apart, in the order of their calls. */
  private readonly apart = new Map<string, QueueEntry>();
  private resumedCount = 0;

  constructor(readonly fair: Fairness = "fifo") {
    this.classes = { interactive: new ClassQueue(fair), batch: new ClassQueue(fair) };
  }

  get size(): number {
    return this.byId.size;
  }

  /** What counts against the capacity. */
  get counted(): number {
    return this.byId.size - this.resumedCount;
  }

  depth(priority: Priority): number {
    return this.classes[priority].order.count + this.apartOf(priority).tasks;
  }

  workMs(priority: Priority): number {
    return (this.classes[priority].order.ticks + this.apartOf(priority).ticks) / ticksPerMs;
  }

  has(taskId: string): boolean {
    return this.byId.has(taskId);
  }

  push(entry: QueueEntry): void {
    assert(!this.byId.has(entry.taskId), `task ${entry.taskId} is queued once`);
    this.byId.set(entry.taskId, entry);
    if (entry.resumed) this.resumedCount++;
    this.classes[entry.priority].add(entry);
  }

  /** Back to where it was: before everything of its class (and key) that came later. */
  putBack(entry: QueueEntry): void {
    this.push(entry);
  }

  /** It leaves without having been started from here: canceled, failed, dropped, or called up before. */
  remove(taskId: string): QueueEntry | null {
    const entry = this.byId.get(taskId);
    if (entry === undefined) return null;
    this.byId.delete(taskId);
    if (entry.resumed) this.resumedCount--;
    if (!this.apart.delete(taskId)) this.classes[entry.priority].remove(entry);
    return entry;
  }

  /** What the class starts next; changes nothing. */
  next(priority: Priority, pass: Pass = everyone): QueueEntry | null {
    return this.classes[priority].next(pass);
  }

  /** The one that was admitted first among those that wait in line. */
  oldest(priority: Priority, pass: Pass = everyone): QueueEntry | null {
    return this.classes[priority].order.first(pass);
  }

  /** The oldest batch task that may be dropped for a new one: it was never cut, so it has produced nothing. */
  oldestDroppable(): QueueEntry | null {
    let oldest: QueueEntry | null = null;
    // The walk passes the resumed ones at the front only.
    for (const entry of this.classes.batch.order.entries())
      if (!entry.resumed) {
        oldest = entry;
        break;
      }
    for (const entry of this.apart.values())
      if (entry.priority === "batch" && !entry.resumed && (oldest === null || entry.ordinal < oldest.ordinal))
        oldest = entry;
    return oldest;
  }

  /** It starts, being what `next` said for this pass. */
  take(taskId: string, pass: Pass = everyone): QueueEntry {
    const entry = this.inLine(taskId);
    this.classes[entry.priority].charge(entry, pass);
    this.remove(taskId);
    return entry;
  }

  /** Its turn came, being what `next` said for this pass, but it must wait for a replica of its own. */
  setApart(taskId: string, pass: Pass = everyone): void {
    const entry = this.inLine(taskId);
    const own = this.classes[entry.priority];
    own.charge(entry, pass);
    own.remove(entry);
    this.apart.set(taskId, entry);
  }

  /** Those that wait apart, in the order of their calls. */
  called(): Iterable<QueueEntry> {
    return this.apart.values();
  }

  /** What would start before a new task like this, aging left aside. */
  ahead(priority: Priority, keyId: string, expectedMs: number): Ahead {
    return this.sum(priority, this.classes[priority].aheadOfNew(keyId, expectedMs));
  }

  /** What starts before this task while nothing new comes, aging left aside; null: it is not queued. */
  aheadOf(taskId: string): Ahead | null {
    const entry = this.byId.get(taskId);
    if (entry === undefined) return null;
    if (!this.apart.has(taskId)) return this.sum(entry.priority, this.classes[entry.priority].aheadOf(entry));
    let tasks = 0;
    let ticks = 0;
    for (const other of this.apart.values()) {
      if (other === entry) break;
      tasks++;
      ticks += costTicks(other);
    }
    return { tasks, workMs: ticks / ticksPerMs };
  }

  /** Those that wait apart, then the classes, each in the order of admission. */
  *entries(): Generator<QueueEntry> {
    yield* this.apart.values();
    yield* this.classes.interactive.order.entries();
    yield* this.classes.batch.order.entries();
  }

  private sum(priority: Priority, own: Front): Ahead {
    const apart = this.apartOf(null);
    const before = priority === "batch" ? this.classes.interactive.order : { count: 0, ticks: 0 };
    return {
      tasks: own.tasks + before.count + apart.tasks,
      workMs: (own.ticks + before.ticks + apart.ticks) / ticksPerMs,
    };
  }

  private apartOf(priority: Priority | null): Front {
    let tasks = 0;
    let ticks = 0;
    for (const entry of this.apart.values()) {
      if (priority !== null && entry.priority !== priority) continue;
      tasks++;
      ticks += costTicks(entry);
    }
    return { tasks, ticks };
  }

  private inLine(taskId: string): QueueEntry {
    const entry = this.byId.get(taskId);
    assert(entry !== undefined && !this.apart.has(taskId), `task ${taskId} waits in line`);
    return entry;
  }
}
