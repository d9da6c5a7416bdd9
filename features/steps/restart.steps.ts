/** Steps that end the daemon and start it again in the same folder. */
import { expect } from "bun:test";
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import { step } from "../support/steps.ts";
import type { World } from "../support/world.ts";

step("the daemon runs as a process of its own", (world) => {
  world.logged = true;
});
step("the daemon is stopped", (world) => world.stop("drain"));
step("the daemon is killed", (world) => world.stop("kill"));
step("the daemon starts again", async (world) => {
  await world.daemon();
});

step<[string, number]>(
  "the stream {string} asked to come back after {int} ms and told no end",
  async (world, viewer, ms) => {
    const events = await world.stream(viewer).all();
    expect(world.stream(viewer).retryMs).toBe(ms);
    expect(events.filter(({ type }) => type === "end" || type === "error")).toEqual([]);
  },
);

const databases = new WeakMap<World, Buffer>();
step("the database is damaged", (world) => {
  const file = openSync(world.database, "r+");
  // Within the second page: the header of the file still says what it is.
  writeSync(file, "x".repeat(3000), 4096);
  closeSync(file);
  databases.set(world, readFileSync(world.database));
});
step("the daemon does not start, and names the database", async (world) => {
  await world.failToStart();
  expect(world.failedStart?.code).toBe(1);
  expect(world.failedStart?.stderr).toContain(`${world.database} is damaged`);
});
step("the database is as it was", (world) => {
  expect(readFileSync(world.database).equals(databases.get(world) ?? Buffer.of())).toBe(true);
});
