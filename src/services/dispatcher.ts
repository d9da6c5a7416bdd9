/**
 * HOT. The single writer: everything that changes the state of a task passes through its mailbox. A turn
 * drains the mailbox as one batch: each item is decided by the pure scheduler, its commands are acted on, and
 * at the end of the turn the submitters hear their answers. It never awaits slow work: results come back as
 * items.
 *
 * Called by admission (submit), the API (cancel), the supervisor (ReplicaListener) and its own attempts.
 * Always holds: exactly one terminal frame per task; nothing starts outside a free slot of a ready replica.
 */
import { assert, assertNever } from "../domain/assert.ts";
import { errorTable, isOrchestratorError, OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { EngineKind, PoolSpec, ReplicaFailure, ReplicaSnapshot, WarmUpSpeed } from "../domain/pool.ts";
import { learnWarmUp } from "../domain/predictor.ts";
import { beginningOf, prefixOf } from "../domain/prefix.ts";
import { admit, assess, createScheduler, decide, type SchedulerState } from "../domain/scheduler.ts";
import type { AttemptOutcome, Command, SchedulerEvent } from "../domain/scheduler-protocol.ts";
import type { Priority, TaskSpec } from "../domain/task.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { EngineClient } from "../ports/engine.ts";
import type { ReplicaControl, ReplicaListener } from "../ports/supervision.ts";
import type { Log, Metrics } from "../ports/telemetry.ts";
import type { Attempt, AttemptListener, AttemptRunner } from "./attempt-runner.ts";
import { Forecast } from "./forecast.ts";
import { type PoolRuntime, PoolRuntimes } from "./pool-runtime.ts";
import { QueueView } from "./queue-view.ts";
import { infeasible, poolUnavailable, queueFull, shuttingDown } from "./refusals.ts";
import type { AttemptResult, TaskRecord, TaskRegistry } from "./task-registry.ts";
import { TaskTelemetry } from "./task-telemetry.ts";
import { type CancelReason, canceledMessage, endEvent, errorEvent } from "./terminal-events.ts";

type Item =
  | { readonly kind: "submit"; readonly spec: TaskSpec; readonly settle: Settle }
  | {
      readonly kind: "cancel";
      readonly taskId: string;
      readonly reason: CancelReason;
      readonly resolve: () => void;
    }
  | { readonly kind: "event"; readonly event: SchedulerEvent }
  | {
      readonly kind: "attempt_ended";
      readonly attempt: Attempt;
      readonly outcome: AttemptOutcome;
      readonly slotFree: boolean;
      readonly result: AttemptResult | null;
    };

interface Settle {
  resolve(submitted: Submitted): void;
  reject(error: unknown): void;
}

export interface Submitted {
  readonly record: TaskRecord;
  /** The same task_id and body were submitted before: this is the task that was made then. */
  readonly repeated: boolean;
}

export interface DispatcherDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly control: ReplicaControl;
  readonly registry: TaskRegistry;
  readonly runner: AttemptRunner;
  readonly pools: readonly PoolSpec[];
  readonly attemptsMax: number;
  readonly batchMaxWaitMs: number;
  /** A task whose deadline is less likely than this to be met is refused. */
  readonly minOnTimeProbability: number;
  /** A broken invariant in a turn: state may be half changed, the only honest way on is a restart. */
  readonly onFatal: (error: unknown) => void;
}

export class Dispatcher implements ReplicaListener, AttemptListener {
  readonly forecast: Forecast;
  readonly view: QueueView;
  private readonly state: SchedulerState;
  private readonly pools: PoolRuntimes;
  private readonly telemetry: TaskTelemetry;
  private readonly deadlines = new Map<string, Timer>();
  private mailbox: Item[] = [];
  private turnPending = false;
  private closing = false;
  private idleWaiters: (() => void)[] = [];

  constructor(private readonly deps: DispatcherDeps) {
    this.state = createScheduler(
      { attemptsMax: deps.attemptsMax, batchMaxWaitMs: deps.batchMaxWaitMs },
      deps.pools.map((p) => ({ id: p.id, capacity: p.queueCapacity })),
    );
    this.pools = new PoolRuntimes(deps.pools);
    this.forecast = new Forecast(deps.clock, deps.registry, this.state, this.pools);
    this.view = new QueueView(this.state, deps.registry);
    this.telemetry = new TaskTelemetry(deps.log, deps.metrics);
  }

  // ---- what others ask ----

