/**
 * The replica machine: one engine instance from its start over readiness to its reaped end, and what comes
 * after a failure. Pure: facts in, the next state and commands as data out. services/replica-runner.ts feeds
 * it and carries the commands out; nothing else decides about a replica.
 *
 * Always holds: a replica has at most one process, and the next start waits until that one is reaped; it is
 * ready only after a health answer and a real decode; a fact of an older incarnation changes nothing.
 */
import { assert, assertNever } from "./assert.ts";
import { classifyExit, failureOf, isHopeless, waitsForChange, wedgedMessage } from "./failure-cause.ts";
import { limits } from "./limits.ts";
import type { EngineIdentity, ReplicaFailure, ReplicaState, WarmUpSpeed } from "./pool.ts";
import {
  assertConsistent,
  backoffDelayMs,
  hasGone,
  isServing,
  looksForChange,
  type Replica,
  type ReplicaCommand,
  type ReplicaEvent,
  type ReplicaFact,
  type ReplicaPolicy,
  type ReplicaStep,
  type ReplicaTimer,
  stopLadderMs,
  successors,
  timersOf,
  toRest,
  unchanged,
} from "./replica-model.ts";

/**
 * | state        | process | timers             | left by                                                      |
 * |--------------|---------|--------------------|--------------------------------------------------------------|
 * | stopped      | none    |                    | start_requested → starting                                   |
 * | starting     | asked   |                    | process_started → loading; start_failed → backoff/circuit_open |
 * | loading      | running | load, probe        | health_ok → warming                                          |
 * | warming      | running | load               | warm_up_done → ready; warm_up_failed → failed                |
 * | ready        | running |                    | slots_changed → busy; drain_requested → stopping             |
 * | busy         | running |                    | slots_changed → ready; drain_requested → draining            |
 * | draining     | running | drain              | no slot busy, or the drain timer → stopping                  |
 * | stopping     | asked or running | first_term, second_term, kill | process_exited → stopped (→ starting if wanted again) |
 * | failed       | running, SIGKILLed |         | process_exited → backoff/circuit_open                |
 * | backoff      | none    | backoff            | its timer → starting; stop_requested → stopped               |
 * | circuit_open | none    | half_open, or look | its timer → starting, or `looked` and changed; start_requested brings that forward, rest_requested puts it off |
 *
 * From starting to busy: process_exited → backoff/circuit_open; the load timer (until ready) and `wedged`
 * (once ready) → failed; stop_requested → stopping. A half-open start that fails opens the circuit again. After a failure that
 * only a change can mend (waitsForChange) the circuit stays open until something has changed.
 *
 * `jitter` in [0, 1) spreads the backoff; used only when this event is a failure.
 */
export function step(
  replica: Replica,
  event: ReplicaEvent,
  nowMs: number,
  policy: ReplicaPolicy,
  jitter: number,
): ReplicaStep {
  if ("incarnation" in event) {
    assert(event.incarnation <= replica.incarnation, "facts are about incarnations that were started");
    if (event.incarnation < replica.incarnation) return unchanged(replica);
  }
  switch (event.type) {
    case "start_requested":
      return onStartRequested(replica, nowMs, event.anyway ?? false);
    case "stop_requested":
      return onStopRequested(replica, policy);
    case "rest_requested":
      return toRest(replica);
    case "force_stop_requested":
      return onForceStop(replica);
    case "drain_requested":
      return onDrainRequested(replica, event.deadlineMs, policy);
    case "process_started":
      return onProcessStarted(replica, event.pid, policy);
    case "start_failed":
      return onStartFailed(replica, event, nowMs, policy, jitter);
    case "engine_announced":
      return onAnnounced(replica);
    case "health_ok":
      if (replica.state !== "loading") return ignoredProbe(replica);
      return move(replica, "warming", { probe: "none" }, [{ type: "warm_up" }]);
    case "health_pending":
      return onHealthPending(replica);
    case "warm_up_done":
      return onWarmUpDone(replica, event.identity, event.speed);
    case "warm_up_failed":
      if (replica.state !== "warming") return ignoredProbe(replica);
      return fail(replica, failureOf("warm_up_failed", event.message, nowMs, event));
    case "slots_changed":
      return onSlotsChanged(replica, event.slotsBusy, policy);
    case "progress_made":
      return isServing(replica) ? unchanged({ ...replica, failuresInRow: 0 }) : unchanged(replica);
    case "wedged":
      return onWedged(
        replica,
        failureOf("wedged", wedgedMessage(event.message, policy.subject), nowMs, event),
      );
    case "looked":
      return onLooked(replica, event, nowMs);
    case "process_exited":
      return onExited(replica, event, nowMs, policy, jitter);
    case "timer_fired":
      return onTimer(replica, event.timer, event.logTail, nowMs, policy);
    default:
      return assertNever(event, "replica event");
  }
}

