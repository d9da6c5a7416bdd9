/**
 * What the scheduler knows: tasks that are not terminal, and for each pool its queue and the slots of its ready
 * replicas; and the moves that several decisions share. Called by the scheduler's own files; others only read it.
 *
 * Always holds: a task is in its pool's queue exactly while its state is queued; `busy` counts the slots that are not
 * free; an exclusive lease is the only busy slot of its replica; at most min(exclusiveMax, replicas) replicas of a
 * pool are held by or reserved for exclusive tasks, each of which waits apart in the queue. So does an interactive task
 * for which another was cut; no replica with a slot that was cut like that is reserved before the slot is free.
 */
import { assert } from "./assert.ts";
import type { ErrorCode } from "./errors.ts";
import { limits } from "./limits.ts";
import type { ReplicaSlots } from "./placement.ts";
import type { FullPolicy } from "./pool.ts";
import type { Preemption } from "./preemption.ts";
import { type Fairness, type QueueEntry, TaskQueue } from "./queue.ts";
import type {
  Command,
  CutReason,
  HoldReason,
  Lease,
  NewTask,
  RecoveredTask,
  ScheduledPool,
  StartReason,
} from "./scheduler-protocol.ts";
import { type AttemptRecord, noAttempts } from "./suspects.ts";
import { isTerminal, type TaskState, type TerminalState, transition } from "./task.ts";

export interface SchedulerOptions {
  readonly attemptsMax: number;
  readonly batchMaxWaitMs: number;
  readonly fair: Fairness;
  /** Replicas of one pool that exclusive tasks may hold or reserve at once; absent: limits.exclusiveMaxDefault. */
  readonly exclusiveMax?: number;
}

/** Its own entry in the queue: a hundred thousand of them wait in memory. */
export interface ScheduledTask
  extends Omit<NewTask, "exclusive" | "latestStartMs">,
    Omit<QueueEntry, "exclusive">,
    AttemptRecord {
  /** Runs alone: it asks for that (strict), or it is suspected of crashing engines (suspects.ts). */
  exclusive: boolean;
  readonly strict: boolean;
  resumed: boolean;
  /** When it began to wait for its session's replica, once in its life; "never": it must not. */
  heldSinceMs: number | null | "never";
  readonly latestStartMs: number | null;
  /** Since when it waits this time. */
  waitsSinceMs: number;
  /** How often it was cut for an interactive task. */
  preempted: number;
  /** Something of its answer was sent: it is worth finishing, whatever its deadline. */
  hasSent: boolean;
  /** The rule that gave it its turn, while it waits apart: for a replica of its own, or for a slot that is cut for it. */
  calledBy: StartReason["rule"] | null;
  /** Of the replica that ran it last. */
  generation: number;
  /** Its deadline passed while it ran: it may finish, it does not start again. */
  overdue: boolean;
  state: TaskState;
  lease: Lease | null;
  attempts: number;
  fruitlessAttempts: number;
  crashesInRow: number;
  cuts: number;
}

export interface PoolState {
  readonly poolId: string;
  capacity: number;
  fullPolicy: FullPolicy;
  /** Null: nobody is cut for others. */
  preempt: Preemption | null;
  readonly queue: TaskQueue;
  readonly replicas: Map<string, ReplicaSlots>;
  /** Nobody may be cut before, for nobody could be when it was looked at last. */
  cutsAgainMs: number;
  startsSinceAged: number;
  /** The `wake` that was asked for and has not come. */
  wakeAtMs: number | null;
  /** The supervisor gave up on it, or it is taken out; told to clients instead of queueing for nothing. */
  unavailable: string | null;
  /** It is taken out (scheduler-pools.ts). */
  leaving: boolean;
  /** While there is a reason nothing starts here (scheduler-holds.ts). */
  readonly holds: Set<HoldReason>;
  /** Of what waits: what may go on with one model only, which is being replaced or was. Some may wait no more. */
  readonly bound: Set<string>;
  /** How many models it had before this one. */
  generation: number;
  /** While it is held for another model: what has sent something may go on. */
  finishing: boolean;
  /** Attempts that were ever started. */
  starts: number;
}

