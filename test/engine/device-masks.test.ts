/**
 * Which devices each replica computes on, in the whole daemon (ORCHD-GPU-3, ORCHD-GPU-4): what an engine is told, beside a
 * stand-in for NVIDIA's library that counts two cards of different sizes; and the real engine with two rpc-servers for
 * cards, which share a model or hold one each.
 */
import { afterAll, afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { writeLyingServer } from "../support/lying-llama-server.ts";
import { NvmlStandIn } from "../support/nvml-stand-in.ts";
import { type StartedRpcServer, startRpcServer } from "../support/rpc-server.ts";
import { waitFor } from "../support/wait.ts";
import { patienceMs, submitAndWatch } from "./support.ts";

const library = new NvmlStandIn();
let folder: string;
const servers: StartedRpcServer[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "orchd-masks-"));
});
afterEach(async () => {
  await endDaemons();
  for (const server of servers.splice(0)) await server.kill();
  rmSync(folder, { recursive: true, force: true });
}, 60_000);
afterAll(() => library.remove());

interface Replica {
  readonly id: string;
  readonly state: string;
  readonly devices: readonly string[];
  readonly last_error: { readonly cause: string; readonly message: string } | null;
}
const replicasOf = async (daemon: RunningDaemon, pool: string): Promise<readonly Replica[]> =>
  (await daemon.json<{ replicas: readonly Replica[] }>(`/v1/pools/${pool}/health`)).replicas;

/** An engine that notes what it was started with, then lies that it is one. */
function notingEngine(): { readonly path: string; started(replicaId: string): Record<string, string> } {
  const notes = join(folder, "started");
  writeFileSync(notes, "");
  const lying = writeLyingServer(folder);
  const path = join(folder, "noting-server");
  const names = ["CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"];
  const values = names.map((name) => `${name}=\${${name}-unset}`).join("|");
  writeFileSync(path, `#!/bin/sh\nprintf '%s\\n' "argv=$*|${values}" >> '${notes}'\nexec '${lying}' "$@"\n`, {
    mode: 0o755,
  });
  const started = (replicaId: string): Record<string, string> => {
    const lines = readFileSync(notes, "utf8").split("\n");
    const line = lines.find((text) => text.includes(`/${replicaId}.key `));
    if (line === undefined) throw new Error(`${replicaId} was not started`);
    return Object.fromEntries(line.split("|").map((part) => part.split(/=(.*)/s).slice(0, 2)));
  };
  return { path, started };
}
const flag = (argv: string | undefined, name: string): string | null =>
  new RegExp(` ${name} (\\S+)`).exec(argv ?? "")?.[1] ?? null;

