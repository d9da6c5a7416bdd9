/**
 * A token bucket as data: `rate.perSecond` tokens flow in, at most `rate.burst` are kept, one request takes one.
 * Pure: time comes in as a number. app/middleware/limits.ts keeps one bucket for each API key.
 *
 * Always: 0 <= tokens <= burst; a clock that stands still or jumps back adds nothing and takes nothing away.
 */
import { assert } from "./assert.ts";

export interface Rate {
  /** Requests a second in the long run; more than 0. */
  readonly perSecond: number;
  /** Requests that may come at once; at least 1. */
  readonly burst: number;
}

export interface TokenBucket {
  readonly tokens: number;
  /** When `tokens` was right. */
  readonly atMs: number;
}

export interface Taken {
  readonly bucket: TokenBucket;
  readonly granted: boolean;
  /** Milliseconds until a request would be granted; 0 when this one was. */
  readonly retryAfterMs: number;
}

export function fullBucket(rate: Rate, nowMs: number): TokenBucket {
  return { tokens: rate.burst, atMs: nowMs };
}

/** Takes one token if there is one. A refused request costs nothing. */
export function takeToken(bucket: TokenBucket, rate: Rate, nowMs: number): Taken {
  assert(rate.perSecond > 0 && rate.burst >= 1, "a rate lets something through");
  const elapsedMs = Math.max(0, nowMs - bucket.atMs);
  const atMs = Math.max(nowMs, bucket.atMs);
  // A rate that was lowered by a new configuration must not leave more than the new burst.
  const tokens = Math.min(rate.burst, bucket.tokens + (elapsedMs * rate.perSecond) / 1000);
  // Sums of fractions miss 1 by a hair: whoever waited as long as told must get through.
  if (tokens > 1 - 1e-9) {
    return { bucket: { tokens: Math.max(0, tokens - 1), atMs }, granted: true, retryAfterMs: 0 };
  }
  const retryAfterMs = Math.max(1, Math.ceil(((1 - tokens) * 1000) / rate.perSecond));
  return { bucket: { tokens, atMs }, granted: false, retryAfterMs };
}
