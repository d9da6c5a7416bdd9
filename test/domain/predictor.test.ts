/** What a pool is expected to do: start times against brute force, intervals, probabilities, and what it learns. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { nothingOvertakes } from "../../src/domain/arrival-rate.ts";
import { learnEnd, residualOf, scoreStart, timeAt } from "../../src/domain/calibration.ts";
import { lengthQuantile, remainingTokens } from "../../src/domain/output-length.ts";
import {
  type Attempted,
  basisOf,
  createPredictor,
  decodeTps,
  earliestEndMs,
  learnAttempt,
  learnWarmUp,
  loadLeft,
  type PoolLoad,
  type PredictorState,
  predict,
  prefillMs,
  singleStreamSpeed,
} from "../../src/domain/predictor.ts";

const attempted = (more: Partial<Attempted> = {}): Attempted => ({
  tokensIn: 100,
  tokensInAdmitted: 100,
  tokensInExact: true,
  tokensCached: 0,
  tokensOut: 101,
  tokensAnswered: 101,
  promptMs: 50,
  decodeMs: 1000,
  maxTokens: 200,
  concurrency: 1,
  ...more,
});

const loadOf = (slotFreeInMs: readonly number[], workAheadMs: number): PoolLoad => ({
  slotFreeInMs,
  slotSpreadMs: 0,
  workAheadMs,
  overtaking: nothingOvertakes,
  agedInMs: null,
});
const service = (mean: number) => ({ mean, variance: 0 });
const told = (state: PredictorState, load: PoolLoad, serviceMs: number, deadlineMs: number | null) =>
  predict(state, "batch", load, 1, service(serviceMs), deadlineMs).prediction;
const startOf = (load: PoolLoad) =>
  predict(createPredictor(), "batch", load, 1, service(0), null).start.meanMs;

/** Real slots, real tasks: each goes to the slot that is free first. When would the next one start? */
function listStart(free: readonly number[], tasks: readonly number[]): number {
  const slots = [...free];
  for (const task of tasks) {
    const at = slots.indexOf(Math.min(...slots));
    slots[at] = (slots[at] ?? 0) + task;
  }
  return Math.min(...slots);
}

describe("the expected start", () => {
  const rows: [free: number[], ahead: number, startMs: number][] = [
    [[0], 0, 0],
    [[7], 0, 7],
    [[30, 10, 20], 0, 10],
    [[10], 5, 15],
    [[5, 10], 3, 8],
    [[5, 10], 7, 11],
    [[0, 0, 0, 0], 100, 25],
  ];
  for (const [free, ahead, startMs] of rows)
    test(`slots free in ${free} and ${ahead} ms of work ahead: ${startMs}`, () => {
      expect(startOf(loadOf(free, ahead))).toBe(startMs);
    });

  const slots = fc.array(fc.integer({ min: 0, max: 5000 }), { minLength: 1, maxLength: 8 });
  test("lies within one task of what real slots with whole tasks do, whatever the order of the slots", () => {
    fc.assert(
      fc.property(slots, fc.array(fc.integer({ min: 1, max: 800 }), { maxLength: 40 }), (free, tasks) => {
        const sum = tasks.reduce((a, b) => a + b, 0);
        const real = listStart(free, tasks);
        const expected = startOf(loadOf(free, sum));
        expect(expected).toBeGreaterThanOrEqual(real - 1e-6);
        expect(expected).toBeLessThanOrEqual(real + Math.max(0, ...tasks) + 1e-6);
        expect(startOf(loadOf(free.toReversed(), sum))).toBe(expected);
      }),
    );
  });

  test("comes later for those who come later and go first, but not later than age allows", () => {
    const load = { ...loadOf([100], 300), overtaking: { share: 0.75, jitterMs: 0, error: 0 } };
    expect(startOf(load)).toBe(1600);
    expect(startOf({ ...load, agedInMs: 1000 })).toBe(1000);
    expect(startOf({ ...load, agedInMs: 10 })).toBe(400);
  });
});

