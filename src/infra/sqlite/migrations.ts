/**
 * The schema of the database, as numbered steps that only go forward. open-database.ts applies those that a file
 * lacks, each in a transaction of its own. A step that was released never changes; a new one is added below it.
 */
import type { Database } from "bun:sqlite";

export interface Migration {
  /** `PRAGMA user_version` after it; counts from 1 without gaps. */
  readonly version: number;
  readonly apply: (db: Database) => void;
}

/**
 * What a client or a later version may want to filter by is a column; the rest is one JSON text with its CRC-32,
 * so that a flipped bit is found where SQLite's own check cannot see it. The input stands apart: it goes with the
 * end of the task, and the row keeps its place.
 *
 * Ended tasks are found by (whose, state, ordinal); a list over every state merges three such ranges, which costs
 * no further index. Live tasks are in the first index only: an admission writes the row, its id, and one entry.
 */
const firstSchema = `
  CREATE TABLE tasks (
    ordinal INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE,
    key_id TEXT NOT NULL,
    session_id TEXT,
    state TEXT CHECK (state IN ('done', 'failed', 'canceled')),
    finished_ms REAL,
    task TEXT NOT NULL,
    task_crc INTEGER NOT NULL,
    input TEXT,
    input_crc INTEGER,
    end TEXT,
    end_crc INTEGER,
    watched INTEGER NOT NULL CHECK (watched IN (0, 1)),
    CHECK ((state IS NULL) = (end IS NULL) AND (state IS NULL) = (finished_ms IS NULL)),
    CHECK ((state IS NULL) = (input IS NOT NULL))
  ) STRICT;
  CREATE INDEX tasks_live ON tasks (ordinal) WHERE state IS NULL;
  CREATE INDEX tasks_ended ON tasks (state, ordinal) WHERE state IS NOT NULL;
  CREATE INDEX tasks_of_key ON tasks (key_id, state, ordinal) WHERE state IS NOT NULL;
  CREATE INDEX tasks_of_session ON tasks (session_id, state, ordinal)
    WHERE state IS NOT NULL AND session_id IS NOT NULL;
  CREATE INDEX tasks_finished ON tasks (finished_ms) WHERE finished_ms IS NOT NULL;
  CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY,
    session TEXT NOT NULL,
    session_crc INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE allowances (
    key_id TEXT PRIMARY KEY,
    allowance TEXT NOT NULL,
    allowance_crc INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  -- On their way into the artifact store. No index by artifact_id: digests lie anywhere, and each would dirty a page of
  -- its own; the store knows the few that wait.
  CREATE TABLE transcripts (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    artifact_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    created_ms REAL NOT NULL,
    chars INTEGER NOT NULL,
    text TEXT NOT NULL,
    text_crc INTEGER NOT NULL
  ) STRICT;
  -- The highest ordinal ever forgotten: ordinals are not given twice although the newest task may be pruned.
  CREATE TABLE pruned (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    ordinal INTEGER NOT NULL
  ) STRICT;
  INSERT INTO pruned VALUES (1, 0);
`;

export const migrations: readonly Migration[] = [{ version: 1, apply: (db) => db.run(firstSchema) }];
