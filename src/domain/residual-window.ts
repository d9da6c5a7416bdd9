/**
 * The errors of the last promises and what follows for the next one: quantiles of them, and the chance to stay
 * below a bound. Pure; one window for starts and one for ends in each class (calibration.ts).
 *
 * Conformal prediction over a sliding window with adaptive levels (Gibbs & Candès 2021, "Adaptive Conformal
 * Inference Under Distribution Shift"): where more promises than stated were missed on one side, that side
 * moves outwards until the stated share holds, whatever the errors look like.
 *
 * Always holds: low <= median <= high; `chanceBelow` rises with its bound and stays strictly between 0 and 1.
 */
import { assert } from "./assert.ts";

export const windowSizeMax = 1024;
/** An error counts for this much at most, in units of the expected spread. */
export const residualMax = 50;
/** Share of starts that may come before the low end, and after the high end. */
const tail = 0.1;
export const tailBounds = { min: 0.005, max: 0.3 } as const;
const levelStep = 0.003;
/** Deciles of the normal distribution: what is assumed until errors were seen; the first to go. */
const assumed = [-1.2816, -0.8416, -0.5244, -0.2533, 0, 0.2533, 0.5244, 0.8416, 1.2816];

export interface ResidualWindow {
  /** In the order of arrival, from `oldest` on, as a ring once it is full. */
  recent: number[];
  oldest: number;
  /** Adapted shares of the two tails. */
  lowTail: number;
  highTail: number;
  /** `recent` by size; derived. */
  sorted: number[];
}

export interface Quantiles {
  readonly low: number;
  readonly median: number;
  readonly high: number;
}

export const createResidualWindow = (): ResidualWindow => ({
  recent: [...assumed],
  oldest: 0,
  lowTail: tail,
  highTail: tail,
  sorted: [...assumed],
});

export function learnResidual(window: ResidualWindow, residual: number): void {
  assert(!Number.isNaN(residual), "a residual is a number");
  const value = Math.min(Math.max(residual, -residualMax), residualMax);
  if (window.recent.length < windowSizeMax) window.recent.push(value);
  else {
    const gone = window.recent[window.oldest] ?? 0;
    window.sorted.splice(firstAtLeast(window.sorted, gone), 1);
    window.recent[window.oldest] = value;
    window.oldest = (window.oldest + 1) % windowSizeMax;
  }
  window.sorted.splice(firstAtLeast(window.sorted, value), 0, value);
}

/** How a promised interval turned out: widens or narrows the side that misses too often or too seldom. */
export function learnCoverage(window: ResidualWindow, outcome: "below" | "inside" | "above"): void {
  const moved = (level: number, missed: boolean): number =>
    Math.min(Math.max(level + levelStep * (tail - (missed ? 1 : 0)), tailBounds.min), tailBounds.max);
  window.lowTail = moved(window.lowTail, outcome === "below");
  window.highTail = moved(window.highTail, outcome === "above");
}

export const quantilesOf = (window: ResidualWindow): Quantiles => ({
  low: quantile(window.sorted, window.lowTail),
  median: quantile(window.sorted, 0.5),
  high: quantile(window.sorted, 1 - window.highTail),
});

/** The mean of the errors above a bound that was passed by an unknown amount. */
export function imputedAbove({ sorted }: ResidualWindow, bound: number): number {
  const from = firstAtLeast(sorted, bound);
  const above = sorted[Math.floor((from + sorted.length) / 2)];
  return from < sorted.length && above !== undefined ? Math.max(above, bound) : bound + 1;
}

/** P(error <= bound): the empirical distribution, straight between the errors seen, exponential beyond them. */
export function chanceBelow({ sorted }: ResidualWindow, bound: number): number {
  const count = sorted.length;
  const first = sorted[0] ?? 0;
  const last = sorted[count - 1] ?? 0;
  const edge = 1 / (count + 1);
  const width = Math.max((last - first) / 8, 0.05);
  if (bound < first) return edge * Math.exp((bound - first) / width);
  if (bound > last) return 1 - edge * Math.exp((last - bound) / width);
  const from = firstAtLeast(sorted, bound);
  const to = firstAbove(sorted, bound);
  // Equal errors: the middle of their ranks.
  if (to > from) return (from + to + 1) / 2 / (count + 1);
  const below = sorted[from - 1] ?? first;
  const above = sorted[from] ?? last;
  return (from + (bound - below) / (above - below)) / (count + 1);
}

function quantile(sorted: readonly number[], share: number): number {
  const at = Math.min(Math.max(share * (sorted.length + 1) - 1, 0), sorted.length - 1);
  const below = sorted[Math.floor(at)] ?? 0;
  const above = sorted[Math.ceil(at)] ?? below;
  return below + (above - below) * (at - Math.floor(at));
}

const firstAtLeast = (sorted: readonly number[], value: number): number =>
  search(sorted, (item) => item >= value);
const firstAbove = (sorted: readonly number[], value: number): number =>
  search(sorted, (item) => item > value);

function search(sorted: readonly number[], found: (item: number) => boolean): number {
  let from = 0;
  let to = sorted.length;
  while (from < to) {
    const middle = (from + to) >> 1;
    if (found(sorted[middle] ?? 0)) to = middle;
    else from = middle + 1;
  }
  return from;
}