test("each replica gets its mask; a model over both cards its shares; a card that is not there is told", async () => {
  const engine = notingEngine();
  const pool = (id: string, more: Record<string, unknown>) =>
    enginePool(id, testModel("demo"), { slots: 1, ctx: 512, ...more } as never);
  const daemon = await startDaemon({
    settings: {
      engines: { llamacpp: { bin: engine.path } },
      pools: [
        pool("each", { replicas: 2, devices: ["gpu-0", "gpu-1"] }),
        pool("both", { devices: ["gpu-1", "gpu-0"] }),
        pool("listed", {
          replicas: 2,
          replica_devices: [["gpu-1"], ["gpu-0", "gpu-1"]],
          args: ["-ts", "1,1"],
        }),
        pool("plain", { devices: ["host"] }),
        pool("own", { devices: ["CUDA1"], env: { CUDA_VISIBLE_DEVICES: "7" } }),
        pool("any", {}),
        pool("lost", { devices: ["gpu-5"], preload: false }),
      ],
    },
    env: {
      PATH: process.env.PATH ?? "/usr/bin:/bin",
      HOME: folder,
      LD_LIBRARY_PATH: dirname(library.path),
      NVML_STAND_IN_CARDS: "8,16",
    },
  });

  const mask = (id: string) => engine.started(id).CUDA_VISIBLE_DEVICES;
  expect(["each-0", "each-1", "both-0", "listed-0", "listed-1"].map(mask)).toEqual([
    "0",
    "1",
    "1,0",
    "1",
    "0,1",
  ]);
  expect(engine.started("each-0")).toMatchObject({
    CUDA_DEVICE_ORDER: "PCI_BUS_ID",
    ROCR_VISIBLE_DEVICES: "",
    HIP_VISIBLE_DEVICES: "-1",
  });
  const split = (id: string) => flag(engine.started(id).argv, "--tensor-split");
  expect(["each-0", "both-0", "listed-1"].map(split)).toEqual([null, "16384,8192", null]);
  expect([mask("plain-0"), flag(engine.started("plain-0").argv, "--device")]).toEqual(["", "none"]);
  // What the pool says itself wins.
  expect([mask("own-0"), flag(engine.started("own-0").argv, "--device")]).toEqual(["7", "CUDA1"]);
  expect([mask("any-0"), flag(engine.started("any-0").argv, "--device")]).toEqual(["unset", null]);

  const shown = async (id: string) => (await replicasOf(daemon, id)).map(({ devices }) => devices);
  expect(await shown("each")).toEqual([["gpu-0"], ["gpu-1"]]);
  expect(await shown("listed")).toEqual([["gpu-1"], ["gpu-0", "gpu-1"]]);
  expect(await shown("any")).toEqual([[]]);

  await submitAndWatch(daemon, {
    prompt: "x",
    max_tokens: 1,
    placement: { mode: "pin", pin_pool_id: "lost" },
  });
  const lost = await waitFor(
    async () => (await replicasOf(daemon, "lost")).find(({ last_error }) => last_error !== null),
    patienceMs,
    "the start that fails",
  );
  expect(lost.last_error?.cause).toBe("device_failed");
  expect(lost.last_error?.message).toMatch(
    /^there is no gpu-5 here: there are gpu-0 \(.*8 GiB\), gpu-1 \(.*16 GiB\) and host: correct "devices" of pool lost/,
  );
}, 120_000);

/** What the engine says of the devices that hold a part of the model, in its order. */
function breakdown(lines: readonly string[]): readonly { readonly name: string; readonly model: number }[] {
  const last = lines.findLast((line) => line.includes('"fit_memory_breakdown"'));
  if (last === undefined) throw new Error(`no breakdown in:\n${lines.join("\n")}`);
  const { data } = JSON.parse(last) as {
    data: { rows: { kind: string; name: string; model: number }[] };
  };
  return data.rows.filter(({ kind, model }) => kind === "device" && model > 0);
}

test("the real engine with two devices: shared as named, one of them, or none, and the same words", async () => {
  // An rpc-server serves one engine at a time.
  for (let n = 0; n < 5; n += 1) servers.push(await startRpcServer());
  const [a, b, c, d, e] = servers.map(({ address }) => address);
  const pool = (id: string, more: Record<string, unknown>) =>
    enginePool(id, testModel("demo"), { slots: 1, ctx: 512, ...more } as never);
  const daemon = await startDaemon({
    settings: {
      pools: [
        pool("alone", {}),
        pool("both", { rpc: [a, b], devices: ["RPC1", "RPC0"], args: ["--tensor-split", "3,1"] }),
        pool("second", { rpc: [c, d], devices: ["RPC1"] }),
        pool("none", { rpc: [e], devices: ["host"] }),
      ],
    },
  });
  const memory = async (id: string) => {
    const { replicas } = await daemon.json<{ replicas: { lines: string[] }[] }>(`/v1/pools/${id}/logs`);
    return breakdown(replicas.flatMap(({ lines }) => lines));
  };
  const words = async (id: string) => {
    const task = { prompt: "Once upon a time", max_tokens: 24, sampling: { temperature: 0 } };
    const viewer = await submitAndWatch(daemon, { ...task, placement: { mode: "pin", pin_pool_id: id } });
    return (await viewer.finished()).text;
  };
  const alone = await words("alone");
  expect(alone.length).toBeGreaterThan(10);
  for (const id of ["both", "second", "none"]) expect(await words(id)).toBe(alone);

  const both = await memory("both");
  expect(both.map(({ name }) => name)).toEqual(["RPC1", "RPC0"]);
  const [more, less] = both.map(({ model }) => model);
  expect(more).toBeGreaterThan(less ?? Number.NaN);
  expect((await memory("second")).map(({ name }) => name)).toEqual(["RPC1"]);
  expect(await memory("none")).toEqual([]);
}, 120_000);
