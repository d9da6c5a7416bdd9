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
import type { AttemptFacts } from "../domain/transcript.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { EngineWork, GenerateResult } from "../ports/engine.ts";
import type { StoredTask } from "../ports/task-store.ts";
import { type Ahead, type LogAccount, TaskLog } from "./event-log.ts";
import type { Told } from "./told.ts";

/** What the last attempt brought the task to: what the terminal event tells. */
export interface AttemptResult extends GenerateResult {
  /** Its own part, that speeds are learnt from; the rest counts the whole answer. */
  readonly work: EngineWork;
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
  /** Of its transcript, once it has ended; null: it left none. */
  artifactId: string | null;
  /** Attempts of this process that began, while it lives. */
  runs: AttemptFacts[];
  /** What was logged of its answer, while it lives: where another attempt goes on. */
  sent: SentPiece[];
  /** Of the attempt that said the first piece; null before that. */
  firstBuild: EngineBuild | null;
  /** What `end` may still say of it. */
  exact: Exactness;
  /** Attempts that went on with what others had sent. */
  continuations: number;
  /** Milliseconds on a slot that its attempts are charged, without what a cut made the engine do again. */
  chargedMs: number;
  /** From when on the running attempt is charged, one that goes on from its first new token; null: it is not (yet). */
  chargedSinceMs: number | null;
  /** Bytes that its input takes of the bound on waiting ones; null: its input is on disk only. */
  inputBytes: number | null;
  /** What it was accepted for, where its pool has something else now; null: what it has. */
  acceptedFor: "another_model" | "other_engines" | null;
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
const noRuns: AttemptFacts[] = [];

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
    private retentionMs: number,
    private readonly inputBytesMax: number = limits.waitingInputBytesMax,
    /** Where the frames of its logs go before they are shown; null: nowhere. */
    private readonly ahead: Ahead | null = null,
  ) {}

  /** How long the records of ended tasks are kept, from now on. */
  retain(ms: number): void {
    this.retentionMs = ms;
  }

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
    const log = new TaskLog(this.account, spec.taskId, this.ahead);
    const record = newRecord({ spec, ordinal, log, createdMs, promise, expectedTokensOut });
    this.records.set(spec.taskId, record);
    this.living.add(record);
    return record;
  }

  /** Ordinals go on where the last process stopped. */
  continueAfter(ordinal: number): void {
    assert(this.records.size === 0, "before the first record");
    this.ordinals = ordinal;
  }

  /** A live task of an earlier process: it waits again. `told`: what its viewers may have seen; null: nothing is left. */
  restore(
    { ordinal, spec, createdMs, promise, expectedTokensOut, watched }: StoredTask,
    told: Told | null,
  ): TaskRecord {
    assert(ordinal <= this.ordinals, "a stored task was counted");
    const record = this.put(ordinal, spec, promise, expectedTokensOut, createdMs);
    record.watched = watched;
    const { frames = [], tokensOut = 0, ...known } = told ?? {};
    record.log.restore(frames);
    Object.assign(record, { ...known, tokensOut });
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
    record.runs = noRuns;
    record.spec = withoutInput(record.spec);
    this.ended.push(record);
    this.endedBytes += keptBytes(record);
    this.prune(nowMs);
  }

  /** Forgets by age also while nothing ends. */
  startPruning(clock: Clock): void {
    this.pruning = clock.setTimer(limits.taskPruneEveryMs, () => {
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
    if (this.endedHead < limits.taskCompactAfter || this.endedHead * 2 < this.ended.length) return;
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

type Admitted = Pick<TaskRecord, "spec" | "ordinal" | "log" | "createdMs" | "promise" | "expectedTokensOut">;

/** One that waits and of which nothing is known yet. */
export function newRecord(admitted: Admitted): TaskRecord {
  const { spec } = admitted;
  return {
    ...admitted,
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
    artifactId: null,
    runs: noRuns,
    sent: noPieces,
    firstBuild: null,
    exact: "yes",
    continuations: 0,
    chargedMs: 0,
    chargedSinceMs: null,
    inputBytes: 0,
    acceptedFor: null,
    watchers: 0,
    watched: false,
  };
}

function inputBytesOf({ input, renderedPrompt, sampling }: TaskSpec): number {
  const { grammar, jsonSchema, stop } = sampling;
  let chars = (renderedPrompt?.length ?? 0) + (grammar?.length ?? 0);
  if (jsonSchema !== null) chars += JSON.stringify(jsonSchema).length;
  for (const text of stop) chars += text.length;
  if (input.kind === "rerank") chars += input.query.length;
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

/** An attempt begins on its engine; of very many the last ones are told. */
export function noteRun(record: TaskRecord, run: AttemptFacts): void {
  record.runs = [...record.runs, run].slice(-limits.transcriptAttemptsMax);
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
