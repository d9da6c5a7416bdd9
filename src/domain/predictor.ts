/**
 * What a pool is expected to do: pure, learns online from finished attempts. Called by the dispatcher.
 * Speeds are tokens per second, times are milliseconds from now. Before the first finished task it knows the
 * warm-up decode only; before that (pool not loaded) it knows nothing and says so by a wide spread.
 */
import { assert } from "./assert.ts";
import type { WarmUpSpeed } from "./pool.ts";

/** Weight of a new observation: about the last 20 count. */
const learningRate = 0.1;
/** Relative spread of an end time that nothing has been learnt about: one sigma. */
const coldRelativeError = 0.5;
/** What one promise can count for at most. */
const errorMax = 10;
/** No prediction is better than a few per cent, none so bad that it says nothing. */
const sigmaMin = 0.03;
const sigmaMax = 1.5;
/** max_tokens buckets by powers of four: short answers tell little about long ones. */
const bucketOf = (maxTokens: number): number => Math.ceil(Math.log2(Math.max(1, maxTokens)) / 2);
/** Tokens and speeds assumed for a pool that never ran: they only shape the first promise while it loads. */
const unknownSpeed: WarmUpSpeed = { prefillTps: 200, decodeTps: 20 };
const unknownLoadMs = 10_000;

export interface PredictorState {
  prefillTps: number | null;
  /** Decode speed of one stream, by how many ran beside it (index: concurrency). */
  decodeTps: (number | null)[];
  /** Share of max_tokens that was really produced, by bucket. */
  outputShare: Map<number, number>;
  /** Mean of the relative error of predicted end times. */
  relativeError: number;
  scored: number;
  loadMs: number | null;
}

export interface Attempted {
  readonly tokensIn: number;
  readonly tokensCached: number;
  readonly tokensOut: number;
  readonly promptMs: number;
  readonly decodeMs: number;
  readonly maxTokens: number;
  /** Streams on the replica while it ran, itself included. */
  readonly concurrency: number;
}

export interface Prediction {
  readonly queuePosition: number;
  readonly startMs: number;
  readonly endMs: number;
  readonly onTimeProbability: number | null;
}

export interface PoolLoad {
  /** For each slot of the ready replicas: expected milliseconds until it is free; 0 for a free one. */
  readonly slotFreeInMs: readonly number[];
  /** Expected service milliseconds of all tasks that start before. */
  readonly workAheadMs: number;
  /** Slots the pool will have once it is loaded; used while slotFreeInMs is empty. */
  readonly slotsExpected: number;
}

export const createPredictor = (): PredictorState => ({
  prefillTps: null,
  decodeTps: [],
  outputShare: new Map(),
  relativeError: coldRelativeError,
  scored: 0,
  loadMs: null,
});

const blend = (old: number | null | undefined, seen: number): number =>
  old === null || old === undefined ? seen : old + learningRate * (seen - old);

export function learnWarmUp(state: PredictorState, speed: WarmUpSpeed, loadMs: number | null): void {
  state.prefillTps ??= speed.prefillTps > 0 ? speed.prefillTps : null;
  state.decodeTps[1] ??= speed.decodeTps > 0 ? speed.decodeTps : null;
  if (loadMs !== null) state.loadMs = blend(state.loadMs, loadMs);
}

export function learnAttempt(state: PredictorState, seen: Attempted): void {
  const evaluated = seen.tokensIn - seen.tokensCached;
  // A prompt of a few tokens measures the call, not the prefill.
  if (evaluated >= 16 && seen.promptMs > 0)
    state.prefillTps = blend(state.prefillTps, (evaluated * 1000) / seen.promptMs);
  if (seen.tokensOut >= 2 && seen.decodeMs > 0) {
    const tps = ((seen.tokensOut - 1) * 1000) / seen.decodeMs;
    state.decodeTps[seen.concurrency] = blend(state.decodeTps[seen.concurrency], tps);
  }
  const bucket = bucketOf(seen.maxTokens);
  state.outputShare.set(bucket, blend(state.outputShare.get(bucket), seen.tokensOut / seen.maxTokens));
}

