/**
 * What the onlooker of long runs remembers of tasks, engines and pools: bounded by what is live. Used by
 * load-checker.ts only.
 */
import type { Priority } from "../../src/domain/task.ts";
import type { FairRule } from "./fair-rule.ts";

export interface LoadSeen {
  readonly taskId: string;
  readonly poolId: string;
  readonly keyId: string;
  readonly sessionId: string | null;
  readonly priority: Priority;
  readonly deadlineMs: number | null;
  readonly strict: boolean;
  /** What the daemon expects it to take on a slot. */
  readonly expectedMs: number;
}

export interface Live {
  readonly seen: LoadSeen;
  readonly nth: number;
  readonly atMs: number;
  readonly pool: PoolSight;
  phase: "sent" | "waiting" | "running" | "ending";
  waitsSinceMs: number;
  /** Counts its stays in the queue: an entry of a line is valid for one of them. */
  stay: number;
  cut: boolean;
  /** Words that engines have said, counted once whatever the attempts. */
  reached: number;
  /** Attempts in a row without a new word. */
  fruitless: number;
  /** Attempts in a row that were lost without much that was new. */
  losses: number;
  /** It is strict, or suspected of crashing engines. */
  alone: boolean;
  passedSinceMs: number | null;
  /** Of the pool when it was accepted. */
  startsBefore: number;
  ahead: number;
  putBacksBefore: number;
  /** How often it was cut for an interactive task. */
  preempted: number;
}

/** `weight`: the slots that it takes; one that runs alone takes its engine's others with it. */
export interface Taken {
  readonly live: Live;
  readonly alone: boolean;
  readonly weight: number;
}

export interface Instance {
  readonly pool: PoolSight;
  readonly slots: number;
  readonly taken: Map<number, Taken>;
  gone: boolean;
}

/** Those of a class (and key) that wait, in the order of their sending. Entries of past stays are skipped. */
export class Line {
  private items: { readonly live: Live; readonly stay: number }[] = [];
  private head = 0;

  push(live: Live): void {
    this.items.push({ live, stay: live.stay });
  }

  putBack(live: Live): void {
    this.trim();
    let at = this.head;
    while (at < this.items.length && (this.items[at]?.live.nth ?? 0) < live.nth) at++;
    this.items.splice(at, 0, { live, stay: live.stay });
  }

  /** Those that wait before `nth`, oldest first. */
  *before(nth: number): Generator<Live> {
    this.trim();
    for (let at = this.head; at < this.items.length; at++) {
      const item = this.items[at];
      if (item === undefined || item.live.nth >= nth) return;
      if (valid(item)) yield item.live;
    }
  }

  private trim(): void {
    for (;;) {
      const item = this.items[this.head];
      if (item === undefined || valid(item)) break;
      this.head++;
    }
    if (this.head > 1024 && this.head * 2 > this.items.length) {
      this.items = this.items.slice(this.head);
      this.head = 0;
    }
  }
}

const valid = ({ live, stay }: { live: Live; stay: number }): boolean =>
  live.phase === "waiting" && live.stay === stay;

export class PoolSight {
  readonly lines = new Map<string, Line>();
  readonly instances = new Set<Instance>();
  waiting: Record<Priority, number> = { interactive: 0, batch: 0 };
  /** Of them, those that were cut and do not count against the capacity. */
  cut = 0;
  strict = 0;
  sessions = 0;
  starts = 0;
  putBacks = 0;
  busy = 0;
  slots = 0;
  idleSinceMs: number | null = null;
  /** Left the queue or came in this instant: whoever was refused in it may have met them. */
  leftNow = 0;
  cameNow = 0;
  unanswered = 0;
  startsSinceOvertaken = Number.POSITIVE_INFINITY;
  /** When slots were cut that have not gone to an interactive task. */
  owedSince: number[] = [];
  cutsSure = true;
  readonly fair: Partial<Record<Priority, FairRule>> = {};
  readonly configured: number;

  constructor(
    readonly id: string,
    readonly capacity: number,
    configured: number,
  ) {
    this.configured = configured;
  }

  get counted(): number {
    return this.waiting.interactive + this.waiting.batch - this.cut;
  }
}
