/**
 * Who may touch which blob when, and what a client hears of what the disk refused. services/artifacts.ts,
 * artifact-room.ts and artifact-settling.ts share one.
 *
 * Always holds: two operations on the same blob never overlap; a blob that was found damaged leaves the index; after
 * anything that the store refused the index counts as in doubt.
 */
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { ArtifactIndex } from "../ports/artifact-index.ts";
import { type BlobKey, isBlobError } from "../ports/blob-store.ts";
import { isStoreError } from "../ports/task-store.ts";
import type { Log } from "../ports/telemetry.ts";
import { tooLarge } from "./artifact-refusals.ts";

export interface ArtifactTurnsDeps {
  readonly index: ArtifactIndex;
  readonly log: Log;
}

export class ArtifactTurns {
  /** The last operation on each blob that has one now. */
  readonly #turns = new Map<string, Promise<unknown>>();
  /** What running requests refer to, make or send, with how many do. */
  readonly #wanted = new Map<string, number>();

  constructor(private readonly deps: ArtifactTurnsDeps) {}

  isWanted(name: string): boolean {
    return this.#wanted.has(name);
  }

  async wanting<T>(names: readonly string[], work: () => Promise<T>): Promise<T> {
    for (const name of names) this.#wanted.set(name, (this.#wanted.get(name) ?? 0) + 1);
    try {
      return await work();
    } finally {
      for (const name of names) {
        const left = (this.#wanted.get(name) ?? 1) - 1;
        if (left === 0) this.#wanted.delete(name);
        else this.#wanted.set(name, left);
      }
    }
  }

  /** One after the other for each blob. @throws what `work` throws, as a client may hear it. */
  turn<T>(key: BlobKey, work: () => Promise<T>): Promise<T> {
    const name = `${key.shelf}/${key.owner}/${key.digest}`;
    const before = this.#turns.get(name) ?? Promise.resolve();
    const mine = before.then(work, work).catch((error: unknown) => {
      if (isBlobError(error) && error.kind === "damaged")
        this.deps.index.remove({ shelf: key.shelf, owner: key.owner, id: key.digest });
      throw this.told(error);
    });
    this.#turns.set(name, mine);
    const done = (): void => {
      if (this.#turns.get(name) === mine) this.#turns.delete(name);
    };
    mine.then(done, done);
    return mine;
  }

  /** Resolves once nothing is under way. */
  async idle(): Promise<void> {
    await Promise.allSettled(this.#turns.values());
  }

  answering<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw this.told(error);
    }
  }

  /** As a client may hear it; the log hears the place. Anything that is no operating error comes back unchanged. */
  told(error: unknown): unknown {
    if (!isBlobError(error) && !isStoreError(error)) return error;
    if (isBlobError(error) && error.kind === "too_large")
      return tooLarge("an attachment", limits.attachmentBytesMax);
    this.deps.log.error("artifact_trouble", { human: error.message }, error);
    if (isBlobError(error) && error.kind === "damaged")
      return new OrchestratorError(
        "UNTRUSTED_ARTIFACT",
        "what is stored does not match its digest any more and was put aside: store it again, the operator finds the rest in the log",
        { cause: error },
      );
    this.deps.index.doubted();
    return new OrchestratorError(
      "STORAGE_UNAVAILABLE",
      "artifacts cannot be stored or read now: the log says what the disk or the service refused",
      { retryAfterMs: limits.storageRetryMs, cause: error },
    );
  }
}
