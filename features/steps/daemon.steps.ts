/** Steps that describe the daemon of a scenario, and what its pools do by themselves. */
import { expect } from "bun:test";
import { authSettings, type Setting } from "../../test/support/running-daemon.ts";
import { waitFor } from "../../test/support/wait.ts";
import { jsonOrText } from "../support/gherkin.ts";
import { step } from "../support/steps.ts";
import type { World } from "../support/world.ts";

step<[string, number]>("a pool {string} with {int} slot(s)", (world, id, slots) => world.addPool(id, slots));
step<[number]>("its tokens take {int} ms", (world, ms) => {
  world.mock().token_ms = ms;
});
step<[number]>("its prompt takes {int} ms per token", (world, ms) => {
  world.mock().prefill_ms_per_token = ms;
});
step<[number]>("its model takes {int} ms to load", (world, ms) => {
  world.mock().load_ms = ms;
});
step("its model is loaded at first use", (world) => {
  world.pool().preload = false;
});
step<[number]>("its queue holds {int} task(s)", (world, capacity) => {
  world.pool().queue = { capacity };
});
step<[number, string]>("its queue holds {int} tasks with policy {word}", (world, capacity, policy) => {
  world.pool().queue = { capacity, full_policy: policy };
});
step<[number]>("its context holds {int} tokens", (world, tokens) => {
  world.pool().ctx = tokens;
});
step<[string]>("it offers {word}", (world, workload) => {
  world.pool().workloads = [workload];
});
step<[string]>("its devices are {string}", (world, names) => {
  world.pool().devices = names.split(", ");
});
step<[number]>("it has {int} replicas", (world, replicas) => {
  world.pool().replicas = replicas;
});
step<[number]>("it may be silent for {int} ms", (world, ms) => {
  world.pool().timeouts = { first_token_ms: ms, inter_token_ms: ms };
});

step<[number]>("it cuts batch tasks for interactive ones that have waited {int} ms", (world, ms) => {
  world.pool().preempt = { max_wait_ms: ms, max_cuts: 1, min_gain_ms: 10 };
});
step<[number]>("its tasks may run {int} ms", (world, ms) => {
  world.pool().timeouts = { task_ms: ms };
});

const faultKind: Readonly<Record<string, string>> = {
  crashes: "crash",
  stalls: "stall",
  "tears characters apart": "torn_utf8",
};
const fault = (kind: string, nth: number | null, after: number) => (world: World) => {
  world.mock().faults = [{ kind: faultKind[kind] ?? kind, nth, after_tokens: after }];
};
step<[string, number, number]>(
  "its engine {fault} after {int} tokens in generation {int}",
  (world, kind, after, nth) => fault(kind, nth, after)(world),
);
step<[string, number]>("its engine {fault} after {int} tokens in every generation", (world, kind, after) =>
  fault(kind, null, after)(world),
);
step<[string, number, number, number, number]>(
  "its engine {fault} after {int} tokens in generations {int}, {int} and {int}",
  (world, kind, after, ...generations) => {
    world.mock().faults = generations.map((nth) => ({
      kind: faultKind[kind] ?? kind,
      nth,
      after_tokens: after,
    }));
  },
);
step("its engine never loads its model", (world) => fault("load_failure", null, 0)(world));

step<[string, string]>("the setting {string} is {word}", (world, path, value) =>
  world.set(path, jsonOrText(value) as Setting),
);
step("the daemon's log is kept", (world) => {
  world.logged = true;
});
step<[number, number]>(
  "bob may send {float} requests a second and {int} at once",
  (world, perSecond, burst) => {
    world.settings.auth = authSettings({ bob: { per_second: perSecond, burst } });
  },
);

for (const state of ["ready", "restarting", "unavailable"])
  step<[string]>(`the pool {string} is ${state}`, (world, pool) =>
    waitFor(async () => (await world.health(pool)).state === state, 8_000, `pool ${pool} is ${state}`),
  );
step<[string, number]>("the pool {string} is ready with {int} replicas", (world, pool, count) =>
  waitFor(async () => {
    const { replicas } = await world.health(pool);
    return replicas.filter(({ state }) => state === "ready").length === count;
  }),
);
step<[string, number]>("the pool {string} is ready after {int} restart(s)", (world, pool, restarts) =>
  waitFor(async () => {
    const { state, replicas } = await world.health(pool);
    return state === "ready" && replicas[0]?.restarts === restarts;
  }),
);
step<[string]>("no slot of {string} is busy", (world, pool) => world.untilIdle(pool));

step("the daemon is told to shut down", (world) => world.shutDown());
step("the daemon ends", async (world) => {
  expect(world.closing).not.toBeNull();
  await world.closing;
});
