/**
 * All replicas of all pools: starts them, tells the dispatcher what became of them, takes what the dispatcher
 * tells about them, and ends them. Built by app/bootstrap.ts; each replica's life is in replica-runner.ts.
 *
 * Always holds: a replica is told ready before it is told lost, once each an incarnation; after `stop` or
 * `forceStop` nothing is started again, and `stop` resolves only when every process is reaped.
 */
import { assert } from "../domain/assert.ts";
import type { EngineKind } from "../domain/engine-kind.ts";
import type { PoolSpec, ReplicaFailure, ReplicaSnapshot } from "../domain/pool.ts";
import { withSettingsOf } from "../domain/pool-diff.ts";
import { type RestartPolicy, replicaPolicy } from "../domain/replica-model.ts";
import type { EngineAdapter } from "../ports/engine.ts";
import type {
  GenerationControl,
  LoadControl,
  MemoryGate,
  PoolControl,
  ReplicaControl,
  ReplicaListener,
  StagedReplica,
} from "../ports/supervision.ts";
import { ReplicaRunner, type RunnerHooks, type RunnerPorts } from "./replica-runner.ts";

export interface SupervisorOptions extends RunnerPorts {
  readonly adapters: ReadonlyMap<EngineKind, EngineAdapter>;
  readonly restart: RestartPolicy;
}

/** Replicas that are to replace those of their pool. */
interface Staged {
  readonly runners: readonly ReplicaRunner[];
  readonly ready: Map<ReplicaRunner, StagedReplica>;
  /** Nobody wants to hear of it any more. */
  over: boolean;
}

