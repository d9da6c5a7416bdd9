/** A session as a state: its time to live, its turns, the budget that its tasks share and only lower. */
import { describe, expect, test } from "bun:test";
import { type Amounts, noAmounts, remainingOf, unlimited } from "../../src/domain/budget.ts";
import {
  beginTurn,
  endTurn,
  isExpired,
  openSession,
  refusalOfTurn,
  type SessionRules,
  ttlLeftMs,
  undoTurn,
} from "../../src/domain/session.ts";

const rules: SessionRules = {
  ttlMs: 1000,
  turnsMax: 3,
  budget: { tokens: 100, timeMs: null, cost: null },
};
const tokens = (n: number): Amounts => ({ ...noAmounts, tokens: n });
const atMost = (n: number) => ({ ...unlimited, tokens: n });
const fresh = openSession("s", "k", rules, 5000);

describe("time to live", () => {
  test("runs from the last use and is over at its end, not before", () => {
    expect(ttlLeftMs(fresh, rules.ttlMs, 5400.5)).toBe(600);
    expect(isExpired(fresh, rules.ttlMs, 5999.9)).toBe(false);
    expect(isExpired(fresh, rules.ttlMs, 6000)).toBe(true);
  });

  test("stands still while a task lives, and begins anew when it has ended", () => {
    const live = beginTurn(fresh, tokens(1), null, 5500);
    expect(ttlLeftMs(live, rules.ttlMs, 99_000)).toBe(1000);
    const ended = endTurn(live, tokens(1), tokens(1), 99_000);
    expect(ttlLeftMs(ended, rules.ttlMs, 99_000)).toBe(1000);
    expect(isExpired(ended, rules.ttlMs, 100_000)).toBe(true);
  });
});

describe("turns", () => {
  test("are counted when they begin and end at the maximum", () => {
    let session = fresh;
    for (let turn = 0; turn < rules.turnsMax; turn++) {
      expect(refusalOfTurn(session, rules, tokens(1), null)).toBeNull();
      session = endTurn(beginTurn(session, tokens(1), null, 5000), tokens(1), tokens(0), 5000);
    }
    expect(refusalOfTurn(session, rules, tokens(1), null)).toEqual({ kind: "turns" });
  });

  test("that are undone have never been", () => {
    const before = beginTurn(fresh, tokens(10), null, 5100);
    const after = beginTurn(before, tokens(20), atMost(40), 5200);
    expect(after).not.toEqual(before);
    expect(undoTurn(after, before, tokens(20))).toEqual(before);
  });

  test("end once: another end is a programmer's mistake", () => {
    expect(() => endTurn(fresh, noAmounts, noAmounts, 5000)).toThrow("assertion failed");
  });
});

describe("the budget", () => {
  test("is the lesser of the default and what the first task asks", () => {
    expect(remainingOf(beginTurn(fresh, tokens(10), atMost(60), 5000).account).tokens).toBe(50);
    expect(remainingOf(beginTurn(fresh, tokens(10), atMost(5000), 5000).account).tokens).toBe(90);
  });

  test("is shared by concurrent tasks: what one reserved the next cannot have", () => {
    const session = beginTurn(fresh, tokens(60), null, 5000);
    expect(refusalOfTurn(session, rules, tokens(40), null)).toBeNull();
    expect(refusalOfTurn(session, rules, tokens(41), null)).toMatchObject({
      kind: "budget",
      dimension: "tokens",
    });
  });

  test("is lowered by a later task, never raised, and a task that asks for too low a one is refused", () => {
    const session = beginTurn(fresh, tokens(60), null, 5000);
    expect(refusalOfTurn(session, rules, tokens(10), atMost(69))).toMatchObject({ dimension: "tokens" });
    const lowered = beginTurn(session, tokens(10), atMost(75), 5000);
    expect(remainingOf(lowered.account).tokens).toBe(5);
    expect(remainingOf(beginTurn(lowered, tokens(1), atMost(1000), 5000).account).tokens).toBe(4);
  });
});
