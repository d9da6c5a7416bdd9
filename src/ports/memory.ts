/**
 * Memory by role: what a load will take, what the machine has, and where what was learnt of it is kept. Adapters:
 * infra/engines/llamacpp-reckoning.ts, infra/host-memory.ts, infra/kept-file.ts.
 */

import type { LoadSettings, MemoryEstimate } from "../domain/model-memory.ts";
import type { PoolSpec } from "../domain/pool.ts";

/** One load before it happens. */
export interface LoadReckoning {
  /** Tells the model's file from every other, and from itself once it is changed. */
  readonly model: string;
  readonly architecture: string;
  /** Build of the engine. */
  readonly engine: string;
  readonly settings: LoadSettings;
  /** The formula's, uncorrected. */
  readonly estimate: MemoryEstimate;
}

export interface LoadReckoner {
  /** Of one replica. `onHost`: no accelerator takes a part. Null: the file is not there, or not of a kind that is known. */
  reckon(pool: PoolSpec, onHost: boolean): LoadReckoning | null;
  /** Null: the file is not there. */
  fileBytes(pool: PoolSpec): number | null;
}

export interface HostMemory {
  /** Null: this system does not tell. Bytes; what may be had without swapping out others counts as available. */
  sample(): { readonly totalBytes: number; readonly availableBytes: number } | null;
}

/** A text that outlives the process. */
export interface KeptText {
  /** Null: there is none, or it cannot be read. */
  read(): string | null;
  /** All of it or nothing is there afterwards. @returns false: the disk refused */
  write(text: string): boolean;
}
