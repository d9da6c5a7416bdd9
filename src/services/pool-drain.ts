/**
 * Use case "drain a pool": nothing starts there, what runs goes on until a deadline, then it is cut and waits; `resume`
 * undoes it. api/pool-control.ts asks; the scheduler holds the pool, the deadline's timer is here.
 *
 * Always holds: a drain is on the disk before the scheduler hears of it, so it outlives the daemon; the engines stay
 * loaded, so that a resume costs nothing. After a restart nothing runs in a drained pool, so no deadline is left.
 */
import { assert } from "../domain/assert.ts";
import { OrchestratorError } from "../domain/errors.ts";
import type { SchedulerEvent } from "../domain/scheduler-protocol.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { DrainRecord, KeptRecords } from "../ports/pool-store.ts";
import { isStoreError } from "../ports/task-store.ts";
import type { Log } from "../ports/telemetry.ts";
import { storing } from "./refusals.ts";

/** Draining: something runs still, or its slot is not free yet. */
export const drainStates = ["draining", "drained"] as const;

/** A drained pool as it stands now. */
export interface DrainView {
  /** ms since 1970. */
  readonly sinceMs: number;
  readonly deadlineMs: number;
  /** Slots that are not free. */
  readonly running: number;
  readonly state: (typeof drainStates)[number];
}

export interface PoolDrainsDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly store: KeptRecords<DrainRecord>;
  /** Its model is being replaced: the two do not mix. */
  readonly isReloading: (poolId: string) => boolean;
  readonly slotsBusy: (poolId: string) => number;
  /** Resolves once the scheduler has decided it. */
  readonly tell: (event: SchedulerEvent) => Promise<void>;
  /** Engines of the pool that were given up are tried again. */
  readonly retry: (poolId: string) => void;
}

export class PoolDrains {
  readonly #drained = new Map<string, DrainRecord>();
  readonly #timers = new Map<string, Timer>();

  /** @throws StoreError */
  constructor(private readonly deps: PoolDrainsDeps) {
    for (const record of deps.store.all()) this.#drained.set(record.poolId, record);
    for (const poolId of this.#drained.keys())
      deps.log.warn("pool_still_drained", {
        pool_id: poolId,
        human: `pool ${poolId} was drained before the restart and starts nothing: POST /v1/pools/${poolId}/resume`,
      });
  }

  /** What the last process left drained; the scheduler is to begin with it. */
  get poolIds(): ReadonlySet<string> {
    return new Set(this.#drained.keys());
  }

  isDrained(poolId: string): boolean {
    return this.#drained.has(poolId);
  }

  /** Null: it is not drained. */
  view(poolId: string): DrainView | null {
    const record = this.#drained.get(poolId);
    if (record === undefined) return null;
    const running = this.deps.slotsBusy(poolId);
    const { sinceMs, deadlineMs } = record;
    return { sinceMs, deadlineMs, running, state: running === 0 ? "drained" : "draining" };
  }

  /**
   * From now on nothing starts there; what runs is cut in `deadlineMs`. A drained one gets the new deadline.
   * The pool exists. @throws CONFLICT, STORAGE_UNAVAILABLE
   */
  async drain(poolId: string, deadlineMs: number): Promise<void> {
    const { clock, log, tell } = this.deps;
    assert(deadlineMs >= 0, "a deadline is not in the past");
    if (this.deps.isReloading(poolId))
      throw new OrchestratorError(
        "CONFLICT",
        `pool ${poolId} is being reloaded: wait for that, see its health`,
        {
          poolId,
        },
      );
    const nowMs = clock.nowMs();
    const sinceMs = this.#drained.get(poolId)?.sinceMs ?? nowMs;
    const record = { poolId, sinceMs, deadlineMs: nowMs + deadlineMs };
    storing(() => this.deps.store.put(record));
    this.#drained.set(poolId, record);
    this.#timers.get(poolId)?.cancel();
    const timer = clock.setTimer(deadlineMs, () => {
      this.#timers.delete(poolId);
      void tell({ type: "hold_deadline_passed", poolId, by: "drain" });
    });
    this.#timers.set(poolId, timer);
    const running = this.deps.slotsBusy(poolId);
    log.info("pool_drained", {
      ...{ pool_id: poolId, deadline_ms: deadlineMs, running },
      human: `nothing starts in pool ${poolId} before it is resumed; what runs there (${running}) is cut in ${deadlineMs} ms`,
    });
    await tell({ type: "pool_held", poolId, by: "drain" });
  }

  /** It starts what waits; engines that were given up are tried again, drained or not. @throws STORAGE_UNAVAILABLE */
  async resume(poolId: string): Promise<void> {
    this.deps.retry(poolId);
    if (!this.#drained.has(poolId)) return;
    storing(() => this.deps.store.remove(poolId));
    this.#drained.delete(poolId);
    this.#timers.get(poolId)?.cancel();
    this.#timers.delete(poolId);
    this.deps.log.info("pool_resumed", { pool_id: poolId, human: `pool ${poolId} starts tasks again` });
    await this.deps.tell({ type: "pool_released", poolId, by: "drain" });
  }

  /** The pool is gone, and a later one of its name is not drained; where the disk refuses, only in this process. */
  forget(poolId: string): void {
    if (!this.#drained.delete(poolId)) return;
    this.#timers.get(poolId)?.cancel();
    this.#timers.delete(poolId);
    try {
      this.deps.store.remove(poolId);
    } catch (error) {
      if (!isStoreError(error)) throw error;
      const human = `pool ${poolId} is gone, and one of its name would be drained after a restart: ${error.message}`;
      this.deps.log.warn("pool_drain_kept", { pool_id: poolId, human });
    }
  }

  stop(): void {
    for (const timer of this.#timers.values()) timer.cancel();
    this.#timers.clear();
  }
}
