/**
 * HOT. What the scheduler's commands do to the world. Called by the dispatcher, once the turn that decided them is
 * stored; what comes of them returns to its mailbox.
 */
import { assertNever } from "../domain/assert.ts";
import {
  type EngineIdentity,
  type PoolSpec,
  type SameModel,
  sameModelOf,
  unknownVersion,
} from "../domain/pool.ts";
import type { RunningWork } from "../domain/preemption.ts";
import type { Command } from "../domain/scheduler-protocol.ts";
import type { TaskSpec } from "../domain/task.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { ReplicaControl } from "../ports/supervision.ts";
import type { AttemptListener, AttemptRunner } from "./attempt-runner.ts";
import type { Endings } from "./endings.ts";
import { forModel } from "./fitting-prompt.ts";
import type { Forecast } from "./forecast.ts";
import type { Post } from "./mailbox.ts";
import type { PoolRuntimes } from "./pool-runtime.ts";
import { RunTimes } from "./run-times.ts";
import { noteRun, type TaskRecord, type TaskRegistry } from "./task-registry.ts";
import type { TaskTelemetry } from "./task-telemetry.ts";
import { attemptFacts } from "./transcript-facts.ts";

type StartAttempt = Extract<Command, { type: "start_attempt" }>;

/** What was decided and is to be carried out. */
export interface Step {
  readonly command: Command;
}

export interface EffectsDeps {
  readonly clock: Clock;
  readonly registry: TaskRegistry;
  readonly pools: PoolRuntimes;
  readonly forecast: Forecast;
  readonly control: ReplicaControl;
  readonly runner: AttemptRunner;
  readonly telemetry: TaskTelemetry;
  readonly endings: Endings;
  readonly feedback: AttemptListener;
  readonly post: Post;
  /** What was stored of a live task. */
  readonly specOf: (taskId: string) => TaskSpec;
}

export class Effects {
  private readonly wakes = new Map<string, { readonly atMs: number; readonly timer: Timer }>();

  private readonly runTimes: RunTimes;
  private held = false;

  constructor(private readonly deps: EffectsDeps) {
    this.runTimes = new RunTimes(deps.clock, (event) => deps.post({ kind: "event", event }));
  }

  /** The daemon stops: nothing starts any more; what would have waits on disk for the next process. */
  hold(): void {
    this.held = true;
  }

  /** No timer is left. */
  close(): void {
    for (const { timer } of this.wakes.values()) timer.cancel();
    this.wakes.clear();
    this.runTimes.close();
  }

  /** The pool is gone, and so is what was to be told of it. */
  forgetPool(poolId: string): void {
    this.wakes.get(poolId)?.timer.cancel();
    this.wakes.delete(poolId);
  }

  act({ command }: Step): void {
    const { runner, control, clock } = this.deps;
    switch (command.type) {
      case "start_attempt":
        this.startAttempt(command);
        break;
      case "abort_attempt":
        runner.abort(command.leaseId);
        break;
      case "cut_attempt":
        // Nobody starts in its place any more: it runs on as long as the drain lets it.
        if (!this.held || command.reason !== "preempted") runner.cut(command.leaseId, command.reason);
        break;
      case "finish_task":
        this.runTimes.forget(command.taskId);
        this.deps.endings.seal(command);
        break;
      case "requeue_task":
        this.requeue(command);
        break;
      case "ensure_pool":
        this.deps.pools.get(command.poolId).loadingSinceMs ??= clock.nowMs();
        control.ensurePool(command.poolId);
        break;
      case "note_slots_busy":
        control.noteSlotsBusy(command.replicaId, command.incarnation, command.busy);
        break;
      case "wake_at":
        this.wakeAt(command.poolId, command.atMs);
        break;
      default:
        assertNever(command, "command");
    }
  }

  private wakeAt(poolId: string, atMs: number): void {
    const { clock } = this.deps;
    const armed = this.wakes.get(poolId);
    if (armed !== undefined && armed.atMs <= atMs) return;
    armed?.timer.cancel();
    const timer = clock.setTimer(Math.max(0, atMs - clock.nowMs()), () => {
      this.wakes.delete(poolId);
      this.deps.post({ kind: "event", event: { type: "wake", poolId, ...this.costsOf(poolId) } });
    });
    this.wakes.set(poolId, { atMs, timer });
  }

  /** What a cut would cost, where one may be due. */
  private costsOf(poolId: string): { running?: readonly RunningWork[] } {
    const { pools, forecast } = this.deps;
    return (pools.find(poolId)?.spec.preempt ?? null) === null
      ? {}
      : { running: forecast.runningWork(poolId) };
  }

