/**
 * Pools that come, change and go while the scheduler runs. Called by the scheduler; services/pool-roster.ts tells it.
 *
 * A pool that goes is taken out in three steps: what waits there ends and nothing is taken any more, what runs goes on
 * until its time is over, and once nothing runs and its replicas are gone nothing of it is left. What ends for it may be
 * submitted again (POOL_UNAVAILABLE); so does what was cut or lost there and would have waited.
 *
 * Always holds: a pool is removed without tasks and without replicas; a fact about a pool that is gone changes nothing.
 */
import { assert } from "./assert.ts";
import { schedule } from "./scheduler-preempt.ts";
import type { Command, ScheduledPool, SchedulerEvent } from "./scheduler-protocol.ts";
import {
  assertOptions,
  cut,
  end,
  type PoolState,
  poolState,
  type SchedulerState,
  taskOf,
} from "./scheduler-state.ts";

/** Replicas, timers and operators may tell something of a pool in the moment in which it goes. */
export function isStale(state: SchedulerState, event: SchedulerEvent): boolean {
  if (!("poolId" in event) || event.type === "pool_added" || state.pools.has(event.poolId)) return false;
  if ("taskId" in event) assert(!state.tasks.has(event.taskId), "a live task is in a pool");
  return true;
}

export function addPool(state: SchedulerState, pool: ScheduledPool): void {
  assert(!state.pools.has(pool.id), `pool ${pool.id} is added once`);
  state.pools.set(pool.id, poolState(state.options, pool));
}

export function changePool(
  state: SchedulerState,
  pool: PoolState,
  { capacity, fullPolicy, preempt = null }: ScheduledPool,
  nowMs: number,
  commands: Command[],
): void {
  Object.assign(pool, { capacity, fullPolicy, preempt });
  schedule(state, pool, nowMs, commands);
}

export function leave(state: SchedulerState, pool: PoolState, message: string, commands: Command[]): void {
  assert(!pool.leaving, `pool ${pool.poolId} goes once`);
  pool.leaving = true;
  pool.unavailable = message;
  for (const { taskId } of [...pool.queue.entries()])
    end(state, taskOf(state, taskId), "failed", "POOL_UNAVAILABLE", message, commands);
}

/** Whatever still runs there; who was cut for another reason meanwhile, too. */
export function cutLeaving(state: SchedulerState, pool: PoolState, commands: Command[]): void {
  if (!pool.leaving || pool.unavailable === null) return;
  for (const task of [...state.tasks.values()]) {
    if (task.poolId !== pool.poolId || task.lease === null) continue;
    cut(state, task, "pool_removed", commands);
    end(state, task, "failed", "POOL_UNAVAILABLE", pool.unavailable, commands);
  }
}

export function removePool(state: SchedulerState, pool: PoolState): void {
  assert(pool.leaving && pool.queue.size === 0, `pool ${pool.poolId} was taken out`);
  assert(pool.replicas.size === 0, `the replicas of pool ${pool.poolId} are gone`);
  for (const { poolId } of state.tasks.values()) assert(poolId !== pool.poolId, "no task is left in it");
  state.pools.delete(pool.poolId);
}

export function changeOptions(
  state: SchedulerState,
  { attemptsMax, batchMaxWaitMs }: { readonly attemptsMax: number; readonly batchMaxWaitMs: number },
  nowMs: number,
  commands: Command[],
): void {
  const options = { ...state.options, attemptsMax, batchMaxWaitMs };
  assertOptions(options);
  state.options = options;
  for (const pool of state.pools.values()) schedule(state, pool, nowMs, commands);
}
