/** A scheduler with one pool, driven by hand; what it answers is told in short words. */
import type { FullPolicy } from "../../src/domain/pool.ts";
import type { Preemption } from "../../src/domain/preemption.ts";
import { admit, createScheduler, decide, type SchedulerState } from "../../src/domain/scheduler.ts";
import type {
  AttemptOutcome,
  Command,
  Lease,
  NewTask,
  SchedulerEvent,
  StartReason,
} from "../../src/domain/scheduler-protocol.ts";
import type { SchedulerOptions } from "../../src/domain/scheduler-state.ts";
import { attemptsMax, batchMaxWaitMs } from "./scheduler-model.ts";

const options: SchedulerOptions = { attemptsMax, batchMaxWaitMs, fair: "fifo" };
export const lost = (tokensProduced = 0, began = true): AttemptOutcome => ({
  kind: "lost",
  code: "WORKER_RESET",
  message: "gone",
  tokensProduced,
  began,
});

export const ordinary: Omit<NewTask, "taskId"> = {
  poolId: "p",
  keyId: "k",
  sessionId: null,
  priority: "interactive",
  expectedMs: 1,
  exclusive: false,
  prefix: [],
};

/** One pool, driven by hand. */
export class Bench {
  readonly state: SchedulerState;
  nowMs = 0;
  leases = new Map<string, Lease>();
  reasons = new Map<string, StartReason>();
  wakes: number[] = [];

  constructor(
    fullPolicy: FullPolicy = "reject",
    more: Partial<SchedulerOptions> = {},
    capacity = 4,
    preempt: Preemption | null = null,
  ) {
    this.state = createScheduler({ ...options, ...more }, [{ id: "p", capacity, fullPolicy, preempt }]);
  }

  admit(taskId: string, more: Partial<NewTask> = {}) {
    const admission = admit(this.state, { ...ordinary, taskId, ...more }, this.nowMs);
    const commands = admission.kind === "accepted" ? this.note(admission.commands) : [];
    return { ...admission, said: commands };
  }
  batch(taskId: string, more: Partial<NewTask> = {}) {
    return this.admit(taskId, { priority: "batch", ...more });
  }
  ready(slots: number, replicaId = "p-0", incarnation = 1): string[] {
    return this.tell({ type: "replica_ready", poolId: "p", replicaId, incarnation, slots });
  }
  lose(replicaId = "p-0", incarnation = 1): string[] {
    return this.tell({ type: "replica_lost", poolId: "p", replicaId, incarnation });
  }
  ended(taskId: string, outcome: AttemptOutcome = { kind: "finished" }, slotFree = true): string[] {
    return this.tell({
      type: "attempt_ended",
      taskId,
      poolId: "p",
      lease: this.lease(taskId),
      outcome,
      slotFree,
    });
  }
  cancel(taskId: string): string[] {
    return this.tell({ type: "cancel_requested", taskId, reason: "client" });
  }
  freed(lease: Lease): string[] {
    return this.tell({ type: "slot_freed", poolId: "p", ...lease });
  }
  tell(event: SchedulerEvent): string[] {
    return this.note(decide(this.state, event, this.nowMs));
  }
  lease(taskId: string): Lease {
    const lease = this.leases.get(taskId);
    if (lease === undefined) throw new Error(`${taskId} never started`);
    return lease;
  }
  /** Commands in short: `start a`, `finish a done`, … */
  private note(commands: readonly Command[]): string[] {
    return commands.flatMap((c) => {
      if (c.type === "note_slots_busy") return [];
      if (c.type === "wake_at") this.wakes.push(c.atMs);
      if (c.type === "start_attempt") {
        this.leases.set(c.taskId, c.lease);
        this.reasons.set(c.taskId, c.why);
      }
      if (c.type === "start_attempt") return [`start ${c.taskId}`];
      if (c.type === "finish_task")
        return [`finish ${c.taskId} ${c.state}${c.code === null ? "" : ` ${c.code}`}`];
      if (c.type === "cut_attempt") return [`cut ${c.taskId}`];
      if (c.type === "requeue_task") return [`requeue ${c.taskId}`];
      return [c.type];
    });
  }
}
