/**
 * What residency.ts decides from: devices, pools and who takes whose place; and what it is told and asks for, as data.
 * The arithmetic of memory is here, so that every step reckons alike.
 *
 * stays      holds memory and nobody takes its place
 * leaving    goes as soon as it is idle; `held`: nothing new starts on it
 * claim      a pool that will be loaded: its memory is spoken for from then on, the earlier number first
 *
 * A device is anything of which pools need bytes: a graphics card, the memory of the host.
 */
import { assert } from "./assert.ts";
import type { Bytes } from "./eviction.ts";

export interface ResidencyRules {
  /** A pool that waits to be loaded for longer takes the place of one that is in use. */
  readonly swapMaxWaitMs: number;
  /** What waited when a pool was loaded is all started before it leaves, for so long at most. */
  readonly swapTurnMaxMs: number;
}

export interface ResidencyDevice {
  readonly deviceId: string;
  totalBytes: number;
  /** Kept free, and taken by others, as configured or measured. */
  reservedBytes: number;
  lentBytes: number;
}

/** unloaded → loading → loaded → unloading → unloaded; memory is held in all but the first. */
export type Residence = "unloaded" | "loading" | "loaded" | "unloading";

export type Leaving =
  | { readonly for: "pool"; readonly poolId: string }
  | { readonly for: "device" }
  | { readonly for: "idle" };

export interface ResidencyPool {
  readonly poolId: string;
  needs: Bytes;
  loadMs: number;
  /** Unused for so long it is unloaded; null: never. */
  idleUnloadMs: number | null;
  /** It is loaded whenever there is room for it, and never for being idle unloaded. */
  preload: boolean;
  residence: Residence;
  leaving: Leaving | null;
  held: boolean;
  claim: number | null;
  /** It had to leave a device that was lent or became smaller, and comes back. */
  restore: boolean;
  busy: number;
  waiting: number;
  /** Since when the oldest of them waits. */
  oldestMs: number | null;
  /** Of those that waited when it was loaded: not started yet. */
  groupLeft: number;
  loadedMs: number;
  unloadedMs: number;
  /** A load that failed is not tried again before. */
  retryAtMs: number;
  lastUsedMs: number;
  /**
   * Times that it was asked for, those within one load of each other counted once: they would share it. Each counts
   * half after limits.residencyHalfLifeMs; as of countedMs.
   */
  uses: number;
  countedMs: number;
  /** Mean time between its last task and the next one; null: not known. */
  pauseMs: number | null;
}

export interface Residency {
  readonly rules: ResidencyRules;
  readonly devices: Map<string, ResidencyDevice>;
  readonly pools: Map<string, ResidencyPool>;
  claims: number;
  /** What the last `wake_at` said, until then. */
  wakeAtMs: number | null;
}

export type ResidencyEvent =
  /** One that is not known is there from now on. */
  | {
      readonly type: "device_measured";
      readonly deviceId: string;
      readonly totalBytes: number;
      readonly reservedBytes: number;
    }
  /** Another program is to have so much of it; Infinity: all. What had to leave comes back after device_returned. */
  | { readonly type: "device_lent"; readonly deviceId: string; readonly bytes: number }
  | { readonly type: "device_returned"; readonly deviceId: string }
  | { readonly type: "pool_added"; readonly spec: ResidencyPoolSpec }
  | {
      readonly type: "pool_configured";
      readonly poolId: string;
      readonly idleUnloadMs: number | null;
      readonly preload: boolean;
    }
  /** Whatever it held is free. */
  | { readonly type: "pool_removed"; readonly poolId: string }
  /** A better estimate, or another model. */
  | {
      readonly type: "pool_sized";
      readonly poolId: string;
      readonly needs: Bytes;
      readonly loadMs: number;
    }
  /** Slots in use, tasks that wait, since when the oldest does, and how many have started since it was told last. */
  | {
      readonly type: "work_changed";
      readonly poolId: string;
      readonly busy: number;
      readonly waiting: number;
      readonly oldestMs: number | null;
      readonly started: number;
    }
  | { readonly type: "pool_loaded"; readonly poolId: string; readonly tookMs: number }
  /** Nothing was loaded, or no longer is. Not tried again before `retryAtMs`. */
  | { readonly type: "pool_load_failed"; readonly poolId: string; readonly retryAtMs: number }
  /** A load that failed may be tried again from then on already. */
  | { readonly type: "retry_allowed"; readonly poolId: string; readonly atMs: number }
  /** Its memory is free: as asked for, or because its engine is gone for good. */
  | { readonly type: "pool_unloaded"; readonly poolId: string };

export type ResidencyCommand =
  | {
      readonly type: "load_pool";
      readonly poolId: string;
      readonly why: "wanted" | "preload" | "restored";
    }
  /** It is idle. `for`: the pool that gets its place. */
  | {
      readonly type: "unload_pool";
      readonly poolId: string;
      readonly why: Leaving["for"];
      readonly for: string | null;
    }
  /** What runs there goes on; nothing new is started until release_pool, or until it is loaded anew. */
  | { readonly type: "hold_pool"; readonly poolId: string; readonly for: string | null }
  | { readonly type: "release_pool"; readonly poolId: string }
  /** Decide again then at the latest; replaces the one before. */
  | { readonly type: "wake_at"; readonly atMs: number };

