/**
 * The vocabulary of the replica machine (replica.ts): its state, the facts it takes, the commands it gives and
 * the numbers of its policy. Read by replica.ts, services/replica-runner.ts and the simulation.
 */
import { assert } from "./assert.ts";
import { type ExitFacts, type FailureSubject, waitsForChange } from "./failure-cause.ts";
import { limits } from "./limits.ts";
import type { EngineIdentity, PoolSpec, ReplicaFailure, ReplicaState, WarmUpSpeed } from "./pool.ts";

export type ReplicaTimer =
  | "load"
  | "probe"
  | "drain"
  | "first_term"
  | "second_term"
  | "kill"
  | "backoff"
  | "half_open"
  | "look";

export interface Replica {
  readonly state: ReplicaState;
  /** Counts the starts; 0 before the first. */
  readonly incarnation: number;
  /** asked: start_process was commanded and its answer has not come yet. */
  readonly process: "none" | "asked" | "running";
  /** Null too while the engine runs inside this process. */
  readonly pid: number | null;
  readonly identity: EngineIdentity | null;
  readonly slotsBusy: number;
  /** Starts that followed a failure. */
  readonly restarts: number;
  readonly lastError: ReplicaFailure | null;
  /** This incarnation was ready once: its end is no failed start. */
  readonly wasReady: boolean;
  /** Failures since a token was decoded: the exponent of the backoff. */
  readonly failuresInRow: number;
  /** When the recent starts failed that never became ready; bounded by breakerFailures. */
  readonly failedStartsAtMs: readonly number[];
  /** This start is the one try that an open circuit allows. */
  readonly halfOpen: boolean;
  /** circuit_open: start_requested does not bring the try forward to before this. */
  readonly retryAtMs: number;
  /** again: the engine announced itself while a probe was on its way, so its answer may be out of date. */
  readonly probe: "none" | "on_its_way" | "again";
  /** circuit_open: it starts only when it is asked to. */
  readonly resting: boolean;
  /** stopping: start_requested came meanwhile. */
  readonly startAgain: boolean;
}

/** A pool's settings as the machine needs them; times in milliseconds. */
export interface ReplicaPolicy {
  readonly subject: FailureSubject;
  readonly slots: number;
  readonly loadMs: number;
  readonly stopGraceMs: number;
  readonly backoffMs: number;
  readonly backoffMaxMs: number;
  readonly breakerFailures: number;
  readonly breakerWindowMs: number;
}

export interface RestartPolicy {
  readonly backoffMs: number;
  readonly backoffMaxMs: number;
  readonly breakerFailures: number;
  readonly breakerWindowMs: number;
}

export type ReplicaEvent =
  /** anyway: also where nothing has changed since a start that was hopeless. */
  | { readonly type: "start_requested"; readonly anyway?: boolean }
  | { readonly type: "stop_requested" }
  /** circuit_open: no try before start_requested. */
  | { readonly type: "rest_requested" }
  /** The second signal: no grace. */
  | { readonly type: "force_stop_requested" }
  | { readonly type: "drain_requested"; readonly deadlineMs: number }
  | ReplicaFact;

/** What became of one incarnation. */
export type ReplicaFact = { readonly incarnation: number } & (
  | { readonly type: "process_started"; readonly pid: number | null }
  | {
      readonly type: "start_failed";
      readonly message: string;
      readonly cause?: "spawn_failed" | "device_failed";
    }
  /** Its log says that it listens: a probe now beats the next one by the clock. */
  | { readonly type: "engine_announced" }
  | { readonly type: "health_ok" }
  | { readonly type: "health_pending" }
  | { readonly type: "warm_up_done"; readonly identity: EngineIdentity; readonly speed: WarmUpSpeed }
  | { readonly type: "warm_up_failed"; readonly message: string; readonly logTail: readonly string[] }
  | { readonly type: "slots_changed"; readonly slotsBusy: number }
  | { readonly type: "progress_made" }
  | { readonly type: "wedged"; readonly message: string; readonly logTail: readonly string[] }
  | {
      readonly type: "process_exited";
      readonly code: number | null;
      readonly signal: string | null;
      readonly memoryKill?: boolean | null;
      readonly reason: ExitFacts["reason"];
      readonly logTail: readonly string[];
    }
  /**
   * changed: what a start stands on is another than at the last start; steady: as it was at the last look. asked: somebody
   * wants the pool and hears how it ends.
   */
  | {
      readonly type: "looked";
      readonly changed: boolean;
      readonly steady: boolean;
      readonly asked: boolean;
    }
  | { readonly type: "timer_fired"; readonly timer: ReplicaTimer; readonly logTail: readonly string[] }
);

export type ReplicaCommand =
  /** restart: what failed before, null for a start that was asked for. */
  | { readonly type: "start_process"; readonly incarnation: number; readonly restart: ReplicaFailure | null }
  | { readonly type: "probe_health" }
  | { readonly type: "warm_up" }
  | { readonly type: "set_timer"; readonly timer: ReplicaTimer; readonly ms: number }
  | { readonly type: "cancel_timer"; readonly timer: ReplicaTimer }
  | { readonly type: "signal"; readonly signal: "SIGTERM" | "SIGKILL" }
  | { readonly type: "close_client" }
  /** The engine has read its keys: the files go. */
  | { readonly type: "remove_secrets" }
  /** The process is reaped, or never came to be: forget it, remove its socket and key files. */
  | { readonly type: "clean_up" }
  /** Whether what a start stands on has changed: answered by `looked`. */
  | { readonly type: "look"; readonly asked: boolean }
  | { readonly type: "report_ready"; readonly speed: WarmUpSpeed }
  | { readonly type: "report_lost"; readonly failure: ReplicaFailure | null }
  /** It rests, and what made its start hopeless has changed. */
  | { readonly type: "report_mendable" }
  | { readonly type: "report_unavailable"; readonly failure: ReplicaFailure };

