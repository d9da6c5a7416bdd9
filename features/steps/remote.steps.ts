/** Steps about a server elsewhere that speaks the OpenAI API: a scripted one beside the daemon. */
import { expect } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Workload } from "../../src/domain/task.ts";
import { type Mishap, OpenAiServer, type OpenAiServerOptions } from "../../test/support/openai-server.ts";
import { waitFor } from "../../test/support/wait.ts";
import { step } from "../support/steps.ts";
import type { World } from "../support/world.ts";

const keyText = "sk-of-the-server-elsewhere";

interface Elsewhere {
  server: OpenAiServer;
  readonly options: OpenAiServerOptions;
}

/** The server that the scenario speaks of: the one named last. */
const elsewhere = new WeakMap<World, Elsewhere>();

function theServer(world: World): OpenAiServer {
  const found = elsewhere.get(world);
  if (found === undefined) throw new Error("name a server elsewhere first");
  return found.server;
}

function open(world: World, options: OpenAiServerOptions): void {
  const one: Elsewhere = { server: new OpenAiServer(options), options };
  elsewhere.set(world, one);
  world.neighbours.push({ stop: () => one.server.stop() });
}

step<[string]>("a server elsewhere with the model {string}", (world, model) => open(world, { model }));
step<[string]>("a server elsewhere with the model {string} and a key", (world, model) =>
  open(world, { model, key: keyText }),
);
step<[string, string]>("a server elsewhere with the model {string} for {word}", (world, model, workload) =>
  open(world, { model, workloads: [workload as Workload] }),
);
step<[string]>("a gateway elsewhere with the model {string}", (world, model) =>
  open(world, { model, like: "gateway" }),
);
step<[number]>("its answers take {int} ms a token", async (world, tokenMs) => {
  const { options, server } = elsewhere.get(world) ?? {};
  await server?.stop();
  open(world, { ...options, tokenMs });
});
step<[number, number]>(
  "its answers to chats begin with {int} thoughts, {int} ms apart",
  (world, count, ms) => {
    Object.assign(theServer(world), { thoughts: count, thoughtMs: ms });
  },
);
step<[string, number]>("a pool {string} of that server with {int} slot(s)", (world, id, slots) => {
  const { url, key, models } = theServer(world);
  const named = key === null ? {} : { api_key_file: "key-of-the-server" };
  if (key !== null) writeFileSync(join(world.folder, "key-of-the-server"), key, { mode: 0o600 });
  world.pools.push({ id, engine: "openai", model: models[0] ?? "", base_url: url, slots, ...named });
});

const mishapOf: Readonly<Record<string, "error" | "drop" | "early_end" | "stall">> = {
  "tells an error": "error",
  "is dropped": "drop",
  "ends too early": "early_end",
  stalls: "stall",
};
for (const [breaks, kind] of Object.entries(mishapOf))
  step<[number]>(`the next answer of the server elsewhere ${breaks} after {int} tokens`, (world, after) => {
    theServer(world).mishaps = [{ kind, after }];
  });
step<[number]>("the server elsewhere is busy for the next {int} answers", (world, count) => {
  theServer(world).mishaps = Array.from({ length: count }, (): Mishap => ({ kind: "busy", status: 503 }));
});
step("the server elsewhere takes another key now", (world) => {
  theServer(world).key = "sk-another-one";
});
step("the server elsewhere goes away", (world) => theServer(world).stop());
step("the server elsewhere comes back", (world) => {
  const found = elsewhere.get(world);
  if (found === undefined) throw new Error("name a server elsewhere first");
  found.server = new OpenAiServer({ ...found.options, port: found.server.port });
});

step<[number]>("the server elsewhere sees {int} answer(s) broken off", (world, times) =>
  theServer(world).abortedAtLeast(times),
);
step<[number]>("the server elsewhere was last asked for a chat of {int} message(s)", (world, count) => {
  const asked = theServer(world).asked.at(-1);
  expect(asked?.path).toBe("/v1/chat/completions");
  expect(asked?.body.messages).toHaveLength(count);
});
step("the server elsewhere was asked with its key, and nobody else was told it", async (world) => {
  const asked = theServer(world).of("/v1/completions");
  expect(asked.length).toBeGreaterThan(0);
  for (const { key } of asked) expect(key).toBe(keyText);
  await waitFor(() => world.log().lines.some((line) => line.event === "task_done"));
  expect(world.log().written()).not.toContain(keyText);
  for (const answer of [world.answer, ...world.answersBefore]) expect(answer.text).not.toContain(keyText);
});
