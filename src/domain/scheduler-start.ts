/**
 * What starts, and where: the one place that starts anything. Called by the scheduler whenever something changed.
 *
 * One start after the other, per pool, while a replica has room and nothing holds the pool (scheduler-holds.ts):
 *  0. an interactive task for which another was cut (scheduler-preempt.ts) -> that one, in the order of the cuts
 *  1. an exclusive task that was called up and whose replica is empty -> that one
 *  2. an aged batch task waits (older than batchMaxWaitMs) and agedStartEvery-1 others had their turn since the last
 *     aged one -> the next of the batch class
 *  3. an interactive task waits -> the next of the interactive class
 *  4. a batch task waits -> the next of the batch class
 * Hence the bound: an aged batch task with k others of its class before it has its turn after at most
 * agedStartEvery*(k+1) turns. "Next" is the queue's to say: order of admission, or deficit round robin over keys.
 *
 * Sessions: a task whose session's KV is on a replica without room, while another has room, is passed over as long
 * as room there is expected within affinityWaitMs, affinityWaitMs in all since it first was, heldMax tasks at a time.
 *
 * Exclusive tasks: at its turn one is called up: it leaves the line and waits apart. Those called up get replicas in
 * the order of their calls: an empty one at once, else the one with the fewest busy slots is reserved and nothing
 * else starts there. No more than min(exclusiveMax, replicas) are reserved or held at once, the others go on with
 * what is behind. Bounds: once called up, n-th in that order, it starts when n exclusive tasks before it have ended
 * at the latest, plus one draining of its replica, which lasts as long as what runs there already (and whom a cut made
 * room for there); no later arrival delays it. The others lose the use of a reserved replica for as long, and only ever of so many replicas. While
 * exclusiveCalledMax of a class are called up, further ones of that class are passed over.
 */
import { assert } from "./assert.ts";
import { limits } from "./limits.ts";
import type { Pass } from "./ordered-tree.ts";
import {
  chooseSlot,
  hasLastRoom,
  hasRoom,
  isOpen,
  isPreempted,
  type Placement,
  place,
  type ReplicaReason,
  type ReplicaSlots,
  sessionRoomInMs,
} from "./placement.ts";
import type { QueueEntry } from "./queue.ts";
import type { Command, Lease, StartReason } from "./scheduler-protocol.ts";
import {
  askWake,
  end,
  isBound,
  mayTakeAlone,
  type PoolState,
  type ScheduledTask,
  type SchedulerState,
  taskOf,
} from "./scheduler-state.ts";
import { transition } from "./task.ts";

/** One pass over a pool: what it has found that cannot start just now. */
export interface Round extends Pass {
  readonly skip: Set<string>;
  exclusiveToo: boolean;
}

export function startWaiting(
  state: SchedulerState,
  pool: PoolState,
  nowMs: number,
  commands: Command[],
): void {
  if (pool.holds.size > 0) {
    const isReloadOnly = !pool.holds.has("drain") && !pool.holds.has("memory");
    if (pool.finishing && isReloadOnly) finishSent(state, pool, nowMs, commands);
    return;
  }
  if (pool.bound.size > 0) finishBound(state, pool, nowMs, commands);
  const round: Round = { skip: new Set(), exclusiveToo: true };
  while (pool.queue.size > 0) {
    startPreempting(state, pool, nowMs, commands);
    startCalled(state, pool, nowMs, commands);
    if (![...pool.replicas.values()].some(hasRoom)) return;
    const turn = nextTurn(state, pool, round, nowMs);
    if (turn === null) return;
    const task = taskOf(state, turn.entry.taskId);
    if (isBound(pool, task)) {
      round.skip.add(task.taskId);
      continue;
    }
    if (task.exclusive) {
      if (!callUp(pool, task, turn, round)) round.exclusiveToo = false;
      continue;
    }
    if (isHeld(pool, task, round, nowMs, commands)) {
      round.skip.add(task.taskId);
      continue;
    }
    const placement = place(pool.replicas.values(), task.sessionId);
    assert(placement !== null, "a replica has room");
    pool.queue.take(task.taskId, round);
    noteTurn(pool, turn);
    start(state, pool, task, turn.rule, placement, nowMs, commands);
  }
}

/** Those that wait, in the order in which they came. */
function boundOf(state: SchedulerState, pool: PoolState): ScheduledTask[] {
  const waiting: ScheduledTask[] = [];
  for (const taskId of [...pool.bound]) {
    const task = state.tasks.get(taskId);
    if (task?.state === "queued") waiting.push(task);
    else pool.bound.delete(taskId);
  }
  return waiting.sort((a, b) => a.ordinal - b.ordinal);
}

