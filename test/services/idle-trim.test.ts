/** When memory is given back: once after the start and once after each stretch of work, never during one. */
import { expect, test } from "bun:test";
import { type Activity, IdleTrim } from "../../src/services/idle-trim.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

function newBench() {
  const clock = new VirtualClock();
  const bench = { clock, activity: { live: 0, accepted: 0 } as Activity, trims: 0 };
  const idle = new IdleTrim(
    clock,
    () => bench.activity,
    () => {
      bench.trims++;
    },
  );
  idle.start();
  return { bench, idle };
}

test("soon after a quiet start, then not again before there was work", async () => {
  const { bench, idle } = newBench();
  await bench.clock.advance(1_000);
  expect(bench.trims).toBe(0);
  await bench.clock.advance(1_000);
  expect(bench.trims).toBe(1);
  await bench.clock.advance(600_000);
  expect(bench.trims).toBe(1);
  idle.stop();
  expect(bench.clock.pendingTimers).toBe(0);
});

test("a minute after work, never while a task is live", async () => {
  const { bench } = newBench();
  bench.activity = { live: 1, accepted: 1 };
  await bench.clock.advance(600_000);
  expect(bench.trims).toBe(0);
  bench.activity = { live: 0, accepted: 3 };
  await bench.clock.advance(60_000);
  expect(bench.trims).toBe(0);
  await bench.clock.advance(1_000);
  expect(bench.trims).toBe(1);
});

test("short tasks between two looks count as work", async () => {
  const { bench } = newBench();
  for (let accepted = 1; accepted <= 100; accepted++) {
    bench.activity = { live: 0, accepted };
    await bench.clock.advance(1_000);
  }
  expect(bench.trims).toBe(0);
});
