/**
 * The task store over one SQLite file. Made by app/bootstrap.ts, written by the dispatcher's turn.
 *
 * Always holds: a batch is one transaction that is in the kernel's hands when `write` returns, so the death of the
 * process loses nothing; no call waits for the disk except `close` and the checkpoint, whose work is bounded by
 * the size of the log; after a failed sync the store takes nothing more, since it could not keep it.
 */
import type { Database, Statement } from "bun:sqlite";
import { join } from "node:path";
import { assert, assertNever } from "../../domain/assert.ts";
import { limits } from "../../domain/limits.ts";
import type { TerminalState } from "../../domain/task.ts";
import {
  isStoreError,
  type NewTranscript,
  type Recovered,
  type StoredTask,
  type StoredTaskQuery,
  type StoredTranscript,
  type StoreError,
  type StoreOp,
  type TaskStore,
} from "../../ports/task-store.ts";
import { GroupSync } from "./group-sync.ts";
import { type Migration, migrations as released } from "./migrations.ts";
import { openDatabase, rollBack } from "./open-database.ts";
import {
  decodeAllowance,
  decodeSession,
  decodeTask,
  decodeTranscript,
  encodeAllowance,
  encodeEnd,
  encodeSession,
  encodeTask,
  isDamagedRow,
} from "./rows.ts";
import { prepareStatements } from "./statements.ts";
import { damaged, isConstraint, isFailedSync, messageOf, storeFailure } from "./store-failure.ts";
import { databaseBytes, WalFile } from "./wal-file.ts";

export interface SqliteTaskStoreOptions {
  /** A folder that exists; nobody else uses it. */
  readonly stateDir: string;
  /** What `synced` promises to survive: a power cut, or the end of the process only. */
  readonly durability: "power" | "process";
  /** A checkpoint failed; the log goes on growing until a later one succeeds. */
  readonly onTrouble?: (error: StoreError) => void;
  /** Pages of 4 KiB that the database may have; null: as many as the disk holds. */
  readonly pagesMax?: number | null;
  readonly migrations?: readonly Migration[];
}

const fileName = "orchestratord.db";
const endedStates: readonly TerminalState[] = ["done", "failed", "canceled"];

/**
 * Connections whose log could not be brought to the disk. Closing one would copy the log into the database from
 * pages that the kernel may have lost, without looking at their checksums; the next start reads the log with care. So
 * they stay open for the rest of the process, which has not long to live.
 */
const abandoned: Database[] = [];

export class SqliteTaskStore implements TaskStore {
  readonly #path: string;
  readonly #db: Database;
  readonly #wal: WalFile;
  readonly #sync: GroupSync;
  readonly #statements: ReturnType<typeof prepareStatements>;
  readonly #options: SqliteTaskStoreOptions;
  #recovered = false;
  /** By artifact id; read when it is first asked for. */
  #transcriptOrdinals: Map<string, number> | null = null;
  #closed = false;
  #maintenanceDue = false;
  /** After a checkpoint that failed the next one waits until the log has grown by its bound again. */
  #checkpointAtBytes: number = limits.storeWalBytes;

  /** @throws StoreError: damaged, newer, locked, full, io */
  constructor(options: SqliteTaskStoreOptions) {
    this.#options = options;
    this.#path = join(options.stateDir, fileName);
    this.#db = openDatabase(this.#path, options.migrations ?? released);
    try {
      if (options.pagesMax != null) this.#db.run(`PRAGMA max_page_count = ${options.pagesMax}`);
      this.#statements = prepareStatements(this.#db);
      this.#wal = new WalFile(this.#db, this.#path);
    } catch (error) {
      this.#db.close();
      throw storeFailure(this.#path, error);
    }
    this.#sync = new GroupSync(
      (done) => this.#wal.sync(done),
      (again) => this.#maintain(again),
    );
  }

