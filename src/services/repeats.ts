/**
 * The same task_id once more: what it is answered with, and when. Called by the dispatcher within its turn, and by
 * admission before one.
 *
 * Always holds: a repeat is told of its task no sooner than the first submitter may be.
 */
import { OrchestratorError } from "../domain/errors.ts";
import { isStoreError } from "../ports/task-store.ts";
import type { Submitted } from "./mailbox.ts";
import { storageUnavailable } from "./refusals.ts";
import type { TaskArchive } from "./task-archive.ts";
import type { TurnStore } from "./turn-store.ts";

export class Repeats {
  constructor(
    private readonly archive: TaskArchive,
    private readonly store: TurnStore,
  ) {}

  /** What a task_id that was used before is answered with; null: it is new. */
  find(taskId: string, keyId: string, bodyDigest: string): Submitted | OrchestratorError | null {
    // No name was given: it is new.
    if (bodyDigest === "") return null;
    const record = this.archive.find(taskId);
    if (record === null) return null;
    if (record.spec.keyId === keyId && record.spec.bodyDigest === bodyDigest)
      return { record, repeated: true };
    // The same words for another key's task: it learns nothing of it.
    return new OrchestratorError("CONFLICT", "this task_id was used for another request: choose a new one", {
      details: { task_id: taskId },
    });
  }

  /** Resolves with it once its task is synced; rejects with the refusal where that could not be stored. */
  async onceSynced(repeat: Submitted): Promise<Submitted> {
    const { taskId } = repeat.record.spec;
    const undone = this.archive.find(taskId) === null ? this.store.refusal : null;
    if (undone !== null) throw storageUnavailable(undone);
    await this.store.syncOf(taskId)?.catch((error: unknown) => {
      throw isStoreError(error) ? storageUnavailable(error) : error;
    });
    return repeat;
  }
}
