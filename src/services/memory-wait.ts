/**
 * How long a pool that is not in memory waits until its load begins, as far as that can be told: what promises to its
 * tasks are made of. Reads the residency only.
 *
 * Idle pools go at once. Those in use go when they are done, or are held once the wait has lasted swapMaxWaitMs and
 * finish what runs; whoever wanted memory of the same devices before is loaded first.
 */
import {
  holdsMemory,
  isIdle,
  missingFor,
  poolOf,
  type Residency,
  unclaimedOn,
} from "../domain/residency-state.ts";

export interface LeftMs {
  /** Of what runs. */
  readonly runningMs: number;
  /** Of what waits behind it, at the pool's speed. */
  readonly waitingMs: number;
}

export function memoryWaitMs(
  state: Residency,
  poolId: string,
  nowMs: number,
  unloadMs: number,
  leftOf: (poolId: string) => LeftMs,
): number {
  const pool = poolOf(state, poolId);
  if (pool.residence === "loaded" || pool.residence === "loading") return 0;
  const own = pool.residence === "unloading" ? unloadMs : 0;
  const shares = (needs: ReadonlyMap<string, number>): boolean =>
    [...needs].some(([deviceId, bytes]) => bytes > 0 && (pool.needs.get(deviceId) ?? 0) > 0);
  const others = [...state.pools.values()].filter((other) => other !== pool && shares(other.needs));
  const before = others.filter(
    (other) =>
      !holdsMemory(other) &&
      other.waiting > 0 &&
      (other.claim !== null || (other.oldestMs ?? nowMs) < (pool.oldestMs ?? nowMs)),
  );
  const queueMs = before.reduce((sum, { loadMs }) => sum + loadMs + unloadMs, 0);
  if (missingFor(pool.needs, (deviceId) => unclaimedOn(state, deviceId)).size === 0) return own + queueMs;
  const inUse = others.filter((other) => other.residence === "loaded" && !isIdle(other));
  const longest = (of: (left: LeftMs) => number): number =>
    Math.max(0, ...inUse.map((other) => of(leftOf(other.poolId))));
  const loadingMs = others
    .filter(({ residence }) => residence === "loading")
    .reduce((most, { loadMs }) => Math.max(most, loadMs), 0);
  const waitedMs = nowMs - (pool.oldestMs ?? nowMs);
  const heldMs = Math.max(0, state.rules.swapMaxWaitMs - waitedMs) + longest(({ runningMs }) => runningMs);
  const doneMs = longest(({ runningMs, waitingMs }) => runningMs + waitingMs);
  return own + queueMs + loadingMs + Math.min(heldMs, doneMs) + unloadMs;
}
