/**
 * Takes a task or refuses it, by the policy of its pool for a full queue (ORCHD-ADM-1). Called by the scheduler's
 * callers through scheduler.ts. A task that can start at once is taken whatever the queue holds; tasks that were cut
 * and wait to go on do not count and are never dropped.
 *
 * reject             full: everything new is refused
 * drop-lru           full: the oldest batch task that was never cut is dropped for the new one; refused where none is
 * shed-low-priority  batch is refused from shedFromPercent of the capacity on, interactive when full
 */
import { assert, assertNever } from "./assert.ts";
import { limits } from "./limits.ts";
import { hasRoom } from "./placement.ts";
import { isHeldBack } from "./scheduler-holds.ts";
import { schedule } from "./scheduler-preempt.ts";
import type { Admission, Command, NewTask, Refusal } from "./scheduler-protocol.ts";
import {
  end,
  live,
  mayTakeAlone,
  type PoolState,
  poolOf,
  type SchedulerState,
  taskOf,
} from "./scheduler-state.ts";
import type { Priority } from "./task.ts";

export interface Assessment {
  /** null: it would be taken. */
  readonly refusal: Refusal | null;
  /** Tasks that would start before it. */
  readonly queuePosition: number;
}

/** Would such a task be taken now? Changes nothing. Without `task`: an ordinary one of a key that has none waiting. */
export function assess(
  state: SchedulerState,
  poolId: string,
  priority: Priority,
  task: { readonly keyId: string; readonly expectedMs: number; readonly exclusive: boolean } = {
    keyId: "",
    expectedMs: 0,
    exclusive: false,
  },
): Assessment {
  const pool = poolOf(state, poolId);
  const queuePosition = pool.queue.ahead(priority, task.keyId, task.expectedMs).tasks;
  if (pool.unavailable !== null) {
    const refusal = { code: "POOL_UNAVAILABLE" as const, message: pool.unavailable, policyLabel: null };
    return { refusal, queuePosition };
  }
  const full = isFull(pool, priority) && !canStartAtOnce(state, pool, task.exclusive);
  return { refusal: full ? refusalOf(pool, priority) : null, queuePosition };
}

function isFull(pool: PoolState, priority: Priority): boolean {
  const { counted } = pool.queue;
  if (pool.fullPolicy === "shed-low-priority" && priority === "batch")
    return counted * 100 >= pool.capacity * limits.shedFromPercent;
  return counted >= pool.capacity;
}

/**
 * Where there is room, whatever waits could not use it: the scheduler left it there. What waited for its session may
 * use it now, after all; then the new task gets that one's place in the queue, unless that one had none.
 */
function canStartAtOnce(state: SchedulerState, pool: PoolState, exclusive: boolean): boolean {
  if (isHeldBack(pool) || pool.queue.counted < pool.queue.size) return false;
  for (const replica of pool.replicas.values())
    if (hasRoom(replica) && (!exclusive || (replica.busy === 0 && mayTakeAlone(state, pool)))) return true;
  return false;
}

/** Of a full queue; null: another task makes room. */
function refusalOf(pool: PoolState, priority: Priority): Refusal | null {
  const full = `the queue of pool ${pool.poolId} is full (${pool.capacity} tasks wait)`;
  const again = "try again after retry_after_ms";
  const policyLabel = pool.fullPolicy;
  switch (policyLabel) {
    case "reject":
      return { code: "ADMISSION_REJECT", message: `${full}: ${again}`, policyLabel };
    case "drop-lru": {
      if (pool.queue.oldestDroppable() !== null) return null;
      const message = `${full} and none of them may be dropped: ${again}`;
      return { code: "QUEUE_FULL_DROP_LRU", message, policyLabel };
    }
    case "shed-low-priority": {
      const nearly = `the queue of pool ${pool.poolId} is nearly full (${pool.queue.counted} of ${pool.capacity} places taken)`;
      const message =
        priority === "batch"
          ? `${nearly} and takes no batch tasks: ${again}, or submit with priority interactive`
          : `${full}: ${again}`;
      return { code: "ADMISSION_REJECT", message, policyLabel };
    }
    default:
      return assertNever(policyLabel, "full policy");
  }
}

export function admit(state: SchedulerState, task: NewTask, nowMs: number): Admission {
  assert(!state.tasks.has(task.taskId), `task ${task.taskId} is admitted once`);
  const { refusal } = assess(state, task.poolId, task.priority, task);
  if (refusal !== null) return { kind: "refused", ...refusal };
  const pool = poolOf(state, task.poolId);
  const commands: Command[] = [];
  const scheduled = live({ ...task, ordinal: ++state.admissions, admittedMs: nowMs, resumed: false }, nowMs);
  if (isFull(pool, task.priority)) {
    // It came in because it can start: it does not wait for its session beyond the capacity.
    if (canStartAtOnce(state, pool, task.exclusive)) scheduled.heldSinceMs = "never";
    else drop(state, pool, commands);
  }
  const queuePosition = pool.queue.ahead(task.priority, task.keyId, task.expectedMs).tasks;
  state.tasks.set(task.taskId, scheduled);
  pool.queue.push(scheduled);
  if (pool.replicas.size === 0 && !isHeldBack(pool))
    commands.push({ type: "ensure_pool", poolId: pool.poolId });
  schedule(state, pool, nowMs, commands);
  return { kind: "accepted", ordinal: scheduled.ordinal, queuePosition, commands };
}

function drop(state: SchedulerState, pool: PoolState, commands: Command[]): void {
  const oldest = pool.queue.oldestDroppable();
  assert(oldest !== null, "a full queue that takes a task drops another");
  const message = `dropped for a newer task: the queue of pool ${pool.poolId} is full (${pool.capacity} tasks wait); submit it again later`;
  end(state, taskOf(state, oldest.taskId), "failed", "QUEUE_FULL_DROP_LRU", message, commands);
}
