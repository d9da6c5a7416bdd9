/** What a pool is expected to do: start times against brute force, probabilities, what it learns and how fast. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  type Attempted,
  createPredictor,
  decodeTps,
  expectedTokensOut,
  learnAttempt,
  learnWarmUp,
  type PoolLoad,
  predict,
  score,
  serviceMs,
} from "../../src/domain/predictor.ts";

const attempted = (more: Partial<Attempted> = {}): Attempted => ({
  tokensIn: 100,
  tokensCached: 0,
  tokensOut: 101,
  promptMs: 50,
  decodeMs: 1000,
  maxTokens: 200,
  concurrency: 1,
  ...more,
});

const startOf = (load: PoolLoad): number => predict(createPredictor(), load, 0, 0, null).startMs;
const loadOf = (slotFreeInMs: number[], workAheadMs: number): PoolLoad => ({
  slotFreeInMs,
  workAheadMs,
  slotsExpected: 1,
});

/** Real slots, real tasks: each goes to the slot that is free first. When would the next one start? */
function listStart(free: readonly number[], tasks: readonly number[]): number {
  const slots = [...free];
  for (const task of tasks) {
    const at = slots.indexOf(Math.min(...slots));
    slots[at] = (slots[at] ?? 0) + task;
  }
  return Math.min(...slots);
}

describe("the start of a task", () => {
  const rows: [free: number[], ahead: number, startMs: number][] = [
    [[0], 0, 0],
    [[7], 0, 7],
    [[30, 10, 20], 0, 10],
    [[10], 5, 15],
    [[5, 10], 3, 8],
    [[5, 10], 5, 10],
    [[5, 10], 7, 11],
    [[0, 0, 0, 0], 100, 25],
  ];
  for (const [free, ahead, startMs] of rows)
    test(`slots free in ${free} and ${ahead} ms of work ahead: ${startMs}`, () => {
      expect(startOf(loadOf(free, ahead))).toBe(startMs);
    });

  const slots = fc.array(fc.integer({ min: 0, max: 5000 }), { minLength: 1, maxLength: 8 });
  const tasks = fc.array(fc.integer({ min: 1, max: 800 }), { maxLength: 40 });

  test("lies within one task of what real slots with whole tasks do", () => {
    fc.assert(
      fc.property(slots, tasks, (free, ahead) => {
        const sum = ahead.reduce((a, b) => a + b, 0);
        const real = listStart(free, ahead);
        const told = startOf(loadOf(free, sum));
        expect(told).toBeGreaterThanOrEqual(real - 1);
        expect(told).toBeLessThanOrEqual(real + Math.max(0, ...ahead) + 1);
      }),
    );
  });

  test("is what grains of one millisecond poured into the slots give", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 60 }), { minLength: 1, maxLength: 5 }),
        fc.nat(200),
        (free, ahead) => {
          const grains = listStart(free, new Array<number>(ahead).fill(1));
          expect(Math.abs(startOf(loadOf(free, ahead)) - grains)).toBeLessThanOrEqual(1);
        },
      ),
    );
  });

  test("never comes earlier for more work ahead, a busier slot or one slot less", () => {
    fc.assert(
      fc.property(slots, fc.nat(20_000), fc.nat(5000), fc.nat(7), (free, ahead, more, which) => {
        const before = startOf(loadOf(free, ahead));
        expect(startOf(loadOf(free, ahead + more))).toBeGreaterThanOrEqual(before);
        const at = which % free.length;
        expect(startOf(loadOf(free.with(at, (free[at] ?? 0) + more), ahead))).toBeGreaterThanOrEqual(before);
        if (free.length > 1)
          expect(startOf(loadOf(free.toSpliced(at, 1), ahead))).toBeGreaterThanOrEqual(before);
      }),
    );
  });

  test("does not depend on the order of the slots", () => {
    fc.assert(
      fc.property(slots, fc.nat(20_000), (free, ahead) => {
        expect(startOf(loadOf(free.toReversed(), ahead))).toBe(startOf(loadOf(free, ahead)));
      }),
    );
  });

  test("waits for the load of a pool that is not there, shared by the slots that it will have", () => {
    const state = createPredictor();
    learnWarmUp(state, { prefillTps: 1000, decodeTps: 50 }, 4000);
    const load = { slotFreeInMs: [], workAheadMs: 1000, slotsExpected: 2 };
    expect(predict(state, load, 3, 100, null)).toMatchObject({
      queuePosition: 3,
      startMs: 4500,
      endMs: 4600,
    });
  });
});

