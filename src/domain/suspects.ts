/**
 * What lost attempts mean for a task: which of them count towards tasks.max_attempts, and which tasks are suspected
 * of crashing engines and are tried again alone, so that one poisonous task does not fail its neighbours. Pure
 * bookkeeping over a part of the scheduler's task; the scheduler keeps the record and asks.
 *
 * Always holds: an attempt that gave a new token, that never reached the engine or that was cut by this daemon
 * counts for nothing; a task that makes no progress runs at most max_attempts times.
 */

/**
 * engine: it crashed, broke off or was reset under the attempt. watchdog: it fell silent; its replica may be
 * replaced, which its neighbours see as `engine`. cut: by this daemon (drain, reload, preemption, restart).
 * not_begun: it was gone before it saw the task.
 */
export type LossCause = "engine" | "watchdog" | "cut" | "not_begun";

export interface AttemptLoss {
  readonly cause: LossCause;
  /** Tokens that reached the log; what a replay said again is none. */
  readonly tokensNew: number;
}

export interface AttemptRecord {
  /** In a row, without a new token. */
  readonly fruitlessAttempts: number;
  /** In a row: times that an engine was lost while it ran the task. */
  readonly crashesInRow: number;
  /** Times that the task was cut and went on, or will: `end.continuations` once something was sent. */
  readonly cuts: number;
}

export const noAttempts: AttemptRecord = { fruitlessAttempts: 0, crashesInRow: 0, cuts: 0 };

export interface AttemptRules {
  readonly attemptsMax: number;
  /** Crashes in a row after which a task is tried alone. */
  readonly crashesShared: number;
  /** So many new tokens before a crash clear the task: whatever it is, it gets on. */
  readonly tokensClearing: number;
}

export function noteLoss(record: AttemptRecord, loss: AttemptLoss, rules: AttemptRules): AttemptRecord {
  const { cause, tokensNew } = loss;
  const cuts = record.cuts + 1;
  if (cause === "cut" || cause === "not_begun") {
    // Says nothing of the task; but progress is progress.
    return { ...record, cuts, fruitlessAttempts: tokensNew > 0 ? 0 : record.fruitlessAttempts };
  }
  return {
    fruitlessAttempts: tokensNew > 0 ? 0 : record.fruitlessAttempts + 1,
    crashesInRow: tokensNew >= rules.tokensClearing ? 0 : record.crashesInRow + 1,
    cuts,
  };
}

/** It has used up its attempts: WORKER_RESET. */
export const isSpent = ({ fruitlessAttempts }: AttemptRecord, { attemptsMax }: AttemptRules): boolean =>
  fruitlessAttempts >= attemptsMax;

/** Its next attempt needs a replica of its own (an exclusive lease), whatever the task itself asked for. */
export const isSuspect = ({ crashesInRow }: AttemptRecord, { crashesShared }: AttemptRules): boolean =>
  crashesInRow >= crashesShared;
