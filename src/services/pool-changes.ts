/**
 * Use case "the pools shall be these": brings each pool to what the configuration wants of it, one step of a pool at a
 * time, all pools beside each other. app/config-reload.ts asks.
 *
 * | wanted                     | done                                                                             |
 * |----------------------------|----------------------------------------------------------------------------------|
 * | as it is configured        | nothing: the model that a reload gave it stays, too                              |
 * | other settings             | they hold from the next turn on                                                  |
 * | other engines              | they are replaced (pool-reload.ts); where none was started at once if nobody     |
 * |                            | waits, and without loading any where none can be (pool-exchange.ts)              |
 * | engines elsewhere, not here, or the other way round | the pool is removed, then added                         |
 * | a pool that is not there   | added, and started where it is preloaded                                         |
 * | a pool no more             | nobody sees it, what waits ends, what runs has its time, then its engines end    |
 *
 * Always holds: what is wanted last counts, whatever is under way; a step that failed leaves the pool as it was, is told,
 * and is tried again only when somebody wants something anew, or when there is memory that it lacked; there is always a
 * pool that takes tasks.
 */
import { assert } from "../domain/assert.ts";
import { isOrchestratorError, OrchestratorError } from "../domain/errors.ts";
import type { PoolSpec } from "../domain/pool.ts";
import { poolChange } from "../domain/pool-diff.ts";
import type { Clock } from "../ports/clock.ts";
import type { ModelGate, PoolControl, ReplicaControl } from "../ports/supervision.ts";
import { isStoreError } from "../ports/task-store.ts";
import type { Log } from "../ports/telemetry.ts";
import type { PoolDrains } from "./pool-drain.ts";
import { PoolExchange, type PoolExchangeDeps } from "./pool-exchange.ts";
import { isManaged } from "./pool-memory.ts";
import type { PoolReloads, Replacement } from "./pool-reload.ts";
import { poolGone } from "./pool-runtime.ts";
import type { PoolSpecs } from "./pool-specs.ts";
import type { ReloadTargets } from "./reload-targets.ts";

export const poolChangeKinds = ["added", "removed", "changed"] as const;
export type PoolChangeKind = (typeof poolChangeKinds)[number];

/** A pool that is not what is wanted: it is on its way, or a step has failed. */
export interface UnfinishedChange {
  readonly poolId: string;
  readonly change: PoolChangeKind;
  /** Why the pool is as it was; null: it is under way. */
  readonly problem: string | null;
}

export interface PoolChangesDeps extends PoolExchangeDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly control: PoolControl & Pick<ReplicaControl, "ensurePool">;
  readonly reloads: Pick<PoolReloads, "replace" | "settled" | "forget" | "isReloading" | "lackedRoom">;
  readonly targets: Pick<ReloadTargets, "compared">;
  readonly drains: Pick<PoolDrains, "isDrained" | "forget">;
  readonly specs: PoolSpecs;
  /** Absent: no model has to be fetched. */
  readonly models?: Pick<ModelGate, "prepare">;
  readonly onFatal: (error: unknown) => void;
}

type Step =
  | { readonly kind: "added"; readonly want: PoolSpec }
  | { readonly kind: "removed" }
  | { readonly kind: "changed"; readonly want: PoolSpec };

interface Wanted {
  readonly pools: ReadonlyMap<string, PoolSpec>;
  readonly how: Replacement;
  /** Of all that is wanted, a later one is more. */
  readonly number: number;
}

interface Worker {
  readonly change: PoolChangeKind;
  readonly ended: Promise<void>;
}

export class PoolChanges {
  #wanted: Wanted;
  readonly #workers = new Map<string, Worker>();
  readonly #failed = new Map<string, UnfinishedChange>();
  /** Of those that failed: for want of memory. */
  readonly #lacking = new Map<string, PoolSpec>();
  readonly #exchange: PoolExchange;
  /** Who waits for another pool, for something else to be wanted, or for a pool to be quiet. */
  readonly #waiting = new Set<() => void>();
  readonly #ending = new AbortController();
  #stopped = false;

