/** The figures of swaps.ts as text, and the bounds of the daemon's that they are held against. */
import { mean, median, medianInterval, quantile } from "./statistics.ts";
import { type LoadTimes, loadTimes, stopTimes } from "./swaps-log.ts";
import type { BetweenFigures, MixFigures } from "./swaps-mixes.ts";
import type { HandMade } from "./swaps-sides.ts";

/** By the side's name. */
export type BySide<T> = ReadonlyMap<string, readonly T[]>;

const nameWidth = 22;
const worst = (values: readonly number[]): number => Math.max(...values);
const seconds = (ms: number): string => `${(ms / 1000).toFixed(2)} s`;
const interval = (values: readonly number[]): string => {
  const { low, high } = medianInterval(values);
  return `${median(values).toFixed(0)} ms [${low.toFixed(0)}, ${high.toFixed(0)}]`;
};
const row = (name: string, text: string): string => `  ${name.padEnd(nameWidth)} ${text}`;

export function mixLines(title: string, figures: BySide<MixFigures>): string[] {
  const lines = [...figures].map(([name, mixes]) => {
    const failed = mixes.flatMap(({ failures }) => failures);
    const waits = mixes.flatMap(({ waitsMs }) => waitsMs);
    return row(
      name,
      [
        `swaps ${mixes.map(({ swaps }) => swaps).join(", ")}`,
        `makespan ${mixes.map(({ makespanMs }) => seconds(makespanMs)).join(", ")}`,
        `wait mean ${seconds(mean(waits))}, worst ${seconds(worst(waits))}`,
        ...(failed.length === 0 ? [] : [`${failed.length} failed: ${failed[0]}`]),
      ].join("; "),
    );
  });
  return [title, ...lines];
}

export function betweenLines(title: string, figures: BySide<BetweenFigures>): string[] {
  const late = " (only when the traffic for A had been ended)";
  const lines = [...figures].map(([name, runs]) =>
    row(
      name,
      `first token of B after ${runs.map(({ waitMs, afterTraffic }) => seconds(waitMs) + (afterTraffic ? late : "")).join(", ")}`,
    ),
  );
  return [title, ...lines];
}

export function handoverLines(title: string, hand: readonly HandMade[], gaps: BySide<number>): string[] {
  const byHand = hand.map(({ gapMs }) => gapMs);
  const part = (of: (swap: HandMade) => number): string => interval(hand.map(of));
  return [
    title,
    row(
      "by hand",
      `${interval(byHand)}: exit ${part((swap) => swap.exitMs)}, load ${part((swap) => swap.loadMs)}, first token ${part((swap) => swap.firstTokenMs)}`,
    ),
    ...[...gaps].map(([name, all]) =>
      row(
        name,
        `${interval(all)}; beyond by hand, pair by pair ${interval(all.map((gapMs, n) => gapMs - (byHand[n] ?? Number.NaN)))}`,
      ),
    ),
  ];
}

export interface DaemonRun {
  /** Of the handovers and of the mixes. */
  readonly log: string;
  /** Of the handovers alone. */
  readonly logOfHandovers: string;
  /** Of the daemon that had one request among constant traffic, with a bound of its own. */
  readonly logOfBetween: string;
  readonly between: readonly BetweenFigures[];
  readonly betweenMaxWaitMs: number;
  readonly pools: number;
  readonly swapMaxWaitMs: number;
  readonly swapTurnMaxMs: number;
}

export interface DaemonFigures {
  readonly loads: readonly LoadTimes[];
  readonly stopsMs: readonly number[];
  /** The longest that a pool wanted to be loaded, and the bound that src/domain/residency.ts states. */
  readonly wantedMs: number;
  readonly boundMs: number;
  /** The wait of the one request for B to its first token, and its bound: one pool in the way, whose turn is over. */
  readonly betweenMs: number;
  readonly betweenBoundMs: number;
  /** What was not kept. */
  readonly broken: readonly string[];
  readonly lines: readonly string[];
}

/** With the longest load, run and stop that this run saw. */
export function daemonFigures(run: DaemonRun): DaemonFigures {
  const { between, swapMaxWaitMs, swapTurnMaxMs, betweenMaxWaitMs } = run;
  const loadsOfMixes = loadTimes(run.log);
  const loads = [...loadsOfMixes, ...loadTimes(run.logOfBetween)];
  const stopsMs = [...stopTimes(run.log), ...stopTimes(run.logOfBetween)];
  const longest = {
    loadMs: worst(loads.map(({ loadMs, warmUpMs, lagMs }) => loadMs + warmUpMs + lagMs)),
    runMs: worst(between.map(({ longestRunMs }) => longestRunMs)),
    stopMs: worst(stopsMs),
  };
  const { loadMs, runMs, stopMs } = longest;
  const wantedMs = worst(loadsOfMixes.map((load) => load.wantedMs));
  const boundMs = swapMaxWaitMs + run.pools * (loadMs + swapTurnMaxMs + runMs + stopMs) + loadMs;
  const betweenMs = worst(between.map(({ waitMs }) => waitMs));
  const betweenBoundMs = betweenMaxWaitMs + runMs + stopMs + loadMs;
  const broken = [
    ...(wantedMs > boundMs ? ["a pool wanted to be loaded for longer than the bound"] : []),
    ...(betweenMs > betweenBoundMs ? ["B waited longer than its bound"] : []),
    ...(between.some(({ afterTraffic }) => afterTraffic)
      ? ["B was served only when A was no longer asked for"]
      : []),
  ];
  const again = loadTimes(run.logOfHandovers).filter(({ first }) => !first);
  const firsts = loads.filter(({ first }) => first);
  const lags = loads.map(({ lagMs }) => lagMs);
  const lines = [
    "orchestratord by its own log",
    row(
      "a handover",
      `stop ${interval(stopTimes(run.logOfHandovers))}, load ${interval(again.map((load) => load.loadMs))}, decode ${interval(again.map((load) => load.warmUpMs))} (of the first load of each model, whose speed is measured: ${interval(firsts.map((load) => load.warmUpMs))})`,
    ),
    row(
      "ready to task started",
      `median ${median(lags)} ms, p95 ${quantile(lags, 0.95).toFixed(0)} ms, worst ${worst(lags)} ms of ${lags.length} loads`,
    ),
    row(
      "longest",
      `load ${seconds(loadMs)}, run ${seconds(runMs)}, stop ${seconds(stopMs)}; swap_max_wait_ms ${swapMaxWaitMs} and for B ${betweenMaxWaitMs}, swap_turn_max_ms ${swapTurnMaxMs}`,
    ),
    row("a pool waited", `${seconds(wantedMs)} at most to be loaded, bound ${seconds(boundMs)}`),
    row("B waited", `${seconds(betweenMs)} at most for its first token, bound ${seconds(betweenBoundMs)}`),
  ];
  return { loads, stopsMs, wantedMs, boundMs, betweenMs, betweenBoundMs, broken, lines };
}