/** While the pool is held for another model: what has sent something goes on, whoever came before it. */
function finishSent(state: SchedulerState, pool: PoolState, nowMs: number, commands: Command[]): void {
  for (const task of boundOf(state, pool)) {
    const empty = [...pool.replicas.values()].filter(({ busy }) => !task.exclusive || busy === 0);
    const placement = place(empty, task.sessionId);
    if (placement === null) continue;
    task.calledBy ??= task.priority;
    startApart(state, pool, task, placement, nowMs, commands);
    if (task.exclusive) placement.replica.exclusiveLeaseId = task.lease?.leaseId ?? null;
  }
}

/** What has to finish on a model that the pool has no more: on a retired replica with that model, while there is one. */
function finishBound(state: SchedulerState, pool: PoolState, nowMs: number, commands: Command[]): void {
  for (const task of boundOf(state, pool)) {
    if (!isBound(pool, task)) continue;
    const able = [...pool.replicas.values()].filter(({ generation }) => generation === task.generation);
    if (able.length === 0) {
      end(state, task, "failed", "WORKER_RESET", modelIsGone, commands);
      continue;
    }
    const replica = able.find((one) => hasLastRoom(one) && (!task.exclusive || one.busy === 0));
    if (replica === undefined) continue;
    task.calledBy ??= task.priority;
    startApart(state, pool, task, { replica, reason: "only", candidates: able.length }, nowMs, commands);
    if (task.exclusive) replica.exclusiveLeaseId = task.lease?.leaseId ?? null;
  }
}

const modelIsGone =
  "its engine was lost, and its pool has another model now, which cannot continue its answer: submit the task again";

export interface Turn {
  readonly entry: QueueEntry;
  readonly rule: StartReason["rule"];
  /** An aged batch task waits. */
  readonly aged: boolean;
}

/** Rules 2 to 4; null: nothing that this round may look at. */
export function nextTurn(state: SchedulerState, pool: PoolState, round: Round, nowMs: number): Turn | null {
  const oldest = pool.queue.oldest("batch", round);
  const aged = oldest !== null && nowMs - oldest.admittedMs >= state.options.batchMaxWaitMs;
  const interactive = pool.queue.next("interactive", round);
  if (interactive !== null && !(aged && pool.startsSinceAged >= limits.agedStartEvery - 1))
    return { entry: interactive, rule: "interactive", aged };
  const batch = pool.queue.next("batch", round);
  if (batch === null) return null;
  return { entry: batch, rule: aged ? "aged" : "batch", aged };
}

/** Only turns that an aged task had to watch count. */
function noteTurn(pool: PoolState, { rule, aged }: Turn): void {
  pool.startsSinceAged = rule === "aged" || !aged ? 0 : pool.startsSinceAged + 1;
}

/** It leaves the line and waits for a replica of its own; false: too many of its class do. */
function callUp(pool: PoolState, task: ScheduledTask, turn: Turn, round: Round): boolean {
  let waiting = 0;
  for (const other of pool.queue.called()) if (other.exclusive && other.priority === task.priority) waiting++;
  if (waiting >= limits.exclusiveCalledMax) return false;
  setApart(pool, task, turn, round);
  return true;
}

/** It has had its turn and waits apart. */
export function setApart(pool: PoolState, task: ScheduledTask, turn: Turn, round: Round): void {
  pool.queue.setApart(task.taskId, round);
  task.calledBy = turn.rule;
  noteTurn(pool, turn);
}

/** Rule 0: whichever slot is free first, its own or another. */
function startPreempting(state: SchedulerState, pool: PoolState, nowMs: number, commands: Command[]): void {
  for (const { taskId, exclusive } of [...pool.queue.called()]) {
    if (exclusive) continue;
    const task = taskOf(state, taskId);
    if (isBound(pool, task)) continue;
    const placement = place(pool.replicas.values(), task.sessionId);
    if (placement === null) return;
    startApart(state, pool, task, placement, nowMs, commands);
  }
}

function startApart(
  state: SchedulerState,
  pool: PoolState,
  task: ScheduledTask,
  placement: Placement,
  nowMs: number,
  commands: Command[],
): void {
  const rule = task.calledBy;
  assert(rule !== null, "what waits apart had its turn");
  pool.queue.remove(task.taskId);
  task.calledBy = null;
  start(state, pool, task, rule, placement, nowMs, commands);
}

