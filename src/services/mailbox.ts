/** What comes into the dispatcher's mailbox; it is decided in the order in which it came. */
import type { AttemptOutcome, SchedulerEvent } from "../domain/scheduler-protocol.ts";
import type { TaskSpec } from "../domain/task.ts";
import type { Attempt } from "./attempt-runner.ts";
import type { AttemptResult, TaskRecord } from "./task-registry.ts";
import type { CancelReason } from "./terminal-events.ts";

export type Item =
  | {
      readonly kind: "submit";
      readonly spec: TaskSpec;
      readonly placement: PlacementNote;
      readonly watched: boolean;
      readonly settle: Settle;
    }
  | {
      readonly kind: "cancel";
      readonly taskId: string;
      readonly reason: CancelReason;
      readonly resolve: () => void;
    }
  | { readonly kind: "watched"; readonly taskId: string }
  | { readonly kind: "event"; readonly event: SchedulerEvent; readonly resolve?: () => void }
  | {
      readonly kind: "attempt_ended";
      readonly attempt: Attempt;
      readonly outcome: AttemptOutcome;
      readonly slotFree: boolean;
      readonly result: AttemptResult | null;
    };

export type Post = (item: Item) => void;

/** How the pool was chosen, for the log and the metrics. */
export interface PlacementNote {
  readonly why: string;
  readonly fallback: boolean;
  readonly candidates: number;
}

export interface Submitted {
  readonly record: TaskRecord;
  /** The same task_id and body were submitted before: this is the task that was made then. */
  readonly repeated: boolean;
}

export interface Settle {
  resolve(submitted: Submitted): void;
  reject(error: unknown): void;
}
