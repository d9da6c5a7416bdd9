/**
 * The devices whose memory models share: which there are, how much they have, and what others take of it. What the
 * operator says counts; the rest is measured. services/residency-keeper.ts asks.
 *
 * Always holds: an id means the same device as long as the daemon runs. Where nobody tells how much a device has, it
 * bounds nothing. Others' memory is measured only while nothing of ours moves there: in between it cannot be told apart.
 */
import { devicesOfReplica } from "../domain/device-plan.ts";
import { gpuDevice, gpuNumberOf, hostDevice, memoryDeviceOf } from "../domain/devices.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { HostMemory } from "../ports/memory.ts";
import type { GpuFigures } from "./gpu-monitor.ts";
import type { Lying } from "./model-needs.ts";

/** What the operator says of a device; null: it is measured, or a share of what there is. */
export interface DeviceSpec {
  readonly id: string;
  readonly memoryBytes: number | null;
  readonly reserveBytes: number | null;
}

export interface MemoryFigures {
  readonly deviceId: string;
  /** limits.deviceBytesMax where nobody tells it. */
  readonly totalBytes: number;
  /** Kept free, and taken by others. */
  readonly reservedBytes: number;
}

export interface DeviceMemoryDeps {
  readonly configured: readonly DeviceSpec[];
  readonly gpus: { figures(): readonly GpuFigures[] };
  readonly host: HostMemory;
}

export class DeviceMemory {
  readonly #cards: readonly string[];
  readonly #known = new Map<string, MemoryFigures>();

  constructor(
    private readonly deps: DeviceMemoryDeps,
    pools: readonly PoolSpec[],
  ) {
    const named = deps.configured.map(({ id }) => id).filter((id) => gpuNumberOf(id) !== null);
    const found = deps.gpus.figures().map((_, at) => gpuDevice(at));
    this.#cards = [...new Set([...found, ...named])];
    const ids = new Set([...this.#cards, ...deps.configured.map(({ id }) => id)]);
    for (const pool of pools)
      for (let replica = 0; replica < pool.replicas; replica++)
        for (const name of devicesOfReplica(pool, replica)) ids.add(memoryDeviceOf(name));
    if (this.#cards.length === 0) ids.add(hostDevice);
    for (const id of [...ids].sort()) this.#known.set(id, this.#measured(id, 0));
  }

  list(): readonly MemoryFigures[] {
    return [...this.#known.values()];
  }

  /** A device that a pool names which was not there before. */
  know(deviceId: string): MemoryFigures {
    const known = this.#known.get(deviceId) ?? this.#measured(deviceId, 0);
    this.#known.set(deviceId, known);
    return known;
  }

  has(deviceId: string): boolean {
    return this.#known.has(deviceId);
  }

  /** Of each of its replicas. */
  lyingsOf(pool: PoolSpec): readonly Lying[] {
    return Array.from({ length: pool.replicas }, (_, replica) =>
      this.#lyingOf(devicesOfReplica(pool, replica)),
    );
  }

  #lyingOf(devices: readonly string[]): Lying {
    const byDefault = this.#cards.length === 0 ? [hostDevice] : this.#cards;
    const names = devices.length === 0 ? byDefault : [...new Set(devices.map(memoryDeviceOf))];
    const gpus = names.filter((id) => gpuNumberOf(id) !== null);
    return { devices: names, gpus, host: this.#known.has(hostDevice) ? hostDevice : null };
  }

  /** Those that differ by a step from what was known. `oursOf`: bytes that our engines take there; null: they move. */
  measure(oursOf: (deviceId: string) => number | null): readonly MemoryFigures[] {
    const changed: MemoryFigures[] = [];
    for (const before of this.#known.values()) {
      const ours = oursOf(before.deviceId);
      if (ours === null || (before.deviceId === hostDevice && ours > 0)) continue;
      const now = this.#measured(before.deviceId, ours);
      // A card that is lost, or does not answer for once, is no larger for that.
      if (now.totalBytes === limits.deviceBytesMax && now.totalBytes !== before.totalBytes) continue;
      const isSame =
        now.totalBytes === before.totalBytes &&
        Math.abs(now.reservedBytes - before.reservedBytes) < limits.gpuFreeStepBytes;
      if (isSame) continue;
      this.#known.set(before.deviceId, now);
      changed.push(now);
    }
    return changed;
  }

  #measured(deviceId: string, ours: number): MemoryFigures {
    const said = this.deps.configured.find(({ id }) => id === deviceId);
    if (said !== undefined && said.memoryBytes !== null)
      return { deviceId, totalBytes: said.memoryBytes, reservedBytes: said.reserveBytes ?? 0 };
    const seen = deviceId === hostDevice ? this.#host() : this.#card(gpuNumberOf(deviceId) ?? -1, ours);
    if (seen === null)
      return { deviceId, totalBytes: limits.deviceBytesMax, reservedBytes: said?.reserveBytes ?? 0 };
    const reserve = said?.reserveBytes ?? seen.reserveBytes;
    const reservedBytes = Math.min(seen.totalBytes, reserve + Math.max(0, seen.othersBytes));
    return { deviceId, totalBytes: seen.totalBytes, reservedBytes };
  }

  /** Files that are mapped count as available: with engines loaded it cannot be told what others take. */
  #host(): Seen | null {
    const sample = this.deps.host.sample();
    if (sample === null) return null;
    const { totalBytes, availableBytes } = sample;
    const share = totalBytes / limits.hostReserveParts;
    const reserveBytes = Math.floor(Math.min(limits.hostReserveBytesMax, share));
    return { totalBytes, othersBytes: totalBytes - availableBytes, reserveBytes };
  }

  #card(number: number, ours: number): Seen | null {
    const figures = this.deps.gpus.figures()[number];
    const memory = figures?.sample.memory ?? null;
    if (figures === undefined || memory === null) return null;
    let used: number | null = 0;
    for (const { usedBytes } of figures.replicas)
      used = usedBytes === null || used === null ? null : used + usedBytes;
    const othersBytes = memory.totalBytes - memory.freeBytes - Math.max(used ?? 0, used === null ? ours : 0);
    return { totalBytes: memory.totalBytes, othersBytes, reserveBytes: limits.gpuReserveBytes };
  }
}

interface Seen {
  readonly totalBytes: number;
  readonly othersBytes: number;
  readonly reserveBytes: number;
}
