/**
 * What SQLite and the file system say when something fails, as the closed kinds of ports/task-store.ts.
 * Everything in this folder that touches the disk goes through here before an error leaves it.
 */
import { SQLiteError } from "bun:sqlite";
import { StoreError } from "../../ports/task-store.ts";

const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "";

/** SQLite could not bring a file to the disk: its pages may be gone although a second try succeeds. */
export const isFailedSync = (error: unknown): boolean => codeOf(error) === "SQLITE_IOERR_FSYNC";

/** The batch contradicts what is stored: the caller's mistake, not the disk's. */
export const isConstraint = (error: unknown): boolean => codeOf(error).startsWith("SQLITE_CONSTRAINT");

export const full = (path: string, cause: unknown): StoreError =>
  new StoreError("full", `no room left on the disk for ${path}; free some, nothing stored is lost`, {
    cause,
  });

export const io = (path: string, cause: unknown): StoreError => {
  const said = cause instanceof Error ? cause.message : String(cause);
  const message = `cannot read or write ${path} (${codeOf(cause) || said}); check the disk and its permissions`;
  return new StoreError("io", message, { cause });
};

export const locked = (path: string, cause?: unknown): StoreError =>
  new StoreError(
    "locked",
    `another process has ${path} open; stop it, or give this one its own state folder`,
    {
      cause,
    },
  );

export const newer = (path: string, found: number, known: number): StoreError =>
  new StoreError(
    "newer",
    `${path} was written by a newer version (schema ${found}, this one knows ${known}); start that version again, or move ${path} and its log away and put the copy from before the migration in its place (${path}.v*.bak)`,
  );

/** The -wal file belongs to the database: restoring one without the other would mix two histories. */
export const damaged = (path: string, what: string, cause?: unknown): StoreError =>
  new StoreError(
    "damaged",
    `${path} is damaged: ${what}; it was left as it is. Move ${path}* away, the log with it; then put a copy in its place, or start empty`,
    { cause },
  );

/**
 * @returns a StoreError for whatever the machine did; a programmer's mistake comes back unchanged.
 */
export function storeFailure(path: string, error: unknown): unknown {
  if (error instanceof StoreError) return error;
  const code = codeOf(error);
  if (code === "SQLITE_FULL" || code === "ENOSPC" || code === "EDQUOT") return full(path, error);
  if (code.startsWith("SQLITE_BUSY") || code.startsWith("SQLITE_LOCKED")) return locked(path, error);
  if (code.startsWith("SQLITE_CORRUPT") || code === "SQLITE_NOTADB" || code === "SQLITE_FORMAT")
    return damaged(path, messageOf(error), error);
  if (/^SQLITE_(IOERR|CANTOPEN|READONLY|PERM|AUTH)/.test(code)) return io(path, error);
  // Errors of node:fs carry the system's code; SQLite's others (misuse, constraint) are ours.
  if (!(error instanceof SQLiteError) && /^E[A-Z0-9]+$/.test(code)) return io(path, error);
  return error;
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
