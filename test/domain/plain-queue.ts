/**
 * The two classes of a queue in the plainest way: one array, and deficit round robin turn by turn as its authors wrote
 * it down. Slow; shares nothing with src/domain but types. Used by the tests of the queue and of the scheduler.
 */
import type { Ahead, Fairness, QueueEntry } from "../../src/domain/queue.ts";
import type { Priority } from "../../src/domain/task.ts";

/** Sums of such numbers are exact: 1/1024 ms, a millisecond at least. */
const workOf = (e: { readonly expectedMs: number }): number =>
  Math.max(1, Math.round(e.expectedMs * 1024) / 1024);
const quantumMs = 1000;

interface Place {
  readonly keyId: string;
  creditMs: number;
}

/** The first place has its turn; `credited`: it has had its quantum. */
interface Ring {
  places: Place[];
  credited: boolean;
}

export class PlainQueue<E extends QueueEntry = QueueEntry> {
  entries: E[] = [];
  private rings: Record<Priority, Ring> = {
    interactive: { places: [], credited: false },
    batch: { places: [], credited: false },
  };

  constructor(private readonly fair: Fairness) {}

  private copy(): PlainQueue<E> {
    const copy = new PlainQueue<E>(this.fair);
    copy.entries = [...this.entries];
    copy.rings = structuredClone(this.rings);
    return copy;
  }

  waiting(priority: Priority): E[] {
    return this.entries.filter((e) => e.priority === priority).sort((a, b) => a.ordinal - b.ordinal);
  }

  add(entry: E): void {
    this.entries.push(entry);
    const { places } = this.rings[entry.priority];
    if (!places.some((p) => p.keyId === entry.keyId)) places.push({ keyId: entry.keyId, creditMs: 0 });
  }

  remove(entry: E): void {
    this.entries = this.entries.filter((e) => e !== entry);
    const ring = this.rings[entry.priority];
    if (this.entries.some((e) => e.priority === entry.priority && e.keyId === entry.keyId)) return;
    if (ring.places[0]?.keyId === entry.keyId) ring.credited = false;
    ring.places = ring.places.filter((p) => p.keyId !== entry.keyId);
  }

  /** `skip`: ids that are passed over. */
  next(priority: Priority, skip: readonly string[]): E | null {
    const able = this.waiting(priority).filter((e) => !skip.includes(e.taskId));
    if (this.fair === "fifo" || able.length === 0) return able[0] ?? null;
    return serve(structuredClone(this.rings[priority]), able);
  }

  take(entry: E, skip: readonly string[]): void {
    const able = this.waiting(entry.priority).filter((e) => !skip.includes(e.taskId));
    if (this.fair === "per-key") serve(this.rings[entry.priority], able);
    this.remove(entry);
  }

  /** Drains a copy until the task would start. */
  aheadOf(entry: E): Ahead {
    const copy = this.copy();
    let tasks = 0;
    let workMs = 0;
    for (;;) {
      const next = copy.next("interactive", []) ?? copy.next("batch", []);
      if (next === null) throw new Error("the task is in the queue");
      // Where interactive work waits, batch work does not start: a batch task sees it all.
      if (next === entry) return { tasks, workMs };
      tasks++;
      workMs += workOf(next);
      copy.take(next, []);
    }
  }

  ahead(priority: Priority, keyId: string, expectedMs: number): Ahead {
    const ordinal = 1 + Math.max(0, ...this.entries.map((e) => e.ordinal));
    const rest = { taskId: "new", ordinal, admittedMs: 0, resumed: false, exclusive: false };
    const added = { ...rest, priority, keyId, expectedMs } as E;
    const copy = this.copy();
    copy.add(added);
    return copy.aheadOf(added);
  }
}

/** Turns the ring until a task of `able` may start; the ring is left as it is after that start. */
function serve<E extends QueueEntry>(ring: Ring, able: readonly E[]): E {
  for (;;) {
    const place = ring.places[0];
    if (place === undefined) throw new Error("a key that waits has a place");
    const head = able.find((e) => e.keyId === place.keyId);
    if (head !== undefined && !ring.credited) {
      place.creditMs += quantumMs;
      ring.credited = true;
    }
    if (head !== undefined && workOf(head) <= place.creditMs) {
      place.creditMs -= workOf(head);
      return head;
    }
    ring.places.push(...ring.places.splice(0, 1));
    ring.credited = false;
  }
}
