/** `replay` as a shell sees it, against a daemon that runs: what it says, and its exit codes (ORCHD-TRACE-4). */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { keys, newFolder, type RunningDaemon, removeFolder, startDaemon } from "../support/running-daemon.ts";
import { waitFor } from "../support/wait.ts";

const folder = newFolder();
const main = new URL("../../src/main.ts", import.meta.url).pathname;
const keyFile = join(folder, "alice.key");
let daemon: RunningDaemon;

beforeAll(async () => {
  writeFileSync(keyFile, `${keys.alice}\n`, { mode: 0o600 });
  const mock = { token_ms: 2, prefill_ms_per_token: 0, load_ms: 0, faults: [] };
  daemon = await startDaemon({
    pools: [
      { id: "words", engine: "mock", model: "mock:words", slots: 2, mock },
      { id: "vectors", engine: "mock", model: "mock:vectors", workloads: ["embedding"] },
    ],
  });
});
afterAll(async () => {
  await daemon.close();
  removeFolder(folder);
});

async function orchestratord(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  const child = Bun.spawn([process.execPath, main, ...args], {
    cwd: folder,
    env: { PATH: "/nowhere", HOME: folder, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { stdout, stderr, code };
}
const replay = (artifact: string, ...more: readonly string[]) =>
  orchestratord(["replay", artifact, "--server", daemon.url, "--key-file", keyFile, ...more]);

const ask = async (path: string, body?: unknown): Promise<Record<string, unknown>> => {
  const headers = { "x-api-key": keys.alice, "content-type": "application/json" };
  const init = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const answer = await fetch(daemon.url + path, { headers, ...init });
  const text = await answer.text();
  return text === "" ? {} : (JSON.parse(text) as Record<string, unknown>);
};
/** The artifact that such a task leaves. */
async function artifactOf(body: unknown, cancelAfter: number | null = null): Promise<string> {
  const { task_id } = await ask("/v1/tasks", body);
  const path = `/v1/tasks/${task_id}`;
  if (cancelAfter !== null) {
    await waitFor(async () => Number((await ask(path)).tokens_out) >= cancelAfter);
    await ask(`${path}/cancel`, {});
  }
  return await waitFor(async () => (await ask(path)).artifact_id as string | null);
}
const file = (name: string, value: unknown): string => {
  const path = join(folder, name);
  writeFileSync(path, JSON.stringify(value));
  return path;
};

const story = { prompt: "Once upon a time", max_tokens: 20, seed: 5, determinism: "strict" };

describe("equal", () => {
  test("a task that was done: exit 0, and the replay is a task of its own that names the artifact", async () => {
    const id = await artifactOf({ ...story, metadata: { user: "ann" } });
    const { stdout, stderr, code } = await replay(id);
    expect({ stderr, code }).toEqual({ stderr: "", code: 0 });
    expect(stdout).toMatch(/^equal: \d+ bytes of text\n/);
    expect(stdout).toContain(`artifact ${id}, replayed as task `);
    const taskId = stdout.trim().split(" ").at(-1);
    expect(await ask(`/v1/tasks/${taskId}`)).toMatchObject({
      state: "done",
      pool_id: "words",
      seed: 5,
      metadata: { replay_of: id },
    });
  });

  test("as JSON, from a file too, and with what names the engine differing", async () => {
    const id = await artifactOf(story);
    const artifact = await ask(`/v1/artifacts/${id}`);
    const content = artifact.content as { events: { data: Record<string, unknown> }[] };
    const older = structuredClone(content);
    for (const { data } of older.events) data.engine_version = "mock-0";
    const { stdout, code } = await replay(file("older.json", { ...artifact, content: older }), "--json");
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      artifact_id: id,
      equal: true,
      partial: false,
      of: "text",
      difference: null,
      otherwise: [{ name: "engine_version", recorded: "mock-0" }],
    });
  });

  test("one that was canceled: as far as it had come", async () => {
    const id = await artifactOf({ ...story, max_tokens: 2000 }, 5);
    const { stdout, code } = await replay(id);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^equal: the beginning that was said \(\d+ bytes of text\)\n/);
    const taskId = stdout.trim().split(" ").at(-1);
    await waitFor(async () => (await ask(`/v1/tasks/${taskId}`)).state === "canceled");
  });

  test("embeddings", async () => {
    const { stdout, code } = await replay(await artifactOf({ inputs: ["one", "two"] }));
    expect(code).toBe(0);
    expect(stdout).toMatch(/^equal: \d+ bytes of result\n/);
  });
});

