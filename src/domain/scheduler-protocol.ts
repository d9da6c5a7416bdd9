/**
 * The scheduler's vocabulary: what it is told (events, past tense) and what it asks for (commands, imperative),
 * as data. The dispatcher turns the world into the one and the other into effects; the simulation does too.
 *
 * lease     the right of one attempt to one slot of one incarnation of a replica
 * outcome   how an attempt ended, as its runner saw it; what becomes of the task is the scheduler's to say
 */
import type { ErrorCode } from "./errors.ts";
import type { ReplicaReason, SlotReason } from "./placement.ts";
import type { FullPolicy } from "./pool.ts";
import type { Preemption, RunningWork } from "./preemption.ts";
import type { Priority, TerminalState } from "./task.ts";

/** A task as admission hands it over. */
export interface NewTask {
  readonly taskId: string;
  readonly poolId: string;
  readonly keyId: string;
  readonly sessionId: string | null;
  readonly priority: Priority;
  /** Expected time on a slot. */
  readonly expectedMs: number;
  /** It needs a replica of its own (determinism strict). */
  readonly exclusive: boolean;
  /** How its prompt begins (prefix.ts). */
  readonly prefix: readonly number[];
  /** Started later it is expected to miss its deadline; absent or null: it has none. */
  readonly latestStartMs?: number | null;
}

/** A task that was live when the last process ended. */
export interface RecoveredTask extends NewTask {
  readonly ordinal: number;
  readonly admittedMs: number;
  /** It had been started: it does not count against the capacity and is never dropped. */
  readonly resumed: boolean;
  /** Something of its answer was sent. */
  readonly hasSent?: boolean;
}

/** Why the daemon itself cuts an attempt whose task goes on. */
export type CutReason = "preempted" | "drain" | "reload" | "memory";

/** Why nothing starts in a pool. */
export type HoldReason = Exclude<CutReason, "preempted">;

/** A pool as the scheduler is told of it. */
export interface ScheduledPool {
  readonly id: string;
  readonly capacity: number;
  readonly fullPolicy: FullPolicy;
  readonly preempt?: Preemption | null;
  /** It was drained before: by the last process, or before it was taken out. */
  readonly drained?: boolean;
  /** Its model is not loaded, and it is not to ask for that. */
  readonly unloaded?: boolean;
}

export interface Lease {
  readonly leaseId: number;
  readonly replicaId: string;
  readonly incarnation: number;
  readonly slot: number;
}

/** How an attempt ended, as its runner saw it. */
export type AttemptOutcome =
  | { readonly kind: "finished" }
  | { readonly kind: "failed"; readonly code: ErrorCode; readonly message: string }
  /** The engine is gone or broke off: nothing wrong with the task itself. */
  | {
      readonly kind: "lost";
      readonly code: ErrorCode;
      /** The cause only: what its client may do is added where the task fails for good. */
      readonly message: string;
      readonly tokensProduced: number;
      /** False: the engine was gone before it saw the task, which says nothing about the task. */
      readonly began: boolean;
    }
  /** The daemon cut it, by `cut_attempt`: its task goes on. */
  | { readonly kind: "cut"; readonly reason: CutReason; readonly tokensProduced: number };

