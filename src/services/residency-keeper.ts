/**
 * Which pools are in memory: carries domain/residency.ts out. It hears of work after each turn of the dispatcher, of
 * engines from the supervisor, of devices from services/device-lending.ts, and answers reloads that want memory.
 * Built by app/bootstrap-residency.ts.
 *
 * Always holds: of the pools that it manages the supervisor starts engines only after a load was decided here. Nothing
 * starts in a pool from before it is unloaded until it is loaded again: the scheduler holds it. What happens is taken in
 * order, after turns or between them, work last, then one decision. Where every pool has its place and nothing
 * waits, work that comes and goes costs no decision.
 */
import { assertNever } from "../domain/assert.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec, ReplicaFailure, ReplicaSnapshot, WarmUpSpeed } from "../domain/pool.ts";
import { decide } from "../domain/residency.ts";
import {
  availableOn,
  deviceOf,
  holdsMemory,
  isIdle,
  isTooMuch,
  missingFor,
  poolOf,
  type Residency,
  type ResidencyCommand,
  type ResidencyEvent,
  type ResidencyPool,
  spareOn,
} from "../domain/residency-state.ts";
import type { Timer } from "../ports/clock.ts";
import type { EngineClient } from "../ports/engine.ts";
import type { LoadControl, MemoryGate, ReplicaListener } from "../ports/supervision.ts";
import type { Metrics } from "../ports/telemetry.ts";
import type { Dispatcher } from "./dispatcher.ts";
import { memoryWaitMs } from "./memory-wait.ts";
import {
  isManaged,
  type KeptPool,
  PoolMemory,
  type PoolMemoryDeps,
  type Reservation,
  type ResidenceView,
  sumOf,
} from "./pool-memory.ts";
import { bytesText, noRoomBeside, noRoomInstead } from "./residency-sentences.ts";

export interface ResidencyKeeperDeps extends PoolMemoryDeps {
  readonly dispatcher: Dispatcher;
  readonly control: LoadControl;
  readonly metrics: Pick<Metrics, "poolLoaded" | "poolUnloaded">;
  /** A load that failed for good is not tried again before, ms, unless somebody asks. */
  readonly retryMs: number;
  readonly onFatal: (error: unknown) => void;
}

type UnloadReason = Extract<ResidencyCommand, { type: "unload_pool" }>["why"];
const unloadReasons: Readonly<Record<UnloadReason, "evicted" | "lent" | "idle">> = {
  pool: "evicted",
  device: "lent",
  idle: "idle",
};

export class ResidencyKeeper implements MemoryGate, ReplicaListener {
  readonly #managed: Set<string>;
  readonly #dirty = new Set<string>();
  /** What is taken before the next decision. */
  #inbox: ((memory: PoolMemory) => void)[] = [];
  #memory: PoolMemory | null = null;
  #wake: Timer | null = null;
  #drainPending = false;
  #stopped = false;
  /** Every pool has its place, and none waits: only what changes that needs a decision. */
  #settled = false;
  #unloadMs: number = limits.unloadMsAssumed;

