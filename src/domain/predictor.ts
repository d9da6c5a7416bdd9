/**
 * The model of a pool: what a task will take and when it will start and end. Pure, learns online from loads,
 * warm-ups, finished attempts and kept or broken promises. Called by services/forecast.ts.
 * Speeds are tokens per second, times milliseconds from now.
 *
 * How a promise is made: the work ahead is poured into the slots as they become free, which gives the expected
 * start; with the own time on a slot added, the expected end. How far off both may be follows from how much
 * service times vary, and is then corrected by how earlier promises of the class turned out (calibration.ts).
 *
 * Always holds: low <= median <= high, and no time becomes earlier, no probability larger, by more work ahead.
 */
import { type ArrivalRate, createArrivalRate, type Overtaking } from "./arrival-rate.ts";
import { assert } from "./assert.ts";
import {
  type Calibration,
  createCalibration,
  type Expectation,
  endMedianMs,
  onTime,
  type PredictionScores,
  scoresOf as scoresOfClass,
  startQuantiles,
} from "./calibration.ts";
import { createOutputLengths, type Estimate, learnLength, type OutputLengths } from "./output-length.ts";
import type { WarmUpSpeed } from "./pool.ts";
import { createSpeedCurve, isMeasured, learnSpeed, msPerTokenAt, type SpeedCurve } from "./speed-curve.ts";
import type { Priority } from "./task.ts";

/** Weight of a new observation: about the last twenty count. */
const learningRate = 0.1;
/** Tokens and speeds assumed for a pool that never ran: they only shape the first promises while it loads. */
const unknownSpeed: WarmUpSpeed = { prefillTps: 200, decodeTps: 20 };
const unknownLoadMs = 10_000;
const loadErrorMin = 0.1;
const unknownLoadError = 0.5;
/** How wrong a whole prediction may be by speeds that are not what they were: at first, and in the long run. */
const systematicErrorFirst = 0.5;
const systematicError = 0.1;
const attemptsToTrust = 10;
/** A prompt of fewer tokens measures the call, not the prefill. */
const prefillTokensMin = 16;
/** From this many tokens on a measured speed counts fully. */
const decodeTokensTrusted = 16;
const varianceRatioMin = 0.02;
const varianceRatioMax = 4;

/** Mean and mean square of what was seen lately; count says how often. */
export interface Moments {
  count: number;
  mean: number;
  meanSquare: number;
}

export interface PredictorState {
  readonly prefill: SpeedCurve;
  readonly decode: SpeedCurve;
  readonly lengths: OutputLengths;
  /** Prompt tokens that the engine really evaluated, as a share of what admission counted (or guessed). */
  readonly evaluated: { exact: number | null; guessed: number | null };
  readonly loadMs: Moments;
  /** Time on a slot. */
  readonly slotMs: Moments;
  /** Squared error of the expected time on a slot, as a share of the squared mean. */
  varianceRatio: number;
  attempts: number;
  /** Interactive work that came. */
  readonly arrivals: ArrivalRate;
  readonly classes: Readonly<Record<Priority, Calibration>>;
}

export interface Attempted {
  /** In the prompt, cached of it, and said, in this attempt. */
  readonly tokensIn: number;
  /** As admission had it, and whether it was counted. */
  readonly tokensInAdmitted: number;
  readonly tokensInExact: boolean;
  readonly tokensCached: number;
  readonly tokensOut: number;
  readonly promptMs: number;
  readonly decodeMs: number;
  /** The whole answer, whatever attempts it took. */
  readonly tokensAnswered: number;
  /** null: no completion, nothing is decoded. */
  readonly maxTokens: number | null;
  /** Streams on the replica while it ran, itself included; a mean. */
  readonly concurrency: number;
}

/** What a prediction stands on: nothing but assumptions, the engine's warm-up decode, or finished tasks. */
export type PredictionBasis = "assumed" | "warm_up" | "learned";

