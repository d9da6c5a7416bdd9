/**
 * What the dispatcher and the supervisor know of each other. The supervisor tells what became of replicas;
 * the dispatcher tells what it does with them. Both directions are facts about one incarnation: a fact about
 * an older incarnation is stale and ignored.
 */
import type { PoolSpec, ReplicaFailure, ReplicaSnapshot, WarmUpSpeed } from "../domain/pool.ts";
import type { RestartPolicy } from "../domain/replica-model.ts";
import type { EngineClient } from "./engine.ts";

/** The supervisor calls these; they only post events and return at once. */
export interface ReplicaListener {
  /** Decoded for real: its slots (snapshot.slotsTotal, identity set) may be leased. */
  replicaReady(snapshot: ReplicaSnapshot, client: EngineClient, speed: WarmUpSpeed): void;
  /** Was ready and is not any more: its leases are void, their generations have failed or are about to. */
  replicaLost(poolId: string, replicaId: string, incarnation: number, failure: ReplicaFailure | null): void;
  /** Every replica of the pool is in circuit_open (or failed without hope); queued work cannot start. */
  poolUnavailable(poolId: string, failure: ReplicaFailure): void;
}

/** The dispatcher's and the services' view of the supervisor. */
export interface ReplicaControl {
  /** Starts the pool's replicas where they are stopped: first use of a pool without preload. Idempotent. */
  ensurePool(poolId: string): void;
  snapshots(poolId: string): readonly ReplicaSnapshot[];
  /** Leased slots changed: ready <-> busy. */
  noteSlotsBusy(replicaId: string, incarnation: number, slotsBusy: number): void;
  /** A token was decoded: the restart backoff starts anew at its first step. */
  noteProgress(replicaId: string, incarnation: number): void;
  /** A watchdog found it alive but answering nothing: it is killed and restarted. */
  reportWedged(replicaId: string, incarnation: number, message: string): void;
}

/** Who decides which pools are in memory. services/residency-keeper.ts implements it; the supervisor asks. */
export interface MemoryGate {
  /** False: the pool takes no memory here, and is started by whoever asks for it. */
  manages(poolId: string): boolean;
  /** Somebody asked for a pool that has no memory: it may get some, and is loaded then, not before `atMs`. */
  wanted(poolId: string, atMs: number): void;
  /** Told at once of a pool that comes, or that is there with other engines, none of which was started. */
  added(pool: PoolSpec): void;
  /** Its settings are these now. */
  configured(pool: PoolSpec): void;
  /** Its engines are gone, and it too. */
  removed(poolId: string): void;
}

/** How pools get into memory and out of it. The keeper of memory alone asks, of pools that it manages. */
export interface LoadControl {
  /** Its memory is free: from now on its engines run and are started again where they fail. */
  load(poolId: string): void;
  /** The same, where another generation of its engines is to be started. */
  grant(poolId: string): void;
  /** Resolves when its engines are reaped; they start again only after `load`. */
  unload(poolId: string): Promise<void>;
  /** All of them failed: they take no memory and start again only after `load`. */
  rest(poolId: string): void;
}

/** A replica of the next generation that has decoded for real. */
export interface StagedReplica {
  readonly snapshot: ReplicaSnapshot;
  readonly client: EngineClient;
  readonly speed: WarmUpSpeed;
}

/** How the replicas of a pool are replaced by others with another model, or with the same. services/pool-reload.ts asks. */
export interface GenerationControl {
  /**
   * Starts the next generation beside the one that serves; nobody else is told of it. `ready`: once, when all of its
   * replicas are; `failed`: once, when the first of them fails, also after `ready`.
   */
  stage(pool: PoolSpec, ready: () => void, failed: (failure: ReplicaFailure) => void): void;
  /** Those of the next generation that are ready. */
  staged(poolId: string): readonly StagedReplica[];
  /** Those of the next generation, whatever they do. */
  stagedSnapshots(poolId: string): readonly ReplicaSnapshot[];
  /**
   * The staged generation serves from now on and is told ready. What served before is forgotten where it is stopped, and
   * retired where it is not: it is not started again.
   */
  promote(poolId: string): void;
  /** The replicas that serve, by their ids. */
  serving(poolId: string): readonly string[];
  /** Resolves when what was retired is reaped and forgotten. */
  stopRetired(poolId: string): Promise<void>;
  /** Resolves when the staged generation is reaped and forgotten. */
  discard(poolId: string): Promise<void>;
  /** Resolves when the serving generation is reaped. It starts again only after `unpark`. */
  park(poolId: string): Promise<void>;
  /** Its replicas that were given up are tried once more, no closer than the backoff, whether or not anything has changed. */
  retryPool(poolId: string): void;
  /** What was parked starts again. */
  unpark(poolId: string): void;
}

/** How pools come, change and go while the daemon runs. services/pool-changes.ts asks. */
export interface PoolControl {
  /** It starts where it is preloaded, else when it is asked for. */
  addPool(pool: PoolSpec): void;
  /** Resolves when its replicas are reaped and forgotten; none is being replaced, and nobody asks for it any more. */
  removePool(poolId: string): Promise<void>;
  /** What its engines need not be replaced for, whichever of its replicas serve. */
  configurePool(pool: PoolSpec): void;
  /** None of its replicas was started, or is about to be. */
  isStopped(poolId: string): boolean;
  /** Others in the place of replicas that were not started. */
  exchangeStopped(pool: PoolSpec): void;
  /** How all replicas are restarted from now on. */
  configureRestarts(restart: RestartPolicy): void;
}

/** What stands between a pool and its model's file. services/pool-models.ts implements it; the supervisor asks it. */
export interface ModelGate {
  /** Before each start of an engine. @throws OrchestratorError that says why this file is not loaded */
  gate(pool: PoolSpec): void;
  /** Before a pool is started: resolves when its file was fetched or verified, or could not be. Null: nothing to wait for. */
  prepare(pool: PoolSpec): Promise<void> | null;
}