export interface SchedulerState {
  options: SchedulerOptions;
  readonly pools: Map<string, PoolState>;
  /** Tasks that are not terminal. */
  readonly tasks: Map<string, ScheduledTask>;
  leases: number;
  admissions: number;
  /** Pools in which something moved; whoever watches them clears it. */
  readonly touched: Set<string>;
}

export function createScheduler(options: SchedulerOptions, pools: readonly ScheduledPool[]): SchedulerState {
  assertOptions(options);
  return {
    options,
    pools: new Map(pools.map((pool) => [pool.id, poolState(options, pool)])),
    tasks: new Map(),
    leases: 0,
    admissions: 0,
    touched: new Set(),
  };
}

export function assertOptions({ attemptsMax, batchMaxWaitMs, exclusiveMax = 1 }: SchedulerOptions): void {
  assert(attemptsMax >= 1 && batchMaxWaitMs >= 0, "scheduler options are within bounds");
  assert(exclusiveMax >= 1, "one replica at least may run exclusive tasks");
}

/** Nothing waits there, and no replica is ready. */
export const poolState = ({ fair }: SchedulerOptions, pool: ScheduledPool): PoolState => ({
  poolId: pool.id,
  capacity: pool.capacity,
  fullPolicy: pool.fullPolicy,
  preempt: pool.preempt ?? null,
  queue: new TaskQueue(fair),
  replicas: new Map(),
  cutsAgainMs: 0,
  startsSinceAged: 0,
  wakeAtMs: null,
  unavailable: null,
  leaving: false,
  holds: new Set<HoldReason>([
    ...(pool.drained === true ? (["drain"] as const) : []),
    ...(pool.unloaded === true ? (["memory"] as const) : []),
  ]),
  finishing: false,
  bound: new Set(),
  generation: 0,
  starts: 0,
});

export function poolOf(state: SchedulerState, poolId: string): PoolState {
  const pool = state.pools.get(poolId);
  assert(pool !== undefined, `pool ${poolId} exists`);
  return pool;
}

export function taskOf(state: SchedulerState, taskId: string): ScheduledTask {
  const task = state.tasks.get(taskId);
  assert(task !== undefined, `task ${taskId} is live`);
  return task;
}

/** The replica that a fact is about; null: it is gone, or another incarnation runs now. */
export function replicaOf(
  pool: PoolState,
  { replicaId, incarnation }: { readonly replicaId: string; readonly incarnation: number },
): ReplicaSlots | null {
  const replica = pool.replicas.get(replicaId);
  return replica !== undefined && replica.incarnation === incarnation ? replica : null;
}

/** Busy slots of a replica: leased and releasing. 0 for one that is not ready. */
export function slotsBusy(state: SchedulerState, poolId: string, replicaId: string): number {
  return state.pools.get(poolId)?.replicas.get(replicaId)?.busy ?? 0;
}

/** By the operator: what comes waits until he resumes it. */
export const isDrained = (state: SchedulerState, poolId: string): boolean =>
  poolOf(state, poolId).holds.has("drain");

/** Part of its answer is another model's than the pool's: it goes on where that still runs, or nowhere. */
export const isBound = (pool: PoolState, task: ScheduledTask): boolean =>
  task.hasSent && task.generation !== pool.generation;

/** One more replica of the pool may be taken for an exclusive task. */
export function mayTakeAlone(state: SchedulerState, pool: PoolState): boolean {
  let taken = 0;
  for (const replica of pool.replicas.values())
    if (replica.exclusiveLeaseId !== null || replica.reservedFor !== null) taken++;
  const max = state.options.exclusiveMax ?? limits.exclusiveMaxDefault;
  return taken < Math.min(max, pool.replicas.size);
}

export function live(
  task: NewTask & Pick<RecoveredTask, "ordinal" | "admittedMs" | "resumed" | "hasSent">,
  nowMs: number,
): ScheduledTask {
  return {
    taskId: task.taskId,
    poolId: task.poolId,
    keyId: task.keyId,
    sessionId: task.sessionId,
    priority: task.priority,
    expectedMs: task.expectedMs,
    exclusive: task.exclusive,
    prefix: task.prefix,
    ordinal: task.ordinal,
    admittedMs: task.admittedMs,
    resumed: task.resumed,
    latestStartMs: task.latestStartMs ?? null,
    waitsSinceMs: nowMs,
    preempted: 0,
    hasSent: task.hasSent ?? false,
    heldSinceMs: null,
    calledBy: null,
    overdue: false,
    generation: 0,
    state: "queued",
    lease: null,
    attempts: 0,
    ...noAttempts,
    strict: task.exclusive,
  };
}