  /** Resolves when the task is accepted (or was before); rejects with the refusal. */
  submit(spec: TaskSpec): Promise<Submitted> {
    this.pools.get(spec.poolId).submitting++;
    return new Promise((resolve, reject) => this.post({ kind: "submit", spec, settle: { resolve, reject } }));
  }

  /** Resolves once the log is sealed: no token is handed to any viewer after that. Idempotent. */
  cancel(taskId: string, reason: CancelReason): Promise<void> {
    return new Promise((resolve) => this.post({ kind: "cancel", taskId, reason, resolve }));
  }

  /** What a task_id that was used before is answered with; null: it is new. */
  repeatOf(taskId: string, keyId: string, bodyDigest: string): Submitted | OrchestratorError | null {
    const record = this.deps.registry.find(taskId);
    if (record === null) return null;
    if (record.spec.keyId === keyId && record.spec.bodyDigest === bodyDigest)
      return { record, repeated: true };
    // The same words for another key's task: it learns nothing of it.
    return new OrchestratorError("CONFLICT", "this task_id was used for another request: choose a new one", {
      details: { task_id: taskId },
    });
  }

  /** The refusal that a task of this class would get now, without enqueueing anything; null: none. */
  refusalFor(poolId: string, priority: Priority): OrchestratorError | null {
    const { spec } = this.pools.get(poolId);
    if (this.closing) return shuttingDown(spec);
    const { refusal } = assess(this.state, poolId, priority);
    if (refusal === null) return null;
    if (refusal.code === "POOL_UNAVAILABLE") return poolUnavailable(spec, refusal.message);
    return queueFull(spec, refusal.message, this.forecast.retryAfterMs(poolId));
  }

  /** Submissions that wait for the next turn and are in no queue yet. */
  submitting(poolId: string): number {
    return this.pools.get(poolId).submitting;
  }

  /** A request that was refused before it came to a turn. */
  noteRefusal(engine: EngineKind, error: OrchestratorError): void {
    this.telemetry.refused(engine, error);
  }

  /** Runtime of a pool: identity, totals, ready replicas. For reading only. */
  runtime(poolId: string): Readonly<PoolRuntime> {
    return this.pools.get(poolId);
  }

  /** From now on nothing new is taken. */
  close(): void {
    this.closing = true;
  }

  /** Resolves when no task is live. */
  idle(): Promise<void> {
    if (this.isIdle()) return Promise.resolve();
    return new Promise((resolve) => this.idleWaiters.push(resolve));
  }

  /** The drain deadline: whatever is live ends now, told to its viewers. */
  endAll(): void {
    this.post({ kind: "event", event: { type: "shutdown_deadline_passed" } });
  }

  // ---- what the supervisor tells ----

  replicaReady(snapshot: ReplicaSnapshot, client: EngineClient, speed: WarmUpSpeed): void {
    const { poolId, replicaId, incarnation, identity, slotsTotal } = snapshot;
    assert(identity !== null, "a ready replica has an identity");
    const pool = this.pools.get(poolId);
    pool.ready.set(replicaId, { incarnation, client, identity });
    pool.identity = identity;
    const loadMs = pool.loadingSinceMs === null ? null : this.deps.clock.nowMs() - pool.loadingSinceMs;
    pool.loadingSinceMs = null;
    learnWarmUp(pool.predictor, speed, loadMs);
    this.post({
      kind: "event",
      event: { type: "replica_ready", poolId, replicaId, incarnation, slots: slotsTotal },
    });
  }

  replicaLost(poolId: string, replicaId: string, incarnation: number, _failure: ReplicaFailure | null): void {
    const pool = this.pools.get(poolId);
    if (pool.ready.get(replicaId)?.incarnation === incarnation) pool.ready.delete(replicaId);
    pool.loadingSinceMs = this.deps.clock.nowMs();
    this.post({ kind: "event", event: { type: "replica_lost", poolId, replicaId, incarnation } });
  }

  poolUnavailable(poolId: string, failure: ReplicaFailure): void {
    this.post({ kind: "event", event: { type: "pool_unavailable", poolId, message: failure.message } });
  }

  // ---- what attempts tell ----

  attemptEnded(
    attempt: Attempt,
    outcome: AttemptOutcome,
    slotFree: boolean,
    result: AttemptResult | null,
  ): void {
    this.post({ kind: "attempt_ended", attempt, outcome, slotFree, result });
  }

  slotFreed(attempt: Attempt): void {
    const { leaseId, replicaId, incarnation } = attempt.lease;
    const poolId = attempt.pool.id;
    this.post({ kind: "event", event: { type: "slot_freed", poolId, replicaId, incarnation, leaseId } });
  }