/** A predictor with any history, and what it is asked. */
const history = fc.array(fc.tuple(fc.integer({ min: 1, max: 1e5 }), fc.integer({ min: 0, max: 1e6 })), {
  maxLength: 40,
});
function after(outcomes: readonly (readonly [promisedMs: number, actualMs: number])[]): PredictorState {
  const state = createPredictor();
  const calibration = state.classes.batch;
  for (const [promisedMs, actualMs] of outcomes) {
    const { start, end, prediction } = predict(state, "batch", loadOf([1], promisedMs), 1, service(50), null);
    const { startLowMs: lowMs, startMs: medianMs, startHighMs: highMs } = prediction;
    scoreStart(calibration, start, { lowMs, medianMs, highMs }, actualMs);
    learnEnd(calibration, end, actualMs + 50);
  }
  return state;
}

describe("a promise", () => {
  const slots = fc.array(fc.integer({ min: 0, max: 60_000 }), { minLength: 1, maxLength: 8 });
  const ms = fc.integer({ min: 0, max: 1e7 });

  test("is whole milliseconds with low <= median <= high <= end in order, after any history", () => {
    fc.assert(
      fc.property(history, slots, ms, ms, ms, (outcomes, free, spread, work, own) => {
        const load = { ...loadOf(free, work), slotSpreadMs: spread };
        const { startLowMs, startMs, startHighMs, endMs } = told(after(outcomes), load, own, null);
        for (const value of [startLowMs, startMs, startHighMs, endMs])
          expect(Number.isSafeInteger(value)).toBe(true);
        expect(startLowMs).toBeGreaterThanOrEqual(0);
        expect(startLowMs <= startMs && startMs <= startHighMs && startMs <= endMs).toBe(true);
      }),
    );
  });

  test("never becomes earlier or likelier by more work ahead, after any history", () => {
    fc.assert(
      fc.property(
        history,
        slots,
        ms,
        ms,
        ms,
        fc.integer({ min: 1, max: 1e7 }),
        (outcomes, free, spread, work, more, deadline) => {
          const state = after(outcomes);
          const at = (workAheadMs: number) =>
            told(state, { ...loadOf(free, workAheadMs), slotSpreadMs: spread }, 500, deadline);
          const [sooner, later] = [at(work), at(work + more)];
          expect(later.startLowMs).toBeGreaterThanOrEqual(sooner.startLowMs);
          expect(later.startMs).toBeGreaterThanOrEqual(sooner.startMs);
          expect(later.startHighMs).toBeGreaterThanOrEqual(sooner.startHighMs);
          expect(later.endMs).toBeGreaterThanOrEqual(sooner.endMs);
          expect(later.onTimeProbability ?? 1).toBeLessThanOrEqual(sooner.onTimeProbability ?? 0);
        },
      ),
      { numRuns: 300 },
    );
  });

  test("is likelier to be kept by a later deadline; the earliest feasible one is the first that is", () => {
    fc.assert(
      fc.property(history, ms, fc.integer({ min: 1, max: 1e6 }), ms, (outcomes, work, deadline, more) => {
        const state = after(outcomes);
        const load = loadOf([10, 20], work);
        const p = (ms: number) => told(state, load, 500, ms).onTimeProbability ?? -1;
        expect(p(deadline)).toBeGreaterThanOrEqual(0);
        expect(p(deadline + more)).toBeGreaterThanOrEqual(p(deadline));
        expect(p(deadline + more)).toBeLessThanOrEqual(1);
        const earliest = earliestEndMs(state, "batch", load, service(500), 0.5);
        expect(p(earliest)).toBeGreaterThanOrEqual(0.5);
        if (earliest > 1) expect(p(earliest - 1)).toBeLessThan(0.5);
      }),
    );
  });

  test("has no probability without a deadline, none left after it, a half at the expected end", () => {
    const state = createPredictor();
    expect(told(state, loadOf([0], 0), 1000, null).onTimeProbability).toBeNull();
    expect(told(state, loadOf([0], 0), 1000, 0).onTimeProbability).toBe(0);
    expect(told(state, loadOf([0], 0), 1000, 1000).onTimeProbability).toBe(0.5);
  });

  test("starts at once where a slot is free, and says what it stands on", () => {
    const state = createPredictor();
    expect(told(state, loadOf([0, 500], 0), 1000, null)).toMatchObject({
      startLowMs: 0,
      startMs: 0,
      startHighMs: 0,
      endMs: 1000,
      basis: "assumed",
    });
    learnWarmUp(state, { prefillTps: 500, decodeTps: 10 }, null);
    expect(basisOf(state)).toBe("warm_up");
    learnAttempt(state, attempted());
    expect(basisOf(state)).toBe("learned");
  });

  test("gets sharper where promises were kept, and forgets one that was wildly wrong", () => {
    const state = createPredictor();
    const cold = told(state, loadOf([1000], 0), 100, 1300).onTimeProbability ?? 0;
    const { end } = predict(state, "batch", loadOf([1000], 0), 1, service(100), null);
    learnEnd(state.classes.batch, end, 1e9);
    for (let n = 0; n < 100; n++) learnEnd(state.classes.batch, end, 1110);
    expect(cold).toBeLessThan(0.85);
    expect(told(state, loadOf([1000], 0), 100, 1300).onTimeProbability).toBeGreaterThan(0.93);
  });
});

