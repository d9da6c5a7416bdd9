/** When memory is given back: once after each stretch of work, never during one. */
import { expect, test } from "bun:test";
import { IdleTrim } from "../../src/services/idle-trim.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

test("once after the start and once after each stretch of work, never while a task is live", async () => {
  const clock = new VirtualClock();
  const activity = { live: 0, accepted: 0 };
  let trims = 0;
  const idle = new IdleTrim(
    clock,
    () => ({ ...activity }),
    () => {
      trims++;
    },
  );
  idle.start();
  await clock.advance(1_000);
  expect(trims).toBe(0);
  await clock.advance(10_000);
  expect(trims).toBe(1);
  Object.assign(activity, { live: 1, accepted: 1 });
  await clock.advance(60_000);
  expect(trims).toBe(1);
  Object.assign(activity, { live: 0, accepted: 3 });
  await clock.advance(1_000);
  expect(trims).toBe(1);
  await clock.advance(1_000);
  expect(trims).toBe(2);
  await clock.advance(60_000);
  expect(trims).toBe(2);
  idle.stop();
  expect(clock.pendingTimers).toBe(0);
});