function onStartRequested(replica: Replica, nowMs: number, anyway: boolean): ReplicaStep {
  if (replica.state === "stopped") return start(replica, null, { halfOpen: false });
  if (replica.state === "stopping") return unchanged({ ...replica, startAgain: true });
  if (replica.state === "circuit_open") {
    // A try that nothing has changed for would end as the last one did.
    if (looksForChange(replica) && !anyway)
      return { state: replica, commands: [{ type: "look", asked: true }] };
    // Callers may ask with every task: the tries stay as far apart as the backoff wants them.
    const ms = Math.max(0, replica.retryAtMs - nowMs);
    return {
      state: { ...replica, resting: false },
      commands: [{ type: "set_timer", timer: "half_open", ms }],
    };
  }
  return unchanged(replica);
}

function start(replica: Replica, restart: ReplicaFailure | null, changes: Partial<Replica>): ReplicaStep {
  const incarnation = replica.incarnation + 1;
  return move(
    replica,
    "starting",
    {
      incarnation,
      process: "asked",
      pid: null,
      wasReady: false,
      probe: "none",
      startAgain: false,
      resting: false,
      restarts: replica.restarts + (restart === null ? 0 : 1),
      ...changes,
    },
    [{ type: "start_process", incarnation, restart }],
  );
}

function onProcessStarted(replica: Replica, pid: number | null, policy: ReplicaPolicy): ReplicaStep {
  assert(replica.process === "asked", "a process starts once, after it was asked for");
  const running = { ...replica, process: "running", pid } as const;
  switch (replica.state) {
    case "starting":
      return move(running, "loading", { probe: "on_its_way" }, [
        { type: "set_timer", timer: "load", ms: policy.loadMs },
        { type: "probe_health" },
      ]);
    case "stopping":
      return { state: running, commands: stopLadder(policy, false) };
    default:
      assert(false, `process_started in ${replica.state}`);
  }
}

function onStartFailed(
  replica: Replica,
  { cause, message }: Extract<ReplicaFact, { type: "start_failed" }>,
  nowMs: number,
  policy: ReplicaPolicy,
  jitter: number,
): ReplicaStep {
  assert(replica.process === "asked", "only a start that was asked for fails");
  const gone = { ...replica, process: "none" } as const;
  if (replica.state === "stopping") return stopped(gone);
  assert(replica.state === "starting", `start_failed in ${replica.state}`);
  const failure = failureOf(cause ?? "spawn_failed", message, nowMs);
  return afterFailure(gone, failure, nowMs, policy, jitter, []);
}

function onAnnounced(replica: Replica): ReplicaStep {
  if (replica.state !== "loading") return unchanged(replica);
  if (replica.probe !== "none") return unchanged({ ...replica, probe: "again" });
  return {
    state: { ...replica, probe: "on_its_way" },
    commands: [{ type: "cancel_timer", timer: "probe" }, { type: "probe_health" }],
  };
}

