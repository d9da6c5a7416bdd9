/**
 * Cut and continued on the real llama-server, at the level of its client: what the planner (domain/continuation.ts)
 * relies on. Every cut of a greedy answer, text beyond ASCII and chat prompts, characters of several tokens, stop
 * strings and grammars, seeds.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  type EngineBuild,
  nameIds,
  planContinuation,
  type SentPiece,
  tokensOfEnded,
  unnamedId,
  unnamedTexts,
} from "../../src/domain/continuation.ts";
import { ContinuedOutput } from "../../src/domain/continued-output.ts";
import type { EngineClient, GenerateResult } from "../../src/ports/engine.ts";
import type { Tokenizes } from "../conformance/engine.ts";
import {
  never,
  RecordingSink,
  type RequestOptions,
  request,
  type StartedEngine,
  startLlamaCpp,
} from "../support/engine.ts";

const build: EngineBuild = {
  engine: "llamacpp",
  version: "b",
  model: "demo",
  modelStamp: null,
  settings: "s",
  device: "cpu",
};
const tokensMax = 64;
/** No word of the model has them: it says them byte by byte. */
const strange = "😀 日本 ✓ ";

interface Run {
  readonly pieces: readonly SentPiece[];
  readonly text: string;
  readonly result: GenerateResult;
}

