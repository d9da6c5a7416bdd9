/**
 * One transaction for each turn of the dispatcher: what a turn decided is stored together, before anything of
 * it is acted on; the answers of its admissions leave when it is synced. Called by the dispatcher only.
 *
 * Always holds: nothing is lost while the disk refuses. Ends and sessions stay here and go with the next
 * batch; admissions of the refused batch are the dispatcher's to undo, and new ones are refused meanwhile.
 */
import { limits } from "../domain/limits.ts";
import type { Clock } from "../ports/clock.ts";
import { isStoreError, type StoreError, type StoreOp, type TaskStore } from "../ports/task-store.ts";
import type { Log } from "../ports/telemetry.ts";

export class TurnStore {
  private ops: StoreOp[] = [];
  /** Admissions that were written, until they are synced. */
  private written: string[] = [];
  private readonly syncing = new Map<string, Promise<void>>();
  private failure: { readonly error: StoreError; readonly atMs: number; readonly forGood: boolean } | null =
    null;

  constructor(
    private readonly store: TaskStore,
    private readonly clock: Clock,
    private readonly log: Log,
    /** The task's end is stored. */
    private readonly onSettled: (taskId: string) => void,
  ) {}

  add(op: StoreOp): void {
    this.ops.push(op);
  }

  /** Why nothing new can be promised now; null: it can, or the next one may find out. */
  get refusal(): StoreError | null {
    if (this.failure === null) return null;
    const { error, atMs, forGood } = this.failure;
    return forGood || this.clock.nowMs() - atMs < limits.storageRetryMs ? error : null;
  }

  /** Stores what was added. The error: nothing was; admissions are dropped from the batch, the rest is kept. */
  write(): StoreError | null {
    if (this.ops.length === 0) return null;
    try {
      this.store.write(this.ops);
    } catch (error) {
      if (!isStoreError(error)) throw error;
      this.ops = onlyTheLast(withoutAdmitted(this.ops));
      this.failed(error, false);
      return error;
    }
    for (const op of this.ops) {
      if (op.kind === "task_admitted") this.written.push(op.task.spec.taskId);
      else if (op.kind === "task_ended") this.onSettled(op.taskId);
    }
    this.ops = [];
    if (this.failure?.forGood === false)
      this.log.info("storage_back", { human: "the state can be written again" });
    if (this.failure?.forGood === false) this.failure = null;
    return null;
  }

  /** What the disk refused, once more. */
  retry(): void {
    if (this.failure !== null) this.write();
  }

  /** Resolves once what was written is safe from a power cut; rejects with the StoreError. */
  synced(): Promise<void> {
    const taskIds = this.written;
    this.written = [];
    const synced = this.sync();
    for (const taskId of taskIds) this.syncing.set(taskId, synced);
    const forget = (): void => {
      for (const taskId of taskIds) this.syncing.delete(taskId);
    };
    synced.then(forget, forget);
    return synced;
  }

  /** The sync that an admission waits for; null: it is over, or there was no such admission. */
  syncOf(taskId: string): Promise<void> | null {
    return this.syncing.get(taskId) ?? null;
  }

  private async sync(): Promise<void> {
    try {
      await this.store.synced();
    } catch (error) {
      // What the kernel dropped it does not report twice: only a new start can know what is on the disk.
      if (isStoreError(error)) this.failed(error, true);
      throw error;
    }
  }

  private failed(error: StoreError, now: boolean): void {
    const forGood = now || (this.failure?.forGood ?? false);
    const isNews = this.failure === null || forGood !== this.failure.forGood;
    this.failure = { error, atMs: this.clock.nowMs(), forGood };
    if (isNews)
      this.log.error(
        "storage_unavailable",
        {
          human: `the state cannot be written, nothing new is taken${forGood ? " before a restart" : ""}: ${error.message}`,
        },
        error,
      );
  }
}

/** What concerns a task that was admitted in the batch goes with its admission. */
function withoutAdmitted(ops: readonly StoreOp[]): StoreOp[] {
  const admitted = new Set(ops.flatMap((op) => (op.kind === "task_admitted" ? [op.task.spec.taskId] : [])));
  return ops.filter((op) => op.kind !== "task_admitted" && !("taskId" in op && admitted.has(op.taskId)));
}

/** Of a session and of an allowance only how it stands now: while the disk refuses, no more is kept than there are. */
function onlyTheLast(ops: readonly StoreOp[]): StoreOp[] {
  const at = new Map<string, number>();
  for (const [index, op] of ops.entries()) at.set(subjectOf(op) ?? `${index}`, index);
  return ops.filter((op, index) => at.get(subjectOf(op) ?? `${index}`) === index);
}

function subjectOf(op: StoreOp): string | null {
  switch (op.kind) {
    case "session_saved":
      return `session ${op.session.sessionId}`;
    case "session_removed":
      return `session ${op.sessionId}`;
    case "allowance_saved":
      return `allowance ${op.allowance.keyId}`;
    default:
      return null;
  }
}
