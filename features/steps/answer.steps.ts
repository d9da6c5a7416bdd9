/** Steps that say what somebody was answered, and how a task stands. */
import { expect } from "bun:test";
import { parse } from "yaml";
import type { Table } from "../support/gherkin.ts";
import { step } from "../support/steps.ts";
import type { World } from "../support/world.ts";

/** The member at `a.0.b`. */
function at(value: unknown, path: string): unknown {
  let found = value;
  for (const name of path.split("."))
    found =
      typeof found === "object" && found !== null ? (found as Record<string, unknown>)[name] : undefined;
  return found;
}

export function expectFields(value: unknown, table: Table): void {
  const expected = table.fields();
  const found = Object.fromEntries(Object.keys(expected).map((path) => [path, at(value, path)]));
  expect(found).toEqual(expected);
}

step<[number]>("the answer is {int}", (world, status) => {
  expect({ status: world.answer.status, body: world.answer.text }).toEqual({
    status,
    body: expect.anything(),
  });
});
step<[number, string]>("the answer is {int} {word}", (world, status, code) => {
  expect({ status: world.answer.status, code: world.answer.json.code }).toEqual({ status, code });
});
step<[Table]>("the answer says:", (world, table) => expectFields(world.answer.json, table));
step<[string]>("the message tells {string}", (world, part) => {
  expect(world.answer.json.message).toContain(part);
});
step<[string]>("the answer's text tells {string}", (world, part) => {
  expect(world.answer.text).toContain(part);
});
step<[string, string]>("the header {string} is {string}", (world, name, value) => {
  expect(world.answer.headers.get(name)).toBe(value);
});
step<[string, number]>("the header {string} is at most {int}", (world, name, most) => {
  const text = world.answer.headers.get(name);
  expect(text).toMatch(/^\d+(\.\d+)?$/);
  expect(Number(text)).toBeLessThanOrEqual(most);
});
step<[string]>("the answer has no header {string}", (world, name) => {
  expect(world.answer.headers.get(name)).toBeNull();
});
step<[string]>("the answer is of type {string}", (world, type) => {
  expect(world.answer.headers.get("content-type")?.split(";")[0]).toBe(type);
});
step<[string]>("the header {string} is a new UUID", (world, name) => {
  expect(world.answer.headers.get(name)).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
});
step<[string, string]>("the header {string} is the id of {string}", (world, name, task) => {
  expect(world.answer.headers.get(name)).toBe(world.task(task));
});
step("Retry-After is in whole seconds, rounded up, and X-Backoff-Ms says the same", (world) => {
  const { headers, json } = world.answer;
  const backoffMs = Number(headers.get("x-backoff-ms"));
  expect(backoffMs).toBeGreaterThan(0);
  expect(headers.get("retry-after")).toMatch(/^[1-9]\d*$/);
  expect(Number(headers.get("retry-after"))).toBe(Math.ceil(backoffMs / 1000));
  if (json.code !== undefined) expect(Math.ceil(Number(json.retry_after_ms))).toBe(backoffMs);
});
step("the answer asks to hold back", (world) => {
  expect(world.answer.json.backoff_ms).toBeGreaterThan(0);
});
step("the promised end is not before the promised start", (world) => {
  const { predicted_start_ms, predicted_end_ms } = world.answer.json;
  expect(Number(predicted_end_ms)).toBeGreaterThanOrEqual(Number(predicted_start_ms));
});
step<[number]>("the promised start is more than {int} ms away", (world, ms) => {
  expect(world.answer.json.predicted_start_ms).toBeGreaterThan(ms);
});
step<[number]>("the promised start is less than {int} ms away", (world, ms) => {
  expect(world.answer.json.predicted_start_ms).toBeNumber();
  expect(world.answer.json.predicted_start_ms).toBeLessThan(ms);
});
step("the deadline is likely met", (world) => {
  expect(world.answer.json.on_time_probability).toBeGreaterThan(0.5);
});
step<[string]>("the stream of {string} is where the answer says", async (world, name) => {
  expect(world.answer.json.stream_url).toBe(`/v1/tasks/${world.task(name)}/stream`);
  await world.open("alice", name, String(world.answer.json.stream_url));
  expect((await world.whole(name)).at(-1)?.type).toBe("end");
});
step("it is the same answer as before", (world) => {
  expect(world.answersBefore.at(-1)?.text).toBe(world.answer.text);
});
step("the answer names the contract's version", async (world) => {
  const file = Bun.file(new URL("../../contracts/openapi/control.yaml", import.meta.url));
  const contract = parse(await file.text()) as { readonly info: { readonly version: string } };
  expect(world.answer.json.api_version).toBe(contract.info.version);
});

// ---- lists ----

function expectListed(world: World, names: readonly string[]): void {
  const { tasks } = world.answer.json as { readonly tasks: readonly { readonly task_id: string }[] };
  expect(tasks.map(({ task_id }) => task_id)).toEqual(names.map((name) => world.task(name)));
}
step("the answer lists nothing", (world) => expectListed(world, []));
step<[string]>("the answer lists {string}", (world, name) => expectListed(world, [name]));
step<[string, string]>("the answer lists {string}, {string}", (world, ...names) =>
  expectListed(world, names),
);
step("there is no next page", (world) => {
  expect(world.answer.json.next_cursor).toBeNull();
});

// ---- how a task stands ----

step<[string, string]>("{string} is {state}", (world, name, state) => world.untilTask(name, state));
step("all of them are done", async (world) => {
  for (const name of world.tasks.keys()) await world.untilTask(name, "done");
});
step<[string, Table]>("{string} has the record:", async (world, name, table) => {
  expectFields(await world.view(name), table);
});
step<[string, string]>("{string} waits because {string}", async (world, name, part) => {
  expect((await world.view(name)).waiting_for).toContain(part);
});

async function expectStarted(world: World, names: readonly string[]): Promise<void> {
  const started: { name: string; ms: number }[] = [];
  for (const name of names) {
    await world.untilTask(name, "done");
    started.push({ name, ms: Number((await world.view(name)).started_ms) });
  }
  expect([...started].sort((a, b) => a.ms - b.ms).map(({ name }) => name)).toEqual([...names]);
}
step<[string, string, string, string]>(
  "they started in the order {string}, {string}, {string}, {string}",
  (world, ...names) => expectStarted(world, names),
);
step<[string, string, string, string, string]>(
  "they started in the order {string}, {string}, {string}, {string}, {string}",
  (world, ...names) => expectStarted(world, names),
);
step<[string, string, string]>(
  "{string}, {string}, {string} run on different replicas",
  async (world, ...names) => {
    const replicas = new Set<unknown>();
    for (const name of names) {
      await world.untilTask(name, "running");
      replicas.add((await world.view(name)).replica_id);
    }
    expect(replicas.size).toBe(names.length);
  },
);
