/**
 * What memory is needed for and by whom: each managed pool with its needs, its work and what keeps it from being loaded,
 * told to the residency. Owned by services/residency-keeper.ts, which decides when.
 *
 * Always holds: a pool that needs more than its devices will ever have asks for no memory, and who waits for it is told;
 * one whose file is not there yet asks for none before that was fetched, or could not be.
 */
import { assert } from "../domain/assert.ts";
import { replicaNumberOf } from "../domain/device-plan.ts";
import { gpuNumberOf } from "../domain/devices.ts";
import type { Bytes } from "../domain/eviction.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec, ReplicaFailure, ReplicaSnapshot } from "../domain/pool.ts";
import { tell } from "../domain/residency.ts";
import {
  availableOn,
  createResidency,
  deviceOf,
  holdsMemory,
  missingFor,
  poolOf,
  type Residency,
  type ResidencyCommand,
  type ResidencyEvent,
  type ResidencyPool,
  type ResidencyRules,
} from "../domain/residency-state.ts";
import type { Clock } from "../ports/clock.ts";
import type { ModelGate } from "../ports/supervision.ts";
import type { Log } from "../ports/telemetry.ts";
import type { DeviceMemory } from "./device-memory.ts";
import type { Dispatcher } from "./dispatcher.ts";
import type { ModelNeeds } from "./model-needs.ts";
import { neverFits } from "./residency-sentences.ts";

export const residences = ["unloaded", "waiting_for_memory", "loading", "loaded", "unloading"] as const;
export type PoolResidence = (typeof residences)[number];

/** A pool as memory sees it. */
export interface ResidenceView {
  readonly residence: PoolResidence;
  readonly needs: Bytes;
  /** Why it cannot be loaded at all; null: it can. */
  readonly problem: ReplicaFailure | null;
}

/** Memory that a reload wants for the next generation of a pool's engines. */
export interface Reservation {
  readonly to: PoolSpec;
  readonly sinceMs: number;
  /** What it takes beside the one that is loaded; null: it takes its place. */
  readonly beside: Bytes | null;
  /** Where it fails the engines before it start again in its place. */
  readonly returns: boolean;
  granted: boolean;
  /** With null, or with the reason why it is not. */
  readonly grant: (problem: string | null) => void;
}

export interface KeptPool {
  /** What is needed was reckoned, or cannot be before its load tells. */
  sized: boolean;
  preparing: boolean;
  /** Somebody asked for it without a task. */
  knockedMs: number | null;
  /** Attempts that were told of. */
  starts: number;
  /** It never fits. */
  problem: ReplicaFailure | null;
  reservation: Reservation | null;
  /** Its load was given up, and its engines end. */
  abandoned: boolean;
  /** Its engines gave up while others were loaded beside them: not tried again before, ms. */
  goneRetryMs: number | null;
  why: Extract<ResidencyCommand, { type: "load_pool" }>["why"];
  loadingSinceMs: number;
}

export interface PoolMemoryDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly dispatcher: Pick<Dispatcher, "view" | "poolUnavailable">;
  /** Absent: every file is where it should be. */
  readonly models?: Pick<ModelGate, "prepare">;
  /** As they are now; changes with reloads. */
  readonly specs: readonly PoolSpec[];
  readonly rules: ResidencyRules;
  readonly needs: Pick<ModelNeeds, "of" | "learn">;
  /** Opened when the keeper starts. */
  readonly devices: () => DeviceMemory;
}

/** Pools whose engines run here and take memory. */
export const isManaged = ({ engine }: PoolSpec): boolean => engine !== "openai";

export class PoolMemory {
  readonly devices: DeviceMemory;
  readonly state: Residency;
  readonly #kept = new Map<string, KeptPool>();
  #measuredMs = Number.NEGATIVE_INFINITY;

  /** `later`: takes what is to be done in its turn. */
  constructor(
    private readonly deps: PoolMemoryDeps,
    private readonly later: (poolId: string, work: () => void) => void,
  ) {
    this.devices = deps.devices();
    const specs = deps.specs.filter(isManaged).map((pool) => {
      const needs = this.reckon(pool);
      this.#kept.set(pool.id, newKept(needs !== null));
      const { id: poolId, idleUnloadMs, preload } = pool;
      const retryAtMs = needs === null ? Number.POSITIVE_INFINITY : Number.NEGATIVE_INFINITY;
      return {
        poolId,
        needs: needs ?? new Map<string, number>(),
        loadMs: 0,
        idleUnloadMs,
        preload,
        retryAtMs,
      };
    });
    this.state = createResidency(deps.rules, this.devices.list(), specs);
  }

