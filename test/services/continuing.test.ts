/**
 * Tasks that go on where their engine died (continued-generation.ts through the dispatcher): the text is that of an
 * uncut run, numbered without gaps, charged once, and `end` says how sure that is.
 */
import { afterEach, expect, test } from "bun:test";
import type { MockFault, PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { mockPool, profile, Rig, told } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const fault = (kind: MockFault["kind"], nth: number | null, afterTokens: number): MockFault => ({
  kind,
  nth,
  afterTokens,
  delayMs: 0,
});
const pools = (faults: readonly MockFault[], more: Partial<PoolSpec> = {}): PoolSpec[] => [
  mockPool({ mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 0, faults }, ...more }),
];
const greedy = { ...profile, temperature: 0 };

async function run(faults: readonly MockFault[], more: Partial<TaskSpec>): Promise<TaskRecord> {
  rig = await new Rig({ pools: pools(faults) }).start();
  const submitted = rig.submit(rig.spec({ maxTokens: 24, ...more }));
  await rig.clock.advance(20_000);
  return (await submitted).record;
}

async function uncut(more: Partial<TaskSpec>): Promise<string> {
  const { text } = told(await run([], more));
  await rig.stop();
  expect(text.length).toBeGreaterThan(20);
  return text;
}

test.each([
  ["greedy, by prefix", { sampling: greedy }, "unverified"],
  ["sampled and strict, by replay", { determinism: "strict" }, "yes"],
] as const)("%s: cut three times, the text is that of the uncut run", async (_, more, exact) => {
  const whole = await uncut(more);
  const cuts = [fault("crash", 1, 3), fault("crash", 2, 5), fault("crash", 3, 9)];
  const record = await run(cuts, more);
  const { text, numbers, started, last } = told(record);
  expect(text).toBe(whole);
  expect(numbers).toEqual(numbers.map((_n, at) => at));
  expect(started).toBe(1);
  expect(last).toMatchObject({ event: "end", data: { exact, tokens_out: 24, finish_reason: "length" } });
  expect(last?.data.continuations).toBeGreaterThan(0);
});

test("sampled without strict goes on and says that it is not the uncut text", async () => {
  const record = await run([fault("crash", 1, 7)], {});
  expect(told(record).last).toMatchObject({
    event: "end",
    data: { exact: "no", continuations: 1, tokens_out: 24 },
  });
});

test("a watchdog cuts, too", async () => {
  const whole = await uncut({ sampling: greedy });
  const record = await run([fault("stall", 1, 6)], { sampling: greedy });
  expect(told(record)).toMatchObject({ text: whole, last: { event: "end" } });
});

test("an engine that says something else after the cut: what was sent stays, and exact is no", async () => {
  const record = await run([fault("crash", 1, 8), fault("diverge", 2, 3)], { determinism: "strict" });
  const { numbers, last } = told(record);
  expect(numbers).toEqual(numbers.map((_n, at) => at));
  expect(last).toMatchObject({ event: "end", data: { exact: "no" } });
});

test("a task that crashes every engine fails after its attempts, beside others that end well", async () => {
  rig = await new Rig({ pools: pools([fault("crash", null, 0)]) }).start();
  const submitted = rig.submit(rig.spec());
  await rig.clock.advance(60_000);
  const { record } = await submitted;
  expect(told(record).last).toMatchObject({ event: "error", data: { code: "WORKER_RESET" } });
  expect(record.attempts).toBe(3);
});

test.each([
  ["a prefix", { sampling: greedy }],
  ["a replay", { determinism: "strict" }],
] as const)(
  "speed is learnt from what the engine did itself, not from what it went on with: %s",
  async (_, more) => {
    const record = await run([fault("crash", 1, 190)], { maxTokens: 200, ...more });
    expect(told(record).last).toMatchObject({ event: "end", data: { tokens_out: 200, continuations: 1 } });
    const { decodeTps } = rig.dispatcher.forecast.speed(record.spec.poolId);
    expect(decodeTps).toBeGreaterThan(90);
    expect(decodeTps).toBeLessThan(110);
  },
);
