/**
 * Loads for measuring, drawn from one seed: what keys send, when, how long their answers really get. Unlike the
 * adversarial workload of workload.ts nothing here is hostile: these are the shapes that a shared engine meets.
 *
 * | family     | shape                                                                                        |
 * |------------|----------------------------------------------------------------------------------------------|
 * | poisson    | independent clients, exponential gaps, busy keys and quiet ones                               |
 * | agents     | agents that talk in sessions and think between turns, tool calls side by side, floods of batch |
 * | heavy-tail | prompts log-normal, outputs Pareto: a few tasks are most of the work                          |
 * | diurnal    | the rate swings as a sine between a fifth and nine fifths of its mean                         |
 *
 * A source never holds more than its next arrival (agents: one for each agent), so a million tasks cost no memory.
 */
import type { FullPolicy } from "../../src/domain/pool.ts";
import type { Priority } from "../../src/domain/task.ts";
import type { Draw } from "./workload.ts";

export const families = ["poisson", "agents", "heavy-tail", "diurnal"] as const;
export type Family = (typeof families)[number];

/** What an engine of the pool does, as functions of how many streams it decodes at once. */
export interface EngineSpeed {
  readonly prefillTps: number;
  /** Of a single stream. */
  readonly decodeTps: number;
  /** Each further stream slows all of them by this share. */
  readonly crowding: number;
}

export interface LoadPool {
  readonly id: string;
  readonly replicas: number;
  readonly slots: number;
  readonly capacity: number;
  readonly fullPolicy: FullPolicy;
  readonly speed: EngineSpeed;
}

export interface LoadTask {
  readonly keyId: string;
  readonly sessionId: string | null;
  readonly poolId: string;
  readonly priority: Priority;
  readonly tokensIn: number;
  readonly maxTokens: number;
  /** What the engine will really say; less than maxTokens where it stops by itself. */
  readonly tokensOut: number;
  readonly deadlineMs: number | null;
  readonly strict: boolean;
}

export type LoadEnd = "done" | "refused" | "failed";

/** Where a source sends its tasks and gets its time from. */
export interface LoadSink {
  /** False once all tasks of the run were sent. */
  readonly open: boolean;
  uuid(): string;
  after(ms: number, fn: () => void): void;
  send(task: LoadTask, ended: (how: LoadEnd) => void): void;
}

export interface LoadPlan {
  readonly family: Family;
  readonly pools: readonly LoadPool[];
  readonly batchMaxWaitMs: number;
  /** Shares of all generations. */
  readonly faults: { readonly crash: number; readonly reset: number };
  begin(sink: LoadSink): void;
}

const pools: readonly LoadPool[] = [
  {
    id: "small",
    replicas: 2,
    slots: 4,
    capacity: 256,
    fullPolicy: "reject",
    speed: { prefillTps: 2500, decodeTps: 100, crowding: 0.15 },
  },
  {
    id: "large",
    replicas: 1,
    slots: 4,
    capacity: 128,
    fullPolicy: "reject",
    speed: { prefillTps: 1200, decodeTps: 60, crowding: 0.2 },
  },
];
const faults = { crash: 0.0002, reset: 0.002 };

/** Milliseconds on a slot of a full replica. */
export function nominalMs(speed: EngineSpeed, slots: number, tokensIn: number, tokensOut: number): number {
  const tokenMs = (1000 / speed.decodeTps) * (1 + speed.crowding * (slots - 1));
  return (tokensIn * 1000) / speed.prefillTps + tokensOut * tokenMs;
}

export function drawLoad(family: Family, draw: Draw, policy: FullPolicy = "reject"): LoadPlan {
  const common = {
    family,
    pools: pools.map((pool) => ({ ...pool, fullPolicy: policy })),
    batchMaxWaitMs: 120_000,
    faults,
  };
  switch (family) {
    case "poisson":
      return { ...common, begin: (sink) => openLoop(sink, draw, () => 1, 0.96, independentTask) };
    case "heavy-tail":
      return { ...common, begin: (sink) => openLoop(sink, draw, () => 1, 0.9, heavyTask) };
    case "diurnal": {
      const dayMs = 3_600_000;
      const rate = (atMs: number) => 1 + 0.8 * Math.sin((2 * Math.PI * atMs) / dayMs);
      return { ...common, begin: (sink) => openLoop(sink, draw, rate, 0.75, independentTask) };
    }
    case "agents":
      return { ...common, begin: (sink) => agents(sink, draw) };
  }
}

type DrawTask = (draw: Draw, pool: LoadPool) => LoadTask;

/** Clients that do not wait for one another; `rateOf` scales the mean rate over time, at most doubling it. */
function openLoop(
  sink: LoadSink,
  draw: Draw,
  rateOf: (atMs: number) => number,
  utilisation: number,
  drawTask: DrawTask,
): void {
  for (const pool of pools) {
    const sample = Array.from({ length: 2000 }, () => drawTask(draw, pool));
    const meanMs = sample.reduce((sum, t) => sum + serviceOf(pool, t), 0) / sample.length;
    // Thinning: candidates come at twice the mean rate, and each is taken with the share that is due now.
    const gapMs = meanMs / (pool.slots * pool.replicas * utilisation) / 2;
    let atMs = 0;
    const next = () => {
      const ms = draw.exponential(gapMs);
      atMs += ms;
      sink.after(ms, () => {
        if (!sink.open) return;
        if (draw.chance(rateOf(atMs) / 2)) sink.send(drawTask(draw, pool), ignore);
        next();
      });
    };
    next();
  }
}

