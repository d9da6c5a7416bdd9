/**
 * Which pools the dispatcher knows: they come, change and go while it runs. The dispatcher makes it and
 * services/pool-changes.ts asks; what the scheduler has to know of it is an event of a turn like any other.
 *
 * Always holds: a pool that is told of is known here first, and what is removed here was left by everybody; whoever
 * named it before is answered POOL_UNAVAILABLE.
 */
import type { PoolSpec } from "../domain/pool.ts";
import type { ScheduledPool, SchedulerEvent } from "../domain/scheduler-protocol.ts";
import type { PoolRuntimes } from "./pool-runtime.ts";

export interface PoolRosterDeps {
  readonly pools: PoolRuntimes;
  /** Resolves after the turn that took it. */
  readonly tell: (event: SchedulerEvent) => Promise<void>;
  /** It is loaded only when the keeper of memory lets it in. */
  readonly managed: ((pool: PoolSpec) => boolean) | undefined;
  /** Timers of this pool are to end. */
  readonly forget: (poolId: string) => void;
}

export const scheduledPool = (
  { id, queueCapacity: capacity, fullPolicy, preempt }: PoolSpec,
  drained: boolean,
  unloaded = false,
): ScheduledPool => ({ id, capacity, fullPolicy, preempt, drained, unloaded });

/** Each resolves once it is in force. */
export class PoolRoster {
  constructor(private readonly deps: PoolRosterDeps) {}

  /** Its replicas may be told of from now on. */
  add(spec: PoolSpec, drained: boolean): Promise<void> {
    this.deps.pools.add(spec);
    const pool = scheduledPool(spec, drained, this.deps.managed?.(spec));
    return this.deps.tell({ type: "pool_added", poolId: spec.id, pool });
  }

  /** What needs no other engines. */
  configure(spec: PoolSpec): Promise<void> {
    this.deps.pools.configure(spec);
    return this.deps.tell({ type: "pool_changed", poolId: spec.id, pool: scheduledPool(spec, false) });
  }

  /** It is what the pool is now, in the same step; replicas that were started so are told of behind it. */
  replace(spec: PoolSpec): Promise<void> {
    this.deps.pools.replace(spec);
    return this.deps.tell({ type: "pool_changed", poolId: spec.id, pool: scheduledPool(spec, false) });
  }

  /** It takes nothing any more, and what waits there ends. */
  leave(poolId: string, message: string): Promise<void> {
    return this.deps.tell({ type: "pool_leaving", poolId, message });
  }

  /** What still runs there ends. */
  cut(poolId: string): Promise<void> {
    return this.deps.tell({ type: "leaving_over", poolId });
  }

  /** Nothing runs there, and its replicas are gone. */
  remove(poolId: string): Promise<void> {
    this.deps.pools.remove(poolId);
    this.deps.forget(poolId);
    return this.deps.tell({ type: "pool_removed", poolId });
  }

  configureAll(rules: { readonly attemptsMax: number; readonly batchMaxWaitMs: number }): Promise<void> {
    const { attemptsMax, batchMaxWaitMs } = rules;
    return this.deps.tell({ type: "options_changed", attemptsMax, batchMaxWaitMs });
  }
}