  /** A pool that comes, or that has other engines now, none of which was started. */
  add(spec: PoolSpec): void {
    const { id: poolId, idleUnloadMs, preload } = spec;
    const needs = this.reckon(spec);
    const there = this.state.pools.get(poolId);
    if (there === undefined) {
      this.#kept.set(poolId, newKept(needs !== null));
      const retryAtMs = needs === null ? Number.POSITIVE_INFINITY : Number.NEGATIVE_INFINITY;
      const unloaded = {
        poolId,
        needs: needs ?? new Map<string, number>(),
        loadMs: 0,
        idleUnloadMs,
        preload,
      };
      this.tell({ type: "pool_added", spec: { ...unloaded, retryAtMs } });
    } else {
      this.configure(spec);
      if (needs !== null) this.size(there, needs);
    }
    if (this.keptOf(poolId).sized) this.#judge(poolOf(this.state, poolId));
    else if (preload) this.#prepare(spec);
  }

  configure({ id: poolId, idleUnloadMs, preload }: PoolSpec): void {
    this.tell({ type: "pool_configured", poolId, idleUnloadMs, preload });
  }

  remove(poolId: string): void {
    this.keptOf(poolId).reservation?.grant("the pool is no longer configured");
    this.#kept.delete(poolId);
    this.tell({ type: "pool_removed", poolId });
  }

  /** Before anything is decided: what never fits is told, what is to be fetched is fetched. */
  open(): void {
    for (const pool of this.state.pools.values()) {
      const spec = this.#specOf(pool.poolId);
      if (this.keptOf(pool.poolId).sized) this.#judge(pool);
      else if (spec?.preload === true) this.#prepare(spec);
    }
  }

  keptOf(poolId: string): KeptPool {
    const kept = this.#kept.get(poolId);
    assert(kept !== undefined, `the memory of pool ${poolId} is managed`);
    return kept;
  }

  reservations(): readonly Reservation[] {
    return [...this.#kept.values()].flatMap(({ reservation }) => reservation ?? []);
  }

  /** Null: it is being taken out, and its engines are not gone yet. */
  #specOf(poolId: string): PoolSpec | null {
    return this.deps.specs.find(({ id }) => id === poolId) ?? null;
  }

  tell(event: ResidencyEvent): void {
    tell(this.state, event, this.deps.clock.nowMs());
  }

  reckon(spec: PoolSpec): Bytes | null {
    const needs = this.deps.needs.of(spec, this.devices.lyingsOf(spec));
    for (const deviceId of needs?.keys() ?? []) this.know(deviceId);
    return needs;
  }

  /** Whether it would fit if every other pool were unloaded; what is lent is not there. */
  hasRoom(spec: PoolSpec): boolean {
    const available = (deviceId: string): number => availableOn(deviceOf(this.state, deviceId));
    return missingFor(this.reckon(spec) ?? new Map<string, number>(), available).size === 0;
  }

  /** A device that may not have been there before. */
  know(deviceId: string): void {
    if (this.devices.has(deviceId)) return;
    const { totalBytes, reservedBytes } = this.devices.know(deviceId);
    this.tell({ type: "device_measured", deviceId, totalBytes, reservedBytes });
  }

  /** One of its replicas is ready. True: it was loaded beside engines that have given up since, and takes their place. */
  ready({ poolId, replicaId, identity }: ReplicaSnapshot): boolean {
    if (identity?.memory != null) this.#learn(poolId, replicaNumberOf(replicaId), identity.memory);
    const kept = this.keptOf(poolId);
    const { goneRetryMs } = kept;
    kept.goneRetryMs = null;
    return goneRetryMs !== null;
  }

  /** Its engines gave up. True: others are loaded beside them and may take their place; the end of the reload tells. */
  gone(poolId: string, retryAtMs: number): boolean {
    const kept = this.keptOf(poolId);
    kept.goneRetryMs = kept.reservation?.beside == null ? null : retryAtMs;
    return kept.goneRetryMs !== null;
  }

