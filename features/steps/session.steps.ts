/** Steps about sessions, budgets and deadlines. */
import { expect } from "bun:test";
import { authSettings } from "../../test/support/running-daemon.ts";
import { waitFor } from "../../test/support/wait.ts";
import type { Table } from "../support/gherkin.ts";
import { step } from "../support/steps.ts";
import type { Person, World } from "../support/world.ts";
import { story, submit, submitAndStream } from "./request.steps.ts";

type Fields = Record<string, unknown>;

const inSession = (world: World, session: string, fields: Fields = {}): Fields => ({
  ...story,
  session_id: world.session(session),
  ...fields,
});
const path = (world: World, session: string): string => `/v1/sessions/${world.session(session)}`;

step<[Person, string, string]>(
  "{who} submits {string} in the session {string}",
  (world, who, name, session) => submit(world, who, name, inSession(world, session)),
);
step<[Person, string, string, Table]>(
  "{who} submits {string} in the session {string} with:",
  (world, who, name, session, table) => submit(world, who, name, inSession(world, session, table.fields())),
);
step<[Person, string, string, Table]>(
  "{who} submits and streams {string} in the session {string} with:",
  (world, who, name, session, table) =>
    submitAndStream(world, who, name, inSession(world, session, table.fields())),
);
for (const [end, status] of [
  ["taken", 202],
  ["refused", 429],
] as const)
  step<[Person, string, string]>(
    `{who} submits {string} in the session {string} until it is ${end}`,
    (world, who, name, session) =>
      waitFor(async () => {
        await submit(world, who, name, inSession(world, session));
        return world.answer.status === status;
      }),
  );
step<[Person, number, string, Table]>(
  "{who} submits {int} tasks at once in the session {string} with:",
  async (world, who, count, session, table) => {
    const fields = { ...inSession(world, session, table.fields()), max_tokens: undefined };
    await Promise.all(Array.from({ length: count }, (_, at) => submit(world, who, `${at}`, fields)));
  },
);
step<[number, number, string]>(
  "at most {int} of the answers are 202 and the others {int} {word}",
  (world, most, status, code) => {
    const answers = [...world.answersBefore, world.answer].filter(
      ({ json }) => "task_id" in json || "code" in json,
    );
    const taken = answers.filter((answer) => answer.status === 202);
    const refused = answers.filter((answer) => answer.status === status && answer.json.code === code);
    expect(taken.length).toBeGreaterThan(0);
    expect(taken.length).toBeLessThanOrEqual(most);
    expect(taken.length + refused.length).toBe(answers.length);
  },
);

step<[Person, string]>("{who} reads the session {string}", async (world, who, session) => {
  await world.ask(who, path(world, session));
});
step<[Person, string]>("{who} reads the session {string} until it is gone", (world, who, session) =>
  waitFor(async () => (await world.ask(who, path(world, session))).status === 404),
);
step<[Person, string]>("{who} deletes the session {string}", async (world, who, session) => {
  await world.ask(who, path(world, session), { method: "DELETE" });
});
step<[string]>("the answer tells the session {string}", (world, session) => {
  expect(world.answer.json.session_id).toBe(world.session(session));
});
step<[number]>("the session has at most {int} ms left", (world, ms) => {
  const left = Number(world.answer.json.ttl_ms_remaining);
  expect(left).toBeGreaterThan(0);
  expect(left).toBeLessThanOrEqual(ms);
});
step<[string, string, string]>(
  "{string}, {string}, {string} ran on the same replica",
  async (world, ...names) => {
    const views = await Promise.all(names.map((name) => world.view(name)));
    expect(views[0]?.replica_id).toBeString();
    expect(new Set(views.map(({ replica_id }) => replica_id)).size).toBe(1);
  },
);

// ---- budgets ----

step<[number, number]>(
  "its price is {float} for a thousand tokens in and {float} out",
  (world, into, out) => {
    world.pool().price = { per_1k_tokens_in: into, per_1k_tokens_out: out };
  },
);
step<[number, number]>("bob may spend {int} tokens in {int} ms", (world, tokens, windowMs) => {
  world.settings.auth = authSettings({}, { bob: { tokens, window_ms: windowMs } });
});
step<[number]>("the answer says to come back within {int} ms", (world, ms) => {
  const wait = Number(world.answer.json.retry_after_ms);
  expect(wait).toBeGreaterThan(0);
  expect(wait).toBeLessThanOrEqual(ms);
});
step<[string, string, number]>(
  "the metrics events of {string} tell a {word} of at most {int}",
  async (world, viewer, field, most) => {
    const told = (await world.whole(viewer)).filter(({ type }) => type === "metrics");
    expect(told.length).toBeGreaterThan(0);
    for (const { data } of told) {
      expect(data[field]).toBeNumber();
      expect(Number(data[field])).toBeLessThanOrEqual(most);
    }
  },
);

// ---- deadlines ----

step<[Person, string, Table]>(
  "{who} submits {string} with the deadline that was told to be feasible:",
  (world, who, name, table) => {
    const { earliest_feasible_ms } = world.answer.json.details as Fields;
    expect(earliest_feasible_ms).toBeNumber();
    return submit(world, who, name, { ...table.fields(), deadline_ms: earliest_feasible_ms });
  },
);
/** How long before its deadline the task ended, in milliseconds. */
async function earlyMs(world: World, name: string): Promise<number> {
  const { created_ms, finished_ms } = await world.view(name);
  expect(finished_ms).toBeNumber();
  const { deadline_ms } = JSON.parse(world.tasks.get(name)?.body ?? "{}") as Fields;
  return Number(created_ms) + Number(deadline_ms) - Number(finished_ms);
}
step<[string, string]>("{string} ended before {string}", async (world, one, other) => {
  const [first, second] = [await world.view(one), await world.view(other)];
  expect(Number(first.finished_ms)).toBeLessThan(Number(second.finished_ms));
});
step<[string]>("{string} ended before its deadline", async (world, name) => {
  expect(await earlyMs(world, name)).toBeGreaterThan(100);
});
step<[string]>("{string} ended after its deadline", async (world, name) => {
  expect(await earlyMs(world, name)).toBeLessThan(0);
});
