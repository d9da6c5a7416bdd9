/**
 * Use case "reload a pool": carries the reload machine (domain/pool-reload.ts) out. api/pool-control.ts asks.
 *
 * Always holds: one reload a pool at a time, and none while it is drained; what waits was held against the new model
 * before that serves; a part of an answer is never continued by another model.
 */
import { assert } from "../domain/assert.ts";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec } from "../domain/pool.ts";
import { isNarrower } from "../domain/pool-diff.ts";
import {
  beginReload,
  isOver,
  type Reload,
  type ReloadCommand,
  type ReloadEvent,
  type ReloadPhase,
  type ReloadStrategy,
  startsNothing,
  stepReload,
} from "../domain/pool-reload.ts";
import type { TaskSpec } from "../domain/task.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import { isEngineError } from "../ports/engine.ts";
import type { GenerationControl, ReplicaControl } from "../ports/supervision.ts";
import { isStoreError } from "../ports/task-store.ts";
import type { Log, Metrics } from "../ports/telemetry.ts";
import type { Dispatcher } from "./dispatcher.ts";
import { fittingPrompt, forModel, otherEnginesMessage, unfitMessage } from "./fitting-prompt.ts";
import type { PoolSpecs } from "./pool-specs.ts";
import type { ReloadTargets } from "./reload-targets.ts";
import type { TaskRegistry } from "./task-registry.ts";

export interface ReloadRequest {
  readonly modelRef: string;
  /** SHA-256 that its file must have; null: any. */
  readonly digest: string | null;
  readonly strategy: ReloadStrategy;
  /** What runs may go on so long. */
  readonly deadlineMs: number;
}

/** The newest reload of a pool as it stands, also when it is over. */
export interface ReloadView {
  readonly phase: ReloadPhase;
  readonly strategy: ReloadStrategy;
  readonly modelRef: string;
  /** ms since 1970. */
  readonly sinceMs: number;
  readonly replicasReady: number;
  readonly replicas: number;
  /** Slots that are not free. */
  readonly running: number;
  /** Nothing starts in the pool for now. */
  readonly held: boolean;
  readonly problem: string | null;
}

/** services/residency-keeper.ts has it. */
export interface ReloadMemory {
  /** Null once there is room for the next generation, beside the present one or in its place; else why there is none. */
  reserve(to: PoolSpec, beside: boolean): Promise<string | null>;
  /** The reload is over. */
  settle(poolId: string): void;
}

export interface PoolReloadsDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Pick<Metrics, "poolReloaded">;
  readonly control: GenerationControl & Pick<ReplicaControl, "snapshots">;
  readonly dispatcher: Dispatcher;
  readonly registry: Pick<TaskRegistry, "find">;
  /** With its input, as it was stored. */
  readonly specOf: (taskId: string) => TaskSpec;
  readonly specs: PoolSpecs;
  readonly targets: Pick<ReloadTargets, "resolve" | "problem" | "compared">;
  readonly isDrained: (poolId: string) => boolean;
  /** Who has the memory for another generation. Absent: there is room. */
  readonly memory?: ReloadMemory;
  readonly onFatal: (error: unknown) => void;
}

/** What the configuration wants of a pool. */
export type Replacement = Pick<ReloadRequest, "strategy" | "deadlineMs">;

interface Job {
  /** The configuration asked for it: what it says is the pool's from then on. */
  readonly configured: boolean;
  readonly from: PoolSpec;
  to: PoolSpec;
  /** Whether the new model is another one than the old; settled by the check. */
  another: boolean;
  readonly request: ReloadRequest;
  readonly sinceMs: number;
  readonly abort: AbortController;
  readonly ended: PromiseWithResolvers<void>;
  state: Reload;
  timer: Timer | null;
  /** There was no memory for the new engines. */
  lacksRoom: boolean;
}

/** Between two passes over what waits others may have come. */
const recheckPassesMax = 3;

export class PoolReloads {
  readonly #jobs = new Map<string, Job>();
  #stopped = false;

