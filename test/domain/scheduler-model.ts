/**
 * A second scheduler, written from the behaviour (ORCHD-ADM-1, ORCHD-ADM-2, ORCHD-PLACE-1) in the plainest way: arrays that are sorted and searched at
 * every step. It is told the same events as the real one and says which commands must come, in which order.
 * Shares nothing with src/domain but types. Used by the tests of the scheduler only.
 */
import type { FullPolicy } from "../../src/domain/pool.ts";
import type { Fairness, QueueEntry } from "../../src/domain/queue.ts";
import type {
  Command,
  HoldReason,
  Lease,
  NewTask,
  SchedulerEvent,
} from "../../src/domain/scheduler-protocol.ts";
import type { Priority } from "../../src/domain/task.ts";
import { PlainQueue } from "./plain-queue.ts";

export const attemptsMax = 3;
export const batchMaxWaitMs = 100;
const affinityWaitMs = 2000;
const heldMax = 8;
const calledMax = 16;
const crashesShared = 2;
const tokensClearing = 4;

type Rule = "interactive" | "aged" | "batch";

export interface ModelTask extends Omit<NewTask, "exclusive">, Omit<QueueEntry, "exclusive"> {
  /** It asked for a replica of its own, or crashes in a row got it one. */
  exclusive: boolean;
  readonly strict: boolean;
  state: "waiting" | "running" | "ended";
  lease: Lease | null;
  resumed: boolean;
  overdue: boolean;
  hasSent: boolean;
  fruitless: number;
  crashes: number;
  /** Attempts that were lost. */
  cuts: number;
  attempts: number;
  finishes: number;
  heldSinceMs: number | null;
  mayHold: boolean;
  rule: Rule | null;
  /** Since it was aged: turns in its pool, and how many waiting aged ones or put-back ones were ahead of it. */
  startsSinceAged: number;
  aheadWhenAged: number | null;
}

interface ModelSlot {
  /** Lease id, or null. */
  leaseId: number | null;
  /** The number of leases there had been when it was last freed: idle longest goes first. */
  freedAt: number;
  sessionId: string | null;
  expectedEndMs: number;
  /** Its engine broke off and has not freed it: nothing starts on the replica. */
  lost: boolean;
}

interface ModelReplica {
  readonly id: string;
  readonly incarnation: number;
  readonly slots: ModelSlot[];
  reservedFor: string | null;
  heldBy: number | null;
  vram: number | null;
  tps: number | null;
}

interface ModelPool {
  readonly capacity: number;
  readonly policy: FullPolicy;
  readonly replicas: ModelReplica[];
  readonly queue: PlainQueue<ModelTask>;
  /** Called up, in that order. */
  apart: ModelTask[];
  /** One for each turn: did an aged batch task wait, and was it taken? */
  readonly turns: { watched: boolean; taken: boolean }[];
  wakeAtMs: number | null;
  unavailable: string | null;
  readonly holds: Set<HoldReason>;
  /** Leases that a hold has cut. */
  readonly cutLeases: Set<number>;
}

const isBusy = (slot: ModelSlot): boolean => slot.leaseId !== null;
const busy = (r: ModelReplica): number => r.slots.filter(isBusy).length;
const isOpen = (r: ModelReplica): boolean => r.reservedFor === null && r.heldBy === null;
const hasRoom = (r: ModelReplica): boolean =>
  isOpen(r) && busy(r) < r.slots.length && !r.slots.some((slot) => isBusy(slot) && slot.lost);
const sessionRank = (r: ModelReplica, sessionId: string | null): number =>
  Math.max(
    0,
    ...r.slots.map((s) => (sessionId === null || s.sessionId !== sessionId ? 0 : isBusy(s) ? 1 : 2)),
  );

export class Model {
  readonly pools: Map<string, ModelPool>;
  readonly tasks: ModelTask[] = [];
  private leases = 0;
  admissions = 0;

