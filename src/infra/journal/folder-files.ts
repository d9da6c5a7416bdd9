/**
 * The few things that the journal asks of a file system, and their real form in one folder. A seam, so that tests
 * can stop the world between any two of them.
 *
 * Always holds: what leaves here as an error is a JournalError; files are readable by their owner only.
 */
import {
  closeSync,
  fdatasync,
  fstatSync,
  fsync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { JournalError } from "../../ports/journal.ts";

/** An open file. */
export type Handle = number;

export interface JournalFiles {
  /** Where a file lies, for messages. */
  pathOf(name: string): string;
  list(): readonly string[];
  read(name: string): Uint8Array;
  /** A new file; one of that name is a failure. */
  create(name: string): Handle;
  /** An existing file, for writing. */
  open(name: string): Handle;
  /**
   * The first `bytes` of an open file as memory: what is stored there is in the file, in the order in which it was stored, also
   * after `kill -9`. The file is that long from then on, with zeros behind what it had. null: not on this file system.
   * Nobody touches it any more once the file was made shorter.
   */
  map(name: string, handle: Handle, bytes: number): Uint8Array | null;
  /** All of the bytes. After a failure any part of them may be there. */
  write(handle: Handle, bytes: Uint8Array, position: number): void;
  truncate(handle: Handle, bytes: number): void;
  /** Content and length survive a power cut. Beside the event loop. */
  sync(handle: Handle): Promise<void>;
  close(handle: Handle): void;
  /** Replaces what had the name. */
  rename(from: string, to: string): void;
  /** Names survive a power cut. Beside the event loop. */
  syncFolder(): Promise<void>;
  /** One that is not there is fine. */
  remove(name: string): void;
}

const privateFile = 0o600;
const privateFolder = 0o700;

/**
 * File systems (linux/magic.h) that write over a block where it is. On others a store into mapped memory may need a new
 * block, and a disk without one then ends the process by SIGBUS.
 */
const inPlace: ReadonlySet<number> = new Set([
  0xef53, // ext2, ext3, ext4
  0x58465342, // XFS
  0x01021994, // tmpfs
]);
const zeros = new Uint8Array(64 * 1024);

export class FolderFiles implements JournalFiles {
  readonly #mapped: boolean;

  /** Makes the folder. `mapped` false: no file as memory. @throws JournalError */
  constructor(
    private readonly folder: string,
    mapped = true,
  ) {
    this.#attempt("", () => mkdirSync(folder, { recursive: true, mode: privateFolder }));
    this.#mapped = mapped && this.#attempt("", () => inPlace.has(statfsSync(folder).type));
  }

  pathOf(name: string): string {
    return join(this.folder, name);
  }
  list(): readonly string[] {
    return this.#attempt("", () => readdirSync(this.folder));
  }
  read(name: string): Uint8Array {
    return this.#attempt(name, () => readFileSync(this.pathOf(name)));
  }
  create(name: string): Handle {
    return this.#attempt(name, () => openSync(this.pathOf(name), "wx", privateFile));
  }
  open(name: string): Handle {
    return this.#attempt(name, () => openSync(this.pathOf(name), "r+"));
  }
  map(name: string, handle: Handle, bytes: number): Uint8Array | null {
    if (!this.#mapped) return null;
    return this.#attempt(name, () => {
      const had = fstatSync(handle).size;
      // Written, not only promised: a store must find its block.
      for (let at = had; at < bytes; )
        at += writeSync(handle, zeros, 0, Math.min(zeros.byteLength, bytes - at), at);
      const memory = mappedOrNull(this.pathOf(name));
      if (memory === null) ftruncateSync(handle, had);
      return memory;
    });
  }
  write(handle: Handle, bytes: Uint8Array, position: number): void {
    this.#attempt("", () => {
      let done = 0;
      while (done < bytes.byteLength)
        done += writeSync(handle, bytes, done, bytes.byteLength - done, position + done);
    });
  }
  truncate(handle: Handle, bytes: number): void {
    this.#attempt("", () => ftruncateSync(handle, bytes));
  }
  async sync(handle: Handle): Promise<void> {
    await this.#settle((done) => fdatasync(handle, done));
  }
  close(handle: Handle): void {
    this.#attempt("", () => closeSync(handle));
  }
  rename(from: string, to: string): void {
    this.#attempt(to, () => renameSync(this.pathOf(from), this.pathOf(to)));
  }
  async syncFolder(): Promise<void> {
    const handle = this.#attempt("", () => openSync(this.folder, "r"));
    try {
      await this.#settle((done) => fsync(handle, done));
    } finally {
      closeSync(handle);
    }
  }
  remove(name: string): void {
    this.#attempt(name, () => rmSync(this.pathOf(name), { force: true }));
  }

  #settle(start: (done: (error: Error | null | undefined) => void) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      start((error) =>
        error === null || error === undefined ? resolve() : reject(journalFailure(this.folder, error)),
      );
    });
  }

  #attempt<T>(name: string, work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw journalFailure(this.pathOf(name), error);
    }
  }
}

/** null: the system has no more maps to give, and writes do as well. */
function mappedOrNull(path: string): Uint8Array | null {
  try {
    return Bun.mmap(path, { shared: true });
  } catch {
    return null;
  }
}

/** @returns a JournalError for what the system said; a programmer's mistake comes back unchanged. */
function journalFailure(path: string, error: unknown): unknown {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  if (code === "ENOSPC" || code === "EDQUOT")
    return new JournalError(
      "full",
      `no room left on the disk for ${path}; free some, nothing written is lost`,
      {
        cause: error,
      },
    );
  if (/^E[A-Z0-9]+$/.test(code))
    return new JournalError(
      "io",
      `cannot read or write ${path} (${code}); check the disk and its permissions`,
      {
        cause: error,
      },
    );
  return error;
}
