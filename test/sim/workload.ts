/**
 * What happens to a simulated daemon, as data drawn from one seed: its pools, what clients send and when, who
 * watches, who cancels, how often engines fail. The same seed and number of tasks is the same workload.
 */
import type { Priority } from "../../src/domain/task.ts";
import { SeededEntropy } from "../support/virtual-clock.ts";

export interface PoolPlan {
  readonly id: string;
  readonly replicas: number;
  readonly slots: number;
  readonly capacity: number;
  readonly preload: boolean;
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
  readonly priority: Priority;
  readonly tokens: number;
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

export interface Workload {
  readonly seed: number;
  readonly pools: readonly PoolPlan[];
  readonly tasks: readonly TaskPlan[];
  readonly faults: FaultRates;
  readonly batchMaxWaitMs: number;
  /** The daemon is told to stop, and gives what it has so long to end. */
  readonly stop: { readonly atMs: number; readonly drainMs: number } | null;
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

export function drawWorkload(seed: number, count: number): Workload {
  const draw = new Draw(new SeededEntropy(seed));
  const pools = Array.from({ length: draw.int(1, 2) }, (_, at) => ({
    id: `p${at}`,
    replicas: draw.int(1, 3),
    slots: draw.int(1, 4),
    capacity: draw.int(2, 24),
    preload: draw.chance(0.7),
  }));
  const slots = pools.reduce((sum, p) => sum + p.slots * p.replicas, 0);
  const load = draw.between(0.4, 1.8);
  const batchShare = draw.between(0.1, 0.7);
  const tasks: TaskPlan[] = [];
  let atMs = draw.between(0, 500);
  while (tasks.length < count) {
    atMs += draw.exponential(serviceMs / (slots * load));
    const burst = draw.chance(0.02) ? draw.int(2, 16) : 1;
    for (let n = 0; n < burst && tasks.length < count; n++)
      tasks.push(drawTask(draw, atMs, draw.of(pools).id, draw.chance(batchShare) ? "batch" : "interactive"));
  }
  const calm = draw.chance(0.15);
  return {
    seed,
    pools,
    tasks,
    faults: calm
      ? { start: 0, generation: 0 }
      : { start: draw.between(0, 0.6), generation: draw.between(0, 0.25) },
    batchMaxWaitMs: draw.int(100, 800),
    stop: draw.chance(0.15)
      ? { atMs: draw.between(0, atMs), drainMs: draw.between(0, draw.of([10, 60, 400])) }
      : null,
    faultsUntilMs: atMs + 500,
  };
}

function drawTask(draw: Draw, atMs: number, poolId: string, priority: Priority): TaskPlan {
  const watched = draw.chance(0.35);
  const tokens = draw.int(1, 12);
  return {
    taskId: draw.entropy.uuid(),
    atMs,
    poolId,
    priority,
    tokens,
    deadlineMs: draw.chance(0.1) ? draw.int(20, 1500) : null,
    onDisconnect: draw.chance(0.3) ? "continue" : "cancel",
    cancelMs: draw.chance(0.12) ? drawCancelMs(draw) : null,
    cancelAtToken: draw.chance(0.08) ? draw.int(Math.ceil(tokens / 2), tokens) : null,
    viewers: watched ? Array.from({ length: draw.int(1, 3) }, () => drawViewer(draw)) : [],
  };
}

/** In the same instant, while it waits, while it runs, when it is over. */
const drawCancelMs = (draw: Draw): number => (draw.chance(0.15) ? 0 : draw.exponential(90));

const drawViewer = (draw: Draw): ViewerPlan => ({
  comesMs: draw.chance(0.5) ? 0 : draw.exponential(80),
  leavesMs: draw.chance(0.5) ? draw.exponential(120) : null,
  observes: draw.chance(0.25),
  paceMs: draw.chance(0.3) ? draw.between(5, 60) : 0,
  after: draw.chance(0.2) ? draw.int(0, 6) : -1,
});
