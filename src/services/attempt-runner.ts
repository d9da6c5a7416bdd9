/**
 * HOT. One attempt: the engine's stream into the task's event log, under its watchdogs. Started and aborted by
 * the dispatcher, which hears of the end through `AttemptListener`; knows nothing of queues.
 *
 * Always holds: after `abort` nothing of the attempt is appended any more; every attempt ends with exactly one
 * `attemptEnded`; where the slot was not free by then, one `slotFreed` follows unless the engine is lost.
 */
import { assert, isAssertion } from "../domain/assert.ts";
import type { EngineBuild } from "../domain/continuation.ts";
import type { ErrorCode } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec } from "../domain/pool.ts";
import { isWarm } from "../domain/prefix.ts";
import type { AttemptOutcome, CutReason, Lease } from "../domain/scheduler-protocol.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import { type EngineClient, EngineError, type GenerateSink, isEngineError } from "../ports/engine.ts";
import { isJournalError, type JournalError } from "../ports/journal.ts";
import { generateOn } from "./continued-generation.ts";
import { fittingPrompt } from "./fitting-prompt.ts";
import { type AttemptResult, noteSent, type TaskRecord } from "./task-registry.ts";
import { encodeFacts } from "./told.ts";

export interface Attempt {
  readonly record: TaskRecord;
  readonly lease: Lease;
  readonly pool: PoolSpec;
  readonly client: EngineClient;
  readonly build: EngineBuild;
  readonly ctxPerSlot: number;
  readonly number: number;
}

export interface AttemptListener {
  attemptEnded(
    attempt: Attempt,
    outcome: AttemptOutcome,
    slotFree: boolean,
    result: AttemptResult | null,
  ): void;
  slotFreed(attempt: Attempt): void;
  /** The engine did not free the slot or did not answer: alive, but of no use. */
  engineWedged(attempt: Attempt, message: string): void;
  firstToken(attempt: Attempt, sinceAdmissionMs: number): void;
  /** Once a second or so while tokens flow; the listener appends a metrics frame. */
  metricsDue(attempt: Attempt, tokensPerSecond: number): void;
  unexpected(error: unknown): void;
}

interface Running {
  readonly attempt: Attempt;
  readonly abort: AbortController;
  /** Set first of all on abort: the sink checks it. */
  aborted: boolean;
  /** The journal took no more of it. */
  unwritten: JournalError | null;
  timedOut: ErrorCode | null;
  /** The daemon cut it and its task goes on. */
  cut: CutReason | null;
  lastProgressMs: number;
  /** Of what is new. */
  lastTokenMs: number | null;
  /** The engine has said something, new or not: from then on inter_token_ms guards. */
  spoke: boolean;
  sawToken: boolean;
  firstTokenAtMs: number;
  lastMetricsMs: number;
  tokensAtStart: number;
  /** When it has finished. */
  slotFree: boolean;
  watchdog: Timer | null;
}

/** Two looks at the engine's slots. */
const slotConfirmAfterTimeoutMsMin = 2 * limits.slotPollMs;

export class AttemptRunner {
  private readonly running = new Map<number, Running>();

  constructor(
    private readonly clock: Clock,
    /** Between two metrics events of a stream; may change. */
    public metricsEveryMs: number,
  ) {}

  get size(): number {
    return this.running.size;
  }

  start(attempt: Attempt, listener: AttemptListener): void {
    const { leaseId } = attempt.lease;
    assert(!this.running.has(leaseId), `lease ${leaseId} runs once`);
    const { record } = attempt;
    const nowMs = this.clock.nowMs();
    // One that goes on first does again what a cut has cost: that is the service's loss.
    record.chargedSinceMs = record.log.tokenCount > 0 ? null : nowMs;
    const run: Running = {
      attempt,
      abort: new AbortController(),
      aborted: false,
      unwritten: null,
      timedOut: null,
      cut: null,
      lastProgressMs: nowMs,
      lastTokenMs: null,
      spoke: false,
      sawToken: false,
      firstTokenAtMs: 0,
      lastMetricsMs: 0,
      tokensAtStart: record.log.tokenCount,
      slotFree: true,
      watchdog: null,
    };
    this.running.set(leaseId, run);
    this.armWatchdog(run);
    this.run(run, listener).catch((error: unknown) => listener.unexpected(error));
  }

