/**
 * The index of the artifacts as one SQLite file. bootstrap.ts opens it; services/artifacts.ts uses it.
 *
 * Always holds: nothing in it is the only copy. It is therefore not synced while it works: one that was not closed in
 * order is checked, and thrown away where the machine was started anew since (a power cut may have left any part of it
 * behind), where it is damaged, of another schema or of another store. It can be made again from the blobs. No
 * query looks at more than a page or a slice of documents.
 */
import { Database } from "bun:sqlite";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { type ArtifactKind, artifactKinds } from "../../domain/artifact.ts";
import { limits } from "../../domain/limits.ts";
import type {
  ArtifactIndex,
  FoundIndex,
  IndexEntry,
  IndexedEntry,
  IndexPage,
  IndexPlace,
  IndexQuery,
  LoosePlace,
} from "../../ports/artifact-index.ts";
import type { BlobShelf } from "../../ports/blob-store.ts";
import { readValue } from "./open-database.ts";
import { storeFailure } from "./store-failure.ts";

const schemaVersion = 2;
/** The last place, for a list that begins at the newest. */
const end: IndexPlace = { createdMs: Number.MAX_SAFE_INTEGER, ordinal: Number.MAX_SAFE_INTEGER };

const schema = `
  CREATE TABLE state (clean INTEGER NOT NULL, place TEXT NOT NULL, boot TEXT);
  INSERT INTO state VALUES (0, '', NULL);
  CREATE TABLE entries (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    shelf TEXT NOT NULL,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT,
    created_ms INTEGER NOT NULL,
    stored_ms INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    parent TEXT,
    tags TEXT NOT NULL,
    attachments TEXT NOT NULL,
    referenced INTEGER NOT NULL,
    UNIQUE (id, shelf, owner)
  );
  CREATE INDEX by_age ON entries (shelf, created_ms, ordinal);
  CREATE INDEX loose ON entries (stored_ms, ordinal) WHERE referenced = 0;
  CREATE INDEX by_owner ON entries (shelf, owner, created_ms, ordinal);
  CREATE INDEX by_owner_kind ON entries (owner, kind, created_ms, ordinal);
  CREATE INDEX by_kind ON entries (kind, created_ms, ordinal);
  CREATE TABLE tags (
    tag TEXT NOT NULL, owner TEXT NOT NULL, created_ms INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    PRIMARY KEY (tag, owner, created_ms, ordinal)
  ) WITHOUT ROWID;
  CREATE INDEX tags_of_all ON tags (tag, created_ms, ordinal);
  CREATE TABLE refs (
    target TEXT NOT NULL, source INTEGER NOT NULL,
    PRIMARY KEY (target, source)
  ) WITHOUT ROWID;
  CREATE INDEX refs_by_source ON refs (source);
  CREATE TABLE texts (ordinal INTEGER PRIMARY KEY, text TEXT NOT NULL);
  CREATE TABLE totals (shelf TEXT PRIMARY KEY, count INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
  INSERT INTO totals VALUES ('documents', 0, 0), ('attachments', 0, 0);
`;

interface Row {
  ordinal: number;
  shelf: BlobShelf;
  owner: string;
  id: string;
  kind: string | null;
  created_ms: number;
  stored_ms: number;
  size_bytes: number;
  parent: string | null;
  tags: string;
  attachments: string;
}

export interface ArtifactIndexOptions {
  /** The file; its folder is there. */
  readonly path: string;
  /** Which blobs it is the index of: that of others is of no use. */
  readonly place: string;
  /** Names this start of the machine; null: unknown, and then every end out of order counts as a power cut. */
  readonly boot?: string | null;
}

export class SqliteArtifactIndex implements ArtifactIndex {
  readonly found: FoundIndex;
  readonly path: string;
  #agrees: boolean;
  readonly #db: Database;

