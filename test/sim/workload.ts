/**
 * What happens to a simulated daemon, as data drawn from one seed: its pools, what clients send and when, who
 * watches, who cancels, how often engines fail. The same seed and number of tasks is the same workload.
 */
import { type FullPolicy, fullPolicies } from "../../src/domain/pool.ts";
import type { Preemption } from "../../src/domain/preemption.ts";
import type { Priority } from "../../src/domain/task.ts";
import { SeededEntropy } from "../support/virtual-clock.ts";

export interface PoolPlan {
  readonly id: string;
  readonly replicas: number;
  readonly slots: number;
  readonly capacity: number;
  readonly preload: boolean;
  readonly fullPolicy: FullPolicy;
  readonly preempt: Preemption | null;
}

export interface ViewerPlan {
  /** Milliseconds after the task was accepted. */
  readonly comesMs: number;
  /** Milliseconds after it came; null: stays to the end. */
  readonly leavesMs: number | null;
  readonly observes: boolean;
  /** Milliseconds between reads; 0: as fast as it comes. */
  readonly paceMs: number;
  /** Frames that it skips: it says that it had them. */
  readonly after: number;
}

export interface TaskPlan {
  readonly taskId: string;
  readonly atMs: number;
  readonly poolId: string;
  readonly keyId: string;
  readonly sessionId: string | null;
  /** Bounds its session, in tokens; null: nothing does. */
  readonly budgetTokens: number | null;
  /** determinism=strict. */
  readonly strict: boolean;
  readonly priority: Priority;
  readonly tokensIn: number;
  readonly tokens: number;
  /** Temperature 0. Such a one says a short answer again and goes on behind it. */
  readonly greedy: boolean;
  readonly deadlineMs: number | null;
  readonly onDisconnect: "cancel" | "continue";
  /** Milliseconds after it was sent. */
  readonly cancelMs: number | null;
  /** It is canceled in the moment in which its client has read so many tokens; often that is the last one. */
  readonly cancelAtToken: number | null;
  readonly viewers: readonly ViewerPlan[];
}

/** How often an engine does what; shares of all starts and of all generations. */
export interface FaultRates {
  readonly start: number;
  readonly generation: number;
}

/** An operator drains a pool, and resumes it. */
export interface DrainPlan {
  readonly poolId: string;
  readonly atMs: number;
  /** So long what runs may go on. */
  readonly deadlineMs: number;
  readonly resumesMs: number;
}

/** The daemon ends, is away for a while, and comes back with what it had stored. */
export interface StopPlan {
  readonly atMs: number;
  /** It is told to stop and gives what runs so long to end; null: it is killed. */
  readonly drainMs: number | null;
  readonly downMs: number;
}

export interface Workload {
  readonly seed: number;
  readonly pools: readonly PoolPlan[];
  readonly tasks: readonly TaskPlan[];
  readonly faults: FaultRates;
  readonly batchMaxWaitMs: number;
  readonly fair: "fifo" | "per-key";
  /** What runs is cut when its deadline passes. */
  readonly cutAtDeadline: boolean;
  readonly sessions: { readonly ttlMs: number; readonly turnsMax: number };
  readonly stop: StopPlan | null;
  readonly drains: readonly DrainPlan[];
  /** Virtual time after which no client sends anything new and engines behave. */
  readonly faultsUntilMs: number;
}

export class Draw {
  constructor(readonly entropy: SeededEntropy) {}

  unit(): number {
    return this.entropy.unit();
  }
  /** From `from` to `to`, both included. */
  int(from: number, to: number): number {
    return from + Math.floor(this.entropy.unit() * (to - from + 1));
  }
  between(from: number, to: number): number {
    return from + this.entropy.unit() * (to - from);
  }
  chance(share: number): boolean {
    return this.entropy.unit() < share;
  }
  /** Waiting time of a Poisson process. */
  exponential(mean: number): number {
    return -Math.log(1 - this.entropy.unit()) * mean;
  }
  of<T>(all: readonly T[]): T {
    const one = all[this.int(0, all.length - 1)];
    if (one === undefined) throw new Error("drawn from nothing");
    return one;
  }
}

