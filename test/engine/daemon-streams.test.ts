/**
 * What the daemon streams is what the engine says: on the real engine, byte for byte, whatever stands between.
 * The reference is a llama-server alone, a process of its own on the same model file, asked directly.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import {
  health,
  type Json,
  patienceMs,
  type Reference,
  slotsBusy,
  startReference,
  submit,
  submitAndWatch,
  type Viewer,
  watch,
} from "./support.ts";

let daemon: RunningDaemon;
let alone: Reference;
const references: Reference[] = [];

async function aloneOn(model: string, args: readonly string[] = []): Promise<Reference> {
  const reference = await startReference(model, args);
  references.push(reference);
  return reference;
}

const ctx = 512;

beforeAll(async () => {
  [daemon, alone] = await Promise.all([
    startDaemon({
      settings: {
        pools: [
          enginePool("demo", testModel("demo"), { slots: 4, ctx: 2048 }),
          enginePool("small", testModel("demo"), { slots: 1, ctx, preload: false }),
          enginePool("embedding", testModel("embedding"), { slots: 2 }),
          enginePool("rerank", testModel("rerank"), { slots: 2 }),
        ],
      },
    }),
    aloneOn(testModel("demo"), ["-c", "2048"]),
  ]);
}, 60_000);

afterAll(async () => {
  await Promise.all(references.map((reference) => reference.stop()));
  await endDaemons();
}, 60_000);

const corpus = readFileSync(join(import.meta.dir, "../../scripts/model/corpus.txt"), "utf8");
const words = corpus.match(/\b[a-z]{2,}\b/g) ?? [];
const prompts: readonly string[] = [
  "The harbour",
  "Once upon a time",
  "The baker said farewell",
  "🙂🙂 the boats 🦑 come home ⚓",
  "海辺の町 and the naïve café → θάλασσα",
  'She said: "no\n\tline"\\ {"a": [1, 2]}\r\n',
  "a",
  " the old sea and  two spaces ",
  words.slice(100, 130).join(" "),
  // Its words are a token each, more or less: about 300.
  words.slice(0, 310).join(" "),
];
const greedy = { temperature: 0 };
const sampled = { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05 };
const pin = (poolId: string): Json => ({ placement: { mode: "pin", pin_pool_id: poolId } });

/** The whole stream of a task that must end well. */
async function streamOf(body: Json): Promise<Viewer> {
  const viewer = await (await submitAndWatch(daemon, body)).finished();
  expect(viewer.terminal.type).toBe("end");
  return viewer;
}