  /** @throws StoreError io, full, locked */
  constructor({ path, place, boot = bootId() }: ArtifactIndexOptions) {
    this.path = path;
    try {
      const { db, found } = openOrReplace(path, place, boot);
      this.#db = db;
      this.found = found;
      this.#agrees = found === "clean";
      db.run("PRAGMA synchronous = FULL");
      db.query("UPDATE state SET clean = 0, place = ?, boot = ?").run(place, boot);
      db.run("PRAGMA synchronous = OFF");
    } catch (error) {
      throw storeFailure(path, error);
    }
  }

  reconciled(): void {
    this.#agrees = true;
  }

  doubted(): void {
    this.#agrees = false;
  }

  add(entry: IndexEntry, searched: string): IndexedEntry {
    return this.#edge(() => {
      const known = this.#one(entry.shelf, entry.owner, entry.id);
      if (known === null) return this.#db.transaction(() => this.#insert(entry, searched))();
      const { storedMs } = entry;
      this.#db.query("UPDATE entries SET stored_ms = ? WHERE ordinal = ?").run(storedMs, known.ordinal);
      return { ...known, storedMs };
    });
  }

  #insert(entry: IndexEntry, searched: string): IndexedEntry {
    const { shelf, owner, id, kind, createdMs, storedMs, sizeBytes, parent, tags, attachments } = entry;
    const row = this.#db
      .query<{ ordinal: number }, (string | number | null)[]>(
        `INSERT INTO entries
           (shelf, owner, id, kind, created_ms, stored_ms, size_bytes, parent, tags, attachments, referenced)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, EXISTS (SELECT 1 FROM refs WHERE target = ?3))
         RETURNING ordinal`,
      )
      .get(
        shelf,
        owner,
        id,
        kind,
        createdMs,
        storedMs,
        sizeBytes,
        parent,
        JSON.stringify(tags),
        JSON.stringify(attachments),
      );
    const ordinal = Number(row?.ordinal);
    const tagged = this.#db.query("INSERT OR IGNORE INTO tags VALUES (?, ?, ?, ?)");
    for (const tag of tags) tagged.run(tag, owner, createdMs, ordinal);
    const refers = this.#db.query("INSERT OR IGNORE INTO refs VALUES (?, ?)");
    const hold = this.#db.query("UPDATE entries SET referenced = 1 WHERE id = ?");
    for (const target of targetsOf(entry)) {
      refers.run(target, ordinal);
      hold.run(target);
    }
    if (searched !== "") this.#db.query("INSERT INTO texts VALUES (?, ?)").run(ordinal, searched);
    this.#db
      .query("UPDATE totals SET count = count + 1, bytes = bytes + ? WHERE shelf = ?")
      .run(sizeBytes, shelf);
    return { ...entry, ordinal };
  }

  find(shelf: BlobShelf, owner: string | null, id: string): IndexedEntry | null {
    return this.#edge(() => this.#one(shelf, owner, id));
  }

  #one(shelf: BlobShelf, owner: string | null, id: string): IndexedEntry | null {
    const row =
      owner === null
        ? this.#db
            .query<Row, [string, string]>(
              "SELECT * FROM entries WHERE id = ? AND shelf = ? ORDER BY ordinal LIMIT 1",
            )
            .get(id, shelf)
        : this.#db
            .query<Row, [string, string, string]>(
              "SELECT * FROM entries WHERE id = ? AND shelf = ? AND owner = ?",
            )
            .get(id, shelf, owner);
    return row === null ? null : entryOf(row);
  }

  remove({ shelf, owner, id }: Pick<IndexEntry, "shelf" | "owner" | "id">): boolean {
    return this.#edge(() => {
      const known = this.#one(shelf, owner, id);
      if (known === null) return false;
      this.#db.transaction(() => {
        for (const table of ["entries", "texts"])
          this.#db.query(`DELETE FROM ${table} WHERE ordinal = ?`).run(known.ordinal);
        this.#db.query("DELETE FROM refs WHERE source = ?").run(known.ordinal);
        const release = this.#db.query(
          "UPDATE entries SET referenced = 0 WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM refs WHERE target = ?1)",
        );
        for (const target of targetsOf(known)) release.run(target);
        const untag = this.#db.query(
          "DELETE FROM tags WHERE tag = ? AND owner = ? AND created_ms = ? AND ordinal = ?",
        );
        for (const tag of known.tags) untag.run(tag, owner, known.createdMs, known.ordinal);
        this.#db
          .query("UPDATE totals SET count = count - 1, bytes = bytes - ? WHERE shelf = ?")
          .run(known.sizeBytes, shelf);
      })();
      return true;
    });
  }

  list({ owner, kind, tag, words, before, limit }: IndexQuery): IndexPage {
    return this.#edge(() => {
      // What no index of ours finds alone is looked for row by row, in slices.
      const searches = words.length > 0 || (tag !== null && kind !== null);
      const rowsMax = searches ? limits.artifactSearchSliceRows : limit + 1;
      const values: (string | number)[] = [];
      const bind = (value: string | number): string => `?${values.push(value)}`;
      // The words come first: their places are named in the columns.
      const texts = words.map((word) => `instr(x.text, ${bind(word)}) > 0`).join(" AND ");
      const hits = texts === "" ? [] : [`(SELECT ${texts} FROM texts x WHERE x.ordinal = e.ordinal)`];
      if (tag !== null && kind !== null) hits.push(`e.kind = ${bind(kind)}`);
      const from = tag === null ? "entries e" : "tags t CROSS JOIN entries e ON e.ordinal = t.ordinal";
      const place = tag === null ? "e" : "t";
      const where = ["e.shelf = 'documents'"];
      if (tag !== null) where.push(`t.tag = ${bind(tag)}`);
      if (owner !== null) where.push(`${place}.owner = ${bind(owner)}`);
      if (kind !== null && tag === null) where.push(`e.kind = ${bind(kind)}`);
      const { createdMs, ordinal } = before ?? end;
      where.push(`(${place}.created_ms, ${place}.ordinal) < (${bind(createdMs)}, ${bind(ordinal)})`);
      const rows = this.#db
        .query<Row & { hit: number | null }, (string | number)[]>(
          `SELECT e.*, ${hits.join(" AND ") || "1"} AS hit
           FROM ${from} WHERE ${where.join(" AND ")}
           ORDER BY ${place}.created_ms DESC, ${place}.ordinal DESC LIMIT ${bind(rowsMax)}`,
        )
        .all(...values);
      const entries: IndexedEntry[] = [];
      let seen = 0;
      for (const row of rows) {
        if (entries.length === limit) break;
        seen += 1;
        if (row.hit === 1) entries.push(entryOf(row));
      }
      const last = rows[seen - 1];
      const more = seen < rows.length || rows.length === rowsMax;
      const next = more && last !== undefined ? { createdMs: last.created_ms, ordinal: last.ordinal } : null;
      return { entries, next };
    });
  }

  loose(after: LoosePlace | null, limit: number): readonly IndexedEntry[] {
    const { storedMs, ordinal } = after ?? { storedMs: -1, ordinal: -1 };
    return this.#edge(() =>
      this.#db
        .query<Row, [number, number, number]>(
          `SELECT * FROM entries WHERE referenced = 0 AND (stored_ms, ordinal) > (?, ?)
           ORDER BY stored_ms, ordinal LIMIT ?`,
        )
        .all(storedMs, ordinal, limit)
        .map(entryOf),
    );
  }

  isReferenced(id: string): boolean {
    return this.#edge(() => this.#db.query("SELECT 1 FROM refs WHERE target = ? LIMIT 1").get(id) !== null);
  }

  walk(afterOrdinal: number, limit: number): readonly IndexedEntry[] {
    return this.#edge(() =>
      this.#db
        .query<Row, [number, number]>("SELECT * FROM entries WHERE ordinal > ? ORDER BY ordinal LIMIT ?")
        .all(afterOrdinal, limit)
        .map(entryOf),
    );
  }

  totals(): { documents: number; attachments: number; bytes: number } {
    return this.#edge(() => {
      const sum = { documents: 0, attachments: 0, bytes: 0 };
      const rows = this.#db
        .query<{ shelf: BlobShelf; count: number; bytes: number }, []>("SELECT * FROM totals")
        .all();
      for (const { shelf, count, bytes } of rows) {
        sum[shelf] = count;
        sum.bytes += bytes;
      }
      return sum;
    });
  }

  close(): void {
    this.#edge(() => {
      this.#db.run("PRAGMA synchronous = FULL");
      this.#db.run("PRAGMA wal_checkpoint(TRUNCATE)");
      if (this.#agrees) this.#db.run("UPDATE state SET clean = 1");
      this.#db.close();
    });
  }

  #edge<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      // What failed here may have happened to the blobs already.
      this.#agrees = false;
      throw storeFailure(this.path, error);
    }
  }
}