  /** Nothing more is appended from this moment on; the slot is reported free when the engine has freed it. */
  abort(leaseId: number): void {
    const run = this.running.get(leaseId);
    if (run === undefined) return;
    run.aborted = true;
    run.abort.abort();
  }

  /**
   * Like `abort`, and the task goes on: the attempt ends with the outcome `cut`. Nothing happens where it has ended or
   * was aborted or cut before.
   */
  cut(leaseId: number, reason: CutReason): void {
    const run = this.running.get(leaseId);
    if (run === undefined || run.aborted) return;
    run.cut = reason;
    this.abort(leaseId);
  }

  /** Nothing more is appended, by any attempt. */
  abortAll(): void {
    for (const leaseId of [...this.running.keys()]) this.abort(leaseId);
  }

  private async run(run: Running, listener: AttemptListener): Promise<void> {
    const { attempt } = run;
    let outcome: AttemptOutcome;
    let result: AttemptResult | null = null;
    let slotFree = true;
    try {
      result = await this.work(run, listener);
      outcome = { kind: "finished" };
      slotFree = run.slotFree;
    } catch (error) {
      const unwritten = isJournalError(error) ? error : run.unwritten;
      if (unwritten !== null) outcome = unwrittenOutcome(unwritten);
      else if (isAssertion(error) || !isEngineError(error)) throw error;
      else outcome = this.outcomeOf(run, error);
      slotFree = isEngineError(error) ? leavesSlotFree(error) : run.slotFree;
    } finally {
      run.watchdog?.cancel();
      this.running.delete(attempt.lease.leaseId);
    }
    this.charge(run, outcome);
    listener.attemptEnded(attempt, outcome, slotFree, result);
    if (!slotFree) await this.confirmSlotFree(run, listener);
  }

  /** Where the task goes on, what came behind the last token was in vain. */
  private charge({ attempt: { record }, lastTokenMs }: Running, { kind }: AttemptOutcome): void {
    const { chargedSinceMs } = record;
    const untilMs = kind === "lost" || kind === "cut" ? lastTokenMs : this.clock.nowMs();
    if (chargedSinceMs !== null && untilMs !== null) record.chargedMs += untilMs - chargedSinceMs;
    record.chargedSinceMs = null;
  }

  private async confirmSlotFree({ attempt, timedOut }: Running, listener: AttemptListener): Promise<void> {
    const { slot } = attempt.lease;
    const late = new AbortController();
    // An engine that let a watchdog expire was silent long enough already: all its slots wait for this.
    const patienceMs = Math.max(attempt.pool.timeouts.interTokenMs, slotConfirmAfterTimeoutMsMin);
    const patience = timedOut === null ? null : this.clock.setTimer(patienceMs, () => late.abort());
    try {
      await attempt.client.awaitSlotFree(slot, late.signal);
      listener.slotFreed(attempt);
    } catch (error) {
      if (!isEngineError(error)) throw error;
      const why = late.signal.aborted
        ? `a watchdog expired, and nothing for ${patienceMs} ms more`
        : error.message;
      listener.engineWedged(attempt, `slot ${slot} was not freed: ${why}`);
    } finally {
      patience?.cancel();
    }
  }

  private outcomeOf(run: Running, error: EngineError): AttemptOutcome {
    const { record } = run.attempt;
    const tokensProduced = record.log.tokenCount - run.tokensAtStart;
    if (run.cut !== null && !isRefusal(error)) return { kind: "cut", reason: run.cut, tokensProduced };
    if (run.timedOut !== null) {
      const { firstTokenMs, interTokenMs } = run.attempt.pool.timeouts;
      const message = run.spoke
        ? `no token for ${interTokenMs} ms (timeouts.inter_token_ms)`
        : `no first token within ${firstTokenMs} ms (timeouts.first_token_ms)`;
      return { kind: "lost", code: run.timedOut, message, tokensProduced, began: true };
    }
    const lost = { kind: "lost", code: "WORKER_RESET", tokensProduced } as const;
    switch (error.engineErrorKind) {
      case "rejected":
      case "unsupported":
        return {
          kind: "failed",
          code: "INVALID_PARAMS",
          message: `the engine refused the request: ${error.message}`,
        };
      case "unreachable":
        return { ...lost, message: `the engine was gone before the start (${error.message})`, began: false };
      case "context":
        return { kind: "failed", code: "INVALID_PARAMS", message: error.message };
      default:
        return { ...lost, message: `the engine broke off (${error.message})`, began: true };
    }
  }

