/**
 * What a replica's start stands on beside memory and luck: the model's file with its parts, the engine's program, files
 * that the pool's flags name, and what the catalog says of the model. Asked by replica-runner.ts whether a start that was
 * hopeless would find something else now.
 */
import { isOrchestratorError } from "../domain/errors.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { ProcessHost } from "../ports/process.ts";
import type { ModelGate } from "../ports/supervision.ts";

/** A model in more parts than that is looked at by its first ones. */
const partsMax = 64;

export class StartInputs {
  readonly #pool: PoolSpec;
  readonly #processes: Pick<ProcessHost, "stampOf">;
  readonly #models: ModelGate | null;
  readonly #paths: readonly string[];
  #started = "";
  #seen = "";

  constructor(pool: PoolSpec, processes: Pick<ProcessHost, "stampOf">, models: ModelGate | null) {
    this.#pool = pool;
    this.#processes = processes;
    this.#models = models;
    this.#paths = pathsOf(pool);
  }

  /** Now it starts. */
  note(): void {
    this.#started = this.#now();
    this.#seen = this.#started;
  }

  /** changed: other than at the start; steady: as at the last call. */
  look(): { readonly changed: boolean; readonly steady: boolean } {
    const before = this.#seen;
    this.#seen = this.#now();
    return { changed: this.#seen !== this.#started, steady: this.#seen === before };
  }

  #now(): string {
    return `${this.#processes.stampOf(this.#paths)}\n${this.#verdict()}`;
  }

  #verdict(): string {
    try {
      this.#models?.gate(this.#pool);
      return "";
    } catch (error) {
      if (!isOrchestratorError(error)) throw error;
      return error.message;
    }
  }
}

function pathsOf({ engineBin, modelPath, args }: PoolSpec): string[] {
  const named = args.map((arg) => arg.slice(arg.startsWith("-") ? arg.indexOf("=") + 1 : 0));
  return [
    ...(engineBin === null ? [] : [engineBin]),
    ...(modelPath === null ? [] : partsOf(modelPath)),
    ...named.filter((text) => text.includes("/")),
  ];
}

/** `m-00001-of-00003.gguf` and the others of its kind; a model in one file is its only part. */
function partsOf(modelPath: string): string[] {
  const [, head, count, tail] = /^(.*-)\d{5}-of-(\d{5})(\.gguf)$/.exec(modelPath) ?? [];
  if (head === undefined || count === undefined || tail === undefined) return [modelPath];
  const parts = Math.min(partsMax, Math.max(1, Number(count)));
  return Array.from(
    { length: parts },
    (_, at) => `${head}${String(at + 1).padStart(5, "0")}-of-${count}${tail}`,
  );
}
