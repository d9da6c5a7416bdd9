/**
 * When a batch task is cut for an interactive one (pools with `preempt`). Called by the scheduler whenever something
 * changed, behind the starts; what the running tasks would cost comes with a `wake`, which is asked for here.
 *
 * It is the interactive task whose turn is next (scheduler-start.ts) and which no room is for. Its cut is due when it
 * has waited maxWaitMs, or minGainMs before the moment from which it would miss its deadline, whichever is first.
 * While an aged batch task has the next turn nobody is cut. An exclusive interactive task waits for its replica as
 * ever and is passed over.
 *
 * The cut task is the cheapest (preemption.ts) of those that run: batch, cut less than maxCuts times before, on a
 * replica that no exclusive task waits for. For preemptPatienceGains times minGainMs a due cut waits for what is about
 * to end by itself. The interactive one has had its turn then: it leaves the line, waits apart and gets the first slot
 * that is free, so nobody takes the one that was cut for it. The cut task goes back to the head of its class.
 *
 * Bounds: no more slots are being cut than tasks wait apart for one; a task is cut at most maxCuts times in one process;
 * as the turn counts when it is given, an aged batch task waits for no more turns than without preemption.
 */
import { assert } from "./assert.ts";
import { limits } from "./limits.ts";
import { hasRoom, isOpen, isPreempted, type ReplicaSlots } from "./placement.ts";
import { type Candidate, cheapest, type Preemption, type RunningWork } from "./preemption.ts";
import type { Command } from "./scheduler-protocol.ts";
import { nextTurn, type Round, setApart, startWaiting, type Turn } from "./scheduler-start.ts";
import {
  askWake,
  cutToContinue,
  type PoolState,
  type ScheduledTask,
  type SchedulerState,
  taskOf,
} from "./scheduler-state.ts";

/** Starts what may start; then, where the figures of the running tasks are there, cuts whom a cut is due. */
export function schedule(
  state: SchedulerState,
  pool: PoolState,
  nowMs: number,
  commands: Command[],
  running: readonly RunningWork[] | null = null,
): void {
  state.touched.add(pool.poolId);
  startWaiting(state, pool, nowMs, commands);
  if (pool.preempt === null || pool.queue.size === 0 || pool.holds.size > 0) return;
  const { preempt } = pool;
  for (;;) {
    const waiter = nextWaiter(state, pool, nowMs);
    if (waiter === null || !mayCut(state, pool)) return;
    const dueMs = waiter.turn === null ? nowMs : dueOf(waiter.task, preempt);
    const atMs = Math.max(dueMs, pool.cutsAgainMs);
    if (atMs > nowMs || running === null) {
      askWake(pool, Math.max(nowMs, atMs), commands);
      return;
    }
    const patient = nowMs - dueMs < limits.preemptPatienceGains * preempt.minGainMs;
    if (cutFor(state, pool, waiter, running, patient, commands)) continue;
    const gainMs = Math.max(1, preempt.minGainMs);
    pool.cutsAgainMs = nowMs + (patient ? gainMs : limits.preemptAgainGains * gainMs);
  }
}

interface Waiter {
  readonly task: ScheduledTask;
  /** Null: it waits apart already, and the slot that was cut for it went to another or was lost. */
  readonly turn: Turn | null;
}

const round = (): Round => ({ skip: new Set(), exclusiveToo: false });

/** For whom somebody may be cut; null: there is room, or nobody, or slots enough are being cut. */
function nextWaiter(state: SchedulerState, pool: PoolState, nowMs: number): Waiter | null {
  const replicas = [...pool.replicas.values()];
  if (replicas.some(hasRoom)) return null;
  let cutting = 0;
  for (const { slots } of replicas) for (const slot of slots) if (isPreempted(slot)) cutting++;
  const apart = [...pool.queue.called()].filter(({ exclusive }) => !exclusive);
  const unserved = apart[cutting];
  if (unserved !== undefined) return { task: taskOf(state, unserved.taskId), turn: null };
  if (cutting > apart.length) return null;
  const turn = nextTurn(state, pool, round(), nowMs);
  if (turn?.rule !== "interactive") return null;
  return { task: taskOf(state, turn.entry.taskId), turn };
}

function dueOf({ waitsSinceMs, latestStartMs }: ScheduledTask, { maxWaitMs, minGainMs }: Preemption): number {
  const longestMs = waitsSinceMs + maxWaitMs;
  return latestStartMs === null
    ? longestMs
    : Math.max(waitsSinceMs, Math.min(longestMs, latestStartMs - minGainMs));
}

/** Whose slot a waiting task could use: an exclusive one's is the replica, which another exclusive one may be next for. */
function* cuttable(
  state: SchedulerState,
  pool: PoolState,
): Generator<{ leaseId: number; task: ScheduledTask }> {
  assert(pool.preempt !== null, "only where it is asked for");
  const { maxCuts } = pool.preempt;
  for (const replica of pool.replicas.values()) {
    if (replica.retired || (!isOpen(replica) && !(isHeldAlone(replica) && !exclusiveWaits(pool)))) continue;
    for (const slot of replica.slots) {
      if (slot.kind !== "leased") continue;
      const task = state.tasks.get(slot.taskId);
      if (task?.priority === "batch" && task.preempted < maxCuts) yield { leaseId: slot.leaseId, task };
    }
  }
}

const isHeldAlone = ({ exclusiveLeaseId, reservedFor }: ReplicaSlots): boolean =>
  exclusiveLeaseId !== null && reservedFor === null;

const exclusiveWaits = (pool: PoolState): boolean => {
  for (const { exclusive } of pool.queue.called()) if (exclusive) return true;
  return false;
};

const mayCut = (state: SchedulerState, pool: PoolState): boolean =>
  cuttable(state, pool).next().done === false;

function cutFor(
  state: SchedulerState,
  pool: PoolState,
  { task, turn }: Waiter,
  running: readonly RunningWork[],
  patient: boolean,
  commands: Command[],
): boolean {
  assert(pool.preempt !== null, "only where it is asked for");
  const known = new Map(running.map((work) => [work.leaseId, work]));
  const candidates: Candidate[] = [];
  for (const { leaseId, task: other } of cuttable(state, pool)) {
    // One that started after the figures were taken is not judged by guesses.
    const work = known.get(leaseId);
    const { taskId, preempted, ordinal } = other;
    if (work !== undefined) candidates.push({ taskId, preempted, ordinal, work });
  }
  const chosen = cheapest(candidates, leasedNow(pool, known), pool.preempt, task.expectedMs, patient);
  if (chosen === null) return false;
  const victim = taskOf(state, chosen.taskId);
  victim.preempted++;
  cutToContinue(state, victim, "preempted", commands);
  if (turn !== null) setApart(pool, task, turn, round());
  return true;
}

/** What may make room by itself: slots that are being freed for nobody in particular are as good as free. */
function leasedNow(pool: PoolState, known: ReadonlyMap<number, RunningWork>): RunningWork[] {
  const leased: RunningWork[] = [];
  for (const replica of pool.replicas.values()) {
    if (!isOpen(replica)) continue;
    for (const slot of replica.slots) {
      if (slot.kind === "free" || isPreempted(slot)) continue;
      const { leaseId } = slot;
      const soon: RunningWork = { leaseId, remainingMs: 0, redoMs: 0, slackMs: null };
      const work = slot.kind === "releasing" ? soon : known.get(leaseId);
      if (work !== undefined) leased.push(work);
    }
  }
  return leased;
}
