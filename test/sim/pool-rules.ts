/**
 * What must be so among the tasks of one pool, as an onlooker can tell: who starts before whom, who is refused or
 * dropped when the queue is full, and that nothing waits while an engine is free. Called by checker.ts; shares no
 * code with src. Judged against what was so in an earlier instant, see there.
 */
import type { FullPolicy } from "../../src/domain/pool.ts";
import type { Preemption } from "../../src/domain/preemption.ts";
import { PreemptionRules } from "./preemption-rules.ts";
import type { TaskStory } from "./task-story.ts";

export interface PoolRulesOptions {
  readonly id: string;
  readonly capacity: number;
  readonly fullPolicy: FullPolicy;
  readonly preempt: Preemption | null;
  readonly batchMaxWaitMs: number;
  readonly fair: "fifo" | "per-key";
  /** So long a session's turn may be passed, while the engine that holds its context is soon free. */
  readonly affinityWaitMs: number;
}

export interface Taken {
  readonly story: TaskStory;
  /** When it started. */
  readonly alone: boolean;
  /** The daemon cut its attempt, and the engine has not freed the slot yet. */
  letGo: boolean;
  /** It was lost: until the slot is freed nothing need start on the engine. */
  lost: boolean;
  /** When the engine broke off: nothing may start there before it has freed the slot. */
  lostAtMs: number | null;
}

export interface Instance {
  readonly id: number;
  readonly pool: string;
  readonly slots: number;
  readonly servesSinceMs: number;
  goneAtMs: number | null;
  /** Who took a slot, from the beginning of its generation until the engine freed the slot. */
  readonly taken: Map<number, Taken>;
}

export class PoolRules {
  /** Sent and not known to be over before this instant. */
  readonly live = new Set<TaskStory>();
  readonly instances = new Set<Instance>();
  readonly preemption: PreemptionRules;
  agedStarts = 0;
  /** Null: nobody has drained it. */
  drainedAtMs: number | null = null;
  /** The deadline of the drain. */
  cutAtMs: number | null = null;
  /** What ran at the deadline. */
  readonly mustEnd = new Set<TaskStory>();
  /** Starts that are not aged ones since the last aged one that overtook; Infinity: not known. */
  private startsSinceOvertaken = Number.POSITIVE_INFINITY;
  private idleSinceMs: number | null = null;
  private countedBefore = 0;
  /** Starts of this instant before others that may have had their turn unseen. */
  private passed: { readonly story: TaskStory; readonly passed: TaskStory; readonly sinceMs: number }[] = [];

  constructor(
    readonly options: PoolRulesOptions,
    private readonly violation: (what: string) => void,
  ) {
    this.preemption = new PreemptionRules(options.preempt, violation);
  }

  drained(nowMs: number): void {
    this.drainedAtMs ??= nowMs;
  }

  /** Whose turns were given before, nobody has seen. */
  resumed(): void {
    this.drainedAtMs = null;
    this.cutAtMs = null;
    this.mustEnd.clear();
    this.idleSinceMs = null;
    this.preemption.doubt();
    this.countAnew();
  }

  /** What ends now, ends because of the drain. */
  cutsAt(nowMs: number): boolean {
    return this.cutAtMs === nowMs;
  }

  judgeHeld(story: TaskStory, nowMs: number): void {
    if (this.drainedAtMs !== null && this.drainedAtMs < nowMs)
      this.violation(`task ${story.nth} started in ${this.options.id}, which is drained`);
  }

  /** Starts that were decided for a lost engine may never reach it: they cannot be counted from here. */
  lostCount(): void {
    this.preemption.doubt();
    this.startsSinceOvertaken = Number.POSITIVE_INFINITY;
  }

  judgeSlot(story: TaskStory, instance: Instance, slot: number, nowMs: number): void {
    const { nth } = story;
    if (instance.goneAtMs !== null && instance.goneAtMs < nowMs)
      this.violation(`task ${nth} started on an engine that was lost`);
    if (slot < 0 || slot >= instance.slots) this.violation(`task ${nth} started in slot ${slot}`);
    if (instance.taken.has(slot)) this.violation(`task ${nth} started in slot ${slot}, which is busy`);
    if (instance.pool !== story.seen.poolId) this.violation(`task ${nth} started in another pool`);
    if (story.alone && instance.taken.size > 0)
      this.violation(`strict task ${nth} is not alone on its engine`);
    for (const other of instance.taken.values())
      if (other.alone && other.story !== story)
        this.violation(`task ${nth} started beside strict task ${other.story.nth}`);
  }