function onHealthPending(replica: Replica): ReplicaStep {
  if (replica.state !== "loading") return ignoredProbe(replica);
  assert(replica.probe !== "none", "an answer follows a probe");
  if (replica.probe === "again") {
    return { state: { ...replica, probe: "on_its_way" }, commands: [{ type: "probe_health" }] };
  }
  return {
    state: { ...replica, probe: "none" },
    commands: [{ type: "set_timer", timer: "probe", ms: limits.healthProbeMs }],
  };
}

/** Answers that were on their way when the replica was stopped, failed or ended. */
function ignoredProbe(replica: Replica): ReplicaStep {
  assert(replica.state !== "starting" && !isServing(replica), `no probe is on its way in ${replica.state}`);
  return unchanged(replica);
}

function onWarmUpDone(replica: Replica, identity: EngineIdentity, speed: WarmUpSpeed): ReplicaStep {
  if (replica.state !== "warming") return ignoredProbe(replica);
  return move(replica, "ready", { identity, wasReady: true, failedStartsAtMs: [], halfOpen: false }, [
    { type: "remove_secrets" },
    { type: "report_ready", speed },
  ]);
}

function onSlotsChanged(replica: Replica, slotsBusy: number, policy: ReplicaPolicy): ReplicaStep {
  // Leases of a replica that is going are still given back one by one.
  if (!isServing(replica)) return unchanged(replica);
  const slotsTotal = replica.identity?.slots ?? policy.slots;
  assert(slotsBusy >= 0 && slotsBusy <= slotsTotal, `${slotsBusy} of ${slotsTotal} slots busy`);
  if (replica.state === "draining") {
    if (slotsBusy === 0) return stop({ ...replica, slotsBusy }, policy);
    return unchanged({ ...replica, slotsBusy });
  }
  const to = slotsBusy > 0 ? "busy" : "ready";
  if (to === replica.state) return unchanged({ ...replica, slotsBusy });
  return move(replica, to, { slotsBusy }, []);
}

function onDrainRequested(replica: Replica, deadlineMs: number, policy: ReplicaPolicy): ReplicaStep {
  if (replica.state === "draining") return unchanged(replica);
  if (replica.state !== "busy") return onStopRequested(replica, policy);
  return move(replica, "draining", {}, [{ type: "set_timer", timer: "drain", ms: deadlineMs }]);
}

function onWedged(replica: Replica, failure: ReplicaFailure): ReplicaStep {
  if (replica.state === "ready" || replica.state === "busy") return fail(replica, failure);
  if (replica.state === "draining") {
    return move(replica, "stopping", { lastError: failure }, [{ type: "report_lost", failure }, ...killNow]);
  }
  assert(hasGone(replica), `wedged in ${replica.state}: nothing was dispatched to it`);
  return unchanged(replica);
}

function onStopRequested(replica: Replica, policy: ReplicaPolicy): ReplicaStep {
  switch (replica.state) {
    case "stopped":
      return unchanged(replica);
    case "stopping":
      return unchanged({ ...replica, startAgain: false });
    case "backoff":
    case "circuit_open":
      return move(replica, "stopped", { halfOpen: false }, []);
    case "failed":
      // Already killed; only what follows its end changes.
      return move(replica, "stopping", {}, []);
    default:
      return stop(replica, policy);
  }
}

function stop(replica: Replica, policy: ReplicaPolicy): ReplicaStep {
  const lost: ReplicaCommand[] = isServing(replica) ? [{ type: "report_lost", failure: null }] : [];
  const works = replica.state === "warming" || replica.slotsBusy > 0;
  // A process that was asked for and is not there yet gets its signals when it comes.
  const ladder = replica.process === "running" ? stopLadder(policy, works) : [];
  return move(replica, "stopping", { startAgain: false }, [...lost, ...ladder]);
}

/**
 * llama-server that is told to stop while it generates often hangs, even when its clients leave in that moment:
 * one stop in nine did, until the second SIGTERM. Told after it noticed that they left, none did.
 */