describe("the probability to be on time", () => {
  const positive = fc.double({ min: 0, max: 1e7, noNaN: true });
  test("is a probability that grows with the deadline and shrinks with the work ahead", () => {
    fc.assert(
      fc.property(
        positive,
        positive,
        positive,
        fc.integer({ min: 1, max: 1e9 }),
        (ahead, service, more, deadline) => {
          const state = createPredictor();
          const told = (workAheadMs: number, deadlineMs: number) =>
            predict(state, loadOf([0, 10], workAheadMs), 0, service, deadlineMs).onTimeProbability ?? -1;
          const p = told(ahead, deadline);
          expect(p).toBeGreaterThanOrEqual(0);
          expect(p).toBeLessThanOrEqual(1);
          expect(told(ahead, deadline + more)).toBeGreaterThanOrEqual(p);
          expect(told(ahead + more, deadline)).toBeLessThanOrEqual(p + 1e-9);
        },
      ),
    );
  });

  test("is null without a deadline and a half where the deadline is the expected end", () => {
    const state = createPredictor();
    expect(predict(state, loadOf([0], 0), 0, 1000, null).onTimeProbability).toBeNull();
    expect(predict(state, loadOf([0], 0), 0, 1000, 1000).onTimeProbability).toBe(0.5);
  });

  test("is honest before anything was seen: neither sure nor hopeless within half of the promise", () => {
    const cold = createPredictor();
    const p = (deadlineMs: number) =>
      predict(cold, loadOf([0], 0), 0, 1000, deadlineMs).onTimeProbability ?? -1;
    expect(p(700)).toBeGreaterThan(0.2);
    expect(p(1500)).toBeLessThan(0.9);
  });

  test("gets sharper where promises were kept", () => {
    const state = createPredictor();
    for (let n = 0; n < 60; n++) score(state, 1000, 1010);
    expect(predict(state, loadOf([0], 0), 0, 1000, 1100).onTimeProbability).toBeGreaterThan(0.99);
  });

  test("forgets one promise that was wildly wrong, also when it was the first", () => {
    const first = createPredictor();
    score(first, 50, 600_000);
    for (let n = 0; n < 60; n++) score(first, 1000, 1000);
    expect(first.relativeError).toBeLessThan(0.05);
    const later = createPredictor();
    score(later, 1000, 1000);
    score(later, 50, 600_000);
    for (let n = 0; n < 60; n++) score(later, 1000, 1000);
    expect(later.relativeError).toBeLessThan(0.05);
  });

  test("stays a number whatever was scored", () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(positive, positive), { maxLength: 20 }), (pairs) => {
        const state = createPredictor();
        for (const [promised, actual] of pairs) score(state, promised, actual);
        const p = predict(state, loadOf([0], 0), 0, 500, 400).onTimeProbability ?? -1;
        expect(p >= 0 && p <= 1).toBe(true);
      }),
    );
  });
});

describe("learning", () => {
  test("starts from the warm-up and converges to what is seen", () => {
    const state = createPredictor();
    learnWarmUp(state, { prefillTps: 500, decodeTps: 10 }, null);
    expect(serviceMs(state, 500, 10, 1)).toBe(2000);
    for (let n = 0; n < 100; n++) learnAttempt(state, attempted());
    // 100 tokens of prompt in 50 ms, 100 intervals in a second.
    expect(state.prefillTps).toBeCloseTo(2000, 0);
    expect(decodeTps(state, 1)).toBeCloseTo(100, 0);
    expect(expectedTokensOut(state, 200, null)).toBeCloseTo(101, 0);
  });

  test("a later warm-up does not undo what was measured", () => {
    const state = createPredictor();
    learnAttempt(state, attempted());
    learnWarmUp(state, { prefillTps: 1, decodeTps: 1 }, 100);
    expect([state.prefillTps, decodeTps(state, 1)]).toEqual([2000, 100]);
    expect(state.loadMs).toBe(100);
  });

  test("follows a pool that became slower", () => {
    const state = createPredictor();
    for (let n = 0; n < 50; n++) learnAttempt(state, attempted());
    for (let n = 0; n < 60; n++) learnAttempt(state, attempted({ decodeMs: 4000 }));
    expect(decodeTps(state, 1)).toBeLessThan(26);
  });

  test("takes the nearest measured concurrency", () => {
    const state = createPredictor();
    learnAttempt(state, attempted({ concurrency: 1, decodeMs: 1000 }));
    learnAttempt(state, attempted({ concurrency: 8, decodeMs: 4000 }));
    expect([1, 2, 7, 8, 20].map((n) => decodeTps(state, n))).toEqual([100, 100, 25, 25, 25]);
  });

  test("ignores what measures nothing: cached prompts, one token, no time", () => {
    const state = createPredictor();
    learnAttempt(state, attempted({ tokensCached: 95, tokensOut: 1, decodeMs: 0 }));
    expect([state.prefillTps, state.decodeTps.length]).toEqual([null, 0]);
  });

  test("a warm-up that could not measure leaves the unknown unknown", () => {
    const state = createPredictor();
    learnWarmUp(state, { prefillTps: 0, decodeTps: 0 }, null);
    expect(serviceMs(state, 200, 20, 4)).toBe(2000);
  });

  test("expects what the client says, never more than it may have", () => {
    const state = createPredictor();
    expect(expectedTokensOut(state, 100, 30)).toBe(30);
    expect(expectedTokensOut(state, 100, 300)).toBe(100);
    expect(expectedTokensOut(state, 100, null)).toBe(100);
  });

  test("short answers to small limits say nothing of large ones", () => {
    const state = createPredictor();
    for (let n = 0; n < 50; n++) learnAttempt(state, attempted({ maxTokens: 16, tokensOut: 4 }));
    expect(expectedTokensOut(state, 16, null)).toBeCloseTo(4, 1);
    expect(expectedTokensOut(state, 4096, null)).toBe(4096);
  });
});
