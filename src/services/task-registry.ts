/**
 * The records of all tasks that are live or ended lately, and who may see them. Mutated in the dispatcher's
 * turn (state, times, end) and by the attempt runner (progress of its own attempt); read by the API.
 *
 * Always holds: a task id stands for one record; ended records are bounded in number, age and log bytes, the
 * oldest ended go first; a record with an open viewer keeps its log.
 */
import { assert } from "../domain/assert.ts";
import type { EngineBuild, Exactness, SentPiece } from "../domain/continuation.ts";
import type { ErrorCode } from "../domain/errors.ts";
import type { EmbeddingResult, RerankResult } from "../domain/events.ts";
import { limits } from "../domain/limits.ts";
import type { Prediction } from "../domain/predictor.ts";
import { isTerminal, type TaskSpec, type TaskState } from "../domain/task.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { StoredTask } from "../ports/task-store.ts";
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
  /** Without its input once it has ended: thousands of ended tasks are remembered, prompts may be megabytes. */
  spec: TaskSpec;
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
  /** What was logged of its answer, while it lives: where another attempt goes on. */
  sent: SentPiece[];
  /** Of the attempt that said the first piece; null before that. */
  firstBuild: EngineBuild | null;
  /** What `end` may still say of it. */
  exact: Exactness;
  /** Attempts that went on with what others had sent. */
  continuations: number;
  /** Bytes that its input takes of the bound on waiting ones; null: its input is on disk only. */
  inputBytes: number | null;
  /** Viewers that count for on_disconnect. */
  watchers: number;
  /** There was one. */
  watched: boolean;
}

export interface ListQuery {
  readonly keyId: string | null;
  readonly state: TaskState | null;
  readonly sessionId: string | null;
  /** Only records admitted before this ordinal. */
  readonly before: number | null;
  readonly limit: number;
}

/** Shared: most records have none, and many are remembered. Replaced by the first piece, never changed. */
const noPieces: SentPiece[] = [];
const compactAfter = 1024;
const pruneEveryMs = 60_000;

export class TaskRegistry {
  private readonly records = new Map<string, TaskRecord>();
  private readonly living = new Set<TaskRecord>();
  /** Ended tasks in the order of their end, from `endedHead` on. */
  private readonly ended: TaskRecord[] = [];
  private endedHead = 0;
  private endedBytes = 0;
  private ordinals = 0;
  private pruning: Timer | null = null;
  readonly account: LogAccount = { bytes: 0 };

  private inputBytes = 0;

  constructor(
    private readonly retentionMs: number,
    private readonly inputBytesMax: number = limits.waitingInputBytesMax,
  ) {}

  get size(): number {
    return this.records.size;
  }
  /** Ever since the start. */
  get accepted(): number {
    return this.ordinals;
  }
  /** Not terminal. */
  get liveCount(): number {
    return this.living.size;
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
    return this.put(++this.ordinals, spec, promise, expectedTokensOut, nowMs);
  }

  private put(
    ordinal: number,
    spec: TaskSpec,
    promise: Prediction,
    expectedTokensOut: number,
    createdMs: number,
  ): TaskRecord {
    assert(!this.records.has(spec.taskId), `task ${spec.taskId} has one record`);
    const record: TaskRecord = {
      spec,
      ordinal,
      log: new TaskLog(this.account),
      createdMs,
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
      sent: noPieces,
      firstBuild: null,
      exact: "yes",
      continuations: 0,
      inputBytes: 0,
      watchers: 0,
      watched: false,
    };
    this.records.set(spec.taskId, record);
    this.living.add(record);
    return record;
  }

  /** Ordinals go on where the last process stopped. */
  continueAfter(ordinal: number): void {
    assert(this.records.size === 0, "before the first record");
    this.ordinals = ordinal;
  }

  /** A live task of an earlier process: it waits again. */
  restore({ ordinal, spec, createdMs, promise, expectedTokensOut, watched }: StoredTask): TaskRecord {
    assert(ordinal <= this.ordinals, "a stored task was counted");
    const record = this.put(ordinal, spec, promise, expectedTokensOut, createdMs);
    record.watched = watched;
    record.log.beginAgain();
    return record;
  }

  /** It is stored and waits: where the inputs that wait are many, its own is read again when it starts. */
  park(record: TaskRecord): void {
    if (record.state !== "queued" || record.inputBytes !== 0) return;
    const bytes = inputBytesOf(record.spec);
    if (this.inputBytes + bytes > this.inputBytesMax) {
      record.spec = withoutInput(record.spec);
      record.inputBytes = null;
      return;
    }
    record.inputBytes = bytes;
    this.inputBytes += bytes;
  }

