/** Memory is given back, and the program goes on: its code comes back page by page as it is needed. */
import { expect, test } from "bun:test";
import { join, resolve } from "node:path";

const memory = join(resolve(import.meta.dir, "../.."), "src/infra/memory.ts");

test("resident memory falls and everything still runs", async () => {
  const script = `
    import { giveMemoryBack } from ${JSON.stringify(memory)};
    const before = process.memoryUsage.rss();
    const told = [];
    const log = { debug() {}, info: (event) => told.push(event), warn() {}, error() {} };
    await new Promise((resolve) => {
      giveMemoryBack(log);
      setImmediate(resolve);
    });
    const after = process.memoryUsage.rss();
    const text = JSON.stringify({ sorted: [3, 1, 2].sort(), hash: Bun.hash("x").toString(), regex: /a+/.test("caab") });
    const server = Bun.serve({ port: 0, fetch: () => new Response(text) });
    const answer = await (await fetch(server.url)).text();
    await server.stop(true);
    console.log(JSON.stringify({ fell: before - after, same: answer === text, told }));
  `;
  const child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", stderr: "pipe" });
  const [out, err] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  expect({ code: await child.exited, err }).toEqual({ code: 0, err: "" });
  const { fell, same, told } = JSON.parse(out) as { fell: number; same: boolean; told: string[] };
  expect(told).toEqual([]);
  expect(same).toBe(true);
  expect(fell).toBeGreaterThan(0);
});