describe("text", () => {
  test("greedy: equals the engine alone, for every prompt", async () => {
    for (const prompt of prompts) {
      const reference = await alone.complete({ prompt, n_predict: 60, ...greedy });
      const { text, events, terminal } = await streamOf({
        prompt,
        max_tokens: 60,
        sampling: greedy,
        ...pin("demo"),
      });
      expect(text).toBe(reference);
      expect(events[0]?.type).toBe("started");
      const { tokens } = await alone.post<{ tokens: number[] }>("/tokenize", {
        content: prompt,
        add_special: true,
      });
      expect(terminal.data.tokens_in).toBe(tokens.length);
    }
    const long = await alone.post<{ tokens: number[] }>("/tokenize", { content: prompts.at(-1) });
    expect(long.tokens.length).toBeGreaterThanOrEqual(300);
  }, 60_000);

  test("sampled with a seed: equals the engine alone, and another seed does not", async () => {
    const texts = new Set<string>();
    for (const seed of [0, 7, 20_261_121, 2 ** 32 - 2]) {
      const prompt = "The lamp in the window";
      const reference = await alone.complete({ prompt, n_predict: 80, seed, ...sampled });
      const { text, events } = await streamOf({
        prompt,
        max_tokens: 80,
        seed,
        sampling: { temperature: 0.8 },
        ...pin("demo"),
      });
      expect(text).toBe(reference);
      expect(events[0]?.data.seed).toBe(seed);
      texts.add(text);
    }
    expect(texts.size).toBe(4);
  }, 30_000);

  test("without a seed: the one that `started` reports repeats it", async () => {
    const body = { prompt: "A card with", max_tokens: 40, ...pin("demo") };
    const first = await streamOf(body);
    const again = await streamOf({ ...body, seed: first.events[0]?.data.seed });
    expect(again.text).toBe(first.text);
  });

  test("a chat: equals the engine's own chat answer", async () => {
    const messages = [
      { role: "system", content: "Be kind 🙂." },
      { role: "user", content: "What does the wind bring?" },
    ];
    const reference = await alone.post<{ choices: { message: { content: string } }[] }>(
      "/v1/chat/completions",
      { messages, max_tokens: 40, ...greedy },
    );
    const { text } = await streamOf({ messages, max_tokens: 40, sampling: greedy, ...pin("demo") });
    expect(text.trim()).toBe(reference.choices[0]?.message.content.trim() ?? "");
    const { prompt } = await alone.post<{ prompt: string }>("/apply-template", { messages });
    expect(text).toBe(await alone.complete({ prompt, n_predict: 40, ...greedy }));
  });

  test("16 at once through 4 slots: each equals its serial reference", async () => {
    const bodies = Array.from({ length: 16 }, (_, at) => ({
      prompt: `${words.slice(at * 7, at * 7 + 5 + at * 3).join(" ")} ${at % 2 === 0 ? "🙂" : ""}`,
      n: 30 + at * 5,
      seed: 1000 + at,
      sampling: at % 3 === 0 ? sampled : greedy,
      priority: at % 4 === 0 ? "batch" : "interactive",
    }));
    const serial: string[] = [];
    for (const { prompt, n, seed, sampling } of bodies)
      serial.push(await alone.complete({ prompt, n_predict: n, seed, ...sampling }));
    const viewers = await Promise.all(
      bodies.map(({ n, ...body }) => submitAndWatch(daemon, { ...body, max_tokens: n, ...pin("demo") })),
    );
    for (const viewer of viewers) await viewer.finished();
    expect(viewers.map(({ text }) => text)).toEqual(serial);
    expect(viewers.filter(({ terminal }) => terminal.type !== "end")).toEqual([]);
    const waited = viewers.filter(({ events }) => Number(events[0]?.data.queue_position) > 0);
    expect(waited.length).toBeGreaterThan(3);
    expect(await slotsBusy(daemon, "demo")).toBe(0);
  }, 30_000);

  test("POST and GET, late viewers and those that return: the same events", async () => {
    const accepted = await submit(daemon, {
      prompt: "The clock",
      max_tokens: 200,
      sampling: greedy,
      ...pin("demo"),
    });
    expect(accepted.status).toBe(202);
    const taskId = String(accepted.body.task_id);
    const live = await watch(daemon, taskId);
    await live.hasTokens(20);
    const returned = await watch(daemon, taskId, "?after=10");
    await live.finished();
    await returned.finished();
    const late = await (await watch(daemon, taskId)).finished();
    expect(late.events).toEqual(live.events);
    expect(returned.events).toEqual(live.events.filter(({ id }) => id > 10));
    expect(live.text).toBe(await alone.complete({ prompt: "The clock", n_predict: 200, ...greedy }));
  });
});

describe("sampling options", () => {
  test("a stop string ends the text before it", async () => {
    const body = { prompt: "The harbour", ...greedy };
    const whole = await alone.complete({ ...body, n_predict: 120 });
    const stop = whole.slice(60, 67);
    const reference = await alone.complete({ ...body, n_predict: 120, stop: [stop] });
    const viewer = await streamOf({
      prompt: body.prompt,
      max_tokens: 120,
      sampling: { ...greedy, stop: [stop, "never in there"] },
      ...pin("demo"),
    });
    expect(viewer.text).toBe(reference);
    expect(viewer.text).toBe(whole.slice(0, whole.indexOf(stop)));
    expect(viewer.outcome).toBe("stop");
  });

  test("what a grammar allows no more of ends it", async () => {
    const viewer = await streamOf({
      prompt: "The end of",
      max_tokens: 400,
      sampling: { ...greedy, grammar: 'root ::= " the " [a-z]+' },
      ...pin("demo"),
    });
    expect(viewer.outcome).toBe("stop");
    expect(viewer.text).toMatch(/^ the [a-z]+$/);
  });

  test("a grammar and a JSON Schema are kept, and give what the engine alone gives", async () => {
    const grammar = 'root ::= ("yes" | "no") " " [0-9] [0-9] [0-9]';
    const prompt = "The answer is";
    const byGrammar = await streamOf({
      prompt,
      max_tokens: 30,
      sampling: { ...greedy, grammar },
      ...pin("demo"),
    });
    expect(byGrammar.text).toMatch(/^(yes|no) [0-9]{3}$/);
    expect(byGrammar.text).toBe(await alone.complete({ prompt, n_predict: 30, grammar, ...greedy }));

    const json_schema = {
      type: "object",
      properties: { name: { enum: ["Ada", "Mira"] }, count: { type: "integer", minimum: 0, maximum: 9 } },
      required: ["name", "count"],
      additionalProperties: false,
    };
    const bySchema = await streamOf({
      prompt,
      max_tokens: 200,
      sampling: { ...greedy, json_schema },
      ...pin("demo"),
    });
    const { name, count } = JSON.parse(bySchema.text) as { name: string; count: number };
    expect(["Ada", "Mira"]).toContain(name);
    expect(Number.isInteger(count) && count >= 0 && count <= 9).toBe(true);
    expect(bySchema.text).toBe(await alone.complete({ prompt, n_predict: 200, json_schema, ...greedy }));
  });

  test("a grammar that the engine refuses is the client's mistake", async () => {
    const body = { prompt: "a", sampling: { grammar: "root ::= nothing-of-this-name" }, ...pin("demo") };
    const viewer = await (await submitAndWatch(daemon, body)).finished();
    expect(viewer.outcome).toBe("INVALID_PARAMS");
    expect(viewer.terminal.data.retriable).toBe(false);
    expect(await slotsBusy(daemon, "demo")).toBe(0);
  });
});