/** Milliseconds from the moment it was made. */
export interface Prediction {
  readonly queuePosition: number;
  /** Median. */
  readonly startMs: number;
  /** The interval in which four of five starts fall: 10 % come before it, 10 % after it. */
  readonly startLowMs: number;
  readonly startHighMs: number;
  readonly endMs: number;
  /** P(end <= deadline); null without a deadline. */
  readonly onTimeProbability: number | null;
  readonly basis: PredictionBasis;
}

export interface PoolLoad {
  /** For each slot that is there or will be: expected milliseconds until it is free; 0 for a free one. Not empty. */
  readonly slotFreeInMs: readonly number[];
  /** Standard deviation of the mean of these. */
  readonly slotSpreadMs: number;
  /** Expected service milliseconds of all tasks that start before. */
  readonly workAheadMs: number;
  /** What comes later and starts before. */
  readonly overtaking: Overtaking;
  /** Being overtaken ends by then, whatever comes; null: nothing bounds it. */
  readonly agedInMs: number | null;
}

/** A prediction and what the model expected, which its score needs. */
export interface Promised {
  readonly prediction: Prediction;
  readonly start: Expectation;
  readonly end: Expectation;
  readonly serviceMs: number;
}

export const createPredictor = (): PredictorState => ({
  prefill: createSpeedCurve(),
  decode: createSpeedCurve(),
  lengths: createOutputLengths(),
  evaluated: { exact: null, guessed: null },
  loadMs: { count: 0, mean: 0, meanSquare: 0 },
  slotMs: { count: 0, mean: 0, meanSquare: 0 },
  varianceRatio: 0.25,
  attempts: 0,
  arrivals: createArrivalRate(),
  classes: { interactive: createCalibration(), batch: createCalibration() },
});

// ---- learning ----

const blend = (old: number | null, seen: number): number =>
  old === null ? seen : old + learningRate * (seen - old);

function see(moments: Moments, value: number): void {
  moments.count++;
  // The plain mean at first: the first of many must not count for as much as ten.
  const rate = Math.max(learningRate, 1 / moments.count);
  moments.mean += rate * (value - moments.mean);
  moments.meanSquare += rate * (value * value - moments.meanSquare);
}

const deviation = ({ mean, meanSquare }: Moments): number => Math.sqrt(Math.max(0, meanSquare - mean * mean));

/** The first decode of an engine: all that is known until tasks have run, and not more than that. */
export function learnWarmUp(state: PredictorState, speed: WarmUpSpeed, loadMs: number | null): void {
  if (speed.prefillTps > 0 && !isMeasured(state.prefill))
    learnSpeed(state.prefill, 1, 1000 / speed.prefillTps, 1);
  if (speed.decodeTps > 0 && !isMeasured(state.decode))
    learnSpeed(state.decode, 1, 1000 / speed.decodeTps, 1);
  if (loadMs !== null && loadMs >= 0) see(state.loadMs, loadMs);
}

export function learnAttempt(state: PredictorState, seen: Attempted): void {
  const evaluated = Math.max(0, seen.tokensIn - seen.tokensCached);
  if (evaluated >= prefillTokensMin && seen.promptMs > 0)
    learnSpeed(state.prefill, seen.concurrency, seen.promptMs / evaluated, 1);
  if (seen.tokensOut >= 2 && seen.decodeMs > 0) {
    const intervals = seen.tokensOut - 1;
    const weight = Math.min(1, intervals / decodeTokensTrusted);
    learnSpeed(state.decode, seen.concurrency, seen.decodeMs / intervals, weight);
  }
  if (seen.tokensInAdmitted > 0) {
    const share = Math.min(1, evaluated / seen.tokensInAdmitted);
    const kind = seen.tokensInExact ? "exact" : "guessed";
    state.evaluated[kind] = blend(state.evaluated[kind], share);
  }
  if (seen.maxTokens !== null && seen.maxTokens > 0)
    learnLength(state.lengths, seen.maxTokens, seen.tokensAnswered);
  state.attempts++;
}