function openOrReplace(
  path: string,
  place: string,
  boot: string | null,
): { db: Database; found: FoundIndex } {
  try {
    const found = openIfSound(path, place, boot);
    if (found !== null) return found;
  } catch (error) {
    // Somebody else has it, or the disk does not work: nothing is wrong with the file.
    if (/^SQLITE_(BUSY|LOCKED|IOERR|FULL|CANTOPEN|READONLY|PERM)/.test(codeOf(error))) throw error;
  }
  for (const suffix of ["", "-wal", "-shm", "-journal"]) rmSync(`${path}${suffix}`, { force: true });
  const db = openFile(path);
  db.run("BEGIN IMMEDIATE");
  for (const statement of schema.split(";")) if (statement.trim() !== "") db.run(statement);
  db.run(`PRAGMA user_version = ${schemaVersion}`);
  db.run("COMMIT");
  return { db, found: "new" };
}

/** Null: another schema, another store's, damaged, or not synced before the machine went down. */
function openIfSound(
  path: string,
  place: string,
  boot: string | null,
): { db: Database; found: FoundIndex } | null {
  const db = openFile(path);
  try {
    if (Number(readValue(db, "PRAGMA user_version")) === schemaVersion) {
      const state = db
        .query<{ clean: number; place: string; boot: string | null }, []>("SELECT * FROM state")
        .get();
      if (state?.place === place) {
        if (state.clean === 1) return { db, found: "clean" };
        if (boot !== null && state.boot === boot && readValue(db, "PRAGMA quick_check(1)") === "ok")
          return { db, found: "behind" };
      }
    }
  } catch (error) {
    db.close();
    throw error;
  }
  db.close();
  return null;
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

const targetsOf = ({ parent, attachments }: Pick<IndexEntry, "parent" | "attachments">): readonly string[] =>
  parent === null ? attachments : [parent, ...attachments];

function openFile(path: string): Database {
  // SQLite gives its log the mode of the file, and would make the file itself readable by everybody.
  if (!existsSync(path)) writeFileSync(path, "", { mode: 0o600, flag: "wx" });
  const db = new Database(path, { readwrite: true, create: true, strict: true });
  db.run("PRAGMA locking_mode = EXCLUSIVE");
  db.run("PRAGMA journal_mode = WAL");
  db.run("PRAGMA trusted_schema = OFF");
  return db;
}

const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "";

const kindOf = (text: string | null): ArtifactKind | null =>
  artifactKinds.find((kind) => kind === text) ?? null;

const entryOf = (row: Row): IndexedEntry => ({
  ordinal: row.ordinal,
  shelf: row.shelf,
  owner: row.owner,
  id: row.id,
  kind: kindOf(row.kind),
  createdMs: row.created_ms,
  storedMs: row.stored_ms,
  sizeBytes: row.size_bytes,
  parent: row.parent,
  tags: JSON.parse(row.tags) as string[],
  attachments: JSON.parse(row.attachments) as string[],
});