describe("cut and continued on llama.cpp", () => {
  let engine: StartedEngine;
  let client: EngineClient & Tokenizes;
  beforeAll(async () => {
    engine = await startLlamaCpp({ slots: 2, ctx: 2048 });
    client = engine.client as EngineClient & Tokenizes;
  });
  afterAll(() => engine.stop());

  const run = async (options: RequestOptions): Promise<Run> => {
    const sink = new RecordingSink();
    const result = await client.generate(request({ maxTokens: tokensMax, ...options }), sink, never);
    const pieces = sink.pieces.map((text, at) => ({ text, ids: sink.ids[at] ?? [] }));
    return { pieces, text: sink.text, result };
  };

  /** As an attempt runner does it: plan, tokenize where the plan says so, generate, and through the output. */
  const goOn = async (prompt: string, options: RequestOptions, whole: Run, cut: number, slot = cut % 2) => {
    const before = request({ maxTokens: tokensMax, ...options });
    const texts = unnamedTexts(whole.pieces.slice(0, cut));
    const tokens = new Map<string, number[]>();
    for (const text of texts) tokens.set(text, [...(await client.tokenize(text, false, never))]);
    const sent = nameIds(whole.pieces.slice(0, cut), (text) => tokens.get(text) ?? null);
    const plan = planContinuation({
      spec: { ...before, determinism: before.sampling.temperature > 0 ? "strict" : "best_effort" },
      ...{ sent, first: build, next: build, exact: "yes" },
    });
    if (plan.way !== "prefix" && plan.way !== "replay")
      return { plan, text: whole.text, tokensOut: tokensMax };
    const promptIds = await client.tokenize(prompt, true, never);
    const textOrIds =
      plan.way === "replay" ? prompt : plan.by === "ids" ? [...promptIds, ...plan.ids] : prompt + plan.text;
    let text = sent.map((piece) => piece.text).join("");
    const output = new ContinuedOutput(plan, before.sampling.stop, (more) => {
      text += more;
    });
    const { pieces, result } = await run({
      ...options,
      ...{ prompt: textOrIds, maxTokens: plan.maxTokens, seed: plan.seed, slot },
    });
    for (const piece of pieces) output.take(piece.text, piece.ids);
    expect(output.end()).toBe("going");
    const { tokensOut } = tokensOfEnded(plan, promptIds.length, result);
    return { plan, text, tokensOut };
  };

  const everyCut = async (prompt: string, options: RequestOptions = {}, last = 40) => {
    const whole = await run({ prompt, ...options });
    const differing: number[] = [];
    const ways = new Set<string>();
    for (let cut = 1; cut <= Math.min(last, whole.pieces.length); cut++) {
      const { plan, text, tokensOut } = await goOn(prompt, { prompt, ...options }, whole, cut);
      ways.add(plan.way === "prefix" ? plan.by : plan.way);
      if (text !== whole.text || tokensOut !== whole.result.tokensOut) differing.push(cut);
    }
    return { whole, differing, ways: [...ways] };
  };

  test("greedy, by ids, at every cut: the uncut text", async () => {
    const { whole, differing, ways } = await everyCut("Once upon a time");
    expect(whole.result.tokensOut).toBe(tokensMax);
    expect(differing).toEqual([]);
    expect(ways).toEqual(["ids"]);
  });

  test("prompts and answers beyond ASCII, and one from messages", async () => {
    const chat = await client.applyTemplate(
      [
        { role: "system", content: "Über «Zoë»." },
        { role: "user", content: "Hello 東京 🙂" },
      ],
      never,
    );
    for (const prompt of ["😀😀😀 ", "Zoë said «", chat]) {
      const { whole, differing, ways } = await everyCut(prompt, {}, 24);
      expect(whole.text).not.toBe("");
      expect({ prompt, differing, ways }).toEqual({ prompt, differing: [], ways: ["ids"] });
    }
  });

  test("characters of several tokens: the ids that the engine keeps back are unnamed, counted, and found", async () => {
    const sampling = { grammar: `root ::= "${strange}" "${strange}"` };
    const { pieces, result } = await run({ prompt: "x", sampling, maxTokens: 200 });
    const ids = pieces.flatMap((piece) => piece.ids);
    expect(pieces.map(({ text }) => text).join("")).toBe(strange + strange);
    expect(ids).toContain(unnamedId);
    // The end of the text is a token without a piece.
    expect(result.tokensOut - ids.length).toBeLessThanOrEqual(1);
    const tokens = new Map<string, number[]>();
    for (const text of unnamedTexts(pieces))
      tokens.set(text, [...(await client.tokenize(text, false, never))]);
    const named = nameIds(pieces, (text) => tokens.get(text) ?? null);
    expect(named.flatMap((piece) => piece.ids)).not.toContain(unnamedId);
    // The same answer once more, by those ids: all of it is prompt, and what follows is what an uncut run says.
    const promptIds = await client.tokenize("x", true, never);
    const byIds = await run({ prompt: [...promptIds, ...named.flatMap((piece) => piece.ids)], maxTokens: 8 });
    const byText = await run({ prompt: `x${strange}${strange}`, maxTokens: 8 });
    expect(byIds.text.isWellFormed()).toBe(true);
    expect(byIds.text).not.toContain("\ufffd");
    expect(byIds.text).toBe(byText.text);
  });

  test("a stop string behind, at and across every cut", async () => {
    const whole = (await run({ prompt: "Once upon a time" })).text;
    for (const [from, to] of [
      [40, 47],
      [51, 60],
    ] as const) {
      const stop = [whole.slice(from, to), whole.slice(from + 2, from + 4).concat("\u0001")];
      const { whole: stopped, differing, ways } = await everyCut("Once upon a time", { sampling: { stop } });
      expect(stopped.result.finishReason).toBe("stop");
      expect({ from, differing, ways }).toEqual({ from, differing: [], ways: ["ids"] });
    }
  });

  test("the last word lost behind a stop string: it is found again, nothing past it", async () => {
    const prompt = "Once upon a time";
    const { text } = await run({ prompt });
    const stop = [text.slice(30, 38)];
    const stopped = await run({ prompt, sampling: { stop } });
    const again = await goOn(prompt, { prompt, sampling: { stop } }, stopped, stopped.pieces.length);
    expect(again.text).toBe(stopped.text);
    expect(again.tokensOut).toBe(stopped.result.tokensOut);
  });

  test("a grammar, and seeds under strict: by replay, the same text", async () => {
    const grammar = 'root ::= ("the " | "sea " | "wind ")+';
    const bound = await everyCut("x", { sampling: { grammar }, maxTokens: 24 }, 6);
    expect({ differing: bound.differing, ways: bound.ways }).toEqual({ differing: [], ways: ["replay"] });
    for (const seed of [1, 2]) {
      const options = { seed, sampling: { temperature: 0.8 }, cachePrompt: false };
      const { differing, ways } = await everyCut("Once upon a time", options, 6);
      expect({ seed, differing, ways }).toEqual({ seed, differing: [], ways: ["replay"] });
    }
  });

  test("greedy beside another stream, whose tokens share the batch: by ids at cuts all over", async () => {
    const whole = await run({ prompt: "Two friends" });
    const differing: number[] = [];
    const beside = new AbortController();
    const noise = client
      .generate(request({ prompt: "The wind", slot: 1, maxTokens: 1500 }), new RecordingSink(), beside.signal)
      .catch(() => null);
    for (let cut = 2; cut <= 40; cut += 2) {
      const { text } = await goOn("Two friends", { prompt: "Two friends" }, whole, cut, 0);
      if (text !== whole.text) differing.push(cut);
    }
    beside.abort();
    await noise;
    await client.awaitSlotFree(1, never);
    expect(differing).toEqual([]);
  });
});
