/** Steps about the catalog of models, and a server of models beside the daemon. */
import { expect } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { CatalogModelBody } from "../../src/api/schema/catalog.ts";
import { ModelServer } from "../../test/support/model-server.ts";
import { sha256, tinyGguf } from "../../test/support/tiny-gguf.ts";
import { waitFor } from "../../test/support/wait.ts";
import { step } from "../support/steps.ts";
import type { Person, World } from "../support/world.ts";

const path = "/v1/catalog/models";
const model = tinyGguf(3_000_000);
/** Where its file lies on the server; its size and bytes are those of `model`. */
interface Served {
  readonly server: ModelServer;
  /** Bytes of a connection until it is broken; null: none is. */
  breakAfter: number | null;
  /** Bytes behind which nothing is sent; null: everything is. */
  until: number | null;
}
const servers = new WeakMap<World, Served>();

function theServer(world: World) {
  const found = servers.get(world);
  if (found === undefined) throw new Error("name a server of models first");
  return found;
}
const folderOf = (world: World): string => join(world.folder, "models");

function allow(world: World, fetch: { enabled: boolean; allow_hosts: readonly string[] }): void {
  world.set("models.dir", folderOf(world));
  world.set("models.fetch", { ...fetch });
}

step("a server of models", async (world) => {
  const one: Served = {
    server: await ModelServer.start({
      file: model,
      reply: ({ range }) => {
        if (range === null || range[1] === 0) return null;
        if (one.until !== null && range[1] >= one.until) return { hangs: "head" };
        if (one.breakAfter === null) return null;
        const body = model.subarray(range[0], range[1] + 1);
        const whole = `bytes ${range[0]}-${Math.min(range[1], model.byteLength - 1)}/${model.byteLength}`;
        const headers = { etag: '"v1"', "content-range": whole, "content-length": body.byteLength };
        return { status: 206, headers, body, breakAfter: one.breakAfter };
      },
    }),
    breakAfter: null,
    until: null,
  };
  servers.set(world, one);
  world.neighbours.push(one.server);
  mkdirSync(folderOf(world), { recursive: true });
  allow(world, { enabled: true, allow_hosts: [one.server.host] });
});
step("its model lies on the server", (world) => {
  world.pool().model = theServer(world).server.url();
});
step<[number]>("the server breaks every connection after {int} bytes", (world, bytes) => {
  theServer(world).breakAfter = bytes;
});
step<[number]>("the server sends nothing behind the first {int} bytes", (world, bytes) => {
  theServer(world).until = bytes;
});
step("the server sends everything", (world) => {
  theServer(world).until = null;
});
step<[string, number]>("the model {string} has {int} bytes", (world, id, bytes) =>
  waitFor(async () => {
    const { job } = (await world.look("the operator", `${path}/${id}`)).json as CatalogModelBody;
    return (job?.bytes_done ?? 0) >= bytes;
  }),
);
step("nothing is fetched", (world) => allow(world, { enabled: false, allow_hosts: [] }));

async function enter(world: World, who: Person, fields: Readonly<Record<string, unknown>>): Promise<void> {
  await world.ask(who, path, { method: "POST", body: JSON.stringify(fields) });
}
step<[Person, string]>("{who} enters the model {string} that lies there", (world, who, id) =>
  enter(world, who, { id, model_ref: theServer(world).server.url() }),
);
step<[Person, string, string]>(
  "{who} enters the model {string} with the reference {string}",
  (world, who, id, model_ref) => enter(world, who, { id, model_ref }),
);
step<[Person, string, string]>(
  "{who} enters and fetches {string} from {string}",
  (world, who, id, model_ref) => enter(world, who, { id, model_ref, fetch: true }),
);
const fetchWith = (digest: string) => (world: World, who: Person, id: string) =>
  enter(world, who, { id, model_ref: theServer(world).server.url(), digest, fetch: true });
step<[Person, string]>("{who} has the model {string} fetched, with its digest", fetchWith(sha256(model)));
step<[Person, string]>(
  "{who} has the model {string} fetched, with the digest of another",
  fetchWith("a".repeat(64)),
);

step<[string]>("the file {string} in the models folder", (world, name) => {
  writeFileSync(join(folderOf(world), name), model);
});
step<[string]>("the file {string} in the models folder is damaged", (world, name) => {
  const file = readFileSync(join(folderOf(world), name));
  file[file.byteLength - 1] = (file.at(-1) ?? 0) ^ 1;
  writeFileSync(join(folderOf(world), name), file);
});
step<[Person, string]>("{who} enters the model {string} with the digest of its file", (world, who, id) =>
  enter(world, who, {
    id,
    model_ref: `file:${id}.gguf`,
    digest: sha256(model),
    size_bytes: model.byteLength,
  }),
);
step<[Person, string]>("{who} verifies {string}", async (world, who, id) => {
  expect((await world.ask(who, `${path}/${id}/verify`, { method: "POST" })).status).toBe(202);
});
const move = (state: string) => async (world: World, who: Person, id: string) => {
  await world.ask(who, `${path}/${id}/state`, { method: "POST", body: JSON.stringify({ state }) });
};
step<[Person, string]>("{who} retires {string}", move("Retired"));
step<[Person, string]>("{who} takes {string} back", move("Active"));

step<[string]>("the model {string} comes to rest", (world, id) =>
  waitFor(async () => (await world.ask("the operator", `${path}/${id}`)).json.job === null, 10_000),
);
const viewOf = (world: World): CatalogModelBody => world.answer.json as CatalogModelBody;
step<[string]>("its verification is {string}", (world, reason) => {
  expect<string | undefined>(viewOf(world).verification?.reason).toBe(reason);
});
step<[string]>("its problem tells {string}", (world, part) => {
  expect(viewOf(world).fetch_problem).toContain(part);
});
step<[number]>("the server sent at most {int} percent of the model", (world, percent) => {
  const { server } = theServer(world);
  expect(server.asked.length).toBeGreaterThan(5);
  expect(server.sentBytes).toBeLessThanOrEqual((model.byteLength * percent) / 100);
});
