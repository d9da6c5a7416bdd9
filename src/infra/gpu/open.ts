/** Every graphics card of this machine that somebody can be asked about. Called once by app/bootstrap.ts. */
import type { GpuTelemetry } from "../../ports/gpu.ts";
import type { Log } from "../../ports/telemetry.ts";
import { DrmSysfsTelemetry } from "./drm-sysfs.ts";
import { NvmlTelemetry } from "./nvml.ts";

/** Only those that found a card. */
export async function openGpus(log: Log): Promise<GpuTelemetry[]> {
  const found = [await NvmlTelemetry.open({ log }), new DrmSysfsTelemetry()];
  return found
    .filter((telemetry) => telemetry !== null)
    .filter((telemetry) => telemetry.devices().length > 0);
}
