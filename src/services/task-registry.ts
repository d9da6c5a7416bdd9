/**
 * The records of all tasks that are live or ended lately, and who may see them. Mutated in the dispatcher's
 * turn (state, times, end) and by the attempt runner (progress of its own attempt); read by the API.
 *
 * Always holds: a task id stands for one record; ended records are bounded in number, age and log bytes, the
 * oldest ended go first; a record with an open viewer keeps its log.
 */
import { assert } from "../domain/assert.ts";
import type { ErrorCode } from "../domain/errors.ts";
import type { EmbeddingResult, RerankResult } from "../domain/events.ts";
import { limits } from "../domain/limits.ts";
import type { Prediction } from "../domain/predictor.ts";
import { isTerminal, type TaskSpec, type TaskState } from "../domain/task.ts";
import { type LogAccount, TaskLog } from "./event-log.ts";

/** What an attempt brought: what the terminal event tells and the predictor learns from. */
export interface AttemptResult {
  readonly finishReason: "stop" | "length";
  readonly tokensIn: number;
  readonly tokensCached: number;
  readonly tokensOut: number;
  readonly promptMs: number;
  readonly decodeMs: number;
  readonly result: EmbeddingResult | RerankResult | null;
}

export interface TaskRecord {
  readonly spec: TaskSpec;
  /** Order of admission; pages of a list go by it. */
  readonly ordinal: number;
  readonly log: TaskLog;
  readonly createdMs: number;
  /** What was promised at admission. */
  readonly promise: Prediction;
  readonly expectedTokensOut: number;
  state: TaskState;
  attempts: number;
  replicaId: string | null;
  engineVersion: string;
  startedMs: number | null;
  firstTokenMs: number | null;
  finishedMs: number | null;
  /** Exact once an engine has counted. */
  tokensIn: number | null;
  tokensOut: number;
  kvWarmth: boolean;
  finishReason: "stop" | "length" | null;
  error: { readonly code: ErrorCode; readonly message: string } | null;
  /** Viewers that count for on_disconnect. */
  watchers: number;
}

export interface ListQuery {
  readonly keyId: string | null;
  readonly state: TaskState | null;
  readonly sessionId: string | null;
  /** Only records admitted before this ordinal. */
  readonly before: number | null;
  readonly limit: number;
}

export class TaskRegistry {
  private readonly records = new Map<string, TaskRecord>();
  /** Ended tasks in the order of their end. */
  private readonly ended = new Set<TaskRecord>();
  private ordinals = 0;
  readonly account: LogAccount = { bytes: 0 };

  constructor(private readonly retentionMs: number) {}

  get size(): number {
    return this.records.size;
  }
  get live(): number {
    return this.records.size - this.ended.size;
  }

  find(taskId: string): TaskRecord | null {
    return this.records.get(taskId) ?? null;
  }

  get(taskId: string): TaskRecord {
    const record = this.records.get(taskId);
    assert(record !== undefined, `task ${taskId} has a record`);
    return record;
  }

  add(spec: TaskSpec, promise: Prediction, expectedTokensOut: number, nowMs: number): TaskRecord {
    assert(!this.records.has(spec.taskId), `task ${spec.taskId} has one record`);
    const record: TaskRecord = {
      spec,
      ordinal: ++this.ordinals,
      log: new TaskLog(this.account),
      createdMs: nowMs,
      promise,
      expectedTokensOut,
      state: "queued",
      attempts: 0,
      replicaId: null,
      engineVersion: "unknown",
      startedMs: null,
      firstTokenMs: null,
      finishedMs: null,
      tokensIn: spec.tokensInExact ? spec.tokensIn : null,
      tokensOut: 0,
      kvWarmth: false,
      finishReason: null,
      error: null,
      watchers: 0,
    };
    this.records.set(spec.taskId, record);
    return record;
  }

  /** The record has reached its terminal state; the oldest ended ones make room. */
  noteEnded(record: TaskRecord, nowMs: number): void {
    assert(isTerminal(record.state) && record.log.sealed, "an ended task is sealed");
    this.ended.add(record);
    this.prune(nowMs);
  }

  prune(nowMs: number): void {
    for (const record of this.ended) {
      const old = nowMs - (record.finishedMs ?? nowMs) > this.retentionMs;
      const many =
        this.ended.size > limits.finishedTasksMax || this.account.bytes > limits.finishedLogBytesMax;
      if (!old && !many) return;
      // Someone still reads it: it goes at a later turn.
      if (record.log.viewers > 0) continue;
      this.ended.delete(record);
      this.records.delete(record.spec.taskId);
      record.log.release();
    }
  }

  /** Newest first. */
  list(query: ListQuery): TaskRecord[] {
    const found: TaskRecord[] = [];
    for (const record of this.records.values()) {
      if (query.before !== null && record.ordinal >= query.before) break;
      if (query.keyId !== null && record.spec.keyId !== query.keyId) continue;
      if (query.state !== null && record.state !== query.state) continue;
      if (query.sessionId !== null && record.spec.sessionId !== query.sessionId) continue;
      found.push(record);
    }
    return found.slice(-query.limit).reverse();
  }

  *all(): Generator<TaskRecord> {
    yield* this.records.values();
  }
}
