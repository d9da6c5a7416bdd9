/** Steps about devices whose memory pools share. */
import { waitFor } from "../../test/support/wait.ts";
import { step } from "../support/steps.ts";
import type { Person } from "../support/world.ts";

step<[string, number]>("a device {string} with {int} bytes", (world, id, bytes) => {
  world.settings.devices = [{ id, memory_bytes: bytes }];
});
step<[number, string]>("it takes {int} bytes of {string}", (world, bytes, device) => {
  world.pool().devices = [device];
  world.mock().memory_bytes = bytes;
});
step<[number]>("it leaves after {int} ms of rest", (world, ms) => {
  world.pool().idle_unload_ms = ms;
});
step<[Person, string, number]>("{who} lends {string} within {int} ms", async (world, who, device, ms) => {
  const body = JSON.stringify({ deadline_ms: ms });
  await world.ask(who, `/v1/devices/${device}/lend`, { method: "POST", body });
});
for (const residence of ["unloaded", "loaded", "waiting_for_memory"])
  step<[string]>(`the pool {string} is ${residence}`, (world, pool) =>
    waitFor(
      async () => (await world.health(pool)).residence === residence,
      8_000,
      `pool ${pool} is ${residence}`,
    ),
  );
