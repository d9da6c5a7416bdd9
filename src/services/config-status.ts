/**
 * Use case "look at the configuration": which one is in force, what of the file waits for the next start, and why the
 * newest try was refused. app/config-reload.ts writes it, api/config.ts answers with it.
 */
import type { UnfinishedChange } from "./pool-changes.ts";

export interface ConfigLoaded {
  /** Absolute path of the file; null: there is none. */
  readonly source: string | null;
  /** Whether a change of it is taken up by itself. */
  readonly watched: boolean;
  /** SHA-256, hex, of all that is in force. */
  readonly digest: string;
  /** ms since 1970. */
  readonly loadedMs: number;
  /** Keys whose values in the file hold at the next start. */
  readonly atNextStart: readonly string[];
}

export interface ConfigRefusal {
  /** ms since 1970. */
  readonly atMs: number;
  /** Each with its place. */
  readonly problems: readonly string[];
}

export interface ConfigView extends ConfigLoaded {
  /** Counts what was taken since the start, which is 1. */
  readonly generation: number;
  /** Of the newest try, where that was refused. */
  readonly lastError: ConfigRefusal | null;
  /** Pools that are not what the file says: on their way, or a step has failed. */
  readonly pools: readonly UnfinishedChange[];
}

export class ConfigStatus {
  #generation = 1;
  #lastError: ConfigRefusal | null = null;

  constructor(
    private loaded: ConfigLoaded,
    private readonly unfinished: () => readonly UnfinishedChange[],
  ) {}

  /** It was read again, and is in force or on its way. */
  took(loaded: ConfigLoaded): void {
    if (loaded.digest !== this.loaded.digest) this.#generation++;
    this.loaded = loaded;
    this.#lastError = null;
  }

  /** It was read again, and nothing has changed. */
  refused(refusal: ConfigRefusal): void {
    this.#lastError = refusal;
  }

  view(): ConfigView {
    return {
      ...this.loaded,
      generation: this.#generation,
      lastError: this.#lastError,
      pools: this.unfinished(),
    };
  }
}
