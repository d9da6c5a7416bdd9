/**
 * Use case "lend a device to another program": its pools finish what runs until a deadline, are cut then, unloaded, and come
 * back when it is returned. api/devices.ts asks; the residency decides who has to go, the deadlines' timers are here.
 *
 * Always holds: a loan is on the disk before anything moves, so it outlives the daemon; after a restart nothing runs
 * there, so no deadline is left.
 */
import { closest } from "fastest-levenshtein";
import { memoryDeviceOf } from "../domain/devices.ts";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import { freeOn, isTooMuch, type Residency } from "../domain/residency-state.ts";
import type { SchedulerEvent } from "../domain/scheduler-protocol.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { KeptRecords, LendRecord } from "../ports/pool-store.ts";
import type { Log } from "../ports/telemetry.ts";
import type { PoolResidence } from "./pool-memory.ts";
import { storing } from "./refusals.ts";
import type { ResidencyKeeper } from "./residency-keeper.ts";
import { sizeText } from "./residency-sentences.ts";

export interface DeviceView {
  readonly id: string;
  /** Null: nobody tells it, so it bounds nothing. */
  readonly totalBytes: number | null;
  /** What no pool holds; null likewise. */
  readonly freeBytes: number | null;
  /** Kept free, and taken by others. */
  readonly reservedBytes: number;
  readonly lentBytes: number;
  readonly lent: { readonly sinceMs: number; readonly deadlineMs: number } | null;
  readonly pools: readonly {
    readonly id: string;
    readonly residence: PoolResidence;
    readonly needsBytes: number;
  }[];
}

export interface DeviceLendingDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly store: KeptRecords<LendRecord>;
  readonly keeper: Pick<ResidencyKeeper, "state" | "view" | "deviceChanged" | "abandonLoads">;
  /** Resolves once the scheduler has decided it. */
  readonly tell: (event: SchedulerEvent) => Promise<void>;
  /** Memory is back, and the keeper knows. */
  readonly returned?: () => void;
}

export class DeviceLending {
  readonly #lent = new Map<string, LendRecord>();
  readonly #timers = new Map<string, Timer>();

  /** @throws StoreError */
  constructor(private readonly deps: DeviceLendingDeps) {
    for (const record of deps.store.all()) this.#lent.set(record.deviceId, record);
    for (const deviceId of this.#lent.keys())
      deps.log.warn("device_still_lent", {
        device: deviceId,
        human: `device ${deviceId} was lent before the restart: POST /v1/devices/${deviceId}/return`,
      });
  }

  /** What the last process left lent: bytes, null for all. */
  get lent(): ReadonlyMap<string, number | null> {
    return new Map([...this.#lent].map(([deviceId, { bytes }]) => [deviceId, bytes]));
  }

  list(): readonly DeviceView[] {
    const state = this.deps.keeper.state;
    return state === null ? [] : [...state.devices.keys()].map((deviceId) => this.#view(state, deviceId));
  }

  /** @throws NOT_FOUND */
  get(id: string): DeviceView {
    const { state, deviceId } = this.#find(id);
    return this.#view(state, deviceId);
  }

  /**
   * From now on so much of it is another program's (null: all). What runs on a pool that has to go is cut in `deadlineMs`.
   * @throws NOT_FOUND, CONFLICT, STORAGE_UNAVAILABLE
   */
  lend(id: string, bytes: number | null, deadlineMs: number): DeviceView {
    const { clock, log, store, keeper } = this.deps;
    const { state, deviceId } = this.#find(id);
    if (this.#lent.has(deviceId))
      throw new OrchestratorError("CONFLICT", `device ${deviceId} is lent already: return it first`);
    const nowMs = clock.nowMs();
    const record = { deviceId, bytes, sinceMs: nowMs, deadlineMs: nowMs + deadlineMs };
    storing(() => store.put(record));
    this.#lent.set(deviceId, record);
    keeper.deviceChanged({ type: "device_lent", deviceId, bytes: bytes ?? Number.POSITIVE_INFINITY });
    const timer = clock.setTimer(deadlineMs, () => {
      this.#timers.delete(deviceId);
      this.#cut();
    });
    this.#timers.set(deviceId, timer);
    const amount = bytes === null ? "all" : sizeText(bytes);
    log.info("device_lent", {
      ...{ device: deviceId, bytes, deadline_ms: deadlineMs },
      human: `${amount} of device ${deviceId} is lent; what runs on pools that have to go is cut in ${deadlineMs} ms`,
    });
    return this.#view(state, deviceId);
  }

  /** Nothing happens where it is not lent. @throws NOT_FOUND, STORAGE_UNAVAILABLE */
  giveBack(id: string): DeviceView {
    const { clock, log, store, keeper, returned } = this.deps;
    const { state, deviceId } = this.#find(id);
    if (this.#lent.has(deviceId)) {
      storing(() => store.remove(deviceId));
      this.#lent.delete(deviceId);
      this.#timers.get(deviceId)?.cancel();
      this.#timers.delete(deviceId);
      keeper.deviceChanged({ type: "device_returned", deviceId });
      // Behind the keeper, which takes it soon.
      if (returned !== undefined) clock.soon(returned);
      log.info("device_returned", {
        device: deviceId,
        human: `device ${deviceId} is back: what had to go is loaded again`,
      });
    }
    return this.#view(state, deviceId);
  }

  stop(): void {
    for (const timer of this.#timers.values()) timer.cancel();
    this.#timers.clear();
  }

  /** Whoever is to go and still holds what is lent has had its time. */
  #cut(): void {
    const { keeper, tell } = this.deps;
    const { state } = keeper;
    keeper.abandonLoads();
    for (const pool of state?.pools.values() ?? [])
      if (state !== null && pool.held && isTooMuch(state, pool))
        void tell({ type: "hold_deadline_passed", poolId: pool.poolId, by: "memory" });
  }

  #find(id: string): { readonly state: Residency; readonly deviceId: string } {
    const state = this.deps.keeper.state;
    const deviceId = memoryDeviceOf(id);
    if (state?.devices.has(deviceId)) return { state, deviceId };
    const ids = [...(state?.devices.keys() ?? [])];
    const hint = ids.length === 0 ? "there is none" : `the nearest one is "${closest(id, ids)}"`;
    throw new OrchestratorError("NOT_FOUND", `no device "${id}"; ${hint}; GET /v1/devices lists them all`);
  }

  #view(state: Residency, deviceId: string): DeviceView {
    const device = state.devices.get(deviceId);
    const totalBytes = device?.totalBytes ?? 0;
    const known = totalBytes < limits.deviceBytesMax;
    const record = this.#lent.get(deviceId);
    const pools = [...state.pools.values()].flatMap(({ poolId, needs }) => {
      const needsBytes = needs.get(deviceId);
      const view = this.deps.keeper.view(poolId);
      return needsBytes === undefined || view === null
        ? []
        : [{ id: poolId, residence: view.residence, needsBytes }];
    });
    return {
      id: deviceId,
      totalBytes: known ? totalBytes : null,
      freeBytes: known ? Math.max(0, freeOn(state, deviceId)) : null,
      reservedBytes: device?.reservedBytes ?? 0,
      lentBytes: record === undefined ? 0 : Math.min(record.bytes ?? totalBytes, totalBytes),
      lent: record === undefined ? null : { sinceMs: record.sinceMs, deadlineMs: record.deadlineMs },
      pools,
    };
  }
}
