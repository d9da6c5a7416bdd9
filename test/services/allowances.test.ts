/** What a key may spend in a window, where the configuration gives it more or less while the window runs (ORCHD-CONF-4). */
import { expect, test } from "bun:test";
import { unlimited } from "../../src/domain/budget.ts";
import { type Allowance, Allowances } from "../../src/services/allowances.ts";

test("another budget holds in the window that runs; what was spent and reserved stays", () => {
  let allowance: Allowance | null = { budget: { ...unlimited, tokens: 100 }, windowMs: 1000 };
  const allowances = new Allowances(() => allowance);
  const amounts = { tokens: 30, timeMs: 0, cost: 0 };
  const window = allowances.reserve("k", amounts, 0);
  if (window === null) throw new Error("the key has a bound");
  allowances.settle(window, amounts, { ...amounts, tokens: 25 });
  allowances.reserve("k", amounts, 1);
  allowance = { budget: { ...unlimited, tokens: 40 }, windowMs: 1000 };
  expect(allowances.windowOf("k", 2)).toBe(window);
  expect(window.account).toMatchObject({
    limit: { tokens: 40 },
    spent: { tokens: 25 },
    reserved: { tokens: 30 },
  });
  allowance = null;
  expect(allowances.windowOf("k", 3)).toBeNull();
  // What holds its reservation gives it back all the same.
  allowances.settle(window, amounts, amounts);
  expect(window.account).toMatchObject({ spent: { tokens: 55 }, reserved: { tokens: 0 } });
});