  constructor(private readonly deps: ResidencyKeeperDeps) {
    this.#managed = new Set(deps.specs.filter(isManaged).map(({ id }) => id));
    deps.dispatcher.afterTurn.push(() => this.#afterTurn());
    deps.dispatcher.forecast.memoryWaitMs = (poolId) => this.#waitMs(poolId);
  }

  /** Once, behind the supervisor's start; `lent`: bytes by device, null for all, as the last process left it. */
  start(lent: ReadonlyMap<string, number | null>): void {
    const memory = new PoolMemory(this.deps, (poolId, work) => this.#note(poolId, work));
    for (const [deviceId, bytes] of lent) {
      // It may be named by nobody any more: it can be returned all the same.
      memory.know(deviceId);
      memory.tell({ type: "device_lent", deviceId, bytes: bytes ?? Number.POSITIVE_INFINITY });
    }
    this.#memory = memory;
    memory.open();
    for (const poolId of this.#managed) this.#dirty.add(poolId);
    this.#guarded();
  }

  /** No timer is left, and nothing is loaded or unloaded any more. */
  stop(): void {
    this.#stopped = true;
    this.#wake?.cancel();
    this.#wake = null;
    for (const { granted, grant } of this.#memory?.reservations() ?? [])
      if (!granted) grant("the daemon is shutting down");
  }

  // ---- what the supervisor asks and tells ----

  manages(poolId: string): boolean {
    return this.#managed.has(poolId);
  }

  wanted(poolId: string, atMs: number): void {
    this.#note(poolId, (memory) => {
      const kept = memory.keptOf(poolId);
      kept.knockedMs ??= this.deps.clock.nowMs();
      if (kept.sized) memory.tell({ type: "retry_allowed", poolId, atMs });
    });
  }

  added(pool: PoolSpec): void {
    if (!isManaged(pool)) return;
    this.#managed.add(pool.id);
    this.#inbox.push((memory) => memory.add(pool));
    this.#dirty.add(pool.id);
    this.poke();
  }

  configured(pool: PoolSpec): void {
    if (this.manages(pool.id)) this.#note(pool.id, (memory) => memory.configure(pool));
  }

  removed(poolId: string): void {
    if (!this.#managed.delete(poolId)) return;
    this.#note(poolId, (memory) => memory.remove(poolId));
  }

  replicaReady(snapshot: ReplicaSnapshot, client: EngineClient, speed: WarmUpSpeed): void {
    this.deps.dispatcher.replicaReady(snapshot, client, speed);
    const { poolId } = snapshot;
    if (!this.manages(poolId)) return;
    this.#note(poolId, (memory) => {
      if (memory.ready(snapshot)) this.deps.control.grant(poolId);
      this.#onReady(memory, poolOf(memory.state, poolId));
    });
  }

  replicaLost(poolId: string, replicaId: string, incarnation: number, failure: ReplicaFailure | null): void {
    this.deps.dispatcher.replicaLost(poolId, replicaId, incarnation, failure);
  }

  poolUnavailable(poolId: string, failure: ReplicaFailure): void {
    this.deps.dispatcher.poolUnavailable(poolId, failure);
    if (!this.manages(poolId)) return;
    this.deps.control.rest(poolId);
    const retryAtMs = this.deps.clock.nowMs() + this.deps.retryMs;
    this.#note(poolId, (memory) => this.#onGone(memory, poolId, retryAtMs));
  }

  // ---- what reloads ask ----

  /**
   * Memory for another generation of a pool: beside the one that is loaded, else in its place, whose engines are reaped.
   * Resolves with null once it is granted, or with the reason why it is not.
   */
  reserve(to: PoolSpec, beside: boolean): Promise<string | null> {
    const { id: poolId } = to;
    if (!this.manages(poolId)) return Promise.resolve(null);
    return new Promise((grant) => this.#note(poolId, (memory) => this.#reserve(memory, to, beside, grant)));
  }

  hasRoom(pool: PoolSpec): boolean {
    return !this.manages(pool.id) || this.#memory?.hasRoom(pool) !== false;
  }

  /** The reload is over: the pool is what its specification says now. */
  settle(poolId: string): void {
    if (this.manages(poolId)) this.#note(poolId, (memory) => this.#settle(memory, poolId));
  }

  // ---- for those who look, and for lending ----

  /** Null: the pool takes no memory here. */
  view(poolId: string): ResidenceView | null {
    const pool = this.state?.pools.get(poolId);
    if (pool === undefined || this.#memory === null) return null;
    const waits = pool.residence === "unloaded" && pool.waiting > 0;
    const { problem } = this.#memory.keptOf(poolId);
    return { residence: waits ? "waiting_for_memory" : pool.residence, needs: pool.needs, problem };
  }

  /** Devices and pools as they stand; to be read only. Null: before the start. */
  get state(): Residency | null {
    return this.#memory?.state ?? null;
  }

  /** A fact about a device; decided soon. */
  deviceChanged(event: Extract<ResidencyEvent, { type: "device_lent" | "device_returned" }>): void {
    this.#inbox.push((memory) => memory.tell(event));
    this.poke();
  }

  /** The deadline of a loan: what still loads on its device ends, and is loaded again when there is room. */
  abandonLoads(): void {
    this.#inbox.push((memory) => {
      const { state } = memory;
      for (const pool of state.pools.values())
        if (pool.residence === "loading" && pool.leaving !== null && isTooMuch(state, pool))
          this.#abandon(memory, pool.poolId);
    });
    this.poke();
  }

  /** Decides soon, outside of any turn. */
  poke(): void {
    if (this.#drainPending || this.#stopped) return;
    this.#drainPending = true;
    this.deps.clock.soon(() => {
      this.#drainPending = false;
      this.#guarded();
    });
  }

  // ---- the loop ----

  #note(poolId: string, work: (memory: PoolMemory) => void): void {
    // It may be gone meanwhile.
    this.#inbox.push((memory) => {
      if (memory.state.pools.has(poolId)) work(memory);
    });
    this.#dirty.add(poolId);
    this.poke();
  }

  #afterTurn(): void {
    for (const poolId of this.deps.dispatcher.view.takeTouched())
      if (this.#managed.has(poolId)) this.#dirty.add(poolId);
    if (this.#dirty.size > 0 || this.#inbox.length > 0) this.#guarded();
  }

  /** State may be half changed where it throws: the only honest way on is a restart. */
  #guarded(): void {
    if (this.#memory === null || this.#stopped) return;
    try {
      this.#drain(this.#memory);
    } catch (error) {
      this.deps.onFatal(error);
    }
  }

  #drain(memory: PoolMemory): void {
    const inbox = this.#inbox;
    this.#inbox = [];
    let moved = !this.#settled || inbox.length > 0;
    for (const work of inbox) work(memory);
    for (const poolId of this.#dirty) {
      const pool = memory.state.pools.get(poolId);
      if (pool === undefined || !this.#managed.has(poolId)) continue;
      const wasIdle = isIdle(pool);
      memory.tellWork(pool);
      moved ||= !holdsMemory(pool) || (wasIdle !== isIdle(pool) && pool.idleUnloadMs !== null);
    }
    this.#dirty.clear();
    if (!moved) return;
    memory.measure();
    for (const command of decide(memory.state, this.deps.clock.nowMs())) this.#carryOut(memory, command);
    this.#settled = [...memory.state.pools.values()].every(isSettled);
  }

  #carryOut(memory: PoolMemory, command: ResidencyCommand): void {
    const { state } = memory;
    switch (command.type) {
      case "load_pool":
        this.#load(memory, poolOf(state, command.poolId), command.why);
        break;
      case "unload_pool":
        this.#unload(command.poolId, unloadReasons[command.why], command.for);
        break;
      case "hold_pool":
        this.#hold(command.poolId);
        break;
      case "release_pool":
        if (poolOf(state, command.poolId).residence === "loaded") this.#release(command.poolId);
        break;
      case "wake_at":
        this.#wakeAt(command.atMs);
        break;
      default:
        assertNever(command, "residency command");
    }
  }

  /** Asked for once: a timer that is a little early is set again. */
  #wakeAt(atMs: number): void {
    const { clock } = this.deps;
    this.#wake?.cancel();
    this.#wake = clock.setTimer(Math.max(0, atMs - clock.nowMs()), () => {
      if (clock.nowMs() < atMs) {
        this.#wakeAt(atMs);
        return;
      }
      this.#settled = false;
      this.#guarded();
    });
  }

  #hold(poolId: string): void {
    this.deps.dispatcher.decideNow({ type: "pool_held", poolId, by: "memory" });
  }

  #release(poolId: string): void {
    this.deps.dispatcher.decideNow({ type: "pool_released", poolId, by: "memory" });
  }

  #load(memory: PoolMemory, { poolId, needs }: ResidencyPool, why: KeptPool["why"]): void {
    const { log, control, clock, dispatcher } = this.deps;
    const kept = memory.keptOf(poolId);
    kept.why = why;
    kept.knockedMs = null;
    kept.loadingSinceMs = clock.nowMs();
    const human = `pool ${poolId} is loaded (${why}); it needs ${bytesText(needs)}`;
    log.info("pool_load_begun", { pool_id: poolId, why, human });
    dispatcher.noteLoading(poolId, kept.loadingSinceMs);
    if (kept.reservation === null) control.load(poolId);
    else {
      control.grant(poolId);
      kept.reservation.granted = true;
      kept.reservation.grant(null);
    }
    // Who knocked, or asked for a reload, no longer waits.
    this.#note(poolId, () => undefined);
  }

  #unload(poolId: string, reason: "evicted" | "lent" | "idle", whom: string | null): void {
    const { log, control, clock, dispatcher, metrics } = this.deps;
    const beganMs = clock.nowMs();
    const human = `pool ${poolId} is unloaded (${reason}${whom === null ? "" : ` for ${whom}`})`;
    log.info("pool_unload_begun", { pool_id: poolId, reason, for: whom, human });
    this.#hold(poolId);
    metrics.poolUnloaded({ poolId, reason });
    void control.unload(poolId).then(() => {
      this.#unloadMs += (clock.nowMs() - beganMs - this.#unloadMs) / 4;
      dispatcher.noteLoading(poolId, null);
      this.#note(poolId, (memory) => memory.tell({ type: "pool_unloaded", poolId }));
    });
  }

  /** A reload that has the memory ends by itself. */
  #abandon(memory: PoolMemory, poolId: string): void {
    const kept = memory.keptOf(poolId);
    if (kept.abandoned || kept.reservation !== null) return;
    kept.abandoned = true;
    this.deps.metrics.poolUnloaded({ poolId, reason: "lent" });
    void this.deps.control.unload(poolId).then(() =>
      this.#note(poolId, () => {
        kept.abandoned = false;
        this.deps.dispatcher.noteLoading(poolId, null);
        if (holdsMemory(poolOf(memory.state, poolId))) memory.tell({ type: "pool_unloaded", poolId });
      }),
    );
  }

  // ---- what became of it ----

  #onReady(memory: PoolMemory, pool: ResidencyPool): void {
    const { dispatcher, metrics, log, clock } = this.deps;
    const { poolId } = pool;
    // Another of its replicas, one that was started again, or one that is to go.
    const { why, loadingSinceMs, abandoned } = memory.keptOf(poolId);
    if (pool.residence !== "loading" || abandoned) return;
    const tookMs = clock.nowMs() - loadingSinceMs;
    memory.tell({ type: "pool_loaded", poolId, tookMs });
    metrics.poolLoaded({ poolId, reason: why, tookMs });
    const took_ms = Math.round(tookMs);
    log.info("pool_loaded", {
      ...{ pool_id: poolId, why, took_ms },
      human: `pool ${poolId} was loaded in ${took_ms} ms`,
    });
    dispatcher.noteLoading(poolId, null);
    if (!pool.held) this.#release(poolId);
  }

  /** Its engines are gone, and start again only when they are loaded anew. */
  #onGone(memory: PoolMemory, poolId: string, retryAtMs: number): void {
    const { residence } = poolOf(memory.state, poolId);
    if (residence !== "loading" && residence !== "loaded") return;
    if (memory.gone(poolId, retryAtMs)) return;
    this.#hold(poolId);
    this.deps.metrics.poolUnloaded({ poolId, reason: "failed" });
    this.deps.dispatcher.noteLoading(poolId, null);
    memory.tell({ type: "pool_load_failed", poolId, retryAtMs });
  }

  // ---- reloads ----

  #reserve(memory: PoolMemory, to: PoolSpec, beside: boolean, grant: Reservation["grant"]): void {
    const { state } = memory;
    const { id: poolId } = to;
    const kept = memory.keptOf(poolId);
    const pool = poolOf(state, poolId);
    const sinceMs = this.deps.clock.nowMs();
    const isThere = pool.residence === "loaded" || pool.residence === "loading";
    const needs = memory.reckon(to) ?? new Map<string, number>();
    const free = (deviceId: string): number =>
      beside && isThere ? spareOn(state, deviceId) : availableOn(deviceOf(state, deviceId));
    const fits = missingFor(needs, free).size === 0;
    if (beside && isThere) {
      if (fits) {
        kept.reservation = { to, sinceMs, beside: needs, returns: false, granted: true, grant };
        memory.size(pool, sumOf(pool.needs, needs));
      }
      grant(fits ? null : noRoomBeside(poolId, needs, free));
      return;
    }
    if (isThere) this.#vacate(memory, poolId);
    // What failed before says nothing of what is to be loaded now.
    if (kept.sized) memory.tell({ type: "retry_allowed", poolId, atMs: sinceMs });
    if (fits) kept.reservation = { to, sinceMs, beside: null, returns: !beside, granted: false, grant };
    else grant(noRoomInstead(poolId, needs, free));
  }

  /** Its engines were stopped for the next generation. */
  #vacate(memory: PoolMemory, poolId: string): void {
    this.#hold(poolId);
    this.deps.dispatcher.noteLoading(poolId, null);
    this.deps.control.rest(poolId);
    memory.tell({ type: "pool_unloaded", poolId });
  }

  #settle(memory: PoolMemory, poolId: string): void {
    const kept = memory.keptOf(poolId);
    const { beside, granted, returns } = kept.reservation ?? { beside: null, granted: false, returns: false };
    kept.reservation = null;
    const pool = poolOf(memory.state, poolId);
    // Of the next generation nothing is left, and nobody is in its place.
    if (beside === null && granted && !returns && pool.residence === "loading") this.#vacate(memory, poolId);
    if (kept.goneRetryMs !== null) this.#onGone(memory, poolId, kept.goneRetryMs);
    memory.renew(pool);
  }

  #waitMs(poolId: string): number {
    const { state } = this;
    if (state === null || !state.pools.has(poolId)) return 0;
    const { clock, dispatcher } = this.deps;
    return memoryWaitMs(state, poolId, clock.nowMs(), this.#unloadMs, (id) => dispatcher.forecast.leftMs(id));
  }
}

/** Nothing waits for memory, and nobody is on the way into it or out of it. */
const isSettled = ({ claim, residence, leaving, waiting }: ResidencyPool): boolean =>
  claim === null &&
  ((residence === "loaded" && leaving === null) || (residence === "unloaded" && waiting === 0));
