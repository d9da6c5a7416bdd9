/**
 * The llama.cpp adapter: plans how a llama-server process is started for a replica, and makes its client. The
 * supervisor calls `plan` anew for every start, so each incarnation has its own key.
 */
import { statSync } from "node:fs";
import { availableParallelism } from "node:os";
import { AssertionError, assert } from "../../domain/assert.ts";
import {
  type Card,
  type DevicePlan,
  devicesOfReplica,
  planDevices,
  replicaNumberOf,
} from "../../domain/device-plan.ts";
import { OrchestratorError } from "../../domain/errors.ts";
import type { PoolSpec } from "../../domain/pool.ts";
import type { Clock, Entropy } from "../../ports/clock.ts";
import type { EngineAdapter, EngineClient, LaunchPlan } from "../../ports/engine.ts";
import type { Log } from "../../ports/telemetry.ts";
import { type GgufHeader, isGgufError, readGgufHeader } from "./gguf-header.ts";
import { LlamaCppClient } from "./llamacpp-client.ts";
import { isAccelerated, launch } from "./llamacpp-launch.ts";

const keyBytes = 32;

export interface LlamaCppAdapterOptions {
  readonly clock: Clock;
  readonly entropy: Entropy;
  readonly log: Log;
  /** The cards that answer now; absent: none. */
  readonly cards?: () => readonly Card[];
}

export class LlamaCppAdapter implements EngineAdapter {
  readonly kind = "llamacpp";
  readonly #clock: Clock;
  readonly #entropy: Entropy;
  readonly #log: Log;
  readonly #cards: () => readonly Card[];
  readonly #setpriv = Bun.which("setpriv");
  readonly #accelerated = isAccelerated();

  constructor(options: LlamaCppAdapterOptions) {
    this.#clock = options.clock;
    this.#entropy = options.entropy;
    this.#log = options.log;
    this.#cards = options.cards ?? (() => []);
  }

  plan(pool: PoolSpec, replicaId: string, runDir: string): LaunchPlan {
    const key = this.#entropy.secret(keyBytes);
    assert(key.length >= keyBytes, "an empty key would leave the engine open");
    const { command, env, keyPath, socketPath, workload } = launch({
      pool,
      replicaId,
      runDir,
      header: this.#header(pool, replicaId),
      env: process.env,
      hardwareThreads: availableParallelism(),
      accelerated: this.#accelerated,
      devices: this.#devices(pool, replicaId),
      setpriv: this.#setpriv,
    });
    return {
      command,
      env,
      secretFiles: [{ path: keyPath, content: `${key}\n` }],
      socketPaths: socketPath === null ? [] : [socketPath],
      connect: () => new LlamaCppClient({ clock: this.#clock, key, socketPath, workload }),
    };
  }

  /** @throws POOL_UNAVAILABLE where a card that the pool names is not there */
  #devices(pool: PoolSpec, replicaId: string): DevicePlan {
    const plan = planDevices({
      devices: devicesOfReplica(pool, replicaNumberOf(replicaId)),
      cards: this.#cards,
      args: pool.args,
      modelBytes: sizeOf(pool.modelPath),
    });
    if (!("problem" in plan)) return plan;
    const message = `${plan.problem}: correct "devices" of pool ${pool.id}, or see to the card and restart the daemon`;
    throw new OrchestratorError("POOL_UNAVAILABLE", message, {
      poolId: pool.id,
      details: { cause: "device_failed" },
    });
  }

  connectInProcess(): EngineClient {
    throw new AssertionError("assertion failed: llama.cpp runs in a process of its own");
  }

  /** An unreadable file is started all the same: the engine's exit tells the supervisor, which classifies it. */
  #header(pool: PoolSpec, replicaId: string): GgufHeader | null {
    if (pool.modelPath === null) return null;
    try {
      return readGgufHeader(pool.modelPath);
    } catch (error) {
      if (!isGgufError(error)) throw error;
      this.#log.warn("model_header_unreadable", { poolId: pool.id, replicaId, reason: error.message });
      return null;
    }
  }
}

/** Null where there is none: the engine then says why. A model in several files is taken for its first one's size. */
function sizeOf(path: string | null): number | null {
  return path === null ? null : (statSync(path, { throwIfNoEntry: false })?.size ?? null);
}
