/**
 * What waits in a pool that gets other engines while none of its own was started, and none can be now: its memory is
 * lent, or an operator drained it. services/pool-changes.ts asks.
 *
 * Always holds: nobody is loaded for it. What is known without an engine not to fit ends as a reload would end it; the
 * rest is looked at when its first attempt starts, and ends the same way there.
 */
import type { PoolSpec } from "../domain/pool.ts";
import type { Dispatcher } from "./dispatcher.ts";
import { contextMessage, otherEnginesMessage, unfitMessage } from "./fitting-prompt.ts";
import type { TaskRecord, TaskRegistry } from "./task-registry.ts";

export interface PoolExchangeDeps {
  readonly dispatcher: Dispatcher;
  readonly registry: Pick<TaskRegistry, "find">;
  /** Whether there is memory for its engines, others unloaded. Absent: there is. */
  readonly memory?: { hasRoom(pool: PoolSpec): boolean };
}

export class PoolExchange {
  constructor(private readonly deps: PoolExchangeDeps) {}

  isWaitedFor(poolId: string): boolean {
    return this.deps.dispatcher.view.waiting(poolId).length > 0;
  }

  /** The new engines can be loaded, and the present ones where something has to finish on them. */
  canReload(from: PoolSpec, to: PoolSpec): boolean {
    const { view } = this.deps.dispatcher;
    if (view.isDrained(from.id) || !this.hasRoom(to)) return false;
    return view.waiting(from.id).length === view.fresh(from.id).length || this.hasRoom(from);
  }

  hasRoom(pool: PoolSpec): boolean {
    return this.deps.memory?.hasRoom(pool) ?? true;
  }

  /** The pool is `to` now. `another`: than the model that those were accepted for. Resolves when those that do not fit have ended. */
  async recheck(to: PoolSpec, another: boolean): Promise<void> {
    const { dispatcher, registry } = this.deps;
    const ended = dispatcher.view.waiting(to.id).flatMap((taskId) => {
      const record = registry.find(taskId);
      if (record?.state !== "queued") return [];
      const message = unfit(record, to, another);
      if (message !== null) return dispatcher.tell({ type: "task_unfit", taskId, message });
      record.acceptedFor ??= another ? "another_model" : "other_engines";
      return [];
    });
    await Promise.all(ended);
  }
}

/** Null: it may fit. */
function unfit(
  { spec, tokensIn, tokensOut, log }: TaskRecord,
  to: PoolSpec,
  another: boolean,
): string | null {
  const { modelRef, ctx, workloads } = to;
  if (another && log.length > 0)
    return `its pool has another model now (${modelRef}), and its stream has begun with the one before: submit it again`;
  if (tokensOut > 0) return null;
  const message = (problem: string): string =>
    another ? unfitMessage(modelRef, problem) : otherEnginesMessage(problem);
  if (!workloads.includes(spec.workload)) return message(`it does no work of the kind ${spec.workload}`);
  // Another model counts otherwise.
  if (another || spec.workload !== "completion" || ctx === null || tokensIn === null) return null;
  return tokensIn + spec.maxTokens > ctx ? message(contextMessage(tokensIn, spec.maxTokens, ctx)) : null;
}
