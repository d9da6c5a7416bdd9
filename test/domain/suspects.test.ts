/** Which lost attempts count, and who is tried alone: as a table, and as what any order of losses keeps. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { limits } from "../../src/domain/limits.ts";
import {
  type AttemptLoss,
  type AttemptRules,
  isSpent,
  isSuspect,
  noAttempts,
  noteLoss,
} from "../../src/domain/suspects.ts";

const rules: AttemptRules = {
  attemptsMax: limits.attemptsMax,
  crashesShared: limits.crashesSharedMax,
  tokensClearing: limits.suspectClearingTokens,
};
const after = (...losses: AttemptLoss[]) =>
  losses.reduce((record, loss) => noteLoss(record, loss, rules), noAttempts);
const crash = (tokensNew = 0): AttemptLoss => ({ cause: "engine", tokensNew });

describe("lost attempts", () => {
  test("a poisonous task is alone from its third attempt and ends with it; its neighbour gets on", () => {
    expect(isSuspect(after(crash()), rules)).toBe(false);
    expect(isSuspect(after(crash(), crash()), rules)).toBe(true);
    expect(isSpent(after(crash(), crash()), rules)).toBe(false);
    expect(isSpent(after(crash(), crash(), crash()), rules)).toBe(true);
    expect(isSuspect(after(crash(), crash(40)), rules)).toBe(false);
    // A little progress saves its attempts, and leaves the suspicion.
    expect(after(crash(), crash(), crash(3))).toEqual({ fruitlessAttempts: 0, crashesInRow: 3, cuts: 3 });
  });

  test("cut by the daemon, or never begun: counts for nothing", () => {
    for (const cause of ["cut", "not_begun"] as const) {
      const record = after(
        crash(),
        { cause, tokensNew: 0 },
        { cause, tokensNew: 0 },
        { cause, tokensNew: 0 },
      );
      expect(record).toEqual({ fruitlessAttempts: 1, crashesInRow: 1, cuts: 4 });
    }
    expect(after(crash(), { cause: "cut", tokensNew: 1 }).fruitlessAttempts).toBe(0);
  });

  test("a task with a bounded output has a bounded number of attempts (property)", () => {
    const loss = fc.record({
      cause: fc.constantFrom("engine" as const, "watchdog" as const),
      tokensNew: fc.nat(5),
    });
    fc.assert(
      fc.property(fc.array(loss, { maxLength: 200 }), (losses) => {
        let record = noAttempts;
        let left = 40;
        let attempts = 0;
        for (const one of losses) {
          if (isSpent(record, rules) || left <= 0) break;
          record = noteLoss(record, one, rules);
          left -= one.tokensNew;
          attempts++;
        }
        expect(attempts).toBeLessThanOrEqual(40 * rules.attemptsMax + rules.attemptsMax);
        expect(isSuspect(record, rules)).toBe(record.crashesInRow >= 2);
      }),
    );
  });
});