export interface ReplicaStep {
  readonly state: Replica;
  readonly commands: readonly ReplicaCommand[];
}

/** Where each state may lead; replica.ts says by what. */
export const successors: Readonly<Record<ReplicaState, readonly ReplicaState[]>> = {
  stopped: ["starting"],
  starting: ["loading", "stopping", "backoff", "circuit_open"],
  loading: ["warming", "failed", "stopping", "backoff", "circuit_open"],
  warming: ["ready", "failed", "stopping", "backoff", "circuit_open"],
  ready: ["busy", "failed", "stopping", "backoff"],
  busy: ["ready", "draining", "failed", "stopping", "backoff"],
  draining: ["stopping", "stopped"],
  stopping: ["stopped", "starting"],
  failed: ["backoff", "circuit_open", "stopping"],
  backoff: ["starting", "stopped"],
  circuit_open: ["starting", "stopped"],
};

/** A timer lives only in these states: leaving them cancels it. */
export const timersOf: Readonly<Record<ReplicaState, readonly ReplicaTimer[]>> = {
  stopped: [],
  starting: [],
  loading: ["load", "probe"],
  warming: ["load"],
  ready: [],
  busy: [],
  draining: ["drain"],
  stopping: ["first_term", "second_term", "kill"],
  failed: [],
  backoff: ["backoff"],
  circuit_open: ["half_open", "look"],
};

/** `incarnation`: of an earlier one of the same id, so that facts about that one are stale. */
export function newReplica(incarnation = 0): Replica {
  return {
    state: "stopped",
    incarnation,
    process: "none",
    pid: null,
    identity: null,
    slotsBusy: 0,
    restarts: 0,
    lastError: null,
    wasReady: false,
    failuresInRow: 0,
    failedStartsAtMs: [],
    halfOpen: false,
    retryAtMs: 0,
    probe: "none",
    startAgain: false,
    resting: false,
  };
}

export function replicaPolicy(pool: PoolSpec, restart: RestartPolicy): ReplicaPolicy {
  return {
    subject: pool,
    slots: pool.slots,
    loadMs: pool.timeouts.loadMs,
    stopGraceMs: pool.timeouts.stopGraceMs,
    ...restart,
  };
}

/** Wait before the nth start in a row, n from 1: between half of min(max, first · 2^(n-1)) and all of it. */
export function backoffDelayMs(failuresInRow: number, policy: RestartPolicy, jitter: number): number {
  assert(failuresInRow >= 1, "a backoff follows a failure");
  assert(jitter >= 0 && jitter < 1, "jitter is in [0, 1)");
  // The exponent is capped before the power can become Infinity.
  const full = Math.min(policy.backoffMaxMs, policy.backoffMs * 2 ** Math.min(failuresInRow - 1, 40));
  return Math.round(full * (0.5 + jitter / 2));
}

/**
 * When SIGTERM, SIGTERM again and SIGKILL follow the closing of the clients of a working engine: the pool's grace
 * bounds the whole ladder.
 */
export function stopLadderMs(stopGraceMs: number): {
  firstTermMs: number;
  secondTermMs: number;
  killMs: number;
} {
  const { stopCloseLeadMs, stopSecondTermMs, stopKillMs } = limits;
  const ladderMs = stopCloseLeadMs + stopSecondTermMs + stopKillMs;
  const killMs = Math.min(ladderMs, stopGraceMs);
  const part = killMs / ladderMs;
  return {
    firstTermMs: Math.floor(stopCloseLeadMs * part),
    secondTermMs: Math.floor((stopCloseLeadMs + stopSecondTermMs) * part),
    killMs,
  };
}

/** Its slots may be leased, or still are. */
export function isServing(replica: Pick<Replica, "state">): boolean {
  return replica.state === "ready" || replica.state === "busy" || replica.state === "draining";
}

/** Was served from and is not any more: late words about its leases are no surprise. */
export function hasGone(replica: Replica): boolean {
  return replica.wasReady && !isServing(replica);
}

/** Given up until something has changed. */
export function looksForChange({ state, lastError }: Replica): boolean {
  return state === "circuit_open" && lastError !== null && waitsForChange(lastError);
}

export function unchanged(replica: Replica): ReplicaStep {
  return { state: replica, commands: [] };
}

/** An open circuit stays open until a start is asked for. */
export function toRest(replica: Replica): ReplicaStep {
  if (replica.state !== "circuit_open") return unchanged(replica);
  return { state: { ...replica, resting: true }, commands: [{ type: "cancel_timer", timer: "half_open" }] };
}

/** What holds in each state, whatever led there. */
export function assertConsistent(replica: Replica): void {
  const { state } = replica;
  const none = state === "stopped" || state === "backoff" || state === "circuit_open";
  assert(none === (replica.process === "none"), `${state} with process ${replica.process}`);
  assert(state !== "starting" || replica.process === "asked", "starting: the process was asked for");
  assert(!isServing(replica) || replica.identity !== null, "serving: the engine told what it is");
  assert(!isServing(replica) || replica.wasReady, "serving: it was warmed up");
  assert(isServing(replica) || replica.slotsBusy === 0, "only a serving replica has busy slots");
  assert(state !== "busy" || replica.slotsBusy > 0, "busy: a slot is leased");
  assert(replica.incarnation > 0 || state === "stopped", "every start is counted");
}
