/**
 * The scheduler: pure. `admit` takes or refuses a task, `decide` takes an event and returns commands; both
 * change only the state handed in, and read no clock, no randomness, no I/O. The dispatcher is the only
 * caller; the simulation calls the same code. The state is scheduler-state.ts's, full queues are
 * scheduler-admission.ts's, what starts where is scheduler-start.ts's and who is cut for others scheduler-preempt.ts's:
 * their headers state the rules and bounds.
 *
 * Cost of an event: O(log n) in the tasks that wait, and linear in the replicas and slots of one pool, which are
 * bounded by the configuration.
 */
import { assert, assertNever } from "./assert.ts";
import type { ErrorCode } from "./errors.ts";
import { limits } from "./limits.ts";
import { forgetSession, readyReplica } from "./placement.ts";
import { cutHeld, cutRetired, hold, isHeldBack, release, retire } from "./scheduler-holds.ts";
import {
  addPool,
  changeOptions,
  changePool,
  cutLeaving,
  isStale,
  leave,
  removePool,
} from "./scheduler-pools.ts";
import { schedule } from "./scheduler-preempt.ts";
import type { Command, CutReason, RecoveredTask, SchedulerEvent } from "./scheduler-protocol.ts";
import {
  cut,
  end,
  freeSlot,
  isBound,
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
export { isQuiet, isRetiredQuiet } from "./scheduler-holds.ts";
export { createScheduler, isDrained, type SchedulerState, slotsBusy } from "./scheduler-state.ts";

type Of<T extends SchedulerEvent["type"]> = Extract<SchedulerEvent, { type: T }>;

const waitedTooLong = "the deadline passed while the task waited: allow more time or use a less busy pool";
const ranTooLong = "the deadline passed while the task ran: allow more time or ask for fewer tokens";
const tooLateToStart =
  "the task can no longer be done by its deadline: allow more time or use a less busy pool";

export function decide(state: SchedulerState, event: SchedulerEvent, nowMs: number): Command[] {
  const commands: Command[] = [];
  if (isStale(state, event)) return commands;
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
      attemptEnded(state, event, nowMs, commands);
      break;
    case "wake": {
      // What is still held asks again: a timer may be a little early.
      const pool = poolOf(state, event.poolId);
      pool.wakeAtMs = null;
      schedule(state, pool, nowMs, commands, event.running);
      return commands;
    }
    case "cancel_requested":
    case "deadline_passed":
    case "start_deadline_passed":
    case "run_time_passed": {
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
    case "pool_held":
      hold(state, poolOf(state, event.poolId), event.by, event.finishing ?? false, nowMs, commands);
      return commands;
    case "pool_released":
      release(state, poolOf(state, event.poolId), event.by, nowMs, commands);
      return commands;
    case "hold_deadline_passed":
      cutHeld(state, poolOf(state, event.poolId), event.by, event.spare ?? new Set(), commands);
      return commands;
    case "replicas_retired":
      retire(state, poolOf(state, event.poolId), event.replicaIds, event.another, nowMs, commands);
      return commands;
    case "retirement_over":
      cutRetired(state, poolOf(state, event.poolId), event.spare, commands);
      return commands;
    case "task_unfit": {
      const task = state.tasks.get(event.taskId);
      if (task?.state === "queued") end(state, task, "failed", "WORKER_RESET", event.message, commands);
      return commands;
    }
    case "pool_added":
      addPool(state, event.pool);
      return commands;
    case "pool_changed":
      changePool(state, poolOf(state, event.poolId), event.pool, nowMs, commands);
      return commands;
    case "pool_leaving":
      leave(state, poolOf(state, event.poolId), event.message, commands);
      return commands;
    case "leaving_over":
      cutLeaving(state, poolOf(state, event.poolId), commands);
      return commands;
    case "pool_removed":
      removePool(state, poolOf(state, event.poolId));
      return commands;
    case "options_changed":
      changeOptions(state, event, nowMs, commands);
      return commands;
    case "recovered":
      recovered(state, event, nowMs, commands);
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
  // A pool that is taken out takes nothing, whatever its engines do.
  if (!pool.leaving) pool.unavailable = null;
  pool.replicas.set(replicaId, readyReplica(replicaId, incarnation, slots, pool.generation));
}

function poolUnavailable(state: SchedulerState, event: Of<"pool_unavailable">, commands: Command[]): void {
  const pool = poolOf(state, event.poolId);
  if (pool.leaving) return;
  pool.unavailable = event.message;
  for (const entry of [...pool.queue.entries()])
    end(state, taskOf(state, entry.taskId), "failed", "POOL_UNAVAILABLE", event.message, commands);
}

/** What a client or a deadline ends before its attempt does. */
function endEarly(
  state: SchedulerState,
  task: ScheduledTask,
  event: Of<"cancel_requested" | "deadline_passed" | "start_deadline_passed" | "run_time_passed">,
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
      if (!running && task.cuts === 0 && !task.hasSent)
        end(state, task, "failed", "DEADLINE_UNMET", tooLateToStart, commands);
      return;
    case "deadline_passed":
      if (running && event.cut) {
        cut(state, task, "deadline", commands);
        end(state, task, "failed", "DEADLINE_UNMET", ranTooLong, commands);
      }
      // It goes on, also where it was cut and waits: what it has produced is worth more to its client than nothing.
      else if (running || (task.hasSent && !event.cut)) task.overdue = true;
      else end(state, task, "failed", "DEADLINE_UNMET", waitedTooLong, commands);
      return;
    case "run_time_passed":
      if (running) cut(state, task, "run_time", commands);
      end(state, task, "failed", "DECODE_TIMEOUT", event.message, commands);
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
    const scheduled = live(task, nowMs);
    const pool = poolOf(state, task.poolId);
    state.tasks.set(task.taskId, scheduled);
    pool.queue.push(scheduled);
    state.admissions = Math.max(state.admissions, task.ordinal);
    pools.add(pool);
  }
  state.admissions = Math.max(state.admissions, event.ordinal ?? 0);
  for (const pool of pools) {
    if (pool.replicas.size === 0 && !isHeldBack(pool))
      commands.push({ type: "ensure_pool", poolId: pool.poolId });
    schedule(state, pool, nowMs, commands);
  }
}

function attemptEnded(
  state: SchedulerState,
  event: Of<"attempt_ended">,
  nowMs: number,
  commands: Command[],
): void {
  const { lease, outcome } = event;
  const pool = poolOf(state, event.poolId);
  const task = state.tasks.get(event.taskId);
  const holds = task?.lease?.leaseId === lease.leaseId;
  const replica = replicaOf(pool, lease);
  if (replica !== null) {
    if (event.slotFree) freeSlot(state, replica, lease.leaseId, commands);
    else if (holds) markReleasing(replica, lease.leaseId, { lost: outcome.kind === "lost" });
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
    case "cut":
      attemptCut(state, pool, task, { ...event, outcome }, nowMs, commands);
      return;
    default:
      assertNever(outcome, "attempt outcome");
  }
}

/** It goes on, unless that was its last chance. */
function attemptCut(
  state: SchedulerState,
  pool: PoolState,
  task: ScheduledTask,
  { lease, outcome }: { lease: { replicaId: string }; outcome: CutOutcome },
  nowMs: number,
  commands: Command[],
): void {
  const { replicaId } = lease;
  const { attemptsMax } = state.options;
  const rules = {
    attemptsMax,
    crashesShared: limits.crashesSharedMax,
    tokensClearing: limits.suspectClearingTokens,
  };
  const { fruitlessAttempts, crashesInRow, cuts } = task;
  const { tokensProduced } = outcome;
  const loss = { cause: causeOf(outcome), tokensNew: tokensProduced };
  Object.assign(task, noteLoss({ fruitlessAttempts, crashesInRow, cuts }, loss, rules));
  task.exclusive = task.strict || isSuspect(task, rules);
  task.hasSent ||= tokensProduced > 0;
  const { code, message, cut: cutBy } = toldOf(outcome);
  const fail = (withCode: ErrorCode, why: string) =>
    end(state, task, "failed", withCode, why, commands, replicaId);
  if (isSpent(task, rules)) fail(code, `${message}: ${adviceOf(code, task)}`);
  else if (pool.unavailable !== null) fail("POOL_UNAVAILABLE", pool.unavailable);
  // What has sent something goes on, late as it is, and so does what the daemon itself has cut.
  else if (task.overdue && !task.hasSent && outcome.kind === "lost") fail("DEADLINE_UNMET", waitedTooLong);
  else {
    task.state = transition(transition(task.state, "suspended"), "queued");
    task.resumed = true;
    task.waitsSinceMs = nowMs;
    pool.queue.putBack(task);
    if (isBound(pool, task) || (pool.finishing && task.hasSent)) pool.bound.add(task.taskId);
    commands.push({ type: "requeue_task", taskId: task.taskId, message, cut: cutBy });
  }
}

/** To whoever has to send it again. */
const adviceOf = (code: ErrorCode, { hasSent }: ScheduledTask): string =>
  code === "DECODE_TIMEOUT" && !hasSent
    ? "submit the task again, or with a shorter prompt"
    : "submit the task again";

function causeOf(outcome: CutOutcome): LossCause {
  if (outcome.kind === "cut") return "cut";
  if (!outcome.began) return "not_begun";
  return outcome.code === "DECODE_TIMEOUT" ? "watchdog" : "engine";
}

const cutMessages: Readonly<Record<CutReason, string>> = {
  preempted: "an interactive task took its slot",
  drain: "its pool is drained",
  reload: "its pool gets another model",
  memory: "the memory of its engine is lent to another program",
};

const toldOf = (outcome: CutOutcome) =>
  outcome.kind === "lost"
    ? { code: outcome.code, message: outcome.message, cut: null }
    : { code: "WORKER_RESET" as const, message: cutMessages[outcome.reason], cut: outcome.reason };

type CutOutcome = Extract<Of<"attempt_ended">["outcome"], { kind: "lost" | "cut" }>;