  constructor(private readonly deps: PoolReloadsDeps) {
    deps.dispatcher.afterTurn.push(() => this.#afterTurn());
  }

  isReloading(poolId: string): boolean {
    const job = this.#jobs.get(poolId);
    return job !== undefined && !isOver(job.state);
  }

  /** The newest reload failed for want of memory. */
  lackedRoom(poolId: string): boolean {
    return this.#jobs.get(poolId)?.lacksRoom ?? false;
  }

  /** Null: there was none since the start. */
  view(poolId: string): ReloadView | null {
    const job = this.#jobs.get(poolId);
    if (job === undefined) return null;
    const { state, request, to, sinceMs } = job;
    return {
      phase: state.phase,
      strategy: request.strategy,
      modelRef: to.modelRef,
      sinceMs,
      replicasReady: state.phase === "done" ? to.replicas : this.deps.control.staged(poolId).length,
      replicas: to.replicas,
      running: this.deps.dispatcher.view.slotsBusyIn(poolId),
      held: startsNothing(state),
      problem: state.problem,
    };
  }

  /**
   * Begins it. The promise resolves when the new model serves, and rejects with RELOAD_FAILED when the old one does again.
   * @throws CONFLICT, INVALID_PARAMS
   */
  reload(poolId: string, request: ReloadRequest): { readonly ended: Promise<void> } {
    const conflict = (why: string) => new OrchestratorError("CONFLICT", why, { poolId });
    if (this.isReloading(poolId))
      throw conflict(`pool ${poolId} is being reloaded: wait for that, see its health`);
    if (this.deps.isDrained(poolId)) throw conflict(`pool ${poolId} is drained: resume it first`);
    const from = this.deps.specs.get(poolId);
    const { modelRef, digest } = request;
    const to = this.deps.targets.resolve(from, modelRef, digest, this.deps.specs.configured(poolId));
    return this.#begin(from, to, request, false);
  }

  /**
   * The same for what the configuration says of a pool now, a drained one too: it stays drained. None runs, see `settled`.
   */
  replace(to: PoolSpec, how: Replacement): { readonly ended: Promise<void> } {
    assert(!this.isReloading(to.id), `one reload of pool ${to.id} at a time`);
    return this.#begin(this.deps.specs.get(to.id), to, { ...how, modelRef: to.modelRef, digest: null }, true);
  }

  /** Resolves when none runs, however it ended. */
  async settled(poolId: string): Promise<void> {
    for (
      let job = this.#jobs.get(poolId);
      job !== undefined && !isOver(job.state);
      job = this.#jobs.get(poolId)
    )
      await job.ended.promise.catch(() => undefined);
  }

  /** The pool is taken out. None runs. */
  forget(poolId: string): void {
    assert(!this.isReloading(poolId), `no reload of pool ${poolId} runs`);
    this.#jobs.delete(poolId);
  }

  #begin(
    from: PoolSpec,
    to: PoolSpec,
    request: ReloadRequest,
    configured: boolean,
  ): { readonly ended: Promise<void> } {
    const poolId = to.id;
    const ended = Promise.withResolvers<void>();
    // Whoever does not wait for it need not hear of it.
    ended.promise.catch(() => undefined);
    const { state, commands } = beginReload(request.strategy);
    const sinceMs = this.deps.clock.nowMs();
    const abort = new AbortController();
    const job: Job = {
      ...{ configured, from, to, request, sinceMs, abort, ended, state },
      ...{ another: true, timer: null, lacksRoom: false },
    };
    this.#jobs.set(poolId, job);
    this.deps.log.info("pool_reload_begun", {
      ...fields(job),
      human: `pool ${poolId} gets the model ${to.modelRef} in place of ${from.modelRef}`,
    });
    for (const command of commands) this.#execute(job, command);
    return { ended: ended.promise };
  }

  /** The daemon ends: what is under way is given up, and the old model is the pool's at the next start. */
  stop(): void {
    this.#stopped = true;
    for (const job of this.#jobs.values()) {
      job.timer?.cancel();
      job.abort.abort();
      if (isOver(job.state)) continue;
      const message = "the daemon is shutting down, and the pool keeps its model";
      job.ended.reject(new OrchestratorError("RELOAD_FAILED", message, { poolId: job.from.id }));
    }
  }

  // ---- the machine ----