export interface ResidencyPoolSpec {
  readonly poolId: string;
  readonly needs: Bytes;
  readonly loadMs: number;
  readonly idleUnloadMs: number | null;
  readonly preload: boolean;
  /** Not loaded before; Infinity: not before retry_allowed. Absent: at once. */
  readonly retryAtMs?: number;
}

export function createResidency(
  rules: ResidencyRules,
  devices: readonly Omit<ResidencyDevice, "lentBytes">[],
  pools: readonly ResidencyPoolSpec[],
): Residency {
  assert(rules.swapMaxWaitMs >= 0 && rules.swapTurnMaxMs >= 0, "waits and turns are not negative");
  const state: Residency = {
    rules,
    devices: new Map(devices.map((device) => [device.deviceId, { ...device, lentBytes: 0 }])),
    pools: new Map(
      [...pools].sort((a, b) => (a.poolId < b.poolId ? -1 : 1)).map((spec) => [spec.poolId, unloaded(spec)]),
    ),
    claims: 0,
    wakeAtMs: null,
  };
  assert(state.devices.size === devices.length && state.pools.size === pools.length, "ids are different");
  for (const pool of state.pools.values()) assertSized(state, pool);
  return state;
}

export const unloaded = (spec: ResidencyPoolSpec): ResidencyPool => ({
  ...spec,
  residence: "unloaded",
  leaving: null,
  held: false,
  claim: null,
  restore: false,
  busy: 0,
  waiting: 0,
  oldestMs: null,
  groupLeft: 0,
  loadedMs: Number.NEGATIVE_INFINITY,
  unloadedMs: Number.NEGATIVE_INFINITY,
  retryAtMs: spec.retryAtMs ?? Number.NEGATIVE_INFINITY,
  lastUsedMs: Number.NEGATIVE_INFINITY,
  uses: 0,
  countedMs: Number.NEGATIVE_INFINITY,
  pauseMs: null,
});

export function assertSized(state: Residency, { poolId, needs, loadMs }: ResidencyPool): void {
  assert(loadMs >= 0 && Number.isFinite(loadMs), `${poolId}: a load takes time`);
  for (const [deviceId, bytes] of needs) {
    assert(state.devices.has(deviceId), `${poolId}: ${deviceId} is a device`);
    assert(bytes >= 0 && Number.isFinite(bytes), `${poolId}: needs are not negative`);
  }
}

export function poolOf(state: Residency, poolId: string): ResidencyPool {
  const pool = state.pools.get(poolId);
  assert(pool !== undefined, `${poolId} is a pool`);
  return pool;
}

export function deviceOf(state: Residency, deviceId: string): ResidencyDevice {
  const device = state.devices.get(deviceId);
  assert(device !== undefined, `${deviceId} is a device`);
  return device;
}

export const isIdle = ({ busy, waiting }: ResidencyPool): boolean => busy === 0 && waiting === 0;

export const holdsMemory = ({ residence }: ResidencyPool): boolean => residence !== "unloaded";

/** For pools; nothing where others have taken more than there is. */
export const availableOn = ({ totalBytes, reservedBytes, lentBytes }: ResidencyDevice): number =>
  Math.max(0, totalBytes - reservedBytes - lentBytes);

/** What is not held at this moment. */
export const freeOn = (state: Residency, deviceId: string): number =>
  sumOver(state, deviceId, (pool) => (holdsMemory(pool) ? -1 : 0));

/** More is held of one of its devices than there is left of it for pools: it was lent, or became smaller. */
export const isTooMuch = (state: Residency, { needs }: ResidencyPool): boolean =>
  [...needs].some(([deviceId, bytes]) => bytes > 0 && freeOn(state, deviceId) < 0);

/** What will not be held once all that leave have left and all that claim are loaded. */
export const unclaimedOn = (state: Residency, deviceId: string): number =>
  sumOver(state, deviceId, (pool) => {
    const stays = holdsMemory(pool) && pool.leaving === null && pool.residence !== "unloading";
    return (stays ? -1 : 0) - (pool.claim === null ? 0 : 1);
  });

/** What is free at this moment and not spoken for: what may be taken beside everything else. */
export const spareOn = (state: Residency, deviceId: string): number =>
  Math.min(freeOn(state, deviceId), unclaimedOn(state, deviceId));

function sumOver(state: Residency, deviceId: string, times: (pool: ResidencyPool) => number): number {
  let bytes = availableOn(deviceOf(state, deviceId));
  for (const pool of state.pools.values()) {
    const count = times(pool);
    if (count !== 0) bytes += count * (pool.needs.get(deviceId) ?? 0);
  }
  return bytes;
}

/** What of its needs exceeds `free`, by device; empty: it fits. */
export function missingFor(needs: Bytes, free: (deviceId: string) => number): Bytes {
  const missing = new Map<string, number>();
  for (const [deviceId, bytes] of needs) {
    const lacking = bytes - free(deviceId);
    if (bytes > 0 && lacking > 0) missing.set(deviceId, lacking);
  }
  return missing;
}

/** What of it no eviction frees: bytes by device that are not there, are reserved or lent. Empty: it can be loaded. */
export const shortfall = (state: Residency, poolId: string): Bytes =>
  missingFor(poolOf(state, poolId).needs, (deviceId) => availableOn(deviceOf(state, deviceId)));
