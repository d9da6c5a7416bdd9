/**
 * Makes the promises of one class of a pool mean what they say: what the model expects, and how far it expects
 * to be off, become quantiles and probabilities by what earlier promises turned out to be worth. Also the
 * scores of those promises. Pure; called by the predictor.
 *
 * Always holds: all quantiles and the time at which a probability is reached rise with the expected time;
 * low <= median <= high; only what was promised is scored, each promise once.
 */
import { assert } from "./assert.ts";
import {
  chanceBelow,
  createResidualWindow,
  imputedAbove,
  learnCoverage,
  learnResidual,
  quantilesOf,
  type ResidualWindow,
  residualMax,
} from "./residual-window.ts";

/** A time the model expects, and how far off it may be: milliseconds. */
export interface Expectation {
  readonly meanMs: number;
  readonly spreadMs: number;
}

/** Logistic correction of probabilities (Platt 1999), learnt by small steps; within bounds it stays monotone. */
export interface Correction {
  slope: number;
  shift: number;
}
const correctionStep = 0.02;
const logitMax = 5;

/** Sums over all promises that were scored. */
export interface Tally {
  starts: number;
  startsInside: number;
  deadlines: number;
  deadlinesMet: number;
  squaredError: number;
}

export interface Calibration {
  readonly starts: ResidualWindow;
  readonly ends: ResidualWindow;
  readonly correction: Correction;
  readonly tally: Tally;
}

/** null: nothing was scored yet. */
export interface PredictionScores {
  /** Promised starts of tasks that had to wait, and the share that fell into the promised 80 % interval. */
  readonly startsScored: number;
  readonly intervalCoverage: number | null;
  /** Tasks with a deadline. */
  readonly deadlinesScored: number;
  /** Mean squared error of on_time_probability; 0 is perfect. */
  readonly brierScore: number | null;
  /** The same for always answering the share of deadlines that was met in the end. */
  readonly baseRateBrierScore: number | null;
}

export const createCalibration = (): Calibration => ({
  starts: createResidualWindow(),
  ends: createResidualWindow(),
  correction: { slope: 1, shift: 0 },
  tally: { starts: 0, startsInside: 0, deadlines: 0, deadlinesMet: 0, squaredError: 0 },
});

/**
 * The time at a residual. Above the mean it is linear; below it falls towards zero without reaching it, so that
 * times stay positive. It rises with the residual, and with the mean as long as the spread grows no faster than
 * the mean does (mean * spread' <= spread), which holds for every spread that the predictor makes.
 */
export function timeAt({ meanMs, spreadMs }: Expectation, residual: number): number {
  if (residual >= 0) return meanMs + residual * spreadMs;
  if (meanMs <= 0) return 0;
  return meanMs ** 2 / (meanMs - residual * spreadMs);
}

/** The inverse of `timeAt`, bounded. */
export function residualOf({ meanMs, spreadMs }: Expectation, timeMs: number): number {
  assert(spreadMs > 0, "a spread is positive");
  const off =
    timeMs >= meanMs
      ? (timeMs - meanMs) / spreadMs
      : timeMs <= 0
        ? -residualMax
        : (meanMs * (timeMs - meanMs)) / (timeMs * spreadMs);
  return Math.min(Math.max(off, -residualMax), residualMax);
}

export interface StartQuantiles {
  readonly lowMs: number;
  readonly medianMs: number;
  readonly highMs: number;
}

/** Whole milliseconds. */
export function startQuantiles({ starts }: Calibration, expected: Expectation): StartQuantiles {
  const { low, median, high } = quantilesOf(starts);
  return {
    lowMs: Math.floor(timeAt(expected, Math.min(low, median))),
    medianMs: Math.round(timeAt(expected, median)),
    highMs: Math.ceil(timeAt(expected, Math.max(high, median))),
  };
}

export const endMedianMs = ({ ends }: Calibration, expected: Expectation): number =>
  Math.round(timeAt(expected, quantilesOf(ends).median));

/** P(end <= deadline), corrected. */
export function onTime(calibration: Calibration, expected: Expectation, deadlineMs: number): number {
  if (deadlineMs <= 0) return 0;
  const { slope, shift } = calibration.correction;
  const corrected = slope * rawLogit(calibration, expected, deadlineMs) + shift;
  return Math.round(1000 / (1 + Math.exp(-corrected))) / 1000;
}

function rawLogit({ ends }: Calibration, expected: Expectation, deadlineMs: number): number {
  const chance = chanceBelow(ends, residualOf(expected, deadlineMs));
  return Math.min(Math.max(Math.log(chance / (1 - chance)), -logitMax), logitMax);
}

/** A task that had to wait has started; `promised` is what it was told. */
export function scoreStart(
  calibration: Calibration,
  expected: Expectation,
  promised: StartQuantiles,
  actualMs: number,
): void {
  const { starts, tally } = calibration;
  const outcome = actualMs < promised.lowMs ? "below" : actualMs > promised.highMs ? "above" : "inside";
  tally.starts++;
  if (outcome === "inside") tally.startsInside++;
  learnCoverage(starts, outcome);
  learnResidual(starts, residualOf(expected, actualMs));
}

/** It was given up at `atMs` without a start, later than the whole interval. */
export function scoreMissedStart(calibration: Calibration, expected: Expectation, atMs: number): void {
  const { starts, tally } = calibration;
  tally.starts++;
  learnCoverage(starts, "above");
  learnResidual(starts, imputedAbove(starts, residualOf(expected, atMs)));
}

export function learnEnd({ ends }: Calibration, expected: Expectation, actualMs: number): void {
  learnResidual(ends, residualOf(expected, actualMs));
}

/** It would have ended after `atMs`, nobody knows when. */
export function learnMissedEnd({ ends }: Calibration, expected: Expectation, atMs: number): void {
  learnResidual(ends, imputedAbove(ends, residualOf(expected, atMs)));
}

/** Before the residual of the same task is learnt: the correction sees what the promise saw. */
export function scoreDeadline(
  calibration: Calibration,
  expected: Expectation,
  deadlineMs: number,
  promised: number,
  met: boolean,
): void {
  const { correction, tally } = calibration;
  const outcome = met ? 1 : 0;
  tally.deadlines++;
  tally.deadlinesMet += outcome;
  tally.squaredError += (promised - outcome) ** 2;
  const logit = rawLogit(calibration, expected, deadlineMs);
  const error = outcome - 1 / (1 + Math.exp(-(correction.slope * logit + correction.shift)));
  const within = (value: number, min: number, max: number) => Math.min(Math.max(value, min), max);
  correction.slope = within(correction.slope + correctionStep * error * logit, 0.3, 1.5);
  correction.shift = within(correction.shift + correctionStep * error, -1.5, 1.5);
}

export function scoresOf({ tally }: Calibration): PredictionScores {
  const { starts, startsInside, deadlines, deadlinesMet, squaredError } = tally;
  const rate = deadlines === 0 ? 0 : deadlinesMet / deadlines;
  return {
    startsScored: starts,
    intervalCoverage: starts === 0 ? null : startsInside / starts,
    deadlinesScored: deadlines,
    brierScore: deadlines === 0 ? null : squaredError / deadlines,
    baseRateBrierScore: deadlines === 0 ? null : rate * (1 - rate),
  };
}