  /** Order among the starts of the pool. A strict task has its turn when it is called up, which nobody sees. */
  judgeOrder(story: TaskStory, nowMs: number): void {
    const waiting = [...this.live].filter((s) => s !== story && s.certainlyWaits(nowMs));
    // For whom another was cut has had its turn then.
    const unseenTurns =
      this.preemption.owes || [...this.live].some((s) => (s.alone || s.startsUnseen) && s.accepted);
    const servedSinceMs = this.preemption.servedSinceMs(story);
    this.preemption.started(story, waiting);
    if (unseenTurns) this.countAnew();
    if (story.alone) return;
    const passed = waiting.find(
      (s) =>
        this.inLine(s, story) &&
        s.nth < story.nth &&
        s.waitsSinceMs < servedSinceMs &&
        !this.mayBePassed(s, nowMs),
    );
    if (passed?.startsUnseen) this.passed.push({ story, passed, sinceMs: passed.waitsSinceMs });
    else if (passed !== undefined) this.sayPassed(story, passed);
    const seen = waiting.filter((s) => !s.startsUnseen);
    this.judgeClasses(story, seen, nowMs);
    if (!unseenTurns) this.judgeAged(story, seen, nowMs);
  }

  private sayPassed(story: TaskStory, passed: TaskStory): void {
    this.violation(`task ${story.nth} started before task ${passed.nth} of its class`);
  }

  /** At the end of an instant: who had its turn in it unseen waits no more. */
  private judgePassed(): void {
    for (const { story, passed, sinceMs } of this.passed)
      if (passed.phase === "waiting" && passed.waitsSinceMs === sinceMs && passed.cancelAtMs === null)
        this.sayPassed(story, passed);
    this.passed = [];
  }

  /** Turns were given that nobody saw. */
  countAnew(): void {
    this.startsSinceOvertaken = Number.POSITIVE_INFINITY;
    for (const story of this.live) {
      story.batchStartsWhileAged = 0;
      story.interactiveStartsWhileAged = 0;
    }
  }

  private inLine(a: TaskStory, b: TaskStory): boolean {
    if (a.seen.priority !== b.seen.priority) return false;
    return this.options.fair === "fifo" || a.seen.keyId === b.seen.keyId;
  }

  /** `marks`: it is passed now, for which only its session can be the reason. */
  private mayBePassed(story: TaskStory, nowMs: number, marks = true): boolean {
    if (story.alone) return true;
    if (story.seen.sessionId === null) return false;
    if (marks) story.passedSinceMs ??= nowMs;
    return nowMs - (story.passedSinceMs ?? nowMs) <= this.options.affinityWaitMs;
  }

  private judgeClasses(story: TaskStory, waiting: readonly TaskStory[], nowMs: number): void {
    const { batchMaxWaitMs, fair } = this.options;
    // Not marked: an aged batch task passes everybody.
    const interactive = waiting.find(
      (s) => s.seen.priority === "interactive" && !this.mayBePassed(s, nowMs, false),
    );
    if (story.seen.priority !== "batch" || interactive === undefined) {
      this.startsSinceOvertaken++;
      return;
    }
    this.agedStarts++;
    // By key, the aged one may give its turn to a task of a key that is before its own. Any that may still wait can be
    // the aged one, also one whose deadline may end it in this instant.
    const mayWait = [...this.live].filter((s) => s.accepted && s.phase === "waiting");
    const oldestMs = Math.min(
      story.seen.atMs,
      ...mayWait.filter((s) => fair === "per-key" && s.seen.priority === "batch").map((s) => s.seen.atMs),
    );
    if (nowMs - oldestMs < batchMaxWaitMs - 0.001)
      this.violation(`batch task ${story.nth} started before interactive task ${interactive.nth}`);
    if (this.startsSinceOvertaken < 3)
      this.violation(`batch task ${story.nth} overtook after ${this.startsSinceOvertaken} other starts`);
    this.startsSinceOvertaken = 0;
  }

  /** Every fourth start is a batch task's: the stated bound of 4(k+1), seen from the other side. */
  private judgeAged(story: TaskStory, waiting: readonly TaskStory[], nowMs: number): void {
    for (const other of waiting) {
      const { priority, atMs, sessionId } = other.seen;
      if (priority !== "batch" || sessionId !== null) continue;
      if (atMs + this.options.batchMaxWaitMs >= nowMs) continue;
      if (story.seen.priority === "batch") other.batchStartsWhileAged++;
      else other.interactiveStartsWhileAged++;
      if (other.interactiveStartsWhileAged > 3 * (other.batchStartsWhileAged + 1))
        this.violation(
          `aged batch task ${other.nth} watched ${other.interactiveStartsWhileAged} interactive starts`,
        );
    }
  }

