/**
 * What the graphics cards do, and what the replicas take of them: sampled while somebody wants to know it. /metrics
 * and pool health read it; placement is told how much memory is left where each replica runs (ORCHD-PLACE-1).
 * Built by app/bootstrap.ts.
 *
 * Always: without a card there is no timer and no figure. A figure is no older than one period, a process is a
 * replica's only by its process group, and what a card does not tell stays null. A sample is a call into the driver,
 * which may be slow and holds the event loop: the slower it was, the later is the next, so that sampling takes one in
 * limits.gpuCostFactor of the time, more only where that would make the figures older than limits.gpuSampleMsMax.
 */
import { limits } from "../domain/limits.ts";
import type { ReplicaSnapshot } from "../domain/pool.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { GpuDevice, GpuSample, GpuState, GpuTelemetry } from "../ports/gpu.ts";
import type { Log } from "../ports/telemetry.ts";

export interface GpuMonitorDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly telemetries: readonly GpuTelemetry[];
  /** All replicas of all pools now. */
  readonly replicas: () => readonly ReplicaSnapshot[];
  /** The process group of a live process; null: there is none. A replica's engine leads its group. */
  readonly groupOf: (pid: number) => number | null;
  /** Told when it changes by a step: the least that is free on the devices of a ready replica; null: not known. */
  readonly measured: (replica: ReplicaSnapshot, vramFreeBytes: number | null) => void;
}

/** A device at its last sample. */
export interface GpuFigures {
  readonly device: GpuDevice;
  readonly sample: GpuSample;
  /** Replicas whose processes compute on it. */
  readonly replicas: readonly ReplicaShare[];
  /** Samples since the start in which something failed or the device was lost. */
  readonly failures: number;
}

export interface ReplicaShare {
  readonly replica: ReplicaSnapshot;
  /** Of all its processes; null: the driver does not tell it. */
  readonly usedBytes: number | null;
}

interface Known {
  state: GpuState;
  failures: number;
  /** The sample before failed: it is logged once until it works again. */
  failing: boolean;
}

export class GpuMonitor {
  #figures: readonly GpuFigures[] = [];
  readonly #known = new Map<string, Known>();
  /** By replica: what placement was told last, of which incarnation. */
  readonly #told = new Map<string, { readonly incarnation: number; readonly freeBytes: number | null }>();
  #timer: Timer | null = null;
  #started = false;
  #periodMs: number = limits.gpuSampleMs;
  #sampledMs = Number.NEGATIVE_INFINITY;
  #readMs = Number.NEGATIVE_INFINITY;
  #reopenedMs = 0;

  constructor(private readonly deps: GpuMonitorDeps) {}

  /** Once the replicas are known. */
  start(): void {
    const devices = this.deps.telemetries.flatMap((telemetry) => telemetry.devices());
    for (const { id, model, driverVersion } of devices) {
      this.#known.set(id, { state: "ok", failures: 0, failing: false });
      const called = `${model ?? "of unknown model"}${driverVersion === null ? "" : `, driver ${driverVersion}`}`;
      this.deps.log.info("gpu_found", { device: id, human: `graphics card ${id} is watched: ${called}` });
    }
    if (devices.length === 0) return;
    this.#started = true;
    this.#reopenedMs = this.deps.clock.nowMs();
    this.#arm();
  }

  stop(): void {
    this.#started = false;
    this.#timer?.cancel();
    this.#timer = null;
    this.#figures = [];
    for (const telemetry of this.deps.telemetries) telemetry.close();
  }

  /** Each device; none before the start and where there is none. */
  figures(): readonly GpuFigures[] {
    if (!this.#started) return [];
    this.#readMs = this.deps.clock.nowMs();
    if (this.#readMs - this.#sampledMs >= this.#periodMs) this.#sample();
    return this.#figures;
  }

  /** Bytes on all devices together; null: nobody tells it, or it runs on none. */
  vramUsedBytes(replicaId: string): number | null {
    let sum: number | null = null;
    for (const { replicas } of this.figures())
      for (const { replica, usedBytes } of replicas) {
        if (replica.replicaId !== replicaId) continue;
        if (usedBytes === null) return null;
        sum = (sum ?? 0) + usedBytes;
      }
    return sum;
  }

  #arm(): void {
    this.#timer = this.deps.clock.setTimer(this.#periodMs, () => {
      if (this.#isWanted()) this.#sample();
      this.#arm();
    });
  }

  /** Somebody read lately, or a pool has several replicas to choose from. */
  #isWanted(): boolean {
    if (this.deps.clock.nowMs() - this.#readMs < limits.gpuReadMs) return true;
    const pools = new Set<string>();
    for (const replica of this.deps.replicas()) {
      if (!serves(replica)) continue;
      if (pools.has(replica.poolId)) return true;
      pools.add(replica.poolId);
    }
    return false;
  }