  constructor(
    pools: readonly { id: string; capacity: number; fullPolicy: FullPolicy }[],
    fair: Fairness,
    private readonly exclusiveMax: number,
  ) {
    this.pools = new Map(
      pools.map((p) => [
        p.id,
        {
          capacity: p.capacity,
          policy: p.fullPolicy,
          replicas: [],
          queue: new PlainQueue(fair),
          apart: [],
          turns: [],
          wakeAtMs: null,
          unavailable: null,
          holds: new Set(),
          cutLeases: new Set(),
        },
      ]),
    );
  }

  pool(id: string): ModelPool {
    const pool = this.pools.get(id);
    if (pool === undefined) throw new Error(`the model has no pool ${id}`);
    return pool;
  }

  task(id: string): ModelTask | null {
    return this.tasks.find((t) => t.taskId === id) ?? null;
  }

  waiting(pool: string, priority?: Priority): ModelTask[] {
    return this.tasks
      .filter((t) => t.state === "waiting" && t.poolId === pool && (priority ?? t.priority) === t.priority)
      .sort((a, b) => a.ordinal - b.ordinal);
  }

  /** Replicas that exclusive tasks hold or wait for. */
  alone(pool: ModelPool): number {
    return pool.replicas.filter((r) => !isOpen(r)).length;
  }

  /** What admission must say, and the commands when it takes the task. */
  admit(
    task: NewTask,
    nowMs: number,
  ): { refused: string; policy: string | null } | { ordinal: number; position: number; commands: Command[] } {
    const { poolId, priority } = task;
    const pool = this.pool(poolId);
    if (pool.unavailable !== null) return { refused: "POOL_UNAVAILABLE", policy: null };
    const counted = this.waiting(poolId).filter((t) => !t.resumed).length;
    const shed = pool.policy === "shed-low-priority" && priority === "batch";
    const full = shed ? counted >= pool.capacity * 0.8 : counted >= pool.capacity;
    const cutOnesWait = this.waiting(poolId).some((t) => t.resumed);
    const held = pool.holds.size > 0;
    const room = pool.replicas.some(
      (r) => hasRoom(r) && (!task.exclusive || (busy(r) === 0 && this.mayTakeAlone(pool))),
    );
    const canStart = room && !cutOnesWait && !held;
    const commands: Command[] = [];
    if (full && !canStart) {
      const code = pool.policy === "drop-lru" ? "QUEUE_FULL_DROP_LRU" : "ADMISSION_REJECT";
      const victim = this.waiting(poolId, "batch").find((t) => !t.resumed);
      if (pool.policy !== "drop-lru" || victim === undefined) return { refused: code, policy: pool.policy };
      commands.push(this.finish(victim, "failed", code, null));
    }
    const position = pool.queue.ahead(priority, task.keyId, task.expectedMs).tasks + pool.apart.length;
    const added = this.add({ ...task, ordinal: ++this.admissions, admittedMs: nowMs, resumed: false });
    added.mayHold = !(full && canStart);
    if (pool.replicas.length === 0 && !held) commands.push({ type: "ensure_pool", poolId });
    return { ordinal: added.ordinal, position, commands: [...commands, ...this.starts(poolId, nowMs)] };
  }

  private add(
    task: NewTask & { ordinal: number; admittedMs: number; resumed: boolean; hasSent?: boolean },
  ): ModelTask {
    const added: ModelTask = {
      ...task,
      state: "waiting",
      lease: null,
      strict: task.exclusive,
      overdue: false,
      hasSent: task.hasSent ?? false,
      fruitless: 0,
      crashes: 0,
      cuts: 0,
      attempts: 0,
      finishes: 0,
      heldSinceMs: null,
      mayHold: true,
      rule: null,
      startsSinceAged: 0,
      aheadWhenAged: null,
    };
    this.tasks.push(added);
    this.pool(task.poolId).queue.add(added);
    return added;
  }