  // ---- a full queue ----

  /** True when this code belongs here, whatever is then said of it. */
  judgeRefusal(story: TaskStory, code: string, nowMs: number): boolean {
    const { capacity, fullPolicy } = this.options;
    const expected = fullPolicy === "drop-lru" ? "QUEUE_FULL_DROP_LRU" : "ADMISSION_REJECT";
    if (code !== expected) return false;
    // All that may have waited at some moment of this instant.
    const waiting = [...this.live].filter(
      (s) => s !== story && (s.cutAtMs ?? nowMs) === nowMs && (s.leftQueueAtMs ?? nowMs) === nowMs,
    );
    const shed = fullPolicy === "shed-low-priority" && story.seen.priority === "batch";
    const places = shed ? Math.ceil(capacity * 0.8) : capacity;
    if (waiting.length < places)
      this.violation(`task ${story.nth} was refused, but ${waiting.length} of ${capacity} tasks waited`);
    if (fullPolicy !== "drop-lru") return true;
    const droppable = waiting.find((s) => isDroppable(s) && s.certainlyWaits(nowMs));
    if (droppable !== undefined)
      this.violation(`task ${story.nth} was refused, but task ${droppable.nth} could have been dropped`);
    return true;
  }

  /** The task ends because a newer one took its place. */
  judgeDrop(story: TaskStory, nowMs: number): void {
    const { capacity, fullPolicy } = this.options;
    if (fullPolicy !== "drop-lru") this.violation(`task ${story.nth} was dropped under ${fullPolicy}`);
    if (story.phase !== "waiting" || story.seen.priority !== "batch")
      this.violation(`task ${story.nth} was dropped, a ${story.phase} task of class ${story.seen.priority}`);
    if (story.cutAtMs !== null && story.cutAtMs < nowMs)
      this.violation(`task ${story.nth} was dropped although it had run before`);
    const older = [...this.live].find((s) => s.nth < story.nth && isDroppable(s) && s.certainlyWaits(nowMs));
    if (older !== undefined)
      this.violation(`task ${story.nth} was dropped before task ${older.nth}, which is older`);
    const waiting = [...this.live].filter(
      (s) => (s.cutAtMs ?? nowMs) === nowMs && (s.leftQueueAtMs ?? nowMs) === nowMs,
    );
    if (waiting.length <= capacity)
      this.violation(`task ${story.nth} was dropped, but ${waiting.length} of ${capacity} tasks waited`);
  }

  // ---- the end of an instant ----

  judgeRest(nowMs: number, instantMs: number): void {
    this.judgePassed();
    const waiting = [...this.live].filter((s) => s.accepted && s.phase === "waiting");
    const counted = waiting.filter((s) => s.cutAtMs === null);
    // What had started unseen when the daemon was killed waits again beside a full queue; only so many may be too many.
    const grown = counted.length > this.countedBefore && counted.some((s) => !s.recovered);
    this.countedBefore = counted.length;
    if (counted.length > this.options.capacity && grown)
      this.violation(
        `${counted.length} tasks waited in ${this.options.id}, which has ${this.options.capacity} places`,
      );
    if (this.drainedAtMs === null) this.judgeIdle(waiting, nowMs, instantMs);
  }

  private judgeIdle(waiting: readonly TaskStory[], nowMs: number, instantMs: number): void {
    // One engine may be kept for a strict task until it is empty.
    const kept = waiting.some((s) => s.alone) ? 1 : 0;
    const others = waiting.filter((s) => !s.alone);
    const idle = [...this.instances].filter(
      (i) => i.taken.size < i.slots && ![...i.taken.values()].some((s) => s.alone || s.lost),
    );
    const [first] = idle;
    if (first === undefined || idle.length <= kept || others.length === 0) {
      this.idleSinceMs = null;
      return;
    }
    this.idleSinceMs ??= instantMs;
    const sessionsOnly = others.every((s) => s.seen.sessionId !== null);
    if (sessionsOnly && nowMs - this.idleSinceMs <= this.options.affinityWaitMs) return;
    this.violation(
      `engine ${first.id} of ${this.options.id} had a free slot while ${waiting.length} tasks waited`,
    );
  }
}

/** A strict task may have been called up already: whether it still stands in the line cannot be seen. */
const isDroppable = (s: TaskStory): boolean => s.seen.priority === "batch" && s.cutAtMs === null && !s.alone;