/** About what one task takes on a slot; only shapes the load. */
const serviceMs = 70;

/** `plain`: one key, no sessions, order of admission only, as the first kept seeds were. */
export function drawWorkload(seed: number, count: number, plain = false): Workload {
  const draw = new Draw(new SeededEntropy(seed));
  // Its own numbers, so that what is drawn here leaves times and lengths as they are.
  const more = new Draw(new SeededEntropy(seed + 0x5eed));
  const cuts = new Draw(new SeededEntropy(seed + 0xc075));
  const traits = plain ? plainTraits : drawTraits(more);
  const pools = Array.from({ length: draw.int(1, 2) }, (_, at) => ({
    id: `p${at}`,
    replicas: draw.int(1, 3),
    slots: draw.int(1, 4),
    capacity: draw.int(2, 24),
    preload: draw.chance(0.7),
    fullPolicy: plain ? ("reject" as const) : more.of(fullPolicies),
    preempt: plain || cuts.chance(0.5) ? null : drawPreemption(cuts),
  }));
  const slots = pools.reduce((sum, p) => sum + p.slots * p.replicas, 0);
  const load = draw.between(0.4, 1.8);
  const batchShare = draw.between(0.1, 0.7);
  const clients = new Clients(more, traits);
  const tasks: TaskPlan[] = [];
  let atMs = draw.between(0, 500);
  while (tasks.length < count) {
    atMs += draw.exponential(serviceMs / (slots * load));
    const burst = draw.chance(0.02) ? draw.int(2, 16) : 1;
    for (let n = 0; n < burst && tasks.length < count; n++)
      tasks.push(
        drawTask(draw, clients, atMs, draw.of(pools).id, draw.chance(batchShare) ? "batch" : "interactive"),
      );
  }
  const calm = draw.chance(0.15);
  const faults = calm
    ? { start: 0, generation: 0 }
    : { start: draw.between(0, 0.6), generation: draw.between(0, 0.25) };
  const batchMaxWaitMs = draw.int(100, 800);
  const stop = drawStop(draw, more, traits, atMs);
  return {
    seed,
    pools,
    tasks,
    faults,
    batchMaxWaitMs,
    stop,
    drains: plain ? [] : drawDrains(new Draw(new SeededEntropy(seed + 0xd4a1)), pools, atMs, stop),
    faultsUntilMs: atMs + 500,
    ...traits,
  };
}

/** A generation takes tens of milliseconds here. */
const drawPreemption = (draw: Draw): Preemption => ({
  maxWaitMs: draw.chance(0.3) ? 0 : draw.between(1, 60),
  maxCuts: draw.int(1, 3),
  minGainMs: draw.between(0, 4),
});

interface Traits {
  readonly fair: "fifo" | "per-key";
  readonly cutAtDeadline: boolean;
  readonly sessions: { readonly ttlMs: number; readonly turnsMax: number };
  readonly sessionShare: number;
  readonly strictShare: number;
  readonly keys: number;
  readonly killShare: number;
}
const plainTraits: Traits = {
  fair: "fifo",
  cutAtDeadline: false,
  sessions: { ttlMs: 600_000, turnsMax: 8 },
  sessionShare: 0,
  strictShare: 0,
  keys: 1,
  killShare: 0,
};

const drawTraits = (draw: Draw): Traits => ({
  fair: draw.of(["fifo", "per-key"]),
  cutAtDeadline: draw.chance(0.25),
  sessions: { ttlMs: draw.chance(0.6) ? 600_000 : draw.int(200, 2000), turnsMax: draw.int(3, 8) },
  sessionShare: draw.of([0, 0.3, 0.7]),
  strictShare: draw.of([0, 0, 0.03, 0.1]),
  keys: draw.int(1, 4),
  killShare: 0.3,
});

