/**
 * The least costly set of pools whose memory makes room for another. Pure; residency.ts asks, and says what may go
 * and what each of them costs.
 *
 * Always holds: the set frees what is missing on every device, no pool in it could stay, and the same question
 * has the same answer whatever the order of the candidates.
 */
import { assert } from "./assert.ts";

/** Bytes by device. */
export type Bytes = ReadonlyMap<string, number>;

export interface Leaver {
  readonly poolId: string;
  readonly needs: Bytes;
  /** Milliseconds that its absence is expected to cost. */
  readonly costMs: number;
}

/**
 * Ids in order; null: all of them together do not free enough. `missing` names only devices that lack something.
 * Up to `exactMax` candidates the answer is the least sum of costs, of equals the fewest pools; above it the best
 * ratio of cost to room is taken again and again, and what that made superfluous stays.
 */
export function leastCostly(
  candidates: readonly Leaver[],
  missing: Bytes,
  exactMax: number,
): readonly string[] | null {
  assert(
    [...missing.values()].every((bytes) => bytes > 0),
    "what is missing is more than nothing",
  );
  const helpful = candidates
    .filter(({ needs }) => [...missing.keys()].some((device) => (needs.get(device) ?? 0) > 0))
    .sort((a, b) => byId(a.poolId, b.poolId));
  if (!covers(helpful, missing)) return null;
  const chosen = helpful.length <= exactMax ? exact(helpful, missing) : greedy(helpful, missing);
  return chosen.map(({ poolId }) => poolId);
}

/** Code units, not a locale: the same everywhere. */
export const byId = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

const freedOn = (leavers: readonly Leaver[], device: string): number =>
  leavers.reduce((sum, { needs }) => sum + (needs.get(device) ?? 0), 0);

const covers = (leavers: readonly Leaver[], missing: Bytes): boolean =>
  [...missing].every(([device, bytes]) => freedOn(leavers, device) >= bytes);

const costOf = (leavers: readonly Leaver[]): number => leavers.reduce((sum, { costMs }) => sum + costMs, 0);

/** Every set, except where the pools decided so far already cost as much as the best or the rest cannot suffice. */
function exact(candidates: readonly Leaver[], missing: Bytes): readonly Leaver[] {
  const devices = [...missing.keys()];
  const frees = candidates.map(({ needs }) => devices.map((device) => needs.get(device) ?? 0));
  /** What all from an index on free together. */
  const rest = frees.map((_, index) =>
    devices.map((_device, at) => frees.slice(index).reduce((sum, bytes) => sum + (bytes[at] ?? 0), 0)),
  );
  let best: readonly Leaver[] = candidates;
  let bestMs = costOf(candidates);
  const taken: Leaver[] = [];
  const visit = (index: number, lacking: readonly number[], takenMs: number): void => {
    if (takenMs > bestMs || (takenMs === bestMs && taken.length >= best.length)) return;
    if (lacking.every((bytes) => bytes <= 0)) {
      best = [...taken];
      bestMs = takenMs;
      return;
    }
    const next = candidates[index];
    if (next === undefined || lacking.some((bytes, at) => bytes > (rest[index]?.[at] ?? 0))) return;
    taken.push(next);
    visit(
      index + 1,
      lacking.map((bytes, at) => bytes - (frees[index]?.[at] ?? 0)),
      takenMs + next.costMs,
    );
    taken.pop();
    visit(index + 1, lacking, takenMs);
  };
  visit(0, [...missing.values()], 0);
  // Sums of the same costs in another order may differ in their last bit: nothing superfluous goes for that.
  return withoutSuperfluous(best, missing);
}

function greedy(candidates: readonly Leaver[], missing: Bytes): readonly Leaver[] {
  const taken: Leaver[] = [];
  const left = new Set(candidates);
  while (!covers(taken, missing)) {
    let best: Leaver | null = null;
    let bestRatio = Number.POSITIVE_INFINITY;
    for (const leaver of left) {
      const room = roomOf(leaver, taken, missing);
      const ratio = room > 0 ? leaver.costMs / room : Number.POSITIVE_INFINITY;
      if (room > 0 && (best === null || ratio < bestRatio)) {
        best = leaver;
        bestRatio = ratio;
      }
    }
    assert(best !== null, "all together suffice, so one of the rest helps");
    taken.push(best);
    left.delete(best);
  }
  return withoutSuperfluous(taken, missing);
}

/** The share of what is still missing that it frees, summed over the devices. */
function roomOf({ needs }: Leaver, taken: readonly Leaver[], missing: Bytes): number {
  let room = 0;
  for (const [device, bytes] of missing) {
    const lacking = bytes - freedOn(taken, device);
    if (lacking > 0) room += Math.min(1, (needs.get(device) ?? 0) / lacking);
  }
  return room;
}

function withoutSuperfluous(taken: readonly Leaver[], missing: Bytes): readonly Leaver[] {
  let kept = taken;
  const costliestFirst = [...taken].sort((a, b) => b.costMs - a.costMs || byId(a.poolId, b.poolId));
  for (const leaver of costliestFirst) {
    const without = kept.filter((other) => other !== leaver);
    if (covers(without, missing)) kept = without;
  }
  return [...kept].sort((a, b) => byId(a.poolId, b.poolId));
}
