/**
 * The scheduler's vocabulary: what it is told (events, past tense) and what it asks for (commands, imperative),
 * as data. The dispatcher turns the world into the one and the other into effects; the simulation does too.
 *
 * lease     the right of one attempt to one slot of one incarnation of a replica
 * outcome   how an attempt ended, as its runner saw it; what becomes of the task is the scheduler's to say
 */
import type { ErrorCode } from "./errors.ts";
import type { TerminalState } from "./task.ts";

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
      readonly message: string;
      readonly tokensProduced: number;
      /** False: the engine was gone before it saw the task, which says nothing about the task. */
      readonly began: boolean;
    };

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
  | { readonly type: "deadline_passed"; readonly taskId: string }
  | { readonly type: "shutdown_deadline_passed" };

export type Command =
  | {
      readonly type: "start_attempt";
      readonly taskId: string;
      readonly poolId: string;
      readonly lease: Lease;
      readonly attempt: number;
      readonly candidates: number;
    }
  | { readonly type: "abort_attempt"; readonly leaseId: number; readonly reason: string }
  | {
      readonly type: "finish_task";
      readonly taskId: string;
      readonly state: TerminalState;
      readonly code: ErrorCode | null;
      readonly message: string;
      readonly replicaId: string | null;
    }
  /** Its attempt was cut; it waits again, before everything of its class that came later. */
  | { readonly type: "requeue_task"; readonly taskId: string; readonly message: string }
  | { readonly type: "ensure_pool"; readonly poolId: string }
  | {
      readonly type: "note_slots_busy";
      readonly replicaId: string;
      readonly incarnation: number;
      readonly busy: number;
    };

export type Admission =
  | { readonly kind: "accepted"; readonly queuePosition: number; readonly commands: Command[] }
  | {
      readonly kind: "refused";
      readonly code: "ADMISSION_REJECT" | "POOL_UNAVAILABLE";
      readonly message: string;
    };
