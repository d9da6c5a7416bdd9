/**
 * The digests of the model files that engines have loaded, for transcripts: reckoned once for each file as it was then,
 * one file after the other, beside the work. Told of loads by the dispatcher, asked when a transcript is made.
 *
 * Always holds: a digest is that of the file with this stamp; it is not known before the whole file was read.
 */
import { limits } from "../domain/limits.ts";
import { isFetchError, type ModelFiles } from "../ports/model-source.ts";
import type { Log } from "../ports/telemetry.ts";

export interface LoadedModel {
  readonly modelPath: string | null;
  /** Tells two files of that path apart. */
  readonly modelStamp: string | null;
}

const keyOf = ({ modelPath, modelStamp }: LoadedModel): string => `${modelStamp} ${modelPath}`;

export class ModelDigests {
  /** Null: it is being reckoned, or could not be. */
  readonly #digests = new Map<string, string | null>();
  readonly #stopped = new AbortController();
  #last: Promise<void> = Promise.resolve();

  constructor(
    private readonly files: Pick<ModelFiles, "digest">,
    private readonly log: Log,
  ) {}

  /** SHA-256 in lower-case hexadecimal; null: not known, or there is no file. */
  of(model: LoadedModel): string | null {
    return this.#digests.get(keyOf(model)) ?? null;
  }

  /** An engine has loaded it. */
  want(model: LoadedModel): void {
    const { modelPath, modelStamp } = model;
    const key = keyOf(model);
    if (modelPath === null || modelStamp === null || this.#digests.has(key)) return;
    for (const oldest of this.#digests.keys()) {
      if (this.#digests.size < limits.modelDigestsMax) break;
      this.#digests.delete(oldest);
    }
    this.#digests.set(key, null);
    this.#last = this.#last.then(() => this.#reckon(key, modelPath));
  }

  /** Resolves when nothing is being read any more. */
  async stop(): Promise<void> {
    this.#stopped.abort();
    await this.#last;
  }

  /** Resolves when all that was wanted is known, or could not be read. */
  settled(): Promise<void> {
    return this.#last;
  }

  async #reckon(key: string, path: string): Promise<void> {
    if (this.#stopped.signal.aborted) return;
    try {
      const digest = await this.files.digest(path, () => undefined, this.#stopped.signal);
      if (this.#digests.has(key)) this.#digests.set(key, digest);
    } catch (error) {
      if (!isFetchError(error)) throw error;
      if (this.#stopped.signal.aborted) return;
      this.log.warn("model_digest_failed", {
        human: `the digest of ${path} is not known, transcripts leave it out: ${error.message}`,
      });
    }
  }
}
