/**
 * The graphics cards as pools name them: gpu-0, gpu-1 … in the order of telemetry (NVIDIA's by the PCI bus, then AMD's),
 * with their memory now. Asked by the llama.cpp adapter before a start that names devices; app/bootstrap.ts wires it.
 */
import type { Card } from "../domain/device-plan.ts";
import { gpuDevice } from "../domain/devices.ts";
import type { GpuTelemetry } from "../ports/gpu.ts";
import type { DeviceSpec } from "./device-memory.ts";

export function cardsOf(telemetries: readonly GpuTelemetry[], bounds: readonly DeviceSpec[]): Card[] {
  const numbers = { nvidia: 0, amd: 0 };
  return telemetries
    .flatMap((telemetry) => {
      const samples = new Map(telemetry.sample().map((sample) => [sample.deviceId, sample]));
      return telemetry
        .devices()
        .map((device) => ({ device, memory: samples.get(device.id)?.memory ?? null }));
    })
    .map(({ device, memory }, at) => {
      const { vendor, uuid, model } = device;
      const name = gpuDevice(at);
      const bound = bounds.find(({ id }) => id === name);
      const most = bound?.memoryBytes ?? Number.POSITIVE_INFINITY;
      const within = (bytes: number): number =>
        Math.max(0, Math.min(bytes, most) - (bound?.reserveBytes ?? 0));
      const number = numbers[vendor]++;
      return {
        ...{ name, vendor, number, uuid, model },
        totalBytes: memory === null ? null : within(memory.totalBytes),
        freeBytes: memory === null ? null : within(memory.freeBytes),
      };
    });
}