/** Compares a promised end with what happened; both milliseconds from admission. */
export function score(state: PredictorState, promisedEndMs: number, actualEndMs: number): void {
  // Bounded, the first one too: one task that waited for a model load must not blur a hundred promises.
  const error = Math.min(Math.abs(actualEndMs - promisedEndMs) / Math.max(promisedEndMs, 50), errorMax);
  state.relativeError = state.scored === 0 ? Math.min(error, 1) : blend(state.relativeError, error);
  state.scored++;
}

/** Decode speed of one stream among `concurrency`: the nearest measured concurrency stands in. */
export function decodeTps(state: PredictorState, concurrency: number): number {
  const measured = state.decodeTps;
  // Outwards from where it was asked for; the first hit is the nearest.
  for (let distance = 0; distance <= Math.max(concurrency, measured.length); distance++) {
    const tps = measured[concurrency - distance] ?? measured[concurrency + distance];
    if (tps !== null && tps !== undefined) return tps;
  }
  return unknownSpeed.decodeTps;
}

export function expectedTokensOut(state: PredictorState, maxTokens: number, hint: number | null): number {
  if (hint !== null) return Math.min(hint, maxTokens);
  return Math.max(1, maxTokens * (state.outputShare.get(bucketOf(maxTokens)) ?? 1));
}

/** Time on a slot, prompt to last token. */
export function serviceMs(
  state: PredictorState,
  tokensIn: number,
  tokensOut: number,
  concurrency: number,
): number {
  const prefill = (tokensIn * 1000) / (state.prefillTps ?? unknownSpeed.prefillTps);
  return prefill + (tokensOut * 1000) / decodeTps(state, concurrency);
}

export function predict(
  state: PredictorState,
  load: PoolLoad,
  queuePosition: number,
  ownServiceMs: number,
  deadlineMs: number | null,
): Prediction {
  const startMs = startInMs(state, load);
  const endMs = startMs + ownServiceMs;
  return {
    queuePosition,
    startMs: Math.round(startMs),
    endMs: Math.round(endMs),
    onTimeProbability: deadlineMs === null ? null : onTime(state, endMs, deadlineMs),
  };
}

/**
 * When the work ahead has flowed into the slots: the level t with sum(max(0, t - freeIn)) = workAhead.
 * With nothing ahead that is the first slot that becomes free.
 */
function startInMs(state: PredictorState, load: PoolLoad): number {
  assert(load.workAheadMs >= 0, "work ahead is not negative");
  const ready = load.slotFreeInMs.length > 0;
  const free = ready
    ? [...load.slotFreeInMs].sort((a, b) => a - b)
    : Array.from({ length: Math.max(1, load.slotsExpected) }, () => state.loadMs ?? unknownLoadMs);
  let used = 0;
  let level = free[0] ?? 0;
  let left = load.workAheadMs;
  for (const at of free) {
    const poured = (at - level) * used;
    if (poured >= left) break;
    left -= poured;
    level = at;
    used++;
  }
  return used === 0 ? level : level + left / used;
}

/**
 * P(end <= deadline): the end is taken as log-normal around its prediction, for times are wrong by factors and
 * never negative; its spread is what scoring has shown.
 */
function onTime(state: PredictorState, endMs: number, deadlineMs: number): number {
  if (deadlineMs <= 0) return 0;
  // Mean absolute error to sigma of a normal distribution: sqrt(pi/2).
  const spread = state.scored === 0 ? coldRelativeError : state.relativeError * 1.2533;
  const sigma = Math.min(Math.max(spread, sigmaMin), sigmaMax);
  const z = Math.log(deadlineMs / Math.max(endMs, 1)) / sigma;
  return Math.round(normalCdf(z) * 1000) / 1000;
}

/** Abramowitz & Stegun 26.2.17, absolute error below 7.5e-8. */
function normalCdf(x: number): number {
  const t = 1 / (1 + 0.2316419 * Math.abs(x));
  const d = 0.3989422804014327 * Math.exp((-x * x) / 2);
  const tail =
    d * t * (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))));
  return x >= 0 ? 1 - tail : tail;
}
