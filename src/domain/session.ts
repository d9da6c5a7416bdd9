/**
 * One session: turns of one key that share context and a budget. Pure; services/sessions.ts keeps them.
 *
 * Always holds: a session with live tasks does not expire; its limit only ever gets lower; its turns never pass
 * the maximum that the configuration had when they began.
 */
import { assert } from "./assert.ts";
import {
  type Account,
  type Amounts,
  type Dimension,
  lower,
  noAmounts,
  openAccount,
  reserve,
  settle,
  shortOf,
} from "./budget.ts";
import type { Budget } from "./task.ts";

export interface SessionRules {
  /** Milliseconds that an idle session is kept after it was last used. */
  readonly ttlMs: number;
  /** Tasks that one session may have. */
  readonly turnsMax: number;
  /** What a session may spend unless its tasks ask for less. */
  readonly budget: Budget;
}

export interface Session {
  readonly sessionId: string;
  /** The key of the task that made it. */
  readonly keyId: string;
  readonly createdMs: number;
  /** When a task of it was accepted or ended last. */
  readonly lastSeenMs: number;
  readonly turns: number;
  readonly liveTasks: number;
  readonly account: Account;
}

export type TurnRefusal =
  | { readonly kind: "turns" }
  | { readonly kind: "budget"; readonly dimension: Dimension; readonly account: Account };

/** Before its first turn. */
export const openSession = (
  sessionId: string,
  keyId: string,
  { budget }: SessionRules,
  nowMs: number,
): Session => ({
  sessionId,
  keyId,
  createdMs: nowMs,
  lastSeenMs: nowMs,
  turns: 0,
  liveTasks: 0,
  account: openAccount(budget),
});

/** Milliseconds until it is forgotten if nothing comes. While a task lives, that has not begun to run. */
export function ttlLeftMs({ lastSeenMs, liveTasks }: Session, ttlMs: number, nowMs: number): number {
  if (liveTasks > 0) return ttlMs;
  return Math.max(0, Math.ceil(lastSeenMs + ttlMs - nowMs));
}

export const isExpired = (session: Session, ttlMs: number, nowMs: number): boolean =>
  ttlLeftMs(session, ttlMs, nowMs) === 0;

/** Why it cannot have one more task of these amounts that lowers its budget so; null: it can. */
export function refusalOfTurn(
  session: Session,
  { turnsMax }: SessionRules,
  amounts: Amounts,
  lowered: Budget | null,
): TurnRefusal | null {
  if (session.turns >= turnsMax) return { kind: "turns" };
  const account = withLimit(session.account, lowered);
  const dimension = shortOf(account, amounts);
  return dimension === null ? null : { kind: "budget", dimension, account };
}

/** One more live task. Ask `refusalOfTurn` first. */
export function beginTurn(
  session: Session,
  amounts: Amounts,
  lowered: Budget | null,
  nowMs: number,
): Session {
  return {
    ...session,
    lastSeenMs: nowMs,
    turns: session.turns + 1,
    liveTasks: session.liveTasks + 1,
    account: reserve(withLimit(session.account, lowered), amounts),
  };
}

/** A task of it has ended: that is use, too, so that a long one is not the last. */
export function endTurn(session: Session, reserved: Amounts, used: Amounts, nowMs: number): Session {
  assert(session.liveTasks > 0, "what ends was live");
  return {
    ...session,
    lastSeenMs: nowMs,
    liveTasks: session.liveTasks - 1,
    account: settle(session.account, reserved, used),
  };
}

/** The turn that began last but for those undone already has never been; `before` is the session as it was then. */
export function undoTurn(session: Session, before: Session, amounts: Amounts): Session {
  const { account } = session;
  return {
    ...session,
    lastSeenMs: before.lastSeenMs,
    turns: session.turns - 1,
    liveTasks: session.liveTasks - 1,
    account: { ...settle(account, amounts, noAmounts), limit: before.account.limit },
  };
}

const withLimit = (account: Account, lowered: Budget | null): Account =>
  lowered === null ? account : { ...account, limit: lower(account.limit, lowered) };
