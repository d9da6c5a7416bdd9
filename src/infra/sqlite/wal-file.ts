/**
 * Brings the write-ahead log to the disk, and from there into the database. Owned by the store.
 *
 * SQLite's `synchronous = FULL` calls fsync on the log after each commit, on the thread that commits. NORMAL leaves
 * out exactly that one and keeps the others: the log before a checkpoint, the database after it, the log's header
 * when it is used anew (https://www.sqlite.org/pragma.html#pragma_synchronous and https://www.sqlite.org/wal.html,
 * "Performance Considerations"). Made up for here, on another thread and once for many commits, it gives the same
 * promise: a commit whose sync has ended survives a power cut. The one other thing that FULL does in `walFrames`
 * (wal.c), filling the last sector with copies of the last frame, it does only where overwriting a sector may tear its
 * neighbours; SQLite on Linux takes it that this does not happen (SQLITE_POWERSAFE_OVERWRITE is 1 by default).
 *
 * fdatasync is enough: it writes the length of the file with its data. The log is one file for as long as the connection
 * lives (SQLite keeps it open, starts it anew in place, and unlinks it when it closes); its descriptor is taken after
 * SQLite has made it, and its entry in the folder is synced then. SQLite puts no locks on the log, so closing this
 * descriptor gives up none.
 *
 * Always holds: a log that somebody has unlinked or replaced fails the sync, it never passes for durable.
 */
import type { Database, Statement } from "bun:sqlite";
import { closeSync, fdatasync, fstatSync, openSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { assert } from "../../domain/assert.ts";
import type { StoreError } from "../../ports/task-store.ts";
import { readValue, syncFile } from "./open-database.ts";
import { io, storeFailure } from "./store-failure.ts";

export class WalFile {
  readonly #path: string;
  readonly #fd: number;
  readonly #look: Statement;
  readonly #checkpoint: Statement;
  readonly #pageBytes: number;

  /** @throws StoreError */
  constructor(
    private readonly db: Database,
    databasePath: string,
  ) {
    this.#path = `${databasePath}-wal`;
    this.#pageBytes = Number(readValue(db, "PRAGMA page_size"));
    this.#look = db.prepare("PRAGMA wal_checkpoint(NOOP)");
    this.#checkpoint = db.prepare("PRAGMA wal_checkpoint(PASSIVE)");
    try {
      this.#fd = openSync(this.#path, "r");
      // What the last process wrote without living to sync it: it will be told as recovered, so it has to last.
      syncFile(this.#path);
      syncFile(dirname(databasePath));
    } catch (error) {
      throw storeFailure(this.#path, error);
    }
  }

  /** Off the event loop's thread. */
  sync(done: (failure: StoreError | null) => void): void {
    fdatasync(this.#fd, (error) => {
      if (error !== null && error !== undefined) done(storeFailure(this.#path, error) as StoreError);
      else done(this.#replaced());
    });
  }

  #replaced(): StoreError | null {
    if (fstatSync(this.#fd).nlink > 0) return null;
    return io(this.#path, new Error("somebody removed it while it was in use"));
  }

  /** Bytes that wait to be moved into the database; the file itself keeps its length when it starts anew. */
  waitingBytes(): number {
    const [busy, frames, moved] = (this.#look.values()[0] ?? []) as readonly unknown[];
    assert(busy === 0 && typeof frames === "number" && typeof moved === "number", "the log can be looked at");
    return Math.max(0, frames - moved) * this.#pageBytes;
  }

  /** Blocks for as long as the database takes to be synced. */
  moveIntoDatabase(): void {
    this.#checkpoint.values();
  }

  fileBytes(): number {
    return fstatSync(this.#fd).size;
  }

  /** The descriptor only; the log stays as it is. */
  abandon(): void {
    this.#look.finalize();
    this.#checkpoint.finalize();
    closeSync(this.#fd);
  }

  /** Before the connection closes. */
  close(): void {
    this.#look.finalize();
    this.#checkpoint.finalize();
    try {
      this.db.query("PRAGMA wal_checkpoint(TRUNCATE)").values();
    } finally {
      closeSync(this.#fd);
    }
  }
}

/** Without opening it: see open-database.ts. */
export const databaseBytes = (path: string): number => statSync(path).size;
