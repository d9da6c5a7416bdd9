/** Steps in which an operator tells pools what to do. */
import { expect } from "bun:test";
import type { PoolHealthBody } from "../../src/api/schema/pools.ts";
import { waitFor } from "../../test/support/wait.ts";
import { step } from "../support/steps.ts";
import type { Person, World } from "../support/world.ts";
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

const reload = (
  world: World,
  who: Person,
  pool: string,
  model: string,
  query: string,
  ms: number,
  strategy = "recreate",
) =>
  world.ask(who, `/v1/pools/${pool}/reload${query}`, {
    method: "POST",
    body: JSON.stringify({ new_model_ref: model, strategy, deadline_ms: ms }),
  });
step<[Person, string, string]>("{who} gives {string} the model {string} and waits", async (world, ...of) => {
  await reload(world, ...of, "?wait=true", 20_000);
});
step<[Person, string, string, number]>(
  "{who} gives {string} the model {string} within {int} ms",
  async (world, who, pool, model, ms) => {
    await reload(world, who, pool, model, "", ms);
  },
);
step<[Person, string, string, string]>(
  "{who} gives {string} the model {string} with the digest {string} and waits",
  async (world, who, pool, model, digest) => {
    const body = JSON.stringify({ new_model_ref: model, digest, strategy: "recreate" });
    await world.ask(who, `/v1/pools/${pool}/reload?wait=true`, { method: "POST", body });
  },
);
step<[Person, string, string]>(
  "{who} surges {string} to the model {string} and waits",
  async (world, ...of) => {
    await reload(world, ...of, "?wait=true", 20_000, "surge");
  },
);
step<[number]>("its engine never loads its model at start {int}", (world, nth) => {
  world.mock().faults = [{ kind: "load_failure", nth, after_tokens: 0 }];
});
step<[Person, string, string, number]>(
  "{who} surges {string} to the model {string} within {int} ms",
  async (world, who, pool, model, ms) => {
    await reload(world, who, pool, model, "", ms, "surge");
  },
);
step<[string]>("the pool's last error tells {string}", (world, part) => {
  const { last_error } = world.answer.json as unknown as PoolHealthBody;
  expect(last_error?.message).toContain(part);
});
step<[string, string]>("the reload of {string} is {word}", (world, pool, phase) =>
  waitFor(
    async () => (await world.health(pool)).reload?.phase === phase,
    8_000,
    `the reload of ${pool} is ${phase}`,
  ),
);
