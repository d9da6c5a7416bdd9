/**
 * What a pool has to do, in numbers: what residency.ts is told of it. Pure; O(replicas) and two looks into the queue.
 */
import type { PoolState } from "./scheduler-state.ts";

export interface PoolWork {
  /** Slots that are not free. */
  readonly busy: number;
  /** Tasks that would start if there were room. */
  readonly waiting: number;
  /** When the oldest of them was accepted; null: none waits. */
  readonly oldestMs: number | null;
  /** Attempts that were ever started. */
  readonly starts: number;
}

/** What an operator holds back does not ask for memory; what has to finish before a change of model does. */
export function workOf(pool: PoolState): PoolWork {
  let busy = 0;
  for (const replica of pool.replicas.values()) busy += replica.busy;
  const { holds, queue, starts } = pool;
  const isHeld = holds.has("drain") || (holds.has("reload") && !(pool.finishing && pool.bound.size > 0));
  const waiting = isHeld ? 0 : queue.size;
  return { busy, waiting, oldestMs: waiting === 0 ? null : oldestOf(pool), starts };
}

function oldestOf({ queue }: PoolState): number {
  let oldestMs = Number.POSITIVE_INFINITY;
  for (const priority of ["interactive", "batch"] as const)
    oldestMs = Math.min(oldestMs, queue.oldest(priority)?.admittedMs ?? Number.POSITIVE_INFINITY);
  // Those that wait apart were called up in their turn: they are few.
  for (const { admittedMs } of queue.called()) oldestMs = Math.min(oldestMs, admittedMs);
  return oldestMs;
}
