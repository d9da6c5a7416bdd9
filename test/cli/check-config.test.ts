/** `--check-config`, `--version` and `--help` as a shell sees them: output, streams and exit codes (ORCHD-CLI-1). */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parse } from "yaml";
import packageJson from "../../package.json";

const folder = mkdtempSync(join(tmpdir(), "orchd-check-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const main = new URL("../../src/main.ts", import.meta.url).pathname;

async function orchestratord(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  const child = Bun.spawn([process.execPath, main, ...args], {
    cwd: folder,
    // Nothing of this machine's: no engine on PATH, no home with a configuration or models.
    env: { PATH: "/nowhere", HOME: folder, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { stdout, stderr, code };
}

const write = (name: string, text: string): string => {
  const path = join(folder, name);
  writeFileSync(path, text, { mode: 0o600 });
  return path;
};

describe("--check-config", () => {
  test("a valid file: what is in force on stdout, exit 0", async () => {
    const config = write(
      "valid.yaml",
      `addr: 127.0.0.1:9\nauth: { keys: [{ id: a, sha256: ${"ab".repeat(32)}, budget: { tokens: 9, window_ms: 1000 } }] }\npools: [{ id: a, engine: mock, model: mock:words }]\n`,
    );
    const { stdout, stderr, code } = await orchestratord(
      ["--check-config", "--config", config, "--log-level", "warn"],
      {
        ORCHD_ADDR: "127.0.0.1:7",
        ORCHD_API_KEY: "the-key-of-the-environment",
      },
    );
    expect(code).toBe(0);
    expect(stderr).toBe("configuration is valid\n");
    expect(parse(stdout)).toMatchObject({
      addr: "127.0.0.1:7",
      state_dir: join(folder, ".local/state/orchestratord"),
      log: { level: "warn" },
      auth: {
        mode: "required",
        keys: [
          { id: "a", sha256: "(not shown)", budget: { tokens: 9, cost: null, window_ms: 1000 } },
          { id: "env", admin: true, budget: null },
        ],
      },
      admission: { fair: "fifo" },
      sessions: { ttl_ms: 600_000, max_turns: 8, budget: { tokens: null, time_ms: null, cost: null } },
      tasks: { cut_at_deadline: false },
      storage: { durability: "power" },
      pools: [
        {
          id: "a",
          engine: "mock",
          slots: 4,
          queue: { full_policy: "reject" },
          price: { per_1k_tokens_in: 0, per_1k_tokens_out: 0 },
        },
      ],
    });
    expect(stdout).not.toContain("abab");
    expect(stdout).not.toContain("the-key-of-the-environment");
  });

  test("every problem on stderr, nothing on stdout, exit 2", async () => {
    const config = write(
      "wrong.yaml",
      "adr: x\nlog:\n  level: loud\npools:\n  - { id: a, model: file:gone.gguf }\n",
    );
    const { stdout, stderr, code } = await orchestratord([
      "--check-config",
      "--config",
      config,
      "--addr",
      "nowhere",
    ]);
    expect(code).toBe(2);
    expect(stdout).toBe("");
    const lines = stderr.trimEnd().split("\n");
    expect(lines).toHaveLength(6);
    expect(lines[0]).toBe(`${config}:1:1: adr: unknown key; did you mean addr?`);
    expect(lines[1]).toBe(
      `${config}:2:3: log.level: found "loud", expected debug, info, warn or error`.replace(":2:3", ":3:10"),
    );
    expect(lines[2]).toStartWith(`${config}:5:5: pools[0].engine: llama-server is not on PATH`);
    expect(lines[3]).toStartWith(
      `${config}:5:21: pools[0].model: no such file: ${folder}/.cache/models/gone.gguf`,
    );
    expect(lines[4]).toBe('--addr: found "nowhere", expected HOST:PORT as in 127.0.0.1:8080 or [::1]:8080');
    expect(lines[5]).toBe("the configuration has 5 problems");
  });

  test("without any configuration: the demo pool", async () => {
    const { stdout, code } = await orchestratord(["--check-config"]);
    expect(code).toBe(0);
    expect(parse(stdout).pools).toMatchObject([{ id: "demo", engine: "mock", model: "mock:words" }]);
  });
});

describe("the rest of the command line", () => {
  test("--version is one line", async () => {
    const { stdout, stderr, code } = await orchestratord(["--version"]);
    expect([stdout, stderr, code]).toEqual([`orchestratord ${packageJson.version} (dev)\n`, "", 0]);
  });

  test("--help goes to stdout, a mistake to stderr with exit 2", async () => {
    const [help, mistake] = await Promise.all([orchestratord(["--help"]), orchestratord(["--adr", "x"])]);
    expect([help.code, help.stderr]).toEqual([0, ""]);
    expect(help.stdout).toContain("--models-dir");
    expect([mistake.code, mistake.stdout]).toEqual([2, ""]);
    expect(mistake.stderr).toStartWith("orchestratord: unknown flag --adr; did you mean --addr?\n");
  });

  test("serve refuses a wrong configuration the same way", async () => {
    const { code, stderr } = await orchestratord(["serve", "--config", write("bad.yaml", "x: 1")]);
    expect(code).toBe(2);
    expect(stderr).toContain("bad.yaml:1:1: x: unknown key");
  });
});
