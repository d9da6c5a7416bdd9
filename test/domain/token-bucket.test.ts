/** The token bucket: burst, refill, and never more than its rate over any window. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { fullBucket, type Rate, takeToken } from "../../src/domain/token-bucket.ts";

const rate: Rate = { perSecond: 2, burst: 3 };

describe("token bucket", () => {
  test("lets a burst through, then one each time a token has flowed in", () => {
    let bucket = fullBucket(rate, 1000);
    const ask = (nowMs: number) => {
      const taken = takeToken(bucket, rate, nowMs);
      bucket = taken.bucket;
      return [taken.granted, taken.retryAfterMs] as const;
    };
    expect([ask(1000), ask(1000), ask(1000)]).toEqual([
      [true, 0],
      [true, 0],
      [true, 0],
    ]);
    expect(ask(1000)).toEqual([false, 500]);
    expect(ask(1300)).toEqual([false, 200]);
    expect(ask(1500)).toEqual([true, 0]);
    expect(ask(1500)).toEqual([false, 500]);
  });

  test("does not save up more than the burst", () => {
    const { bucket } = takeToken(fullBucket(rate, 0), rate, 3_600_000);
    expect(bucket.tokens).toBe(2);
  });

  test("a clock that jumps back neither gives nor takes, and what comes after counts from the later time", () => {
    const empty = { tokens: 0, atMs: 10_000 };
    const back = takeToken(empty, rate, 1_000);
    expect(back).toEqual({ bucket: { tokens: 0, atMs: 10_000 }, granted: false, retryAfterMs: 500 });
    expect(takeToken(back.bucket, rate, 10_500).granted).toBe(true);
  });

  test("a lowered rate does not leave the old burst behind", () => {
    const { bucket } = takeToken({ tokens: 100, atMs: 0 }, rate, 0);
    expect(bucket.tokens).toBe(2);
  });

  test("a rate that lets nothing through is a programmer's mistake", () => {
    expect(() => takeToken({ tokens: 0, atMs: 0 }, { perSecond: 0, burst: 1 }, 0)).toThrow(
      "assertion failed",
    );
    expect(() => takeToken({ tokens: 0, atMs: 0 }, { perSecond: 1, burst: 0 }, 0)).toThrow(
      "assertion failed",
    );
  });

  test("over any window no more than burst + rate x time is granted, and a refusal says when to come back", () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0.01, max: 1000, noNaN: true }),
        fc.integer({ min: 1, max: 100 }),
        fc.array(fc.double({ min: 0, max: 5000, noNaN: true }), { maxLength: 200 }),
        (perSecond, burst, gapsMs) => {
          const some: Rate = { perSecond, burst };
          let bucket = fullBucket(some, 0);
          let nowMs = 0;
          let granted = 0;
          for (const gapMs of gapsMs) {
            nowMs += gapMs;
            const taken = takeToken(bucket, some, nowMs);
            bucket = taken.bucket;
            if (taken.granted) granted += 1;
            else expect(takeToken(bucket, some, nowMs + taken.retryAfterMs).granted).toBe(true);
            expect(bucket.tokens).toBeGreaterThanOrEqual(0);
            expect(bucket.tokens).toBeLessThanOrEqual(burst);
          }
          expect(granted).toBeLessThanOrEqual(burst + (nowMs * perSecond) / 1000 + 1e-6);
        },
      ),
      { numRuns: 200 },
    );
  });
});
