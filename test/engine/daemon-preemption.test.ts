/**
 * Preemption on a real engine (ORCHD-PREEMPT-1, ORCHD-PREEMPT-2): an interactive task takes the slot of a batch task,
 * which goes on afterwards with the bytes of a run that nothing cut.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { health, type Json, submitAndWatch, type Viewer } from "./support.ts";

const maxWaitMs = 50;
let daemon: RunningDaemon;

beforeAll(async () => {
  // Without an end token the batch task is as long as it was asked to be.
  const pool = enginePool("chat", testModel("demo"), { slots: 1, ctx: 2048, args: ["--ignore-eos"] });
  const preempt = { max_wait_ms: maxWaitMs, max_cuts: 2, min_gain_ms: 20 };
  daemon = await startDaemon({ settings: { pools: [{ ...pool, preempt }] } });
}, 60_000);

afterAll(endDaemons, 60_000);

const watch = async (request: Json): Promise<Viewer> => await submitAndWatch(daemon, request);

test.each([
  ["greedy", { sampling: { temperature: 0 } }, "unverified"],
  ["sampled and strict", { determinism: "strict", seed: 7 }, "yes"],
] as const)(
  "%s: cut twice, the text is that of the uncut run",
  async (name, kind, exact) => {
    const request: Json = { prompt: "Once upon a time", max_tokens: 1000, ...kind };
    const whole = await (await watch(request)).finished();
    const long = await watch({ ...request, priority: "batch" });
    let waitedMs = 0;
    for (const tokens of [20, 60]) {
      await long.hasTokens(tokens);
      const quick = await watch({ prompt: "Two friends", max_tokens: 4, sampling: { temperature: 0 } });
      const fromMs = performance.now();
      await quick.finished();
      waitedMs = Math.max(waitedMs, performance.now() - fromMs);
      expect(long.ended).toBe(false);
    }
    await long.finished();
    console.info(
      `preemption, ${name}: an interactive answer of 4 tokens after ${Math.round(waitedMs)} ms at most`,
    );
    expect(long.text).toBe(whole.text);
    expect(long.terminal).toMatchObject({ type: "end", data: { exact, continuations: 2 } });
    const { replicas } = await health(daemon, "chat");
    expect(replicas[0]).toMatchObject({ restarts: 0 });
  },
  60_000,
);
