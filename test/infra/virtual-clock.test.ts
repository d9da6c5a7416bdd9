/** The tests' own clock, and that the real one keeps the same promises. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { SystemClock, SystemEntropy } from "../../src/infra/system-clock.ts";
import { within } from "../support/engine.ts";
import { SeededEntropy, VirtualClock } from "../support/virtual-clock.ts";

describe("virtual clock", () => {
  test("timers fire by time, then by making; each sees its own time", async () => {
    const clock = new VirtualClock(1000);
    const fired: string[] = [];
    for (const [name, delay] of Object.entries({ b: 20, a: 10, c: 20, d: 0 })) {
      clock.setTimer(delay, () => fired.push(`${name}@${clock.nowMs()}`));
    }
    await clock.advance(15);
    expect(fired).toEqual(["d@1000", "a@1010"]);
    expect(clock.nowMs()).toBe(1015);
    expect(clock.nextTimerMs).toBe(1020);
    expect(await clock.runUntilIdle()).toBe(5);
    expect(fired.slice(2)).toEqual(["b@1020", "c@1020"]);
    expect(clock.pendingTimers).toBe(0);
  });

  test("a cancelled timer never fires; to cancel again means nothing", async () => {
    const clock = new VirtualClock();
    let fired = 0;
    const timer = clock.setTimer(5, () => {
      fired += 1;
    });
    timer.cancel();
    timer.cancel();
    expect(clock.pendingTimers).toBe(0);
    await clock.runUntilIdle();
    expect(fired).toBe(0);
  });

  test("a timer may set timers; awaiting code goes on at the time it was woken", async () => {
    const clock = new VirtualClock(0);
    const seen: number[] = [];
    const pause = (ms: number) => new Promise<void>((resolve) => clock.setTimer(ms, resolve));
    const walker = (async () => {
      for (let i = 0; i < 3; i++) {
        await pause(100);
        await Promise.resolve();
        seen.push(clock.nowMs());
      }
    })();
    await clock.advance(250);
    expect(seen).toEqual([100, 200]);
    await clock.runUntilIdle();
    await walker;
    expect(seen).toEqual([100, 200, 300]);
  });

  test("soon runs before any timer, in order, without time passing", async () => {
    const clock = new VirtualClock(0);
    const seen: string[] = [];
    clock.setTimer(0, () => seen.push("timer"));
    clock.soon(() => {
      seen.push("first");
      clock.soon(() => seen.push("third"));
    });
    clock.soon(() => seen.push("second"));
    void clock.yieldTurn().then(() => seen.push("turn"));
    await clock.advance(0);
    expect(seen).toEqual(["first", "second", "turn", "third", "timer"]);
  });

  test("runUntilIdle stops at its bound", async () => {
    const clock = new VirtualClock(0);
    const again = () => {
      clock.setTimer(10, again);
    };
    again();
    expect(await clock.runUntilIdle(95)).toBe(90);
  });

  test("any timers fire in order (property)", async () => {
    const plan = fc.array(fc.tuple(fc.nat(50), fc.boolean()), { maxLength: 60 });
    await fc.assert(
      fc.asyncProperty(plan, async (timers) => {
        const clock = new VirtualClock(0);
        const fired: [ms: number, order: number][] = [];
        timers.forEach(([delay, cancelled], order) => {
          const timer = clock.setTimer(delay, () => fired.push([clock.nowMs(), order]));
          if (cancelled) timer.cancel();
        });
        await clock.runUntilIdle();
        const expected = timers
          .flatMap(([delay, cancelled], order): [number, number][] => (cancelled ? [] : [[delay, order]]))
          .sort((a, b) => a[0] - b[0] || a[1] - b[1]);
        expect(fired).toEqual(expected);
      }),
      { numRuns: 100 },
    );
  });

  test("randomness is the same for the same seed", () => {
    const draw = (seed: number) => {
      const entropy = new SeededEntropy(seed);
      return [entropy.uint32(), entropy.unit(), entropy.uuid(), entropy.secret(12)];
    };
    expect(draw(5)).toEqual(draw(5));
    expect(draw(5)).not.toEqual(draw(6));
    expect(new SeededEntropy(1).uuid()).toMatch(
      /^[\da-f]{8}-[\da-f]{4}-4[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/,
    );
  });
});

describe("system clock", () => {
  const clock = new SystemClock();

  test("time does not go back, timers and turns come, cancelled ones do not", async () => {
    const fromMs = clock.nowMs();
    expect(Math.abs(fromMs - Date.now())).toBeLessThan(60_000);
    let cancelled = false;
    clock
      .setTimer(1, () => {
        cancelled = true;
      })
      .cancel();
    await within(5_000, "a turn", new Promise<void>((resolve) => clock.soon(resolve)));
    await within(5_000, "yieldTurn", clock.yieldTurn());
    await within(5_000, "a timer", new Promise<void>((resolve) => clock.setTimer(5, resolve)));
    expect(clock.nowMs()).toBeGreaterThan(fromMs);
    expect(cancelled).toBe(false);
  });

  test("a delay beyond 31 bits does not fire at once", async () => {
    let fired = false;
    const timer = clock.setTimer(2 ** 40, () => {
      fired = true;
    });
    await within(5_000, "a timer", new Promise<void>((resolve) => clock.setTimer(20, resolve)));
    timer.cancel();
    expect(fired).toBe(false);
  });

  test("entropy: in range, and never twice", () => {
    const entropy = new SystemEntropy();
    const ids = Array.from({ length: 1000 }, () => entropy.uuid());
    expect(ids[0]).toMatch(/^[\da-f]{8}-[\da-f]{4}-7/);
    expect(new Set(ids).size).toBe(1000);
    expect([...ids].sort()).toEqual(ids);
    expect(entropy.unit()).toBeWithin(0, 1);
    expect(Number.isInteger(entropy.uint32())).toBe(true);
    expect(Buffer.from(entropy.secret(32), "base64url")).toHaveLength(32);
    expect(entropy.secret(32)).not.toBe(entropy.secret(32));
  });
});