export class Supervisor implements ReplicaControl, GenerationControl, LoadControl, PoolControl {
  readonly #options: SupervisorOptions;
  #restart: RestartPolicy;
  readonly #pools = new Map<string, readonly ReplicaRunner[]>();
  readonly #staged = new Map<string, Staged>();
  /** Replicas whose place others have taken. */
  readonly #retired = new Map<string, readonly ReplicaRunner[]>();
  /** Pools whose serving replicas were stopped for a reload. */
  readonly #parked = new Set<string>();
  /** The last incarnations of replicas that were replaced, by their ids. */
  readonly #incarnations = new Map<string, number>();
  /** Who waits until all of these are reaped. */
  readonly #reaping = new Set<{ readonly runners: readonly ReplicaRunner[]; readonly done: () => void }>();
  readonly #replicas = new Map<string, ReplicaRunner>();
  readonly #allStopped = Promise.withResolvers<void>();
  /** Absent: every pool may be in memory. */
  #memory: MemoryGate | null = null;
  /** Pools that the keeper of memory has let in. */
  readonly #granted = new Set<string>();
  /** Pools that an operator wants tried although nothing has changed, once they have memory. */
  readonly #anyway = new Set<string>();
  /** Pools whose model is being fetched. */
  readonly #preparing = new Set<string>();
  #hooks: RunnerHooks | null = null;
  #listener: ReplicaListener | null = null;
  #stopping = false;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.#restart = options.restart;
  }

  /** Before `start`. */
  obey(memory: MemoryGate): void {
    assert(this.#listener === null, "who decides about memory is known before anything starts");
    this.#memory = memory;
  }

  /** Once. The host's `sweep` comes before it, so that nothing of an earlier daemon holds a socket. */
  start(pools: readonly PoolSpec[], listener: ReplicaListener): void {
    assert(this.#listener === null, "a supervisor starts once");
    this.#listener = listener;
    this.#hooks = this.#hooksFor(listener);
    for (const pool of pools) this.#supervise(pool);
    for (const pool of pools) if (pool.preload && this.#mayLoad(pool.id)) this.ensurePool(pool.id);
  }

  ensurePool(poolId: string): void {
    if (this.#stopping || this.#preparing.has(poolId) || this.#parked.has(poolId)) return;
    // It was asked for in the moment in which it was removed.
    if (!this.#pools.has(poolId)) return;
    if (!this.#mayLoad(poolId)) {
      this.#memory?.wanted(poolId, Math.min(...this.#ofPool(poolId).map(({ retryAtMs }) => retryAtMs)));
      return;
    }
    const [first] = this.#ofPool(poolId);
    const prepared = first === undefined ? null : (this.#options.models?.prepare(first.pool) ?? null);
    if (prepared === null) {
      this.#startPool(poolId);
      return;
    }
    this.#preparing.add(poolId);
    // Whether the file came or not: the load tells, and is tried again as any other.
    void prepared.then(() => {
      this.#preparing.delete(poolId);
      this.#startPool(poolId);
    });
  }

  #startPool(poolId: string): void {
    if (this.#stopping || this.#parked.has(poolId) || !this.#pools.has(poolId)) return;
    if (!this.#mayLoad(poolId)) return;
    const anyway = this.#anyway.delete(poolId);
    for (const runner of this.#ofPool(poolId)) runner.send({ type: "start_requested", anyway });
  }

  retryPool(poolId: string): void {
    if (this.#stopping || this.#parked.has(poolId)) return;
    if (!this.#mayLoad(poolId)) {
      if (!this.#ofPool(poolId).some(({ state }) => state === "circuit_open")) return;
      this.#anyway.add(poolId);
      this.#memory?.wanted(poolId, 0);
      return;
    }
    for (const runner of this.#ofPool(poolId))
      if (runner.state === "circuit_open") runner.send({ type: "start_requested", anyway: true });
  }

  // ---- memory ----

  load(poolId: string): void {
    this.grant(poolId);
    this.ensurePool(poolId);
  }

  grant(poolId: string): void {
    assert(this.#memory?.manages(poolId) === true, `the memory of pool ${poolId} is managed`);
    this.#granted.add(poolId);
  }

  unload(poolId: string): Promise<void> {
    this.#granted.delete(poolId);
    return this.#stopped(this.#ofPool(poolId));
  }

  rest(poolId: string): void {
    this.#granted.delete(poolId);
    for (const runner of this.#ofPool(poolId)) runner.send({ type: "rest_requested" });
  }

  #mayLoad(poolId: string): boolean {
    return this.#memory?.manages(poolId) !== true || this.#granted.has(poolId);
  }

  snapshots(poolId: string): readonly ReplicaSnapshot[] {
    const retired = this.#retired.get(poolId) ?? [];
    return [...this.#ofPool(poolId), ...retired].map((runner) => runner.snapshot());
  }

  noteSlotsBusy(replicaId: string, incarnation: number, slotsBusy: number): void {
    // A reload may have replaced it meanwhile.
    this.#replicas.get(replicaId)?.send({ type: "slots_changed", incarnation, slotsBusy });
  }

  noteProgress(replicaId: string, incarnation: number): void {
    this.#replicas.get(replicaId)?.send({ type: "progress_made", incarnation });
  }

  reportWedged(replicaId: string, incarnation: number, message: string): void {
    const runner = this.#replicas.get(replicaId);
    runner?.send({ type: "wedged", incarnation, message, logTail: runner.recentLines() });
  }

  /** The last lines of the replica's log, oldest first, across its restarts. */
  logTail(replicaId: string): readonly string[] {
    return this.#replica(replicaId).logTail();
  }

  /** The same to be read line by line, and followed. */
  logOf(replicaId: string): ReplicaRunner["log"] {
    return this.#replica(replicaId).log;
  }

  /** Ends every replica by its pool's stop ladder; resolves when all processes are reaped. */
  stop(): Promise<void> {
    this.#stopping = true;
    for (const runner of this.#replicas.values()) runner.send({ type: "stop_requested" });
    this.#settle();
    return this.#allStopped.promise;
  }

  /** No grace: SIGKILL to every group now. `stop` tells when they are gone. */
  forceStop(): void {
    this.#stopping = true;
    for (const runner of this.#replicas.values()) runner.send({ type: "force_stop_requested" });
    this.#settle();
  }

  // ---- pools that come, change and go ----

  addPool(pool: PoolSpec): void {
    this.#supervise(pool);
    this.#memory?.added(pool);
    if (pool.preload && this.#mayLoad(pool.id)) this.ensurePool(pool.id);
  }

  async removePool(poolId: string): Promise<void> {
    assert(!this.#staged.has(poolId) && !this.#retired.has(poolId), `pool ${poolId} is not being replaced`);
    const runners = this.#ofPool(poolId);
    this.#parked.add(poolId);
    await this.#stopped(runners);
    this.#forget(runners);
    this.#pools.delete(poolId);
    this.#parked.delete(poolId);
    this.#granted.delete(poolId);
    this.#anyway.delete(poolId);
    this.#memory?.removed(poolId);
  }

  configurePool(pool: PoolSpec): void {
    const { id } = pool;
    const replacing = [...(this.#staged.get(id)?.runners ?? []), ...(this.#retired.get(id) ?? [])];
    for (const runner of [...this.#ofPool(id), ...replacing]) {
      const now = withSettingsOf(runner.pool, pool);
      runner.configure(now, replicaPolicy(now, this.#restart));
    }
    this.#memory?.configured(pool);
    if (pool.preload && this.#mayLoad(id)) this.ensurePool(id);
  }

  isStopped(poolId: string): boolean {
    const isBusy = [this.#preparing, this.#parked, this.#staged, this.#retired].some((some) =>
      some.has(poolId),
    );
    return !isBusy && this.#ofPool(poolId).every(({ state }) => state === "stopped");
  }

  exchangeStopped(pool: PoolSpec): void {
    assert(this.isStopped(pool.id), `no replica of pool ${pool.id} was started`);
    this.#forget(this.#ofPool(pool.id));
    this.#pools.delete(pool.id);
    this.addPool(pool);
  }

  configureRestarts(restart: RestartPolicy): void {
    this.#restart = restart;
    for (const runner of this.#replicas.values())
      runner.configure(runner.pool, replicaPolicy(runner.pool, restart));
  }

  #supervise(pool: PoolSpec): void {
    assert(!this.#pools.has(pool.id), `pool ${pool.id} is there once`);
    const hooks = this.#hooks;
    assert(hooks !== null, "a supervisor that was started takes pools");
    const runners = Array.from({ length: pool.replicas }, (_, at) =>
      this.#runner(pool, `${pool.id}-${at}`, hooks),
    );
    this.#pools.set(pool.id, runners);
    for (const runner of runners) this.#replicas.set(runner.replicaId, runner);
  }

  // ---- another generation ----

  stage(pool: PoolSpec, ready: () => void, failed: (failure: ReplicaFailure) => void): void {
    assert(!this.#staged.has(pool.id), `one generation of pool ${pool.id} at a time is staged`);
    // Two sets of names take turns: names are labels of metrics, and not to grow in number.
    const turn = this.#ofPool(pool.id).some(({ replicaId }) => replicaId === `${pool.id}-0`) ? "b" : "";
    const hear = (failure: ReplicaFailure | null): void => {
      if (staged.over || failure === null) return;
      staged.over = true;
      failed(failure);
    };
    const hooks: RunnerHooks = {
      ready: (runner, client, speed) => {
        staged.ready.set(runner, { snapshot: runner.snapshot(), client, speed });
        if (!staged.over && staged.ready.size === runners.length) ready();
      },
      lost: (runner, failure) => {
        staged.ready.delete(runner);
        hear(failure);
      },
      unavailable: (_, failure) => hear(failure),
      mendable: () => undefined,
      moved: (runner) => {
        // Nothing is tried twice here: who asked for it is told of the first failure.
        const { lastError } = runner.snapshot();
        if (runner.state === "failed" || runner.state === "backoff") hear(lastError);
        this.#settle();
      },
    };
    const delegate: RunnerHooks = {
      ready: (...of) => this.#hooksOf(staged, hooks).ready(...of),
      lost: (...of) => this.#hooksOf(staged, hooks).lost(...of),
      unavailable: (...of) => this.#hooksOf(staged, hooks).unavailable(...of),
      mendable: (...of) => this.#hooksOf(staged, hooks).mendable(...of),
      moved: (...of) => this.#hooksOf(staged, hooks).moved(...of),
    };
    const runners = Array.from({ length: pool.replicas }, (_, at) =>
      this.#runner(pool, `${pool.id}-${at}${turn}`, delegate),
    );
    const staged: Staged = { runners, ready: new Map(), over: false };
    this.#staged.set(pool.id, staged);
    for (const runner of runners) this.#replicas.set(runner.replicaId, runner);
    if (!this.#stopping) for (const runner of runners) runner.send({ type: "start_requested" });
  }

  /** Once it serves, its replicas are told of like any other's. */
  #hooksOf(staged: Staged, own: RunnerHooks): RunnerHooks {
    if ([...this.#staged.values()].includes(staged)) return own;
    assert(this.#hooks !== null, "replicas run in a supervisor that was started");
    return this.#hooks;
  }

  staged(poolId: string): readonly StagedReplica[] {
    return [...(this.#staged.get(poolId)?.ready.values() ?? [])];
  }

  stagedSnapshots(poolId: string): readonly ReplicaSnapshot[] {
    return (this.#staged.get(poolId)?.runners ?? []).map((runner) => runner.snapshot());
  }

  promote(poolId: string): void {
    const staged = this.#staged.get(poolId);
    assert(staged !== undefined && this.#listener !== null, `a generation of pool ${poolId} is staged`);
    assert(!this.#retired.has(poolId), "the generation before the last is gone");
    const before = this.#ofPool(poolId);
    const isStopped = ({ state }: ReplicaRunner): boolean => state === "stopped";
    const retired = before.filter((runner) => !isStopped(runner));
    this.#staged.delete(poolId);
    this.#parked.delete(poolId);
    this.#forget(before.filter(isStopped));
    if (retired.length > 0) this.#retired.set(poolId, retired);
    // One that does not serve has nothing to finish.
    for (const runner of retired)
      if (runner.snapshot().identity === null) runner.send({ type: "stop_requested" });
    this.#pools.set(poolId, staged.runners);
    for (const { snapshot, client, speed } of staged.ready.values())
      this.#listener.replicaReady(snapshot, client, speed);
  }

  serving(poolId: string): readonly string[] {
    return this.#ofPool(poolId).map(({ replicaId }) => replicaId);
  }

  async stopRetired(poolId: string): Promise<void> {
    const retired = this.#retired.get(poolId) ?? [];
    await this.#stopped(retired);
    this.#forget(retired);
    this.#retired.delete(poolId);
  }

  async discard(poolId: string): Promise<void> {
    const staged = this.#staged.get(poolId);
    if (staged === undefined) return;
    staged.over = true;
    await this.#stopped(staged.runners);
    this.#staged.delete(poolId);
    this.#forget(staged.runners);
  }

  park(poolId: string): Promise<void> {
    this.#parked.add(poolId);
    return this.#stopped(this.#ofPool(poolId));
  }

  unpark(poolId: string): void {
    this.#parked.delete(poolId);
    this.ensurePool(poolId);
  }

  #stopped(runners: readonly ReplicaRunner[]): Promise<void> {
    return new Promise((done) => {
      this.#reaping.add({ runners, done });
      for (const runner of runners) runner.send({ type: "stop_requested" });
      this.#settle();
    });
  }

  #forget(runners: readonly ReplicaRunner[]): void {
    for (const { replicaId, incarnation } of runners) {
      this.#replicas.delete(replicaId);
      this.#incarnations.set(replicaId, incarnation);
    }
  }

  #runner(pool: PoolSpec, replicaId: string, hooks: RunnerHooks): ReplicaRunner {
    const adapter = this.#options.adapters.get(pool.engine);
    assert(adapter !== undefined, `engine ${pool.engine} has an adapter`);
    const policy = replicaPolicy(pool, this.#restart);
    const before = this.#incarnations.get(replicaId) ?? 0;
    return new ReplicaRunner(replicaId, pool, adapter, policy, this.#options, hooks, before);
  }

  #hooksFor(listener: ReplicaListener): RunnerHooks {
    return {
      ready: (runner, client, speed) => listener.replicaReady(runner.snapshot(), client, speed),
      lost: (runner, failure) => {
        listener.replicaLost(runner.pool.id, runner.replicaId, runner.incarnation, failure);
        if (this.#retired.get(runner.pool.id)?.includes(runner)) runner.send({ type: "stop_requested" });
      },
      unavailable: (runner, failure) => this.#replicaGaveUp(runner.pool.id, failure, listener),
      mendable: ({ pool }) => this.#memory?.wanted(pool.id, 0),
      moved: () => this.#settle(),
    };
  }

  #replicaGaveUp(poolId: string, failure: ReplicaFailure, listener: ReplicaListener): void {
    if (this.#ofPool(poolId).every((runner) => runner.state === "circuit_open")) {
      listener.poolUnavailable(poolId, failure);
    }
  }

  #settle(): void {
    for (const wait of [...this.#reaping]) {
      if (wait.runners.some(({ state }) => state !== "stopped")) continue;
      this.#reaping.delete(wait);
      wait.done();
    }
    if (!this.#stopping) return;
    for (const runner of this.#replicas.values()) if (runner.state !== "stopped") return;
    this.#allStopped.resolve();
  }

  #ofPool(poolId: string): readonly ReplicaRunner[] {
    const runners = this.#pools.get(poolId);
    assert(runners !== undefined, `pool ${poolId} is supervised`);
    return runners;
  }

  #replica(replicaId: string): ReplicaRunner {
    const runner = this.#replicas.get(replicaId);
    assert(runner !== undefined, `replica ${replicaId} is supervised`);
    return runner;
  }
}