export type SchedulerEvent =
  | {
      readonly type: "replica_ready";
      readonly poolId: string;
      readonly replicaId: string;
      readonly incarnation: number;
      readonly slots: number;
    }
  | {
      readonly type: "replica_lost";
      readonly poolId: string;
      readonly replicaId: string;
      readonly incarnation: number;
    }
  | { readonly type: "pool_unavailable"; readonly poolId: string; readonly message: string }
  | { readonly type: "cancel_requested"; readonly taskId: string; readonly reason: string }
  | {
      readonly type: "attempt_ended";
      readonly taskId: string;
      readonly poolId: string;
      readonly lease: Lease;
      readonly outcome: AttemptOutcome;
      readonly slotFree: boolean;
    }
  | {
      readonly type: "slot_freed";
      readonly replicaId: string;
      readonly incarnation: number;
      readonly poolId: string;
      readonly leaseId: number;
    }
  /** cut: what still runs is cut, too; else it may finish but does not start again. */
  | { readonly type: "deadline_passed"; readonly taskId: string; readonly cut: boolean }
  /** A start now would come too late for its deadline. */
  | { readonly type: "start_deadline_passed"; readonly taskId: string }
  | { readonly type: "session_forgotten"; readonly sessionId: string }
  | {
      readonly type: "replica_measured";
      readonly poolId: string;
      readonly replicaId: string;
      readonly incarnation: number;
      /** null: not known. */
      readonly vramFreeBytes: number | null;
      readonly decodeTps: number | null;
    }
  /** The attempts of a task together have run as long as its pool allows. */
  | { readonly type: "run_time_passed"; readonly taskId: string; readonly message: string }
  /**
   * From now on nothing starts in the pool; what runs goes on, what comes queues. `finishing`: what has sent something
   * may still go on, for it can nowhere else.
   */
  | {
      readonly type: "pool_held";
      readonly poolId: string;
      readonly by: HoldReason;
      readonly finishing?: boolean;
    }
  /** It starts again what waits, unless another reason holds it. */
  | { readonly type: "pool_released"; readonly poolId: string; readonly by: HoldReason }
  /** What runs in a pool that is held has had its time: it is cut and goes on once the pool is released. */
  | {
      readonly type: "hold_deadline_passed";
      readonly poolId: string;
      readonly by: HoldReason;
      /** These run on. */
      readonly spare?: ReadonlySet<string>;
    }
  /**
   * Others take the place of these: what runs there goes on, nothing else starts. `another`: with another model, so that
   * what has sent something finishes there or nowhere. Told before the others are ready.
   */
  | {
      readonly type: "replicas_retired";
      readonly poolId: string;
      readonly replicaIds: readonly string[];
      readonly another: boolean;
    }
  /** What runs on retired replicas has had its time, but for those that are spared. */
  | {
      readonly type: "retirement_over";
      readonly poolId: string;
      readonly spare: ReadonlySet<string>;
    }
  /** It waits in a pool whose new model it does not fit. */
  | { readonly type: "task_unfit"; readonly taskId: string; readonly message: string }
  /** The time that a `wake_at` command named has come. `running`: the leases of a pool that preempts. */
  | { readonly type: "wake"; readonly poolId: string; readonly running?: readonly RunningWork[] }
  /** It takes tasks from now on. */
  | { readonly type: "pool_added"; readonly poolId: string; readonly pool: ScheduledPool }
  /** Its queue takes more or less, or cuts otherwise; what waits and runs is not touched. */
  | { readonly type: "pool_changed"; readonly poolId: string; readonly pool: ScheduledPool }
  /** It is taken out: what waits there ends, nothing starts, what runs goes on. */
  | { readonly type: "pool_leaving"; readonly poolId: string; readonly message: string }
  /** What runs in a pool that is taken out has had its time. */
  | { readonly type: "leaving_over"; readonly poolId: string }
  /** Nothing runs there and its replicas are gone; what is told of it later is stale. */
  | { readonly type: "pool_removed"; readonly poolId: string }
  /** Other rules for all pools, from now on. */
  | { readonly type: "options_changed"; readonly attemptsMax: number; readonly batchMaxWaitMs: number }
  /** At boot, before anything is admitted. `ordinal`: the highest ever given, where that is more than these have. */
  | { readonly type: "recovered"; readonly tasks: readonly RecoveredTask[]; readonly ordinal?: number };

/** By which rules a task was started, and where: for logs and metrics. */
export interface StartReason {
  /** Which rule gave it its turn (scheduler-start.ts). */
  readonly rule: "interactive" | "aged" | "batch";
  readonly replica: ReplicaReason;
  readonly slot: SlotReason;
  /** It had waited for the replica that holds its session. */
  readonly held: boolean;
}

export type Command =
  | {
      readonly type: "start_attempt";
      readonly taskId: string;
      readonly poolId: string;
      readonly lease: Lease;
      readonly attempt: number;
      readonly candidates: number;
      readonly why: StartReason;
    }
  | { readonly type: "abort_attempt"; readonly leaseId: number; readonly reason: string }
  /** Like abort, but the task goes on: the attempt ends with the outcome `cut`, unless it had ended already. */
  | {
      readonly type: "cut_attempt";
      readonly taskId: string;
      readonly leaseId: number;
      readonly reason: CutReason;
    }
  | {
      readonly type: "finish_task";
      readonly taskId: string;
      readonly state: TerminalState;
      readonly code: ErrorCode | null;
      readonly message: string;
      readonly replicaId: string | null;
    }
  /** Its attempt was cut; it waits again, before everything of its class that came later. */
  | {
      readonly type: "requeue_task";
      readonly taskId: string;
      readonly message: string;
      /** Null: it was lost. */
      readonly cut: CutReason | null;
    }
  | { readonly type: "ensure_pool"; readonly poolId: string }
  /** Tell `wake` then: a task waits for its session's replica no longer than that, or a cut may be due. */
  | { readonly type: "wake_at"; readonly poolId: string; readonly atMs: number }
  | {
      readonly type: "note_slots_busy";
      readonly replicaId: string;
      readonly incarnation: number;
      readonly busy: number;
    };

/** Why a task is not taken, and by which policy of a full queue. */
export type Refusal =
  | {
      readonly code: "ADMISSION_REJECT" | "QUEUE_FULL_DROP_LRU";
      readonly message: string;
      readonly policyLabel: FullPolicy;
    }
  /** The queue is not the reason. */
  | { readonly code: "POOL_UNAVAILABLE"; readonly message: string; readonly policyLabel: null };

export type Admission =
  | {
      readonly kind: "accepted";
      /** Its number in the order of admissions. */
      readonly ordinal: number;
      readonly queuePosition: number;
      readonly commands: Command[];
    }
  | ({ readonly kind: "refused" } & Refusal);
