/**
 * Bytes kept under their own SHA-256, each owner's apart. services/artifacts.ts uses it; a folder of the file
 * system and an S3-compatible service implement it (src/infra/blobs), with one conformance suite.
 *
 * Always holds: once `put` or `receive` has resolved, a power cut does not undo it (S3: the service has taken it);
 * before that, the blob is there whole or not at all. What `get` and `open` give has been compared with its digest.
 */

export const blobShelves = ["documents", "attachments"] as const;
export type BlobShelf = (typeof blobShelves)[number];

export interface BlobKey {
  readonly shelf: BlobShelf;
  /** Whose it is: a name of letters, digits and . _ - that begins with a letter or digit. */
  readonly owner: string;
  /** SHA-256 of the bytes, 64 lower-case hexadecimal digits. */
  readonly digest: string;
}

export interface BlobFacts {
  readonly key: BlobKey;
  readonly sizeBytes: number;
  /** Milliseconds since the epoch, as exact as the store keeps it (S3: whole seconds). */
  readonly storedMs: number;
}

export interface Received {
  readonly digest: string;
  readonly sizeBytes: number;
  /** False: the same bytes were there already. */
  readonly fresh: boolean;
}

export interface OpenBlob {
  readonly sizeBytes: number;
  /** May be walked once; its end releases what it holds. */
  readonly chunks: AsyncIterable<Uint8Array>;
  /** For who does not walk to the end. Idempotent. */
  close(): Promise<void>;
}

/** Runs `work`, which gives the blob its name, when nothing else is done with that blob; gives on what it resolves to. */
export type Naming = <T>(digest: string, work: () => Promise<T>) => Promise<T>;

export interface BlobStore {
  /**
   * `bytes` have the digest of `key`. A damaged blob under the same key is put aside and replaced.
   * @returns whether it was new. @throws BlobError full, io
   */
  put(key: BlobKey, bytes: Uint8Array): Promise<boolean>;
  /**
   * Hashes while it writes. At most `bytesMax` bytes and one chunk are taken. `naming` is called once, when the last byte is
   * there; absent: the blob is named at once.
   * @throws BlobError too_large, full, io; and what `chunks` and `naming` throw. Nothing is left behind then.
   */
  receive(
    shelf: BlobShelf,
    owner: string,
    chunks: AsyncIterable<Uint8Array>,
    bytesMax: number,
    naming?: Naming,
  ): Promise<Received>;
  /** The whole blob; null: there is none. @throws BlobError damaged (it was put aside), io */
  get(key: BlobKey): Promise<Uint8Array | null>;
  /** The same in pieces, compared with its digest before the first one is given. */
  open(key: BlobKey): Promise<OpenBlob | null>;
  stat(key: BlobKey): Promise<BlobFacts | null>;
  /** @returns whether there was something. */
  remove(key: BlobKey): Promise<boolean>;
  /** In no order; what is added or removed meanwhile may be in it or not. */
  list(): AsyncIterable<BlobFacts>;
}

export type BlobErrorKind = "too_large" | "damaged" | "full" | "io";

/** Compare `kind`, never the class. The message names the place and says what to do. */
export class BlobError extends Error {
  readonly blobError = true;
  constructor(
    readonly kind: BlobErrorKind,
    message: string,
    options?: { readonly cause?: unknown },
  ) {
    super(message, options);
  }
}

export const isBlobError = (error: unknown): error is BlobError =>
  error instanceof Error && (error as Partial<BlobError>).blobError === true;

export const isOwnerName = (owner: string): boolean => /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(owner);
export const isDigest = (digest: string): boolean => /^[0-9a-f]{64}$/.test(digest);
