/**
 * An engine that says something else than it said before it died (ORCHD-ATT-2), over many seeds: `exact` is never yes,
 * what was sent stays, and nothing is numbered twice. The mock engine differs from its k-th token on, within what
 * was sent, so that a comparison can see it.
 */
import { afterEach, expect, test } from "bun:test";
import type { MockFault } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { Chance } from "../engine/support.ts";
import { mockPool, profile, Rig, replay } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const seeds = Array.from({ length: 250 }, (_, at) => at + 1);
const tokens = 40;
/** So many differing tokens are never all the same by chance: each has about ten alternatives. */
const comparedMin = 6;
const greedy = { ...profile, temperature: 0 };

interface Run {
  readonly pieces: readonly unknown[];
  readonly numbers: readonly unknown[];
  readonly started: number;
  readonly end: Readonly<Record<string, unknown>> | undefined;
}

async function run(faults: readonly MockFault[], spec: Partial<TaskSpec>): Promise<Run> {
  rig = await new Rig({
    pools: [mockPool({ mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 0, faults } })],
  }).start();
  const submitted = rig.submit(rig.spec({ maxTokens: tokens, ...spec }));
  await rig.clock.advance(60_000);
  const events = replay((await submitted).record);
  const said = events.filter(({ event }) => event === "token");
  await rig.stop();
  return {
    pieces: said.map(({ data }) => data.t),
    numbers: said.map(({ data }) => data.i),
    started: events.filter(({ event }) => event === "started").length,
    end: events.at(-1)?.event === "end" ? events.at(-1)?.data : undefined,
  };
}

const fault = (kind: MockFault["kind"], nth: number, afterTokens: number): MockFault => ({
  kind,
  nth,
  afterTokens,
  delayMs: 0,
});

test("a replay that differs: exact is no, over 250 seeds", async () => {
  let differed = 0;
  for (const seed of seeds) {
    const chance = new Chance(seed);
    const sent = chance.between(comparedMin + 1, tokens - 8);
    const prefix = chance.between(0, sent - comparedMin);
    const faults = [fault("crash", 1, sent), fault("diverge", 2, prefix)];
    // Cut once more while it goes on behind what was sent, and made to differ again.
    if (chance.unit() < 0.5)
      faults.push(fault("crash", 3, chance.between(1, 6)), fault("diverge", 4, chance.between(0, 3)));
    const spec: Partial<TaskSpec> = { determinism: "strict", seed, sampling: profile };
    const whole = await run([], spec);
    const { pieces, numbers, started, end } = await run(faults, spec);
    expect({ seed, exact: end?.exact }).toEqual({ seed, exact: "no" });
    expect({ seed, sent: pieces.slice(0, sent) }).toEqual({ seed, sent: whole.pieces.slice(0, sent) });
    expect(numbers).toEqual(numbers.map((_number, at) => at));
    expect([started, pieces.length]).toEqual([1, tokens]);
    if (pieces.join("") !== whole.pieces.join("")) differed++;
  }
  // It goes on with another seed than the one before: that it says the same again would be chance.
  expect(differed).toBeGreaterThan(seeds.length / 2);
}, 60_000);

test("a prefix behind which something else comes: exact is never yes, over 250 seeds", async () => {
  for (const seed of seeds) {
    const chance = new Chance(seed);
    const sampled = chance.unit() < 0.5;
    const sent = chance.between(1, tokens - 8);
    const faults = [fault("crash", 1, sent), fault("diverge", 2, chance.between(0, 6))];
    const spec: Partial<TaskSpec> = { seed, sampling: sampled ? profile : greedy };
    const { pieces, numbers, started, end } = await run(faults, spec);
    expect({ seed, exact: end?.exact }).toEqual({ seed, exact: sampled ? "no" : "unverified" });
    expect(numbers).toEqual(numbers.map((_number, at) => at));
    expect([started, pieces.length]).toEqual([1, tokens]);
  }
}, 60_000);
