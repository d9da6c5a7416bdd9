/**
 * Queues and slots as they stand, for those who only look: health, capabilities, metrics, admission.
 * Reads the scheduler's state between turns; changes nothing.
 */
import { assert } from "../domain/assert.ts";
import type { ReplicaSlots } from "../domain/placement.ts";
import { isDrained, isQuiet, isRetiredQuiet, type SchedulerState } from "../domain/scheduler.ts";
import { type PoolWork, workOf } from "../domain/scheduler-work.ts";
import type { TaskRegistry } from "./task-registry.ts";

const none: readonly string[] = [];

export class QueueView {
  constructor(
    private readonly scheduler: SchedulerState,
    private readonly registry: TaskRegistry,
  ) {}

  /** Waiting tasks by class, and how many may wait. */
  depth(poolId: string): { interactive: number; batch: number; capacity: number } {
    const pool = this.scheduler.pools.get(poolId);
    assert(pool !== undefined, `pool ${poolId} exists`);
    const { queue, capacity } = pool;
    return { interactive: queue.depth("interactive"), batch: queue.depth("batch"), capacity };
  }

  /** An operator drained it: nothing starts there. */
  isDrained(poolId: string): boolean {
    return isDrained(this.scheduler, poolId);
  }

  /** Pools in which something moved since this was asked last. */
  takeTouched(): readonly string[] {
    const { touched } = this.scheduler;
    if (touched.size === 0) return none;
    const ids = [...touched];
    touched.clear();
    return ids;
  }

  workOf(poolId: string): PoolWork {
    const pool = this.scheduler.pools.get(poolId);
    assert(pool !== undefined, `pool ${poolId} exists`);
    return workOf(pool);
  }

  /** Its model is not in memory, or is to leave it: nothing starts there. */
  lacksMemory(poolId: string): boolean {
    return this.scheduler.pools.get(poolId)?.holds.has("memory") ?? false;
  }

  /** Nothing runs there, and nothing waits that has to finish on its present model. */
  isQuiet(poolId: string): boolean {
    const pool = this.scheduler.pools.get(poolId);
    assert(pool !== undefined, `pool ${poolId} exists`);
    return isQuiet(pool, this.scheduler);
  }

  /** The same of the replicas whose place others have taken. */
  isRetiredQuiet(poolId: string): boolean {
    const pool = this.scheduler.pools.get(poolId);
    assert(pool !== undefined, `pool ${poolId} exists`);
    return isRetiredQuiet(pool, this.scheduler);
  }

  /** Tasks with a slot there. */
  running(poolId: string): string[] {
    const replicas = this.scheduler.pools.get(poolId)?.replicas.values() ?? [];
    return [...replicas].flatMap(({ slots }) =>
      slots.flatMap((s) => (s.kind === "leased" ? [s.taskId] : [])),
    );
  }

  /** Tasks that wait there. */
  waiting(poolId: string): string[] {
    const queue = this.scheduler.pools.get(poolId)?.queue.entries() ?? [];
    return [...queue].map(({ taskId }) => taskId);
  }

  /** Those of them that have sent nothing. */
  fresh(poolId: string): string[] {
    return this.waiting(poolId).filter((id) => this.scheduler.tasks.get(id)?.hasSent === false);
  }

  /** Leased and releasing slots of the pool's ready replicas. */
  slotsBusyIn(poolId: string): number {
    let busy = 0;
    for (const replica of this.scheduler.pools.get(poolId)?.replicas.values() ?? []) busy += replica.busy;
    return busy;
  }

  /** Leased and releasing slots of a replica; 0 for one that is not ready. */
  slotsBusy(replicaId: string): number {
    return this.find(replicaId)?.busy ?? 0;
  }

  /** Prompt and output tokens of what a replica runs now; null where a prompt was not counted yet. */
  tokensInUse(replicaId: string): number | null {
    let used = 0;
    for (const slot of this.find(replicaId)?.slots ?? []) {
      if (slot.kind === "free") continue;
      const record = this.registry.find(slot.taskId);
      if (record === null) continue;
      if (record.tokensIn === null) return null;
      used += record.tokensIn + record.tokensOut;
    }
    return used;
  }

  /** A slot of the pool was last used by the session: its context may still be there. */
  holdsSession(poolId: string, sessionId: string): boolean {
    for (const { slots } of this.scheduler.pools.get(poolId)?.replicas.values() ?? [])
      if (slots.some((slot) => slot.sessionId === sessionId)) return true;
    return false;
  }

  /** Every slot that was last used by the session; several where its tasks ran at the same time. */
  slotsHolding(sessionId: string): { readonly replicaId: string; readonly slot: number }[] {
    const holding: { replicaId: string; slot: number }[] = [];
    for (const { replicas } of this.scheduler.pools.values())
      for (const { replicaId, slots } of replicas.values())
        for (const [slot, held] of slots.entries())
          if (held.sessionId === sessionId) holding.push({ replicaId, slot });
    return holding;
  }

  private find(replicaId: string): ReplicaSlots | null {
    for (const pool of this.scheduler.pools.values()) {
      const replica = pool.replicas.get(replicaId);
      if (replica !== undefined) return replica;
    }
    return null;
  }
}