  #step(job: Job, event: ReloadEvent): void {
    if (this.#stopped) return;
    const before = job.state.phase;
    const { state, commands } = stepReload(job.state, event);
    job.state = state;
    if (state.phase !== before)
      this.deps.log.info("pool_reload_moved", {
        ...fields(job),
        ...{ from: before, to: state.phase },
        human: `the reload of pool ${job.from.id} is ${state.phase}${state.problem === null ? "" : `: ${state.problem}`}`,
      });
    for (const command of commands) this.#execute(job, command);
  }

  #execute(job: Job, command: ReloadCommand): void {
    const { control, dispatcher, clock } = this.deps;
    const poolId = job.from.id;
    const by = "reload" as const;
    switch (command) {
      case "check":
        this.#then(job, this.#check(job), (problem) =>
          problem === null ? { type: "checked" } : { type: "check_failed", problem },
        );
        break;
      case "hold":
        void dispatcher.tell({ type: "pool_held", poolId, by, finishing: job.another });
        break;
      case "arm":
        job.timer = clock.setTimer(job.request.deadlineMs, () =>
          this.#step(job, { type: "deadline_passed" }),
        );
        break;
      case "cut":
        void dispatcher.tell(
          isSurge(job)
            ? { type: "retirement_over", poolId, spare: this.#spared(job) }
            : { type: "hold_deadline_passed", poolId, by, spare: this.#spared(job) },
        );
        break;
      case "stop_old":
        job.timer?.cancel();
        this.#then(job, isSurge(job) ? control.stopRetired(poolId) : control.park(poolId), () => ({
          type: "old_stopped",
        }));
        break;
      case "start_new":
        this.#startNew(job);
        break;
      case "recheck":
        this.#then(job, this.#recheck(job), () => ({ type: "rechecked" }));
        break;
      case "flip":
        this.#flip(job);
        break;
      case "stop_new":
        this.#then(job, control.discard(poolId), () => ({ type: "new_stopped" }));
        break;
      case "start_old":
        control.unpark(poolId);
        break;
      case "release":
        void dispatcher.tell({ type: "pool_released", poolId, by });
        break;
      case "conclude":
        this.#conclude(job);
        break;
    }
  }

  #startNew(job: Job): void {
    const { control, memory, onFatal } = this.deps;
    const failed = (problem: string): void => this.#step(job, { type: "new_failed", problem });
    const begin = (problem: string | null): void => {
      if (this.#stopped) return;
      job.lacksRoom = problem !== null;
      if (problem !== null) failed(problem);
      else
        control.stage(
          job.to,
          () => this.#step(job, { type: "new_ready" }),
          ({ message }) => failed(message),
        );
    };
    if (memory === undefined) begin(null);
    else memory.reserve(job.to, isSurge(job)).then(begin, onFatal);
  }

  #then<T>(job: Job, work: Promise<T>, eventOf: (result: T) => ReloadEvent): void {
    work.then(
      (result) => this.#step(job, eventOf(result)),
      (error: unknown) => {
        if (!this.#stopped) this.deps.onFatal(error);
      },
    );
  }

  /** What is wrong with the file; null: nothing, and whether it is another model is known. */
  async #check(job: Job): Promise<string | null> {
    const { targets, control } = this.deps;
    const { from, to, request, abort } = job;
    const problem = await targets.problem(to, request.digest, abort.signal);
    if (problem !== null) return problem;
    const serving = new Set(control.serving(from.id));
    const stamps = control
      .snapshots(from.id)
      .flatMap(({ replicaId, identity }) =>
        serving.has(replicaId) && identity !== null ? [identity.modelStamp] : [],
      );
    const { another, sameModel } = await targets.compared(from, to, stamps, abort.signal);
    job.another = another;
    job.to = { ...to, sameModel };
    return null;
  }

  #afterTurn(): void {
    const { view } = this.deps.dispatcher;
    for (const job of this.#jobs.values()) {
      if (job.state.phase !== "draining") continue;
      if (isSurge(job) ? view.isRetiredQuiet(job.from.id) : view.isQuiet(job.from.id))
        this.#step(job, { type: "quiet" });
    }
  }

  /** Whoever's stream has begun and names the model: another one can neither continue nor begin it. */
  #spared(job: Job): ReadonlySet<string> {
    if (!job.another) return new Set();
    const running = this.deps.dispatcher.view.running(job.from.id);
    return new Set(running.filter((taskId) => (this.deps.registry.find(taskId)?.log.length ?? 0) > 0));
  }

  /** What waits and no longer fits ends; what came meanwhile is looked at, too. */
  async #recheck(job: Job): Promise<void> {
    if (!job.another && !isNarrower(job.from, job.to)) return;
    const { dispatcher, control, registry, clock } = this.deps;
    const { id: poolId, modelRef } = job.to;
    const seen = new Set<string>();
    for (let pass = 0; pass < recheckPassesMax; pass++) {
      const waiting = dispatcher.view.fresh(poolId).filter((taskId) => !seen.has(taskId));
      if (waiting.length === 0) return;
      for (const taskId of waiting) {
        seen.add(taskId);
        const [replica] = control.staged(poolId);
        if (replica === undefined || job.abort.signal.aborted) return;
        if (seen.size % limits.recheckTasksATurn === 0) await clock.yieldTurn();
        if (registry.find(taskId)?.state !== "queued") continue;
        const problem = await this.#misfit(job, taskId, replica);
        if (problem === null) continue;
        const message = job.another ? unfitMessage(modelRef, problem) : otherEnginesMessage(problem);
        await dispatcher.tell({ type: "task_unfit", taskId, message });
      }
    }
  }

  async #misfit(
    { to, abort }: Job,
    taskId: string,
    { client, snapshot }: ReturnType<GenerationControl["staged"]>[number],
  ): Promise<string | null> {
    const spec = forModel(this.deps.specOf(taskId), to.modelRef);
    const ctx = snapshot.identity?.ctxPerSlot ?? spec.ctx;
    if (!to.workloads.includes(spec.workload)) return `it does no work of the kind ${spec.workload}`;
    if (spec.workload !== "completion") return null;
    try {
      await fittingPrompt(spec, client, ctx, abort.signal);
      return null;
    } catch (error) {
      if (!isEngineError(error)) throw error;
      const { engineErrorKind: kind, message } = error;
      // Anything else is the engine's trouble: the first attempt finds out.
      return kind === "context" || kind === "rejected" || kind === "unsupported" ? message : null;
    }
  }

  #flip(job: Job): void {
    const { specs, dispatcher, control } = this.deps;
    try {
      if (job.configured) specs.configure(job.to);
      else specs.replace(job.to);
    } catch (error) {
      if (!isStoreError(error)) throw error;
      this.#step(job, { type: "new_failed", problem: "the disk that holds the daemon's state refuses" });
      return;
    }
    const { id: poolId } = job.to;
    const replicaIds = control.serving(poolId);
    void dispatcher.tell({ type: "replicas_retired", poolId, replicaIds, another: job.another });
    void dispatcher.roster.replace(job.to);
    control.promote(poolId);
    this.#step(job, { type: "flipped" });
  }

  #conclude(job: Job): void {
    const { log, metrics } = this.deps;
    const { from, to, ended, state } = job;
    job.timer?.cancel();
    this.deps.memory?.settle(from.id);
    const result = state.phase === "done" ? "done" : "failed";
    metrics.poolReloaded({ poolId: from.id, result });
    const tookMs = Math.round(this.deps.clock.nowMs() - job.sinceMs);
    if (result === "done") {
      log.info("pool_reloaded", {
        ...fields(job),
        took_ms: tookMs,
        human: `pool ${from.id} serves ${to.modelRef}, after ${tookMs} ms`,
      });
      ended.resolve();
      return;
    }
    const message = `the reload failed, and pool ${from.id} keeps ${from.modelRef}: ${state.problem}`;
    log.warn("pool_reload_failed", { ...fields(job), took_ms: tookMs, human: message });
    ended.reject(new OrchestratorError("RELOAD_FAILED", message, { poolId: from.id, engine: from.engine }));
  }
}

const isSurge = ({ request }: Job): boolean => request.strategy === "surge";

const fields = ({ from, to, request }: Job) => ({
  pool_id: from.id,
  model_ref: to.modelRef,
  model_before: from.modelRef,
  strategy: request.strategy,
});
