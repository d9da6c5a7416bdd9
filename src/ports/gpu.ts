/**
 * Graphics cards by role: which there are, and what they do now. The adapters are in infra/gpu/; services/gpu-monitor.ts
 * asks them. A fake serves its tests.
 *
 * Always: a figure that the vendor's library does not tell is null, never 0; nothing here changes a card.
 */

export type GpuVendor = "nvidia" | "amd";

export interface GpuDevice {
  /** Vendor and number, as the library or the kernel counts: nvidia0, amd1. Names it in samples, metrics and logs. */
  readonly id: string;
  readonly vendor: GpuVendor;
  /** e.g. NVIDIA GeForce RTX 4090 */
  readonly model: string | null;
  /** Names the card on every machine. */
  readonly uuid: string | null;
  readonly driverVersion: string | null;
}

export const gpuStates = ["ok", "lost", "reset_required"] as const;
/** lost: it no longer answers, as after it fell off the bus; reset_required: it answers, and cannot work before a reset. */
export type GpuState = (typeof gpuStates)[number];

/** Memory of one process on one device. */
export interface GpuProcess {
  readonly pid: number;
  /** Null: the driver does not tell it, as under MIG without privileges. */
  readonly usedBytes: number | null;
}

/** One device at one moment. All of a lost device is null. */
export interface GpuSample {
  readonly deviceId: string;
  readonly state: GpuState;
  /** Share of the last sampling period of the driver (up to a second) in which it worked, 0 to 1. */
  readonly utilization: number | null;
  /** What the driver keeps for itself counts as neither free nor used, where it tells that apart. */
  readonly memory: {
    readonly usedBytes: number;
    readonly freeBytes: number;
    readonly totalBytes: number;
  } | null;
  readonly powerWatts: number | null;
  readonly temperatureCelsius: number | null;
  /** Errors of its memory since the driver was loaded, by whether they could be corrected. */
  readonly eccErrors: { readonly corrected: number; readonly uncorrected: number } | null;
  /** Those that compute on it; null: not told. */
  readonly processes: readonly GpuProcess[] | null;
  /** What was asked of it in vain, by name: not what it does not have, but what failed. */
  readonly failed: readonly string[];
}

export interface GpuTelemetry {
  /** Found when it was opened; none where there is no such card or no driver. */
  devices(): readonly GpuDevice[];
  /** All devices now, in their order. Synchronous: some milliseconds with a card, nothing without. */
  sample(): readonly GpuSample[];
  /** Lets go of the driver and asks it again which devices there are: a lost one comes back no other way. */
  reopen(): void;
  /** Idempotent; after it there are no devices. */
  close(): void;
}
