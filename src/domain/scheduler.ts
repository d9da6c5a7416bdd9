/**
 * The scheduler: pure. `admit` takes or refuses a task, `decide` takes an event and returns commands; both
 * change only the state handed in, and read no clock, no randomness, no I/O. The dispatcher is the only
 * caller; the simulation calls the same code.
 *
 * One start, per pool, whenever something changed:
 *  1. no replica with a free slot -> nothing starts
 *  2. an aged batch task waits (older than batchMaxWaitMs) and agedStartEvery-1 others started since the
 *     last aged one -> the oldest batch task
 *  3. an interactive task waits -> the oldest one
 *  4. a batch task waits -> the oldest one
 * Hence the bound: an aged batch task with k aged ones before it starts after at most agedStartEvery*(k+1) starts.
 */
import { assert, assertNever } from "./assert.ts";
import type { ErrorCode } from "./errors.ts";
import { limits } from "./limits.ts";
import { chooseSlot, neverUsed, place, type ReplicaSlots } from "./placement.ts";
import { type QueueEntry, TaskQueue } from "./queue.ts";
import type { Admission, Command, Lease, SchedulerEvent } from "./scheduler-protocol.ts";
import { isTerminal, type Priority, type TaskState, type TerminalState, transition } from "./task.ts";

export interface SchedulerOptions {
  readonly attemptsMax: number;
  readonly batchMaxWaitMs: number;
}

export interface ScheduledTask {
  readonly taskId: string;
  readonly poolId: string;
  /** Counts the admissions of all pools: what was cut goes back to its place in this order. */
  readonly ordinal: number;
  readonly priority: Priority;
  readonly admittedMs: number;
  readonly expectedMs: number;
  /** How its prompt begins (prefix.ts). */
  readonly prefix: readonly number[];
  /** Its deadline passed while it ran: it may finish, it does not start again. */
  overdue: boolean;
  state: TaskState;
  lease: Lease | null;
  attempts: number;
  /** Attempts that ended without a new token: only these use up attemptsMax. */
  fruitlessAttempts: number;
}

interface PoolState {
  readonly poolId: string;
  readonly capacity: number;
  readonly queue: TaskQueue;
  readonly replicas: Map<string, ReplicaSlots>;
  startsSinceAged: number;
  /** The supervisor gave up on it; told to clients instead of queueing for nothing. */
  unavailable: string | null;
}

export interface SchedulerState {
  readonly options: SchedulerOptions;
  readonly pools: Map<string, PoolState>;
  /** Tasks that are not terminal. */
  readonly tasks: Map<string, ScheduledTask>;
  leases: number;
  admissions: number;
}

export function createScheduler(
  options: SchedulerOptions,
  pools: readonly { id: string; capacity: number }[],
): SchedulerState {
  assert(options.attemptsMax >= 1 && options.batchMaxWaitMs >= 0, "scheduler options are within bounds");
  return {
    options,
    pools: new Map(
      pools.map((p) => [
        p.id,
        {
          poolId: p.id,
          capacity: p.capacity,
          queue: new TaskQueue(),
          replicas: new Map(),
          startsSinceAged: 0,
          unavailable: null,
        },
      ]),
    ),
    tasks: new Map(),
    leases: 0,
    admissions: 0,
  };
}

function poolOf(state: SchedulerState, poolId: string): PoolState {
  const pool = state.pools.get(poolId);
  assert(pool !== undefined, `pool ${poolId} exists`);
  return pool;
}

/** Would a task of this class be taken now, and how many would start before it? Changes nothing. */
export function assess(
  state: SchedulerState,
  poolId: string,
  priority: Priority,
): {
  readonly refusal: { code: "ADMISSION_REJECT" | "POOL_UNAVAILABLE"; message: string } | null;
  readonly queuePosition: number;
} {
  const pool = poolOf(state, poolId);
  const ahead = pool.queue.depth("interactive") + (priority === "batch" ? pool.queue.depth("batch") : 0);
  const refusal =
    pool.unavailable !== null
      ? { code: "POOL_UNAVAILABLE" as const, message: pool.unavailable }
      : pool.queue.counted >= pool.capacity && !canStartAtOnce(pool)
        ? {
            code: "ADMISSION_REJECT" as const,
            message: `the queue of pool ${poolId} is full (${pool.capacity} tasks wait): try again after retry_after_ms`,
          }
        : null;
  return { refusal, queuePosition: ahead };
}

