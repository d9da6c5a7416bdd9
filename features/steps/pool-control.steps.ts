/** Steps in which an operator tells pools what to do. */
import { waitFor } from "../../test/support/wait.ts";
import { step } from "../support/steps.ts";
import type { Person } from "../support/world.ts";
import { story, submit } from "./request.steps.ts";

step<[Person, string, number]>("{who} drains {string} within {int} ms", async (world, who, pool, ms) => {
  const body = JSON.stringify({ deadline_ms: ms });
  await world.ask(who, `/v1/pools/${pool}/drain`, { method: "POST", body });
});
step<[Person, string]>("{who} submits {string}", (world, who, name) => submit(world, who, name, story));
step<[string]>("the pool {string} is drained", (world, pool) =>
  waitFor(
    async () => (await world.health(pool)).drain?.state === "drained",
    8_000,
    `pool ${pool} is drained`,
  ),
);
