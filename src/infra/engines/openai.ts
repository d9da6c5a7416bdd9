/**
 * The adapter for servers elsewhere that speak the OpenAI API. Nothing is started, stopped or restarted here: a
 * "start" of the replica is a new client that finds out anew what answers there.
 */
import type { PoolSpec } from "../../domain/pool.ts";
import type { Clock, Entropy } from "../../ports/clock.ts";
import type { EngineAdapter, EngineClient } from "../../ports/engine.ts";
import { OpenAiClient } from "./openai-client.ts";

export interface OpenAiAdapterOptions {
  readonly clock: Clock;
  readonly entropy: Entropy;
}

export class OpenAiAdapter implements EngineAdapter {
  readonly kind = "openai";
  readonly #options: OpenAiAdapterOptions;

  constructor(options: OpenAiAdapterOptions) {
    this.#options = options;
  }

  plan(): null {
    return null;
  }

  connectInProcess(pool: PoolSpec): EngineClient {
    return new OpenAiClient({ ...this.#options, pool });
  }
}
