/**
 * HOT. Frames of live tasks on disk before any viewer sees them: written at once where the journal can, else collected
 * from all event logs, written by one flush a tick, and shown then. Event logs call it (Ahead); the dispatcher asks at boot what an earlier process left, and its store
 * tells which tasks have settled. Composed by bootstrap.
 *
 * Always holds: a frame that a viewer saw survives `kill -9`. While the disk refuses nothing is shown and nothing is
 * lost: it is tried again, and who appends more than memory may hold gets a JournalError.
 */
import { assert } from "../domain/assert.ts";
import { limits } from "../domain/limits.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import {
  isJournalError,
  type Journal,
  type JournalError,
  type JournalRecord,
  type RecoveredLog,
} from "../ports/journal.ts";
import type { Log } from "../ports/telemetry.ts";
import type { Ahead, TaskLog } from "./event-log.ts";
import { type Told, toldBy } from "./told.ts";

const nothing = new Uint8Array(0);

export class WriteAhead implements Ahead {
  private recovered: ReadonlyMap<string, RecoveredLog> = new Map();
  private damaged = false;
  /** Logs with frames that are not written yet. */
  private unseen: TaskLog[] = [];
  private flushPending = false;
  private failure: JournalError | null = null;
  private retry: Timer | null = null;
  private compaction: Timer | null = null;
  private closed = false;

  constructor(
    private readonly journal: Journal,
    private readonly clock: Clock,
    private readonly log: Log,
    private readonly onFatal: (error: unknown) => void,
  ) {}

  /** Once, before anything else. Throws JournalError; then nothing was changed on disk. */
  recover(): void {
    const { tasks, damage } = this.journal.recover();
    this.recovered = tasks;
    this.damaged = damage.length > 0;
    for (const { file, offset, what } of damage)
      this.log.error("journal_damaged", {
        human: `${file} is damaged at byte ${offset} (${what}): tasks whose frames are missing begin again`,
      });
  }

  /**
   * What an earlier process had told of a live task; null: nothing is left of it, it begins again. Each task once,
   * before `recoveryOver`.
   */
  toldOf(taskId: string): Told | null {
    const found = this.recovered.get(taskId);
    const told = found === undefined || found.damaged ? null : toldBy(found.records);
    if (told !== null) return told;
    // Its viewers may have seen what is missing, and a later recovery must not find a part of it.
    if (found !== undefined || this.damaged)
      this.journal.append(taskId, { kind: "begin_again", seq: 0, bytes: nothing });
    return null;
  }

  /** `live`: those that have not ended. The others' records may go. */
  recoveryOver(live: (taskId: string) => boolean): void {
    for (const taskId of this.recovered.keys()) if (!live(taskId)) this.forget(taskId);
    this.recovered = new Map();
    this.flush();
  }

  append(log: TaskLog, record: JournalRecord): boolean {
    assert(!this.closed, "nothing is appended once all attempts are over");
    if (this.journal.append(log.taskId, record)) return true;
    if (!log.unseen) {
      log.unseen = true;
      this.unseen.push(log);
    }
    this.flushSoon();
    return false;
  }

  /** Its end is stored. */
  forget(taskId: string): void {
    this.journal.forget(taskId);
    this.compactLater();
  }

  sizeBytes(): number {
    return this.journal.sizeBytes();
  }

  async close(): Promise<void> {
    this.flush();
    this.closed = true;
    this.retry?.cancel();
    this.compaction?.cancel();
    await this.journal.close();
  }

  private flushSoon(): void {
    if (this.flushPending || this.failure !== null) return;
    this.flushPending = true;
    // Behind all the input of this tick: one write for everything that it brought.
    this.clock.soon(() => {
      this.flushPending = false;
      try {
        this.flush();
      } catch (error) {
        this.onFatal(error);
      }
    });
  }

  private flush(): void {
    if (this.closed) return;
    try {
      this.journal.flush();
    } catch (error) {
      if (!isJournalError(error)) throw error;
      this.failed(error);
      return;
    }
    if (this.failure !== null) this.log.info("journal_back", { human: "the journal can be written again" });
    this.failure = null;
    const shown = this.unseen;
    this.unseen = [];
    for (const log of shown) log.show();
  }

  private failed(error: JournalError): void {
    if (this.failure === null)
      this.log.error(
        "journal_unavailable",
        { human: `the journal cannot be written, streams stand still: ${error.message}` },
        error,
      );
    this.failure = error;
    this.retry?.cancel();
    this.retry = this.clock.setTimer(limits.storageRetryMs, () => {
      this.retry = null;
      this.flush();
    });
  }

  private compactLater(): void {
    if (this.closed || this.compaction !== null) return;
    this.compaction = this.clock.setTimer(limits.journalCompactEveryMs, () => {
      this.compact().then((more) => {
        this.compaction = null;
        if (more) this.compactLater();
      }, this.onFatal);
    });
  }

  /** @returns whether there is more to do */
  private async compact(): Promise<boolean> {
    try {
      for (let step = 0; step < limits.journalCompactStepsMax && !this.closed; step++)
        if (!(await this.journal.compact())) return false;
    } catch (error) {
      if (!isJournalError(error)) throw error;
      this.log.warn("journal_compaction_failed", {
        human: `room in the journal could not be given back: ${error.message}`,
      });
    }
    return true;
  }
}
