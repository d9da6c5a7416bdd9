/**
 * What each pool needs of each device: reckoned before its load, corrected by what engines told after theirs, and kept
 * across restarts. services/residency-keeper.ts asks and tells.
 *
 * Always holds: what is kept and cannot be read costs only what was learnt; nothing is learnt of a load that was not
 * reckoned.
 */
import type { Bytes } from "../domain/eviction.ts";
import {
  corrected,
  decode,
  encode,
  learn,
  type MemoryExperience,
  noExperience,
} from "../domain/memory-experience.ts";
import { totalOf } from "../domain/model-memory.ts";
import type { EngineIdentity, PoolSpec } from "../domain/pool.ts";
import type { KeptText, LoadReckoner, LoadReckoning } from "../ports/memory.ts";
import type { Log } from "../ports/telemetry.ts";

/** Where a replica lies. */
export interface Lying {
  /** What the configuration names, or what there is by default. */
  readonly devices: readonly string[];
  /** Graphics cards that share it; empty: all of it is on the host. */
  readonly gpus: readonly string[];
  /** The host's memory is shared out, too: its id, or null. */
  readonly host: string | null;
}

export interface ModelNeedsDeps {
  readonly reckoner: LoadReckoner;
  readonly kept: KeptText;
  readonly log: Log;
  /** What a process takes of each card beside what it tells of its model. */
  readonly processBytes: number;
}

/** Of a model's size, where nothing more is known of it. */
const contextShare = 0.2;

export class ModelNeeds {
  #experience: MemoryExperience;

  constructor(private readonly deps: ModelNeedsDeps) {
    const text = deps.kept.read();
    const known = text === null ? noExperience : decode(text);
    if (known === null)
      deps.log.warn("memory_experience_damaged", {
        human: "what was learnt about the memory of models cannot be read: it is learnt anew",
      });
    this.#experience = known ?? noExperience;
  }

  /** Bytes by device of all replicas together. Null: its model's file is not there yet. */
  of(pool: PoolSpec, lyings: readonly Lying[]): Bytes | null {
    const sum = new Map<string, number>();
    for (const lying of lyings) {
      const needs = this.#ofReplica(pool, lying);
      if (needs === null) return null;
      for (const [deviceId, bytes] of needs) sum.set(deviceId, (sum.get(deviceId) ?? 0) + bytes);
    }
    return sum;
  }

  #ofReplica(pool: PoolSpec, lying: Lying): Bytes | null {
    if (pool.engine === "mock")
      return new Map(lying.devices.map((deviceId) => [deviceId, pool.mock?.memoryBytes ?? 0]));
    const onHost = lying.gpus.length === 0;
    const reckoned = this.deps.reckoner.reckon(pool, onHost);
    const parts = reckoned === null ? this.#byFile(pool, onHost) : this.#corrected(reckoned);
    if (parts === null) return null;
    const needs = new Map<string, number>();
    const shares = lying.gpus.length + pool.rpc.length;
    for (const gpu of lying.gpus) needs.set(gpu, Math.ceil(parts.device / shares) + this.deps.processBytes);
    if (lying.host !== null) needs.set(lying.host, parts.host);
    return needs;
  }

  #corrected(reckoned: LoadReckoning): { readonly host: number; readonly device: number } {
    const { host, device } = corrected(this.#experience, reckoned, reckoned.estimate);
    return { host: totalOf(host), device: totalOf(device) };
  }

  /** A kind of file that is not understood: its size, and something for its context. Null: it is not there. */
  #byFile(pool: PoolSpec, onHost: boolean): { readonly host: number; readonly device: number } | null {
    const size = this.deps.reckoner.fileBytes(pool);
    if (size === null) return null;
    const bytes = Math.ceil(size * (1 + contextShare));
    return onHost ? { host: bytes, device: 0 } : { host: 0, device: bytes };
  }

  /** One of its replicas is ready and told what it has reserved. */
  learn(pool: PoolSpec, lying: Lying, memory: NonNullable<EngineIdentity["memory"]>): void {
    const reckoned = this.deps.reckoner.reckon(pool, lying.gpus.length === 0);
    if (reckoned === null || totalOf(memory.host) + totalOf(memory.device) === 0) return;
    const { estimate, ...load } = reckoned;
    const { host, device } = estimate;
    const before = corrected(this.#experience, reckoned, estimate);
    const reported = totalOf(memory.host) + totalOf(memory.device);
    this.deps.log.info("model_memory_reported", {
      pool_id: pool.id,
      expected_bytes: before.totalBytes,
      reported_bytes: reported,
      basis: before.basis,
      human: `an engine of pool ${pool.id} reserved ${reported} bytes; ${before.totalBytes} were expected`,
    });
    if (before.basis === "same-load" && before.totalBytes === reported) return;
    this.#experience = learn(this.#experience, { ...load, estimated: { host, device }, reported: memory });
    this.deps.kept.write(encode(this.#experience));
  }
}