  constructor(private readonly deps: PoolChangesDeps) {
    this.#exchange = new PoolExchange(deps);
    const pools = new Map(deps.specs.list.map(({ id }) => [id, deps.specs.configured(id)]));
    this.#wanted = { pools, how: { strategy: "recreate", deadlineMs: 0 }, number: 0 };
    deps.dispatcher.afterTurn.push(() => {
      if (this.#waiting.size > 0) this.#rouse();
    });
  }

  /** What is not as it is wanted, by the pools' ids. */
  get unfinished(): readonly UnfinishedChange[] {
    const under = [...this.#workers].map(([poolId, { change }]) => ({ poolId, change, problem: null }));
    return [...under, ...this.#failed.values()].sort((a, b) => (a.poolId < b.poolId ? -1 : 1));
  }

  /**
   * From now on these are wanted, in this order. Resolves when every pool is what is wanted, or a step of it has failed
   * (`unfinished`), also of what is wanted meanwhile.
   */
  async want(pools: readonly PoolSpec[], how: Replacement): Promise<void> {
    assert(pools.length > 0, "there is a pool");
    this.#wanted = {
      pools: new Map(pools.map((pool) => [pool.id, pool])),
      how,
      number: this.#wanted.number + 1,
    };
    this.deps.specs.arrange([...this.#wanted.pools.keys()]);
    this.#failed.clear();
    this.#lacking.clear();
    this.#rouse();
    const ids = new Set([...this.#wanted.pools.keys(), ...this.deps.specs.list.map(({ id }) => id)]);
    for (const poolId of ids) this.#work(poolId);
    while (this.#workers.size > 0) await Promise.all([...this.#workers.values()].map(({ ended }) => ended));
  }

  /** There may be more memory than there was: what failed for want of it, and fits now, is tried again. */
  retryForMemory(): void {
    for (const [poolId, want] of this.#lacking) {
      if (!this.#exchange.hasRoom(want)) continue;
      this.#lacking.delete(poolId);
      this.#failed.delete(poolId);
      this.#work(poolId);
    }
  }

  /** The daemon ends: nothing further is begun. */
  stop(): void {
    this.#stopped = true;
    this.#ending.abort();
    this.#rouse();
  }

  // ---- one pool ----

  #work(poolId: string): void {
    if (this.#stopped || this.#workers.has(poolId)) return;
    const step = this.#stepOf(poolId);
    if (step === null) return;
    const ended = this.#run(poolId, step).then(
      () => {
        this.#workers.delete(poolId);
        // Something else may have been wanted in the last moment.
        if (!this.#failed.has(poolId)) this.#work(poolId);
      },
      (error: unknown) => {
        this.#workers.delete(poolId);
        this.deps.onFatal(error);
      },
    );
    this.#workers.set(poolId, { change: step.kind, ended });
  }

  #stepOf(poolId: string): Step | null {
    const want = this.#wanted.pools.get(poolId) ?? null;
    const have = this.deps.specs.find(poolId);
    if (have === null) return want === null ? null : { kind: "added", want };
    if (want === null || !isKin(have, want)) return { kind: "removed" };
    return poolChange(have, want) === null ? null : { kind: "changed", want };
  }

  async #run(poolId: string, step: Step): Promise<void> {
    const { number } = this.#wanted;
    try {
      if (step.kind === "added") await this.#add(step.want);
      else if (step.kind === "removed") await this.#remove(poolId);
      else await this.#change(step.want);
    } catch (error) {
      if (!isOrchestratorError(error) && !isStoreError(error)) throw error;
      if (this.#stopped) return;
      const { message: problem } = error;
      this.deps.log.error("pool_change_failed", {
        pool_id: poolId,
        change: step.kind,
        human: `pool ${poolId} could not be ${step.kind} as the configuration says: ${problem}`,
      });
      // What is wanted meanwhile is another try.
      if (number !== this.#wanted.number) return;
      this.#failed.set(poolId, { poolId, change: step.kind, problem });
      if (step.kind === "changed" && this.deps.reloads.lackedRoom(poolId))
        this.#lacking.set(poolId, step.want);
    }
  }

  async #add(want: PoolSpec): Promise<void> {
    const { dispatcher, control, specs, drains, log } = this.deps;
    await dispatcher.roster.add(want, drains.isDrained(want.id));
    control.addPool(want);
    specs.add(want);
    specs.arrange([...this.#wanted.pools.keys()]);
    log.info("pool_added", {
      ...{ pool_id: want.id, engine: want.engine, model_ref: want.modelRef },
      human: `pool ${want.id} with ${want.modelRef} takes tasks`,
    });
    this.#rouse();
  }

  async #change(want: PoolSpec): Promise<void> {
    const { reloads, specs, control, dispatcher, log } = this.deps;
    const { id } = want;
    const { number, how } = this.#wanted;
    await reloads.settled(id);
    // The file speaks of this pool: what it says counts, whatever a reload had given it.
    const change = poolChange(specs.get(id), want);
    if (change?.reach === "engines") {
      await this.#fetched(want);
      const from = specs.get(id);
      const { another, sameModel } =
        control.isStopped(id) && this.#exchange.isWaitedFor(id)
          ? await this.deps.targets.compared(from, want, [], this.#ending.signal)
          : { another: false, sameModel: null };
      if (number !== this.#wanted.number || this.#stopped || reloads.isReloading(id)) return;
      const isWaitedFor = this.#exchange.isWaitedFor(id);
      if (control.isStopped(id) && !(isWaitedFor && this.#exchange.canReload(from, want))) {
        const to = sameModel === null ? want : { ...want, sameModel };
        specs.configure(to);
        void dispatcher.roster.replace(to);
        control.exchangeStopped(to);
        await this.#exchange.recheck(to, another);
      } else {
        // Where nothing serves a surge spares nobody a pause, and would not let what has sent something finish.
        const strategy = control.isStopped(id) ? "recreate" : how.strategy;
        await reloads.replace(want, { ...how, strategy }).ended;
      }
    } else {
      if (number !== this.#wanted.number || this.#stopped || reloads.isReloading(id)) return;
      const { sameModel = null } = specs.get(id);
      specs.configure(sameModel === null ? want : { ...want, sameModel });
      control.configurePool(want);
      await dispatcher.roster.configure(want);
    }
    const parts = change?.parts ?? [];
    log.info("pool_changed", {
      ...{ pool_id: id, parts, engines: change?.reach === "engines" },
      human: `pool ${id} is as the configuration says${parts.length === 0 ? "" : ` (${parts.join(", ")})`}`,
    });
  }

  /** A model that lies elsewhere may take its time, and something else may be wanted before it is there. */
  async #fetched(want: PoolSpec): Promise<void> {
    const { number } = this.#wanted;
    const fetch = this.deps.models?.prepare(want) ?? null;
    if (fetch !== null) await this.#until(() => number !== this.#wanted.number, fetch);
  }

  async #remove(poolId: string): Promise<void> {
    const { clock, reloads, specs, drains, control, log } = this.deps;
    const { roster, view } = this.deps.dispatcher;
    await reloads.settled(poolId);
    const have = specs.get(poolId);
    const isWanted = (): boolean => {
      const want = this.#wanted.pools.get(poolId);
      return want !== undefined && isKin(have, want);
    };
    const isExchanged = (): boolean => !isWanted() && this.#wanted.pools.has(poolId);
    // Looked at once more behind the wait: others may have gone in between.
    const isLast = (): boolean => specs.list.length <= 1 && !isWanted() && !this.#stopped;
    while (isLast()) {
      if (isExchanged() && this.#wanted.pools.size === 1)
        throw new OrchestratorError("CONFLICT", `${elsewhere}: it is the only pool, so restart the daemon`, {
          poolId,
        });
      await this.#until(() => !isLast());
    }
    if (isWanted() || this.#stopped || reloads.isReloading(poolId)) return;
    const { deadlineMs } = this.#wanted.how;
    specs.remove(poolId);
    log.info("pool_leaving", {
      ...{ pool_id: poolId, deadline_ms: deadlineMs },
      human: `pool ${poolId} is no longer configured: it takes nothing, and what runs there ends in ${deadlineMs} ms`,
    });
    await roster.leave(
      poolId,
      isExchanged() ? `${elsewhere}: submit the task again` : poolGone(poolId).message,
    );
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const timer = clock.setTimer(deadlineMs, resolve);
    await this.#until(() => view.isQuiet(poolId), late);
    timer.cancel();
    if (this.#stopped) return;
    // Its engines end below: their slots need not be free before.
    if (!view.isQuiet(poolId)) await roster.cut(poolId);
    await control.removePool(poolId);
    await this.#until(() => view.isQuiet(poolId));
    if (this.#stopped) return;
    reloads.forget(poolId);
    if (!isExchanged()) drains.forget(poolId);
    await roster.remove(poolId);
    log.info("pool_removed", { pool_id: poolId, human: `pool ${poolId} is gone` });
    // Their engines may have found no memory beside those that are gone now.
    for (const { id, preload } of specs.list) if (preload) control.ensurePool(id);
    this.retryForMemory();
  }

  /** Until it holds, `or` resolves, or the daemon ends; looked at after each turn, and when something else is wanted. */
  async #until(holds: () => boolean, or: Promise<void> | null = null): Promise<void> {
    let over = false;
    void or?.then(() => {
      over = true;
      this.#rouse();
    });
    while (!holds() && !over && !this.#stopped) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#waiting.add(resolve);
      await promise;
    }
  }

  #rouse(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const resolve of waiting) resolve();
  }
}

/** Its memory is managed in both, or in neither: one can become the other. */
const isKin = (have: PoolSpec, want: PoolSpec): boolean => isManaged(have) === isManaged(want);

const elsewhere = "the engines of its pool run here instead of elsewhere now, or the other way round";
