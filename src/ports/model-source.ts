/**
 * Model files: fetched from elsewhere, looked at where they lie. infra/models/ implements both; services/catalog.ts and
 * services/model-jobs.ts use them.
 */
import type { FileFacts } from "../domain/catalog.ts";

export interface FetchTarget {
  readonly url: string;
  /** Absolute path where the file is put once it is whole and right. */
  readonly path: string;
  /** SHA-256 and bytes that it must have; null: nobody said. */
  readonly digest: string | null;
  readonly sizeBytes: number | null;
}

/** What has come so far; told often, so it is cheap. */
export interface FetchProgress {
  readonly phase: "asking" | "receiving" | "checking";
  /** Bytes of the file that are there (phase checking: that were read). */
  readonly bytesDone: number;
  /** Null: the source does not say. */
  readonly bytesTotal: number | null;
  /** Bytes that came in this run, those included that had come before. */
  readonly bytesReceived: number;
  /** Answers that broke off or were no use. */
  readonly interruptions: number;
  /** Whether an interruption costs only what was not written yet; null: not known yet. */
  readonly resumable: boolean | null;
}

export interface FetchedFile {
  readonly digest: string;
  readonly sizeBytes: number;
  /** SHA-256 that the source itself told; null: it did not. */
  readonly sourceDigest: string | null;
  readonly file: FileFacts;
}

/**
 * host: refused by the allow list, or leads to a private address · refused: the source says no (status 4xx) ·
 * unavailable: it did not answer, or broke off too often · wrong: what it sent is not what it or the entry said (size) ·
 * digest: the bytes are others · header: no GGUF file · full, io: this machine's disk · busy: another process fetches
 * the same file · aborted: our own signal
 */
export type FetchErrorKind =
  | "host"
  | "refused"
  | "unavailable"
  | "wrong"
  | "digest"
  | "header"
  | "full"
  | "io"
  | "busy"
  | "aborted";

/** The message is one sentence for the operator, and says what to do. */
export class FetchError extends Error {
  readonly fetchErrorKind: FetchErrorKind;
  constructor(kind: FetchErrorKind, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.fetchErrorKind = kind;
  }
}

export function isFetchError(error: unknown): error is FetchError {
  return error instanceof Error && typeof (error as Partial<FetchError>).fetchErrorKind === "string";
}

export interface ModelSource {
  /**
   * Goes on where an earlier run stopped, also one that was killed. The file appears under its path whole, with the right
   * digest and a GGUF header, or not at all; what came so far stays for the next run, unless it was found wrong.
   * @throws FetchError
   */
  fetch(
    target: FetchTarget,
    onProgress: (progress: FetchProgress) => void,
    signal: AbortSignal,
  ): Promise<FetchedFile>;
  /** Removes what an unfinished run left for this path. */
  discard(path: string): Promise<void>;
}

export type Located =
  | { readonly kind: "file"; readonly path: string; readonly file: FileFacts }
  /** Nothing there. */
  | { readonly kind: "absent"; readonly path: string }
  /** Outside of models.dir and models.roots, followed links included. */
  | { readonly kind: "outside" };

export interface ModelFiles {
  /** The absolute path of one that is absolute or relative to models.dir; nothing is looked at. */
  pathOf(path: string): string;
  /** Absolute, or relative to models.dir. `confined`: only within models.dir and models.roots. */
  locate(path: string, confined: boolean): Located;
  /** Tells two files of that absolute path apart, as an engine's identity does; null: there is none. */
  stamp(path: string): string | null;
  /** What is wrong with the header of the file, in one line; null: it is a GGUF file. */
  headerProblem(path: string): string | null;
  /**
   * SHA-256 of the file. Others get their turn in between.
   * @throws FetchError io, aborted
   */
  digest(path: string, onBytes: (done: number) => void, signal: AbortSignal): Promise<string>;
  /**
   * Whether two files have the same bytes: read up to the first difference. Others get their turn in between.
   * @throws FetchError io, aborted
   */
  sameBytes(path: string, other: string, signal: AbortSignal): Promise<boolean>;
}