  private async work(run: Running, listener: AttemptListener): Promise<AttemptResult> {
    const { spec } = run.attempt.record;
    switch (spec.input.kind) {
      case "embedding":
        return await this.embed(run, listener, spec.input.inputs);
      case "rerank":
        return await this.rerank(run, listener, spec.input.query, spec.input.inputs);
      default:
        return await this.generate(run, listener);
    }
  }

  private async generate(run: Running, listener: AttemptListener): Promise<AttemptResult> {
    const { attempt } = run;
    const { spec } = attempt.record;
    const prompt = await fittingPrompt(spec, attempt.client, attempt.ctxPerSlot, run.abort.signal);
    const { onPrompt, onToken } = this.sinkOf(run, listener);
    const { done, work, slotFree } = await generateOn({
      record: attempt.record,
      client: attempt.client,
      build: attempt.build,
      prompt,
      slot: attempt.lease.slot,
      signal: run.abort.signal,
      onPrompt,
      onHeard: () => {
        run.spoke = true;
        run.lastProgressMs = this.clock.nowMs();
      },
      emit: onToken,
    });
    if (run.aborted) throw new EngineError("aborted", "aborted");
    run.slotFree = slotFree;
    this.noteStarted(run, done.tokensIn, done.tokensCached);
    return { ...done, work, result: null };
  }

  private sinkOf(run: Running, listener: AttemptListener): GenerateSink {
    return {
      onPrompt: (tokensTotal: number, tokensCached: number) => {
        if (run.aborted) return;
        run.lastProgressMs = this.clock.nowMs();
        try {
          this.noteStarted(run, tokensTotal, tokensCached);
        } catch (error) {
          this.unwritten(run, error);
        }
      },
      onToken: (text, ids) => {
        if (run.aborted) return;
        try {
          this.token(run, listener, text, ids);
        } catch (error) {
          this.unwritten(run, error);
        }
      },
    };
  }

  private token(run: Running, listener: AttemptListener, text: string, ids: readonly number[]): void {
    const { attempt } = run;
    const { record } = attempt;
    const { log } = record;
    const nowMs = this.clock.nowMs();
    run.lastProgressMs = nowMs;
    run.spoke = true;
    if (!run.sawToken) {
      this.noteStarted(run, record.tokensIn ?? record.spec.tokensIn, 0);
      run.sawToken = true;
      record.chargedSinceMs ??= nowMs;
      run.firstTokenAtMs = nowMs;
      run.lastMetricsMs = nowMs;
      listener.firstToken(attempt, nowMs - record.createdMs);
      record.firstBuild ??= attempt.build;
      log.markAttempt(factsOf(attempt));
    }
    log.appendToken(text, ids);
    noteSent(record, { text, ids });
    record.tokensOut = log.tokenCount;
    run.lastTokenMs = nowMs;
    if (nowMs - run.lastMetricsMs < this.metricsEveryMs) return;
    run.lastMetricsMs = nowMs;
    const produced = log.tokenCount - run.tokensAtStart;
    listener.metricsDue(attempt, ((produced - 1) * 1000) / Math.max(1, nowMs - run.firstTokenAtMs));
  }

  /** The journal takes no more: what cannot be written must not be seen, so the attempt is over. */
  private unwritten(run: Running, error: unknown): void {
    if (!isJournalError(error)) throw error;
    run.unwritten = error;
    this.abort(run.attempt.lease.leaseId);
  }

  /** `started` goes out once per task, with what the engine said of the prompt. */
  private noteStarted(run: Running, tokensIn: number, tokensCached: number): void {
    const { record, pool, lease, number } = run.attempt;
    if (record.log.length > 0) return;
    record.tokensIn = tokensIn;
    record.kvWarmth = isWarm(tokensCached);
    record.log.append({
      type: "started",
      data: {
        task_id: record.spec.taskId,
        session_id: record.spec.sessionId,
        queue_position: record.promise.queuePosition,
        predicted_start_ms: record.promise.startMs,
        engine: pool.engine,
        engine_version: record.engineVersion,
        pool_id: pool.id,
        replica_id: lease.replicaId,
        model_ref: record.spec.modelRef,
        seed: record.spec.seed,
        kv_warmth: record.kvWarmth,
        tokens_in: tokensIn,
        determinism: record.spec.determinism,
        attempt: number,
      },
    });
  }

