/**
 * The llama.cpp adapter: plans how a llama-server process is started for a replica, and makes its client. The
 * supervisor calls `plan` anew for every start, so each incarnation has its own key.
 */
import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { AssertionError, assert } from "../../domain/assert.ts";
import type { PoolSpec } from "../../domain/pool.ts";
import type { Clock, Entropy } from "../../ports/clock.ts";
import type { EngineAdapter, EngineClient, LaunchPlan } from "../../ports/engine.ts";
import type { Log } from "../../ports/telemetry.ts";
import { type GgufHeader, isGgufError, readGgufHeader } from "./gguf-header.ts";
import { LlamaCppClient } from "./llamacpp-client.ts";
import { launch } from "./llamacpp-launch.ts";

const keyBytes = 32;
/** NVIDIA, AMD compute, and whatever renders: only how large a batch may be depends on them. */
const acceleratorDevices = ["/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128"];

export interface LlamaCppAdapterOptions {
  readonly clock: Clock;
  readonly entropy: Entropy;
  readonly log: Log;
}

export class LlamaCppAdapter implements EngineAdapter {
  readonly kind = "llamacpp";
  readonly #clock: Clock;
  readonly #entropy: Entropy;
  readonly #log: Log;
  readonly #setpriv = Bun.which("setpriv");
  readonly #accelerated =
    process.platform === "darwin" || acceleratorDevices.some((path) => existsSync(path));

  constructor(options: LlamaCppAdapterOptions) {
    this.#clock = options.clock;
    this.#entropy = options.entropy;
    this.#log = options.log;
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
