/**
 * Devices and the pools that share them, compiled: the sections `devices` and `residency` of the configuration file, and
 * what is wrong with a pool's keys about memory. Called by app/config.ts and config-pools.ts.
 */
import { dealingProblem, mixesNames } from "../domain/device-plan.ts";
import { bytesOf, memoryDeviceOf } from "../domain/devices.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { ResidencyRules } from "../domain/residency-state.ts";
import type { DeviceSpec } from "../services/device-memory.ts";
import type { Problems, Segments } from "./config-problems.ts";
import type { FilledConfigFile, FilledPool } from "./config-schema.ts";

export function compileDevices(
  { devices, residency }: FilledConfigFile,
  problems: Problems,
): { readonly devices: readonly DeviceSpec[]; readonly residency: ResidencyRules } {
  const seen = new Map<string, number>();
  devices.forEach(({ id, memory_bytes, reserve_bytes }, index) => {
    const device = memoryDeviceOf(id);
    const twin = seen.get(device);
    if (twin !== undefined)
      problems.atPath(["devices", index, "id"], `found ${id}, which devices[${twin}] is already`);
    seen.set(device, index);
    if (memory_bytes !== null && reserve_bytes !== null && bytesOf(reserve_bytes) > bytesOf(memory_bytes)) {
      const message = `found ${reserve_bytes}, expected at most memory_bytes (${memory_bytes})`;
      problems.atPath(["devices", index, "reserve_bytes"], message);
    }
  });
  return {
    devices: devices.map(({ id, memory_bytes, reserve_bytes }) => ({
      id: memoryDeviceOf(id),
      memoryBytes: memory_bytes === null ? null : bytesOf(memory_bytes),
      reserveBytes: reserve_bytes === null ? null : bytesOf(reserve_bytes),
    })),
    residency: { swapMaxWaitMs: residency.swap_max_wait_ms, swapTurnMaxMs: residency.swap_turn_max_ms },
  };
}

/** Where a pool's replicas lie; lists of each replica's say the pool's too. */
export function placed(pool: FilledPool): Pick<PoolSpec, "devices" | "replicaDevices"> {
  const each = pool.replica_devices;
  const named = pool.devices ?? [];
  const devices = named.length === 0 && each !== null ? [...new Set(each.flat())] : named;
  return each === null ? { devices } : { devices, replicaDevices: each };
}

/** Devices that no replica could be told to use. */
export function checkPlacing(pool: FilledPool, path: Segments, problems: Problems): void {
  const { devices, replicaDevices } = placed(pool);
  const key = replicaDevices === null ? "devices" : "replica_devices";
  const why = dealingProblem({ devices, replicaDevices, replicas: pool.replicas });
  if (why !== null) problems.atPath([...path, key], why);
  if (mixesNames(devices)) {
    const message = `found ${devices.join(", ")}, expected only gpu-0, gpu-1 and so on, or only names of the engine`;
    problems.atPath([...path, key], message);
  }
  replicaDevices?.forEach((list, at) => {
    const foreign = list.filter((name) => !devices.includes(name));
    if (foreign.length === 0) return;
    const message = `found ${foreign.join(", ")}, which devices of the pool does not name`;
    problems.atPath([...path, "replica_devices", at], message);
  });
}

/** Keys of one pool that say nothing together. */
export function checkMemoryKeys(pool: FilledPool, path: Segments, problems: Problems): void {
  if (pool.idle_unload_ms !== null && pool.preload)
    problems.atPath(
      [...path, "idle_unload_ms"],
      `found ${pool.idle_unload_ms} with preload: true, which keeps it loaded; set preload: false`,
    );
  if (pool.engine !== "openai") return;
  for (const key of ["devices", "replica_devices", "idle_unload_ms"] as const) {
    const value = pool[key];
    if (value !== null && (!Array.isArray(value) || value.length > 0))
      problems.atPath([...path, key], "engine openai loads nothing here: leave it out", "key");
  }
}
