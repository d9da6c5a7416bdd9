/** Names of devices, and sizes as the configuration writes them. */
import { expect, test } from "bun:test";
import {
  byteSizePattern,
  bytesOf,
  deviceNamePattern,
  gpuNumberOf,
  memoryDeviceOf,
} from "../../src/domain/devices.ts";

test("an engine's name is the card of that number", () => {
  expect(["host", "gpu-0", "gpu-12", "CUDA0", "Vulkan1", "ROCm3"].map(memoryDeviceOf)).toEqual([
    ...["host", "gpu-0", "gpu-12", "gpu-0", "gpu-1", "gpu-3"],
  ]);
  expect(["host", "gpu-7", "CUDA2"].map(gpuNumberOf)).toEqual([null, 7, 2]);
});

test("other names are refused", () => {
  const pattern = new RegExp(deviceNamePattern);
  for (const name of ["host", "gpu-0", "gpu-12", "CUDA0", "Vulkan1"]) expect(pattern.test(name)).toBe(true);
  for (const name of ["", "gpu", "gpu-", "GPU-0", "cuda0", "host0", "gpu-123", "CUDA", "0"])
    expect([name, pattern.test(name)]).toEqual([name, false]);
});

test("sizes are whole bytes", () => {
  const pattern = new RegExp(byteSizePattern);
  for (const [text, bytes] of [
    ["24GiB", 24 * 2 ** 30],
    ["1.5 GiB", 1.5 * 2 ** 30],
    ["512 MiB", 2 ** 29],
    ["3KiB", 3072],
    ["0.001KiB", 1],
  ] as const) {
    expect(pattern.test(text)).toBe(true);
    expect(bytesOf(text)).toBe(bytes);
  }
  for (const text of ["24GB", "24", "GiB", "-1GiB", "1.GiB", "1GiB "]) expect(pattern.test(text)).toBe(false);
  expect(bytesOf(77)).toBe(77);
});