test("residuals and times are each other's inverse", () => {
  const positive = fc.double({ min: 1, max: 1e6, noNaN: true });
  fc.assert(
    fc.property(
      positive,
      positive,
      fc.double({ min: -20, max: 20, noNaN: true }),
      (meanMs, spreadMs, residual) => {
        const back = residualOf({ meanMs, spreadMs }, timeAt({ meanMs, spreadMs }, residual));
        expect(Math.abs(back - residual)).toBeLessThan(1e-3);
      },
    ),
  );
});

describe("learning", () => {
  test("starts from the warm-up, exactly, and converges to what is seen", () => {
    const state = createPredictor();
    learnWarmUp(state, { prefillTps: 500, decodeTps: 10 }, null);
    expect(singleStreamSpeed(state)).toEqual({ prefillTps: 500, decodeTps: 10 });
    for (let n = 0; n < 200; n++) learnAttempt(state, attempted());
    expect(decodeTps(state, 1)).toBeCloseTo(100, 0);
    expect(prefillMs(state, 100, true, 1)).toBeCloseTo(50, 0);
    expect(remainingTokens(state.lengths, 200, null, 0).mean).toBeCloseTo(101, 0);
  });

  test("a later warm-up does not undo what was measured; one that measured nothing leaves the unknown", () => {
    const state = createPredictor();
    learnWarmUp(state, { prefillTps: 0, decodeTps: 0 }, null);
    expect(singleStreamSpeed(state)).toEqual({ prefillTps: null, decodeTps: null });
    learnAttempt(state, attempted());
    learnWarmUp(state, { prefillTps: 1, decodeTps: 1 }, 100);
    expect(decodeTps(state, 1)).toBe(100);
    expect(loadLeft(state, 0).meanMs).toBe(100);
    expect(loadLeft(state, 5000).meanMs).toBe(10);
  });

  test("follows a pool that became slower", () => {
    const state = createPredictor();
    for (let n = 0; n < 50; n++) learnAttempt(state, attempted());
    for (let n = 0; n < 60; n++) learnAttempt(state, attempted({ decodeMs: 4000 }));
    expect(decodeTps(state, 1)).toBeLessThan(28);
  });

  test("knows speeds by concurrency: exact where measured, straight between, as it rose beyond", () => {
    const state = createPredictor();
    learnAttempt(state, attempted({ concurrency: 1, decodeMs: 1000 }));
    learnAttempt(state, attempted({ concurrency: 5, decodeMs: 3000 }));
    const msPerToken = [1, 2, 3, 5, 7].map((n) => 1000 / decodeTps(state, n));
    for (const [at, ms] of [10, 15, 20, 30, 40].entries()) expect(msPerToken[at]).toBeCloseTo(ms, 6);
  });

  test("never takes more streams for faster ones, and no speed for less than nothing", () => {
    const run = fc.record({
      concurrency: fc.integer({ min: 1, max: 16 }),
      decodeMs: fc.integer({ min: 1, max: 1e5 }),
      tokensOut: fc.integer({ min: 0, max: 400 }),
    });
    fc.assert(
      fc.property(fc.array(run, { maxLength: 60 }), (runs) => {
        const state = createPredictor();
        for (const more of runs) learnAttempt(state, attempted(more));
        for (let n = 1; n < 32; n++) {
          expect(decodeTps(state, n + 1)).toBeLessThanOrEqual(decodeTps(state, n) + 1e-9);
          expect(decodeTps(state, n + 1)).toBeGreaterThan(0);
        }
      }),
    );
  });

  test("counts only what the engine evaluated of a prompt", () => {
    const state = createPredictor();
    learnWarmUp(state, { prefillTps: 1000, decodeTps: 10 }, null);
    for (let n = 0; n < 60; n++)
      learnAttempt(state, attempted({ tokensInExact: false, tokensInAdmitted: 400, tokensCached: 90 }));
    expect(prefillMs(state, 400, false, 1)).toBeCloseTo(10, 1);
    expect(prefillMs(state, 400, true, 1)).toBe(400);
  });
});

