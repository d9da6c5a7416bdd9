/**
 * What the dispatcher and the supervisor know of each other. The supervisor tells what became of replicas;
 * the dispatcher tells what it does with them. Both directions are facts about one incarnation: a fact about
 * an older incarnation is stale and ignored.
 */
import type { ReplicaFailure, ReplicaSnapshot, WarmUpSpeed } from "../domain/pool.ts";
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