test("different: exit 1, the first byte that differs and both sides of it", async () => {
  const artifact = await ask(`/v1/artifacts/${await artifactOf({ ...story, determinism: "best_effort" })}`);
  const content = structuredClone(artifact.content) as { output: { text: string } };
  const { text } = content.output;
  const at = text.length - 6;
  const other = text[at] === "#" ? "+" : "#";
  content.output.text = text.slice(0, at) + other + text.slice(at + 1);
  const path = file("other.json", { ...artifact, content });
  const said = await replay(path);
  expect(said.code).toBe(1);
  expect(said.stdout).toContain(`different: at byte ${Buffer.byteLength(text.slice(0, at))} (character `);
  expect(said.stdout).toContain("determinism was best_effort");
  const { stdout, code } = await replay(path, "--json");
  expect(code).toBe(1);
  const { difference } = JSON.parse(stdout) as { difference: { recorded: string; replayed: string } };
  expect(difference.recorded.endsWith(other + text.slice(at + 1))).toBe(true);
  expect(difference.replayed.endsWith(text.slice(at))).toBe(true);
});

describe("cannot: exit 2, and what to do", () => {
  test("an artifact that is not there, is no transcript, or is redacted", async () => {
    const { id } = await ask("/v1/artifacts", { kind: "plan", content: "x" });
    const whole = await ask(`/v1/artifacts/${await artifactOf(story)}`);
    const content = { ...(whole.content as object), policy: "redacted" };
    const cases: readonly (readonly [string, string])[] = [
      ["f".repeat(64), "there is no artifact"],
      [String(id), "is no transcript"],
      [join(folder, "nothing.json"), "no file that can be read (ENOENT)"],
      [file("list.json", []), "is no transcript"],
      [file("redacted.json", { ...whole, content }), "does not hold what was asked"],
    ];
    for (const [artifact, message] of cases) {
      const { stdout, stderr, code } = await replay(artifact);
      expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
      expect(stderr).toContain(message);
    }
  });

  test("no daemon, or a key that it does not know", async () => {
    const id = "a".repeat(64);
    const silent = await orchestratord([
      "replay",
      id,
      "--server",
      "http://127.0.0.1:9",
      "--key-file",
      keyFile,
    ]);
    expect(silent.code).toBe(2);
    expect(silent.stderr).toContain("no daemon answers at http://127.0.0.1:9");
    const wrong = join(folder, "wrong.key");
    writeFileSync(wrong, "nobody-knows-this-key-0000");
    const refused = await orchestratord(["replay", id, "--server", daemon.url, "--key-file", wrong]);
    expect(refused.code).toBe(2);
    expect(refused.stderr).toContain("FORBIDDEN");
    expect(refused.stderr).toContain("--key-file");
  });

  test("a configuration that is wrong", async () => {
    writeFileSync(join(folder, "bad.yaml"), "adr: x\n");
    const { stderr, code } = await orchestratord([
      "replay",
      "a".repeat(64),
      "--config",
      join(folder, "bad.yaml"),
    ]);
    expect(code).toBe(2);
    expect(stderr).toContain("did you mean addr?");
  });
});

test("without --server and --key-file: the configured address, and the first-run key or ORCHD_API_KEY", async () => {
  const id = await artifactOf(story);
  const state = join(folder, "state");
  mkdirSync(state, { recursive: true });
  writeFileSync(join(state, "api-key"), `${keys.alice}\n`, { mode: 0o600 });
  const pools = [{ id: "words", engine: "mock", model: "mock:words" }];
  const config = file("here.yaml", { addr: `0.0.0.0:${daemon.port}`, state_dir: state, pools });
  const byFile = await orchestratord(["replay", id, "--config", config]);
  expect({ code: byFile.code, stderr: byFile.stderr }).toEqual({ code: 0, stderr: "" });
  const byVariable = await orchestratord(["replay", id, "--config", config, "--state-dir", folder], {
    ORCHD_API_KEY: keys.operator,
  });
  expect(byVariable.code).toBe(0);
});