const canStartAtOnce = (pool: PoolState): boolean => pool.queue.size === 0 && freeSlots(pool) > 0;

function freeSlots(pool: PoolState): number {
  let free = 0;
  for (const r of pool.replicas.values()) free += r.slots.length - r.busy;
  return free;
}

export function admit(
  state: SchedulerState,
  task: {
    taskId: string;
    poolId: string;
    priority: Priority;
    expectedMs: number;
    prefix?: readonly number[];
  },
  nowMs: number,
): Admission {
  assert(!state.tasks.has(task.taskId), `task ${task.taskId} is admitted once`);
  const { refusal, queuePosition } = assess(state, task.poolId, task.priority);
  if (refusal !== null) return { kind: "refused", ...refusal };
  const pool = poolOf(state, task.poolId);
  const scheduled: ScheduledTask = {
    ...task,
    prefix: task.prefix ?? [],
    ordinal: ++state.admissions,
    admittedMs: nowMs,
    overdue: false,
    state: "queued",
    lease: null,
    attempts: 0,
    fruitlessAttempts: 0,
  };
  state.tasks.set(task.taskId, scheduled);
  pool.queue.push(entryOf(scheduled, false));
  const commands: Command[] = [];
  if (pool.replicas.size === 0) commands.push({ type: "ensure_pool", poolId: pool.poolId });
  schedule(state, pool, nowMs, commands);
  return { kind: "accepted", queuePosition, commands };
}

const entryOf = (task: ScheduledTask, resumed: boolean): QueueEntry => ({
  taskId: task.taskId,
  ordinal: task.ordinal,
  priority: task.priority,
  admittedMs: task.admittedMs,
  expectedMs: task.expectedMs,
  resumed,
});

export function decide(state: SchedulerState, event: SchedulerEvent, nowMs: number): Command[] {
  const commands: Command[] = [];
  switch (event.type) {
    case "replica_ready": {
      const pool = poolOf(state, event.poolId);
      assert(event.slots >= 1, "a ready replica has a slot");
      assert(
        !pool.replicas.has(event.replicaId),
        `replica ${event.replicaId} was lost before it is ready again`,
      );
      pool.unavailable = null;
      pool.replicas.set(event.replicaId, {
        replicaId: event.replicaId,
        incarnation: event.incarnation,
        slots: Array.from({ length: event.slots }, () => neverUsed),
        busy: 0,
      });
      schedule(state, pool, nowMs, commands);
      return commands;
    }
    case "replica_lost": {
      const pool = poolOf(state, event.poolId);
      const replica = pool.replicas.get(event.replicaId);
      if (replica === undefined || replica.incarnation !== event.incarnation) return commands;
      // Its attempts report their own end (the connection broke): the tasks move then, not here.
      pool.replicas.delete(event.replicaId);
      return commands;
    }
    case "pool_unavailable": {
      const pool = poolOf(state, event.poolId);
      pool.unavailable = event.message;
      for (const entry of [...pool.queue.entries()])
        end(state, taskOf(state, entry.taskId), "failed", "POOL_UNAVAILABLE", event.message, commands);
      return commands;
    }
    case "cancel_requested": {
      const task = state.tasks.get(event.taskId);
      if (task === undefined) return commands;
      if (task.lease !== null) releaseLater(state, task, event.reason, commands);
      end(state, task, "canceled", "CANCELED", event.reason, commands);
      return commands;
    }
    case "deadline_passed": {
      const task = state.tasks.get(event.taskId);
      if (task === undefined) return commands;
      // A running task goes on: what it has produced is worth more to its client than nothing.
      if (task.state === "running") task.overdue = true;
      else end(state, task, "failed", "DEADLINE_UNMET", deadlineMessage, commands);
      return commands;
    }
    case "attempt_ended":
      attemptEnded(state, event, nowMs, commands);
      return commands;
    case "slot_freed": {
      const pool = poolOf(state, event.poolId);
      const replica = pool.replicas.get(event.replicaId);
      if (replica === undefined || replica.incarnation !== event.incarnation) return commands;
      freeSlot(state, replica, event.leaseId, commands);
      schedule(state, pool, nowMs, commands);
      return commands;
    }
    case "shutdown_deadline_passed": {
      for (const task of [...state.tasks.values()]) {
        if (task.lease !== null) releaseLater(state, task, "shutdown", commands);
        end(
          state,
          task,
          "failed",
          "WORKER_RESET",
          "the daemon is shutting down: submit the task again when it is back",
          commands,
        );
      }
      return commands;
    }
    default:
      return assertNever(event, "scheduler event");
  }
}

