/**
 * The ledger: who has which session, and what sessions, keys and single tasks may still spend. Synchronous, so
 * that one turn of the dispatcher checks and reserves without anybody in between. Called by acceptance and endings
 * within the dispatcher's turn, by the API (find, remove) between turns.
 *
 * Always holds: what was admitted has its reservation until `settle` or `undo`, once; a session with live tasks
 * is neither expired nor evicted; sessions are bounded in number and, when idle, in age; one timer at most.
 */
import { assert } from "../domain/assert.ts";
import {
  type Account,
  type Amounts,
  leastRemaining,
  lower,
  noAmounts,
  openAccount,
  remainingOf,
  reserve,
  reserveAgain,
  roundedUp,
  shortOf,
  unlimited,
} from "../domain/budget.ts";
import type { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import {
  beginTurn,
  endTurn,
  isExpired,
  openSession,
  refusalOfTurn,
  type Session,
  type SessionRules,
  ttlLeftMs,
  undoTurn,
} from "../domain/session.ts";
import type { Budget, TaskSpec } from "../domain/task.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { StoredAllowance, StoredSession, StoreOp } from "../ports/task-store.ts";
import { type Allowance, Allowances, type AllowanceWindow } from "./allowances.ts";
import {
  budgetDimensionOf,
  budgetExhausted,
  noSession,
  sessionExhausted,
  tooManySessions,
} from "./session-refusals.ts";

/** What may still be spent, reservations of live tasks taken off; null in a dimension: not bounded. */
export type Remaining = Budget;

export type RemovalReason = "ttl" | "max" | "deleted";

export interface SessionMetrics {
  sessionEvicted(reason: RemovalReason): void;
  sessionTurn(): void;
  budgetRefused(dimension: "tokens" | "time" | "cost"): void;
}

/** What the engine last said of the context that it keeps for a session. */
export interface SessionKv {
  /** It reused cached tokens for the last turn. */
  readonly warm: boolean;
  readonly cachedTokens: number;
  /** null: the engine does not say. */
  readonly kvBytes: number | null;
  readonly replicaId: string;
  readonly slot: number;
}

export interface RemovedSession {
  readonly sessionId: string;
  readonly reason: RemovalReason;
  /** Live ones; only where it was deleted. */
  readonly taskIds: readonly string[];
}

export interface SessionView {
  readonly sessionId: string;
  readonly keyId: string;
  readonly ttlLeftMs: number;
  readonly turns: number;
  readonly kv: SessionKv | null;
  readonly remaining: Remaining;
}

export interface SessionsDeps {
  readonly clock: Clock;
  readonly metrics: SessionMetrics;
  readonly rules: SessionRules;
  readonly allowanceOf: (keyId: string) => Allowance | null;
  /** It is gone: its tasks are to be canceled, its slot and KV let go. Called after the fact, within a turn too. */
  readonly onRemoved: (removed: RemovedSession) => void | Promise<void>;
}

interface Entry {
  session: Session;
  kv: SessionKv | null;
  readonly taskIds: Set<string>;
  /** Tasks that still run settle here, nobody else looks. */
  removed: boolean;
}

interface Reservation {
  readonly amounts: Amounts;
  readonly entry: Entry | null;
  /** The session before this task; null: the task made it, or an earlier process took the task. */
  readonly before: Session | null;
  readonly window: AllowanceWindow | null;
  /** A budget of a task without a session. */
  readonly own: Account | null;
}

export class Sessions {
  private readonly entries = new Map<string, Entry>();
  /** Those without live tasks, the one used longest ago first. */
  private readonly idle = new Map<string, Entry>();
  private readonly reservations = new Map<string, Reservation>();
  private readonly allowances: Allowances;
  private readonly changed = new Set<string>();
  private timer: Timer | null = null;

  constructor(private readonly deps: SessionsDeps) {
    this.allowances = new Allowances(deps.allowanceOf);
  }

  get size(): number {
    return this.entries.size;
  }

  /** No timer is left. */
  close(): void {
    this.timer?.cancel();
    this.timer = null;
  }

  // ---- a task ----

  /** Why the task cannot be taken now; null: it can. Nothing changes. */
  check(spec: TaskSpec, wanted: Amounts, nowMs: number): OrchestratorError | null {
    const amounts = roundedUp(wanted);
    return this.refusalOfOwner(spec, amounts, nowMs) ?? this.refusalOfKey(spec.keyId, amounts, nowMs);
  }

  /** Takes the task: a turn of its session, which may begin with it, and its reservations. Throws what `check` says. */
  admit(spec: TaskSpec, wanted: Amounts, nowMs: number): void {
    const { taskId, keyId, sessionId, budget } = spec;
    assert(!this.reservations.has(taskId), `task ${taskId} is admitted once`);
    const refusal = this.check(spec, wanted, nowMs);
    if (refusal !== null) throw refusal;
    const amounts = roundedUp(wanted);
    const window = this.allowances.reserve(keyId, amounts, nowMs);
    if (sessionId === null) {
      const own = budget === null ? null : reserve(openAccount(budget), amounts);
      if (window === null && own === null) return;
      this.reservations.set(taskId, { amounts, entry: null, before: null, window, own });
      return;
    }
    const known = this.present(sessionId, nowMs);
    const entry = known ?? this.open(sessionId, keyId, nowMs);
    const before = known === null ? null : entry.session;
    entry.session = beginTurn(entry.session, amounts, budget, nowMs);
    entry.taskIds.add(taskId);
    this.idle.delete(sessionId);
    this.changed.add(sessionId);
    this.reservations.set(taskId, { amounts, entry, before, window, own: null });
    this.deps.metrics.sessionTurn();
  }

  /**
   * The admission could not be stored: it has never been. Those of one turn are undone in reverse. One that has
   * ended meanwhile is settled already and stays a turn of its session.
   */
  undo(taskId: string): void {
    const reservation = this.take(taskId);
    if (reservation === null) return;
    const { amounts, entry, before, window } = reservation;
    if (window !== null) this.allowances.settle(window, amounts, noAmounts);
    if (entry === null) return;
    entry.taskIds.delete(taskId);
    entry.session = undoTurn(entry.session, before ?? entry.session, amounts);
    if (entry.removed) return;
    if (entry.session.turns === 0) this.forget(entry);
    else this.touched(entry);
  }

  /** The end of a task, whatever it was: what it reserved is free, what it used is spent. */
  settle(taskId: string, used: Amounts, nowMs: number): void {
    const reservation = this.take(taskId);
    if (reservation === null) return;
    const { amounts, entry, window } = reservation;
    const spent = roundedUp(used);
    if (window !== null) this.allowances.settle(window, amounts, spent);
    if (entry === null) return;
    entry.taskIds.delete(taskId);
    entry.session = endTurn(entry.session, amounts, spent, nowMs);
    if (!entry.removed) this.touched(entry);
  }

  /** What bounds a live task leaves; null: nothing bounds it, or it is not live. */
  remaining(taskId: string): Remaining | null {
    const reservation = this.reservations.get(taskId);
    if (reservation === undefined) return null;
    const { entry, window, own } = reservation;
    return leastRemaining([entry?.session.account ?? null, window?.account ?? null, own]);
  }

  /** The same for a task that is not taken, its own reservation not taken off. */
  remainingFor({ keyId, sessionId, budget }: TaskSpec, nowMs: number): Remaining | null {
    const window = this.allowances.windowOf(keyId, nowMs)?.account ?? null;
    const known = sessionId === null ? null : this.present(sessionId, nowMs);
    // Of another key's session nothing is told.
    if (known !== null && known.session.keyId !== keyId) return leastRemaining([window]);
    const account =
      known?.session.account ?? openAccount(sessionId === null ? unlimited : this.deps.rules.budget);
    return leastRemaining([{ ...account, limit: lower(account.limit, budget) }, window]);
  }

  /** Counts a refusal that a submitter got from `check`. */
  noteRefusal(refusal: OrchestratorError): void {
    const dimension = budgetDimensionOf(refusal);
    if (dimension !== null) this.deps.metrics.budgetRefused(dimension);
  }

  // ---- a session ----

  /** null: unknown or expired. Looking is not use. */
  find(sessionId: string, nowMs: number): SessionView | null {
    const entry = this.evictIfExpired(sessionId, nowMs);
    if (entry === null) return null;
    const { session, kv } = entry;
    const { keyId, turns, account } = session;
    const window = this.allowances.windowOf(keyId, nowMs)?.account ?? null;
    const remaining = leastRemaining([account, window]) ?? unlimited;
    return {
      sessionId,
      keyId,
      ttlLeftMs: ttlLeftMs(session, this.deps.rules.ttlMs, nowMs),
      turns,
      kv,
      remaining,
    };
  }

  /** Resolves once `onRemoved` has done its part. The next task that names it makes a new one. Idempotent. */
  async remove(sessionId: string): Promise<void> {
    const entry = this.entries.get(sessionId);
    if (entry !== undefined) await this.evict(entry, "deleted");
  }

  /** What the engine said when an attempt of the session ended. */
  noteKv(sessionId: string, kv: SessionKv): void {
    const entry = this.entries.get(sessionId);
    if (entry !== undefined) entry.kv = kv;
  }

  // ---- the store ----

  /** What changed since the last call, for the turn's transaction. */
  takeOps(): StoreOp[] {
    const ops = this.allowances.takeOps();
    for (const sessionId of this.changed) {
      const entry = this.entries.get(sessionId);
      if (entry === undefined) ops.push({ kind: "session_removed", sessionId });
      else ops.push({ kind: "session_saved", session: storedOf(entry.session) });
    }
    this.changed.clear();
    return ops;
  }

  /** At boot, before anything else: what was stored, and the reservations of the tasks that were live. */
  recover(
    sessions: readonly StoredSession[],
    allowances: readonly StoredAllowance[],
    liveTasks: readonly { readonly spec: TaskSpec; readonly amounts: Amounts }[],
    nowMs: number,
  ): void {
    assert(this.entries.size === 0 && this.reservations.size === 0, "recovered once, before the first task");
    this.allowances.recover(allowances, nowMs);
    for (const stored of [...sessions].sort((one, other) => one.lastSeenMs - other.lastSeenMs)) {
      const session = sessionOf(stored, nowMs);
      this.entries.set(session.sessionId, { session, kv: null, taskIds: new Set(), removed: false });
    }
    for (const { spec, amounts } of liveTasks) this.reserveAgain(spec, roundedUp(amounts), nowMs);
    for (const entry of this.entries.values())
      if (entry.session.liveTasks === 0) this.idle.set(entry.session.sessionId, entry);
    this.sweep(Number.POSITIVE_INFINITY);
  }

  private reserveAgain(
    { taskId, keyId, sessionId, budget }: TaskSpec,
    amounts: Amounts,
    nowMs: number,
  ): void {
    const window = this.allowances.reserveAgain(keyId, amounts, nowMs);
    const found = sessionId === null ? undefined : this.entries.get(sessionId);
    // Deleted while its tasks ran, and begun again by another key: nothing of theirs.
    const entry = found?.session.keyId === keyId ? found : null;
    const own = sessionId === null && budget !== null ? reserveAgain(openAccount(budget), amounts) : null;
    if (entry !== null) {
      const { session } = entry;
      const account = reserveAgain(session.account, amounts);
      entry.session = { ...session, liveTasks: session.liveTasks + 1, account };
      entry.taskIds.add(taskId);
    }
    if (entry !== null || window !== null || own !== null)
      this.reservations.set(taskId, { amounts, entry, before: null, window, own });
  }

  // ---- refusals ----

  /** Of the session, or of the task's own budget where it names none. */
  private refusalOfOwner(spec: TaskSpec, amounts: Amounts, nowMs: number): OrchestratorError | null {
    const { keyId, sessionId, budget } = spec;
    if (sessionId === null) {
      if (budget === null) return null;
      const own = openAccount(budget);
      const short = shortOf(own, amounts);
      return short === null ? null : budgetExhausted("task", short, amounts, remainingOf(own), null);
    }
    const { rules } = this.deps;
    const known = this.present(sessionId, nowMs);
    if (known !== null && known.session.keyId !== keyId) return noSession();
    if (known === null && this.isFull()) return tooManySessions(limits.sessionsMax, limits.sessionsRetryMs);
    const session = known?.session ?? openSession(sessionId, keyId, rules, nowMs);
    const refusal = refusalOfTurn(session, rules, amounts, budget);
    if (refusal === null) return null;
    const leftMs = ttlLeftMs(session, rules.ttlMs, nowMs);
    if (refusal.kind === "turns") return sessionExhausted(rules.turnsMax, leftMs);
    return budgetExhausted("session", refusal.dimension, amounts, remainingOf(refusal.account), leftMs);
  }

  private refusalOfKey(keyId: string, amounts: Amounts, nowMs: number): OrchestratorError | null {
    const window = this.allowances.windowOf(keyId, nowMs);
    if (window === null) return null;
    const short = shortOf(window.account, amounts);
    if (short === null) return null;
    const waitMs = Math.ceil(window.endMs - nowMs);
    return budgetExhausted("key", short, amounts, remainingOf(window.account), waitMs);
  }

  // ---- which sessions there are ----

  /** Not expired; changes nothing. */
  private present(sessionId: string, nowMs: number): Entry | null {
    const entry = this.entries.get(sessionId);
    return entry === undefined || isExpired(entry.session, this.deps.rules.ttlMs, nowMs) ? null : entry;
  }

  private evictIfExpired(sessionId: string, nowMs: number): Entry | null {
    const entry = this.present(sessionId, nowMs);
    const expired = entry === null ? this.entries.get(sessionId) : undefined;
    if (expired !== undefined) void this.evict(expired, "ttl");
    return entry;
  }

  /** No place, and nobody idle who could make one. */
  private isFull(): boolean {
    return this.entries.size >= limits.sessionsMax && this.idle.size === 0;
  }

  private open(sessionId: string, keyId: string, nowMs: number): Entry {
    this.evictIfExpired(sessionId, nowMs);
    if (this.entries.size >= limits.sessionsMax) this.evictOldest(nowMs);
    const session = openSession(sessionId, keyId, this.deps.rules, nowMs);
    const entry: Entry = { session, kv: null, taskIds: new Set(), removed: false };
    this.entries.set(sessionId, entry);
    return entry;
  }

  private evictOldest(nowMs: number): void {
    const [oldest] = this.idle.values();
    assert(oldest !== undefined, "a session is opened where there is room");
    void this.evict(oldest, isExpired(oldest.session, this.deps.rules.ttlMs, nowMs) ? "ttl" : "max");
  }

  private evict(entry: Entry, reason: RemovalReason): void | Promise<void> {
    const { sessionId } = entry.session;
    this.forget(entry);
    this.deps.metrics.sessionEvicted(reason);
    return this.deps.onRemoved({ sessionId, reason, taskIds: [...entry.taskIds] });
  }

  private forget(entry: Entry): void {
    const { sessionId } = entry.session;
    entry.removed = true;
    this.entries.delete(sessionId);
    this.idle.delete(sessionId);
    this.changed.add(sessionId);
  }

  /** A turn of it is over. */
  private touched(entry: Entry): void {
    const { sessionId, liveTasks } = entry.session;
    this.changed.add(sessionId);
    if (liveTasks > 0) return;
    // The line stays in the order of use, but for one whose admission was undone: the timer may be late for it,
    // whoever asks is not.
    this.idle.set(sessionId, entry);
    this.arm();
  }

  private arm(): void {
    if (this.timer !== null) return;
    const [oldest] = this.idle.values();
    if (oldest === undefined) return;
    const { clock, rules } = this.deps;
    this.timer = clock.setTimer(ttlLeftMs(oldest.session, rules.ttlMs, clock.nowMs()), () => {
      this.timer = null;
      this.sweep(limits.sessionSweepMax);
    });
  }

  /** Forgets what has expired, at most so many, and comes back when the next one does. */
  private sweep(max: number): void {
    const { clock, rules } = this.deps;
    let looks = 0;
    for (const entry of this.idle.values()) {
      if (looks++ >= max || !isExpired(entry.session, rules.ttlMs, clock.nowMs())) break;
      void this.evict(entry, "ttl");
    }
    this.arm();
  }

  private take(taskId: string): Reservation | null {
    const reservation = this.reservations.get(taskId);
    this.reservations.delete(taskId);
    return reservation ?? null;
  }
}

function storedOf({ sessionId, keyId, createdMs, lastSeenMs, turns, account }: Session): StoredSession {
  return { sessionId, keyId, createdMs, lastSeenMs, turns, budget: account.limit, spent: account.spent };
}

function sessionOf({ budget, spent, lastSeenMs, ...rest }: StoredSession, nowMs: number): Session {
  // A clock that was set back must not keep it longer than its time.
  return {
    ...rest,
    lastSeenMs: Math.min(lastSeenMs, nowMs),
    liveTasks: 0,
    account: openAccount(budget, spent),
  };
}