/** How long a task held its slot from its start to its end, and how long that was expected to be. */
export function learnSlotTime(state: PredictorState, expectedMs: number, actualMs: number): void {
  see(state.slotMs, actualMs);
  const mean = Math.max(state.slotMs.mean, 1);
  const squared = Math.min(((actualMs - expectedMs) / mean) ** 2, varianceRatioMax);
  state.varianceRatio = blend(state.varianceRatio, squared);
}

// ---- what a task takes ----

/** Tokens per second of one stream among `concurrency`. */
export const decodeTps = (state: PredictorState, concurrency: number): number =>
  1000 / (msPerTokenAt(state.decode, concurrency) ?? 1000 / unknownSpeed.decodeTps);

export function prefillMs(
  state: PredictorState,
  tokensIn: number,
  exact: boolean,
  concurrency: number,
): number {
  const share = state.evaluated[exact ? "exact" : "guessed"] ?? state.evaluated.exact ?? 1;
  const tokenMs = msPerTokenAt(state.prefill, concurrency) ?? 1000 / unknownSpeed.prefillTps;
  return tokensIn * share * tokenMs;
}

/** Time on a slot, prompt to last token: mean and variance in milliseconds. */
export function serviceTime(
  state: PredictorState,
  prompt: { readonly tokensIn: number; readonly exact: boolean },
  tokensOut: Estimate,
  concurrency: number,
): Estimate {
  const tokenMs = 1000 / decodeTps(state, concurrency);
  const prefill = prefillMs(state, prompt.tokensIn, prompt.exact, concurrency);
  return { mean: prefill + tokensOut.mean * tokenMs, variance: tokensOut.variance * tokenMs ** 2 };
}

/** What is left of a load that began this long ago. */
export function loadLeft(state: PredictorState, sinceMs: number): Expectation {
  const { count, mean } = state.loadMs;
  const loadMs = count === 0 ? unknownLoadMs : mean;
  const spreadMs =
    count === 0 ? loadMs * unknownLoadError : Math.max(deviation(state.loadMs), loadMs * loadErrorMin);
  // One that takes longer than ever before takes a while longer.
  return { meanMs: Math.max(loadMs - sinceMs, loadMs / 10, 1), spreadMs: Math.max(1, spreadMs) };
}

export const basisOf = (state: PredictorState): PredictionBasis =>
  state.attempts > 0 ? "learned" : isMeasured(state.decode) ? "warm_up" : "assumed";

/** Tokens per second of a stream alone on its replica; null while nothing was measured. */
export function singleStreamSpeed(state: PredictorState): {
  readonly prefillTps: number | null;
  readonly decodeTps: number | null;
} {
  const tps = (curve: SpeedCurve): number | null => {
    const tokenMs = msPerTokenAt(curve, 1);
    return tokenMs === null ? null : 1000 / tokenMs;
  };
  return { prefillTps: tps(state.prefill), decodeTps: tps(state.decode) };
}

export const scoresOf = (state: PredictorState): Readonly<Record<Priority, PredictionScores>> => ({
  interactive: scoresOfClass(state.classes.interactive),
  batch: scoresOfClass(state.classes.batch),
});

/** Mean time between two ends in a full pool. */
export const timeBetweenEndsMs = (state: PredictorState, ownServiceMs: number, slots: number): number =>
  (state.slotMs.count === 0 ? ownServiceMs : state.slotMs.mean) / Math.max(1, slots);

// ---- the promise ----

export function predict(
  state: PredictorState,
  priority: Priority,
  load: PoolLoad,
  queuePosition: number,
  service: Estimate,
  deadlineMs: number | null,
): Promised {
  const { start, end } = expectations(state, load, service);
  const calibration = state.classes[priority];
  const { lowMs, medianMs, highMs } =
    start.meanMs <= 0 ? { lowMs: 0, medianMs: 0, highMs: 0 } : startQuantiles(calibration, start);
  const prediction: Prediction = {
    queuePosition,
    startMs: medianMs,
    startLowMs: lowMs,
    startHighMs: highMs,
    endMs: Math.max(medianMs, endMedianMs(calibration, end)),
    onTimeProbability: deadlineMs === null ? null : onTime(calibration, end, deadlineMs),
    basis: basisOf(state),
  };
  return { prediction, start, end, serviceMs: service.mean };
}

