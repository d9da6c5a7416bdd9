/** Steps about artifacts and attachments. "The artifact" is the one that was stored last. */
import { expect } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Table } from "../support/gherkin.ts";
import { step } from "../support/steps.ts";
import type { Person, World } from "../support/world.ts";

const stored = new WeakMap<World, { id?: string; digest?: string }>();
const of = (world: World): { id?: string; digest?: string } => stored.get(world) ?? {};
const bytes = { "content-type": "application/octet-stream" };

async function store(world: World, who: Person, fields: Record<string, unknown>): Promise<void> {
  const { json } = await world.ask(who, "/v1/artifacts", { method: "POST", body: JSON.stringify(fields) });
  stored.set(world, { ...of(world), id: String(json.id) });
}

step<[Person, Table]>("{who} stores the artifact:", (world, who, table) => store(world, who, table.fields()));
step<[Person]>("{who} stores an artifact with the attachment", (world, who) =>
  store(world, who, { kind: "other", content: "see attachment", attachments: [of(world).digest] }),
);
step("the file of the artifact is damaged", (world) => {
  const root = join(world.folder, "state", "artifacts");
  const name = readdirSync(root, { recursive: true })
    .map(String)
    .find((path) => path.endsWith(of(world).id ?? "?"));
  const path = join(root, name ?? "");
  writeFileSync(path, readFileSync(path, "utf8").replace("once", "never"));
});
step<[Person]>("{who} reads the artifact", async (world, who) => {
  await world.ask(who, `/v1/artifacts/${of(world).id}`);
});
step<[Person]>("{who} reads the artifact that she has", async (world, who) => {
  const { id } = of(world);
  await world.ask(who, `/v1/artifacts/${id}`, { headers: { "if-none-match": `"${id}"` } });
});
step<[Person, string]>("{who} sends the attachment {string}", async (world, who, body) => {
  const { json } = await world.ask(who, "/v1/attachments", { method: "POST", body, headers: bytes });
  stored.set(world, { ...of(world), digest: String(json.digest) });
});
step<[Person]>("{who} reads the attachment", async (world, who) => {
  await world.ask(who, `/v1/attachments/${of(world).digest}`);
});
step<[string]>("the text is {string}", (world, text) => {
  expect(world.answer.text).toBe(text);
});
