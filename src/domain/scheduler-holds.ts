/**
 * Pools in which nothing starts: drained by the operator, held while their model is changed or not in memory. Called by the scheduler;
 * scheduler-start.ts starts nothing while a pool is held, for whatever reason.
 *
 * What comes to a held pool queues, and its queue, deadlines and cancels go on as ever. What runs goes on until the
 * deadline of the hold; then it is cut and waits at the head of its class. A held pool asks for no engine.
 *
 * Where the next model is another one (`finishing`), what has sent something finishes on this one: it is not cut, and
 * starts again where its attempt was lost, before the pool is quiet.
 *
 * Retired replicas: others have taken their place and start what is new. What runs on retired ones goes on until its time
 * is over; what has sent something of another model's answer finishes there, and ends with WORKER_RESET where none of
 * them is left.
 */
import { schedule } from "./scheduler-preempt.ts";
import type { Command, HoldReason } from "./scheduler-protocol.ts";
import { cutToContinue, isBound, type PoolState, type SchedulerState, taskOf } from "./scheduler-state.ts";

export const isHeldBack = (pool: PoolState): boolean => pool.holds.size > 0;

/** What runs is not touched. Exclusive tasks that wait for a replica give it up: nobody starts there soon. */
export function hold(
  state: SchedulerState,
  pool: PoolState,
  by: HoldReason,
  finishing: boolean,
  nowMs: number,
  commands: Command[],
): void {
  pool.holds.add(by);
  if (!finishing) return;
  pool.finishing = true;
  bindSent(state, pool);
  for (const replica of pool.replicas.values()) replica.reservedFor = null;
  schedule(state, pool, nowMs, commands);
}

/** Nothing runs, and nothing waits that has to finish before the pool gets another model. */
export function isQuiet(pool: PoolState, state: SchedulerState): boolean {
  for (const { busy } of pool.replicas.values()) if (busy > 0) return false;
  for (const task of state.tasks.values()) {
    if (task.poolId !== pool.poolId) continue;
    if (task.lease !== null || (pool.finishing && task.hasSent)) return false;
  }
  return true;
}

export function release(
  state: SchedulerState,
  pool: PoolState,
  by: HoldReason,
  nowMs: number,
  commands: Command[],
): void {
  if (!pool.holds.delete(by)) return;
  // What it was held back from may ask for memory now.
  state.touched.add(pool.poolId);
  if (by === "reload" && pool.finishing) {
    // It keeps its model after all.
    pool.finishing = false;
    pool.bound.clear();
  }
  if (isHeldBack(pool)) {
    // What has to finish before a change of model goes on.
    if (pool.finishing) schedule(state, pool, nowMs, commands);
    return;
  }
  if (pool.queue.size > 0 && pool.replicas.size === 0)
    commands.push({ type: "ensure_pool", poolId: pool.poolId });
  schedule(state, pool, nowMs, commands);
}

/** Everything that runs in the pool, but whom is spared; nothing where it was released meanwhile. */
export function cutHeld(
  state: SchedulerState,
  pool: PoolState,
  by: HoldReason,
  spare: ReadonlySet<string>,
  commands: Command[],
): void {
  if (!pool.holds.has(by)) return;
  for (const { slots } of pool.replicas.values())
    for (const slot of [...slots])
      if (slot.kind === "leased" && !spare.has(slot.taskId))
        cutToContinue(state, taskOf(state, slot.taskId), by, commands);
}

/** Once for each change: what waits may be very many. */
function bindSent(state: SchedulerState, pool: PoolState): void {
  for (const { taskId } of pool.queue.entries())
    if (state.tasks.get(taskId)?.hasSent === true) pool.bound.add(taskId);
}

export function retire(
  state: SchedulerState,
  pool: PoolState,
  replicaIds: readonly string[],
  another: boolean,
  nowMs: number,
  commands: Command[],
): void {
  if (another) {
    // What waits and was never started, or has sent nothing, is anybody's.
    pool.generation++;
    pool.finishing = false;
    bindSent(state, pool);
  }
  for (const replicaId of replicaIds) {
    const replica = pool.replicas.get(replicaId);
    if (replica === undefined) continue;
    replica.retired = true;
    replica.reservedFor = null;
    // No session comes back here.
    for (const [at, slot] of replica.slots.entries()) replica.slots[at] = { ...slot, sessionId: null };
  }
  schedule(state, pool, nowMs, commands);
}

export function cutRetired(
  state: SchedulerState,
  pool: PoolState,
  spare: ReadonlySet<string>,
  commands: Command[],
): void {
  for (const { retired, slots } of pool.replicas.values())
    for (const slot of retired ? [...slots] : [])
      if (slot.kind === "leased" && !spare.has(slot.taskId))
        cutToContinue(state, taskOf(state, slot.taskId), "reload", commands);
}

/** Nothing runs on retired replicas, and nothing waits for them. */
export function isRetiredQuiet(pool: PoolState, state: SchedulerState): boolean {
  for (const { retired, busy } of pool.replicas.values()) if (retired && busy > 0) return false;
  for (const task of state.tasks.values())
    if (task.poolId === pool.poolId && task.lease === null && isBound(pool, task)) return false;
  return true;
}
