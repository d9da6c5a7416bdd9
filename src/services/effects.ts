/**
 * HOT. What the scheduler's commands do to the world. Called by the dispatcher, once the turn that decided them is
 * stored; what comes of them returns to its mailbox.
 */
import { assertNever } from "../domain/assert.ts";
import type { Command } from "../domain/scheduler-protocol.ts";
import type { TaskSpec } from "../domain/task.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { ReplicaControl } from "../ports/supervision.ts";
import type { AttemptListener, AttemptRunner } from "./attempt-runner.ts";
import type { Endings } from "./endings.ts";
import type { Forecast } from "./forecast.ts";
import type { Post } from "./mailbox.ts";
import type { PoolRuntimes } from "./pool-runtime.ts";
import type { AttemptResult, TaskRegistry } from "./task-registry.ts";
import type { TaskTelemetry } from "./task-telemetry.ts";

type StartAttempt = Extract<Command, { type: "start_attempt" }>;

/** A command with what the attempt brought that led to it, if one did. */
export interface Step {
  readonly command: Command;
  readonly result: AttemptResult | null;
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

  private held = false;

  constructor(private readonly deps: EffectsDeps) {}

  /** The daemon stops: nothing starts any more; what would have waits on disk for the next process. */
  hold(): void {
    this.held = true;
  }

  /** No timer is left. */
  close(): void {
    for (const { timer } of this.wakes.values()) timer.cancel();
    this.wakes.clear();
  }

  act({ command, result }: Step): void {
    const { runner, control, clock } = this.deps;
    switch (command.type) {
      case "start_attempt":
        this.startAttempt(command);
        break;
      case "abort_attempt":
        runner.abort(command.leaseId);
        break;
      case "finish_task":
        this.deps.endings.seal(command, result);
        break;
      case "requeue_task":
        this.requeue(command.taskId, command.message);
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
      this.deps.post({ kind: "event", event: { type: "wake", poolId } });
    });
    this.wakes.set(poolId, { atMs, timer });
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
    const { client, identity } = ready;
    record.engineVersion = identity.engineVersion;
    this.deps.telemetry.started(record, pool.spec.engine, command);
    const { ctxPerSlot, engine, engineVersion, modelPath } = identity;
    const build = { engine, version: engineVersion, model: modelPath ?? pool.spec.modelRef, device: null };
    runner.start(
      { record, lease, pool: pool.spec, client, build, ctxPerSlot, number: command.attempt },
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

  private requeue(taskId: string, message: string): void {
    const record = this.deps.registry.get(taskId);
    record.state = "queued";
    this.deps.telemetry.requeued(record, this.deps.pools.engineOf(record.spec.poolId), message);
  }
}