const deadlineMessage = "the deadline passed while the task waited: allow more time or use a less busy pool";

function taskOf(state: SchedulerState, taskId: string): ScheduledTask {
  const task = state.tasks.get(taskId);
  assert(task !== undefined, `task ${taskId} is live`);
  return task;
}

function attemptEnded(
  state: SchedulerState,
  event: Extract<SchedulerEvent, { type: "attempt_ended" }>,
  nowMs: number,
  commands: Command[],
): void {
  const { lease } = event;
  const pool = poolOf(state, event.poolId);
  const task = state.tasks.get(event.taskId);
  const holds = task?.lease?.leaseId === lease.leaseId;
  const replica = pool.replicas.get(lease.replicaId);
  if (replica !== undefined && replica.incarnation === lease.incarnation) {
    if (event.slotFree) freeSlot(state, replica, lease.leaseId, commands);
    else if (holds) markReleasing(replica, lease.leaseId);
  }
  if (task === undefined || !holds) {
    // Canceled meanwhile: the task has its terminal event, only the slot is news.
    schedule(state, pool, nowMs, commands);
    return;
  }
  task.lease = null;
  const { outcome } = event;
  switch (outcome.kind) {
    case "finished":
      end(state, task, "done", null, "", commands, lease.replicaId);
      break;
    case "failed":
      end(state, task, "failed", outcome.code, outcome.message, commands, lease.replicaId);
      break;
    case "lost":
      if (outcome.tokensProduced === 0 && outcome.began) task.fruitlessAttempts++;
      if (outcome.tokensProduced > 0 || task.fruitlessAttempts >= state.options.attemptsMax) {
        end(state, task, "failed", outcome.code, outcome.message, commands, lease.replicaId);
      } else if (pool.unavailable !== null) {
        end(state, task, "failed", "POOL_UNAVAILABLE", pool.unavailable, commands, lease.replicaId);
      } else if (task.overdue) {
        end(state, task, "failed", "DEADLINE_UNMET", deadlineMessage, commands, lease.replicaId);
      } else {
        task.state = transition(transition(task.state, "suspended"), "queued");
        pool.queue.putBack(entryOf(task, true));
        commands.push({ type: "requeue_task", taskId: task.taskId, message: outcome.message });
      }
      break;
    default:
      assertNever(outcome, "attempt outcome");
  }
  schedule(state, pool, nowMs, commands);
}

function end(
  state: SchedulerState,
  task: ScheduledTask,
  to: TerminalState,
  code: ErrorCode | null,
  message: string,
  commands: Command[],
  replicaId: string | null = null,
): void {
  task.state = transition(task.state, to);
  assert(isTerminal(task.state), "an ended task is terminal");
  poolOf(state, task.poolId).queue.remove(task.taskId);
  state.tasks.delete(task.taskId);
  commands.push({
    type: "finish_task",
    taskId: task.taskId,
    state: to,
    code,
    message,
    replicaId: replicaId ?? task.lease?.replicaId ?? null,
  });
}

