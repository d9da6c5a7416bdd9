/**
 * The one file that people install, alone in an empty folder with next to no environment: what it says, what it
 * serves, and that nothing of the folder it is started in has a say.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "../../scripts/build.ts";
import { type Json, submitAndWatch } from "../engine/support.ts";
import {
  endDaemons,
  guardMsMax,
  type RunningDaemon,
  type StartOptions,
  startDaemon,
} from "../support/daemon.ts";
import { engineBin, testModel } from "../support/engine.ts";

let folder = "";
let binary = "";

beforeAll(async () => {
  const { path, built, elapsedMs } = await build();
  console.info(`binary: ${built ? `built in ${elapsedMs} ms` : "up to date"}`);
  folder = realpathSync(mkdtempSync(join(tmpdir(), "orchd-binary-")));
  binary = join(folder, "orchestratord");
  copyFileSync(path, binary);
  chmodSync(binary, 0o755);
}, 120_000);

afterEach(endDaemons, 60_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const path = "/usr/bin:/bin";

/** Runs to its end: `env -i PATH=… ./orchestratord …` in its folder. */
async function run(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = Bun.spawn([binary, ...args], {
    cwd: folder,
    env: { PATH: path },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: 20_000,
  });
  const [stdout, stderr, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { code, stdout, stderr };
}

/** Serves by flags alone: no configuration file, no home; its state is in its folder, as everything of it. */
async function serve(args: readonly string[], more: StartOptions = {}): Promise<RunningDaemon> {
  const own = more.folder ?? newFolder();
  const stateFlags = more.env?.HOME === undefined ? ["--state-dir", join(own, "state")] : [];
  const daemon = await startDaemon({
    settings: null,
    command: [binary],
    args: ["--addr", "127.0.0.1:0", ...stateFlags, ...args],
    env: { PATH: path },
    folder: own,
    until: "listening",
    ...more,
  });
  // The first start mints a key and shows it, on the terminal only.
  const stateDir = /^ {2}state +(\S+)$/m.exec(daemon.stderr)?.[1] ?? "";
  daemon.key = readFileSync(join(stateDir, "api-key"), "utf8").trim();
  expect(daemon.stderr).toContain(`Your key, shown this once: ${daemon.key}\n`);
  expect(daemon.stdout).not.toContain(daemon.key);
  return daemon;
}

let folders = 0;
function newFolder(): string {
  folders += 1;
  const made = join(folder, `folder-${folders}`);
  mkdirSync(made);
  return made;
}

const manifest = JSON.parse(readFileSync(join(import.meta.dir, "../../package.json"), "utf8")) as Json;

describe("what it says", () => {
  test("--version", async () => {
    const { code, stdout, stderr } = await run("--version");
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(new RegExp(`^orchestratord ${String(manifest.version)} \\(\\S+\\)`));
    expect(stdout).not.toContain("(dev)");
  });

  test("--help names every flag", async () => {
    const { code, stdout, stderr } = await run("--help");
    expect([code, stderr]).toEqual([0, ""]);
    for (const flag of [
      "addr",
      "config",
      "state-dir",
      "models-dir",
      "engine-bin",
      "log-level",
      "check-config",
    ])
      expect(stdout).toContain(`--${flag}`);
  });

  test("an unknown flag: exit 2, and the nearest name", async () => {
    const { code, stdout, stderr } = await run("--model-dir", "x");
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toBe(
      "orchestratord: unknown flag --model-dir; did you mean --models-dir?\nSee orchestratord --help.\n",
    );
  });

  test("--check-config: fine, and wrong with path, line and nearest name", async () => {
    const file = join(folder, "checked.yaml");
    writeFileSync(
      file,
      "addr: 127.0.0.1:9999\npools:\n  - id: words\n    engine: mock\n    model: mock:words\n",
    );
    const fine = await run("--check-config", "--config", file, "--state-dir", join(folder, "never"));
    expect(fine.code).toBe(0);
    expect(fine.stdout).toContain("127.0.0.1:9999");
    writeFileSync(file, "addr: 127.0.0.1:9999\nadmision:\n  default_max_tokens: 5\n");
    const wrong = await run("--check-config", "--config", file);
    expect(wrong.code).toBe(2);
    expect(wrong.stderr).toContain("admision");
    expect(wrong.stderr).toContain("admission");
    expect(wrong.stderr).toMatch(/checked\.yaml:2\b|line 2\b/);
    rmSync(file);
    // Looking leaves nothing behind.
    expect(readdirSync(folder)).toEqual(["orchestratord"]);
  });
});

describe("what it serves", () => {
  test("real tokens, with an engine and a models folder named on the command line", async () => {
    const models = newFolder();
    symlinkSync(testModel("demo"), join(models, "demo.gguf"));
    const daemon = await serve(["--engine-bin", engineBin(), "--models-dir", models]);
    await daemon.ready("demo");
    const viewer = await submitAndWatch(daemon, {
      prompt: "The harbour",
      max_tokens: 24,
      sampling: { temperature: 0 },
    });
    await viewer.finished();
    expect(viewer.events[0]?.data).toMatchObject({ engine: "llamacpp", pool_id: "demo" });
    expect(viewer.outcome).toBe("length");
    expect(viewer.text).toMatch(/[a-z]+ [a-z]+ [a-z]+/);
    expect(daemon.engines()).toHaveLength(1);

    const goneMs = await daemon.kill9();
    console.info(`binary: kill -9, nothing left after ${Math.round(goneMs)} ms`);
    expect(goneMs).toBeLessThan(guardMsMax);
  }, 30_000);

  test("without a model: made-up words, and how to add one", async () => {
    const daemon = await serve(["--models-dir", newFolder()]);
    expect(daemon.stderr).toContain("demo: mock, mock:words, 8 slots");
    expect(daemon.stderr).toContain("put a .gguf file into");
    expect(daemon.stderr).toContain("--models-dir");
    await daemon.ready("demo");
    const viewer = await submitAndWatch(daemon, { prompt: "hello", max_tokens: 8 });
    expect((await viewer.finished()).outcome).toBe("length");
    expect(await daemon.stop()).toBe(143);
  }, 30_000);

  test("its documentation, all of it from within", async () => {
    const daemon = await serve(["--models-dir", newFolder()]);
    const page = await fetch(`${daemon.url}/docs`);
    expect(page.status).toBe(200);
    const html = await page.text();
    expect(html).not.toMatch(/https?:|\/\/[a-z]/i);
    const named = [...html.matchAll(/(?:src|href)="(\/[^"]+)"/g)].map((match) => match[1] ?? "");
    expect(named.length).toBeGreaterThan(1);
    for (const asset of named) {
      const answer = await fetch(daemon.url + asset);
      expect([asset, answer.status]).toEqual([asset, 200]);
      expect((await answer.text()).length).toBeGreaterThan(50);
    }
    const document = (await (await fetch(`${daemon.url}/docs/json`)).json()) as {
      openapi: string;
      paths: Json;
    };
    expect(document.openapi).toStartWith("3.");
    expect(Object.keys(document.paths)).toContain("/v1/tasks");
    // What it refers to is in it.
    expect(JSON.stringify(document)).not.toMatch(/"\$ref":"(?!#)/);
  }, 30_000);

  test("the same refusals as the source: no name in them was minified", async () => {
    const pools = [{ id: "words", engine: "mock", model: "mock:words" }];
    const [built, source] = await Promise.all([
      startDaemon({ settings: { pools }, command: [binary] }),
      startDaemon({ settings: { pools } }),
    ]);
    const requests: [path: string, body: string | null][] = [
      ["/v1/tasks?limit=0", null],
      ["/v1/tasks?limit=501", null],
      ["/v1/tasks?limit=x&state=lost", null],
      ["/v1/tasks?limt=1", null],
      ["/v1/tasks?state=lost", null],
      ["/v1/tasks/not-a-uuid", null],
      ["/v1/tasks/not-a-uuid/stream?after=-1", null],
      ["/v1/pools/UPPER/health", null],
      ["/v1/nothing", null],
      ["/v1/tasks", "{"],
      ["/v1/tasks", "{}"],
      ["/v1/tasks", '{"prompt":""}'],
      ["/v1/tasks", '{"prompt":"a","max_tokens":0}'],
      ["/v1/tasks", '{"prompt":"a","max_tokns":1}'],
      ["/v1/tasks", '{"prompt":"a","inputs":["b"]}'],
      ["/v1/tasks", '{"prompt":"a","seed":-1,"sampling":{"temperature":"hot"}}'],
      ["/v1/tasks", '{"prompt":"a","priority":"urgent"}'],
      ["/v1/tasks", '{"messages":[{"role":"user"}]}'],
      ["/v1/tasks", '{"prompt":"a","model_ref":"mock:word"}'],
      ["/v1/tasks", '{"prompt":"a","deadline_ms":0}'],
    ];
    for (const [at, body] of requests) {
      const init =
        body === null ? {} : { method: "POST", body, headers: { "content-type": "application/json" } };
      const told = async (daemon: RunningDaemon): Promise<Json> => {
        const answer = await daemon.fetch(at, init);
        const { correlation_id, ...rest } = (await answer.json()) as Json;
        expect(correlation_id).toBe(answer.headers.get("x-correlation-id"));
        return { status: answer.status, ...rest };
      };
      const ofBuilt = await told(built);
      expect(ofBuilt).toEqual(await told(source));
      expect(ofBuilt).toMatchObject({ status: at === "/v1/nothing" ? 404 : 400, retriable: false });
      const message = String(ofBuilt.message);
      expect(message.length).toBeGreaterThan(15);
      expect(message).not.toMatch(/undefined|NaN|\[object|^\s|\bat \/|validation/i);
    }
  }, 30_000);
});

describe("the folder it is started in", () => {
  test("has no say: .env, bunfig.toml, package.json, tsconfig.json", async () => {
    const hostile = newFolder();
    const trace = join(hostile, "it-ran");
    const evil = `require("node:fs").writeFileSync(${JSON.stringify(trace)}, "here");\n`;
    const write = (name: string, text: string) => writeFileSync(join(hostile, name), text);
    write("evil.js", evil);
    write(
      "bunfig.toml",
      'preload = ["./evil.js"]\n[run]\npreload = ["./evil.js"]\n[install]\nauto = "force"\n',
    );
    const variables = [
      "ORCHD_ADDR=127.0.0.1:1",
      "ORCHD_API_KEY=a-key-from-the-env-file",
      `ORCHD_STATE_DIR=${hostile}/elsewhere`,
      "ORCHD_CONFIG=/does/not/exist.yaml",
      "BUN_OPTIONS=--preload=./evil.js",
      "NODE_OPTIONS=--require=./evil.js",
    ];
    for (const name of [".env", ".env.local", ".env.production", ".env.development"])
      write(name, `${variables.join("\n")}\n`);
    write(
      "package.json",
      '{"type":"commonjs","imports":{"elysia":"./evil.js"},"scripts":{"preinstall":"./evil.js"}}',
    );
    write("tsconfig.json", '{"compilerOptions":{"paths":{"*":["./evil.js"]},"jsxImportSource":"./evil.js"}}');
    mkdirSync(join(hostile, "node_modules/elysia"), { recursive: true });
    write("node_modules/elysia/index.js", evil);
    const daemon = await serve([], { folder: hostile, env: { PATH: path, HOME: hostile } });
    expect(daemon.url).not.toEndWith(":1");
    expect(existsSync(join(hostile, ".local/state/orchestratord/api-key"))).toBe(true);
    const withTheirKey = { headers: { "x-api-key": "a-key-from-the-env-file" } };
    expect((await fetch(`${daemon.url}/v1/pools`, withTheirKey)).status).toBe(403);
    await daemon.ready("demo");
    expect(await daemon.stop()).toBe(143);
    expect(existsSync(trace)).toBe(false);
    expect(existsSync(join(hostile, "elsewhere"))).toBe(false);
  }, 30_000);
});
