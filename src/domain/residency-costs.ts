/**
 * What it costs when a pool has to go, and who may: the part of residency.ts that guesses. A pool is expected to be used
 * as it was until now. Pure.
 */
import { type Bytes, type Leaver, leastCostly } from "./eviction.ts";
import { limits } from "./limits.ts";
import { isIdle, type Residency, type ResidencyPool } from "./residency-state.ts";

/** Pauses are short where so many take no longer than a load; then so many are waited for. */
const lingerPausesPerLoad = 4;
const lingerPauses = 2;
/** Of the last pause, in their mean. */
const pauseWeight = 0.25;

/** Work came for it. Before its numbers of tasks change. */
export function noteUse(pool: ResidencyPool, nowMs: number): void {
  if (nowMs - pool.countedMs >= pool.loadMs) {
    pool.uses = usesAt(pool, nowMs) + 1;
    pool.countedMs = nowMs;
  }
  if (!isIdle(pool) || pool.lastUsedMs === Number.NEGATIVE_INFINITY) return;
  const lastMs = nowMs - pool.lastUsedMs;
  pool.pauseMs = pool.pauseMs === null ? lastMs : pool.pauseMs + (lastMs - pool.pauseMs) * pauseWeight;
}

/** When those that waited too long may have it held. Once over, a turn stays over until the pool is unloaded. */
export const turnEndsMs = (state: Residency, { groupLeft, loadedMs }: ResidencyPool): number =>
  groupLeft === 0 ? loadedMs : loadedMs + state.rules.swapTurnMaxMs;

function usesAt(pool: ResidencyPool, nowMs: number): number {
  return pool.uses === 0 ? 0 : pool.uses * 2 ** (-(nowMs - pool.countedMs) / limits.residencyHalfLifeMs);
}

/**
 * That it is needed within the next half-life. Uses that come at a constant rate keep the decayed sum at
 * rate × half-life / ln 2; that none comes (Poisson) has the probability e^(-rate × half-life) = 2^-sum.
 */
function likelihood(pool: ResidencyPool, nowMs: number): number {
  return pool.preload ? 1 : 1 - 2 ** -usesAt(pool, nowMs);
}

function leaverOf(state: Residency, pool: ResidencyPool, nowMs: number): Leaver {
  const { poolId, needs, loadMs } = pool;
  if (isIdle(pool) && pool.residence === "loaded")
    return { poolId, needs, costMs: loadMs * likelihood(pool, nowMs) };
  // It is needed now, and those that want its place wait until its turn is over.
  const turnMs =
    pool.residence === "loading"
      ? loadMs + state.rules.swapTurnMaxMs
      : Math.max(0, turnEndsMs(state, pool) - nowMs);
  return { poolId, needs, costMs: loadMs + turnMs };
}

/** idle: nobody who waited too long asks; lingering: what lingers may go, too; all: whatever is loaded or being loaded. */
export function chooseLeavers(
  state: Residency,
  missing: Bytes,
  among: "idle" | "lingering" | "all",
  nowMs: number,
): readonly string[] | null {
  const candidates = [...state.pools.values()].filter(
    (pool) =>
      pool.leaving === null &&
      (pool.residence === "loaded" || (pool.residence === "loading" && among === "all")) &&
      (among === "all" || isIdle(pool)) &&
      (among !== "idle" || lingersUntilMs(pool) <= nowMs),
  );
  return leastCostly(
    candidates.map((pool) => leaverOf(state, pool, nowMs)),
    missing,
    limits.evictionExactMax,
  );
}

/**
 * Who is asked again and again after pauses that are short beside a load (an agent that calls a tool) is not idle in
 * between for those that have not waited too long. -Infinity: it does not linger.
 */
export function lingersUntilMs({ pauseMs, loadMs, lastUsedMs }: ResidencyPool): number {
  if (pauseMs === null || pauseMs * lingerPausesPerLoad > loadMs) return Number.NEGATIVE_INFINITY;
  return lastUsedMs + pauseMs * lingerPauses;
}
