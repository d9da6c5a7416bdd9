/** Steps about what finished tasks leave. The artifact is found as a client finds it: by the name in the task's record. */
import { expect } from "bun:test";
import { step } from "../support/steps.ts";
import { type Person, tokensOf, type World } from "../support/world.ts";

const said = async (world: World, viewer: string): Promise<string> =>
  tokensOf(await world.stream(viewer).all()).join("");

step<[Person, string]>("{who} reads the transcript of {string}", async (world, who, name) => {
  const { artifact_id: id } = await world.view(name);
  expect(id).toMatch(/^[0-9a-f]{64}$/);
  await world.ask(who, `/v1/artifacts/${id}`);
});
step<[string]>("the last event of {string} names that artifact", async (world, viewer) => {
  expect((await world.stream(viewer).all()).at(-1)?.data.artifact_id).toBe(world.answer.json.id);
});
step<[string]>("its text is what {string} said", async (world, viewer) => {
  const { content } = world.answer.json as {
    readonly content: { readonly output: { readonly text: string } };
  };
  expect(content.output.text).toBe(await said(world, viewer));
  expect(content.output.text.length).toBeGreaterThan(0);
});
step<[string, string, string]>(
  "it holds neither {string} nor {string} nor what {string} said",
  async (world, one, other, viewer) => {
    const text = await said(world, viewer);
    expect(text.length).toBeGreaterThan(10);
    for (const part of [one, other, text, text.slice(0, 10)])
      expect(world.answer.text).not.toContain(JSON.stringify(part).slice(1, -1));
  },
);
step<[string, string]>("the last events of {string} and {string} are the same", async (world, one, other) => {
  const [last, again] = [await world.stream(one).all(), await world.stream(other).all()];
  expect(again.at(-1)).toEqual(last.at(-1));
});
