/** Cards by the names that pools use: the order, and what the operator keeps free. */
import { expect, test } from "bun:test";
import type { GpuDevice, GpuSample, GpuTelemetry } from "../../src/ports/gpu.ts";
import { cardsOf } from "../../src/services/cards.ts";

const GiB = 2 ** 30;

function telemetry(vendor: GpuDevice["vendor"], free: readonly (number | null)[]): GpuTelemetry {
  const devices = free.map((_, at) => ({
    id: `${vendor}${at}`,
    vendor,
    model: `${vendor} ${at}`,
    uuid: `uuid-${vendor}-${at}`,
    driverVersion: null,
  }));
  const samples = free.map(
    (bytes, at): GpuSample => ({
      deviceId: `${vendor}${at}`,
      state: bytes === null ? "lost" : "ok",
      utilization: null,
      memory: bytes === null ? null : { usedBytes: 0, freeBytes: bytes, totalBytes: 24 * GiB },
      ...{ powerWatts: null, temperatureCelsius: null, eccErrors: null, processes: null, failed: [] },
    }),
  );
  return { devices: () => devices, sample: () => samples, reopen: () => undefined, close: () => undefined };
}

test("NVIDIA's first, then AMD's; a lost card keeps its number and has no figures", () => {
  const cards = cardsOf([telemetry("nvidia", [null, 8 * GiB]), telemetry("amd", [3 * GiB])], []);
  expect(cards).toEqual([
    {
      ...{ name: "gpu-0", vendor: "nvidia", number: 0, uuid: "uuid-nvidia-0", model: "nvidia 0" },
      ...{ totalBytes: null, freeBytes: null },
    },
    {
      ...{ name: "gpu-1", vendor: "nvidia", number: 1, uuid: "uuid-nvidia-1", model: "nvidia 1" },
      ...{ totalBytes: 24 * GiB, freeBytes: 8 * GiB },
    },
    {
      ...{ name: "gpu-2", vendor: "amd", number: 0, uuid: "uuid-amd-0", model: "amd 0" },
      ...{ totalBytes: 24 * GiB, freeBytes: 3 * GiB },
    },
  ]);
});

test("what the operator says of a card bounds it", () => {
  const bounds = [
    { id: "gpu-0", memoryBytes: 16 * GiB, reserveBytes: 2 * GiB },
    { id: "gpu-1", memoryBytes: null, reserveBytes: 9 * GiB },
  ];
  const cards = cardsOf([telemetry("nvidia", [20 * GiB, 8 * GiB])], bounds);
  expect(cards.map(({ totalBytes, freeBytes }) => [totalBytes, freeBytes])).toEqual([
    [14 * GiB, 14 * GiB],
    [15 * GiB, 0],
  ]);
});
