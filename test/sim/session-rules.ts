/**
 * Turns and budgets of sessions, as an onlooker can tell: called by checker.ts, shares no code with src.
 *
 * A budget of tokens is never overshot: what tasks have certainly used and what live ones may still use stay within
 * it. Nothing is refused that would have fitted, whatever was ended in the same instant. Where it cannot be known
 * whether a session has expired meanwhile, nothing is said of it until it certainly has.
 */
import type { TaskStory } from "./task-story.ts";

interface SessionSight {
  /** Whether it began anew or goes on with what was before cannot be told. */
  readonly unsure: boolean;
  turns: number;
  limit: number | null;
  readonly tasks: Set<TaskStory>;
  /** Bounds on what ended tasks have used. */
  usedLeast: number;
  usedMost: number;
  lastAcceptedMs: number;
  lastEndedMs: number;
}

export class SessionRules {
  private readonly sessions = new Map<string, SessionSight>();

  constructor(
    private readonly options: { readonly ttlMs: number; readonly turnsMax: number },
    private readonly violation: (what: string) => void,
  ) {}

  accepted(story: TaskStory, nowMs: number): void {
    const { sessionId, budgetTokens } = story.seen;
    if (sessionId === null) return;
    const session = this.sessionOf(sessionId, budgetTokens, nowMs);
    if (budgetTokens !== null) session.limit = Math.min(session.limit ?? budgetTokens, budgetTokens);
    session.turns++;
    session.lastAcceptedMs = nowMs;
    session.tasks.add(story);
    if (session.turns > this.options.turnsMax)
      this.violation(`task ${story.nth} is turn ${session.turns} of a session of ${this.options.turnsMax}`);
    const taken = session.usedLeast + reservedBy(session);
    if (session.limit !== null && taken > session.limit)
      this.violation(`task ${story.nth} overshoots the budget of its session: ${taken} of ${session.limit}`);
  }

  private sessionOf(sessionId: string, limit: number | null, nowMs: number): SessionSight {
    const known = this.sessions.get(sessionId);
    if (known !== undefined && !this.mayHaveExpired(known, nowMs)) return known;
    const session: SessionSight = {
      unsure: known !== undefined && !this.hasExpired(known, nowMs),
      turns: 0,
      limit,
      tasks: new Set(),
      usedLeast: 0,
      usedMost: 0,
      lastAcceptedMs: nowMs,
      lastEndedMs: 0,
    };
    this.sessions.set(sessionId, session);
    return session;
  }

  /** True when this code belongs here. */
  refused(story: TaskStory, code: string, nowMs: number): boolean {
    if (code !== "SESSION_EXHAUSTED" && code !== "BUDGET_EXHAUSTED") return false;
    const { sessionId, budgetTokens } = story.seen;
    const session = sessionId === null ? undefined : this.sessions.get(sessionId);
    if (session === undefined) {
      if (code === "BUDGET_EXHAUSTED" && (budgetTokens ?? Number.POSITIVE_INFINITY) < most(story))
        return true;
      // Its session may have been made by a task whose answer is on its way.
      return sessionId !== null;
    }
    if (code === "SESSION_EXHAUSTED") {
      // Those that were sent in this instant may have been accepted before it.
      if (session.turns + session.tasks.size < this.options.turnsMax && !this.unsure(session, nowMs))
        this.violation(`task ${story.nth} was told SESSION_EXHAUSTED after ${session.turns} turns`);
      return true;
    }
    const taken = session.usedMost + reservedBy(session) + most(story);
    const limit = Math.min(
      session.limit ?? Number.POSITIVE_INFINITY,
      budgetTokens ?? Number.POSITIVE_INFINITY,
    );
    if (taken <= limit && !this.unsure(session, nowMs))
      this.violation(`task ${story.nth} was told BUDGET_EXHAUSTED at ${taken} of ${limit}`);
    return true;
  }

  ended(story: TaskStory, nowMs: number): void {
    const { sessionId } = story.seen;
    const session = sessionId === null ? undefined : this.sessions.get(sessionId);
    if (session?.tasks.delete(story) !== true) return;
    session.lastEndedMs = nowMs;
    const used = story.tokens > 0 ? story.seen.tokensIn + story.tokens : 0;
    session.usedLeast += used;
    session.usedMost += story.terminal?.event === "end" ? used : most(story);
  }

  private mayHaveExpired(session: SessionSight, nowMs: number): boolean {
    return session.tasks.size === 0 && nowMs - session.lastAcceptedMs > this.options.ttlMs;
  }

  private hasExpired(session: SessionSight, nowMs: number): boolean {
    const lastMs = Math.max(session.lastAcceptedMs, session.lastEndedMs);
    return session.tasks.size === 0 && nowMs - lastMs > this.options.ttlMs + 0.001;
  }

  /** Another submission of this instant may have changed it. */
  private unsure(session: SessionSight, nowMs: number): boolean {
    return session.unsure || session.lastAcceptedMs === nowMs || this.mayHaveExpired(session, nowMs);
  }
}

/** What it may take: its prompt and all that it asked for. */
const most = ({ seen }: TaskStory): number => seen.tokensIn + seen.tokens;

const reservedBy = ({ tasks }: SessionSight): number => {
  let total = 0;
  for (const story of tasks) total += most(story);
  return total;
};
