/**
 * How much work comes to a pool by itself, learnt from what came: its rate and how unevenly it comes, over steps
 * of ten seconds of which about the last twenty count. The predictor asks it how much a batch task will be
 * overtaken by interactive ones. Pure.
 *
 * Always holds: whatever comes, a share of the pool is left.
 */
const stepMs = 10_000;
const learningRate = 1 / 20;
/** After so many empty steps nothing of the past is left. */
const stepsToForget = 120;
const shareMax = 0.9;
const errorMax = 1;

export interface ArrivalRate {
  /** When the current step began; null before the first arrival. */
  stepSinceMs: number | null;
  stepWorkMs: number;
  steps: number;
  /** Work of a step: ms of slot time. */
  mean: number;
  meanSquare: number;
}

export interface Overtaking {
  /** Of the slots' time, 0 to 0.9. */
  readonly share: number;
  /** Variance of a start by uneven arrivals, in ms², for each ms ahead. */
  readonly jitterMs: number;
  /** How far off a start is by what is not known of the share: relative. */
  readonly error: number;
}

export const nothingOvertakes: Overtaking = { share: 0, jitterMs: 0, error: 0 };

export const createArrivalRate = (): ArrivalRate => ({
  stepSinceMs: null,
  stepWorkMs: 0,
  steps: 0,
  mean: 0,
  meanSquare: 0,
});

/** Work has been accepted. Times do not go back. */
export function learnArrival(rate: ArrivalRate, workMs: number, nowMs: number): void {
  advance(rate, nowMs);
  rate.stepSinceMs ??= nowMs;
  rate.stepWorkMs += workMs;
}

/** What tasks that come later will take of `slots` slots, if it goes on like this. */
export function overtakingOf(rate: ArrivalRate, slots: number, nowMs: number): Overtaking {
  advance(rate, nowMs);
  if (rate.stepSinceMs === null) return nothingOvertakes;
  // Until the first step is over it is all there is, and counts as a whole one.
  const mean = rate.steps === 0 ? rate.stepWorkMs : rate.mean;
  const square = rate.steps === 0 ? rate.stepWorkMs ** 2 : rate.meanSquare;
  const share = Math.min(shareMax, mean / stepMs / slots);
  const variance = Math.max(0, square - mean * mean);
  const leftMs = slots * (1 - share);
  // So many independent steps stand behind a mean that fades at this rate.
  const independent = Math.max(1, Math.min(rate.steps, (2 - learningRate) / learningRate));
  const error = Math.min(errorMax, Math.sqrt(variance / independent) / stepMs / leftMs);
  return { share, jitterMs: variance / stepMs / leftMs ** 2, error };
}

function advance(rate: ArrivalRate, nowMs: number): void {
  if (rate.stepSinceMs === null) return;
  const passed = Math.floor((nowMs - rate.stepSinceMs) / stepMs);
  if (passed <= 0) return;
  for (let step = 0; step < Math.min(passed, stepsToForget); step++) {
    rate.steps++;
    const weight = Math.max(learningRate, 1 / rate.steps);
    rate.mean += weight * (rate.stepWorkMs - rate.mean);
    rate.meanSquare += weight * (rate.stepWorkMs ** 2 - rate.meanSquare);
    rate.stepWorkMs = 0;
  }
  rate.stepSinceMs += passed * stepMs;
}
