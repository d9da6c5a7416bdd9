/**
 * The event logs of tasks that ended long ago or in another process, made again from their transcripts: their streams
 * can be shown, and resumed, as if the log had been kept. Asked by the routes of tasks.
 *
 * Always holds: the bytes of every event are those that were sent; the logs it keeps for who asks next are bounded.
 */
import { assert } from "../domain/assert.ts";
import { isOrchestratorError, OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import { isTerminal } from "../domain/task.ts";
import { eventsOf, readTranscript } from "../domain/transcript-reading.ts";
import type { Artifact, ArtifactCaller } from "./artifacts.ts";
import { type LogAccount, TaskLog } from "./event-log.ts";
import type { TaskRecord } from "./task-registry.ts";

/** @throws NOT_FOUND, UNTRUSTED_ARTIFACT, STORAGE_UNAVAILABLE */
export type ReadArtifact = (caller: ArtifactCaller, id: string) => Promise<Artifact>;

export class EndedStreams {
  /** The one that was asked for longest ago comes first. */
  readonly #logs = new Map<string, TaskLog>();
  readonly #account: LogAccount = { bytes: 0 };

  constructor(private readonly read: ReadArtifact) {}

  /**
   * The record with a log that can be read: its own, or the one of its transcript.
   * @throws NOT_FOUND where no transcript tells the events any more; what reading an artifact throws
   */
  async withLog(record: TaskRecord): Promise<TaskRecord> {
    if (record.log.sealed || !isTerminal(record.state)) return record;
    const { artifactId } = record;
    if (artifactId === null) throw gone("it left no transcript (artifacts.transcripts)");
    const known = this.#logs.get(artifactId);
    const log = known ?? (await this.#rebuilt(record, artifactId));
    this.#remember(artifactId, log);
    return { ...record, log };
  }

  async #rebuilt({ spec }: TaskRecord, artifactId: string): Promise<TaskLog> {
    const { document } = await this.read({ keyId: spec.keyId, admin: false }, artifactId).catch(
      (error: unknown) => {
        if (isOrchestratorError(error) && error.code === "NOT_FOUND")
          throw gone("its transcript is no longer kept");
        throw error;
      },
    );
    const transcript = readTranscript(document.content);
    if (transcript === null) throw gone("its transcript was written by another version");
    const events = eventsOf(transcript, artifactId);
    if (events === null)
      throw gone(
        transcript.policy === "redacted" ? "its transcript is redacted" : "its transcript leaves some out",
      );
    const log = new TaskLog(this.#account, spec.taskId);
    for (const event of events) {
      if (event.type === "token") log.appendToken(event.t);
      else if (event.type === "started" || event.type === "metrics") log.append(event);
      else log.seal(event, false);
    }
    assert(log.sealed, "the events of a transcript end with the last one");
    return log;
  }

  #remember(artifactId: string, log: TaskLog): void {
    const other = this.#logs.get(artifactId);
    // Two who asked at once have made one each.
    if (other !== undefined && other !== log) this.#account.bytes -= other.bytes;
    this.#logs.delete(artifactId);
    this.#logs.set(artifactId, log);
    for (const [id, oldest] of this.#logs) {
      if (this.#account.bytes <= limits.rebuiltLogBytesMax) return;
      this.#logs.delete(id);
      // Whoever still reads it keeps it alive; only nobody finds it any more.
      this.#account.bytes -= oldest.bytes;
    }
  }
}

const gone = (why: string): OrchestratorError =>
  new OrchestratorError(
    "NOT_FOUND",
    `the events of this task are no longer kept: ${why}; GET /v1/tasks/{id} still tells how it ended`,
  );
