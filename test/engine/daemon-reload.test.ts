/**
 * Reloads on a real engine (ORCHD-RELOAD-1, ORCHD-RELOAD-2, ORCHD-RELOAD-5): what runs is cut at the deadline and goes on
 * with the bytes of an uncut run on the new engine, whose process is another; a file that is wrong changes nothing.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Models, makeModels } from "../../scripts/reloads/models.ts";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { health, type Json, submitAndWatch } from "./support.ts";

let daemon: RunningDaemon;
const model = testModel("demo");

beforeAll(async () => {
  // Without an end token the task is as long as it was asked to be.
  const pool = enginePool("chat", model, { slots: 1, ctx: 2048, args: ["--ignore-eos"] });
  daemon = await startDaemon({ settings: { pools: [pool] } });
}, 60_000);

afterAll(endDaemons, 60_000);

const reload = (body: Json): Promise<Response> =>
  daemon.fetch("/v1/pools/chat/reload?wait=true", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ new_model_ref: `file:${model}`, deadline_ms: 100, ...body }),
  });

test.each(["surge", "recreate"])(
  "%s: cut and gone on with, the text is that of the uncut run",
  async (strategy) => {
    const request: Json = { prompt: "Once upon a time", max_tokens: 1000, sampling: { temperature: 0 } };
    const whole = await (await submitAndWatch(daemon, request)).finished();
    const [before] = (await health(daemon, "chat")).replicas;
    const cut = await submitAndWatch(daemon, request);
    await cut.hasTokens(20);
    const answer = await reload({ strategy });
    expect([answer.status, ((await answer.json()) as { reload: Json }).reload]).toMatchObject([
      200,
      { phase: "done", strategy, problem: null },
    ]);
    await cut.finished();
    expect(cut.text).toBe(whole.text);
    expect(cut.terminal).toMatchObject({ type: "end", data: { exact: "unverified", continuations: 1 } });
    const { replicas } = await health(daemon, "chat");
    expect(replicas).toHaveLength(1);
    expect(replicas[0]?.pid).not.toBe(before?.pid);
  },
  60_000,
);

test("a file that is not the one that was meant changes nothing", async () => {
  const [before] = (await health(daemon, "chat")).replicas;
  const answer = await reload({ strategy: "recreate", digest: "0".repeat(64) });
  expect([answer.status, ((await answer.json()) as Json).code]).toEqual([409, "RELOAD_FAILED"]);
  expect((await health(daemon, "chat")).replicas[0]?.pid).toBe(before?.pid);
}, 60_000);

describe("which model it is its bytes tell, not its name (ORCHD-RELOAD-3)", () => {
  const folder = mkdtempSync(join(tmpdir(), "orchd-models-"));
  afterAll(() => rmSync(folder, { recursive: true }));
  const greedy = { temperature: 0 };
  const request: Json = { prompt: "Two friends", max_tokens: 1000, sampling: greedy };
  let models: Models;
  let named: RunningDaemon;
  const reloadTo = (modelPath: string): Promise<Response> =>
    named.fetch("/v1/pools/named/reload?wait=true", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ new_model_ref: `file:${modelPath}`, strategy: "recreate", deadline_ms: 0 }),
    });

  beforeAll(async () => {
    models = await makeModels(folder);
    const pool = enginePool("named", models.pathOf("demo"), { slots: 2, ctx: 4096, args: ["--ignore-eos"] });
    named = await startDaemon({ settings: { pools: [pool], models: { dir: folder } } });
  }, 60_000);

  test("with a copy what was cut goes on, greedy and strict", async () => {
    // Long beside what it takes to compare two files.
    const long: Json = { ...request, max_tokens: 1500 };
    const whole = await (await submitAndWatch(named, long)).finished();
    const cut = await submitAndWatch(named, long);
    await cut.hasTokens(20);
    expect((await reloadTo(models.pathOf("copy"))).status).toBe(200);
    await cut.finished();
    expect(cut.text).toBe(whole.text);
    expect(cut.terminal).toMatchObject({ type: "end", data: { exact: "unverified", continuations: 1 } });
    const sampled: Json = { ...long, seed: 3, sampling: { temperature: 0.8 }, determinism: "strict" };
    const uncut = await (await submitAndWatch(named, sampled)).finished();
    const replayed = await submitAndWatch(named, { ...sampled, on_disconnect: "continue" });
    await replayed.hasTokens(20);
    expect((await reloadTo(models.pathOf("demo"))).status).toBe(200);
    await replayed.finished();
    expect(replayed.text).toBe(uncut.text);
    expect(replayed.terminal).toMatchObject({ type: "end", data: { exact: "yes", continuations: 1 } });
  }, 60_000);

  test("a file that was put in the place of the loaded one continues nothing", async () => {
    const whole = await (await submitAndWatch(named, request)).finished();
    const running = await submitAndWatch(named, request);
    await running.hasTokens(20);
    renameSync(models.pathOf("other"), models.pathOf("demo"));
    expect((await reloadTo(models.pathOf("demo"))).status).toBe(200);
    await running.finished();
    expect(running.text).toBe(whole.text);
    expect(running.terminal).toMatchObject({ type: "end", data: { exact: "yes", continuations: 0 } });
    const next = await (await submitAndWatch(named, request)).finished();
    expect(next.text).not.toBe(whole.text);
  }, 60_000);
});
