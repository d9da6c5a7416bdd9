/**
 * Many tasks at once on one session, in 100 random orders: the budget for 100 tasks is never overshot at any step,
 * and nothing stays reserved. The figures are kept here a second time, from what was admitted and settled.
 */
import { expect, test } from "bun:test";
import { SeededEntropy } from "../support/virtual-clock.ts";
import { atMost, SessionsBench, sessionA, tokens } from "./sessions-bench.ts";

const tokensEach = 300;
const limit = 100 * tokensEach;

interface Live {
  readonly taskId: string;
  readonly reserved: number;
}

function run(seed: number): { admitted: number; refused: number } {
  const random = new SeededEntropy(seed);
  const between = (low: number, high: number) => low + (random.uint32() % (high - low + 1));
  const bench = new SessionsBench({ turnsMax: 1000, budget: atMost(limit) });
  const live: Live[] = [];
  let [spent, reserved, admitted, refused] = [0, 0, 0, 0];
  /** What the ledger says is left is what these figures say. */
  const audit = () => {
    expect(spent + reserved).toBeLessThanOrEqual(limit);
    const left = bench.left();
    expect(left === undefined ? limit : left).toBe(limit - spent - reserved);
  };
  const end = () => {
    const one = live.splice(between(0, live.length - 1), 1)[0];
    if (one === undefined) return;
    // done: mostly less than was reserved; failed: part of it; canceled before it began: nothing.
    const used = [one.reserved, between(0, one.reserved), 0][between(0, 2)] ?? 0;
    bench.sessions.settle(one.taskId, tokens(used), bench.nowMs);
    reserved -= one.reserved;
    spent += used;
  };
  const begin = () => {
    const wanted = between(1, 2 * tokensEach);
    const spec = bench.spec();
    const refusal = bench.sessions.check(spec, tokens(wanted), bench.nowMs);
    expect(refusal === null).toBe(spent + reserved + wanted <= limit);
    if (refusal !== null) {
      refused += 1;
      expect(() => bench.sessions.admit(spec, tokens(wanted), bench.nowMs)).toThrow(refusal.message);
      return;
    }
    bench.sessions.admit(spec, tokens(wanted), bench.nowMs);
    if (between(0, 19) === 0) {
      bench.sessions.undo(spec.taskId);
      return;
    }
    admitted += 1;
    reserved += wanted;
    live.push({ taskId: spec.taskId, reserved: wanted });
  };
  for (let step = 0; step < 500; step++) {
    if (live.length > 0 && between(0, 2) === 0) end();
    else begin();
    audit();
  }
  while (live.length > 0) {
    end();
    audit();
  }
  expect(reserved).toBe(0);
  expect(bench.sessions.find(sessionA, bench.nowMs)?.turns).toBe(admitted);
  return { admitted, refused };
}

test("a token budget for 100 tasks under 500 interleaved submits, ends and cancels, 100 seeds", () => {
  let [admitted, refused] = [0, 0];
  for (let seed = 1; seed <= 100; seed++) {
    try {
      const one = run(seed);
      admitted += one.admitted;
      refused += one.refused;
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    }
  }
  // Both happen, and often: else the property would say nothing.
  expect(admitted).toBeGreaterThan(5_000);
  expect(refused).toBeGreaterThan(5_000);
});