/** Rule 1, and replicas for those that have none, in the order of their calls. */
function startCalled(state: SchedulerState, pool: PoolState, nowMs: number, commands: Command[]): void {
  for (const { taskId, exclusive } of [...pool.queue.called()]) {
    if (!exclusive) continue;
    const task = taskOf(state, taskId);
    if (isBound(pool, task)) continue;
    const chosen = ownReplica(pool, taskId) ?? reserve(state, pool, task);
    if (chosen === null || chosen.replica.busy > 0) continue;
    chosen.replica.reservedFor = null;
    startApart(state, pool, task, chosen, nowMs, commands);
    chosen.replica.exclusiveLeaseId = task.lease?.leaseId ?? null;
  }
}

function ownReplica(pool: PoolState, taskId: string): Placement | null {
  for (const replica of pool.replicas.values())
    if (replica.reservedFor === taskId) return { replica, reason: "fewest_busy", candidates: 1 };
  return null;
}

/** The best of the least busy replicas, whether they have room or not. */
function reserve(state: SchedulerState, pool: PoolState, task: ScheduledTask): Placement | null {
  if (!mayTakeAlone(state, pool)) return null;
  // A slot that is cut for somebody is not withheld from him.
  const open = [...pool.replicas.values()].filter((r) => isOpen(r) && !r.slots.some(isPreempted));
  const fewest = Math.min(...open.map((r) => r.busy));
  const least = open.filter((r) => r.busy === fewest);
  const chosen = place(least, task.sessionId) ?? firstById(least);
  if (chosen === null) return null;
  chosen.replica.reservedFor = task.taskId;
  const reason: ReplicaReason = least.length < open.length ? "fewest_busy" : chosen.reason;
  return { replica: chosen.replica, reason, candidates: open.length };
}

function firstById(replicas: readonly ReplicaSlots[]): Placement | null {
  const [replica] = [...replicas].sort((a, b) => (a.replicaId < b.replicaId ? -1 : 1));
  return replica === undefined ? null : { replica, reason: "id", candidates: replicas.length };
}

/** It waits for the replica that holds its session's KV. */
function isHeld(
  pool: PoolState,
  task: ScheduledTask,
  round: Round,
  nowMs: number,
  commands: Command[],
): boolean {
  if (task.sessionId === null || task.heldSinceMs === "never" || round.skip.size >= limits.heldMax)
    return false;
  if (task.heldSinceMs !== null && nowMs - task.heldSinceMs >= limits.affinityWaitMs) return false;
  const roomInMs = sessionRoomInMs(pool.replicas.values(), task.sessionId, nowMs);
  if (roomInMs === null || roomInMs > limits.affinityWaitMs) return false;
  task.heldSinceMs ??= nowMs;
  askWake(pool, task.heldSinceMs + limits.affinityWaitMs, commands);
  return true;
}

function start(
  state: SchedulerState,
  pool: PoolState,
  task: ScheduledTask,
  rule: StartReason["rule"],
  { replica, reason, candidates }: Placement,
  nowMs: number,
  commands: Command[],
): void {
  const { taskId, prefix, sessionId } = task;
  const { replicaId, incarnation } = replica;
  const { slot, reason: slotReason } = chooseSlot(replica, prefix, sessionId);
  const lease: Lease = { leaseId: ++state.leases, replicaId, incarnation, slot };
  const expectedEndMs = nowMs + task.expectedMs;
  assert(replica.slots[slot]?.kind === "free", "only a free slot is leased");
  assert(replica.exclusiveLeaseId === null, "nothing starts beside an exclusive lease");
  const { leaseId } = lease;
  const leased = {
    kind: "leased",
    leaseId,
    taskId,
    prefix,
    sessionId,
    expectedEndMs,
    preempted: false,
    lost: false,
  } as const;
  replica.slots[slot] = leased;
  replica.busy++;
  assert(replica.busy <= replica.slots.length, "leases stay within the slots");
  task.state = transition(task.state, "running");
  task.lease = lease;
  task.generation = replica.generation;
  task.attempts++;
  pool.starts++;
  const held = typeof task.heldSinceMs === "number";
  const why: StartReason = { rule, replica: reason, slot: slotReason, held };
  commands.push(
    { type: "start_attempt", taskId, poolId: pool.poolId, lease, attempt: task.attempts, candidates, why },
    { type: "note_slots_busy", replicaId, incarnation, busy: replica.busy },
  );
}