const ignore = (): void => undefined;
const serviceOf = (pool: LoadPool, task: LoadTask) =>
  nominalMs(pool.speed, pool.slots, task.tokensIn, task.tokensOut);

/** A few keys send most of the tasks. */
const keyOf = (draw: Draw): string => `key-${Math.min(draw.int(0, 7), draw.int(0, 7), draw.int(0, 7))}`;

function normal(draw: Draw): number {
  return Math.sqrt(-2 * Math.log(1 - draw.unit())) * Math.cos(2 * Math.PI * draw.unit());
}
const logNormal = (draw: Draw, median: number, sigma: number): number =>
  median * Math.exp(sigma * normal(draw));
const pareto = (draw: Draw, least: number, alpha: number): number => least / (1 - draw.unit()) ** (1 / alpha);
const within = (value: number, least: number, most: number): number =>
  Math.min(most, Math.max(least, Math.round(value)));

function deadlineOf(draw: Draw, serviceMs: number, share: number): number | null {
  return draw.chance(share) ? Math.max(50, Math.round(logNormal(draw, 4 * serviceMs, 1))) : null;
}

function independentTask(draw: Draw, pool: LoadPool): LoadTask {
  const batch = draw.chance(0.35);
  const maxTokens = draw.of(batch ? [128, 256] : [64, 128]);
  const tokensIn = within(logNormal(draw, 150, 0.7), 4, 1500);
  const tokensOut = within(logNormal(draw, 0.3 * maxTokens, 0.6), 1, maxTokens);
  const serviceMs = nominalMs(pool.speed, pool.slots, tokensIn, 0.4 * maxTokens);
  return {
    keyId: keyOf(draw),
    sessionId: null,
    poolId: pool.id,
    priority: batch ? "batch" : "interactive",
    tokensIn,
    maxTokens,
    tokensOut,
    deadlineMs: deadlineOf(draw, batch ? 5 * serviceMs : serviceMs, 0.25),
    strict: draw.chance(0.002),
  };
}

function heavyTask(draw: Draw, pool: LoadPool): LoadTask {
  const batch = draw.chance(0.35);
  const maxTokens = draw.of([256, 1024]);
  const tokensIn = within(logNormal(draw, 80, 1.3), 4, 2500);
  const tokensOut = within(pareto(draw, 10, 1.3), 1, maxTokens);
  const serviceMs = nominalMs(pool.speed, pool.slots, tokensIn, 60);
  return {
    keyId: keyOf(draw),
    sessionId: null,
    poolId: pool.id,
    priority: batch ? "batch" : "interactive",
    tokensIn,
    maxTokens,
    tokensOut,
    deadlineMs: deadlineOf(draw, batch ? 5 * serviceMs : serviceMs, 0.25),
    strict: false,
  };
}

const agentCount = 28;
const sessionTurnsMax = 8;

function agents(sink: LoadSink, draw: Draw): void {
  for (let n = 0; n < agentCount; n++) {
    const pool = n % 4 === 3 ? pools[1] : pools[0];
    if (pool === undefined) continue;
    sink.after(draw.between(0, 20_000), () => session(sink, draw, pool, `agent-${n}`));
  }
  for (const pool of pools) sink.after(draw.exponential(120_000), () => flood(sink, draw, pool));
}

/** Turns that build on one another, then a pause, then another session. */
function session(sink: LoadSink, draw: Draw, pool: LoadPool, keyId: string): void {
  if (!sink.open) return;
  const sessionId = sink.uuid();
  let turnsLeft = draw.int(2, sessionTurnsMax);
  let context = within(logNormal(draw, 200, 0.5), 20, 600);
  const turn = () => {
    if (!sink.open) return;
    if (turnsLeft <= 0) {
      sink.after(logNormal(draw, 8000, 0.7), () => session(sink, draw, pool, keyId));
      return;
    }
    // Some turns call tools: prompts side by side, and the agent goes on with the last answer.
    const calls = Math.min(turnsLeft, draw.chance(0.2) ? draw.int(2, 4) : 1);
    turnsLeft -= calls;
    let open = calls;
    for (let n = 0; n < calls; n++) {
      const task = agentTask(draw, pool, keyId, sessionId, context);
      if (calls === 1) context = Math.min(1600, context + task.tokensOut + draw.int(10, 60));
      sink.send(task, () => {
        if (--open === 0) sink.after(logNormal(draw, 2500, 0.9), turn);
      });
    }
  };
  turn();
}

function agentTask(
  draw: Draw,
  pool: LoadPool,
  keyId: string,
  sessionId: string | null,
  tokensIn: number,
): LoadTask {
  const maxTokens = draw.of([128, 256]);
  const tokensOut = within(logNormal(draw, 45, 0.7), 1, maxTokens);
  const serviceMs = nominalMs(pool.speed, pool.slots, tokensIn, 60);
  return {
    keyId,
    sessionId,
    poolId: pool.id,
    priority: sessionId === null ? "batch" : "interactive",
    tokensIn,
    maxTokens,
    tokensOut,
    deadlineMs: deadlineOf(draw, sessionId === null ? 40 * serviceMs : serviceMs, 0.25),
    strict: false,
  };
}

/** One key wants a great deal at once. */
function flood(sink: LoadSink, draw: Draw, pool: LoadPool): void {
  if (!sink.open) return;
  const keyId = `flood-${draw.int(0, 2)}`;
  for (let left = draw.int(20, pool.capacity); left > 0 && sink.open; left--)
    sink.send(agentTask(draw, pool, keyId, null, within(logNormal(draw, 300, 0.6), 20, 1200)), ignore);
  sink.after(draw.exponential(240_000), () => flood(sink, draw, pool));
}
