/**
 * Arithmetic of budgets: what may be spent, what has been, what live tasks have reserved. Called by session.ts
 * and services/sessions.ts, and wherever amounts are made (services/amounts.ts).
 *
 * Always holds: a reservation is granted only while spent + reserved, it included, stay within the limit. So
 * they never pass it, as long as what is used stays within what was reserved; what goes beyond (a slot that took
 * longer, an engine that counts otherwise) is charged as it was and leaves that much less to the next.
 * Costs are whole millionths of the unit of price: each sum is made of integers and therefore exact.
 */
import { assert } from "./assert.ts";
import type { Price } from "./pool.ts";
import type { Budget } from "./task.ts";

/** In the order in which they are told when several are short. */
export const dimensions = ["tokens", "timeMs", "cost"] as const;
export type Dimension = (typeof dimensions)[number];

/** Tokens of prompt and output together, milliseconds on a slot, cost in the unit of the pools' prices. */
export interface Amounts {
  readonly tokens: number;
  readonly timeMs: number;
  /** A multiple of one millionth. */
  readonly cost: number;
}

export interface Account {
  readonly limit: Budget;
  readonly spent: Amounts;
  /** Of live tasks. */
  readonly reserved: Amounts;
}

export const noAmounts: Amounts = { tokens: 0, timeMs: 0, cost: 0 };
export const unlimited: Budget = { tokens: null, timeMs: null, cost: null };

/** Parts of one unit of each dimension that are counted. */
const partsPerUnit: Readonly<Record<Dimension, number>> = { tokens: 1, timeMs: 1, cost: 1e6 };

/** The nearest integer: a multiple of a part comes back exactly, whatever binary fractions made of it. */
const parts = (dimension: Dimension, units: number): number => Math.round(units * partsPerUnit[dimension]);
const units = (dimension: Dimension, whole: number): number => whole / partsPerUnit[dimension];

/** What a client or the configuration allows may be finer than a part: never rounded up. */
const wholeParts = (dimension: Dimension, allowed: number): number => {
  const nearest = parts(dimension, allowed);
  return units(dimension, nearest) <= allowed ? nearest : nearest - 1;
};

/** As they are counted: never less than it is. */
export const roundedUp = ({ tokens, timeMs, cost }: Amounts): Amounts => ({
  tokens: Math.ceil(tokens),
  timeMs: Math.ceil(timeMs),
  cost: units("cost", parts("cost", cost)),
});

/** What so many tokens cost, rounded up to a whole millionth: never nothing for something. */
export function costOf(
  { per1kTokensIn, per1kTokensOut }: Price,
  tokensIn: number,
  tokensOut: number,
): number {
  const millionths = (tokensIn * per1kTokensIn + tokensOut * per1kTokensOut) * 1000;
  // A thousandth of a millionth is what binary fractions add, not a price.
  return Math.max(0, Math.ceil(millionths - 1e-3)) / 1e6;
}

export const openAccount = (limit: Budget, spent: Amounts = noAmounts): Account => ({
  limit,
  spent,
  reserved: noAmounts,
});

/** Which dimension has no room for these amounts; null: all have. */
export function shortOf({ limit, spent, reserved }: Account, amounts: Amounts): Dimension | null {
  for (const dimension of dimensions) {
    const allowed = limit[dimension];
    if (allowed === null) continue;
    const taken = parts(dimension, spent[dimension]) + parts(dimension, reserved[dimension]);
    if (taken + parts(dimension, amounts[dimension]) > wholeParts(dimension, allowed)) return dimension;
  }
  return null;
}

/** For a task that is admitted now. Ask `shortOf` first. */
export function reserve(account: Account, amounts: Amounts): Account {
  assert(shortOf(account, amounts) === null, "a budget is not overshot");
  return reserveAgain(account, amounts);
}

/** For a task that was granted its reservation by an earlier process, whatever the limit is now. */
export const reserveAgain = (account: Account, amounts: Amounts): Account => ({
  ...account,
  reserved: plus(account.reserved, amounts),
});

/** The end of a task: what it reserved is free again, what it used is spent. */
export function settle({ limit, spent, reserved }: Account, was: Amounts, used: Amounts): Account {
  for (const dimension of dimensions) {
    assert(used[dimension] >= 0, "nothing is earned");
    const left = parts(dimension, reserved[dimension]) - parts(dimension, was[dimension]);
    assert(left >= 0, "what is settled was reserved");
  }
  return { limit, spent: plus(spent, used), reserved: minus(reserved, was) };
}

/** Windows of time begin at multiples of their length since the epoch: every process counts the same ones. */
export const windowStartOf = (nowMs: number, windowMs: number): number =>
  Math.floor(nowMs / windowMs) * windowMs;

/** What is left to reserve, never below 0; null: not bounded. */
export function remainingOf({ limit, spent, reserved }: Account): Budget {
  return budgetOf((dimension) => {
    const allowed = limit[dimension];
    if (allowed === null) return null;
    const taken = parts(dimension, spent[dimension]) + parts(dimension, reserved[dimension]);
    return units(dimension, Math.max(0, wholeParts(dimension, allowed) - taken));
  });
}

/** In each dimension the lesser of the two: no bound is above every bound. */
export function lower(budget: Budget, by: Budget | null): Budget {
  if (by === null) return budget;
  return budgetOf((dimension) => {
    const [one, other] = [budget[dimension], by[dimension]];
    if (one === null || other === null) return one ?? other;
    return Math.min(one, other);
  });
}

/** What all of these leave together; null: nothing bounds it. */
export function leastRemaining(accounts: readonly (Account | null)[]): Budget | null {
  let least = unlimited;
  for (const account of accounts) if (account !== null) least = lower(least, remainingOf(account));
  return dimensions.every((dimension) => least[dimension] === null) ? null : least;
}

const budgetOf = (bound: (dimension: Dimension) => number | null): Budget => ({
  tokens: bound("tokens"),
  timeMs: bound("timeMs"),
  cost: bound("cost"),
});

const plus = (one: Amounts, other: Amounts): Amounts => combine(one, other, 1);
const minus = (one: Amounts, other: Amounts): Amounts => combine(one, other, -1);

function combine(one: Amounts, other: Amounts, sign: 1 | -1): Amounts {
  const sum = (dimension: Dimension): number =>
    units(dimension, parts(dimension, one[dimension]) + sign * parts(dimension, other[dimension]));
  return { tokens: sum("tokens"), timeMs: sum("timeMs"), cost: sum("cost") };
}
