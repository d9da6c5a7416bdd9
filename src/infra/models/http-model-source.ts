/**
 * Fetches model files over HTTP: asks what there is, fetches the missing pieces over a few connections at once,
 * compares size, digest and header, and puts the file in its place. bootstrap.ts makes it; the port says what holds.
 *
 * A source that gives no ranges is read in one go, and begins anew after an interruption. A source that changed meanwhile
 * (ETag, Last-Modified, size) is begun anew too, a few times.
 */
import { statfs } from "node:fs/promises";
import { dirname } from "node:path";
import { limits } from "../../domain/limits.ts";
import type { Entropy } from "../../ports/clock.ts";
import {
  FetchError,
  type FetchedFile,
  type FetchProgress,
  type FetchTarget,
  isFetchError,
  type ModelSource,
} from "../../ports/model-source.ts";
import { takeFetchLock } from "./fetch-lock.ts";
import { sha256OfFile } from "./file-digest.ts";
import { HopClient, type HopClientOptions, isInterrupted } from "./hop-client.ts";
import { factsOf } from "./local-model-files.ts";
import { codeOf, discardPart, isNameless, PartFile, partPathOf } from "./part-file.ts";
import { type Facts, isChanged, Receiver } from "./receiver.ts";

export interface HttpModelSourceOptions extends HopClientOptions {
  readonly entropy: Entropy;
  /** What is wrong with a file's header, in one line; null: it is a GGUF file. */
  readonly headerProblem: (path: string) => string | null;
}

export class HttpModelSource implements ModelSource {
  readonly #options: HttpModelSourceOptions;
  readonly #client: HopClient;

  constructor(options: HttpModelSourceOptions) {
    this.#options = options;
    this.#client = new HopClient(options);
  }

  async fetch(
    target: FetchTarget,
    onProgress: (progress: FetchProgress) => void,
    signal: AbortSignal,
  ): Promise<FetchedFile> {
    try {
      const release = takeFetchLock(target.path);
      try {
        return await this.#untilItStays(target, onProgress, signal);
      } finally {
        release();
      }
    } catch (error) {
      throw asFetchError(error, target.path);
    }
  }

  async discard(path: string): Promise<void> {
    try {
      await discardPart(path);
    } catch (error) {
      throw asFetchError(error, path);
    }
  }

  async #untilItStays(
    target: FetchTarget,
    onProgress: (progress: FetchProgress) => void,
    signal: AbortSignal,
  ): Promise<FetchedFile> {
    const { clock, entropy } = this.#options;
    const receiver = new Receiver({ client: this.#client, clock, entropy, target, onProgress, signal });
    for (let restart = 0; ; restart++) {
      try {
        return await this.#once(receiver, target, signal);
      } catch (error) {
        if (!isChanged(error)) throw error;
        if (restart >= limits.fetchRestartsMax)
          throw new FetchError(
            "wrong",
            `what is fetched changed ${restart + 1} times meanwhile (${error.message}); try again later`,
          );
      }
    }
  }

  async #once(receiver: Receiver, target: FetchTarget, signal: AbortSignal): Promise<FetchedFile> {
    const facts = await receiver.ask();
    refuseOthers(facts, target);
    const resumes = facts.ranges && (target.digest !== null || !isNameless(facts.version));
    const part = await PartFile.open(target.path, target.url, facts.version, resumes);
    try {
      await keepRoom(target.path, facts.version.size - part.bytesDone);
      try {
        await receiver.receive(part, facts);
      } finally {
        // Also what an interrupted run brought.
        await part.save(true);
      }
      return await this.#finish(receiver, part, target, facts, signal);
    } finally {
      await part.close();
    }
  }

  async #finish(
    receiver: Receiver,
    part: PartFile,
    target: FetchTarget,
    { version }: Facts,
    signal: AbortSignal,
  ): Promise<FetchedFile> {
    const path = partPathOf(target.path);
    const digest = await sha256OfFile(path, (done) => receiver.checked(done), signal);
    const expected = target.digest ?? version.digest;
    const problem = this.#options.headerProblem(path);
    const wrong =
      expected !== null && digest !== expected
        ? new FetchError(
            "digest",
            `what came has the SHA-256 ${digest}, expected ${expected}; it was thrown away`,
          )
        : problem === null
          ? null
          : new FetchError("header", `what came is of no use: ${problem}; it was thrown away`);
    if (wrong !== null) {
      await discardPart(target.path);
      throw wrong;
    }
    await part.sync();
    await part.place();
    const file = factsOf(target.path);
    if (file === null) throw new FetchError("io", `${target.path} was taken away as soon as it was there`);
    return { digest, sizeBytes: version.size, sourceDigest: version.digest, file };
  }
}

/** Nothing is fetched that is known to be something else. */
function refuseOthers({ version: { size, digest } }: Facts, target: FetchTarget): void {
  if (target.sizeBytes !== null && size !== target.sizeBytes)
    throw new FetchError(
      "wrong",
      `the source has ${size} bytes, the entry says ${target.sizeBytes}; nothing was fetched`,
    );
  if (size > limits.modelBytesMax)
    throw new FetchError(
      "wrong",
      `the source has ${size} bytes, more than the ${limits.modelBytesMax} taken`,
    );
  if (target.digest !== null && digest !== null && digest !== target.digest)
    throw new FetchError(
      "digest",
      `the source tells the SHA-256 ${digest}, the entry says ${target.digest}; nothing was fetched`,
    );
}

async function keepRoom(path: string, bytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(dirname(path));
  const free = bavail * bsize;
  if (free - bytes < limits.modelDiskReserveBytes)
    throw new FetchError(
      "full",
      `${bytes} bytes are to come and ${free} are free at ${dirname(path)}, of which ${limits.modelDiskReserveBytes} stay free; make room`,
    );
}

function asFetchError(error: unknown, path: string): unknown {
  if (isFetchError(error)) return error;
  if (isInterrupted(error))
    return new FetchError("unavailable", `${error.message}; try again later`, { cause: error });
  const code = codeOf(error);
  if (code === "ENOSPC" || code === "EDQUOT")
    return new FetchError("full", `no room left for ${path}; make some, what came so far is kept`, {
      cause: error,
    });
  if (/^E[A-Z0-9]+$/.test(code))
    return new FetchError("io", `cannot write ${path} (${code}); check the disk and its permissions`, {
      cause: error,
    });
  return error;
}
