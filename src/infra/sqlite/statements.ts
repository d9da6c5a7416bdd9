/**
 * Every statement of the store, prepared once. The store takes them by name and gives them back when it closes.
 *
 * Always holds: each reads one range of one index; only `live`, `sessions` and `allowances`, which run at boot, and
 * `transcriptTotals` read more than they are asked to return.
 */
import type { Database } from "bun:sqlite";
import { limits } from "../../domain/limits.ts";
import { taskColumns, transcriptColumns } from "./rows.ts";

export function prepareStatements(db: Database) {
  const range = (where: string) =>
    db.prepare(
      `SELECT ${taskColumns} FROM tasks WHERE ${where} AND state = ? AND ordinal < ? ORDER BY ordinal DESC LIMIT ?`,
    );
  return {
    begin: db.prepare("BEGIN IMMEDIATE"),
    commit: db.prepare("COMMIT"),
    admit: db.prepare(`INSERT INTO tasks (${taskColumns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`),
    end: db.prepare(
      "UPDATE tasks SET state = ?, finished_ms = ?, end = ?, end_crc = ?, input = NULL, input_crc = NULL WHERE task_id = ? AND state IS NULL",
    ),
    watched: db.prepare("UPDATE tasks SET watched = 1 WHERE task_id = ? AND state IS NULL"),
    saveSession: db.prepare("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)"),
    removeSession: db.prepare("DELETE FROM sessions WHERE session_id = ?"),
    saveAllowance: db.prepare("INSERT OR REPLACE INTO allowances VALUES (?, ?, ?)"),
    highest: db.prepare(
      "SELECT max(ordinal) FROM (SELECT max(ordinal) AS ordinal FROM tasks UNION ALL SELECT ordinal FROM pruned)",
    ),
    live: db.prepare(`SELECT ${taskColumns} FROM tasks WHERE state IS NULL ORDER BY ordinal`),
    sessions: db.prepare("SELECT * FROM sessions ORDER BY session_id"),
    allowances: db.prepare("SELECT * FROM allowances ORDER BY key_id"),
    byId: db.prepare(`SELECT ${taskColumns} FROM tasks WHERE task_id = ?`),
    ended: range("TRUE"),
    endedOfKey: range("key_id = ?"),
    // A session belongs to one key: the filter on the key keeps strangers out, it does not make the range longer.
    endedOfSession: db.prepare(
      `SELECT ${taskColumns} FROM tasks WHERE session_id = ? AND state = ? AND ordinal < ? AND key_id = ifnull(?, key_id) ORDER BY ordinal DESC LIMIT ?`,
    ),
    noteHighest: db.prepare(
      "UPDATE pruned SET ordinal = max(ordinal, (SELECT ifnull(max(ordinal), 0) FROM tasks))",
    ),
    prune: db.prepare(
      "DELETE FROM tasks WHERE ordinal IN (SELECT ordinal FROM tasks WHERE finished_ms < ? ORDER BY finished_ms LIMIT ?)",
    ),
    keepTranscript: db.prepare(
      "INSERT INTO transcripts (artifact_id, key_id, created_ms, chars, text, text_crc) VALUES (?, ?, ?, ?, ?, ?)",
    ),
    transcripts: db.prepare(`SELECT ${transcriptColumns} FROM transcripts ORDER BY ordinal LIMIT ?`),
    transcriptAt: db.prepare(
      `SELECT ${transcriptColumns} FROM transcripts WHERE ordinal = ? AND artifact_id = ? AND key_id = ifnull(?, key_id)`,
    ),
    transcriptIds: db.prepare("SELECT artifact_id, ordinal FROM transcripts"),
    removeTranscript: db.prepare("DELETE FROM transcripts WHERE ordinal = ?"),
    transcriptTotals: db.prepare("SELECT count(*), ifnull(sum(chars), 0) FROM transcripts"),
    giveBack: db.prepare(`PRAGMA incremental_vacuum(${limits.storeGiveBackPagesMax})`),
  };
}
