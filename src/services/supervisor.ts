/**
 * All replicas of all pools: starts them, tells the dispatcher what became of them, takes what the dispatcher
 * tells about them, and ends them. Built by app/bootstrap.ts; each replica's life is in replica-runner.ts.
 *
 * Always holds: a replica is told ready before it is told lost, once each an incarnation; after `stop` or
 * `forceStop` nothing is started again, and `stop` resolves only when every process is reaped.
 */
import { assert } from "../domain/assert.ts";
import type { EngineKind, PoolSpec, ReplicaFailure, ReplicaSnapshot } from "../domain/pool.ts";
import { type RestartPolicy, replicaPolicy } from "../domain/replica-model.ts";
import type { EngineAdapter } from "../ports/engine.ts";
import type { ReplicaControl, ReplicaListener } from "../ports/supervision.ts";
import { ReplicaRunner, type RunnerHooks, type RunnerPorts } from "./replica-runner.ts";

export interface SupervisorOptions extends RunnerPorts {
  readonly adapters: ReadonlyMap<EngineKind, EngineAdapter>;
  readonly restart: RestartPolicy;
}

export class Supervisor implements ReplicaControl {
  readonly #options: SupervisorOptions;
  readonly #pools = new Map<string, readonly ReplicaRunner[]>();
  readonly #replicas = new Map<string, ReplicaRunner>();
  readonly #allStopped = Promise.withResolvers<void>();
  #started = false;
  #stopping = false;

  constructor(options: SupervisorOptions) {
    this.#options = options;
  }

  /** Once. The host's `sweep` comes before it, so that nothing of an earlier daemon holds a socket. */
  start(pools: readonly PoolSpec[], listener: ReplicaListener): void {
    assert(!this.#started, "a supervisor starts once");
    this.#started = true;
    const hooks = this.#hooksFor(listener);
    for (const pool of pools) {
      assert(!this.#pools.has(pool.id), `pool ${pool.id} is there once`);
      const runners = Array.from({ length: pool.replicas }, (_, at) => this.#runner(pool, at, hooks));
      this.#pools.set(pool.id, runners);
      for (const runner of runners) this.#replicas.set(runner.replicaId, runner);
    }
    for (const pool of pools) if (pool.preload) this.ensurePool(pool.id);
  }

  ensurePool(poolId: string): void {
    if (this.#stopping) return;
    for (const runner of this.#ofPool(poolId)) runner.send({ type: "start_requested" });
  }

  snapshots(poolId: string): readonly ReplicaSnapshot[] {
    return this.#ofPool(poolId).map((runner) => runner.snapshot());
  }

  noteSlotsBusy(replicaId: string, incarnation: number, slotsBusy: number): void {
    this.#replica(replicaId).send({ type: "slots_changed", incarnation, slotsBusy });
  }

  noteProgress(replicaId: string, incarnation: number): void {
    this.#replica(replicaId).send({ type: "progress_made", incarnation });
  }

  reportWedged(replicaId: string, incarnation: number, message: string): void {
    const runner = this.#replica(replicaId);
    runner.send({ type: "wedged", incarnation, message, logTail: runner.recentLines() });
  }

  /** The last lines of the replica's log, oldest first, across its restarts. */
  logTail(replicaId: string): readonly string[] {
    return this.#replica(replicaId).logTail();
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

  #runner(pool: PoolSpec, at: number, hooks: RunnerHooks): ReplicaRunner {
    const adapter = this.#options.adapters.get(pool.engine);
    assert(adapter !== undefined, `engine ${pool.engine} has an adapter`);
    const policy = replicaPolicy(pool, this.#options.restart);
    return new ReplicaRunner(`${pool.id}-${at}`, pool, adapter, policy, this.#options, hooks);
  }

  #hooksFor(listener: ReplicaListener): RunnerHooks {
    return {
      ready: (runner, client, speed) => listener.replicaReady(runner.snapshot(), client, speed),
      lost: (runner, failure) =>
        listener.replicaLost(runner.pool.id, runner.replicaId, runner.incarnation, failure),
      unavailable: (runner, failure) => this.#replicaGaveUp(runner.pool.id, failure, listener),
      moved: () => this.#settle(),
    };
  }

  #replicaGaveUp(poolId: string, failure: ReplicaFailure, listener: ReplicaListener): void {
    if (this.#ofPool(poolId).every((runner) => runner.state === "circuit_open")) {
      listener.poolUnavailable(poolId, failure);
    }
  }

  #settle(): void {
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