  decide(event: SchedulerEvent, nowMs: number): Command[] {
    switch (event.type) {
      case "replica_ready": {
        const pool = this.pool(event.poolId);
        pool.unavailable = null;
        const slot = (): ModelSlot => ({
          leaseId: null,
          freedAt: 0,
          sessionId: null,
          expectedEndMs: 0,
          lost: false,
        });
        const slots = Array.from({ length: event.slots }, slot);
        const rest = { reservedFor: null, heldBy: null, vram: null, tps: null };
        pool.replicas.push({ id: event.replicaId, incarnation: event.incarnation, slots, ...rest });
        return this.starts(event.poolId, nowMs);
      }
      case "replica_lost": {
        const { replicas } = this.pool(event.poolId);
        const at = replicas.findIndex((r) => r.id === event.replicaId && r.incarnation === event.incarnation);
        if (at >= 0) replicas.splice(at, 1);
        return this.starts(event.poolId, nowMs);
      }
      case "replica_measured": {
        const replica = this.replica(event.poolId, event.replicaId);
        if (replica?.incarnation === event.incarnation) {
          replica.vram = event.vramFreeBytes;
          replica.tps = event.decodeTps;
        }
        return [];
      }
      case "pool_unavailable": {
        const { poolId, message } = event;
        const pool = this.pool(poolId);
        pool.unavailable = message;
        const inLine = (p: Priority) => this.waiting(poolId, p).filter((t) => !pool.apart.includes(t));
        const all = [...pool.apart, ...inLine("interactive"), ...inLine("batch")];
        return all.map((t) => this.finish(t, "failed", "POOL_UNAVAILABLE", message));
      }
      case "cancel_requested":
      case "deadline_passed":
      case "start_deadline_passed":
      case "run_time_passed": {
        const task = this.live(event.taskId);
        if (task === null) return [];
        return [...this.endEarly(task, event), ...this.starts(task.poolId, nowMs)];
      }
      case "attempt_ended":
        return [...this.attemptEnded(event), ...this.starts(event.poolId, nowMs)];
      case "slot_freed": {
        const { poolId, replicaId, incarnation, leaseId } = event;
        const freed = this.free(poolId, replicaId, incarnation, leaseId);
        return freed === null ? [] : [freed, ...this.starts(poolId, nowMs)];
      }
      case "wake":
        this.pool(event.poolId).wakeAtMs = null;
        return this.starts(event.poolId, nowMs);
      case "session_forgotten":
        return [...this.pools.entries()].flatMap(([id, pool]) => {
          for (const slot of pool.replicas.flatMap((r) => r.slots))
            if (slot.sessionId === event.sessionId) slot.sessionId = null;
          return this.starts(id, nowMs);
        });
      case "pool_held":
        this.pool(event.poolId).holds.add(event.by);
        return [];
      case "pool_released": {
        const { poolId } = event;
        const pool = this.pool(poolId);
        const wasHeld = pool.holds.delete(event.by);
        if (!wasHeld || pool.holds.size > 0) return [];
        const asks = pool.replicas.length === 0 && this.waiting(poolId).length > 0;
        const commands: Command[] = asks ? [{ type: "ensure_pool", poolId }] : [];
        return [...commands, ...this.starts(poolId, nowMs)];
      }
      case "hold_deadline_passed":
        return this.cutHeld(this.pool(event.poolId), event.by);
      case "replicas_retired":
      case "retirement_over":
        throw new Error("the model knows no retired replicas: scheduler-holds.test.ts does");
      case "pool_added":
      case "pool_changed":
      case "pool_leaving":
      case "leaving_over":
      case "pool_removed":
      case "options_changed":
        throw new Error("the model's pools are always there: scheduler-pools.test.ts changes them");
      case "task_unfit": {
        const task = this.live(event.taskId);
        return task?.state === "waiting" ? [this.finish(task, "failed", "WORKER_RESET", event.message)] : [];
      }
      case "recovered": {
        const inOrder = [...event.tasks].sort((a, b) => a.ordinal - b.ordinal);
        for (const task of inOrder) {
          this.add(task);
          this.admissions = Math.max(this.admissions, task.ordinal);
        }
        const pools = new Set(inOrder.map((t) => t.poolId));
        return [...pools].map((poolId) => ({ type: "ensure_pool", poolId }));
      }
    }
  }

