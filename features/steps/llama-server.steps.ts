/** Steps about pools whose engine is a llama-server with files: a stand-in that speaks like it (lying-llama-server.ts). */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { writeLyingServer } from "../../test/support/lying-llama-server.ts";
import { tinyGguf } from "../../test/support/tiny-gguf.ts";
import { step } from "../support/steps.ts";
import type { World } from "../support/world.ts";

const folderOf = (world: World): string => join(world.folder, "models");

function place(world: World, name: string, content: Uint8Array | string): void {
  mkdirSync(folderOf(world), { recursive: true });
  writeFileSync(join(folderOf(world), name), content);
}
/** Of each name other ones, and always the same. */
const bytesOf = (name: string): Uint8Array => tinyGguf(4_000, Bun.hash.crc32(name));

step<[string]>("the model file {string}", (world, name) => place(world, name, bytesOf(name)));
step<[string]>("the file {string} that is no model", (world, name) => place(world, name, "no model"));
step<[string, string, number]>(
  "a pool {string} of llama-server with the file {string} and {int} slot(s)",
  (world, id, name, slots) => {
    place(world, name, bytesOf(name));
    world.set("models.dir", folderOf(world));
    world.set("engines.llamacpp", { bin: writeLyingServer(world.folder) });
    world.pools.push({ id, engine: "llamacpp", model: `file:${name}`, slots, ctx: 512 });
  },
);
step<[string]>("its llama-server is told {string}", (world, lies) => {
  world.pool().env = { LYING_LLAMA: lies };
});
