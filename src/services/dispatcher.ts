/**
 * HOT. The single writer: everything that changes the state of a task passes through its mailbox. A turn
 * drains the mailbox as one batch: each item is decided by the pure scheduler, what was decided is stored in one
 * transaction, then its commands are acted on, and the submitters hear their answers once it is synced. It never
 * awaits slow work: results come back as items.
 *
 * Called by admission (submit), the API (cancel), the supervisor (ReplicaListener) and its own attempts.
 * Always holds: exactly one terminal frame per task; nothing starts outside a free slot of a ready replica;
 * nothing is accepted, and no end is seen, that a restart would not know of.
 */
import { assert, assertNever } from "../domain/assert.ts";
import type { EngineKind } from "../domain/engine-kind.ts";
import { isOrchestratorError, type OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { ReplicaFailure, ReplicaSnapshot, WarmUpSpeed } from "../domain/pool.ts";
import { learnWarmUp } from "../domain/predictor.ts";
import { createScheduler, decide, type SchedulerState } from "../domain/scheduler.ts";
import type { Command, Lease, SchedulerEvent } from "../domain/scheduler-protocol.ts";
import type { Priority, TaskSpec } from "../domain/task.ts";
import type { EngineClient } from "../ports/engine.ts";
import type { ReplicaListener } from "../ports/supervision.ts";
import { isStoreError, type StoreError } from "../ports/task-store.ts";
import { Acceptance, type Assessment, endOfHomeless } from "./acceptance.ts";
import { AttemptFeedback } from "./attempt-feedback.ts";
import { Deadlines } from "./deadlines.ts";
import type { DispatcherDeps } from "./dispatcher-deps.ts";
import { Effects, type Step } from "./effects.ts";
import { Endings } from "./endings.ts";
import { Forecast } from "./forecast.ts";
import type { Item, PlacementNote, Settle, Submitted } from "./mailbox.ts";
import { PoolRoster, scheduledPool } from "./pool-roster.ts";
import { type PoolRuntime, PoolRuntimes, poolGone } from "./pool-runtime.ts";
import { QueueView } from "./queue-view.ts";
import { shuttingDown, storageUnavailable } from "./refusals.ts";
import { Repeats } from "./repeats.ts";
import { SessionRemoval } from "./session-removal.ts";
import type { Remaining, RemovedSession } from "./sessions.ts";
import type { AttemptResult, TaskRecord } from "./task-registry.ts";
import { TaskTelemetry, type Unplaced } from "./task-telemetry.ts";
import type { CancelReason } from "./terminal-events.ts";
import { TurnStore } from "./turn-store.ts";

interface Admitted {
  readonly record: TaskRecord;
  readonly placement: PlacementNote;
  readonly settle: Settle;
}

export class Dispatcher implements ReplicaListener {
  /** After each turn, for who waits until a pool is quiet, or watches who has work. */
  readonly afterTurn: (() => void)[] = [];
  readonly forecast: Forecast;
  readonly view: QueueView;
  readonly repeats: Repeats;
  readonly roster: PoolRoster;
  private readonly state: SchedulerState;
  private readonly pools: PoolRuntimes;
  private readonly telemetry: TaskTelemetry;
  private readonly store: TurnStore;
  private readonly deadlines: Deadlines;
  private readonly acceptance: Acceptance;
  private readonly endings: Endings;
  private readonly effects: Effects;
  private readonly feedback: AttemptFeedback;
  private readonly removal: SessionRemoval;
  private mailbox: Item[] = [];
  private turnPending = false;
  private halted = false;
  private idleWaiters: (() => void)[] = [];
  // Of the turn that runs:
  private steps: Step[] = [];
  private admitted: Admitted[] = [];
  private answers: (() => void)[] = [];

  constructor(private readonly deps: DispatcherDeps) {
    const { clock, registry, sessions } = deps;
    const { attemptsMax, batchMaxWaitMs, fair, managed } = deps;
    this.state = createScheduler(
      { attemptsMax, batchMaxWaitMs, fair },
      deps.pools.map((pool) => scheduledPool(pool, deps.drained?.has(pool.id) ?? false, managed?.(pool))),
    );
    this.pools = new PoolRuntimes(deps.pools);
    this.forecast = new Forecast(clock, registry, this.state, this.pools);
    this.view = new QueueView(this.state, registry);
    this.telemetry = new TaskTelemetry(deps.log, deps.metrics);
    this.store = new TurnStore(deps.store, clock, deps.log, (taskId) => deps.ahead.forget(taskId));
    this.repeats = new Repeats(deps.archive, this.store);
    this.deadlines = new Deadlines(clock, deps.rules, (event) => this.post({ kind: "event", event }));
    const shared = {
      clock,
      registry,
      sessions,
      pools: this.pools,
      forecast: this.forecast,
      store: this.store,
      deadlines: this.deadlines,
      specOf: (taskId: string) => deps.archive.specOf(taskId),
      modelRefusal: deps.modelRefusal ?? (() => null),
    };
    const { control, runner, onFatal } = deps;
    this.acceptance = new Acceptance({ ...shared, scheduler: this.state, rules: deps.rules });
    const { telemetry, view } = this;
    this.endings = new Endings({ ...shared, telemetry, transcripts: deps.transcripts ?? null });
    const post = (item: Item): void => this.post(item);
    this.feedback = new AttemptFeedback({ ...shared, view, control, telemetry, post, onFatal });
    const cancel = (taskId: string): Promise<void> => this.cancel(taskId, "session");
    this.removal = new SessionRemoval({ ...shared, view, log: deps.log, cancel, post });
    this.effects = new Effects({
      ...shared,
      ...{ control, runner, telemetry, post },
      endings: this.endings,
      feedback: this.feedback,
    });
    const forget = (poolId: string): void => this.effects.forgetPool(poolId);
    this.roster = new PoolRoster({ pools: this.pools, tell: (event) => this.tell(event), managed, forget });
  }

  /** What the last process had accepted, and what is left of it. Once, before anything else. */
  recover(): readonly TaskRecord[] {
    const { clock, registry, store, ahead } = this.deps;
    const { commands, homeless } = this.acceptance.recover(store.recover(), ahead, clock.nowMs());
    this.take(commands, null);
    for (const { spec } of homeless) this.take([endOfHomeless(spec)], null);
    this.finishTurn();
    ahead.recoveryOver((taskId) => registry.find(taskId)?.finishedMs === null);
    const live = [...registry.live()];
    for (const record of live) registry.park(record);
    for (const look of this.afterTurn) look();
    return live;
  }

  // ---- what others ask ----

  /** Resolves when it is accepted (or was before) and stored; rejects with the refusal. `watched`: by its sender. */
  submit(spec: TaskSpec, placement: PlacementNote, watched = false): Promise<Submitted> {
    const pool = this.pools.find(spec.poolId);
    if (pool === null) return Promise.reject(poolGone(spec.poolId));
    pool.submitting++;
    return new Promise((resolve, reject) =>
      this.post({ kind: "submit", spec, placement, watched, settle: { resolve, reject } }),
    );
  }

  /** Its first viewer that counts has come. */
  noteWatched(taskId: string): void {
    this.post({ kind: "watched", taskId });
  }

  /** What such a task would be told now; nothing changes. */
  assess(spec: TaskSpec): Assessment {
    return this.acceptance.assess(spec, this.deps.clock.nowMs());
  }

  /** What the task's session and key may still spend; null where nothing bounds it. Its own budget ends with it. */
  remaining({ spec, finishedMs }: TaskRecord): Remaining | null {
    const { sessions, clock } = this.deps;
    if (finishedMs === null) return sessions.remaining(spec.taskId);
    return sessions.remainingFor({ ...spec, budget: null }, clock.nowMs());
  }

  /** What a budget would say to it now; null: it fits. */
  budgetRefusal(spec: TaskSpec): OrchestratorError | null {
    return this.acceptance.budgetRefusal(spec, this.deps.clock.nowMs());
  }

  /** Resolves once the log is sealed: no token is handed to any viewer after that. Idempotent. */
  cancel(taskId: string, reason: CancelReason): Promise<void> {
    return new Promise((resolve) => this.post({ kind: "cancel", taskId, reason, resolve }));
  }

  /** Why a task of this class had better go elsewhere: the refusal that it would get now, or the pool is drained. */
  refusalFor(poolId: string, priority: Priority): OrchestratorError | null {
    return this.acceptance.reluctanceOf(poolId, priority);
  }

  /** What an operator decides about a pool; resolves after the turn that took it. */
  tell(event: SchedulerEvent): Promise<void> {
    return new Promise((resolve) => this.post({ kind: "event", event, resolve }));
  }

  /** In a look after a turn, or outside of turns: decided before all that waits in the mailbox. */
  decideNow(event: SchedulerEvent): void {
    if (this.halted) return;
    this.take(decide(this.state, event, this.deps.clock.nowMs()), null);
    this.finishTurn();
  }

  /** Its engines begin to load, or are gone from memory: what is expected of its tasks depends on that. */
  noteLoading(poolId: string, since: number | null): void {
    this.pools.get(poolId).loadingSinceMs = since;
  }

  /** A request that was refused before it came to a turn. */
  noteRefusal(engine: EngineKind, error: OrchestratorError): void {
    this.telemetry.refused(engine, error);
  }

  /** A submission whose placement leaves no pool. */
  noteUnplaced(correlationId: string, keyId: string, unplaced: Unplaced): void {
    this.telemetry.unplaced(correlationId, keyId, unplaced);
  }

  /** Runtime of a pool: identity, totals, ready replicas. For reading only. */
  runtime(poolId: string): Readonly<PoolRuntime> {
    return this.pools.get(poolId);
  }

  /** No slot is kept for it any more; where it was deleted, its tasks end and its context is erased, too. */
  sessionRemoved(removed: RemovedSession): Promise<void> {
    return this.removal.carryOut(removed);
  }

  /** From now on nothing new is taken or started. */
  close(): void {
    this.acceptance.close();
    this.effects.hold();
  }

  /** Resolves when no task runs. */
  idle(): Promise<void> {
    if (this.isIdle()) return Promise.resolve();
    return new Promise((resolve) => this.idleWaiters.push(resolve));
  }

  /** The drain deadline: what is live is kept for the next start, and nothing moves any more. */
  halt(): void {
    this.halted = true;
    for (const item of this.mailbox.splice(0)) this.refuseLate(item);
    // Ends that the disk refused: its last chance, or they happen once more in the next process.
    this.store.retry();
    this.deadlines.close();
    this.effects.close();
    this.deps.runner.abortAll();
    this.releaseIdle();
  }

  // ---- what the supervisor tells ----

  replicaReady(snapshot: ReplicaSnapshot, client: EngineClient, speed: WarmUpSpeed): void {
    const { poolId, replicaId, incarnation, identity, slotsTotal } = snapshot;
    assert(identity !== null, "a ready replica has an identity");
    this.deps.transcripts?.modelLoaded(identity);
    const pool = this.pools.find(poolId);
    if (pool === null) return;
    const { spec } = pool;
    pool.ready.set(replicaId, { incarnation, client, identity, decodeTps: speed.decodeTps, spec });
    pool.identity = identity;
    const loadMs = pool.loadingSinceMs === null ? null : this.deps.clock.nowMs() - pool.loadingSinceMs;
    pool.loadingSinceMs = null;
    learnWarmUp(pool.predictor, speed, loadMs);
    this.post({
      kind: "event",
      event: { type: "replica_ready", poolId, replicaId, incarnation, slots: slotsTotal },
    });
    this.vramMeasured(snapshot, null);
  }

  /** Of a ready replica; null: not known. */
  vramMeasured({ poolId, replicaId, incarnation }: ReplicaSnapshot, vramFreeBytes: number | null): void {
    const ready = this.pools.find(poolId)?.ready.get(replicaId);
    if (ready?.incarnation !== incarnation) return;
    const { decodeTps } = ready;
    this.post({
      kind: "event",
      event: { type: "replica_measured", poolId, replicaId, incarnation, vramFreeBytes, decodeTps },
    });
  }

  replicaLost(poolId: string, replicaId: string, incarnation: number, _failure: ReplicaFailure | null): void {
    const pool = this.pools.find(poolId);
    if (pool === null) return;
    if (pool.ready.get(replicaId)?.incarnation === incarnation) pool.ready.delete(replicaId);
    pool.loadingSinceMs = this.deps.clock.nowMs();
    this.post({ kind: "event", event: { type: "replica_lost", poolId, replicaId, incarnation } });
  }

  poolUnavailable(poolId: string, failure: ReplicaFailure): void {
    this.post({ kind: "event", event: { type: "pool_unavailable", poolId, message: failure.message } });
  }

  // ---- the turn ----

  private post(item: Item): void {
    if (this.halted) {
      this.refuseLate(item);
      return;
    }
    this.mailbox.push(item);
    assert(this.mailbox.length <= limits.mailboxTurnEventsMax, "the mailbox is drained every turn");
    if (this.turnPending) return;
    this.turnPending = true;
    this.deps.clock.soon(() => this.turn());
  }

  /** Nothing is decided any more; a submitter still gets an answer. */
  private refuseLate(item: Item): void {
    if (item.kind !== "submit") return;
    const { poolId: id, engine } = item.spec;
    item.settle.reject(shuttingDown({ id, engine }));
  }

  private turn(): void {
    this.turnPending = false;
    const items = this.mailbox;
    this.mailbox = [];
    try {
      for (const item of items) this.process(item);
      this.finishTurn();
    } catch (error) {
      this.deps.onFatal(error);
      return;
    }
    for (const look of this.afterTurn) look();
    if (this.isIdle()) this.releaseIdle();
  }

  /** Stored first, then acted on, then answered. */
  private finishTurn(): void {
    for (const op of this.deps.sessions.takeOps()) this.store.add(op);
    const error = this.store.write();
    if (error !== null) this.undoAdmitted(error);
    const { steps, admitted, answers } = this;
    this.steps = [];
    this.admitted = [];
    this.answers = [];
    for (const { record, placement } of admitted) this.telemetry.admitted(record, placement);
    for (const step of steps) this.effects.act(step);
    for (const { record } of admitted) this.deps.registry.park(record);
    if (admitted.length > 0) this.answerOnceSynced(admitted);
    for (const answer of answers) answer();
  }

  /** Attempts start meanwhile: a first token waits for the disk no longer than it would for the engine. */
  private answerOnceSynced(admitted: readonly Admitted[]): void {
    this.store.synced().then(
      () => {
        for (const { record, settle } of admitted) settle.resolve({ record, repeated: false });
      },
      (error: unknown) => {
        if (!isStoreError(error)) {
          this.deps.onFatal(error);
          return;
        }
        for (const { record, settle } of admitted) {
          void this.cancel(record.spec.taskId, "storage");
          settle.reject(storageUnavailable(error));
        }
      },
    );
  }

  private undoAdmitted(error: StoreError): void {
    const nowMs = this.deps.clock.nowMs();
    // The last one first: what a freed slot starts may be one that came before, and is undone after it.
    for (const { record, settle } of this.admitted.splice(0).reverse()) {
      const { taskId } = record.spec;
      let lease: Lease | null = null;
      this.steps = this.steps.filter(({ command }) => {
        if (command.type !== "start_attempt" && command.type !== "finish_task") return true;
        if (command.taskId !== taskId) return true;
        if (command.type === "start_attempt") lease = command.lease;
        return false;
      });
      this.take(this.acceptance.undo(record, lease, nowMs), null);
      const refusal = storageUnavailable(error);
      this.telemetry.refused(record.spec.engine, refusal);
      this.answers.push(() => settle.reject(refusal));
    }
  }

  private isIdle(): boolean {
    return this.mailbox.length === 0 && this.deps.runner.size === 0;
  }

  private releaseIdle(): void {
    const waiters = this.idleWaiters;
    this.idleWaiters = [];
    for (const resolve of waiters) resolve();
  }

  private process(item: Item): void {
    const nowMs = this.deps.clock.nowMs();
    switch (item.kind) {
      case "submit":
        this.processSubmit(item, nowMs);
        return;
      case "cancel": {
        const { taskId, reason, resolve } = item;
        this.take(decide(this.state, { type: "cancel_requested", taskId, reason }, nowMs), null);
        this.answers.push(resolve);
        return;
      }
      case "attempt_ended": {
        const { attempt, outcome, slotFree, result } = item;
        if (!this.pools.has(attempt.record.spec.poolId)) return;
        if (result !== null) this.feedback.noteResult(attempt, result);
        const { lease } = attempt;
        const { taskId, poolId } = attempt.record.spec;
        const event = { type: "attempt_ended" as const, taskId, poolId, lease, outcome, slotFree };
        this.take(decide(this.state, event, nowMs), result);
        return;
      }
      case "watched":
        if (this.state.tasks.has(item.taskId)) this.store.add({ kind: "task_watched", taskId: item.taskId });
        return;
      case "event":
        this.take(decide(this.state, item.event, nowMs), null);
        if (item.resolve !== undefined) this.answers.push(item.resolve);
        return;
      default:
        assertNever(item, "mailbox item");
    }
  }

  private processSubmit(item: Extract<Item, { kind: "submit" }>, nowMs: number): void {
    const { spec, placement, settle } = item;
    const pool = this.pools.find(spec.poolId);
    if (pool === null) return void this.answers.push(() => settle.reject(poolGone(spec.poolId)));
    pool.submitting--;
    const repeat = this.repeats.find(spec.taskId, spec.keyId, spec.bodyDigest);
    if (repeat !== null) {
      this.answers.push(() => {
        if (isOrchestratorError(repeat)) settle.reject(repeat);
        else this.repeats.onceSynced(repeat).then(settle.resolve, settle.reject);
      });
      return;
    }
    const accepted = this.acceptance.accept(spec, item.watched, nowMs);
    if (accepted.kind === "refused") {
      const { refusal } = accepted;
      this.telemetry.refused(spec.engine, refusal);
      // Somebody wants it: the supervisor may try again now instead of at its next turn; it spaces the tries itself.
      if (refusal.code === "POOL_UNAVAILABLE") this.deps.control.ensurePool(spec.poolId);
      this.answers.push(() => settle.reject(refusal));
      return;
    }
    this.admitted.push({ record: accepted.record, placement, settle });
    this.take(accepted.commands, null);
  }

  /** What ends is concluded at once, so that its end is stored with the turn; the rest waits for that. */
  private take(commands: readonly Command[], result: AttemptResult | null): void {
    for (const command of commands) {
      if (command.type === "finish_task") this.endings.conclude(command, result);
      this.steps.push({ command });
    }
  }
}
