/**
 * The transcripts of finished tasks on their way: made in the turn that concludes a task, stored with its end in one
 * transaction, then moved into the artifact store, a few at a time beside the event loop. The dispatcher's endings make
 * them; bootstrap starts and stops the moving.
 *
 * Always holds: what an end names is in the task store, in the artifact store or in both, never in neither; a refusal of
 * the artifact store loses none and slows nothing but the moving. Where too much waits a task leaves none, and its end
 * says so.
 */
import { assert } from "../domain/assert.ts";
import type { EngineBuild } from "../domain/continuation.ts";
import { isOrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { TaskSpec } from "../domain/task.ts";
import { type Ending, type TranscriptPolicy, transcriptText } from "../domain/transcript.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import {
  isStoreError,
  type NewTranscript,
  type StoredTranscript,
  type TaskStore,
} from "../ports/task-store.ts";
import type { Log } from "../ports/telemetry.ts";
import type { LoadedModel, ModelDigests } from "./model-digests.ts";
import type { TaskRecord } from "./task-registry.ts";
import { factsOf } from "./transcript-facts.ts";

export interface TranscriptRulesOfUse {
  readonly policy: TranscriptPolicy;
  /** Of one document. */
  readonly bytesMax: number;
}

/** Where they are moved to. @throws OrchestratorError */
export type KeepArtifact = (transcript: NewTranscript) => Promise<unknown>;

export interface TranscriptsDeps {
  readonly store: Pick<TaskStore, "transcripts" | "removeTranscripts" | "transcriptTotals">;
  readonly clock: Clock;
  readonly log: Log;
  readonly rules: TranscriptRulesOfUse;
  /** Of the files that engines loaded; absent: none is told. */
  readonly digests?: Pick<ModelDigests, "of" | "want">;
  /** Tasks run: what can wait should. Absent: never. */
  readonly busy?: () => boolean;
}

const sha256 = (text: string): string => new Bun.CryptoHasher("sha256").update(text).digest("hex");
const bytesOf = (text: string): number => Buffer.byteLength(text);

export class Transcripts {
  /** At least what waits; counted anew whenever the moving finds nothing left. */
  #waiting = { count: 0, chars: 0 };
  #keep: KeepArtifact | null = null;
  #timer: Timer | null = null;
  #moving: Promise<void> = Promise.resolve();
  #retryMs: number = limits.transcriptRetryMs;
  #deferredMs = 0;
  #failing = false;
  #overfull = false;
  #closed = false;
  /** The store may be closed. */
  #abandoned = false;

  constructor(private readonly deps: TranscriptsDeps) {}

  /** How many wait to be moved, for the gauge. */
  get pending(): number {
    return this.#waiting.count;
  }

  /**
   * Of a task that ends now; null: it leaves none. `spec`: with its input, asked only where it is needed.
   */
  of(record: TaskRecord, spec: () => TaskSpec, pool: PoolSpec | null, ending: Ending): NewTranscript | null {
    const { policy, bytesMax } = this.deps.rules;
    if (policy === "off" || this.#isOverfull()) return null;
    const whole = this.#specOf(record, spec);
    if (whole === null) return null;
    const { digests } = this.deps;
    const modelDigest = ({ model: modelPath, modelStamp }: EngineBuild): string | null =>
      digests?.of({ modelPath, modelStamp }) ?? null;
    const rules = { policy, bytesMax, sha256, bytesOf, modelDigest };
    const text = transcriptText(factsOf(record, whole, pool, ending), rules);
    if (text === null) {
      this.deps.log.warn("transcript_too_large", {
        task_id: record.spec.taskId,
        human: `the task leaves no transcript: it would exceed limits.artifact_bytes (${bytesMax})`,
      });
      return null;
    }
    this.#waiting.count += 1;
    this.#waiting.chars += text.length;
    this.#moveIn(limits.transcriptMoveEveryMs);
    return {
      artifactId: sha256(text),
      keyId: record.spec.keyId,
      createdMs: Math.round(record.finishedMs ?? this.deps.clock.nowMs()),
      text,
    };
  }

  /** An engine has it, and tasks will run on it. */
  modelLoaded(identity: LoadedModel): void {
    if (this.deps.rules.policy !== "off") this.deps.digests?.want(identity);
  }

  /** Null: it cannot be read, and the end of a task does not depend on it. */
  #specOf({ spec }: TaskRecord, read: () => TaskSpec): TaskSpec | null {
    try {
      return read();
    } catch (error) {
      if (!isStoreError(error)) throw error;
      this.deps.log.error(
        "transcript_without_input",
        { task_id: spec.taskId, human: "the task leaves no transcript: its input cannot be read" },
        error,
      );
      return null;
    }
  }