  private endEarly(
    task: ModelTask,
    event: Extract<
      SchedulerEvent,
      { type: "cancel_requested" | "deadline_passed" | "start_deadline_passed" | "run_time_passed" }
    >,
  ): Command[] {
    if (event.type === "run_time_passed")
      return [
        ...this.aborted(task, "run_time"),
        this.finish(task, "failed", "DECODE_TIMEOUT", event.message),
      ];
    if (event.type === "cancel_requested")
      return [...this.aborted(task, event.reason), this.finish(task, "canceled", "CANCELED", event.reason)];
    const unmet = () => [
      ...this.aborted(task, "deadline"),
      this.finish(task, "failed", "DEADLINE_UNMET", null),
    ];
    const waits = task.state === "waiting";
    if (event.type === "start_deadline_passed")
      return waits && task.cuts === 0 && !task.hasSent ? unmet() : [];
    if (event.cut || (waits && !task.hasSent)) return unmet();
    task.overdue = true;
    return [];
  }

  private attemptEnded(event: Extract<SchedulerEvent, { type: "attempt_ended" }>): Command[] {
    const { lease, outcome, poolId } = event;
    const commands: Command[] = [];
    if (event.slotFree) {
      const freed = this.free(poolId, lease.replicaId, lease.incarnation, lease.leaseId);
      if (freed !== null) commands.push(freed);
    } else {
      const replica = this.replica(poolId, lease.replicaId);
      const slot = replica?.slots.find((s) => s.leaseId === lease.leaseId);
      const holds = this.live(event.taskId)?.lease?.leaseId === lease.leaseId;
      if (slot !== undefined) slot.expectedEndMs = 0;
      if (slot !== undefined && holds) slot.lost = outcome.kind === "lost";
    }
    const task = this.live(event.taskId);
    if (task === null || task.lease?.leaseId !== lease.leaseId) return commands;
    if (outcome.kind === "finished") return [...commands, this.finish(task, "done", null, "")];
    if (outcome.kind === "failed")
      return [...commands, this.finish(task, "failed", outcome.code, outcome.message)];
    const cut = outcome.kind === "cut" ? outcome.reason : null;
    const { tokensProduced } = outcome;
    task.cuts++;
    task.hasSent ||= tokensProduced > 0;
    if (tokensProduced > 0) task.fruitless = 0;
    if (outcome.kind === "lost" && outcome.began) {
      if (tokensProduced === 0) task.fruitless++;
      task.crashes = tokensProduced < tokensClearing ? task.crashes + 1 : 0;
    }
    task.exclusive = task.strict || task.crashes >= crashesShared;
    const { unavailable } = this.pool(poolId);
    if (outcome.kind === "lost" && task.fruitless === attemptsMax)
      return [...commands, this.finish(task, "failed", outcome.code, null)];
    if (unavailable !== null)
      return [...commands, this.finish(task, "failed", "POOL_UNAVAILABLE", unavailable)];
    if (task.overdue && !task.hasSent && cut === null)
      return [...commands, this.finish(task, "failed", "DEADLINE_UNMET", null)];
    // It waits anew: the bound on the wait of an aged task starts over with it.
    Object.assign(task, {
      state: "waiting",
      lease: null,
      resumed: true,
      startsSinceAged: 0,
      aheadWhenAged: null,
    });
    this.pool(poolId).queue.add(task);
    for (const other of this.waiting(poolId, "batch"))
      if (other.aheadWhenAged !== null && other.ordinal > task.ordinal && task.priority === "batch")
        other.aheadWhenAged++;
    const message = outcome.kind === "lost" ? outcome.message : anyMessage;
    return [...commands, { type: "requeue_task", taskId: task.taskId, message, cut }];
  }

  private cutHeld(pool: ModelPool, reason: HoldReason): Command[] {
    if (!pool.holds.has(reason)) return [];
    const commands: Command[] = [];
    for (const slot of pool.replicas.flatMap((r) => r.slots)) {
      const { leaseId } = slot;
      const task = this.tasks.find((t) => t.state === "running" && t.lease?.leaseId === leaseId);
      if (leaseId === null || task === undefined || pool.cutLeases.has(leaseId)) continue;
      pool.cutLeases.add(leaseId);
      slot.expectedEndMs = 0;
      commands.push({ type: "cut_attempt", taskId: task.taskId, leaseId, reason });
    }
    return commands;
  }

