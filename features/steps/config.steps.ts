/** Steps in which the operator changes the configuration of a daemon that runs. */
import { expect } from "bun:test";
import { waitFor } from "../../test/support/wait.ts";
import type { Table } from "../support/gherkin.ts";
import { step } from "../support/steps.ts";
import type { Person, World } from "../support/world.ts";

const names = (list: string): string[] => list.split(", ");
const reload = { deadline_ms: 300 };

step<[string]>("the file names the pools {string} instead", (world, list) => {
  const pools = names(list).map(
    (id) =>
      world.pools.find((pool) => pool.id === id) ?? { id, engine: "mock", model: `mock:${id}`, slots: 1 },
  );
  world.reconfigure({ pools, reload });
});
step<[string]>("the file says {string}", (world, text) => world.reconfigure(text));
step<[string, string]>("the file sets {string} to {string}", (world, path, value) => {
  const [section = "", name = ""] = path.split(".");
  world.reconfigure({ [section]: { [name]: value } });
});

const status = async (world: World) => (await world.look("the operator", "/v1/config")).json;

step<[string]>("the pools are {string}", (world, list) =>
  waitFor(
    async () => {
      const { pools } = (await world.look("the operator", "/v1/pools")).json as { pools: { id: string }[] };
      return pools.map(({ id }) => id).join(", ") === list;
    },
    8_000,
    `the pools are ${list}`,
  ),
);
step<[Table]>("the configuration says:", async (world, table) => {
  const wanted = table.fields();
  await waitFor(
    async () => {
      const seen = await status(world);
      return Object.entries(wanted).every(([name, value]) => Bun.deepEquals(seen[name], value));
    },
    8_000,
    `the configuration says ${JSON.stringify(wanted)}`,
  );
});
step<[string]>("the configuration is refused with {string}", async (world, part) => {
  const seen = await waitFor(
    async () => (await status(world)).last_error as { problems: string[] } | null,
    8_000,
    "the configuration is refused",
  );
  expect(seen.problems.join("\n")).toContain(part);
});
step<[Person]>("{who} asks for the configuration", async (world, who) => {
  await world.ask(who, "/v1/config");
});