/** Some last while the daemon is away. */
function drawDrains(
  draw: Draw,
  pools: readonly PoolPlan[],
  untilMs: number,
  stop: StopPlan | null,
): DrainPlan[] {
  return pools
    .filter(() => draw.chance(0.35))
    .map(({ id: poolId }) => ({
      poolId,
      atMs: stop !== null && draw.chance(0.5) ? Math.max(0, stop.atMs - 20) : draw.between(0, untilMs),
      deadlineMs: draw.chance(0.3) ? 0 : draw.between(1, 200),
      resumesMs: draw.between(0, 1000),
    }));
}

function drawStop(draw: Draw, more: Draw, { killShare }: Traits, untilMs: number): StopPlan | null {
  const drained = draw.chance(0.15)
    ? { atMs: draw.between(0, untilMs), drainMs: draw.between(0, draw.of([10, 60, 400])) }
    : null;
  if (drained !== null) return { ...drained, downMs: more.between(1, 300) };
  if (!more.chance(killShare)) return null;
  return { atMs: more.between(0, untilMs), drainMs: null, downMs: more.between(1, 300) };
}

/** Who sends: keys that talk in sessions, and turn to a new one now and then. */
class Clients {
  private readonly sessions = new Map<
    string,
    { readonly id: string; readonly budgetTokens: number | null }
  >();

  constructor(
    private readonly draw: Draw,
    private readonly traits: Traits,
  ) {}

  next(): Pick<TaskPlan, "keyId" | "sessionId" | "budgetTokens" | "strict"> {
    const { draw, traits } = this;
    const keyId = `key-${Math.min(draw.int(1, traits.keys), draw.int(1, traits.keys))}`;
    const strict = draw.chance(traits.strictShare);
    if (!draw.chance(traits.sessionShare)) return { keyId, sessionId: null, budgetTokens: null, strict };
    let session = this.sessions.get(keyId);
    if (session === undefined || draw.chance(0.1)) {
      session = { id: draw.entropy.uuid(), budgetTokens: draw.chance(0.4) ? draw.int(20, 90) : null };
      this.sessions.set(keyId, session);
    }
    const budgetTokens = draw.chance(0.1) ? draw.int(20, 90) : session.budgetTokens;
    return { keyId, sessionId: session.id, budgetTokens, strict };
  }
}

function drawTask(draw: Draw, clients: Clients, atMs: number, poolId: string, priority: Priority): TaskPlan {
  const watched = draw.chance(0.35);
  const tokens = draw.int(1, 12);
  const taskId = draw.entropy.uuid();
  return {
    ...clients.next(),
    taskId,
    atMs,
    poolId,
    priority,
    tokensIn: promptTokens,
    tokens,
    greedy: taskId < "8",
    deadlineMs: draw.chance(0.1) ? draw.int(20, 1500) : null,
    onDisconnect: draw.chance(0.3) ? "continue" : "cancel",
    cancelMs: draw.chance(0.12) ? drawCancelMs(draw) : null,
    cancelAtToken: draw.chance(0.08) ? draw.int(Math.ceil(tokens / 2), tokens) : null,
    viewers: watched ? Array.from({ length: draw.int(1, 3) }, () => drawViewer(draw)) : [],
  };
}

/** Of every prompt: its length does not matter to these engines. */
export const promptTokens = 5;

/** In the same instant, while it waits, while it runs, when it is over. */
const drawCancelMs = (draw: Draw): number => (draw.chance(0.15) ? 0 : draw.exponential(90));

const drawViewer = (draw: Draw): ViewerPlan => ({
  comesMs: draw.chance(0.5) ? 0 : draw.exponential(80),
  leavesMs: draw.chance(0.5) ? draw.exponential(120) : null,
  observes: draw.chance(0.25),
  paceMs: draw.chance(0.3) ? draw.between(5, 60) : 0,
  after: draw.chance(0.2) ? draw.int(0, 6) : -1,
});