  private mayTakeAlone(pool: ModelPool): boolean {
    return this.alone(pool) < Math.min(this.exclusiveMax, pool.replicas.length);
  }

  /** One start after the other, until nothing that waits may start. */
  private starts(poolId: string, nowMs: number): Command[] {
    const pool = this.pool(poolId);
    const commands: Command[] = [];
    const passed: string[] = [];
    if (pool.holds.size > 0) return commands;
    for (;;) {
      for (const task of [...pool.apart]) commands.push(...this.startAlone(pool, task, nowMs));
      if (!pool.replicas.some(hasRoom)) return commands;
      const eligible = this.waiting(poolId).filter(
        (t) => !passed.includes(t.taskId) && !pool.apart.includes(t),
      );
      const aged = eligible.filter((t) => t.priority === "batch" && nowMs - t.admittedMs >= batchMaxWaitMs);
      for (const [at, t] of aged.entries()) t.aheadWhenAged ??= at;
      const lastThree = pool.turns.slice(-3);
      const agedTurn =
        aged.length > 0 && lastThree.length === 3 && lastThree.every((s) => s.watched && !s.taken);
      const interactive = pool.queue.next("interactive", passed);
      const task = interactive === null || agedTurn ? pool.queue.next("batch", passed) : interactive;
      if (task === null) return commands;
      const rule: Rule = task.priority === "interactive" ? "interactive" : aged.length > 0 ? "aged" : "batch";
      if (task.exclusive && pool.apart.filter((t) => t.priority === task.priority).length >= calledMax) {
        passed.push(...eligible.filter((t) => t.exclusive).map((t) => t.taskId));
        continue;
      }
      if (!task.exclusive && this.holds(poolId, task, passed.length, nowMs, commands)) {
        passed.push(task.taskId);
        continue;
      }
      pool.turns.push({ watched: aged.length > 0, taken: rule === "aged" });
      for (const t of aged) t.startsSinceAged++;
      pool.queue.take(task, passed);
      task.rule = rule;
      if (task.exclusive) {
        pool.apart.push(task);
        continue;
      }
      const able = pool.replicas.filter(hasRoom).sort(betterFor(task.sessionId));
      const [replica] = able;
      if (replica === undefined) throw new Error("a replica has room");
      commands.push(...this.start(task, replica, able.length, nowMs));
    }
  }

  private startAlone(pool: ModelPool, task: ModelTask, nowMs: number): Command[] {
    let replica = pool.replicas.find((r) => r.reservedFor === task.taskId);
    let candidates = 1;
    if (replica === undefined) {
      if (!this.mayTakeAlone(pool)) return [];
      const open = pool.replicas.filter(isOpen);
      const fewest = Math.min(...open.map(busy));
      const least = open.filter((r) => busy(r) === fewest);
      const roomy = least.filter(hasRoom).sort(betterFor(task.sessionId));
      replica = roomy[0] ?? least.sort((a, b) => (a.id < b.id ? -1 : 1))[0];
      candidates = open.length;
      if (replica === undefined) return [];
      replica.reservedFor = task.taskId;
    }
    if (busy(replica) > 0) return [];
    replica.reservedFor = null;
    pool.apart = pool.apart.filter((t) => t !== task);
    const commands = this.start(task, replica, candidates, nowMs);
    replica.heldBy = task.lease?.leaseId ?? null;
    return commands;
  }

  /** Its session's replica has no room, but is expected to have some soon. */
  private holds(poolId: string, task: ModelTask, held: number, nowMs: number, commands: Command[]): boolean {
    const pool = this.pool(poolId);
    if (task.sessionId === null || !task.mayHold || held >= heldMax) return false;
    if (task.heldSinceMs !== null && nowMs >= task.heldSinceMs + affinityWaitMs) return false;
    const own = pool.replicas.filter((r) => isOpen(r) && sessionRank(r, task.sessionId) > 0);
    if (own.length === 0 || own.some(hasRoom)) return false;
    if (Math.min(...own.flatMap((r) => r.slots.map((s) => s.expectedEndMs))) > nowMs + affinityWaitMs)
      return false;
    task.heldSinceMs ??= nowMs;
    const atMs = task.heldSinceMs + affinityWaitMs;
    if (pool.wakeAtMs === null || atMs < pool.wakeAtMs) {
      pool.wakeAtMs = atMs;
      commands.push({ type: "wake_at", poolId, atMs });
    }
    return true;
  }

