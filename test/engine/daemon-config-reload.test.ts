/**
 * The configuration changes on real engines: of two pools one gets another context, the other's process and stream are not
 * touched (ORCHD-CONF-2).
 */
import { afterAll, expect, test } from "bun:test";
import { endDaemons, enginePool, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { waitFor } from "../support/wait.ts";
import { health, type Json, submitAndWatch } from "./support.ts";

afterAll(endDaemons, 60_000);

test("one of two pools changes: the other's process stays, its stream is whole, and what ran in the changed one goes on", async () => {
  const model = testModel("demo");
  const pools = (ctx: number) => [
    enginePool("stays", model, { slots: 1, ctx: 2048, args: ["--ignore-eos"] }),
    enginePool("changes", model, { slots: 1, ctx, args: ["--ignore-eos"] }),
  ];
  const daemon = await startDaemon({ settings: { pools: pools(2048), reload: { deadline_ms: 100 } } });
  const request = (id: string): Json => ({
    prompt: "Once upon a time",
    ...{ max_tokens: 1000, sampling: { temperature: 0 } },
    placement: { mode: "pin", pin_pool_id: id },
  });
  const whole = await (await submitAndWatch(daemon, request("stays"))).finished();
  const before = await Promise.all(["stays", "changes"].map((id) => health(daemon, id)));
  const [beside, cut] = [
    await submitAndWatch(daemon, request("stays")),
    await submitAndWatch(daemon, request("changes")),
  ];
  for (const viewer of [beside, cut]) await viewer.hasTokens(20);
  const fromMs = performance.now();
  daemon.configure({ pools: pools(4096), reload: { deadline_ms: 100 } });
  await waitFor(
    async () => {
      const { generation, pools: unfinished } = await daemon.json<{ generation: number; pools: Json[] }>(
        "/v1/config",
      );
      return generation === 2 && unfinished.length === 0;
    },
    10_000,
    "the change is in force",
  );
  console.info(
    `config reload: a pool's context in force ${Math.round(performance.now() - fromMs)} ms after the file`,
  );
  const after = await Promise.all(["stays", "changes"].map((id) => health(daemon, id)));
  expect(after[0]?.replicas[0]).toMatchObject({ pid: before[0]?.replicas[0]?.pid, restarts: 0 });
  expect(after[1]?.replicas[0]?.pid).not.toBe(before[1]?.replicas[0]?.pid);
  for (const viewer of [beside, cut]) expect((await viewer.finished()).text).toBe(whole.text);
  expect(beside.terminal).toMatchObject({ type: "end", data: { continuations: 0, exact: "yes" } });
  expect(cut.terminal).toMatchObject({ type: "end", data: { continuations: 1 } });
}, 60_000);