function stopLadder(policy: ReplicaPolicy, works: boolean): ReplicaCommand[] {
  const { firstTermMs, secondTermMs, killMs } = stopLadderMs(policy.stopGraceMs);
  return [
    { type: "close_client" },
    works
      ? { type: "set_timer", timer: "first_term", ms: firstTermMs }
      : { type: "signal", signal: "SIGTERM" },
    { type: "set_timer", timer: "second_term", ms: secondTermMs },
    { type: "set_timer", timer: "kill", ms: killMs },
  ];
}

const killNow: readonly ReplicaCommand[] = [{ type: "close_client" }, { type: "signal", signal: "SIGKILL" }];

function onForceStop(replica: Replica): ReplicaStep {
  switch (replica.state) {
    case "stopped":
      return unchanged(replica);
    case "backoff":
    case "circuit_open":
      return move(replica, "stopped", { halfOpen: false }, []);
    case "stopping": {
      const cancels = timersOf.stopping.map((timer) => ({ type: "cancel_timer", timer }) as const);
      const kill = replica.process === "running" ? killNow : [];
      return { state: { ...replica, startAgain: false }, commands: [...cancels, ...kill] };
    }
    default: {
      const lost: ReplicaCommand[] = isServing(replica) ? [{ type: "report_lost", failure: null }] : [];
      const kill = replica.process === "running" ? killNow : [];
      return move(replica, "stopping", { startAgain: false }, [...lost, ...kill]);
    }
  }
}

/** It runs, but it is of no use: killed now, restarted once it is reaped. */
function fail(replica: Replica, failure: ReplicaFailure): ReplicaStep {
  const lost: ReplicaCommand[] = isServing(replica) ? [{ type: "report_lost", failure }] : [];
  return move(replica, "failed", { lastError: failure }, [...lost, ...killNow]);
}

function onExited(
  replica: Replica,
  exit: Extract<ReplicaFact, { type: "process_exited" }>,
  nowMs: number,
  policy: ReplicaPolicy,
  jitter: number,
): ReplicaStep {
  assert(replica.process === "running", "a process ends once, after it started");
  const gone = { ...replica, process: "none", pid: null } as const;
  if (replica.state === "stopping") return stopped(gone);
  if (replica.state === "failed") {
    assert(replica.lastError !== null, "a failed replica knows why");
    return afterFailure(gone, replica.lastError, nowMs, policy, jitter, []);
  }
  const phase = replica.wasReady ? "serve" : "load";
  const failure = classifyExit({ ...exit, phase, atMs: nowMs }, policy.subject);
  const lost: ReplicaCommand[] = isServing(replica) ? [{ type: "report_lost", failure }] : [];
  if (replica.state === "draining") {
    return move(gone, "stopped", { lastError: failure }, [
      ...lost,
      { type: "close_client" },
      { type: "clean_up" },
    ]);
  }
  return afterFailure(gone, failure, nowMs, policy, jitter, [...lost, { type: "close_client" }]);
}

function stopped(gone: Replica): ReplicaStep {
  const before: ReplicaCommand[] = [{ type: "close_client" }, { type: "clean_up" }];
  if (!gone.startAgain) return move(gone, "stopped", { halfOpen: false }, before);
  const next = start(gone, null, { halfOpen: false });
  const [cancels, starts] = [next.commands.slice(0, -1), next.commands.slice(-1)];
  return { state: next.state, commands: [...cancels, ...before, ...starts] };
}