  engineWedged(attempt: Attempt, message: string): void {
    this.deps.control.reportWedged(attempt.lease.replicaId, attempt.lease.incarnation, message);
  }

  firstToken(attempt: Attempt, sinceAdmissionMs: number): void {
    const { record, pool, lease } = attempt;
    if (record.firstTokenMs === null) {
      record.firstTokenMs = this.deps.clock.nowMs();
      this.telemetry.firstToken(record, pool.engine, sinceAdmissionMs);
    }
    this.deps.control.noteProgress(lease.replicaId, lease.incarnation);
  }

  metricsDue(attempt: Attempt, tokensPerSecond: number): void {
    const { record, pool } = attempt;
    const { interactive, batch } = this.view.depth(pool.id);
    record.log.append({
      type: "metrics",
      data: {
        queue_depth: interactive + batch,
        on_time_probability: this.forecast.ofLive(record)?.onTimeProbability ?? null,
        kv_warmth: record.kvWarmth,
        tokens_out: record.tokensOut,
        tokens_per_second: Math.round(tokensPerSecond * 10) / 10,
      },
    });
  }

  unexpected(error: unknown): void {
    this.deps.onFatal(error);
  }

  // ---- the turn ----

  private post(item: Item): void {
    this.mailbox.push(item);
    assert(this.mailbox.length <= limits.mailboxTurnEventsMax, "the mailbox is drained every turn");
    if (this.turnPending) return;
    this.turnPending = true;
    this.deps.clock.soon(() => this.turn());
  }

  private turn(): void {
    this.turnPending = false;
    const items = this.mailbox;
    this.mailbox = [];
    const answers: (() => void)[] = [];
    try {
      for (const item of items) this.process(item, answers);
    } catch (error) {
      this.deps.onFatal(error);
      return;
    }
    for (const answer of answers) answer();
    if (!this.isIdle()) return;
    const waiters = this.idleWaiters;
    this.idleWaiters = [];
    for (const resolve of waiters) resolve();
  }

  private isIdle(): boolean {
    return this.state.tasks.size === 0 && this.mailbox.length === 0;
  }

  private process(item: Item, answers: (() => void)[]): void {
    const nowMs = this.deps.clock.nowMs();
    switch (item.kind) {
      case "submit":
        this.processSubmit(item.spec, item.settle, nowMs, answers);
        return;
      case "cancel": {
        const { taskId, reason, resolve } = item;
        this.act(decide(this.state, { type: "cancel_requested", taskId, reason }, nowMs), null);
        answers.push(resolve);
        return;
      }
      case "attempt_ended": {
        const { attempt, outcome, slotFree, result } = item;
        if (result !== null) this.forecast.learn(attempt, result);
        const { lease } = attempt;
        const { taskId, poolId } = attempt.record.spec;
        const event = { type: "attempt_ended" as const, taskId, poolId, lease, outcome, slotFree };
        this.act(decide(this.state, event, nowMs), result);
        return;
      }
      case "event":
        this.act(decide(this.state, item.event, nowMs), null);
        return;
      default:
        assertNever(item, "mailbox item");
    }
  }

  private processSubmit(spec: TaskSpec, settle: Settle, nowMs: number, answers: (() => void)[]): void {
    const { registry } = this.deps;
    const pool = this.pools.get(spec.poolId);
    const { engine } = pool.spec;
    pool.submitting--;
    const repeat = this.repeatOf(spec.taskId, spec.keyId, spec.bodyDigest);
    if (repeat !== null) {
      answers.push(() => (isOrchestratorError(repeat) ? settle.reject(repeat) : settle.resolve(repeat)));
      return;
    }
    const promise = this.forecast.ofNew(spec);
    const { minOnTimeProbability } = this.deps;
    const refusal =
      this.refusalFor(spec.poolId, spec.priority) ??
      infeasible(pool.spec, spec, promise, minOnTimeProbability);
    if (refusal !== null) {
      this.telemetry.refused(engine, refusal);
      // Somebody wants it: the supervisor may try again now instead of at its next turn; it spaces the tries itself.
      if (refusal.code === "POOL_UNAVAILABLE") this.deps.control.ensurePool(spec.poolId);
      answers.push(() => settle.reject(refusal));
      return;
    }
    const record = registry.add(spec, promise, this.forecast.tokensOutOf(spec), nowMs);
    record.engineVersion = pool.identity?.engineVersion ?? "unknown";
    const { taskId, poolId, priority, deadlineMs } = spec;
    const expectedMs = this.forecast.serviceOf(spec);
    const prefix = prefixOf(beginningOf(spec));
    const admission = admit(this.state, { taskId, poolId, priority, expectedMs, prefix }, nowMs);
    assert(admission.kind === "accepted", "what was not refused is admitted");
    this.telemetry.admitted(record, engine);
    if (deadlineMs !== null) this.armDeadline(taskId, deadlineMs);
    this.act(admission.commands, null);
    answers.push(() => settle.resolve({ record, repeated: false }));
  }