/** Cuts a running attempt: the slot counts as free only when the engine has freed it. */
function releaseLater(state: SchedulerState, task: ScheduledTask, reason: string, commands: Command[]): void {
  const lease = task.lease;
  assert(lease !== null, "only a running task is cut");
  const replica = poolOf(state, task.poolId).replicas.get(lease.replicaId);
  if (replica !== undefined && replica.incarnation === lease.incarnation)
    markReleasing(replica, lease.leaseId);
  commands.push({ type: "abort_attempt", leaseId: lease.leaseId, reason });
}

function markReleasing(replica: ReplicaSlots, leaseId: number): void {
  const index = replica.slots.findIndex((s) => s.kind === "leased" && s.leaseId === leaseId);
  const slot = replica.slots[index];
  assert(slot !== undefined && slot.kind === "leased", `lease ${leaseId} holds a slot`);
  replica.slots[index] = { ...slot, kind: "releasing" };
}

function freeSlot(state: SchedulerState, replica: ReplicaSlots, leaseId: number, commands: Command[]): void {
  const index = replica.slots.findIndex((s) => s.kind !== "free" && s.leaseId === leaseId);
  const slot = replica.slots[index];
  assert(slot !== undefined, `lease ${leaseId} holds a slot`);
  replica.slots[index] = { kind: "free", prefix: slot.prefix, freedAt: state.leases };
  replica.busy--;
  assert(replica.busy >= 0, "busy slots never go below zero");
  commands.push({
    type: "note_slots_busy",
    replicaId: replica.replicaId,
    incarnation: replica.incarnation,
    busy: replica.busy,
  });
}

/** The one place that starts anything: fills free slots by the numbered rules above. */
function schedule(state: SchedulerState, pool: PoolState, nowMs: number, commands: Command[]): void {
  while (pool.queue.size > 0) {
    const placement = place(pool.replicas.values());
    if (placement === null) return;
    const entry = pick(state, pool, nowMs);
    pool.queue.remove(entry.taskId);
    const task = taskOf(state, entry.taskId);
    const { replica } = placement;
    const slot = chooseSlot(replica, task.prefix);
    const lease: Lease = {
      leaseId: ++state.leases,
      replicaId: replica.replicaId,
      incarnation: replica.incarnation,
      slot,
    };
    assert(replica.slots[slot]?.kind === "free", "only a free slot is leased");
    const { prefix, taskId } = task;
    replica.slots[slot] = { kind: "leased", leaseId: lease.leaseId, taskId, prefix };
    replica.busy++;
    assert(replica.busy <= replica.slots.length, "leases stay within the slots");
    task.state = transition(task.state, "running");
    task.lease = lease;
    task.attempts++;
    commands.push(
      {
        type: "start_attempt",
        taskId: task.taskId,
        poolId: pool.poolId,
        lease,
        attempt: task.attempts,
        candidates: placement.candidates,
      },
      {
        type: "note_slots_busy",
        replicaId: replica.replicaId,
        incarnation: replica.incarnation,
        busy: replica.busy,
      },
    );
  }
}

function pick(state: SchedulerState, pool: PoolState, nowMs: number): QueueEntry {
  const batch = pool.queue.first("batch");
  const interactive = pool.queue.first("interactive");
  const aged = batch !== null && nowMs - batch.admittedMs >= state.options.batchMaxWaitMs;
  if (batch !== null && aged && (interactive === null || pool.startsSinceAged >= limits.agedStartEvery - 1)) {
    pool.startsSinceAged = 0;
    return batch;
  }
  // Only starts that an aged task had to watch count.
  pool.startsSinceAged = aged ? pool.startsSinceAged + 1 : 0;
  const chosen = interactive ?? batch;
  assert(chosen !== null, "a queue that is not empty has a first task");
  return chosen;
}

/** Busy slots of a replica: leased and releasing. 0 for one that is not ready. */
export function slotsBusy(state: SchedulerState, poolId: string, replicaId: string): number {
  return state.pools.get(poolId)?.replicas.get(replicaId)?.busy ?? 0;
}
