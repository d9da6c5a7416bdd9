/**
 * The same request, the same seed, the same text (ORCHD-TASK-11, ORCHD-ATT-2), on the mock engine: 256 seeds through
 * the whole daemon on a virtual clock; strict and not, beside others, on two replicas, in another daemon, and cut at
 * every place in turn by engines that crash or, after that, say something else. The mock's text depends on nothing
 * but prompt and seed: what can go wrong here is ours.
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { MockFault, PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { mockPool, profile, Rig, replay } from "./rig.ts";

const seeds = 256;
const tokens = 16;
const numbers = Array.from({ length: seeds }, (_, seed) => seed);
const greedy = { ...profile, temperature: 0 };

let rig: Rig;
afterEach(() => rig.stop());

interface Said {
  readonly text: string;
  readonly exact: unknown;
  readonly continuations: unknown;
  readonly replica: unknown;
}

const fault = (kind: MockFault["kind"], nth: number, afterTokens: number): MockFault => ({
  ...{ kind, nth, afterTokens, delayMs: 0 },
});
const pools = (faults: readonly MockFault[], more: Partial<PoolSpec> = {}): PoolSpec[] => [
  mockPool({
    queueCapacity: seeds,
    mock: { tokenMs: 1, prefillMsPerToken: 0, loadMs: 0, faults },
    ...more,
  }),
];

/** One task a seed, all submitted at once, in the order of the seeds. */
async function say(pool: readonly PoolSpec[], more: (seed: number) => Partial<TaskSpec>): Promise<Said[]> {
  rig = await new Rig({ pools: pool }).start();
  const submitted = numbers.map((seed) => rig.submit(rig.spec({ seed, maxTokens: tokens, ...more(seed) })));
  await rig.clock.advance(600_000);
  const said: Said[] = [];
  for (const one of submitted) {
    const events = replay((await one).record);
    const words = events.filter(({ event }) => event === "token");
    expect(words.map(({ data }) => data.i)).toEqual(Array.from({ length: tokens }, (_, at) => at));
    const { exact, continuations } = events.at(-1)?.data ?? {};
    const replica = events[0]?.data.replica_id;
    said.push({ text: words.map(({ data }) => data.t).join(""), exact, continuations, replica });
  }
  return said;
}

const strict = (): Partial<TaskSpec> => ({ determinism: "strict" });
const textsOf = (said: readonly Said[]): string[] => said.map(({ text }) => text);

async function reference(more: () => Partial<TaskSpec> = strict): Promise<Said[]> {
  const said = await say(pools([]), more);
  await rig.stop();
  for (const { exact, continuations } of said)
    expect({ exact, continuations }).toEqual({ exact: "yes", continuations: 0 });
  return said;
}

/** The nth generation is the nth task's or a later one: each crash is followed by one more generation. */
const crashes = (after: (nth: number) => number): MockFault[] =>
  numbers.map((at) => fault("crash", 2 * at + 1, after(2 * at + 1)));

describe("256 seeds on the mock engine", () => {
  test("say as many texts, and the same ones in another daemon", async () => {
    const first = textsOf(await reference());
    expect(new Set(first).size).toBe(seeds);
    expect(textsOf(await say(pools([]), strict))).toEqual(first);
  });

  test("strict or not, beside others, on two replicas", async () => {
    const expected = textsOf(await reference());
    const said = await say(pools([], { slots: 4, replicas: 2 }), (seed) =>
      seed % 4 === 0 ? strict() : { kvHint: seed % 2 === 0 ? "reuse" : "cold" },
    );
    expect(textsOf(said)).toEqual(expected);
    expect(new Set(said.map(({ replica }) => replica)).size).toBe(2);
  });

  test("strict, each cut once, at every place in turn: by replay, exact", async () => {
    const expected = textsOf(await reference());
    const said = await say(pools(crashes((nth) => (nth >> 1) % tokens)), strict);
    expect(textsOf(said)).toEqual(expected);
    for (const { exact } of said) expect(exact).toBe("yes");
    // A cut before the first token begins anew.
    const cut = said.filter(({ continuations }) => continuations === 1);
    expect(cut.length).toBe(seeds - seeds / tokens);
  });

  test("greedy, each cut once: by prefix, unverified, and on this engine the same", async () => {
    const more = () => ({ sampling: greedy });
    const expected = textsOf(await reference(more));
    const said = await say(pools(crashes((nth) => (nth >> 1) % tokens)), more);
    expect(textsOf(said)).toEqual(expected);
    const kinds = said.map(({ exact, continuations }) => `${continuations} ${exact}`);
    expect(new Set(kinds)).toEqual(new Set(["0 yes", "1 unverified"]));
  });

  test("strict, and every other replay says something else than was sent: not exact, and what was sent stays", async () => {
    const expected = textsOf(await reference());
    const faults: MockFault[] = [];
    let nth = 1;
    for (const at of numbers) {
      faults.push(fault("crash", nth++, 8 + (at % 8)));
      // Early enough to be noticed: an engine that says something else only behind what was sent is believed. The
      // generation after it goes on by prefix.
      if (at % 2 === 0) faults.push(fault("diverge", nth++, at % 4));
      nth++;
    }
    const said = await say(pools(faults), strict);
    for (const [at, { text, exact, continuations }] of said.entries()) {
      const whole = expected[at] ?? "";
      const kind = { exact, continuations, equal: text === whole };
      if (at % 2 === 1) expect(kind).toEqual({ exact: "yes", continuations: 1, equal: true });
      else expect(kind).toMatchObject({ exact: "no", continuations: 1 });
      expect(text.split(/(?<= )/)[0]).toBe(whole.split(/(?<= )/)[0] ?? "");
    }
    expect(said.filter(({ text }, at) => text !== expected[at]).length).toBeGreaterThan(seeds / 4);
  });
});
