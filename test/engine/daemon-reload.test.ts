/**
 * Reloads on a real engine (ORCHD-RELOAD-1, ORCHD-RELOAD-2, ORCHD-RELOAD-5): what runs is cut at the deadline and goes on
 * with the bytes of an uncut run on the new engine, whose process is another; a file that is wrong changes nothing.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
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
