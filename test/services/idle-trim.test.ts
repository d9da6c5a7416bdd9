/** When memory is given back: soon after the start and once in each quiet half minute, never while there is work. */
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

test("soon after a quiet start, then once in each quiet half minute", async () => {
  const { bench, idle } = newBench();
  await bench.clock.advance(1_000);
  expect(bench.trims).toBe(0);
  await bench.clock.advance(1_000);
  expect(bench.trims).toBe(1);
  await bench.clock.advance(29_000);
  expect(bench.trims).toBe(1);
  await bench.clock.advance(1_000);
  expect(bench.trims).toBe(2);
  await bench.clock.advance(600_000);
  expect(bench.trims).toBe(22);
  idle.stop();
  expect(bench.clock.pendingTimers).toBe(0);
});

test("half a minute after work, never while a task is live", async () => {
  const { bench } = newBench();
  bench.activity = { live: 1, accepted: 1 };
  await bench.clock.advance(600_000);
  expect(bench.trims).toBe(0);
  bench.activity = { live: 0, accepted: 3 };
  await bench.clock.advance(30_000);
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