describe("the length of an answer", () => {
  const seen = (tokens: readonly number[], maxTokens = 200) => {
    const { lengths } = tokens.reduce((state, tokensOut) => {
      learnAttempt(state, attempted({ tokensOut, tokensAnswered: tokensOut, maxTokens }));
      return state;
    }, createPredictor());
    return lengths;
  };

  test("is the limit until something was seen; a hint narrows it, within the limit", () => {
    const none = seen([]);
    expect(remainingTokens(none, 100, null, 0).mean).toBe(100);
    expect(remainingTokens(none, 100, 30, 0).mean).toBe(30);
    expect(remainingTokens(none, 100, 300, 0).mean).toBe(100);
    expect(remainingTokens(none, 100, 30, 10).mean).toBe(20);
    expect(remainingTokens(none, 100, 30, 40).mean).toBe(60);
  });

  test("short answers to small limits say nothing of large ones", () => {
    const lengths = seen(new Array(50).fill(4), 16);
    expect(remainingTokens(lengths, 16, null, 0).mean).toBeCloseTo(4, 6);
    expect(remainingTokens(lengths, 4096, null, 0).mean).toBe(4096);
  });

  test("of two kinds of answers the long one is left once the short one would have ended", () => {
    const lengths = seen(Array.from({ length: 200 }, (_, n) => (n % 2 === 0 ? 10 : 200)));
    expect(remainingTokens(lengths, 200, null, 0).mean).toBeCloseTo(105, -1);
    expect(remainingTokens(lengths, 200, null, 0).variance).toBeGreaterThan(90 ** 2);
    expect(remainingTokens(lengths, 200, null, 50).mean).toBeCloseTo(150, 0);
    expect(remainingTokens(lengths, 200, null, 50).variance).toBeLessThan(60 ** 2);
    expect(lengthQuantile(lengths, 200, 0.02) ?? 200).toBeLessThanOrEqual(10);
    expect(lengthQuantile(lengths, 200, 0.9)).toBe(200);
  });

  test("lies within what is left", () => {
    const tokens = fc.integer({ min: 0, max: 500 });
    fc.assert(
      fc.property(fc.array(tokens, { maxLength: 50 }), tokens, fc.option(tokens), (all, produced, hint) => {
        const { mean, variance } = remainingTokens(seen(all, 500), 500, hint, produced);
        expect(mean).toBeGreaterThanOrEqual(0);
        expect(mean).toBeLessThanOrEqual(500 - produced + 1e-6);
        expect(variance).toBeGreaterThanOrEqual(0);
      }),
    );
  });
});