/** The soonest end that is at least this likely: the deadline that would be accepted now. */
export function earliestEndMs(
  state: PredictorState,
  priority: Priority,
  load: PoolLoad,
  service: Estimate,
  probability: number,
): number {
  const { end } = expectations(state, load, service);
  const likely = (ms: number) => onTime(state.classes[priority], end, ms) >= probability;
  let high = Math.max(1, Math.ceil(end.meanMs));
  for (let doublings = 0; !likely(high) && doublings < 40; doublings++) high *= 2;
  let low = 0;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (likely(middle)) high = middle;
    else low = middle;
  }
  return high;
}

function expectations(
  state: PredictorState,
  load: PoolLoad,
  service: Estimate,
): { start: Expectation; end: Expectation } {
  const startMs = overtaken(pour(load.slotFreeInMs, load.workAheadMs), load);
  const spread = spreadOf(state, load, service.mean);
  return {
    start: spread(startMs, 0),
    end: spread(startMs + service.mean, service.variance),
  };
}

/**
 * Variance of a time m ahead. Every term is concave in m and zero at zero, or constant, or the square of m, so
 * that m * s' <= s holds for its root: calibration.ts builds on that.
 *  - what is left of the running tasks, felt as far as one waits for them
 *  - the tasks that end meanwhile: a random walk whose step is the time between two ends
 *  - the work that comes meanwhile and goes first: the same, with the steps in which it comes
 *  - speeds that are not what they were: proportional to m
 */
function spreadOf(
  state: PredictorState,
  { slotFreeInMs, slotSpreadMs, overtaking }: PoolLoad,
  ownServiceMs: number,
): (meanMs: number, ownVariance: number) => Expectation {
  const slots = slotFreeInMs.length;
  const stepMs = timeBetweenEndsMs(state, ownServiceMs, slots);
  const busyMs = slotFreeInMs.reduce((sum, ms) => sum + ms, 0) / slots;
  const untrusted = attemptsToTrust / (attemptsToTrust + state.attempts);
  const systematic = systematicError + (systematicErrorFirst - systematicError) * untrusted;
  const walkMs = Math.max(state.varianceRatio, varianceRatioMin) * stepMs + overtaking.jitterMs;
  const squared = systematic ** 2 + overtaking.error ** 2;
  return (meanMs, ownVariance) => {
    const waiting = meanMs <= 0 ? 0 : (slotSpreadMs ** 2 * meanMs) / (meanMs + busyMs);
    const variance = 1 + ownVariance + waiting + walkMs * meanMs + squared * meanMs ** 2;
    return { meanMs, spreadMs: Math.sqrt(variance) };
  };
}

/** Later for those who start before though they come later, until age puts an end to that. */
function overtaken(startMs: number, { overtaking: { share }, agedInMs }: PoolLoad): number {
  assert(share >= 0 && share < 1, "others leave a share of the pool");
  const later = startMs / (1 - share);
  return agedInMs === null ? later : Math.min(later, Math.max(startMs, agedInMs));
}

/**
 * When the work ahead has flowed into the slots: the level t with sum(max(0, t - freeIn)) = workAhead.
 * With nothing ahead that is the first slot that becomes free.
 */
function pour(slotFreeInMs: readonly number[], workAheadMs: number): number {
  assert(workAheadMs >= 0, "work ahead is not negative");
  assert(slotFreeInMs.length > 0, "a pool has or will have a slot");
  const free = [...slotFreeInMs].sort((a, b) => a - b);
  let used = 0;
  let level = free[0] ?? 0;
  let left = workAheadMs;
  for (const at of free) {
    const poured = (at - level) * used;
    if (poured >= left) break;
    left -= poured;
    level = at;
    used++;
  }
  return used === 0 ? level : level + left / used;
}
