/**
 * What outlives the process: accepted tasks, how they ended, sessions and budgets. The dispatcher's turn writes
 * one batch; everything in it is stored, or nothing. Reads happen at boot (`recover`) and for tasks that memory
 * has forgotten (`find`, `list`).
 *
 * Always holds: after `write` returned, a `kill -9` of the process loses nothing of the batch; after `synced`
 * resolved, neither does a power cut (unless the store was opened to survive the process only).
 */
import type { ErrorCode } from "../domain/errors.ts";
import type { Prediction } from "../domain/predictor.ts";
import type { TaskSpec, TerminalState } from "../domain/task.ts";

export interface StoredTask {
  /** Counts the admissions since the store was made: the order of the queue and of lists. */
  readonly ordinal: number;
  readonly spec: TaskSpec;
  /** Milliseconds since the epoch, as all times here. */
  readonly createdMs: number;
  readonly promise: Prediction;
  readonly expectedTokensOut: number;
  /** Somebody looked at its stream and counted: nobody doing so any more may cancel it. */
  readonly watched: boolean;
  /** null: live; where it stood is not stored, it waits again after a restart. */
  readonly ended: StoredEnd | null;
}

export interface StoredEnd {
  readonly state: TerminalState;
  readonly finishedMs: number;
  readonly startedMs: number | null;
  readonly firstTokenMs: number | null;
  readonly attempts: number;
  readonly replicaId: string | null;
  readonly engineVersion: string;
  readonly tokensIn: number | null;
  readonly tokensOut: number;
  readonly finishReason: "stop" | "length" | null;
  readonly error: { readonly code: ErrorCode; readonly message: string } | null;
  /** Of its transcript; null: it left none. */
  readonly artifactId: string | null;
}

/** A transcript on its way into the artifact store; until it is there, this is the only copy. */
export interface NewTranscript {
  /** SHA-256 of the text in UTF-8. */
  readonly artifactId: string;
  /** Whose artifact it becomes. */
  readonly keyId: string;
  readonly createdMs: number;
  /** The canonical form of its document. */
  readonly text: string;
}

export interface StoredTranscript extends Omit<NewTranscript, "text"> {
  /** Counts them; the name for `removeTranscripts`. */
  readonly ordinal: number;
  /** Null: what is stored does not match its checksum. */
  readonly text: string | null;
}

/** Spent and reserved are in the units of the budget: tokens, milliseconds, cost. */
export interface StoredAmounts {
  readonly tokens: number;
  readonly timeMs: number;
  readonly cost: number;
}

export interface StoredSession {
  readonly sessionId: string;
  readonly keyId: string;
  readonly createdMs: number;
  readonly lastSeenMs: number;
  readonly turns: number;
  /** null in a dimension: no bound. */
  readonly budget: {
    readonly tokens: number | null;
    readonly timeMs: number | null;
    readonly cost: number | null;
  };
  /** Settled; what live tasks reserve is made anew from them at boot. */
  readonly spent: StoredAmounts;
}

/** What a key has spent in its current window of time. */
export interface StoredAllowance {
  readonly keyId: string;
  readonly windowStartMs: number;
  readonly spent: StoredAmounts;
}

export type StoreOp =
  | { readonly kind: "task_admitted"; readonly task: StoredTask }
  | { readonly kind: "task_watched"; readonly taskId: string }
  /** The input of an ended task is not kept. */
  | {
      readonly kind: "task_ended";
      readonly taskId: string;
      readonly end: StoredEnd;
      /** Absent: it leaves none. */
      readonly transcript?: NewTranscript | undefined;
    }
  | { readonly kind: "session_saved"; readonly session: StoredSession }
  | { readonly kind: "session_removed"; readonly sessionId: string }
  | { readonly kind: "allowance_saved"; readonly allowance: StoredAllowance };

export interface StoredTaskQuery {
  /** null: of every key. */
  readonly keyId: string | null;
  readonly state: TerminalState | null;
  readonly sessionId: string | null;
  /** Only tasks admitted before this ordinal. */
  readonly before: number | null;
  readonly limit: number;
}

export interface Recovered {
  /** Highest ordinal ever given. */
  readonly ordinal: number;
  /** In the order of admission. */
  readonly live: readonly StoredTask[];
  readonly sessions: readonly StoredSession[];
  readonly allowances: readonly StoredAllowance[];
}

export type StoreErrorKind =
  /** No room left on the disk. */
  | "full"
  /** The device or the file system failed. */
  | "io"
  /** The file is damaged; the message says what to do. */
  | "damaged"
  /** A newer version of the program wrote it. */
  | "newer"
  /** Another process has it open. */
  | "locked";

export class StoreError extends Error {
  override readonly name = "StoreError";
  constructor(
    readonly storeErrorKind: StoreErrorKind,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

export const isStoreError = (error: unknown): error is StoreError => error instanceof StoreError;

export interface TaskStore {
  /** What was live when the last process ended. Once, before the first write. */
  recover(): Recovered;
  /**
   * All or nothing, in one transaction; returns once it survives `kill -9`. Throws StoreError; then nothing was stored.
   * A batch that contradicts what is stored (an end without its task) is an assertion failure.
   */
  write(batch: readonly StoreOp[]): void;
  /**
   * Resolves once everything written so far survives a power cut; calls that come while a sync runs share the
   * next one, or that one where nothing was written since it began. Rejects with StoreError when the device refused: nothing more can be promised then.
   */
  synced(): Promise<void>;
  /** A live or ended task; null: never stored, or forgotten. */
  find(taskId: string): StoredTask | null;
  /** Ended tasks, newest admission first. */
  list(query: StoredTaskQuery): readonly StoredTask[];
  /** Forgets ended tasks that finished before, at most `max` of them; returns how many. */
  prune(finishedBeforeMs: number, max: number): number;
  /** The oldest that were not removed, at most `limit` of them. */
  transcripts(limit: number): readonly StoredTranscript[];
  /** `keyId` null: of whatever key. Null: there is none, or it was removed. */
  findTranscript(artifactId: string, keyId: string | null): StoredTranscript | null;
  /** They are somewhere else now. What is not there is passed over. */
  removeTranscripts(ordinals: readonly number[]): void;
  /** How many wait, and the UTF-16 units of their texts. Looks at each. */
  transcriptTotals(): { readonly count: number; readonly chars: number };
  /** Bytes on disk. */
  sizeBytes(): number;
  close(): Promise<void>;
}
