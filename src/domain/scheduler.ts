/**
 * The scheduler: pure. `admit` takes or refuses a task, `decide` takes an event and returns commands; both
 * change only the state handed in, and read no clock, no randomness, no I/O. The dispatcher is the only
 * caller; the simulation calls the same code. The state is scheduler-state.ts's, full queues are
 * scheduler-admission.ts's, what starts where is scheduler-start.ts's: its header states the rules and bounds.
 *
 * Cost of an event: O(log n) in the tasks that wait, and linear in the replicas and slots of one pool, which are
 * bounded by the configuration.
 */
import { assert, assertNever } from "./assert.ts";
import { limits } from "./limits.ts";
import { forgetSession, readyReplica } from "./placement.ts";
import type { Command, RecoveredTask, SchedulerEvent } from "./scheduler-protocol.ts";
import { schedule } from "./scheduler-start.ts";
import {
  cut,
  end,
  freeSlot,
  live,
  markReleasing,
  type PoolState,
  poolOf,
  replicaOf,
  type ScheduledTask,
  type SchedulerState,
  taskOf,
} from "./scheduler-state.ts";
import { isSpent, isSuspect, type LossCause, noteLoss } from "./suspects.ts";
import { transition } from "./task.ts";

export { admit, assess } from "./scheduler-admission.ts";
export { createScheduler, type SchedulerState, slotsBusy } from "./scheduler-state.ts";

type Of<T extends SchedulerEvent["type"]> = Extract<SchedulerEvent, { type: T }>;

const waitedTooLong = "the deadline passed while the task waited: allow more time or use a less busy pool";
const ranTooLong = "the deadline passed while the task ran: allow more time or ask for fewer tokens";
const tooLateToStart =
  "the task can no longer be done by its deadline: allow more time or use a less busy pool";
const shutdownMessage = "the daemon is shutting down: submit the task again when it is back";

export function decide(state: SchedulerState, event: SchedulerEvent, nowMs: number): Command[] {
  const commands: Command[] = [];
  switch (event.type) {
    case "replica_ready":
      replicaReady(state, event);
      break;
    case "replica_lost": {
      const pool = poolOf(state, event.poolId);
      // Its attempts report their own end (the connection broke): the tasks move then, not here.
      if (replicaOf(pool, event) !== null) pool.replicas.delete(event.replicaId);
      break;
    }
    case "replica_measured": {
      const replica = replicaOf(poolOf(state, event.poolId), event);
      if (replica !== null) {
        replica.vramFreeBytes = event.vramFreeBytes;
        replica.decodeTps = event.decodeTps;
      }
      return commands;
    }
    case "pool_unavailable":
      poolUnavailable(state, event, commands);
      return commands;
    case "slot_freed": {
      const replica = replicaOf(poolOf(state, event.poolId), event);
      if (replica === null) return commands;
      freeSlot(state, replica, event.leaseId, commands);
      break;
    }
    case "attempt_ended":
      attemptEnded(state, event, commands);
      break;
    case "wake":
      // What is still held asks again: a timer may be a little early.
      poolOf(state, event.poolId).wakeAtMs = null;
      break;
    case "cancel_requested":
    case "deadline_passed":
    case "start_deadline_passed": {
      const task = state.tasks.get(event.taskId);
      if (task === undefined) return commands;
      endEarly(state, task, event, commands);
      schedule(state, poolOf(state, task.poolId), nowMs, commands);
      return commands;
    }
    case "session_forgotten":
      for (const pool of state.pools.values()) {
        for (const replica of pool.replicas.values()) forgetSession(replica, event.sessionId);
        schedule(state, pool, nowMs, commands);
      }
      return commands;
    case "recovered":
      recovered(state, event, nowMs, commands);
      return commands;
    case "shutdown_deadline_passed":
      for (const task of [...state.tasks.values()]) {
        if (task.lease !== null) cut(state, task, "shutdown", commands);
        end(state, task, "failed", "WORKER_RESET", shutdownMessage, commands);
      }
      return commands;
    default:
      return assertNever(event, "scheduler event");
  }
  schedule(state, poolOf(state, event.poolId), nowMs, commands);
  return commands;
}

function replicaReady(state: SchedulerState, event: Of<"replica_ready">): void {
  const pool = poolOf(state, event.poolId);
  const { replicaId, incarnation, slots } = event;
  assert(slots >= 1, "a ready replica has a slot");
  assert(!pool.replicas.has(replicaId), `replica ${replicaId} was lost before it is ready again`);
  pool.unavailable = null;
  pool.replicas.set(replicaId, readyReplica(replicaId, incarnation, slots));
}

function poolUnavailable(state: SchedulerState, event: Of<"pool_unavailable">, commands: Command[]): void {
  const pool = poolOf(state, event.poolId);
  pool.unavailable = event.message;
  for (const entry of [...pool.queue.entries()])
    end(state, taskOf(state, entry.taskId), "failed", "POOL_UNAVAILABLE", event.message, commands);
}

