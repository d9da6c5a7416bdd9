/**
 * The whole daemon on a machine with a graphics card, as far as a stand-in for NVIDIA's library is one: found by the
 * system's loader, shown in /metrics, and what the engine's process takes of it in the health of its pool.
 */
import { afterAll, afterEach, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { DrmSysfsTelemetry } from "../../src/infra/gpu/drm-sysfs.ts";
import { endDaemons, enginePool, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { NvmlStandIn } from "../support/nvml-stand-in.ts";
import { parseExposition } from "../support/prom-parse.ts";
import { waitFor } from "../support/wait.ts";
import { patienceMs } from "./support.ts";

const library = new NvmlStandIn();
afterEach(endDaemons, 60_000);
afterAll(() => library.remove());

const GiB = 2 ** 30;
/** This machine may have cards of the other vendor, which are none of these tests' business. */
const others = new DrmSysfsTelemetry().devices().map(({ id }) => id);
const env = { PATH: process.env.PATH ?? "/usr/bin:/bin", LD_LIBRARY_PATH: dirname(library.path) };
const pools = [enginePool("chat", testModel("demo"), { slots: 1, ctx: 512 })];

interface Health {
  readonly replicas: readonly { readonly pid: number; readonly vram_used_bytes: number | null }[];
}

test("its card is shown, and what the engine takes of it (ORCHD-GPU-1)", async () => {
  const processes = join(dirname(library.path), "processes");
  writeFileSync(processes, "");
  const daemon = await startDaemon({
    settings: { pools },
    env: { ...env, NVML_STAND_IN_PROCESSES: processes },
  });
  const replica = async () => (await daemon.json<Health>("/v1/pools/chat/health")).replicas[0];
  const before = await replica();
  expect(before?.vram_used_bytes).toBeNull();
  // Half of it is of this test's own process, which is nobody's replica.
  writeFileSync(processes, `${before?.pid} ${GiB}\n${process.pid} ${GiB}\n`);
  const after = await waitFor(
    async () => {
      const one = await replica();
      return one?.vram_used_bytes !== null && one;
    },
    patienceMs,
    "the replica's memory on the card",
  );
  expect(after).toMatchObject({ pid: before?.pid, vram_used_bytes: GiB });

  const families = parseExposition(await (await daemon.fetch("/metrics")).text());
  const told = (name: string) =>
    families
      .get(name)
      ?.samples.filter(({ labels }) => labels.device === "nvidia0")
      .map(({ labels, value }) => `${labels.replica_id ?? ""} ${value}`);
  expect(told("vram_used_bytes")).toEqual([`chat-0 ${GiB}`, `none ${GiB}`]);
  expect(told("gpu_utilization")).toEqual(["chat-0 0.5"]);
  expect(told("gpu_power_watts")).toEqual([" 75"]);
  expect(
    families.get("gpu_info")?.samples.find(({ labels }) => labels.device === "nvidia0")?.labels,
  ).toMatchObject({
    model: "Stand-in GPU",
    driver_version: "580.65.06",
  });
}, 60_000);

test("a driver that knows no card: nothing is shown and nothing said of it", async () => {
  const settings = { pools, log: { level: "info" } };
  const daemon = await startDaemon({ settings, env: { ...env, NVML_STAND_IN_EMPTY: "1" } });
  const text = await (await daemon.fetch("/metrics")).text();
  expect(/gpu|vram/.test(text)).toBe(others.length > 0);
  expect(daemon.lines.length).toBeGreaterThan(0);
  const said = daemon.lines.filter((line) => /gpu|nvml/.test(JSON.stringify(line)));
  expect(said.map(({ device }) => device)).toEqual(others);
}, 60_000);