  private start(task: ModelTask, replica: ModelReplica, candidates: number, nowMs: number): Command[] {
    const { taskId, poolId, sessionId } = task;
    const { id: replicaId, incarnation, slots } = replica;
    const free = slots.filter((s) => !isBusy(s));
    const own = (s: ModelSlot) => (sessionId !== null && s.sessionId === sessionId ? 0 : 1);
    const [slot] = free.sort((x, y) => own(x) - own(y) || x.freedAt - y.freedAt);
    if (slot === undefined) throw new Error("a slot is free");
    const lease: Lease = { leaseId: ++this.leases, replicaId, incarnation, slot: slots.indexOf(slot) };
    Object.assign(slot, {
      leaseId: this.leases,
      sessionId,
      expectedEndMs: nowMs + task.expectedMs,
      lost: false,
    });
    Object.assign(task, { lease, state: "running" });
    task.attempts++;
    const rule = task.rule ?? "batch";
    const why = { rule, replica: "id", slot: "idle", held: task.heldSinceMs !== null } as const;
    return [
      { type: "start_attempt", taskId, poolId, lease, attempt: task.attempts, candidates, why },
      { type: "note_slots_busy", replicaId, incarnation, busy: busy(replica) },
    ];
  }

  private aborted(task: ModelTask, reason: string): Command[] {
    if (task.lease === null) return [];
    const slot = this.replica(task.poolId, task.lease.replicaId)?.slots.find(
      (s) => s.leaseId === task.lease?.leaseId,
    );
    // Its engine frees it any moment.
    if (slot !== undefined) slot.expectedEndMs = 0;
    return [{ type: "abort_attempt", leaseId: task.lease.leaseId, reason }];
  }

  /** `message` null: any text will do. */
  private finish(
    task: ModelTask,
    state: "done" | "failed" | "canceled",
    code: Extract<Command, { type: "finish_task" }>["code"],
    message: string | null,
  ): Command {
    const pool = this.pool(task.poolId);
    if (task.state === "waiting" && !pool.apart.includes(task)) pool.queue.remove(task);
    pool.apart = pool.apart.filter((t) => t !== task);
    for (const r of pool.replicas) if (r.reservedFor === task.taskId) r.reservedFor = null;
    task.state = "ended";
    task.finishes++;
    const { taskId } = task;
    const replicaId = task.lease?.replicaId ?? null;
    task.lease = null;
    return { type: "finish_task", taskId, state, code, message: message ?? anyMessage, replicaId };
  }

  private free(pool: string, replicaId: string, incarnation: number, leaseId: number): Command | null {
    const replica = this.replica(pool, replicaId);
    const slot = replica?.slots.find((s) => s.leaseId === leaseId);
    if (replica === null || replica.incarnation !== incarnation || slot === undefined) return null;
    Object.assign(slot, { leaseId: null, freedAt: this.leases });
    if (replica.heldBy === leaseId) replica.heldBy = null;
    return { type: "note_slots_busy", replicaId, incarnation, busy: busy(replica) };
  }

  private live(id: string): ModelTask | null {
    const task = this.task(id);
    return task === null || task.state === "ended" ? null : task;
  }

  replica(pool: string, id: string): ModelReplica | null {
    return this.pool(pool).replicas.find((r) => r.id === id) ?? null;
  }
}

const betterFor =
  (sessionId: string | null) =>
  (a: ModelReplica, b: ModelReplica): number =>
    sessionRank(b, sessionId) - sessionRank(a, sessionId) ||
    busy(a) - busy(b) ||
    (b.vram ?? -1) - (a.vram ?? -1) ||
    (b.tps ?? -1) - (a.tps ?? -1) ||
    (a.id < b.id ? -1 : 1);

export const anyMessage = "(any message)";