/** What a client or a deadline ends before its attempt does. */
function endEarly(
  state: SchedulerState,
  task: ScheduledTask,
  event: Of<"cancel_requested" | "deadline_passed" | "start_deadline_passed">,
  commands: Command[],
): void {
  const running = task.lease !== null;
  switch (event.type) {
    case "cancel_requested":
      if (running) cut(state, task, event.reason, commands);
      end(state, task, "canceled", "CANCELED", event.reason, commands);
      return;
    case "start_deadline_passed":
      // What was cut needs less than a whole task does.
      if (!running && task.cuts === 0) end(state, task, "failed", "DEADLINE_UNMET", tooLateToStart, commands);
      return;
    case "deadline_passed":
      if (!running) end(state, task, "failed", "DEADLINE_UNMET", waitedTooLong, commands);
      else if (event.cut) {
        cut(state, task, "deadline", commands);
        end(state, task, "failed", "DEADLINE_UNMET", ranTooLong, commands);
      }
      // It goes on: what it has produced is worth more to its client than nothing.
      else task.overdue = true;
      return;
    default:
      assertNever(event, "early end");
  }
}

/** The queues as they were, in the order of admission; they may hold more than would be taken now. */
function recovered(state: SchedulerState, event: Of<"recovered">, nowMs: number, commands: Command[]): void {
  const pools = new Set<PoolState>();
  const inOrder = [...event.tasks].sort((a: RecoveredTask, b: RecoveredTask) => a.ordinal - b.ordinal);
  for (const task of inOrder) {
    assert(!state.tasks.has(task.taskId), `task ${task.taskId} is recovered once`);
    const scheduled = live(task);
    const pool = poolOf(state, task.poolId);
    state.tasks.set(task.taskId, scheduled);
    pool.queue.push(scheduled);
    state.admissions = Math.max(state.admissions, task.ordinal);
    pools.add(pool);
  }
  state.admissions = Math.max(state.admissions, event.ordinal ?? 0);
  for (const pool of pools) {
    if (pool.replicas.size === 0) commands.push({ type: "ensure_pool", poolId: pool.poolId });
    schedule(state, pool, nowMs, commands);
  }
}

function attemptEnded(state: SchedulerState, event: Of<"attempt_ended">, commands: Command[]): void {
  const { lease, outcome } = event;
  const pool = poolOf(state, event.poolId);
  const task = state.tasks.get(event.taskId);
  const holds = task?.lease?.leaseId === lease.leaseId;
  const replica = replicaOf(pool, lease);
  if (replica !== null) {
    if (event.slotFree) freeSlot(state, replica, lease.leaseId, commands);
    else if (holds) markReleasing(replica, lease.leaseId);
  }
  // Canceled meanwhile: the task has its terminal event, only the slot is news.
  if (task === undefined || !holds) return;
  task.lease = null;
  switch (outcome.kind) {
    case "finished":
      end(state, task, "done", null, "", commands, lease.replicaId);
      return;
    case "failed":
      end(state, task, "failed", outcome.code, outcome.message, commands, lease.replicaId);
      return;
    case "lost":
      attemptLost(state, pool, task, { ...event, outcome }, commands);
      return;
    default:
      assertNever(outcome, "attempt outcome");
  }
}

function attemptLost(
  state: SchedulerState,
  pool: PoolState,
  task: ScheduledTask,
  { lease, outcome }: { lease: { replicaId: string }; outcome: LostOutcome },
  commands: Command[],
): void {
  const { replicaId } = lease;
  const { attemptsMax, continues = false } = state.options;
  const rules = {
    attemptsMax,
    crashesShared: limits.crashesSharedMax,
    tokensClearing: limits.suspectClearingTokens,
  };
  const { fruitlessAttempts, crashesInRow, cuts } = task;
  const loss = { cause: causeOf(outcome), tokensNew: outcome.tokensProduced };
  Object.assign(task, noteLoss({ fruitlessAttempts, crashesInRow, cuts }, loss, rules));
  if (continues) task.exclusive = task.strict || isSuspect(task, rules);
  if ((!continues && outcome.tokensProduced > 0) || isSpent(task, rules))
    end(state, task, "failed", outcome.code, outcome.message, commands, replicaId);
  else if (pool.unavailable !== null)
    end(state, task, "failed", "POOL_UNAVAILABLE", pool.unavailable, commands, replicaId);
  else if (task.overdue) end(state, task, "failed", "DEADLINE_UNMET", waitedTooLong, commands, replicaId);
  else {
    task.state = transition(transition(task.state, "suspended"), "queued");
    task.resumed = true;
    pool.queue.putBack(task);
    commands.push({ type: "requeue_task", taskId: task.taskId, message: outcome.message });
  }
}

function causeOf({ began, code }: LostOutcome): LossCause {
  if (!began) return "not_begun";
  return code === "DECODE_TIMEOUT" ? "watchdog" : "engine";
}

type LostOutcome = Extract<Of<"attempt_ended">["outcome"], { kind: "lost" }>;
