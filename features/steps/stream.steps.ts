/** Steps that say what viewers see. */
import { expect } from "bun:test";
import type { SseEvent } from "../../test/support/sse-client.ts";
import type { Table } from "../support/gherkin.ts";
import { step } from "../support/steps.ts";
import { tokensOf, type World } from "../support/world.ts";
import { expectFields } from "./answer.steps.ts";

const countOf = (events: readonly SseEvent[]): number => tokensOf(events).length;

step<[string, number]>("{string} has received {int} token(s)", async (world, viewer, count) => {
  await world.stream(viewer).come(`token ${count}`, (events) => countOf(events) >= count);
});
step<[string, number]>("{string} has received {int} comments", (world, viewer, count) =>
  world.stream(viewer).untilComments(count),
);

step<[string]>("the stream {string} ends with end", async (world, viewer) => {
  expect((await world.whole(viewer)).at(-1)).toMatchObject({ type: "end" });
});
step<[string, number]>("{string} came in fewer than {int} pieces", async (world, viewer, count) => {
  await world.whole(viewer);
  expect(world.stream(viewer).pieces).toBeLessThan(count);
});
step<[string, string]>("the stream {string} ends with error {word}", async (world, viewer, code) => {
  expect((await world.whole(viewer)).at(-1)).toMatchObject({ type: "error", data: { code } });
});
step<[string, number]>(
  "the stream {string} after event {int} ends with end",
  async (world, viewer, after) => {
    expect((await world.whole(viewer, after)).at(-1)).toMatchObject({ type: "end" });
  },
);
step<[string, number]>("the stream {string} has {int} tokens", async (world, viewer, count) => {
  expect(countOf(await world.stream(viewer).all())).toBe(count);
});
step<[string, string, Table]>("the {word} event of {string} says:", async (world, type, viewer, table) => {
  const event = (await world.stream(viewer).all()).find((one) => one.type === type);
  expect(event).toBeDefined();
  expectFields(event?.data, table);
});
step<[string, string]>("the streams {string} and {string} are the same", async (world, one, other) => {
  expect(await world.whole(other)).toEqual(await world.whole(one));
});
step<[string, string]>(
  "the streams {string} and {string} have the same tokens",
  async (world, one, other) => {
    expect(tokensOf(await world.whole(other))).toEqual(tokensOf(await world.whole(one)));
  },
);
step<[string, string]>(
  "the streams {string} and {string} have different tokens",
  async (world, one, other) => {
    expect(tokensOf(await world.whole(other))).not.toEqual(tokensOf(await world.whole(one)));
  },
);
step<[string, string, number]>(
  "{string} and then {string} are one whole stream of {int} tokens",
  async (world, first, rest, count) => {
    await world.stream(rest).all();
    const joined = [...world.stream(first).events, ...world.stream(rest).events];
    expect(joined.map(({ id }) => id)).toEqual(joined.map((_, index) => index));
    expect(countOf(joined)).toBe(count);
    expect(joined.at(-1)?.type).toBe("end");
  },
);
step<[string, number]>(
  "the stream {string} started once and counts {int} tokens without gaps",
  async (world, viewer, count) => {
    const events = await world.whole(viewer);
    expect(events.map(({ id }) => id)).toEqual(events.map((_, index) => index));
    expect(events.filter(({ type }) => type === "started").length).toBe(1);
    const tokens = events.filter(({ type }) => type === "token");
    expect(tokens.map(({ data }) => data.i)).toEqual(Array.from({ length: count }, (_, index) => index));
  },
);

step<[string]>("{string} makes no more tokens", async (world, name) => {
  const { tokens_out } = await world.view(name);
  // The slot is free: the engine is done with it, whatever it still had to say.
  const { pool_id } = await world.view(name);
  await world.untilIdle(String(pool_id));
  expect((await world.view(name)).tokens_out).toBe(tokens_out);
});
step<[string, string]>(
  "the stream {string} has all tokens that {string} made",
  async (world, viewer, name) => {
    expect(countOf(await world.whole(viewer))).toBe(Number((await world.view(name)).tokens_out));
  },
);
step<[string, number]>("the prompt of {string} had more than {int} tokens", (world, viewer, count) => {
  expect(world.stream(viewer).events[0]?.data.tokens_in).toBeGreaterThan(count);
});
step<[string]>("the stream {string} has metrics between its tokens", async (world, viewer) => {
  const events = await world.whole(viewer);
  const metrics = events.filter(({ type }) => type === "metrics");
  expect(metrics.length).toBeGreaterThan(0);
  for (const { id, data } of metrics) {
    const before = events.filter((event) => event.type === "token" && event.id < id);
    expect(data.tokens_out).toBe(before.length);
    expect(data.tokens_per_second).toBeGreaterThan(0);
    expect(data.on_time_probability).toBeNumber();
  }
});
step<[string]>("every token of {string} is whole characters", async (world, viewer) => {
  for (const token of tokensOf(await world.whole(viewer))) {
    expect(token.isWellFormed()).toBe(true);
    expect(token).not.toContain("\ufffd");
  }
});
step<[string, string]>("{string} has said {string}", async (world, viewer, text) => {
  expect(tokensOf(await world.whole(viewer)).join("")).toContain(text);
});
step<[string, string]>("{string} said what {string} said before that", async (world, cut, uncut) => {
  const whole = tokensOf(await world.whole(uncut)).join("");
  const said = tokensOf(await world.whole(cut)).join("");
  expect(whole.startsWith(said)).toBe(true);
  expect(said.length).toBeGreaterThan(0);
  expect(said.length).toBeLessThan(whole.length);
});

// ---- results ----

async function resultOf<T>(world: World, viewer: string): Promise<T> {
  return (await world.whole(viewer)).at(-1)?.data.result as T;
}
const dot = (a: readonly number[], b: readonly number[]): number =>
  a.reduce((sum, value, index) => sum + value * (b[index] ?? 0), 0);

step<[string, number, number, number]>(
  "{string} brought {int} unit vectors, of which {int} and {int} are nearest",
  async (world, viewer, count, one, other) => {
    const { embeddings } = await resultOf<{ embeddings: readonly number[][] }>(world, viewer);
    expect(embeddings.length).toBe(count);
    for (const vector of embeddings) expect(dot(vector, vector)).toBeCloseTo(1, 5);
    const pairs = embeddings.flatMap((a, i) =>
      embeddings.slice(i + 1).map((b, j) => ({ pair: [i + 1, i + j + 2], near: dot(a, b) })),
    );
    expect(pairs.sort((a, b) => b.near - a.near)[0]?.pair).toEqual([one, other]);
  },
);
step<[string, number]>("{string} ranked input {int} first", async (world, viewer, index) => {
  const { results } = await resultOf<{ results: readonly { index: number; score: number }[] }>(world, viewer);
  expect(results[0]?.index).toBe(index);
  const scores = results.map(({ score }) => score);
  expect(scores).toEqual([...scores].sort((a, b) => b - a));
});
