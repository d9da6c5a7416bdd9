/** Continuation over the pure engine of continuation-model.ts: any cuts, the same text; and the planner's table. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  type ContinuationInput,
  type ContinuationPlan,
  nameIds,
  planAfterDivergence,
  planContinuation,
  type SentPiece,
  tokensIn,
  tokensOfEnded,
  unnamedTexts,
} from "../../src/domain/continuation.ts";
import { ContinuedOutput } from "../../src/domain/continued-output.ts";
import { CutStops, openStopUnits } from "../../src/domain/stop-strings.ts";
import type { Sampling } from "../../src/domain/task.ts";
import { build, type StoryOptions, story } from "./continuation-model.ts";

const greedy: Sampling = {
  temperature: 0,
  topP: 1,
  topK: 40,
  minP: 0,
  repeatPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  stop: [],
  grammar: null,
  jsonSchema: null,
};
type Spec = StoryOptions["spec"];
const spec = (sampling: Partial<Sampling> = {}, more: Partial<Spec> = {}): Spec => ({
  sampling: { ...greedy, ...sampling },
  seed: 7,
  determinism: "best_effort",
  maxTokens: 64,
  ...more,
});
const pieces = (...texts: string[]): SentPiece[] => texts.map((text, at) => ({ text, ids: [500 + at] }));
const other = { ...build, version: "2" };
const input = (more: Partial<ContinuationInput> = {}): ContinuationInput => ({
  spec: spec(),
  sent: pieces(" a", " b", " c"),
  first: build,
  next: build,
  exact: "yes",
  ...more,
});

const stops = fc.subarray(["ab", "top", " stop", "é.", " the old", "日", "b\n"], { maxLength: 3 });
const someSpec = fc
  .record({ seed: fc.nat(0xffff), maxTokens: fc.integer({ min: 1, max: 60 }), stop: stops })
  .map(({ seed, maxTokens, stop }) => spec({ stop }, { seed, maxTokens }));
const cuts = fc.array(fc.integer({ min: 0, max: 40 }), { maxLength: 6 });
const prompt = fc.constantFrom("", "Once", " the river", "日本", "x\n");
const runs = { numRuns: 1500 };

describe("cut anywhere, any number of times", () => {
  const warm = (one: Spec, determinism: "strict" | "best_effort"): Spec => ({
    ...one,
    determinism,
    sampling: { ...one.sampling, temperature: 0.8 },
  });
  const same = (options: StoryOptions): ReturnType<typeof story> => {
    const whole = story({ ...options, cuts: [] });
    const cut = story(options);
    expect(cut.text).toBe(whole.text);
    expect(cut.finishReason).toBe(whole.finishReason);
    expect(cut.tokensOut).toBe(whole.tokensOut);
    expect(cut.tokensIn).toBe(whole.tokensIn);
    expect(cut.pieces.every(({ text }) => text !== "" && text.isWellFormed())).toBe(true);
    return cut;
  };

  test("greedy: the text, the count and the reason of the uncut run", () => {
    const ways = new Set<string>();
    let texts = 0;
    fc.assert(
      fc.property(someSpec, prompt, cuts, (one, words, at) => {
        const options = { spec: one, prompt: words, cuts: at };
        const cut = story(options);
        for (const way of cut.ways) ways.add(way);
        // By text the tokens may be others; then the same text is not promised (see below).
        if (cut.ways.includes("prefix by text")) texts++;
        else expect(same(options).exact).not.toBe("no");
      }),
      runs,
    );
    expect([...ways]).toContain("prefix by ids");
    expect(texts).toBeLessThan(runs.numRuns / 3);
  });

  test("sampled, strict: the same, and exact", () => {
    fc.assert(
      fc.property(someSpec, prompt, cuts, (one, words, at) => {
        const cut = same({ spec: warm(one, "strict"), prompt: words, cuts: at });
        expect(cut.exact).toBe("yes");
        expect(cut.ways.every((way) => ["fresh", "replay", "finished"].includes(way))).toBe(true);
      }),
      runs,
    );
  });

  test("a grammar, greedy or sampled: the same, by replay", () => {
    fc.assert(
      fc.property(someSpec, fc.boolean(), cuts, (one, sampled, at) => {
        const sampling = { ...one.sampling, grammar: "pairs", temperature: sampled ? 0.8 : 0 };
        const cut = same({ spec: { ...one, sampling }, prompt: "x", cuts: at });
        expect(cut.exact).toBe("yes");
        expect(cut.text).not.toContain(".");
        expect(cut.ways).not.toContain("prefix by ids");
      }),
      runs,
    );
  });

  test("sampled, best effort, and ids that stay unnamed: within its bounds, never called exact", () => {
    fc.assert(
      fc.property(someSpec, prompt, cuts, fc.boolean(), (one, words, at, isWarm) => {
        const of = isWarm ? warm(one, "best_effort") : one;
        const cut = story({ spec: of, prompt: words, cuts: at, namesIds: false });
        expect(cut.pieces.every(({ text }) => text !== "" && text.isWellFormed())).toBe(true);
        expect(cut.tokensOut).toBeLessThanOrEqual(of.maxTokens);
        if (cut.ways.some((way) => way.startsWith("prefix"))) expect(cut.exact).not.toBe("yes");
      }),
      runs,
    );
  });

  test("another build in between: never more than no", () => {
    fc.assert(
      fc.property(someSpec, prompt, cuts, (one, words, at) => {
        const cut = story({ spec: one, prompt: words, cuts: [5, ...at], builds: [build, other] });
        if (cut.ways.some((way) => way.startsWith("prefix"))) expect(cut.exact).toBe("no");
      }),
      runs,
    );
  });

  test("an engine that says something else the second time: never yes", () => {
    fc.assert(
      fc.property(someSpec, fc.integer({ min: 0, max: 6 }), cuts, (one, after, more) => {
        const salt = (attempt: number) => ({ salt: attempt * 7919, after });
        const strict = warm({ ...one, sampling: { ...one.sampling, stop: [] } }, "strict");
        const first = story({ spec: strict, prompt: "x", cuts: [] });
        const options = { spec: strict, prompt: "x", cuts: [after + 12, ...more], salt };
        const cut = story(options);
        const said = first.pieces.slice(0, after + 12);
        expect(cut.text.startsWith(said.map(({ text }) => text).join(""))).toBe(true);
        if (first.pieces.length <= after + 12) return;
        expect(cut.ways[1]).toBe("replay");
        expect(cut.exact).toBe("no");
      }),
      runs,
    );
  });
});

describe("the plan", () => {
  const way = (more: Partial<ContinuationInput>): string => {
    const plan = planContinuation(input(more));
    return `${plan.way === "prefix" ? plan.by : plan.way} ${plan.exact}`;
  };
  const strict = spec({ temperature: 1 }, { determinism: "strict" });

  test("by who decodes, on which build, of what", () => {
    expect(way({ sent: [] })).toBe("fresh yes");
    expect(way({})).toBe("ids unverified");
    expect(way({ next: other })).toBe("ids no");
    expect(way({ next: { ...build, model: "sha256:other" } })).toBe("text no");
    expect(way({ first: { ...build, model: null }, next: { ...build, model: null } })).toBe("text no");
    expect(way({ spec: spec({ temperature: 1 }) })).toBe("ids no");
    expect(way({ spec: strict })).toBe("replay yes");
    expect(way({ spec: strict, exact: "unverified" })).toBe("replay unverified");
    expect(way({ spec: strict, exact: "no" })).toBe("ids no");
    expect(way({ spec: strict, next: other })).toBe("ids no");
    expect(way({ spec: spec({ grammar: "root ::= x" }) })).toBe("replay yes");
    expect(way({ spec: spec({ jsonSchema: {} }), next: other })).toBe("replay no");
    expect(way({ spec: spec({}, { maxTokens: 3 }) })).toBe("finished yes");
    expect(way({ spec: spec({ stop: [" c d"] }) })).toBe("replay yes");
    expect(way({ spec: spec({ stop: [" c d"] }), next: other })).toBe("ids no");
  });

  test("prefix by ids: what is left of max_tokens; with stop strings the last piece is said again", () => {
    expect(planContinuation(input())).toMatchObject({
      ...{ ids: [500, 501, 502], maxTokens: 61, tokensBefore: 3, expected: "", seed: 7 },
    });
    expect(planContinuation(input({ spec: spec({ stop: ["zz"] }) }))).toMatchObject({
      ...{ ids: [500, 501], maxTokens: 62, tokensBefore: 2, expected: " c", expectedIds: [502] },
    });
    const drawn = planContinuation(input({ spec: spec({ temperature: 1 }) })) as { seed: number };
    expect(drawn.seed).not.toBe(7);
    expect(drawn.seed >>> 0).toBe(drawn.seed);
  });

  test("ids that are missing: a short tail is said again, else by text", () => {
    const tail = [...pieces(" a", " b"), { text: " c", ids: [] }];
    expect(planContinuation(input({ sent: tail }))).toMatchObject({
      by: "ids",
      ids: [500, 501],
      expected: " c",
    });
    expect(planContinuation(input({ sent: [{ text: "日", ids: [-1, -1, 9] }] }))).toMatchObject({
      ...{ by: "ids", ids: [], expected: "日", maxTokens: 64 },
    });
    const early = [{ text: " x", ids: [] }, ...pieces(..."abcdefghij")];
    expect(planContinuation(input({ sent: early }))).toMatchObject({
      ...{ by: "text", text: " xabcdefghij", tokensBefore: 11, maxTokens: 53 },
    });
  });

  test("after a divergence: prefix without anything said again; a grammar cannot go on", () => {
    const after = (more: Partial<ContinuationInput>): ContinuationPlan => planAfterDivergence(input(more));
    expect(after({ spec: spec({ stop: ["zz"] }) })).toMatchObject({ by: "ids", expected: "", exact: "no" });
    expect(after({ spec: spec({ grammar: "root ::= x" }) })).toMatchObject({
      way: "impossible",
      exact: "no",
    });
    expect(after({ spec: spec({}, { maxTokens: 3 }) })).toMatchObject({ way: "finished", exact: "no" });
  });
});

describe("an engine elsewhere", () => {
  const wayOf = (more: Partial<ContinuationInput>) => {
    const plan = planContinuation(input(more));
    return [plan.way, "by" in plan ? plan.by : null, plan.exact];
  };

  test("that tokenizes nothing goes on by text, whatever ids it named", () => {
    expect(wayOf({})).toEqual(["prefix", "ids", "unverified"]);
    expect(wayOf({ resumes: "text" })).toEqual(["prefix", "text", "unverified"]);
    // A short tail without ids is not said again either: that needs the prompt's own ids.
    const sent = [{ text: " a", ids: [] }];
    expect(wayOf({ sent })).toEqual(["prefix", "ids", "unverified"]);
    expect(wayOf({ sent, resumes: "text" })).toEqual(["prefix", "text", "unverified"]);
    const warm = spec({ temperature: 0.8 });
    expect(wayOf({ spec: warm, resumes: "text" })).toEqual(["prefix", "text", "no"]);
  });

  test("that cannot go on behind a beginning says it again, and where it does not there is no other way", () => {
    const warm = spec({ temperature: 0.8 });
    expect(wayOf({ resumes: "never" })).toEqual(["replay", null, "yes"]);
    expect(wayOf({ spec: warm, resumes: "never" })).toEqual(["replay", null, "yes"]);
    expect(wayOf({ next: other, resumes: "never" })).toEqual(["replay", null, "no"]);
    expect(wayOf({ exact: "no", resumes: "never" })).toEqual(["replay", null, "no"]);
    expect(planAfterDivergence(input({ resumes: "never" }))).toMatchObject({
      way: "impossible",
      exact: "no",
    });
    expect(planAfterDivergence(input({ resumes: "text" }))).toMatchObject({ way: "prefix", by: "text" });
  });

  test("whose last word alone was lost is not asked again", () => {
    const done = { spec: spec({}, { maxTokens: 3 }), resumes: "never" } as const;
    expect(wayOf(done)).toEqual(["finished", null, "yes"]);
  });
});

describe("unnamed ids", () => {
  const sent = [{ text: "é", ids: [-1, 9] }, ...pieces("x"), { text: "é", ids: [-1, 9] }];
  test("are filled where the engine's tokens agree with what is known", () => {
    expect(unnamedTexts(sent)).toEqual(["é"]);
    expect(nameIds(sent, () => [8, 9]).map(({ ids }) => ids)).toEqual([[8, 9], [500], [8, 9]]);
    expect(nameIds(sent, () => [3, 8, 9])[0]?.ids).toEqual([8, 9]);
    for (const wrong of [[8, 7], [9], [1, 3, 8, 9], []])
      expect(nameIds(sent, () => wrong)[0]?.ids).toEqual([-1, 9]);
    expect(nameIds(sent, () => null)).toEqual(sent);
    expect(tokensIn([...sent, { text: "?", ids: [] }])).toBe(6);
  });
});

describe("the output", () => {
  const run = (plan: { expected?: string; ids?: number[]; openText?: string }, stop: string[] = []) => {
    const out: SentPiece[] = [];
    const output = new ContinuedOutput(
      { expected: plan.expected ?? "", expectedIds: plan.ids ?? null, openText: plan.openText ?? "" },
      stop,
      (text, ids) => out.push({ text, ids }),
    );
    return { out, output };
  };

  test("compares text, not pieces; what goes beyond is new, with the ids that are new", () => {
    const { out, output } = run({ expected: " the old", ids: [1, 2] });
    expect(output.take(" th", [])).toBe("going");
    expect(output.repeating).toBe(true);
    expect(output.take("e old river", [9])).toBe("going");
    expect(out).toEqual([{ text: " river", ids: [] }]);
    const named = run({ expected: "ab", ids: [1, 2] });
    named.output.take("abc", [1, 2, 3]);
    expect(named.out).toEqual([{ text: "c", ids: [3] }]);
    expect(named.output.end()).toBe("going");
    expect(named.output.tokensSaid).toBe(3);
  });

  test("the first difference ends it, and so does an end too early", () => {
    const { out, output } = run({ expected: "abc" });
    output.take("ab", [1]);
    expect(output.take("xyz", [2])).toBe("diverged");
    expect(output.take("c", [3])).toBe("diverged");
    expect(out).toEqual([]);
    const early = run({ expected: "abc" });
    early.output.take("ab", [1]);
    expect(early.output.end()).toBe("diverged");
  });

  test("a stop string that began before the cut ends it; what only looked like one goes out whole", () => {
    const found = run({ openText: "it is a st" }, ["stop", "zz"]);
    expect(found.output.take("o", [1])).toBe("going");
    expect(found.output.take("pping", [2])).toBe("stopped");
    expect(found.out).toEqual([]);
    const passed = run({ openText: "it is a st" }, ["stop"]);
    passed.output.take("o", [1]);
    passed.output.take("ne", [2]);
    passed.output.take("s", [3]);
    expect(passed.out).toEqual([
      { text: "one", ids: [1, 2] },
      { text: "s", ids: [3] },
    ]);
    const ended = run({ openText: "st" }, ["stop"]);
    ended.output.take("o", [1]);
    expect(ended.output.end()).toBe("going");
    expect(ended.out).toEqual([{ text: "o", ids: [1] }]);
  });

  test("the guard finds what a search of the whole text finds (property)", () => {
    const letters = fc.string({ unit: fc.constantFrom("a", "b"), maxLength: 8 });
    const some = fc.array(fc.string({ unit: fc.constantFrom("a", "b"), minLength: 1, maxLength: 4 }), {
      minLength: 1,
      maxLength: 3,
    });
    fc.assert(
      fc.property(letters, fc.array(letters.filter((one) => one !== "")), some, (sent, after, stop) => {
        const { out, output } = run({ openText: sent === "" ? "-" : sent }, stop);
        for (const [at, text] of after.entries()) output.take(text, [at]);
        const state = output.end();
        const text = out.map((piece) => piece.text).join("");
        const whole = sent + after.join("");
        // The guard's part: occurrences that begin before the cut and end behind it.
        const straddles = stop.some((one) => {
          for (let at = Math.max(0, sent.length - one.length + 1); at < sent.length; at++)
            if (whole.startsWith(one, at)) return true;
          return false;
        });
        expect(state).toBe(straddles ? "stopped" : "going");
        if (!straddles) expect(text).toBe(after.join(""));
      }),
      runs,
    );
  });

  test("an open stop string is the longest one at the end", () => {
    expect(openStopUnits("so st", ["stop", "top"])).toBe(2);
    expect(openStopUnits("so", ["stop"])).toBe(0);
    expect(openStopUnits("stop", ["stop"])).toBe(0);
    expect(new CutStops("x", ["stop"]).open).toBe(false);
  });
});

describe("what counts once", () => {
  test("tokens: a prefix on top of what lies before it, a replay itself", () => {
    const done = { tokensIn: 13, tokensOut: 61 };
    expect(tokensOfEnded({ tokensBefore: 3 }, 10, done)).toEqual({ tokensIn: 10, tokensOut: 64 });
    expect(tokensOfEnded({ tokensBefore: 3 }, null, done)).toEqual({ tokensIn: 10, tokensOut: 64 });
    expect(tokensOfEnded(null, null, done)).toEqual(done);
  });
});
