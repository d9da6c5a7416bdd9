/** When a server elsewhere counts as gone: by time, without anybody's call, and never for one slip (virtual clock). */
import { expect, test } from "bun:test";
import { HealthWatch } from "../../src/infra/engines/health-watch.ts";
import { EngineError } from "../../src/ports/engine.ts";
import { failureOf, never } from "../support/engine.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

function watched() {
  const clock = new VirtualClock();
  const state = { there: true, hangs: false, asked: 0 };
  const gone: string[] = [];
  const probe = async (signal: AbortSignal): Promise<void> => {
    state.asked += 1;
    if (state.hangs)
      await new Promise((_, reject) =>
        signal.addEventListener("abort", () => reject(new EngineError("aborted", "cut"))),
      );
    if (!state.there) throw new EngineError("unreachable", "nobody there");
  };
  const watch = new HealthWatch(clock, probe, (why) => gone.push(why));
  return { clock, state, gone, watch };
}

test("three looks in a row that fail, five seconds apart", async () => {
  const { clock, state, gone, watch } = watched();
  watch.start();
  await clock.advance(20_000);
  expect([state.asked, gone]).toEqual([4, []]);
  state.there = false;
  await clock.advance(10_000);
  state.there = true;
  await clock.advance(5_000);
  state.there = false;
  await clock.advance(10_000);
  expect(gone).toEqual([]);
  await clock.advance(5_000);
  expect(gone).toEqual(["nobody there"]);
  expect(clock.pendingTimers).toBe(0);
});

test("one that takes the question and never answers is gone as well", async () => {
  const { clock, state, gone, watch } = watched();
  watch.start();
  state.hangs = true;
  await clock.advance(3 * (5_000 + 2_000) - 1);
  expect(gone).toEqual([]);
  await clock.advance(1);
  expect(gone).toEqual(["no answer in 2000 ms"]);
  expect(clock.pendingTimers).toBe(0);
});

test("without a doubt nobody waits; with one an answer is waited for, once for all", async () => {
  const { clock, state, gone, watch } = watched();
  await watch.confirm(never);
  expect(state.asked).toBe(0);
  watch.doubt();
  state.there = false;
  const waits = Promise.all([watch.confirm(never), watch.confirm(never)]);
  await clock.advance(400);
  state.there = true;
  await clock.advance(200);
  await waits;
  expect([state.asked, gone]).toEqual([2, []]);
  await watch.confirm(never);
  expect(state.asked).toBe(2);
});

test("who waits for one that is gone hears it, and so does the owner", async () => {
  const { clock, state, gone, watch } = watched();
  watch.start();
  watch.doubt();
  state.there = false;
  const wait = failureOf(watch.confirm(never));
  await clock.advance(1_000);
  expect(await wait).toBe("unreachable");
  expect(gone).toEqual(["nobody there"]);
  expect(await failureOf(watch.confirm(never))).toBe("aborted");
  expect(clock.pendingTimers).toBe(0);
});

test("after close nothing is asked or told", async () => {
  const { clock, state, gone, watch } = watched();
  watch.start();
  state.there = false;
  await clock.advance(12_000);
  watch.close();
  await clock.advance(60_000);
  expect([state.asked, gone, clock.pendingTimers]).toEqual([2, [], 0]);
});
