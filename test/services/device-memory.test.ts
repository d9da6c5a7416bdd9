/** What devices have: configured, measured, taken by others; and where pools lie (ORCHD-MEM-3). */
import { describe, expect, test } from "bun:test";
import { limits } from "../../src/domain/limits.ts";
import type { GpuSample } from "../../src/ports/gpu.ts";
import { DeviceMemory, type DeviceMemoryDeps } from "../../src/services/device-memory.ts";
import type { GpuFigures } from "../../src/services/gpu-monitor.ts";
import { poolSpec, snapshot } from "../support/replicas.ts";

const GiB = 2 ** 30;

const card = (usedBytes: number, freeBytes: number, ours: number | null = 0): GpuFigures => {
  const sample: GpuSample = {
    ...{ deviceId: "nvidia0", state: "ok", utilization: null, powerWatts: null, temperatureCelsius: null },
    ...{ eccErrors: null, processes: [], failed: [] },
    memory: { usedBytes, freeBytes, totalBytes: 24 * GiB },
  };
  const replica = snapshot({ replicaId: "a-0", state: "ready" });
  const device = { id: "nvidia0", vendor: "nvidia", model: null, uuid: null, driverVersion: null } as const;
  return { device, sample, replicas: ours === 0 ? [] : [{ replica, usedBytes: ours }], failures: 0 };
};

const deps = (more: Partial<DeviceMemoryDeps> = {}): DeviceMemoryDeps => ({
  configured: [],
  gpus: { figures: () => [] },
  host: { sample: () => ({ totalBytes: 40 * GiB, availableBytes: 30 * GiB }) },
  ...more,
});
const lying = (devices: readonly string[], of: DeviceMemory) => of.lyingsOf(poolSpec({ devices }))[0];

describe("the devices", () => {
  test("without a card the host's memory, less what others take and a reserve", () => {
    const devices = new DeviceMemory(deps(), [poolSpec()]);
    expect(devices.list()).toEqual([
      { deviceId: "host", totalBytes: 40 * GiB, reservedBytes: 10 * GiB + 4 * GiB },
    ]);
    expect(lying([], devices)).toEqual({ devices: ["host"], gpus: [], host: "host" });
  });

  test("with cards those, and the host only where somebody names it", () => {
    const gpus = { figures: () => [card(2 * GiB, 22 * GiB), card(0, 24 * GiB)] };
    const devices = new DeviceMemory(deps({ gpus }), [poolSpec()]);
    expect(devices.list()).toEqual([
      { deviceId: "gpu-0", totalBytes: 24 * GiB, reservedBytes: 2 * GiB + limits.gpuReserveBytes },
      { deviceId: "gpu-1", totalBytes: 24 * GiB, reservedBytes: limits.gpuReserveBytes },
    ]);
    expect(lying([], devices)).toEqual({ devices: ["gpu-0", "gpu-1"], gpus: ["gpu-0", "gpu-1"], host: null });
    const both = new DeviceMemory(deps({ gpus }), [poolSpec({ devices: ["host"] })]);
    expect(both.has("host")).toBe(true);
    expect(lying(["CUDA1"], both)).toEqual({ devices: ["gpu-1"], gpus: ["gpu-1"], host: "host" });
    expect(lying(["host"], both)).toEqual({ devices: ["host"], gpus: [], host: "host" });
  });

  test("each replica on its own card, where there are several", () => {
    const gpus = { figures: () => [card(0, 24 * GiB), card(0, 24 * GiB)] };
    const pool = poolSpec({ devices: ["gpu-0", "gpu-1"], replicas: 2 });
    const lyings = new DeviceMemory(deps({ gpus }), [pool]).lyingsOf(pool);
    expect(lyings.map((lying) => lying.gpus)).toEqual([["gpu-0"], ["gpu-1"]]);
  });

  test("what the operator says counts, and its reserve", () => {
    const configured = [
      { id: "host", memoryBytes: 5 * GiB, reserveBytes: null },
      { id: "gpu-0", memoryBytes: null, reserveBytes: GiB },
    ];
    const gpus = { figures: () => [card(0, 24 * GiB)] };
    expect(new DeviceMemory(deps({ configured, gpus }), []).list()).toEqual([
      { deviceId: "gpu-0", totalBytes: 24 * GiB, reservedBytes: GiB },
      { deviceId: "host", totalBytes: 5 * GiB, reservedBytes: 0 },
    ]);
  });

  test("what nobody tells bounds nothing", () => {
    const devices = new DeviceMemory(deps({ host: { sample: () => null } }), []);
    expect(devices.list()).toEqual([
      { deviceId: "host", totalBytes: limits.deviceBytesMax, reservedBytes: 0 },
    ]);
    const unseen = new DeviceMemory(deps(), [poolSpec({ devices: ["gpu-3"] })]);
    expect(unseen.list().map(({ deviceId, totalBytes }) => [deviceId, totalBytes])).toEqual([
      ["gpu-3", limits.deviceBytesMax],
      ["host", 40 * GiB],
    ]);
  });
});

describe("measured again", () => {
  test("what others take of a card is what is neither free nor ours", () => {
    let now = card(0, 24 * GiB);
    const devices = new DeviceMemory(deps({ gpus: { figures: () => [now] } }), []);
    now = card(10 * GiB, 14 * GiB, 7 * GiB);
    const reservedBytes = 3 * GiB + limits.gpuReserveBytes;
    expect(devices.measure(() => 7 * GiB)).toEqual([
      { deviceId: "gpu-0", totalBytes: 24 * GiB, reservedBytes },
    ]);
    expect(devices.measure(() => 7 * GiB)).toEqual([]);
    // The driver does not tell whose it is: what was reckoned for ours stands in for it.
    now = card(10 * GiB, 14 * GiB, null);
    expect(devices.measure(() => 9 * GiB)).toEqual([
      { deviceId: "gpu-0", totalBytes: 24 * GiB, reservedBytes: GiB + limits.gpuReserveBytes },
    ]);
  });

  test("a card that is lost, or does not answer for once, is no larger for that", () => {
    let now = card(0, 24 * GiB);
    const devices = new DeviceMemory(deps({ gpus: { figures: () => [now] } }), []);
    const before = devices.list();
    now = { ...now, sample: { ...now.sample, state: "lost", memory: null } };
    expect(devices.measure(() => 0)).toEqual([]);
    expect(devices.list()).toEqual(before);
    now = card(4 * GiB, 20 * GiB);
    expect(devices.measure(() => 0)).toEqual([
      { deviceId: "gpu-0", totalBytes: 24 * GiB, reservedBytes: 4 * GiB + limits.gpuReserveBytes },
    ]);
  });

  test("not while something of ours moves there, and of the host not beside loaded engines", () => {
    let availableBytes = 30 * GiB;
    const host = { sample: () => ({ totalBytes: 40 * GiB, availableBytes }) };
    const devices = new DeviceMemory(deps({ host }), []);
    availableBytes = 20 * GiB;
    expect(devices.measure(() => null)).toEqual([]);
    expect(devices.measure(() => 5)).toEqual([]);
    expect(devices.measure(() => 0)).toEqual([
      { deviceId: "host", totalBytes: 40 * GiB, reservedBytes: 24 * GiB },
    ]);
  });
});
