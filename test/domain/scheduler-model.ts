/**
 * A second scheduler, written from the behaviour (§9) in the plainest way: arrays that are sorted and searched at
 * every step. It is told the same events as the real one and says which commands must come, in which order.
 * Shares nothing with src/domain but types. Used by scheduler.test.ts only.
 */
import type { Command, Lease, SchedulerEvent } from "../../src/domain/scheduler-protocol.ts";
import type { Priority } from "../../src/domain/task.ts";

export const attemptsMax = 3;
export const batchMaxWaitMs = 100;

export interface ModelTask {
  readonly id: string;
  readonly pool: string;
  readonly priority: Priority;
  /** Order of admission. */
  readonly nth: number;
  readonly admittedMs: number;
  state: "waiting" | "running" | "ended";
  lease: Lease | null;
  resumed: boolean;
  overdue: boolean;
  fruitless: number;
  attempts: number;
  finishes: number;
  /** Since it was aged: starts in its pool, and how many waiting aged ones or put-back ones were ahead of it. */
  startsSinceAged: number;
  aheadWhenAged: number | null;
}

interface ModelReplica {
  readonly id: string;
  readonly incarnation: number;
  /** Lease id, or null. */
  readonly slots: (number | null)[];
  /** For each slot the number of leases there had been when it was last freed: idle longest goes first. */
  readonly freedAt: number[];
}

interface ModelPool {
  readonly capacity: number;
  readonly replicas: ModelReplica[];
  /** One for each start: did an aged batch task wait, and was it taken? */
  readonly starts: { watched: boolean; taken: boolean }[];
  unavailable: string | null;
}

export class Model {
  readonly pools: Map<string, ModelPool>;
  readonly tasks: ModelTask[] = [];
  private leases = 0;

  constructor(pools: readonly { id: string; capacity: number }[]) {
    this.pools = new Map(
      pools.map((p) => [p.id, { capacity: p.capacity, replicas: [], starts: [], unavailable: null }]),
    );
  }

  pool(id: string): ModelPool {
    const pool = this.pools.get(id);
    if (pool === undefined) throw new Error(`the model has no pool ${id}`);
    return pool;
  }

  task(id: string): ModelTask | null {
    return this.tasks.find((t) => t.id === id) ?? null;
  }

  waiting(pool: string, priority?: Priority): ModelTask[] {
    return this.tasks
      .filter((t) => t.state === "waiting" && t.pool === pool && (priority ?? t.priority) === t.priority)
      .sort((a, b) => a.nth - b.nth);
  }

  freeSlots(pool: string): number {
    return this.pool(pool).replicas.reduce((sum, r) => sum + r.slots.filter((s) => s === null).length, 0);
  }

  busyOf(pool: string, replica: string): number {
    return this.replica(pool, replica)?.slots.filter((s) => s !== null).length ?? 0;
  }

  /** What admission must say, and the commands when it takes the task. */
  admit(
    id: string,
    pool: string,
    priority: Priority,
    nowMs: number,
  ): { refused: string } | { position: number; commands: Command[] } {
    const { unavailable, capacity, replicas } = this.pool(pool);
    if (unavailable !== null) return { refused: "POOL_UNAVAILABLE" };
    const counted = this.waiting(pool).filter((t) => !t.resumed).length;
    if (counted >= capacity && this.freeSlots(pool) === 0) return { refused: "ADMISSION_REJECT" };
    const ahead = this.waiting(pool, priority).length;
    const position = priority === "interactive" ? ahead : ahead + this.waiting(pool, "interactive").length;
    this.tasks.push({
      id,
      pool,
      priority,
      nth: this.tasks.length,
      admittedMs: nowMs,
      state: "waiting",
      lease: null,
      resumed: false,
      overdue: false,
      fruitless: 0,
      attempts: 0,
      finishes: 0,
      startsSinceAged: 0,
      aheadWhenAged: null,
    });
    const commands: Command[] = replicas.length === 0 ? [{ type: "ensure_pool", poolId: pool }] : [];
    return { position, commands: [...commands, ...this.starts(pool, nowMs)] };
  }

  decide(event: SchedulerEvent, nowMs: number): Command[] {
    switch (event.type) {
      case "replica_ready": {
        const pool = this.pool(event.poolId);
        pool.unavailable = null;
        const slots = new Array<number | null>(event.slots).fill(null);
        const freedAt = slots.map(() => 0);
        pool.replicas.push({ id: event.replicaId, incarnation: event.incarnation, slots, freedAt });
        return this.starts(event.poolId, nowMs);
      }
      case "replica_lost": {
        const { replicas } = this.pool(event.poolId);
        const at = replicas.findIndex((r) => r.id === event.replicaId && r.incarnation === event.incarnation);
        if (at >= 0) replicas.splice(at, 1);
        return [];
      }
      case "pool_unavailable": {
        this.pool(event.poolId).unavailable = event.message;
        const { poolId, message } = event;
        const all = [...this.waiting(poolId, "interactive"), ...this.waiting(poolId, "batch")];
        return all.map((t) => this.finish(t, "failed", "POOL_UNAVAILABLE", message));
      }
      case "cancel_requested": {
        const task = this.live(event.taskId);
        if (task === null) return [];
        return [...this.aborted(task, event.reason), this.finish(task, "canceled", "CANCELED", event.reason)];
      }
      case "deadline_passed": {
        const task = this.live(event.taskId);
        if (task === null) return [];
        if (task.state === "waiting") return [this.finish(task, "failed", "DEADLINE_UNMET", null)];
        task.overdue = true;
        return [];
      }
      case "attempt_ended":
        return [...this.attemptEnded(event), ...this.starts(event.poolId, nowMs)];
      case "slot_freed": {
        const { poolId, replicaId, incarnation, leaseId } = event;
        const freed = this.free(poolId, replicaId, incarnation, leaseId);
        return freed === null ? [] : [freed, ...this.starts(poolId, nowMs)];
      }
      case "shutdown_deadline_passed":
        return this.tasks
          .filter((t) => t.state !== "ended")
          .flatMap((t) => [...this.aborted(t, "shutdown"), this.finish(t, "failed", "WORKER_RESET", null)]);
    }
  }