  /** What an engine of the pool says that it has reserved. */
  #learn(poolId: string, replica: number, memory: Parameters<ModelNeeds["learn"]>[2]): void {
    const spec = this.#specOf(poolId);
    if (spec === null) return;
    const lying = this.devices.lyingsOf(spec)[replica];
    if (lying !== undefined) this.deps.needs.learn(spec, lying, memory);
    // While two generations run, both are counted until the reload is over.
    const now = this.keptOf(poolId).reservation?.beside == null ? this.reckon(spec) : null;
    if (now !== null) this.size(poolOf(this.state, poolId), now);
  }

  /** Its engines were replaced, or were not after all: it is what its specification says now. */
  renew(pool: ResidencyPool): void {
    const spec = this.#specOf(pool.poolId);
    if (spec === null) return;
    this.configure(spec);
    const needs = this.reckon(spec);
    if (needs !== null) this.size(pool, needs);
  }

  size(pool: ResidencyPool, needs: Bytes): void {
    const kept = this.keptOf(pool.poolId);
    const { poolId, loadMs } = pool;
    this.tell({ type: "pool_sized", poolId, needs, loadMs });
    if (kept.sized) return;
    kept.sized = true;
    this.tell({ type: "retry_allowed", poolId, atMs: this.deps.clock.nowMs() });
  }

  tellWork(pool: ResidencyPool): void {
    const { poolId, residence } = pool;
    const kept = this.keptOf(poolId);
    const work = this.deps.dispatcher.view.workOf(poolId);
    const { reservation } = kept;
    let { busy, waiting, oldestMs } = work;
    const ask = (sinceMs: number): void => {
      waiting += 1;
      oldestMs = Math.min(oldestMs ?? sinceMs, sinceMs);
    };
    if (residence === "unloaded" && kept.knockedMs !== null) ask(kept.knockedMs);
    if (reservation?.granted === true) busy += 1;
    else if (reservation !== null) ask(reservation.sinceMs);
    // Looked at when it begins to ask: its file may be another one by then.
    if (residence === "unloaded" && waiting > 0 && pool.waiting === 0 && !this.#mayLoad(pool, kept)) {
      waiting = 0;
      oldestMs = null;
    }
    const started = residence === "loaded" ? work.starts - kept.starts : 0;
    kept.starts = work.starts;
    this.tell({ type: "work_changed", poolId, busy, waiting, oldestMs, started });
  }

  /** What others take of the devices, where somebody waits for memory. */
  measure(): void {
    const nowMs = this.deps.clock.nowMs();
    if (nowMs - this.#measuredMs < limits.memoryMeasureMs) return;
    const pools = [...this.state.pools.values()];
    if (!pools.some(({ residence, waiting }) => residence === "unloaded" && waiting > 0)) return;
    this.#measuredMs = nowMs;
    const figures = this.devices.measure((deviceId) => {
      const there = pools.filter((pool) => holdsMemory(pool) && (pool.needs.get(deviceId) ?? 0) > 0);
      if (there.some(({ residence }) => residence !== "loaded")) return null;
      return there.reduce((sum, { needs }) => sum + (needs.get(deviceId) ?? 0), 0);
    });
    for (const { deviceId, totalBytes, reservedBytes } of figures)
      this.tell({ type: "device_measured", deviceId, totalBytes, reservedBytes });
  }

  /** Of a pool that is wanted and not loaded. */
  #mayLoad(pool: ResidencyPool, kept: KeptPool): boolean {
    if (kept.preparing) return false;
    const spec = kept.reservation?.to ?? this.#specOf(pool.poolId);
    if (spec === null) return false;
    const needs = this.reckon(spec);
    if (needs !== null) this.size(pool, needs);
    else if (!kept.sized) this.#prepare(spec);
    return kept.sized && this.#judge(pool);
  }

  /** Its file is fetched or verified before anybody can say what it needs. What is wrong with it, its load tells. */
  #prepare(spec: PoolSpec): void {
    const kept = this.keptOf(spec.id);
    const done = (): void => {
      // Removed meanwhile; another pool may have its id.
      if (this.#kept.get(spec.id) !== kept) return;
      kept.preparing = false;
      const pool = poolOf(this.state, spec.id);
      this.size(pool, this.reckon(spec) ?? new Map<string, number>());
      this.#judge(pool);
    };
    const prepared = this.deps.models?.prepare(spec) ?? null;
    kept.preparing = prepared !== null;
    if (prepared === null) done();
    else void prepared.then(() => this.later(spec.id, done));
  }

  /** False: neither an eviction makes room for it, nor the return of what is lent. Those that wait are told. */
  #judge(pool: ResidencyPool): boolean {
    const { clock, log, dispatcher } = this.deps;
    const kept = this.keptOf(pool.poolId);
    const capacity = (deviceId: string): number => {
      const { totalBytes, reservedBytes } = deviceOf(this.state, deviceId);
      return Math.max(0, totalBytes - reservedBytes);
    };
    const missing = missingFor(pool.needs, capacity);
    if (missing.size === 0) {
      kept.problem = null;
      return true;
    }
    const message = neverFits(pool.poolId, pool.needs, missing, capacity);
    kept.knockedMs = null;
    if (kept.reservation?.granted === false) {
      kept.reservation.grant(message);
      kept.reservation = null;
      return false;
    }
    if (kept.problem?.message !== message) {
      log.warn("pool_does_not_fit", { pool_id: pool.poolId, human: message });
      const nothing = { exitCode: null, signal: null, logTail: [] };
      const onCard = [...missing.keys()].some((deviceId) => gpuNumberOf(deviceId) !== null);
      const cause = onCard ? "out_of_gpu_memory" : "out_of_host_memory";
      kept.problem = { cause, message, ...nothing, atMs: clock.nowMs() };
    }
    dispatcher.poolUnavailable(pool.poolId, kept.problem);
    return false;
  }
}

const newKept = (sized: boolean): KeptPool => ({
  sized,
  preparing: false,
  knockedMs: null,
  starts: 0,
  problem: null,
  reservation: null,
  abandoned: false,
  goneRetryMs: null,
  why: "wanted",
  loadingSinceMs: 0,
});

export function sumOf(a: Bytes, b: Bytes): Bytes {
  const sum = new Map(a);
  for (const [deviceId, bytes] of b) sum.set(deviceId, (sum.get(deviceId) ?? 0) + bytes);
  return sum;
}
