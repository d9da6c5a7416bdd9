/**
 * Every task that can still be told of: those in memory, and the ended ones that only the store remembers. Read by
 * the API, and by the dispatcher for repeats. An archived record has no events: ended-streams.ts finds them again.
 */
import { assert } from "../domain/assert.ts";
import { isTerminal, type TaskSpec } from "../domain/task.ts";
import type { StoredTask, TaskStore } from "../ports/task-store.ts";
import { TaskLog } from "./event-log.ts";
import { type ListQuery, newRecord, type TaskRecord, type TaskRegistry } from "./task-registry.ts";

export class TaskArchive {
  constructor(
    private readonly registry: TaskRegistry,
    private readonly store: TaskStore,
  ) {}

  find(taskId: string): TaskRecord | null {
    const record = this.registry.find(taskId);
    if (record !== null) return record;
    const stored = this.store.find(taskId);
    return stored === null ? null : recordOf(stored);
  }

  /** As it was stored: of a live task, with its input. */
  specOf(taskId: string): TaskSpec {
    const stored = this.store.find(taskId);
    assert(stored !== null, `task ${taskId} is stored`);
    return stored.spec;
  }

  /** Newest first. */
  list(query: ListQuery): TaskRecord[] {
    const { state, limit } = query;
    const live = state !== null && isTerminal(state) ? [] : this.registry.listLive(query);
    const ended =
      state !== null && !isTerminal(state)
        ? []
        : this.store.list({ ...query, state }).map((s) => this.known(s));
    return [...live, ...ended].sort((a, b) => b.ordinal - a.ordinal).slice(0, limit);
  }

  /** What memory still has knows more. */
  private known(stored: StoredTask): TaskRecord {
    return this.registry.find(stored.spec.taskId) ?? recordOf(stored);
  }
}

function recordOf({ ordinal, spec, createdMs, promise, expectedTokensOut, ended }: StoredTask): TaskRecord {
  const log = new TaskLog({ bytes: 0 }, spec.taskId);
  const record = newRecord({ spec, ordinal, log, createdMs, promise, expectedTokensOut });
  return ended === null ? record : { ...record, ...ended };
}
