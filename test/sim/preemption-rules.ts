/**
 * Cuts of running tasks for waiting ones, as an onlooker can tell: called by pool-rules.ts, shares no code with src.
 *
 * An attempt that ends because the daemon let go of its engine, though nobody canceled the task, no deadline ended it
 * and the engine was not silent for as long as a watchdog waits, was cut for another task. Whether the task ended is
 * known at the end of the instant; till then it is only suspected.
 *
 * Rules: cut is batch, for an interactive task that has waited long enough or has a deadline, no task more often than
 * it may be, no more in an instant than wait; a slot that was cut goes to no batch task while such a one waits; and
 * where somebody waits much longer than the bound, somebody is cut who may be.
 */
import type { Preemption } from "../../src/domain/preemption.ts";
import type { TaskStory } from "./task-story.ts";

/** Times min_gain_ms: patience with who is about to end, and the time between two looks; and a little more. */
const patienceGains = 2 + 4;
const slackMs = 5;

interface Begun {
  readonly story: TaskStory;
  readonly atMs: number;
}

interface Suspected {
  readonly story: TaskStory;
  /** Of those that waited in this moment: all, and for whom a cut may have been due. */
  readonly waiters: number;
  readonly due: number;
}

export class PreemptionRules {
  cuts = 0;
  private suspected: Suspected[] = [];
  /** When slots were cut that have not gone to an interactive task. */
  private owedSince: number[] = [];
  /** For whom one was cut may have gone: then it is anybody's. */
  private sure = true;
  private taken: { readonly story: TaskStory; readonly by: TaskStory }[] = [];
  /** Nobody could be cut before. */
  private sinceMs = 0;

  constructor(
    private readonly preempt: Preemption | null,
    private readonly violation: (what: string) => void,
  ) {}

  /** Slots are owed to interactive tasks: whose turns those are nobody sees. */
  get owes(): boolean {
    return this.owedSince.length > 0;
  }

  /** Its daemon is gone, or takes nothing more. */
  forget(): void {
    this.suspected = [];
    this.taken = [];
    this.owedSince = [];
    this.sure = true;
  }

  /** Nothing starts, so nobody is cut for anybody; slots that were cut stay owed. */
  pause(nowMs: number): void {
    this.suspected = [];
    this.taken = [];
    this.sure = false;
    this.sinceMs = nowMs;
  }

  /** An engine is gone, or a task that may have been the one that a slot was cut for. */
  doubt(): void {
    this.taken = [];
    this.sure = false;
  }

  cut(story: TaskStory, live: ReadonlySet<TaskStory>, nowMs: number): void {
    const waiters = [...live].filter((s) => mayWait(s, nowMs));
    const bound = this.preempt?.maxWaitMs ?? 0;
    const due = waiters.filter(
      (s) => s.seen.deadlineMs !== null || nowMs - s.waitsSinceMs >= bound - 0.001,
    ).length;
    if (!this.owes) this.sure = true;
    this.suspected.push({ story, waiters: waiters.length, due });
    this.owedSince.push(nowMs);
    story.preempted++;
  }

  /** A start of this task would be in the place of one that was cut then; Infinity: of none. */
  servedSinceMs({ seen }: TaskStory): number {
    return seen.priority === "interactive"
      ? (this.owedSince[0] ?? Number.POSITIVE_INFINITY)
      : Number.POSITIVE_INFINITY;
  }

  /** Before anything else is said of a start. `waiting`: who certainly waits, in this pool. */
  started(story: TaskStory, waiting: readonly TaskStory[]): void {
    if (!this.owes) return;
    if (story.seen.priority === "interactive") this.owedSince.shift();
    else {
      const passed = waiting.find(isServable);
      if (passed !== undefined && !story.alone && this.sure) this.taken.push({ story: passed, by: story });
    }
  }

  /** `freeing`: an engine has not freed a slot yet whose attempt was cut; that one may make room. */
  judgeRest(live: ReadonlySet<TaskStory>, running: readonly Begun[], freeing: boolean, nowMs: number): void {
    const cut = this.suspected.filter(({ story }) => story.cancelAtMs === null && story.phase !== "ended");
    for (const { story } of this.suspected) if (!cut.some((one) => one.story === story)) story.preempted--;
    const unsure = cut.length < this.suspected.length;
    if (unsure) this.owedSince = [];
    else for (const one of this.taken) this.sayTaken(one.story, one.by);
    this.suspected = [];
    this.taken = [];
    for (const one of cut) this.judgeCut(one);
    const waiters = Math.max(0, ...cut.map((one) => one.waiters));
    if (cut.length > waiters) this.violation(`${cut.length} tasks were cut at once for ${waiters}`);
    this.judgeLiveness(live, running, cut.length > 0 || unsure || freeing, nowMs);
  }

  private judgeCut({ story, due }: Suspected): void {
    const { nth, preempted, seen } = story;
    this.cuts++;
    if (this.preempt === null) {
      this.violation(`task ${nth} was cut in a pool that cuts nobody`);
      return;
    }
    const { maxCuts } = this.preempt;
    if (seen.priority !== "batch") this.violation(`task ${nth} of class ${seen.priority} was cut`);
    if (preempted > maxCuts) this.violation(`task ${nth} was cut ${preempted} times`);
    if (due === 0) this.violation(`task ${nth} was cut for nobody`);
  }

  private sayTaken(passed: TaskStory, by: TaskStory): void {
    if (passed.cancelAtMs === null && passed.phase === "waiting")
      this.violation(
        `batch task ${by.nth} took a slot that was cut for an interactive one like ${passed.nth}`,
      );
  }

  /** `running`: with the moment at which each began. Without sessions, deadlines and tasks that run alone only. */
  private judgeLiveness(
    live: ReadonlySet<TaskStory>,
    running: readonly Begun[],
    cutNow: boolean,
    nowMs: number,
  ): void {
    if (this.preempt === null) return;
    const { maxCuts, maxWaitMs, minGainMs } = this.preempt;
    const quietMs = patienceGains * Math.max(1, minGainMs) + slackMs;
    const stories = [...live];
    const disturbed =
      cutNow ||
      this.owes ||
      stories.some(
        (s) => s.alone || (s.seen.priority === "batch" && s.phase === "waiting") || s.startsUnseen,
      );
    if (disturbed) this.sinceMs = nowMs;
    const waiter = stories.find(
      (s) => isServable(s) && s.certainlyWaits(nowMs) && nowMs - s.waitsSinceMs > maxWaitMs + quietMs,
    );
    if (waiter === undefined || nowMs - this.sinceMs < quietMs) return;
    const spared = running.find(
      ({ story: s, atMs }) =>
        s.seen.priority === "batch" &&
        s.seen.deadlineMs === null &&
        s.cancelAtMs === null &&
        s.preempted < maxCuts &&
        nowMs - atMs > quietMs,
    );
    if (spared === undefined) return;
    this.sinceMs = nowMs;
    this.violation(
      `interactive task ${waiter.nth} waits since ${waiter.waitsSinceMs.toFixed(1)} ms and task ${spared.story.nth} is not cut`,
    );
  }
}

const isServable = (s: TaskStory): boolean =>
  s.seen.priority === "interactive" && !s.alone && s.seen.sessionId === null;

/** One that was sent in this instant may not have been answered yet. */
const mayWait = (s: TaskStory, nowMs: number): boolean =>
  s.seen.priority === "interactive" &&
  !s.alone &&
  s.refused === null &&
  (s.phase === "waiting" || s.phase === "sent" || s.leftQueueAtMs === nowMs);
