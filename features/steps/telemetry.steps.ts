/** Steps that read /metrics and the log. */
import { expect } from "bun:test";
import { parseExposition, type Sample } from "../../test/support/prom-parse.ts";
import { waitFor } from "../../test/support/wait.ts";
import { jsonOrText, type Table } from "../support/gherkin.ts";
import { step } from "../support/steps.ts";
import { tokensOf, type World } from "../support/world.ts";
import { expectFields } from "./answer.steps.ts";

/** The sum of the samples that carry these labels: `name{label="value"}`. */
async function metric(world: World, series: string): Promise<number> {
  const [, name = "", labels = ""] = /^(\w+)(?:\{(.*)\})?$/.exec(series) ?? [];
  const wanted = [...labels.matchAll(/(\w+)="([^"]*)"/g)].map(
    ([, label = "", value]) => [label, value] as const,
  );
  const families = parseExposition((await world.look("a stranger", "/metrics")).text);
  const samples: Sample[] = [...families.values()].flatMap((family) => family.samples);
  return samples
    .filter(
      (sample) => sample.name === name && wanted.every(([label, value]) => sample.labels[label] === value),
    )
    .reduce((sum, { value }) => sum + value, 0);
}

/** What is told at the end of a task may be counted a turn after its viewers saw the end. */
const expectMetric = (world: World, series: string, value: number): Promise<unknown> =>
  waitFor(async () => (await metric(world, series)) === value, 5_000, `${series} is ${value}`);

step<[string, number]>("the metric {word} is {int}", (world, name, value) =>
  expectMetric(world, name, value),
);
step<[Table]>("the metrics are:", async (world, table) => {
  for (const [series, value] of Object.entries(table.fields()))
    await expectMetric(world, series, Number(value));
});

const linesOf = (world: World, name: string) =>
  world.log().lines.filter((line) => line.task_id === world.task(name));

step<[string, Table]>("the log tells of {string}, in this order:", async (world, name, table) => {
  const events = table.column();
  await waitFor(() => linesOf(world, name).length >= events.length);
  expect(linesOf(world, name).map(({ event }) => event)).toEqual(events);
});
step<[string, Table]>("each line of {string} says:", (world, name, table) => {
  for (const line of linesOf(world, name)) expectFields(line, table);
});

function expectPresent(line: Readonly<Record<string, unknown>> | undefined, table: Table): void {
  for (const field of table.column())
    expect({ field, value: line?.[field] ?? null }).not.toEqual({ field, value: null });
}
step<[string, Table]>("each line of {string} has:", (world, name, table) => {
  for (const line of linesOf(world, name)) expectPresent(line, table);
});
const lineOf = (world: World, event: string, name: string) =>
  linesOf(world, name).find((line) => line.event === event);
step<[string, string, Table]>("the line {word} of {string} says:", (world, event, name, table) =>
  expectFields(lineOf(world, event, name), table),
);
step<[string, string, Table]>("the line {word} of {string} has:", (world, event, name, table) =>
  expectPresent(lineOf(world, event, name), table),
);

/** Heads of columns, then one request in each row, found by its correlation id. */
step<[Table]>("each of these refused requests is one line of the log:", async (world, { cells }) => {
  const [heads = [], ...rows] = cells;
  for (const row of rows) {
    const expected = Object.fromEntries(heads.map((head, at) => [head, jsonOrText(row[at] ?? "")]));
    const told = () =>
      world.log().lines.filter(({ correlation_id }) => correlation_id === expected.correlation_id);
    await waitFor(() => told().length > 0, 5_000, `the log tells of ${expected.correlation_id}`);
    expect(told()).toMatchObject([{ event: "request_refused", ...expected }]);
    expect(told()).toHaveLength(1);
  }
});

/** Until everything was written that the requests so far brought about. */
async function settledLog(world: World): Promise<string> {
  const mark = `mark-${world.log().written().length}`;
  world.nextHeaders = { "x-correlation-id": mark };
  await world.ask("alice", "/v1/tasks", { method: "POST", body: '{"prompt":"a","max_tokens":1}' });
  await waitFor(() =>
    world.log().lines.some((line) => line.correlation_id === mark && line.event === "task_done"),
  );
  return world.log().written();
}
step<[Table]>("the log does not contain:", async (world, table) => {
  const log = await settledLog(world);
  for (const secret of table.column()) expect(log).not.toContain(secret);
});
step<[string]>("the log does not contain what {string} said", async (world, viewer) => {
  const said = tokensOf(await world.whole(viewer)).join("");
  expect(said.length).toBeGreaterThan(10);
  expect(await settledLog(world)).not.toContain(said.trim().slice(0, 20));
});
