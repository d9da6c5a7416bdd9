/**
 * How many tokens an answer will have, learnt from finished ones: for each bucket of max_tokens a histogram of
 * the share of max_tokens that was produced, with the answers that ran into the limit as a class of their own.
 * Pure; kept and asked by the predictor.
 *
 * Always holds: an estimate lies within 0 and max_tokens; old answers fade.
 */

/** Bins of the share below 1, narrow near zero (their edges go with the square), then one for "length". */
const belowLimit = 16;
export const lengthBins = belowLimit + 1;
/** max_tokens buckets by powers of four: short answers tell little about long ones. */
export const lengthBuckets = 11;
/** Each answer makes earlier ones count for this much: about the last hundred matter. */
const decay = 0.99;
/** A client's own expectation is taken to be right within about a third. */
const hintError = 0.3;
/** Relative error of a mean over few answers: shrinks with their number. */
const fewError = 0.3;

export interface LengthHistogram {
  /** Decayed number of answers by bin. */
  weights: number[];
  /** Mean share of max_tokens within the bin. */
  shares: number[];
}
export type OutputLengths = (LengthHistogram | null)[];

/** Tokens. */
export interface Estimate {
  readonly mean: number;
  readonly variance: number;
}

export const createOutputLengths = (): OutputLengths => new Array(lengthBuckets).fill(null);

const bucketOf = (maxTokens: number): number =>
  Math.min(lengthBuckets - 1, Math.ceil(Math.log2(Math.max(1, maxTokens)) / 2));
const lowerEdge = (bin: number): number => (bin / belowLimit) ** 2;
const binOf = (share: number): number =>
  share >= 1 ? belowLimit : Math.min(belowLimit - 1, Math.floor(Math.sqrt(Math.max(0, share)) * belowLimit));

export function learnLength(lengths: OutputLengths, maxTokens: number, tokensOut: number): void {
  const bucket = bucketOf(maxTokens);
  const histogram = lengths[bucket] ?? {
    weights: new Array<number>(lengthBins).fill(0),
    shares: new Array<number>(lengthBins).fill(0),
  };
  lengths[bucket] = histogram;
  wholes.delete(histogram);
  const { weights, shares } = histogram;
  for (let bin = 0; bin < weights.length; bin++) weights[bin] = (weights[bin] ?? 0) * decay;
  const share = Math.min(1, tokensOut / maxTokens);
  const bin = binOf(share);
  const weight = (weights[bin] ?? 0) + 1;
  const mean = shares[bin] ?? 0;
  weights[bin] = weight;
  shares[bin] = mean + (share - mean) / weight;
}

/** What is still to come of an answer that has `produced` tokens already. */
export function remainingTokens(
  lengths: OutputLengths,
  maxTokens: number,
  hint: number | null,
  produced: number,
): Estimate {
  if (hint !== null && Math.min(hint, maxTokens) > produced) {
    const expected = Math.min(hint, maxTokens);
    return { mean: expected - produced, variance: (hintError * expected) ** 2 };
  }
  const left = Math.max(0, maxTokens - produced);
  const histogram = lengths[bucketOf(maxTokens)] ?? null;
  const seen =
    histogram === null
      ? null
      : produced === 0
        ? whole(histogram)
        : conditional(histogram, Math.min(1, produced / maxTokens));
  if (seen !== null) {
    const mean = Math.min(left, seen.mean * maxTokens);
    return { mean, variance: seen.variance * maxTokens ** 2 };
  }
  // Nothing seen at all: the limit. Nothing seen that was so long: half of what is left.
  const mean = histogram === null ? left : left / 2;
  return { mean, variance: (fewError * mean) ** 2 };
}

/** Each admission asks for it several times, and it changes only when a task ends. */
const wholes = new WeakMap<LengthHistogram, Estimate | null>();

function whole(histogram: LengthHistogram): Estimate | null {
  const known = wholes.get(histogram);
  if (known !== undefined) return known;
  const made = conditional(histogram, 0);
  wholes.set(histogram, made);
  return made;
}

/** Mean and variance of the rest, given that the share is above `done`; null where no such answer was seen. */
function conditional({ weights, shares }: LengthHistogram, done: number): Estimate | null {
  let sum = 0;
  let first = 0;
  let second = 0;
  for (let bin = 0; bin < weights.length; bin++) {
    const weight = weights[bin] ?? 0;
    if (weight < 1e-3) continue;
    const upper = bin === belowLimit ? 1 : lowerEdge(bin + 1);
    if (upper <= done && bin < belowLimit) continue;
    let part = weight;
    let at = shares[bin] ?? 0;
    const lower = lowerEdge(bin);
    if (done > lower && bin < belowLimit) {
      part *= (upper - done) / (upper - lower);
      at = (done + upper) / 2;
    }
    const rest = Math.max(0, at - done);
    sum += part;
    first += part * rest;
    second += part * rest * rest;
  }
  if (sum < 1e-3) return null;
  const mean = first / sum;
  const few = (fewError * mean) ** 2 / (1 + sum);
  return { mean, variance: Math.max(0, second / sum - mean * mean) + few };
}

/** The length that this share of answers stays below; null while none was seen. */
export function lengthQuantile(lengths: OutputLengths, maxTokens: number, share: number): number | null {
  const histogram = lengths[bucketOf(maxTokens)] ?? null;
  if (histogram === null) return null;
  const total = histogram.weights.reduce((a, b) => a + b, 0);
  let below = 0;
  for (const [bin, weight] of histogram.weights.entries()) {
    if (below + weight >= share * total && weight > 0)
      return bin === belowLimit ? maxTokens : lowerEdge(bin) * maxTokens;
    below += weight;
  }
  return maxTokens;
}