  private async embed(
    run: Running,
    listener: AttemptListener,
    inputs: readonly string[],
  ): Promise<AttemptResult> {
    const beganMs = this.clock.nowMs();
    const { vectors, tokensIn } = await run.attempt.client.embed(inputs, run.abort.signal);
    return this.single(run, listener, beganMs, tokensIn, { embeddings: vectors });
  }

  private async rerank(
    run: Running,
    listener: AttemptListener,
    query: string,
    inputs: readonly string[],
  ): Promise<AttemptResult> {
    const beganMs = this.clock.nowMs();
    const { scores, tokensIn } = await run.attempt.client.rerank(query, inputs, run.abort.signal);
    return this.single(run, listener, beganMs, tokensIn, { results: scores });
  }

  /** The result of work that has no tokens: one answer, all of it prompt phase. */
  private single(
    run: Running,
    listener: AttemptListener,
    beganMs: number,
    tokensIn: number,
    result: NonNullable<AttemptResult["result"]>,
  ): AttemptResult {
    if (run.aborted) throw new EngineError("aborted", "aborted");
    const nowMs = this.clock.nowMs();
    this.noteStarted(run, tokensIn, 0);
    listener.firstToken(run.attempt, nowMs - run.attempt.record.createdMs);
    const work = { tokensIn, tokensCached: 0, tokensOut: 0, promptMs: nowMs - beganMs, decodeMs: 0 };
    return { finishReason: "stop", ...work, work, result };
  }

  /**
   * One timer per attempt, re-armed from the last progress when it fires: a token costs it an assignment.
   * Prompt progress counts: a long prompt that advances is not a wedge.
   */
  private armWatchdog(run: Running): void {
    const { interTokenMs } = run.attempt.pool.timeouts;
    const firstTokenMs = firstAnswerMs(run.attempt);
    const allowedMs = run.spoke ? interTokenMs : firstTokenMs;
    const leftMs = run.lastProgressMs + allowedMs - this.clock.nowMs();
    run.watchdog = this.clock.setTimer(Math.max(1, Math.min(leftMs, interTokenMs)), () => {
      const quietMs = this.clock.nowMs() - run.lastProgressMs;
      const boundMs = run.spoke ? interTokenMs : firstTokenMs;
      if (quietMs < boundMs) {
        this.armWatchdog(run);
        return;
      }
      // The end of what was cut or canceled is on its way.
      if (run.aborted) return;
      run.timedOut = "DECODE_TIMEOUT";
      this.abort(run.attempt.lease.leaseId);
    });
  }
}

/**
 * Embedding and rerank answer once, when all is done, and tell nothing on the way: a large batch may take what
 * several prompts take.
 */
function firstAnswerMs({ pool, record: { spec } }: Attempt): number {
  const batches = spec.workload === "completion" ? 1 : 1 + Math.floor(spec.tokensIn / singleAnswerTokens);
  return pool.timeouts.firstTokenMs * batches;
}
const singleAnswerTokens = 4096;

/** What the next process wants to know of it. */
const factsOf = ({ record, lease, build, number }: Attempt): string =>
  encodeFacts({
    attempt: number,
    replicaId: lease.replicaId,
    engineVersion: record.engineVersion,
    startedMs: record.startedMs,
    firstTokenMs: record.firstTokenMs,
    exact: record.exact,
    continuations: record.continuations,
    chargedMs: record.chargedMs,
    build: { ...build },
  });

const unwrittenOutcome = ({ message }: JournalError): AttemptOutcome => ({
  kind: "failed",
  code: "STORAGE_UNAVAILABLE",
  message: `what the engine says cannot be written (${message}): make room, then submit the task again`,
});

/**
 * After these the engine holds nothing of ours; after the others it must say so itself. "Busy" is one of the
 * others: whoever holds the slot there, the task may not try again before it is free.
 */
const leavesSlotFree = (error: EngineError): boolean => isRefusal(error);

const isRefusal = (error: EngineError): boolean =>
  ["rejected", "context", "unsupported"].includes(error.engineErrorKind);