  recover(): Recovered {
    this.#assertOpen();
    assert(!this.#recovered, "recovery happens once, before the first write");
    this.#recovered = true;
    return this.#guard(() => {
      const { highest, live, sessions, allowances } = this.#statements;
      return {
        ordinal: Number(highest.values()[0]?.[0] ?? 0),
        live: live.values().map(decodeTask),
        sessions: sessions.values().map(decodeSession),
        allowances: allowances.values().map(decodeAllowance),
      };
    });
  }

  write(batch: readonly StoreOp[]): void {
    this.#assertOpen();
    this.#recovered = true;
    if (batch.length === 0) return;
    const [only] = batch;
    // One statement is a transaction by itself, and a third cheaper without BEGIN and COMMIT around it.
    if (batch.length === 1 && only !== undefined && statementsOf(only) === 1)
      this.#changing(() => this.#apply(only));
    else
      this.#transaction(() => {
        for (const op of batch) this.#apply(op);
      });
  }

  synced(): Promise<void> {
    this.#assertOpen();
    if (this.#sync.failure !== null) return Promise.reject(this.#sync.failure);
    return this.#options.durability === "process" ? Promise.resolve() : this.#sync.request();
  }

  find(taskId: string): StoredTask | null {
    this.#assertOpen();
    return this.#guard(() => {
      const row = this.#statements.byId.values(taskId)[0];
      return row === undefined ? null : decodeTask(row);
    });
  }

  list(query: StoredTaskQuery): readonly StoredTask[] {
    this.#assertOpen();
    assert(query.limit > 0, "a page has room");
    const states = query.state === null ? endedStates : [query.state];
    return this.#guard(() =>
      states
        .flatMap((state) => this.#ended(query, state))
        .sort((a, b) => Number(b[0]) - Number(a[0]))
        .slice(0, query.limit)
        .map(decodeTask),
    );
  }

  /** One range of one index. */
  #ended({ keyId, sessionId, before, limit }: StoredTaskQuery, state: TerminalState): unknown[][] {
    const { ended, endedOfKey, endedOfSession } = this.#statements;
    const below = before ?? Number.MAX_SAFE_INTEGER;
    if (sessionId !== null) return endedOfSession.values(sessionId, state, below, keyId, limit);
    if (keyId !== null) return endedOfKey.values(keyId, state, below, limit);
    return ended.values(state, below, limit);
  }

  prune(finishedBeforeMs: number, max: number): number {
    this.#assertOpen();
    assert(max > 0, "a call may do something");
    let forgotten = 0;
    this.#transaction(() => {
      const { noteHighest, prune } = this.#statements;
      noteHighest.run();
      forgotten = prune.run(finishedBeforeMs, max).changes;
    });
    if (forgotten > 0) this.#guard(() => this.#statements.giveBack.values());
    return forgotten;
  }

  transcripts(limit: number): readonly StoredTranscript[] {
    this.#assertOpen();
    assert(limit > 0, "a page has room");
    return this.#guard(() => this.#statements.transcripts.values(limit).map(decodeTranscript));
  }

  findTranscript(artifactId: string, keyId: string | null): StoredTranscript | null {
    this.#assertOpen();
    return this.#guard(() => {
      const ordinal = this.#transcriptsKnown().get(artifactId);
      if (ordinal === undefined) return null;
      const row = this.#statements.transcriptAt.values(ordinal, artifactId, keyId)[0];
      return row === undefined ? null : decodeTranscript(row);
    });
  }

  removeTranscripts(ordinals: readonly number[]): void {
    this.#assertOpen();
    if (ordinals.length === 0) return;
    this.#transaction(() => {
      for (const ordinal of ordinals) this.#statements.removeTranscript.run(ordinal);
    });
    const gone = new Set(ordinals);
    const known = this.#guard(() => this.#transcriptsKnown());
    for (const [artifactId, ordinal] of known) {
      // In the order in which they came: those that go are at the front, mostly.
      if (gone.size === 0) break;
      if (gone.delete(ordinal)) known.delete(artifactId);
    }
  }

  /** Where each transcript that waits stands; one whose transaction was rolled back may be named, and is not there. */
  #transcriptsKnown(): Map<string, number> {
    this.#transcriptOrdinals ??= new Map(
      this.#statements.transcriptIds.values().map(([id, ordinal]) => [String(id), Number(ordinal)]),
    );
    return this.#transcriptOrdinals;
  }

  transcriptTotals(): { readonly count: number; readonly chars: number } {
    this.#assertOpen();
    return this.#guard(() => {
      const [count, chars] = this.#statements.transcriptTotals.values()[0] ?? [];
      return { count: Number(count), chars: Number(chars) };
    });
  }

  sizeBytes(): number {
    this.#assertOpen();
    return databaseBytes(this.#path) + this.#wal.fileBytes();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    if (this.#sync.failure === null) {
      try {
        await this.#sync.request();
      } catch (error) {
        // Whoever waited for it has been told.
        assert(isStoreError(error), `a sync fails as a store error: ${messageOf(error)}`);
      }
    }
    if (this.#closed) return;
    this.#closed = true;
    for (const statement of Object.values(this.#statements)) statement.finalize();
    if (this.#sync.failure !== null) {
      this.#wal.abandon();
      abandoned.push(this.#db);
      return;
    }
    try {
      this.#guard(() => this.#wal.close());
    } finally {
      this.#db.close();
    }
  }

  #apply(op: StoreOp): void {
    const { admit, end, saveSession, removeSession, saveAllowance } = this.#statements;
    switch (op.kind) {
      case "task_admitted":
        this.#admit(op.task, admit);
        return;
      case "task_ended": {
        const { text, crc } = encodeEnd(op.end);
        const { changes } = end.run(op.end.state, op.end.finishedMs, text, crc, op.taskId);
        assert(changes === 1, `task ${op.taskId} was live`);
        if (op.transcript !== undefined) this.#keep(op.transcript);
        return;
      }
      case "task_watched":
        this.#statements.watched.run(op.taskId);
        return;
      case "session_saved": {
        const { text, crc } = encodeSession(op.session);
        saveSession.run(op.session.sessionId, text, crc);
        return;
      }
      case "session_removed":
        removeSession.run(op.sessionId);
        return;
      case "allowance_saved": {
        const { text, crc } = encodeAllowance(op.allowance);
        saveAllowance.run(op.allowance.keyId, text, crc);
        return;
      }
      default:
        assertNever(op, "operation of the store");
    }
  }

  #admit(stored: StoredTask, admit: Statement): void {
    const { ordinal, ended, spec } = stored;
    const { task, input } = encodeTask(stored);
    const end = ended === null ? null : encodeEnd(ended);
    const given = ended === null ? input : null;
    admit.run(
      ordinal,
      spec.taskId,
      spec.keyId,
      spec.sessionId,
      ended?.state ?? null,
      ended?.finishedMs ?? null,
      task.text,
      task.crc,
      given?.text ?? null,
      given?.crc ?? null,
      end?.text ?? null,
      end?.crc ?? null,
      stored.watched ? 1 : 0,
    );
  }

  #keep({ artifactId, keyId, createdMs, text }: NewTranscript): void {
    const crc = Bun.hash.crc32(text);
    const known = this.#transcriptsKnown();
    const { lastInsertRowid } = this.#statements.keepTranscript.run(
      ...[artifactId, keyId, createdMs, text.length, text, crc],
    );
    known.set(artifactId, Number(lastInsertRowid));
  }

  #transaction(body: () => void): void {
    const { begin, commit } = this.#statements;
    this.#changing(() => {
      begin.run();
      try {
        body();
        commit.run();
      } catch (error) {
        rollBack(this.#db, error);
        throw error;
      }
    });
  }

  /** All of it or nothing, one transaction. */
  #changing(body: () => void): void {
    if (this.#sync.failure !== null) throw this.#sync.failure;
    this.#guard(body);
    this.#sync.noteWrite();
    this.#planMaintenance();
  }

  /** A turn that asks for no sync leaves a log to look after all the same. */
  #planMaintenance(): void {
    if (this.#maintenanceDue) return;
    this.#maintenanceDue = true;
    setImmediate(() => {
      this.#maintenanceDue = false;
      if (!this.#closed && !this.#sync.running) this.#maintain(false);
    });
  }

  /** The log is moved into the database when nobody waits; far above its bound also when somebody does. */
  #maintain(waitedFor: boolean): void {
    if (this.#closed || this.#sync.failure !== null) return;
    try {
      const waiting = this.#wal.waitingBytes();
      const bound = waitedFor ? limits.storeWalBusyFactor * this.#checkpointAtBytes : this.#checkpointAtBytes;
      if (waiting < bound) return;
      this.#checkpointAtBytes = waiting + limits.storeWalBytes;
      this.#wal.moveIntoDatabase();
      this.#checkpointAtBytes = limits.storeWalBytes;
    } catch (error) {
      const failure = this.#noted(error);
      if (!isStoreError(failure)) throw failure;
      this.#options.onTrouble?.(failure);
    }
  }

  #guard<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw this.#noted(error);
    }
  }

  #noted(error: unknown): unknown {
    assert(!isConstraint(error), `a batch agrees with what is stored: ${messageOf(error)}`);
    const failure = isDamagedRow(error)
      ? damaged(this.#path, messageOf(error), error)
      : storeFailure(this.#path, error);
    if (isFailedSync(error) && isStoreError(failure)) this.#sync.fail(failure);
    return failure;
  }

  #assertOpen(): void {
    assert(!this.#closed, "the store is open");
  }
}

const statementsOf = (op: StoreOp): number =>
  op.kind === "task_ended" && op.transcript !== undefined ? 2 : 1;