  /** What the last process left is moved, too. Once. */
  start(keep: KeepArtifact): void {
    assert(this.#keep === null, "it is started once");
    this.#keep = keep;
    this.#waiting = { ...this.deps.store.transcriptTotals() };
    if (this.#waiting.count > 0) this.#moveIn(limits.transcriptMoveEveryMs);
  }

  /** What is not moved by now waits for the next process; what the artifact store does not answer in time, too. */
  async stop(): Promise<void> {
    this.#closed = true;
    this.#timer?.cancel();
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const timer = this.deps.clock.setTimer(limits.artifactStopMs, resolve);
    await Promise.race([this.#moving, late]);
    timer.cancel();
    this.#abandoned = true;
  }

  #isOverfull(): boolean {
    const { count, chars } = this.#waiting;
    const overfull = count >= limits.transcriptsPendingMax || chars >= limits.transcriptsPendingCharsMax;
    if (overfull && !this.#overfull)
      this.deps.log.error("transcripts_overfull", {
        count,
        human: `${count} transcripts wait for the artifact store: until some are moved, tasks leave none`,
      });
    this.#overfull = overfull;
    return overfull;
  }

  #moveIn(delayMs: number): void {
    if (this.#timer !== null || this.#keep === null || this.#closed) return;
    this.#timer = this.deps.clock.setTimer(delayMs, () => {
      this.#moving = this.#moveSome().then((nextMs) => {
        this.#timer = null;
        if (nextMs !== null) this.#moveIn(nextMs);
      });
    });
  }

  /** One batch. @returns when to go on, in milliseconds; null: nothing is left. */
  async #moveSome(): Promise<number | null> {
    if (this.#defers()) return limits.transcriptDeferMs;
    try {
      const batch = this.deps.store.transcripts(limits.transcriptBatch);
      const done = await this.#keepAll(batch);
      if (this.#abandoned) return null;
      this.deps.store.removeTranscripts(done.map(({ ordinal }) => ordinal));
      this.#waiting.count -= done.length;
      for (const { text } of done) this.#waiting.chars -= text?.length ?? 0;
      if (done.length < batch.length) return this.#retryLater();
      this.#noteWorking();
      if (batch.length === limits.transcriptBatch) return limits.transcriptMoveEveryMs;
      this.#deferredMs = 0;
      // Counted anew: an admission that was undone took its transcript along.
      this.#waiting = { ...this.deps.store.transcriptTotals() };
      return this.#waiting.count > 0 ? limits.transcriptMoveEveryMs : null;
    } catch (error) {
      if (!isStoreError(error)) throw error;
      this.#noteFailing(error);
      return this.#retryLater();
    }
  }

  /**
   * A document costs the processor more to move than a task's last tokens do: while others speak, it waits. Once its time
   * is over everything is moved that waits by then.
   */
  #defers(): boolean {
    const { busy = () => false } = this.deps;
    if (
      this.#deferredMs >= limits.transcriptDeferMsMax ||
      this.#waiting.count >= limits.transcriptsHurry ||
      this.#waiting.chars >= limits.transcriptsHurryChars ||
      !busy()
    )
      return false;
    this.#deferredMs += limits.transcriptDeferMs;
    return true;
  }

  /** @returns those that need not wait any more. */
  async #keepAll(batch: readonly StoredTranscript[]): Promise<StoredTranscript[]> {
    const done: StoredTranscript[] = [];
    for (let at = 0; at < batch.length; at += limits.transcriptsMovedTogether) {
      const together = batch.slice(at, at + limits.transcriptsMovedTogether);
      const kept = await Promise.all(together.map((transcript) => this.#keepOne(transcript)));
      done.push(...together.filter((_, index) => kept[index]));
      if (kept.includes(false) || this.#closed) break;
      await this.deps.clock.yieldTurn();
    }
    return done;
  }

  /** False: try again later. */
  async #keepOne({ text, ...about }: StoredTranscript): Promise<boolean> {
    const { log } = this.deps;
    assert(this.#keep !== null, "moving has been started");
    if (text === null) {
      log.error("transcript_damaged", {
        human: `the transcript ${about.artifactId} is damaged and was removed`,
      });
      return true;
    }
    try {
      await this.#keep({ ...about, text });
      return true;
    } catch (error) {
      if (!isOrchestratorError(error)) throw error;
      if (error.code === "STORAGE_UNAVAILABLE") {
        this.#noteFailing(error);
        return false;
      }
      // It will never be taken: the bound on documents was lowered since.
      log.error("transcript_refused", {
        human: `the transcript ${about.artifactId} was removed: ${error.message}`,
      });
      return true;
    }
  }

  #retryLater(): number {
    const delayMs = this.#retryMs;
    this.#retryMs = Math.min(2 * delayMs, limits.transcriptRetryMsMax);
    return delayMs;
  }

  #noteFailing(error: Error): void {
    if (!this.#failing)
      this.deps.log.warn("transcripts_wait", {
        human: `transcripts cannot be moved into the artifact store and wait: ${error.message}`,
      });
    this.#failing = true;
  }

  #noteWorking(): void {
    if (this.#failing) this.deps.log.info("transcripts_move", { human: "transcripts are moved again" });
    this.#failing = false;
    this.#retryMs = limits.transcriptRetryMs;
  }
}