  private startAttempt(command: StartAttempt): void {
    const { registry, runner, clock } = this.deps;
    const { lease, taskId, poolId } = command;
    if (this.held) return;
    const record = registry.get(taskId);
    if (record.finishedMs !== null) {
      this.neverBegan(command, "it ended in the turn in which it was to start", true);
      return;
    }
    const pool = this.deps.pools.get(poolId);
    registry.unpark(record, () => this.deps.specOf(taskId));
    record.state = "running";
    record.attempts = command.attempt;
    record.replicaId = lease.replicaId;
    if (record.startedMs === null) {
      record.startedMs = clock.nowMs();
      this.deps.forecast.noteStarted(record, record.startedMs);
    }
    const ready = pool.ready.get(lease.replicaId);
    if (ready === undefined || ready.incarnation !== lease.incarnation) {
      // The replica was lost and its replica_lost waits in the mailbox behind this decision.
      this.neverBegan(command, "the engine was lost before the start", false);
      return;
    }
    const { client, identity, spec } = ready;
    const same = sameModelOf(spec, identity);
    if (record.spec.modelRef !== spec.modelRef && !retarget(record, spec, same)) {
      this.anotherModel(command, spec);
      return;
    }
    record.engineVersion = identity.engineVersion;
    this.deps.telemetry.started(record, command);
    if (spec.taskTimeoutMs !== null) this.runTimes.started(taskId, spec.taskTimeoutMs);
    const { ctxPerSlot, engine, engineVersion, modelPath, modelStamp } = identity;
    const model = modelPath ?? spec.modelRef;
    const settings = settingsDigest(spec, identity);
    // Of two servers that do not say what they are nobody knows whether they are the same.
    const version = engineVersion === unknownVersion ? null : engineVersion;
    const loaded = { engine, version, model, modelStamp, settings, device: null };
    // Files with the same bytes say the same: whoever goes on need not know that there are two.
    const build = same === null ? loaded : { ...loaded, model: same.modelPath, modelStamp: same.modelStamp };
    const { replicaId, slot } = lease;
    const run = { number: command.attempt, replicaId, slot, startedMs: clock.nowMs(), build: loaded };
    noteRun(record, attemptFacts(run, identity));
    runner.start(
      { record, lease, pool: spec, client, build, ctxPerSlot, number: command.attempt },
      this.deps.feedback,
    );
  }

  private neverBegan(start: StartAttempt, message: string, slotFree: boolean): void {
    const { taskId, poolId, lease } = start;
    const outcome = {
      kind: "lost" as const,
      code: "WORKER_RESET" as const,
      message,
      tokensProduced: 0,
      began: false,
    };
    this.deps.post({
      kind: "event",
      event: { type: "attempt_ended", taskId, poolId, lease, outcome, slotFree },
    });
  }

  /** Its stream names another model, and what was sent is that one's: nobody goes on with it here. */
  private anotherModel({ taskId, poolId, lease }: StartAttempt, { modelRef }: PoolSpec): void {
    const message = `its pool has another model now (${modelRef}), and its stream has begun with the one before: submit it again`;
    const outcome = { kind: "failed" as const, code: "WORKER_RESET" as const, message };
    this.deps.post({
      kind: "event",
      event: { type: "attempt_ended", taskId, poolId, lease, outcome, slotFree: true },
    });
  }

  private requeue({ taskId, message, cut }: Extract<Command, { type: "requeue_task" }>): void {
    const record = this.deps.registry.get(taskId);
    this.runTimes.stopped(taskId);
    // In the same turn it ended after all.
    if (record.finishedMs !== null) return;
    record.state = "queued";
    this.deps.telemetry.requeued(record, message, cut);
  }
}

/** The same model under another name is only renamed. It waited for another model: its prompt is rendered and counted anew. False: its stream has begun with that one. */
function retarget(record: TaskRecord, { modelRef }: PoolSpec, same: SameModel | null): boolean {
  if (same?.modelRefs.includes(record.spec.modelRef) === true) {
    record.spec = { ...record.spec, modelRef };
    return true;
  }
  if (record.log.length > 0) return false;
  record.spec = forModel(record.spec, modelRef);
  record.acceptedFor = "another_model";
  record.tokensIn = null;
  return true;
}

/** What an engine was started with, as far as its words may depend on it; variables may hold secrets. */
function settingsDigest(
  { args, env, devices, rpc, remote }: PoolSpec,
  { slots, ctxPerSlot }: EngineIdentity,
): string {
  const place = remote?.baseUrl ?? null;
  const settings = JSON.stringify([args, env, devices, rpc, place, slots, ctxPerSlot]);
  return new Bun.CryptoHasher("sha256").update(settings).digest("hex");
}
