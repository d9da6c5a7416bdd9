/** `fetch` as a shell sees it, against a daemon that runs: what it says, and its exit codes (ORCHD-MODEL-2). */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ModelServer } from "../support/model-server.ts";
import { keys, newFolder, type RunningDaemon, removeFolder, startDaemon } from "../support/running-daemon.ts";
import { sha256, tinyGguf } from "../support/tiny-gguf.ts";

const folder = newFolder();
const main = new URL("../../src/main.ts", import.meta.url).pathname;
const file = tinyGguf(700_000);
let server: ModelServer;
let daemon: RunningDaemon;

beforeAll(async () => {
  for (const who of ["operator", "alice"] as const)
    writeFileSync(join(folder, `${who}.key`), `${keys[who]}\n`, { mode: 0o600 });
  server = await ModelServer.start({
    file,
    reply: ({ path }) => (path === "/no.gguf" ? { status: 404 } : null),
  });
  daemon = await startDaemon({
    models: { dir: join(folder, "models"), fetch: { allow_hosts: [server.host] } },
    pools: [{ id: "words", engine: "mock", model: "mock:words" }],
  });
});
afterAll(async () => {
  await daemon.close();
  await server.stop();
  removeFolder(folder);
});

async function fetchModel(args: readonly string[], who = "operator") {
  const own = ["--server", daemon.url, "--key-file", join(folder, `${who}.key`)];
  const child = Bun.spawn([process.execPath, main, "fetch", ...args, ...own], {
    cwd: folder,
    env: { PATH: "/nowhere", HOME: folder },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { stdout, stderr, code };
}

test("has the daemon fetch a model and says where it lies", async () => {
  const first = await fetchModel([server.url("/Tiny-Model.gguf")]);
  expect([first.code, first.stderr]).toEqual([0, ""]);
  const [path = "", digest] = first.stdout.split("\n");
  expect(digest).toBe(`sha256 ${sha256(file)} (measured)`);
  expect(sha256(readFileSync(path))).toBe(sha256(file));
  const asked = server.asked.length;
  // Once more: what is there is compared, nothing is fetched.
  for (const ref of [server.url("/Tiny-Model.gguf"), "tiny-model"]) {
    const again = await fetchModel([ref, "--json"]);
    expect(again.code).toBe(0);
    expect(JSON.parse(again.stdout)).toMatchObject({
      id: "tiny-model",
      present: true,
      file_bytes: file.byteLength,
    });
  }
  expect(server.asked.length).toBe(asked);
});

test("says why it came to nothing", async () => {
  const wrong = await fetchModel([server.url("/w.gguf"), "--sha256", "0".repeat(64), "--id", "wrong"]);
  expect([wrong.code, wrong.stdout]).toEqual([1, ""]);
  expect(wrong.stderr).toContain("thrown away");
  const gone = await fetchModel([server.url("/no.gguf")]);
  expect([gone.code, gone.stderr]).toEqual([1, expect.stringContaining("404")]);
});

test("says what it was not told", async () => {
  const cases: readonly [readonly string[], string, string][] = [
    [["https://models.example/m.gguf"], "operator", "allow_hosts"],
    [["https://u:p@h.example/m.gguf"], "operator", "credentials"],
    [["file:m.gguf"], "operator", "nothing to fetch"],
    [["no-entry"], "operator", "the catalog has no entry no-entry"],
    [[server.url("/other.gguf"), "--id", "tiny-model"], "operator", "says something else"],
    [[server.url("/m.gguf")], "alice", "for admins only"],
  ];
  for (const [args, who, part] of cases) {
    const { code, stdout, stderr } = await fetchModel(args, who);
    expect([args, code, stdout, stderr]).toEqual([args, 2, "", expect.stringContaining(part)]);
  }
});
