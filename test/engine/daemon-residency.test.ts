/**
 * Three pools of the demo model on a device with room for one, on the real engine: what waits for each is served in turns,
 * never two engines at a time, what was reckoned is what the engine reports, and who rests leaves (ORCHD-MEM-1 to -3, -6).
 */
import { afterAll, expect, test } from "bun:test";
import { endDaemons, enginePool, type RunningDaemon, type Settings, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { waitFor } from "../support/wait.ts";
import { type Json, patienceMs, submit, submitAndWatch } from "./support.ts";

afterAll(endDaemons, 60_000);

const ids = ["a", "b", "c"] as const;

interface Device {
  readonly id: string;
  readonly total_bytes: number;
  readonly free_bytes: number;
  readonly lent_bytes: number;
  readonly pools: readonly {
    readonly id: string;
    readonly residence: string;
    readonly needs_bytes: number;
  }[];
}

const started = (memoryBytes: number, more: Settings = {}): Promise<RunningDaemon> =>
  startDaemon({
    settings: {
      devices: [{ id: "host", memory_bytes: memoryBytes }],
      residency: { swap_max_wait_ms: 1000, swap_turn_max_ms: 10_000 },
      pools: ids.map((id) => ({
        ...enginePool(id, testModel("demo"), { slots: 2, ctx: 512, preload: false }),
        ...more,
      })),
    },
  });

async function host(daemon: RunningDaemon): Promise<Device> {
  const { devices } = await daemon.json<{ devices: Device[] }>("/v1/devices");
  const [device] = devices;
  if (device === undefined) throw new Error("there is a device");
  return device;
}

const residence = async (daemon: RunningDaemon, id: string): Promise<string> =>
  (await host(daemon)).pools.find((pool) => pool.id === id)?.residence ?? "";

const to = (id: string): Json => ({
  placement: { mode: "pin", pin_pool_id: id },
  max_tokens: 16,
  prompt: "The harbour",
});

test("three pools with room for one take turns; idle ones leave; what is lent comes back", async () => {
  const roomy = await started(64 * 2 ** 30);
  const needs = (await host(roomy)).pools[0]?.needs_bytes ?? 0;
  expect(needs).toBeGreaterThan(10 * 2 ** 20);
  await (await submitAndWatch(roomy, to("a"))).finished();
  const reported = roomy.lines.find(({ event }) => event === "model_memory_reported");
  expect(reported).toBeDefined();
  const learnt = (await host(roomy)).pools.find(({ id }) => id === "a")?.needs_bytes ?? 0;
  expect(Math.abs(learnt - needs)).toBeLessThan(0.1 * needs);
  await roomy.stop();

  const daemon = await started(Math.floor(1.5 * Math.max(needs, learnt)), { idle_unload_ms: 1500 });
  let enginesMost = 0;
  const watching = setInterval(() => {
    enginesMost = Math.max(enginesMost, daemon.engines().length);
  }, 50);
  const viewers = [];
  for (let round = 0; round < 3; round++)
    for (const id of ids) viewers.push(await submitAndWatch(daemon, to(id)));
  for (const viewer of viewers) expect((await viewer.finished()).outcome).toBe("length");
  clearInterval(watching);
  expect(enginesMost).toBe(1);
  const loads = daemon.lines.filter(({ event }) => event === "pool_loaded");
  expect(loads.length).toBe(3);

  await waitFor(
    async () => (await host(daemon)).free_bytes === (await host(daemon)).total_bytes,
    patienceMs,
    "an empty device",
  );
  expect(daemon.engines()).toEqual([]);

  await (await submitAndWatch(daemon, to("a"))).finished();
  const headers = { "content-type": "application/json" };
  const lent = await daemon.fetch("/v1/devices/host/lend", { method: "POST", headers, body: "{}" });
  expect(lent.status).toBe(202);
  expect((await host(daemon)).lent_bytes).toBe((await host(daemon)).total_bytes);
  await waitFor(() => daemon.engines().length === 0, patienceMs, "its engines' end");
  expect((await submit(daemon, to("b"))).status).toBe(202);
  expect(await residence(daemon, "b")).toBe("waiting_for_memory");
  expect((await daemon.fetch("/v1/devices/host/return", { method: "POST" })).status).toBe(202);
  await waitFor(async () => (await residence(daemon, "b")) === "loaded", patienceMs, "b loaded");
}, 120_000);
