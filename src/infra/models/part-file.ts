/**
 * A file that comes in, beside the place where it shall be: `NAME.part` with the bytes, `NAME.part.json` that says
 * which of them are there. download.ts is the caller.
 *
 * Always holds: what the journal says was written is in the file: after `kill -9` as of its last word (the page cache
 * survives that), after the machine went down as of the last sync, which is known by the machine's boot id. The journal
 * appears whole (temporary file, rename). A part that is of another address, size or version is not gone on with.
 */
import { constants, readFileSync } from "node:fs";
import { type FileHandle, mkdir, open, readFile, rename, stat, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { assert } from "../../domain/assert.ts";
import { limits } from "../../domain/limits.ts";
import { type ByteRange, ByteRanges } from "./byte-ranges.ts";

/** What says that two answers are of the same bytes. */
export interface SourceVersion {
  readonly size: number;
  /** A strong ETag, or null. */
  readonly etag: string | null;
  /** Last-Modified as it came, or null. */
  readonly modified: string | null;
  /** The SHA-256 that the source told, or null. */
  readonly digest: string | null;
}

/** Nothing to hold an older part against: only a digest that is known beforehand would find a mixture. */
export const isNameless = ({ etag, modified, digest }: SourceVersion): boolean =>
  etag === null && modified === null && digest === null;

export const sameVersion = (a: SourceVersion, b: SourceVersion): boolean => {
  if (a.size !== b.size) return false;
  if (a.digest !== null && b.digest !== null) return a.digest === b.digest;
  return a.etag === b.etag && a.modified === b.modified;
};

interface Journal extends SourceVersion {
  readonly version: 1;
  readonly url: string;
  readonly boot: string | null;
  readonly written: readonly ByteRange[];
  readonly synced: readonly ByteRange[];
}

/** Bytes that one request for a file of this size asks for. */
export const pieceBytesOf = (sizeBytes: number): number =>
  Math.min(
    limits.fetchPieceBytesMax,
    Math.max(limits.fetchPieceBytesMin, Math.ceil(sizeBytes * limits.fetchPieceShare)),
  );

export const partPathOf = (path: string): string => `${path}.part`;
const journalPathOf = (path: string): string => `${path}.part.json`;

export class PartFile {
  #have: ByteRanges;
  #synced: readonly ByteRange[];
  /** Bytes that the journal does not know yet. */
  #unsaid = 0;
  #unsynced = 0;
  #saving: Promise<void> | null = null;

  private constructor(
    private readonly path: string,
    private readonly url: string,
    readonly version: SourceVersion,
    private readonly file: FileHandle,
    private readonly boot: string | null,
    have: readonly ByteRange[],
    synced: readonly ByteRange[],
  ) {
    this.#have = ByteRanges.of(have);
    this.#synced = synced;
  }

  /**
   * Goes on with what is there of exactly this version, else begins anew. `resumes` false: always anew.
   * @throws what node:fs throws
   */
  static async open(
    path: string,
    url: string,
    version: SourceVersion,
    resumes: boolean,
    boot: string | null = bootId(),
  ): Promise<PartFile> {
    await mkdir(dirname(path), { recursive: true });
    const journal = resumes ? await readJournal(path, url, version) : null;
    if (journal !== null) {
      const file = await open(partPathOf(path), constants.O_RDWR);
      const have = boot !== null && journal.boot === boot ? journal.written : journal.synced;
      return new PartFile(path, url, version, file, boot, have, journal.synced);
    }
    await discardPart(path);
    const file = await open(partPathOf(path), constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o644);
    try {
      await file.truncate(version.size);
    } catch (error) {
      await file.close();
      throw error;
    }
    return new PartFile(path, url, version, file, boot, [], []);
  }

  get bytesDone(): number {
    return this.#have.bytes;
  }

  missing(): ByteRange[] {
    return this.#have.missing(this.version.size, pieceBytesOf(this.version.size));
  }

  /** The bytes are in the file when it resolves; the journal learns of them in steps. */
  async write(bytes: Uint8Array, offset: number): Promise<void> {
    assert(offset + bytes.byteLength <= this.version.size, "nothing is written behind the end");
    for (let at = 0; at < bytes.byteLength; )
      at += (await this.file.write(bytes, at, bytes.byteLength - at, offset + at)).bytesWritten;
    this.#have.add(offset, offset + bytes.byteLength);
    this.#unsaid += bytes.byteLength;
    this.#unsynced += bytes.byteLength;
    const step = Math.min(limits.fetchJournalBytesMax, pieceBytesOf(this.version.size));
    // The one that runs may have begun before these bytes were there.
    while (this.#unsaid >= step) await this.save(this.#unsynced >= limits.fetchSyncBytes);
  }

  /** A source that gives no ranges begins anew. */
  forget(): void {
    this.#have = new ByteRanges();
  }

  /** One at a time; who comes meanwhile waits for the one that runs. */
  async save(sync: boolean): Promise<void> {
    if (this.#saving !== null) return await this.#saving;
    this.#saving = this.#save(sync);
    try {
      await this.#saving;
    } finally {
      this.#saving = null;
    }
  }

  async #save(sync: boolean): Promise<void> {
    const written = this.#have.list();
    this.#unsaid = 0;
    if (sync) {
      this.#unsynced = 0;
      await this.file.datasync();
      this.#synced = written;
    }
    const { url, version, boot } = this;
    const journal: Journal = { version: 1, url, ...version, boot, written, synced: this.#synced };
    const target = journalPathOf(this.path);
    const draft = await open(`${target}.new`, "w", 0o644);
    try {
      await draft.writeFile(JSON.stringify(journal));
      // Only what was synced has to outlive the machine.
      if (sync) await draft.datasync();
    } finally {
      await draft.close();
    }
    await rename(`${target}.new`, target);
  }

  /** Everything is on the disk. */
  sync(): Promise<void> {
    return this.file.sync();
  }

  /** Under its own name, whole; then nothing of the part is left. */
  async place(): Promise<void> {
    await rename(partPathOf(this.path), this.path);
    const folder = await open(dirname(this.path), constants.O_RDONLY);
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
    await unlinkIfThere(journalPathOf(this.path));
  }

  async close(): Promise<void> {
    await this.#saving?.catch(() => undefined);
    await this.file.close();
  }
}

export async function discardPart(path: string): Promise<void> {
  for (const one of [journalPathOf(path), `${journalPathOf(path)}.new`, partPathOf(path)])
    await unlinkIfThere(one);
}

/** Null: there is none of this version, or it makes no sense. */
async function readJournal(path: string, url: string, version: SourceVersion): Promise<Journal | null> {
  const text = await orNull(readFile(journalPathOf(path), "utf8"));
  const part = await orNull(stat(partPathOf(path)));
  if (text === null || part === null) return null;
  const journal = parse(text);
  if (journal === null || journal.url !== url || part.size !== journal.size) return null;
  return sameVersion(journal, version) ? journal : null;
}

function parse(text: string): Journal | null {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (typeof value !== "object" || value === null) return null;
  const { version, url, size, etag, modified, digest, boot, written, synced } = value as Partial<Journal>;
  const isText = (one: unknown): one is string | null => one === null || typeof one === "string";
  const isRanges = (one: unknown): one is ByteRange[] =>
    Array.isArray(one) &&
    one.every(
      (range) =>
        Array.isArray(range) &&
        range.length === 2 &&
        range.every((at) => Number.isSafeInteger(at) && at >= 0 && at <= Number(size)) &&
        range[0] <= range[1],
    );
  if (version !== 1 || typeof url !== "string" || !Number.isSafeInteger(size) || Number(size) < 0)
    return null;
  if (!isText(etag) || !isText(modified) || !isText(digest) || !isText(boot)) return null;
  if (!isRanges(written) || !isRanges(synced)) return null;
  return { version, url, size: Number(size), etag, modified, digest, boot, written, synced };
}

/** Another one after every start of the machine; null where the system does not tell. */
function bootId(): string | null {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch (error) {
    if (codeOf(error) === "") throw error;
    return null;
  }
}

const unlinkIfThere = (path: string) => orNull(unlink(path));

async function orNull<T>(work: Promise<T>): Promise<T | null> {
  try {
    return await work;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return null;
    throw error;
  }
}

export const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "";