/** Its one terminal event. A replica that was reserved for it is open again: `schedule` must follow. */
export function end(
  state: SchedulerState,
  task: ScheduledTask,
  to: TerminalState,
  code: ErrorCode | null,
  message: string,
  commands: Command[],
  replicaId: string | null = null,
): void {
  const pool = poolOf(state, task.poolId);
  state.touched.add(task.poolId);
  task.state = transition(task.state, to);
  assert(isTerminal(task.state), "an ended task is terminal");
  pool.queue.remove(task.taskId);
  if (task.calledBy !== null)
    for (const replica of pool.replicas.values())
      if (replica.reservedFor === task.taskId) replica.reservedFor = null;
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

/** Cuts a running attempt for good: the slot counts as free only when the engine has freed it. */
export function cut(state: SchedulerState, task: ScheduledTask, reason: string, commands: Command[]): void {
  const lease = task.lease;
  assert(lease !== null, "only a running task is cut");
  const replica = replicaOf(poolOf(state, task.poolId), lease);
  if (replica !== null) markReleasing(replica, lease.leaseId);
  commands.push({ type: "abort_attempt", leaseId: lease.leaseId, reason });
}

/**
 * Cuts a running attempt whose task goes on. It keeps its lease until its attempt has ended, which it may have in this
 * moment; asked again for the same attempt, nothing more happens.
 */
export function cutToContinue(
  state: SchedulerState,
  task: ScheduledTask,
  reason: CutReason,
  commands: Command[],
): void {
  const { lease, taskId } = task;
  assert(lease !== null, "only a running task is cut");
  const replica = replicaOf(poolOf(state, task.poolId), lease);
  if (replica !== null && !markReleasing(replica, lease.leaseId, { preempted: reason === "preempted" }))
    return;
  commands.push({ type: "cut_attempt", taskId, leaseId: lease.leaseId, reason });
}

/** False: it was already. */
export function markReleasing(
  replica: ReplicaSlots,
  leaseId: number,
  { preempted = false, lost = false } = {},
): boolean {
  const index = replica.slots.findIndex((s) => s.kind !== "free" && s.leaseId === leaseId);
  const slot = replica.slots[index];
  assert(slot !== undefined && slot.kind !== "free", `lease ${leaseId} holds a slot`);
  if (slot.kind === "releasing") {
    // Cut, and its engine broke off meanwhile.
    if (lost) replica.slots[index] = { ...slot, lost };
    return false;
  }
  replica.slots[index] = { ...slot, kind: "releasing", preempted, lost };
  return true;
}

/** A `wake` is due then at the latest. */
export function askWake(pool: PoolState, atMs: number, commands: Command[]): void {
  if (pool.wakeAtMs !== null && pool.wakeAtMs <= atMs) return;
  pool.wakeAtMs = atMs;
  commands.push({ type: "wake_at", poolId: pool.poolId, atMs });
}

export function freeSlot(
  state: SchedulerState,
  replica: ReplicaSlots,
  leaseId: number,
  commands: Command[],
): void {
  const index = replica.slots.findIndex((s) => s.kind !== "free" && s.leaseId === leaseId);
  const slot = replica.slots[index];
  assert(slot !== undefined, `lease ${leaseId} holds a slot`);
  const { prefix, sessionId } = slot;
  replica.slots[index] = { kind: "free", prefix, sessionId, freedAt: state.leases };
  replica.busy--;
  assert(replica.busy >= 0, "busy slots never go below zero");
  if (replica.exclusiveLeaseId === leaseId) replica.exclusiveLeaseId = null;
  const { replicaId, incarnation, busy } = replica;
  commands.push({ type: "note_slots_busy", replicaId, incarnation, busy });
}
