/** Budgets as arithmetic: what is short, exact sums, and that reservations never pass a limit. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  type Account,
  type Amounts,
  costOf,
  dimensions,
  leastRemaining,
  lower,
  openAccount,
  remainingOf,
  reserve,
  reserveAgain,
  roundedUp,
  settle,
  shortOf,
  unlimited,
  windowStartOf,
} from "../../src/domain/budget.ts";
import type { Budget } from "../../src/domain/task.ts";

const amounts = (tokens: number, timeMs = 0, cost = 0): Amounts => ({ tokens, timeMs, cost });
const budget = (tokens: number | null, timeMs: number | null = null, cost: number | null = null): Budget => ({
  tokens,
  timeMs,
  cost,
});

describe("an account", () => {
  test("names the first dimension that is short: tokens, then time, then cost", () => {
    const account = openAccount(budget(10, 10, 10));
    expect(shortOf(account, amounts(10, 10, 10))).toBeNull();
    expect(shortOf(account, amounts(11, 11, 11))).toBe("tokens");
    expect(shortOf(account, amounts(10, 11, 11))).toBe("timeMs");
    expect(shortOf(account, amounts(10, 10, 10.000001))).toBe("cost");
  });

  test("without a bound has room for everything and says nothing is left to tell", () => {
    const account = reserve(openAccount(unlimited), amounts(1e12, 1e12, 1e9));
    expect(shortOf(account, amounts(1e12, 1e12, 1e9))).toBeNull();
    expect(remainingOf(account)).toEqual(unlimited);
  });

  test("frees what was reserved and keeps what was used", () => {
    const reserved = reserve(openAccount(budget(100, 1000, 2)), amounts(60, 500, 1.5));
    expect(remainingOf(reserved)).toEqual(budget(40, 500, 0.5));
    const settled = settle(reserved, amounts(60, 500, 1.5), amounts(20, 700, 0.25));
    expect(settled.reserved).toEqual(amounts(0));
    expect(remainingOf(settled)).toEqual(budget(80, 300, 1.75));
  });

  test("that was used beyond its reservation has nothing left, not less than nothing", () => {
    const reserved = reserve(openAccount(budget(null, 100)), amounts(1, 100));
    const settled = settle(reserved, amounts(1, 100), amounts(1, 250));
    expect(settled.spent.timeMs).toBe(250);
    expect(remainingOf(settled).timeMs).toBe(0);
    expect(shortOf(settled, amounts(1, 1))).toBe("timeMs");
  });

  test("what nobody may do is a programmer's mistake", () => {
    const account = openAccount(budget(10));
    expect(() => reserve(account, amounts(11))).toThrow("assertion failed");
    expect(() => settle(account, amounts(1), amounts(1))).toThrow("assertion failed");
    expect(() => settle(reserve(account, amounts(1)), amounts(1), amounts(-1))).toThrow("assertion failed");
  });

  test("takes a reservation of an earlier process whatever its limit is now", () => {
    const account = reserveAgain(openAccount(budget(10)), amounts(25));
    expect(remainingOf(account).tokens).toBe(0);
    expect(settle(account, amounts(25), amounts(5)).reserved.tokens).toBe(0);
  });
});

describe("costs", () => {
  test("add up exactly where binary fractions do not", () => {
    let account = openAccount(budget(null, null, 1));
    for (let i = 0; i < 10; i++) account = reserve(account, amounts(0, 0, 0.1));
    expect(remainingOf(account).cost).toBe(0);
    expect(shortOf(account, amounts(0, 0, 0.000001))).toBe("cost");
    for (let i = 0; i < 10; i++) account = settle(account, amounts(0, 0, 0.1), amounts(0, 0, 0.1));
    expect([account.spent.cost, account.reserved.cost]).toEqual([1, 0]);
  });

  test("come from the price for a thousand tokens, rounded up to a millionth", () => {
    expect(costOf({ per1kTokensIn: 0.3, per1kTokensOut: 1.2 }, 1000, 500)).toBe(0.9);
    expect(costOf({ per1kTokensIn: 0.1, per1kTokensOut: 0 }, 3, 0)).toBe(0.0003);
    expect(costOf({ per1kTokensIn: 0.00001, per1kTokensOut: 0 }, 1, 0)).toBe(0.000001);
    expect(costOf({ per1kTokensIn: 0, per1kTokensOut: 0 }, 1e6, 1e6)).toBe(0);
  });

  test("never grow by fewer tokens, whatever the price", () => {
    const price = fc.double({ min: 0, max: 1000, noNaN: true });
    const tokens = fc.nat(1_000_000);
    fc.assert(
      fc.property(
        price,
        price,
        tokens,
        tokens,
        tokens,
        tokens,
        (per1kTokensIn, per1kTokensOut, a, b, c, d) => {
          const of = (tokensIn: number, tokensOut: number) =>
            costOf({ per1kTokensIn, per1kTokensOut }, tokensIn, tokensOut);
          expect(of(Math.min(a, b), Math.min(c, d))).toBeLessThanOrEqual(of(Math.max(a, b), Math.max(c, d)));
        },
      ),
    );
  });

  test("a bound finer than a millionth is not rounded up", () => {
    expect(shortOf(openAccount(budget(null, null, 0.0000015)), amounts(0, 0, 0.000002))).toBe("cost");
    expect(shortOf(openAccount(budget(null, null, 0.0000019)), amounts(0, 0, 0.000001))).toBeNull();
  });
});

test("amounts are counted in whole tokens and milliseconds, never less than they are", () => {
  expect(roundedUp(amounts(1, 12.1, 0.1))).toEqual(amounts(1, 13, 0.1));
});

test("the lesser bound counts; none is above every one", () => {
  expect(lower(budget(10, null, 3), budget(20, 5, null))).toEqual(budget(10, 5, 3));
  expect(lower(budget(10), null)).toEqual(budget(10));
  expect(leastRemaining([openAccount(budget(9)), null, openAccount(budget(5, 7))])).toEqual(budget(5, 7));
  expect(leastRemaining([openAccount(unlimited), null])).toBeNull();
});

test("windows begin at whole multiples since the epoch, also where the time has a fraction", () => {
  expect(windowStartOf(1_700_000_012_345.678, 60_000)).toBe(1_699_999_980_000);
  expect(windowStartOf(120_000, 60_000)).toBe(120_000);
});

test("reservations never pass the limit, and all settled leave none", () => {
  const millionths = fc.nat(3_000_000).map((n) => n / 1e6);
  const wanted = fc.record({ tokens: fc.nat(50), timeMs: fc.nat(500), cost: millionths });
  const share = fc.double({ min: 0, max: 1, noNaN: true });
  fc.assert(
    fc.property(
      fc.record({
        tokens: fc.option(fc.nat(200)),
        timeMs: fc.option(fc.nat(2000)),
        cost: fc.option(millionths),
      }),
      fc.array(fc.record({ wanted, share, settles: fc.boolean() }), { maxLength: 100 }),
      (limit, steps) => {
        let account: Account = openAccount(limit);
        const live: { readonly was: Amounts; readonly share: number }[] = [];
        const end = ({ was, share: part }: { readonly was: Amounts; readonly share: number }) => {
          const used = {
            tokens: Math.floor(was.tokens * part),
            timeMs: Math.floor(was.timeMs * part),
            cost: Math.floor(was.cost * part * 1e6) / 1e6,
          };
          account = settle(account, was, used);
        };
        for (const step of steps) {
          const oldest = live[0];
          if (step.settles && oldest !== undefined) {
            live.shift();
            end(oldest);
          } else if (shortOf(account, step.wanted) === null) {
            account = reserve(account, step.wanted);
            live.push({ was: step.wanted, share: step.share });
          }
          for (const dimension of dimensions) {
            const taken = account.spent[dimension] + account.reserved[dimension];
            expect(taken).toBeLessThanOrEqual((limit[dimension] ?? Number.POSITIVE_INFINITY) + 1e-7);
          }
        }
        for (const one of live) end(one);
        expect(account.reserved).toEqual(amounts(0));
      },
    ),
    { numRuns: 300 },
  );
});
