/** Alive and ready: /healthz and /readyz, and the sampler that says how late the event loop is. */
import { describe, expect, test } from "bun:test";
import { OrchestratorError } from "../../src/domain/errors.ts";
import { LoopLag } from "../../src/services/loop-lag.ts";
import { type PoolProbe, Readiness } from "../../src/services/readiness.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

function readinessOf(...probes: PoolProbe[]) {
  const clock = new VirtualClock();
  return {
    clock,
    probes,
    readiness: new Readiness({ clock, loopLag: { lastMs: () => 1.5 }, probe: () => probes }),
  };
}
const refuses = (poolId: string, retryAfterMs?: number): PoolProbe => ({
  poolId,
  error: new OrchestratorError("POOL_UNAVAILABLE", "its engine does not start", { retryAfterMs }),
});

describe("ready", () => {
  test("is one pool that takes work, whatever the others say", () => {
    const { readiness } = readinessOf(refuses("a"), { poolId: "b", error: null });
    expect(readiness.readiness()).toEqual({ ready: true, reasons: [], retryAfterMs: null });
  });

  test("is nobody when all refuse, and says why pool by pool", () => {
    const { readiness } = readinessOf(refuses("a", 3_000), refuses("b", 2_000), refuses("c"));
    expect(readiness.readiness()).toEqual({
      ready: false,
      reasons: ["a", "b", "c"].map((id) => `pool ${id}: POOL_UNAVAILABLE: its engine does not start`),
      retryAfterMs: 2_000,
    });
  });

  test("is nobody without a pool", () => {
    expect(readinessOf().readiness.readiness()).toEqual({
      ready: false,
      reasons: ["no pool is configured"],
      retryAfterMs: 1_000,
    });
  });

  test("is found anew each time", () => {
    const { readiness, probes } = readinessOf(refuses("a"));
    expect(readiness.readiness().ready).toBe(false);
    probes[0] = { poolId: "a", error: null };
    expect(readiness.readiness().ready).toBe(true);
  });
});

test("alive counts from the start of the daemon", async () => {
  const { readiness, clock } = readinessOf();
  await clock.advance(1_234);
  expect(readiness.health()).toEqual({ status: "ok", uptimeMs: 1_234, loopLagMs: 1.5 });
});

describe("the lag of the event loop", () => {
  /** Started, on a clock whose timers run late by as much as the loop was blocked. */
  function sampler() {
    const virtual = new VirtualClock();
    let blockedMs = 0;
    const lag = new LoopLag({
      nowMs: () => virtual.nowMs() + blockedMs,
      setTimer: (delayMs, fn) => virtual.setTimer(delayMs, fn),
      soon: (fn) => virtual.soon(fn),
      yieldTurn: () => virtual.yieldTurn(),
    });
    lag.start();
    const block = (ms: number) => {
      blockedMs += ms;
    };
    return { virtual, lag, block };
  }

  test("is unknown before the first second has passed", async () => {
    const { virtual, lag } = sampler();
    await virtual.advance(999);
    expect([lag.lastMs(), lag.maxMs()]).toEqual([null, null]);
    await virtual.advance(1);
    expect([lag.lastMs(), lag.maxMs()]).toEqual([0, 0]);
  });

  test("is how late the timer ran, and does not pile up", async () => {
    const { virtual, lag, block } = sampler();
    block(250);
    await virtual.advance(1_000);
    expect(lag.lastMs()).toBe(250);
    await virtual.advance(1_000);
    expect([lag.lastMs(), lag.maxMs()]).toEqual([0, 250]);
  });

  test("forgets its worst after fifteen samples", async () => {
    const { virtual, lag, block } = sampler();
    block(250);
    await virtual.advance(15_000);
    expect(lag.maxMs()).toBe(250);
    await virtual.advance(1_000);
    expect(lag.maxMs()).toBe(0);
  });

  test("takes one timer, and none once stopped", async () => {
    const { virtual, lag } = sampler();
    lag.start();
    await virtual.advance(5_000);
    expect(virtual.pendingTimers).toBe(1);
    lag.stop();
    lag.stop();
    expect(virtual.pendingTimers).toBe(0);
  });
});