  /** It starts, or has ended. `stored`: reads it from the store. */
  unpark(record: TaskRecord, stored: () => TaskSpec): void {
    if (record.inputBytes === null) record.spec = stored();
    else this.inputBytes -= record.inputBytes;
    record.inputBytes = 0;
  }

  /** It was never accepted after all. */
  discard(record: TaskRecord): void {
    assert(record.log.viewers === 0, "nobody looks at what was never accepted");
    this.records.delete(record.spec.taskId);
    this.living.delete(record);
    record.log.release();
  }

  /** The record has reached its terminal state; the oldest ended ones make room. */
  noteEnded(record: TaskRecord, nowMs: number): void {
    assert(isTerminal(record.state) && record.log.sealed, "an ended task is sealed");
    this.living.delete(record);
    this.unpark(record, () => record.spec);
    record.sent = noPieces;
    record.spec = withoutInput(record.spec);
    this.ended.push(record);
    this.endedBytes += keptBytes(record);
    this.prune(nowMs);
  }

  /** Forgets by age also while nothing ends. */
  startPruning(clock: Clock): void {
    this.pruning = clock.setTimer(pruneEveryMs, () => {
      this.prune(clock.nowMs());
      this.startPruning(clock);
    });
  }

  stopPruning(): void {
    this.pruning?.cancel();
    this.pruning = null;
  }

  prune(nowMs: number): void {
    // Each is looked at once a call at most: one that is still read goes to the back of the line.
    for (let looks = this.endedCount; looks > 0; looks--) {
      const record = this.ended[this.endedHead];
      assert(record !== undefined, "the line of ended tasks has its counted length");
      const old = nowMs - (record.finishedMs ?? nowMs) > this.retentionMs;
      // Whoever asked for the one that ended last has had no chance to read it: it stays, whatever its size.
      const many =
        this.endedCount > 1 &&
        (this.endedCount > limits.finishedTasksMax || this.endedBytes > limits.finishedLogBytesMax);
      if (!old && !many) return;
      this.endedHead++;
      if (record.log.viewers > 0) {
        this.ended.push(record);
        continue;
      }
      this.records.delete(record.spec.taskId);
      this.endedBytes -= keptBytes(record);
      record.log.release();
      this.compact();
    }
  }

  private get endedCount(): number {
    return this.ended.length - this.endedHead;
  }

  /** A line with a moving head, cut now and then: a Set that loses its first element at each step slows down. */
  private compact(): void {
    if (this.endedHead < compactAfter || this.endedHead * 2 < this.ended.length) return;
    this.ended.splice(0, this.endedHead);
    this.endedHead = 0;
  }

  /** Of those that have not ended, newest first. */
  listLive(query: ListQuery): TaskRecord[] {
    const found: TaskRecord[] = [];
    for (const record of this.living) {
      if (query.before !== null && record.ordinal >= query.before) break;
      if (query.keyId !== null && record.spec.keyId !== query.keyId) continue;
      if (query.state !== null && record.state !== query.state) continue;
      if (query.sessionId !== null && record.spec.sessionId !== query.sessionId) continue;
      found.push(record);
    }
    return found.slice(-query.limit).reverse();
  }

  /** Not ended, in the order of admission. */
  *live(): Generator<TaskRecord> {
    yield* this.living;
  }

  *all(): Generator<TaskRecord> {
    yield* this.records.values();
  }
}

function inputBytesOf({ input, renderedPrompt, sampling }: TaskSpec): number {
  let chars = (renderedPrompt?.length ?? 0) + (sampling.grammar?.length ?? 0);
  if (input.kind === "prompt") chars += input.prompt.length;
  else if (input.kind === "messages") for (const { content } of input.messages) chars += content.length;
  else for (const text of input.inputs) chars += text.length;
  return 2 * chars;
}

/** A piece of its answer is in the log. */
export function noteSent(record: TaskRecord, piece: SentPiece): void {
  if (record.sent === noPieces) record.sent = [piece];
  else record.sent.push(piece);
}

/** What is left to tell of an ended task; a repeat of it is recognised by its digest. */
function withoutInput(spec: TaskSpec): TaskSpec {
  const sampling = { ...spec.sampling, grammar: null, jsonSchema: null };
  return { ...spec, input: { kind: "prompt", prompt: "" }, renderedPrompt: null, sampling };
}

/** Bytes that an ended record holds and that its client chose: its events and its labels. */
function keptBytes({ log, spec }: TaskRecord): number {
  let chars = 0;
  for (const [name, value] of Object.entries(spec.metadata)) chars += name.length + value.length;
  return log.bytes + 2 * chars;
}