  private attemptEnded(event: Extract<SchedulerEvent, { type: "attempt_ended" }>): Command[] {
    const { lease, outcome, poolId } = event;
    const commands: Command[] = [];
    if (event.slotFree) {
      const freed = this.free(poolId, lease.replicaId, lease.incarnation, lease.leaseId);
      if (freed !== null) commands.push(freed);
    }
    const task = this.live(event.taskId);
    if (task === null || task.lease?.leaseId !== lease.leaseId) return commands;
    if (outcome.kind === "finished") return [...commands, this.finish(task, "done", null, "")];
    if (outcome.kind === "failed")
      return [...commands, this.finish(task, "failed", outcome.code, outcome.message)];
    if (outcome.tokensProduced === 0) task.fruitless++;
    const { unavailable } = this.pool(poolId);
    if (outcome.tokensProduced > 0 || task.fruitless === attemptsMax)
      return [...commands, this.finish(task, "failed", outcome.code, outcome.message)];
    if (unavailable !== null)
      return [...commands, this.finish(task, "failed", "POOL_UNAVAILABLE", unavailable)];
    if (task.overdue) return [...commands, this.finish(task, "failed", "DEADLINE_UNMET", null)];
    // It waits anew: the bound on the wait of an aged task starts over with it.
    Object.assign(task, {
      state: "waiting",
      lease: null,
      resumed: true,
      startsSinceAged: 0,
      aheadWhenAged: null,
    });
    for (const other of this.waiting(poolId, "batch"))
      if (other.aheadWhenAged !== null && other.nth > task.nth && task.priority === "batch")
        other.aheadWhenAged++;
    return [...commands, { type: "requeue_task", taskId: task.id, message: outcome.message }];
  }

  /** Rules 1 to 4 of the behaviour, one start after the other. */
  private starts(poolId: string, nowMs: number): Command[] {
    const pool = this.pool(poolId);
    const commands: Command[] = [];
    for (;;) {
      const able = pool.replicas
        .filter((r) => r.slots.includes(null))
        .sort((a, b) => this.busyOf(poolId, a.id) - this.busyOf(poolId, b.id) || (a.id < b.id ? -1 : 1));
      const replica = able[0];
      const [interactive] = this.waiting(poolId, "interactive");
      const batches = this.waiting(poolId, "batch");
      if (replica === undefined || (interactive ?? batches[0]) === undefined) return commands;
      const aged = batches.filter((t) => nowMs - t.admittedMs >= batchMaxWaitMs);
      for (const [at, t] of aged.entries()) t.aheadWhenAged ??= at;
      const lastThree = pool.starts.slice(-3);
      const turn = lastThree.length === 3 && lastThree.every((s) => s.watched && !s.taken);
      const chosen = aged[0] !== undefined && (interactive === undefined || turn) ? aged[0] : undefined;
      const task = chosen ?? interactive ?? batches[0];
      if (task === undefined) throw new Error("the model found nothing to start");
      pool.starts.push({ watched: aged.length > 0, taken: chosen !== undefined });
      for (const t of aged) t.startsSinceAged++;
      const free = [...replica.slots.keys()].filter((at) => replica.slots[at] === null);
      const slot =
        free.sort((x, y) => (replica.freedAt[x] ?? 0) - (replica.freedAt[y] ?? 0) || x - y)[0] ?? -1;
      this.leases++;
      replica.slots[slot] = this.leases;
      const { id: replicaId, incarnation } = replica;
      task.lease = { leaseId: this.leases, replicaId, incarnation, slot };
      task.state = "running";
      task.attempts++;
      commands.push(
        {
          type: "start_attempt",
          taskId: task.id,
          poolId,
          lease: task.lease,
          attempt: task.attempts,
          candidates: able.length,
        },
        { type: "note_slots_busy", replicaId, incarnation, busy: this.busyOf(poolId, replicaId) },
      );
    }
  }

  private aborted(task: ModelTask, reason: string): Command[] {
    return task.lease === null ? [] : [{ type: "abort_attempt", leaseId: task.lease.leaseId, reason }];
  }

  /** `message` null: any text will do. */
  private finish(
    task: ModelTask,
    state: "done" | "failed" | "canceled",
    code: Extract<Command, { type: "finish_task" }>["code"],
    message: string | null,
  ): Command {
    task.state = "ended";
    task.finishes++;
    const replicaId = task.lease?.replicaId ?? null;
    task.lease = null;
    return { type: "finish_task", taskId: task.id, state, code, message: message ?? anyMessage, replicaId };
  }

  private free(pool: string, replica: string, incarnation: number, leaseId: number): Command | null {
    const found = this.replica(pool, replica);
    if (found === null || found.incarnation !== incarnation) return null;
    const at = found.slots.indexOf(leaseId);
    found.slots[at] = null;
    found.freedAt[at] = this.leases;
    return { type: "note_slots_busy", replicaId: replica, incarnation, busy: this.busyOf(pool, replica) };
  }

  private live(id: string): ModelTask | null {
    const task = this.task(id);
    return task === null || task.state === "ended" ? null : task;
  }

  private replica(pool: string, id: string): ModelReplica | null {
    return this.pool(pool).replicas.find((r) => r.id === id) ?? null;
  }
}

export const anyMessage = "(any message)";