  private armDeadline(taskId: string, deadlineMs: number): void {
    const timer = this.deps.clock.setTimer(deadlineMs, () =>
      this.post({ kind: "event", event: { type: "deadline_passed", taskId } }),
    );
    this.deadlines.set(taskId, timer);
  }

  private act(commands: readonly Command[], result: AttemptResult | null): void {
    for (const command of commands) {
      switch (command.type) {
        case "start_attempt":
          this.startAttempt(command);
          break;
        case "abort_attempt":
          this.deps.runner.abort(command.leaseId);
          break;
        case "finish_task":
          this.finish(command, result);
          break;
        case "requeue_task":
          this.requeue(command.taskId, command.message);
          break;
        case "ensure_pool":
          this.pools.get(command.poolId).loadingSinceMs ??= this.deps.clock.nowMs();
          this.deps.control.ensurePool(command.poolId);
          break;
        case "note_slots_busy":
          this.deps.control.noteSlotsBusy(command.replicaId, command.incarnation, command.busy);
          break;
        default:
          assertNever(command, "command");
      }
    }
  }

  private startAttempt(command: Extract<Command, { type: "start_attempt" }>): void {
    const { registry, runner, clock } = this.deps;
    const { lease } = command;
    const record = registry.get(command.taskId);
    const pool = this.pools.get(command.poolId);
    record.state = "running";
    record.attempts = command.attempt;
    record.replicaId = lease.replicaId;
    record.startedMs ??= clock.nowMs();
    const ready = pool.ready.get(lease.replicaId);
    if (ready === undefined || ready.incarnation !== lease.incarnation) {
      // The replica was lost and its replica_lost waits in the mailbox behind this decision.
      const { taskId } = command;
      const message = "the engine was lost before the start";
      const lost = { kind: "lost" as const, code: "WORKER_RESET" as const, message };
      const outcome = { ...lost, tokensProduced: 0, began: false };
      const event = {
        type: "attempt_ended" as const,
        taskId,
        poolId: command.poolId,
        lease,
        outcome,
        slotFree: false,
      };
      this.post({ kind: "event", event });
      return;
    }
    const { client, identity } = ready;
    record.engineVersion = identity.engineVersion;
    this.telemetry.started(record, pool.spec.engine, lease.replicaId, lease.slot, command.candidates);
    const { ctxPerSlot } = identity;
    runner.start({ record, lease, pool: pool.spec, client, ctxPerSlot, number: command.attempt }, this);
  }

  private requeue(taskId: string, message: string): void {
    const record = this.deps.registry.get(taskId);
    record.state = "queued";
    this.telemetry.requeued(record, this.pools.get(record.spec.poolId).spec.engine, message);
  }

  private finish(command: Extract<Command, { type: "finish_task" }>, result: AttemptResult | null): void {
    const { registry, clock } = this.deps;
    const { state, message } = command;
    const record = registry.get(command.taskId);
    const pool = this.pools.get(record.spec.poolId);
    const nowMs = clock.nowMs();
    this.deadlines.get(command.taskId)?.cancel();
    this.deadlines.delete(command.taskId);
    record.state = state;
    record.finishedMs = nowMs;
    if (state === "done") {
      assert(result !== null, "a finished attempt has a result");
      record.finishReason = result.finishReason;
      record.tokensIn = result.tokensIn;
      // What the engine counted: a stop string or a torn character makes fewer pieces than tokens.
      record.tokensOut = result.tokensOut;
      pool.done++;
      this.forecast.score(record, nowMs);
      record.log.seal(endEvent(record, result, nowMs), false);
    } else {
      const code = command.code ?? "INTERNAL";
      if (state === "failed") pool.failed++;
      record.error = { code, message: state === "canceled" ? canceledMessage(message) : message };
      const retryAfterMs = errorTable[code].retriable ? this.forecast.retryAfterMs(pool.spec.id) : null;
      record.log.seal(errorEvent(record.error, pool.spec.engine, retryAfterMs), state === "canceled");
    }
    pool.tokensOut += record.tokensOut;
    this.telemetry.ended(record, pool.spec.engine, state, message, nowMs);
    registry.noteEnded(record, nowMs);
  }
}
