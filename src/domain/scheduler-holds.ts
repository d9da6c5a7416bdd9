/**
 * Pools in which nothing starts: drained by the operator, or held while their model is changed. Called by the scheduler;
 * scheduler-start.ts starts nothing while a pool is held, for whatever reason.
 *
 * What comes to a held pool queues, and its queue, deadlines and cancels go on as ever. What runs goes on until the
 * deadline of the hold; then it is cut and waits at the head of its class. A held pool asks for no engine.
 *
 * Where the next model is another one (`finishing`), what has sent something finishes on this one: it is not cut, and
 * starts again where its attempt was lost, before the pool is quiet.
 */
import { schedule } from "./scheduler-preempt.ts";
import type { Command, HoldReason } from "./scheduler-protocol.ts";
import { cutToContinue, type PoolState, type SchedulerState, taskOf } from "./scheduler-state.ts";

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
  if (by === "reload") pool.finishing = false;
  if (isHeldBack(pool)) return;
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
