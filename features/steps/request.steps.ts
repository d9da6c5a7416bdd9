/** Steps in which somebody asks the daemon for something. */
import { expect } from "bun:test";
import type { Table } from "../support/gherkin.ts";
import { step } from "../support/steps.ts";
import { type Person, tokensOf, type World } from "../support/world.ts";

type Fields = Record<string, unknown>;
export const story: Fields = { prompt: "Once upon a time", max_tokens: 3 };
const pinned = (pool: string): Fields => ({ placement: { mode: "pin", pin_pool_id: pool } });
const idOf = (json: Readonly<Record<string, unknown>>): string => String(json.task_id);

export async function submit(world: World, who: Person, name: string, fields: Fields): Promise<void> {
  const body = JSON.stringify(fields);
  const answer = await world.ask(who, "/v1/tasks", { method: "POST", body });
  if (answer.status === 202) world.tasks.set(name, { id: idOf(answer.json), body });
}

export async function submitAndStream(
  world: World,
  who: Person,
  name: string,
  fields: Fields,
): Promise<void> {
  const body = JSON.stringify(fields);
  const headers = { accept: "text/event-stream" };
  const stream = await world.open(who, name, "/v1/tasks", { method: "POST", body, headers });
  if (stream !== null) world.tasks.set(name, { id: stream.response.headers.get("x-task-id") ?? "", body });
}

step<[Person, string, Table]>("{who} submits {string}:", (world, who, name, table) =>
  submit(world, who, name, table.fields()),
);
step<[Person, string, string, Table]>(
  "{who} submits {string} to pool {string}:",
  (world, who, name, pool, table) => submit(world, who, name, { ...table.fields(), ...pinned(pool) }),
);
step<[Person, string, Table]>("{who} submits and streams {string}:", (world, who, name, table) =>
  submitAndStream(world, who, name, table.fields()),
);
step<[Person, string, string, Table]>(
  "{who} submits and streams {string} to pool {string}:",
  (world, who, name, pool, table) =>
    submitAndStream(world, who, name, { ...table.fields(), ...pinned(pool) }),
);
step<[Person, string, string]>(
  "{who} submits {string} of priority {priority}",
  (world, who, name, priority) => submit(world, who, name, { ...story, priority }),
);
step<[Person, string, string, string, Table]>(
  "{who} submits {string} with the header {string} {string}:",
  (world, who, name, header, value, table) => {
    world.nextHeaders = { [header.toLowerCase()]: value };
    return submit(world, who, name, table.fields());
  },
);
step<[Person, string]>("{who} submits the body:", async (world, who, body) => {
  await world.ask(who, "/v1/tasks", { method: "POST", body });
});

async function dryRun(world: World, who: Person, fields: Fields): Promise<void> {
  world.dryRunFields = fields;
  await world.ask(who, "/v1/tasks?dry_run=true", { method: "POST", body: JSON.stringify(fields) });
}
step<[Person, Table]>("{who} asks what would become of:", (world, who, table) =>
  dryRun(world, who, table.fields()),
);
step<[Person]>("{who} asks the same with the deadline that was told to be feasible", (world, who) => {
  const { earliest_feasible_ms } = world.answer.json.details as Fields;
  expect(earliest_feasible_ms).toBeNumber();
  return dryRun(world, who, { ...world.dryRunFields, deadline_ms: earliest_feasible_ms });
});

const bodyOf = (world: World, name: string): Fields =>
  JSON.parse(world.tasks.get(name)?.body ?? "null") as Fields;
step<[Person, string]>("{who} submits {string} again", (world, who, name) =>
  submit(world, who, name, bodyOf(world, name)),
);
step<[Person, string]>("{who} submits and streams {string} again", (world, who, name) =>
  submitAndStream(world, who, name, bodyOf(world, name)),
);
step<[Person, string, number, Table]>(
  "{who} submits {string} {int} times at once:",
  async (world, who, name, times, table) => {
    const fields = table.fields();
    await Promise.all(Array.from({ length: times }, () => submit(world, who, name, fields)));
  },
);

step<[Person, number, string, number]>(
  "{who} submits a prompt of {int} words as {string} with max_tokens {int}",
  (world, who, words, name, maxTokens) =>
    submit(world, who, name, { prompt: "word ".repeat(words).trim(), max_tokens: maxTokens }),
);
step<[Person, number, string, number, string]>(
  "{who} submits a prompt of {int} words as {string} with max_tokens {int} to pool {string}",
  (world, who, words, name, maxTokens, pool) =>
    submit(world, who, name, {
      prompt: "word ".repeat(words).trim(),
      max_tokens: maxTokens,
      ...pinned(pool),
    }),
);
step<[Person, string, string, string, string, string]>(
  "{who} submits 5 tasks {string}, {string}, {string}, {string}, {string}",
  async (world, who, ...names) => {
    for (const name of names) await submit(world, who, name, story);
  },
);
step<[Person, string, string, string]>(
  "{who} submits 3 long tasks {string}, {string}, {string}",
  async (world, who, ...names) => {
    for (const name of names) await submit(world, who, name, { ...story, max_tokens: 3000 });
  },
);
step<[Person, string, string, Table]>(
  "{who} submits and streams {string} with the seed of {string}:",
  async (world, who, name, first, table) => {
    const [started] = world.stream(first).events;
    expect(started?.data.seed).toBeNumber();
    await submitAndStream(world, who, name, { ...table.fields(), seed: started?.data.seed });
  },
);
step<[Person, string, string, number]>(
  "{who} submits and streams {string} that stops at what {string} said at token {int}",
  async (world, who, name, uncut, at) => {
    const body = bodyOf(world, uncut);
    const stop = tokensOf(await world.whole(uncut))[at];
    await submitAndStream(world, who, name, { ...body, sampling: { temperature: 0, stop: [stop] } });
  },
);

