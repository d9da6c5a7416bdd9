/**
 * Figures from samples: quantiles and the interval of a median by bootstrap (Efron 1979), with a seeded
 * generator so that the same samples give the same interval.
 */

/** Linear interpolation between order statistics (type 7); `q` from 0 to 1. */
export function quantile(samples: readonly number[], q: number): number {
  if (samples.length === 0) throw new Error("no samples: the measurement did not run");
  const sorted = [...samples].sort((a, b) => a - b);
  const at = (sorted.length - 1) * q;
  const low = sorted[Math.floor(at)] ?? Number.NaN;
  const high = sorted[Math.ceil(at)] ?? Number.NaN;
  return low + (high - low) * (at - Math.floor(at));
}

export const median = (samples: readonly number[]): number => quantile(samples, 0.5);

export const mean = (samples: readonly number[]): number =>
  samples.reduce((sum, sample) => sum + sample, 0) / samples.length;

/** 95 % percentile-bootstrap interval of the median. */
export function medianInterval(samples: readonly number[], rounds = 4000): { low: number; high: number } {
  const next = mulberry32(20260101);
  const medians: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const resampled = samples.map(() => samples[Math.floor(next() * samples.length)] ?? Number.NaN);
    medians.push(median(resampled));
  }
  return { low: quantile(medians, 0.025), high: quantile(medians, 0.975) };
}

/** A small generator of good enough quality for resampling. */
export function mulberry32(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