  #sample(): void {
    const { clock, telemetries } = this.deps;
    const beganMs = clock.nowMs();
    this.#reopenLost(beganMs);
    const replicas = this.deps.replicas();
    this.#figures = telemetries.flatMap((telemetry) => {
      const devices = new Map(telemetry.devices().map((device) => [device.id, device]));
      return telemetry.sample().flatMap((sample) => {
        const device = devices.get(sample.deviceId);
        return device === undefined ? [] : this.#figuresOf(device, sample, replicas);
      });
    });
    this.#tell(replicas);
    this.#sampledMs = clock.nowMs();
    const costMs = this.#sampledMs - beganMs;
    this.#periodMs = Math.min(
      limits.gpuSampleMsMax,
      Math.max(limits.gpuSampleMs, costMs * limits.gpuCostFactor),
    );
  }

  /** A card that was reset answers again only after that. */
  #reopenLost(nowMs: number): void {
    if (nowMs - this.#reopenedMs < limits.gpuReopenMs) return;
    for (const telemetry of this.deps.telemetries) {
      if (telemetry.devices().every(({ id }) => this.#known.get(id)?.state === "ok")) continue;
      this.#reopenedMs = nowMs;
      telemetry.reopen();
    }
  }

  #figuresOf(device: GpuDevice, sample: GpuSample, replicas: readonly ReplicaSnapshot[]): GpuFigures[] {
    const known = this.#known.get(device.id);
    // Put in later: it is watched from the next start on.
    if (known === undefined) return [];
    this.#note(known, sample);
    return [{ device, sample, replicas: this.#sharesOf(sample, replicas), failures: known.failures }];
  }

  #note(known: Known, { deviceId, state, failed }: GpuSample): void {
    const { log } = this.deps;
    const failing = failed.length > 0;
    if (failing || state === "lost") known.failures += 1;
    if (failing && !known.failing)
      log.warn("gpu_read_failed", {
        device: deviceId,
        failed,
        human: `graphics card ${deviceId} did not answer everything (${failed.join(", ")}): these figures are absent`,
      });
    known.failing = failing;
    if (state === known.state) return;
    known.state = state;
    const human = sentences[state](deviceId);
    if (state === "ok") log.info("gpu_state_changed", { device: deviceId, to: state, human });
    else log.warn("gpu_state_changed", { device: deviceId, to: state, human });
  }

  #sharesOf({ processes }: GpuSample, replicas: readonly ReplicaSnapshot[]): ReplicaShare[] {
    if (processes === null || processes.length === 0) return [];
    const byGroup = new Map(replicas.flatMap((one) => (one.pid === null ? [] : [[one.pid, one] as const])));
    const shares = new Map<ReplicaSnapshot, number | null>();
    for (const { pid, usedBytes } of processes) {
      const group = byGroup.has(pid) ? pid : this.deps.groupOf(pid);
      const replica = group === null ? undefined : byGroup.get(group);
      if (replica === undefined) continue;
      const before = shares.get(replica);
      shares.set(replica, usedBytes === null || before === null ? null : usedBytes + (before ?? 0));
    }
    return [...shares].map(([replica, usedBytes]) => ({ replica, usedBytes }));
  }

  #tell(replicas: readonly ReplicaSnapshot[]): void {
    for (const replica of replicas) {
      if (!serves(replica)) continue;
      const { replicaId, incarnation } = replica;
      const before = this.#told.get(replicaId);
      const same = before?.incarnation === incarnation;
      const freeBytes = steps(this.#freeBytesOf(replicaId));
      // Nothing is known of it at its start, and every difference of a few bytes would be a reason to choose it.
      if (freeBytes === (same ? before.freeBytes : null)) continue;
      this.#told.set(replicaId, { incarnation, freeBytes });
      this.deps.measured(replica, freeBytes);
    }
  }

  /** A replica on several devices has as much room as the fullest. */
  #freeBytesOf(replicaId: string): number | null {
    let least: number | null = null;
    for (const { sample, replicas } of this.#figures) {
      if (!replicas.some(({ replica }) => replica.replicaId === replicaId)) continue;
      if (sample.memory === null) return null;
      least = Math.min(least ?? sample.memory.freeBytes, sample.memory.freeBytes);
    }
    return least;
  }
}

const serves = ({ state }: ReplicaSnapshot): boolean => state === "ready" || state === "busy";

const steps = (bytes: number | null): number | null =>
  bytes === null ? null : Math.floor(bytes / limits.gpuFreeStepBytes) * limits.gpuFreeStepBytes;

const sentences: Readonly<Record<GpuState, (device: string) => string>> = {
  ok: (device) => `graphics card ${device} answers again`,
  lost: (device) =>
    `graphics card ${device} no longer answers: see dmesg; it needs a reset, or the machine a restart`,
  reset_required: (device) => `graphics card ${device} must be reset before it can work again: see dmesg`,
};