// ---- watching ----

const streamPath = (world: World, name: string): string => `/v1/tasks/${world.task(name)}/stream`;
const watch = async (world: World, who: Person, name: string, viewer: string, query = "", headers = {}) => {
  await world.open(who, viewer, streamPath(world, name) + query, { headers });
};
step<[Person, string]>("{who} watches {string}", (world, who, name) => watch(world, who, name, name));
step<[Person, string, string]>("{who} watches {string} as {string}", (world, who, name, viewer) =>
  watch(world, who, name, viewer),
);
step<[Person, string, string]>("{who} observes {string} as {string}", (world, who, name, viewer) =>
  watch(world, who, name, viewer, "?observe=1"),
);
step<[Person, string, string, number]>(
  "{who} watches {string} as {string} after event {int} by Last-Event-ID",
  (world, who, name, viewer, id) => watch(world, who, name, viewer, "", { "last-event-id": String(id) }),
);
step<[Person, string, string, number]>(
  "{who} watches {string} as {string} after event {int} by ?after",
  (world, who, name, viewer, id) => watch(world, who, name, viewer, `?after=${id}`),
);
step<[Person, string, string, number]>(
  "{who} watches {string} as {string} after event {int} by both",
  (world, who, name, viewer, id) =>
    watch(world, who, name, viewer, "?after=0", { "last-event-id": String(id) }),
);
step<[Person, string, string, string]>(
  "{who} watches {string} as {string} from where {string} stopped",
  (world, who, name, viewer, before) => {
    const last = world.stream(before).events.at(-1);
    return watch(world, who, name, viewer, "", { "last-event-id": String(last?.id) });
  },
);
step<[Person, string, string, string]>(
  "{who} watches {string} with Last-Event-ID {string} and query {string}",
  (world, who, name, header, query) =>
    watch(world, who, name, name, `?${query}`, header === "" ? {} : { "last-event-id": header }),
);
step<[string]>("the viewer {string} leaves", (world, viewer) => world.stream(viewer).close());

// ---- everything else ----

step<[Person, string]>("{who} cancels {string}", async (world, who, name) => {
  await world.ask(who, `/v1/tasks/${world.task(name)}/cancel`, { method: "POST" });
});
step<[Person, string]>("{who} reads {string}", async (world, who, name) => {
  await world.ask(who, `/v1/tasks/${world.task(name)}`);
});
step<[Person, string]>("{who} asks for {string}", async (world, who, path) => {
  await world.ask(who, path);
});
step<[Person, string, string, string]>(
  "{who} asks for {string} with the header {string} {string}",
  async (world, who, path, header, value) => {
    await world.ask(who, path, { headers: { [header.toLowerCase()]: value } });
  },
);
step<[Person, string, string]>("{who} sends {method} {string}", async (world, who, method, path) => {
  await world.ask(who, path, { method });
});
step<[Person, string, string, string]>(
  "{who} sends {method} {string} with the body:",
  async (world, who, method, path, body) => {
    await world.ask(who, path, { method, body });
  },
);
step<[Person, string, string, string, string]>(
  "{who} sends {method} {string} with the header {string} {string}",
  async (world, who, method, path, header, value) => {
    await world.ask(who, path, { method, headers: { [header.toLowerCase()]: value } });
  },
);
step<[Person]>("{who} asks for the next page", async (world, who) => {
  const { next_cursor } = world.answer.json;
  expect(next_cursor).toBeString();
  await world.ask(who, `/v1/tasks?limit=2&cursor=${String(next_cursor)}`);
});
step<[Person, string, string]>(
  "{who} follows the log of {string} as {string}",
  async (world, who, pool, viewer) => {
    await world.open(who, viewer, `/v1/pools/${pool}/logs?follow=1`);
  },
);
step<[Person, string]>("{who} asks for {string} again, with the ETag that came", async (world, who, path) => {
  const etag = world.answer.headers.get("etag") ?? "";
  expect(etag).toMatch(/^"[0-9a-f]{64}"$/);
  await world.ask(who, path, { headers: { "if-none-match": etag } });
});
/** Of the newest answer that had one. */
step<[Person, string]>("{who} asks for {string} with the ETag of before", async (world, who, path) => {
  const etag = [...world.answersBefore, world.answer]
    .findLast(({ headers }) => headers.has("etag"))
    ?.headers.get("etag");
  expect(etag).toBeString();
  await world.ask(who, path, { headers: { "if-none-match": etag ?? "" } });
});