describe("other workloads", () => {
  test("embeddings equal the engine's own", async () => {
    const engine = await aloneOn(testModel("embedding"), ["--embeddings", "--pooling", "mean"]);
    const inputs = ["The boats come home to the harbour.", "Ada reads a letter. 🙂", "海"];
    const { data } = await engine.post<{ data: { embedding: number[] }[] }>("/v1/embeddings", {
      input: inputs,
    });
    const { terminal, tokens } = await streamOf({ inputs });
    expect(tokens).toEqual([]);
    expect(terminal.data.result).toEqual({ embeddings: data.map(({ embedding }) => embedding) });
  });

  test("rerank scores equal the engine's own, the best first", async () => {
    const engine = await aloneOn(testModel("rerank"), ["--rerank"]);
    const query = "Who mends the clock in the workshop?";
    const documents = ["The baker sells warm rolls.", "The clock in the workshop.", "Ada mended the clock."];
    const { results } = await engine.post<{ results: { index: number; relevance_score: number }[] }>(
      "/v1/rerank",
      { query, documents },
    );
    const expected = results
      .map(({ index, relevance_score }) => ({ index, score: relevance_score }))
      .sort((a, b) => b.score - a.score);
    const { terminal } = await streamOf({ query, inputs: documents });
    expect(terminal.data.result).toEqual({ results: expected });
  });
});

describe("a prompt that does not fit with max_tokens", () => {
  // Far more bytes than tokens: only the engine's tokenizer can tell.
  const fits = { prompt: words.slice(0, 200).join(" "), max_tokens: 40, sampling: greedy, ...pin("small") };
  const tooLong = { prompt: prompts.at(-1) ?? "", max_tokens: 300, ...pin("small") };
  const message = /^prompt \(\d+ tokens\) and max_tokens \(300\) exceed the context of 512 tokens: shorten/;

  test("is refused before the model is loaded, at the latest by its first attempt", async () => {
    expect((await health(daemon, "small")).state).toBe("stopped");
    const atOnce = await submit(daemon, { ...tooLong, max_tokens: ctx });
    expect(atOnce.status).toBe(400);
    expect(atOnce.body).toMatchObject({ code: "INVALID_PARAMS", retriable: false });
    expect((await health(daemon, "small")).state).toBe("stopped");

    const [refused, taken] = await Promise.all([
      submitAndWatch(daemon, tooLong),
      submitAndWatch(daemon, fits),
    ]);
    await refused.finished(patienceMs);
    expect(refused.events.map(({ type }) => type)).toEqual(["error"]);
    expect(refused.outcome).toBe("INVALID_PARAMS");
    expect(String(refused.terminal.data.message)).toMatch(message);
    await taken.finished();
    expect(taken.text).toBe(await alone.complete({ prompt: fits.prompt, n_predict: 40, ...greedy }));
  }, 30_000);

  test("and after it is loaded, at once", async () => {
    expect((await health(daemon, "small")).ready).toBe(true);
    const { status, body } = await submit(daemon, tooLong);
    expect(status).toBe(400);
    expect(body).toMatchObject({ code: "INVALID_PARAMS", retriable: false, pool_id: "small" });
    expect(String(body.message)).toMatch(message);
    expect((await streamOf(fits)).text).not.toBe("");
  });
});
