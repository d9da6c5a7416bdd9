/**
 * Opens the database file, or says why not. Called by the store, once.
 *
 * Always holds: a file that is refused (damaged, newer, locked) is left byte for byte as it was; a new database
 * appears under its name whole or not at all, so an empty file is damage and never a fresh start; before a
 * migration there is a copy. While it is open no other process can use it.
 *
 * While SQLite has the database file open, nothing opens it by other means: closing any descriptor of a file gives up
 * the POSIX locks that the process holds on it (https://www.sqlite.org/howtocorrupt.html, section 2.2).
 */
import { Database, SQLiteError } from "bun:sqlite";
import {
  chmodSync,
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { assert } from "../../domain/assert.ts";
import { limits } from "../../domain/limits.ts";
import type { Migration } from "./migrations.ts";
import { damaged, isFailedSync, messageOf, newer, storeFailure } from "./store-failure.ts";

/** "orch" in ASCII: another program's database is not taken for ours. */
const applicationId = 0x6f726368;
const fileMode = 0o600;

/** @throws StoreError */
export function openDatabase(path: string, migrations: readonly Migration[]): Database {
  assert(migrations.length > 0, "there is a first schema");
  assert(
    migrations.every(({ version }, at) => version === at + 1),
    "schema versions count without gaps",
  );
  try {
    if (!existsSync(path)) create(path, migrations);
    else inspect(path, migrations);
    return openForWork(path, migrations);
  } catch (error) {
    throw storeFailure(path, error);
  }
}

/** Reads one value of a pragma or query. */
export function readValue(db: Database, sql: string): unknown {
  return db.query(sql).values()[0]?.[0];
}

/** Made whole under another name first. */
function create(path: string, migrations: readonly Migration[]): void {
  if (existsSync(`${path}-wal`))
    throw damaged(path, `the file itself is missing, but its log ${path}-wal is there`);
  const draft = `${path}.new`;
  for (const suffix of ["", "-wal", "-shm", "-journal"]) rmSync(`${draft}${suffix}`, { force: true });
  writeFileSync(draft, "", { mode: fileMode, flag: "wx" });
  const db = new Database(draft, { readwrite: true, create: false });
  try {
    // Only an empty database can be told that it shall give pages back.
    db.run("PRAGMA auto_vacuum = INCREMENTAL");
    db.run(`PRAGMA application_id = ${applicationId}`);
    db.run("PRAGMA journal_mode = WAL");
    migrate(db, migrations);
  } finally {
    db.close(true);
  }
  syncFile(draft);
  renameSync(draft, path);
  syncFile(dirname(path));
}

/**
 * Looks at an existing file over a connection that cannot write, so that not even closing it (which moves the
 * log into the database) changes what is there.
 */
function inspect(path: string, migrations: readonly Migration[]): void {
  let db = new Database(path, { readonly: true });
  try {
    readValue(db, "PRAGMA user_version");
    // Not in use, so reading it past SQLite takes nobody's lock.
    db.close();
    refuseForeignLog(path);
    db = new Database(path, { readonly: true });
    const version = Number(readValue(db, "PRAGMA user_version"));
    const id = Number(readValue(db, "PRAGMA application_id"));
    if (id !== applicationId) throw damaged(path, "it is not a database of orchestratord");
    if (version > migrations.length) throw newer(path, version, migrations.length);
    if (version < 1) throw damaged(path, `it has no schema version (${version})`);
    if (schemaOf(db) !== schemaAfter(migrations.slice(0, version)))
      throw damaged(path, `its tables are not those of schema ${version}`);
    // The one that also compares every index with its table: a task missing there would be lost in silence.
    const verdict = readValue(db, "PRAGMA integrity_check(1)");
    if (verdict !== "ok") throw damaged(path, String(verdict));
  } catch (error) {
    const failure = storeFailure(path, error);
    // A file that ends too early, or a schema that SQLite cannot make sense of.
    if (error instanceof SQLiteError && (failure === error || error.code === "SQLITE_IOERR_SHORT_READ"))
      throw damaged(path, messageOf(error), error);
    throw failure;
  } finally {
    db.close();
  }
}

/**
 * A database that keeps a log says so in its header; a copy made by VACUUM INTO says that it has none. SQLite would
 * still read a log that lies beside it, left by the file that the copy has replaced.
 */
function refuseForeignLog(path: string): void {
  if ((statSync(`${path}-wal`, { throwIfNoEntry: false })?.size ?? 0) === 0) return;
  const header = Buffer.alloc(20);
  const fd = openSync(path, "r");
  try {
    readSync(fd, header, 0, header.length, 0);
  } finally {
    closeSync(fd);
  }
  // The "file format write version" (https://www.sqlite.org/fileformat.html, section 1.3): 1 without a log, 2 with.
  if (header[18] === 1)
    throw damaged(path, `the log ${path}-wal beside it is of another file; move that away`);
}

const schemaOf = (db: Database): string =>
  JSON.stringify(db.query("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name").values());

function schemaAfter(steps: readonly Migration[]): string {
  const db = new Database(":memory:");
  try {
    migrate(db, steps);
    return schemaOf(db);
  } finally {
    db.close(true);
  }
}

function openForWork(path: string, migrations: readonly Migration[]): Database {
  chmodSync(path, fileMode);
  const db = new Database(path, { readwrite: true, create: false, strict: true });
  try {
    // Kept in this process: no shared-memory file, no locking per transaction, and nobody else gets in.
    db.run("PRAGMA locking_mode = EXCLUSIVE");
    const mode = readValue(db, "PRAGMA journal_mode = WAL");
    assert(mode === "wal", `the journal is a write-ahead log: ${String(mode)}`);
    db.run("PRAGMA synchronous = NORMAL");
    db.run("PRAGMA foreign_keys = ON");
    db.run("PRAGMA trusted_schema = OFF");
    db.run("PRAGMA cell_size_check = ON");
    db.run("PRAGMA temp_store = MEMORY");
    db.run("PRAGMA wal_autocheckpoint = 0");
    db.run(`PRAGMA cache_size = -${limits.storeCacheBytes / 1024}`);
    // A log that had to grow is cut when it starts anew.
    db.run(`PRAGMA journal_size_limit = ${2 * limits.storeWalBytes}`);
    db.run("BEGIN EXCLUSIVE");
    db.run("COMMIT");
    // Left by the look at the file; it is for connections that share.
    rmSync(`${path}-shm`, { force: true });
    const version = Number(readValue(db, "PRAGMA user_version"));
    if (version < migrations.length) {
      backUp(db, path, version);
      migrate(db, migrations.slice(version));
    }
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

/** A consistent copy of everything committed, under its final name only once it is whole. */
function backUp(db: Database, path: string, version: number): void {
  const copy = `${path}.v${version}.bak`;
  const draft = `${copy}.new`;
  rmSync(draft, { force: true });
  writeFileSync(draft, "", { mode: fileMode, flag: "wx" });
  try {
    // SQLite writes into an empty file that is there, and so keeps its mode.
    db.query("VACUUM INTO ?").run(draft);
    syncFile(draft);
    renameSync(draft, copy);
    syncFile(dirname(path));
  } catch (error) {
    rmSync(draft, { force: true });
    throw error;
  }
}

function migrate(db: Database, steps: readonly Migration[]): void {
  for (const { version, apply } of steps) {
    db.run("BEGIN IMMEDIATE");
    try {
      apply(db);
      db.run(`PRAGMA user_version = ${version}`);
      db.run("COMMIT");
    } catch (error) {
      rollBack(db, error);
      throw error;
    }
  }
}

/** SQLite ends the transaction itself after some errors (disk full, I/O), after others it does not. */
export function rollBack(db: Database, cause: unknown): void {
  if (!db.inTransaction) return;
  try {
    db.run("ROLLBACK");
  } catch (error) {
    assert(!db.inTransaction || isFailedSync(cause), `a transaction can be undone: ${messageOf(error)}`);
  }
}

/** A file's content or, of a folder, its entries: blocks until they are on the disk. */
export function syncFile(path: string): void {
  const fd = openSync(path, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