/** The process is gone: wait and start again, or give up until somebody acts. */
function afterFailure(
  gone: Replica,
  failure: ReplicaFailure,
  nowMs: number,
  policy: ReplicaPolicy,
  jitter: number,
  before: readonly ReplicaCommand[],
): ReplicaStep {
  const failuresInRow = gone.failuresInRow + 1;
  const delayMs = backoffDelayMs(failuresInRow, policy, jitter);
  const retryAtMs = nowMs + Math.min(delayMs, policy.breakerWindowMs);
  // A start that hangs takes loadMs to fail: the window counts the time between starts, not that of the starts.
  const windowMs = policy.breakerWindowMs + policy.breakerFailures * policy.loadMs;
  const recent = gone.failedStartsAtMs.filter((atMs) => atMs > nowMs - windowMs);
  const failedStartsAtMs = gone.wasReady ? [] : [...recent, nowMs];
  const changes = { lastError: failure, failuresInRow, halfOpen: false } as const;
  const storm = failedStartsAtMs.length >= policy.breakerFailures;
  if (!gone.wasReady && (storm || gone.halfOpen || isHopeless(failure))) {
    return move(gone, "circuit_open", { ...changes, failedStartsAtMs: [], retryAtMs }, [
      ...before,
      { type: "clean_up" },
      waitsForChange(failure)
        ? { type: "set_timer", timer: "look", ms: limits.changeLookMs }
        : { type: "set_timer", timer: "half_open", ms: policy.breakerWindowMs },
      { type: "report_unavailable", failure },
    ]);
  }
  return move(gone, "backoff", { ...changes, failedStartsAtMs }, [
    ...before,
    { type: "clean_up" },
    { type: "set_timer", timer: "backoff", ms: delayMs },
  ]);
}

function onLooked(
  replica: Replica,
  { changed, steady, asked }: Extract<ReplicaFact, { type: "looked" }>,
  nowMs: number,
): ReplicaStep {
  // Another answer may have come before.
  if (!looksForChange(replica) || replica.lastError === null) return unchanged(replica);
  if (asked && !changed)
    return { state: replica, commands: [{ type: "report_unavailable", failure: replica.lastError }] };
  if (asked) return onStartRequested(replica, nowMs, true);
  // A file that is being copied is left to come whole.
  if (changed && steady && !replica.resting) return start(replica, replica.lastError, { halfOpen: true });
  const again: ReplicaCommand = { type: "set_timer", timer: "look", ms: limits.changeLookMs };
  return { state: replica, commands: changed && steady ? [{ type: "report_mendable" }, again] : [again] };
}

function onTimer(
  replica: Replica,
  timer: ReplicaTimer,
  logTail: readonly string[],
  nowMs: number,
  policy: ReplicaPolicy,
): ReplicaStep {
  assert(timersOf[replica.state].includes(timer), `timer ${timer} fired in ${replica.state}`);
  switch (timer) {
    case "load": {
      const what = replica.state === "warming" ? "its first decode did not end" : "the model was not loaded";
      const message = `${what} within ${policy.loadMs} ms: raise "timeouts.load_ms" of pool ${policy.subject.id}, or see the engine's log`;
      return fail(replica, failureOf("load_timeout", message, nowMs, { logTail }));
    }
    case "probe":
      assert(replica.probe === "none", "one probe at a time");
      return { state: { ...replica, probe: "on_its_way" }, commands: [{ type: "probe_health" }] };
    case "drain":
      return stop(replica, policy);
    case "first_term":
    case "second_term":
      return { state: replica, commands: [{ type: "signal", signal: "SIGTERM" }] };
    case "kill":
      return { state: replica, commands: [{ type: "signal", signal: "SIGKILL" }] };
    case "backoff":
      return start(replica, replica.lastError, { halfOpen: false });
    case "look":
      return { state: replica, commands: [{ type: "look", asked: false }] };
    case "half_open":
      return start(replica, replica.lastError, { halfOpen: true });
    default:
      return assertNever(timer, "replica timer");
  }
}

function move(
  from: Replica,
  to: ReplicaState,
  changes: Partial<Replica>,
  commands: readonly ReplicaCommand[],
): ReplicaStep {
  assert(successors[from.state].includes(to), `a replica never goes from ${from.state} to ${to}`);
  const cancels = timersOf[from.state]
    .filter((timer) => !timersOf[to].includes(timer))
    .map((timer) => ({ type: "cancel_timer", timer }) as const);
  const next: Replica = { ...from, ...changes, state: to };
  const state = isServing(next) ? next : { ...next, identity: null, slotsBusy: 0 };
  assertConsistent(state);
  return { state, commands: [...cancels, ...commands] };
}
