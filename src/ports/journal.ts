/**
 * Event logs written ahead: the frames of live tasks, on disk before any viewer sees them. The owner of the event
 * logs appends, flushes once a tick and shows frames afterwards; at boot it recovers; once a task has settled and its
 * transcript is kept it forgets the task. The terminal frame is not journaled: what has one has settled.
 *
 * Always holds: when `append` has returned true, and when `flush` has returned, everything appended before survives
 * `kill -9` (it is in the page cache; a power cut may lose it). What is recovered of a task is what was appended, in order and from the beginning, or
 * the task is told as damaged: never other bytes, never a hole that nobody is told of.
 */

export type JournalRecordKind =
  | "started"
  | "token"
  | "metrics"
  /** What comes next is said by another attempt than what came before. */
  | "attempt"
  /** What was recorded of the task before is void; it starts from its beginning. */
  | "begin_again";

export interface JournalRecord {
  readonly kind: JournalRecordKind;
  /** Of the frame; from 0 without gaps. A mark (attempt, begin_again) has the number of the frame that comes next. */
  readonly seq: number;
  /** A frame as viewers get it; for a mark whatever its writer wants back. Not to be changed before the flush. */
  readonly bytes: Uint8Array;
  /** Of a token frame: the engine's ids, -1 for one that it did not name; absent where none are known. */
  readonly tokenIds?: readonly number[];
}

/** Frames are what viewers see and what is numbered; the others are marks between them. */
export const isFrameKind = (kind: JournalRecordKind): boolean => kind !== "attempt" && kind !== "begin_again";

export interface RecoveredLog {
  /** In order, since the task's last beginning: with `begin_again` first, where it began again. */
  readonly records: readonly JournalRecord[];
  /**
   * Records are missing behind these, or may be. They are right as far as they go, but viewers may have seen more:
   * the task is begun again (`begin_again`) or forgotten; nothing else can be appended.
   */
  readonly damaged: boolean;
}

export interface JournalDamage {
  readonly file: string;
  /** Bytes from the beginning of the file; nothing behind is used. */
  readonly offset: number;
  readonly what: string;
}

export interface JournalRecovery {
  /**
   * Everything that is still there. Also tasks that were forgotten and are not compacted away yet, whole or (as damaged)
   * in part: who has settled according to the store is forgotten again.
   */
  readonly tasks: ReadonlyMap<string, RecoveredLog>;
  /**
   * Where there is any, records of tasks that are not in `tasks` may be lost too: each live task that is not there
   * whole is begun again, and that flushed, before the first `compact`.
   */
  readonly damage: readonly JournalDamage[];
}

export type JournalErrorKind =
  /** No room left on the disk, or more was collected while it refused than memory takes. */
  | "full"
  /** The device or the file system failed. */
  | "io"
  /** The files contradict each other in a way that this program cannot have caused; the message names them. */
  | "damaged"
  /** A newer version of the program wrote it. */
  | "newer";

export class JournalError extends Error {
  override readonly name = "JournalError";
  constructor(
    readonly journalErrorKind: JournalErrorKind,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

export const isJournalError = (error: unknown): error is JournalError =>
  error instanceof Error && typeof (error as Partial<JournalError>).journalErrorKind === "string";

export interface Journal {
  /** Once, before anything else. Throws JournalError (io, damaged, newer); then nothing was changed on disk. */
  recover(): JournalRecovery;
  /**
   * True: it is written, and so is everything before it. False: it is collected for the next flush. A task's first
   * record has seq 0; `begin_again` may come at any time, with seq 0. Throws JournalError (full) where flushes failed for
   * too long; then the record was not taken.
   */
  append(taskId: string, record: JournalRecord): boolean;
  /** Writes all that was collected. Throws JournalError (full, io); then all of it is kept for the next try. */
  flush(): void;
  /** The task has settled: its records may go. An unknown one is no mistake. The id may be used for a new task. */
  forget(taskId: string): void;
  /**
   * One bounded step of giving room back: deletes what no live task needs, rewrites what few do. Resolves with true
   * where another step has work. Syncs, beside the event loop. Rejects with JournalError; then nothing is lost.
   */
  compact(): Promise<boolean>;
  /** Bytes of records on disk. */
  sizeBytes(): number;
  /** What was collected and not flushed is not written. */
  close(): Promise<void>;
}
