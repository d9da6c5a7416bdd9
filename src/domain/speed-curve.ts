/**
 * How long one token takes a stream, by how many streams run beside it on a replica: learnt online, pure.
 * The predictor keeps one curve for reading prompts and one for decoding.
 *
 * Always holds: what was measured at a concurrency stands for it until newer measurements outweigh it; more
 * streams never make a token of one of them faster; a single measured point is answered exactly.
 */
import { limits } from "./limits.ts";

/** Each measurement makes all earlier ones count for this much: about the last twenty matter. */
const decay = 0.95;
/** A concurrency that is not met any more keeps this much say: a point is outweighed, never forgotten. */
const weightFloor = 1;

export interface SpeedPoint {
  weight: number;
  msPerToken: number;
}

export interface SpeedCurve {
  /** By concurrency; index 0 is not used, weight 0 is not measured. */
  points: SpeedPoint[];
  /** The smoothed answer by concurrency, up to the highest one measured; derived from the points. */
  readonly table: number[];
}

export const createSpeedCurve = (): SpeedCurve => ({ points: [], table: [] });

export const isMeasured = (curve: SpeedCurve): boolean => curve.table.length > 0;

/** `concurrency` may be a mean over the run; `weight` in (0, 1] says how much the measurement is worth. */
export function learnSpeed(curve: SpeedCurve, concurrency: number, msPerToken: number, weight: number): void {
  const at = Math.min(Math.max(1, Math.round(concurrency)), limits.slotsPerReplicaMax);
  while (curve.points.length <= at) curve.points.push({ weight: 0, msPerToken: 0 });
  for (const point of curve.points)
    point.weight = Math.max(Math.min(point.weight, weightFloor), point.weight * decay);
  const point = curve.points[at];
  if (point === undefined) return;
  point.weight += weight;
  point.msPerToken += ((msPerToken - point.msPerToken) * weight) / point.weight;
  rebuild(curve);
}

/** Milliseconds a token at this concurrency; null while nothing was measured. */
export function msPerTokenAt(curve: SpeedCurve, concurrency: number): number | null {
  const { table } = curve;
  const last = table.length - 1;
  const first = table[1];
  const highest = table[last];
  if (first === undefined || highest === undefined) return null;
  const at = Math.max(1, concurrency);
  if (at <= last) return between(table, at);
  // Beyond what was measured: as it rose so far, but never worse than taking turns.
  const slope = last === 1 ? 0 : (highest - first) / (last - 1);
  return Math.min(highest + slope * (at - last), (highest * at) / last);
}

function between(table: readonly number[], at: number): number {
  const below = table[Math.floor(at)] ?? 0;
  const above = table[Math.ceil(at)] ?? below;
  return below + (above - below) * (at - Math.floor(at));
}

interface Block {
  from: number;
  to: number;
  weight: number;
  ms: number;
}
/** Used anew by each `rebuild`, which runs twice for every task that ends. */
const blocks: Block[] = [];
const blockAt = (index: number): Block => {
  blocks[index] ??= { from: 0, to: 0, weight: 0, ms: 0 };
  return blocks[index];
};

/** Weighted isotonic regression (pool adjacent violators) through the measured points, straight lines between. */
export function rebuild(curve: SpeedCurve): void {
  const { points, table } = curve;
  let count = 0;
  for (let at = 0; at < points.length; at++) {
    const point = points[at];
    if (point === undefined || point.weight <= 0) continue;
    const block = blockAt(count);
    block.from = at;
    block.to = at;
    block.weight = point.weight;
    block.ms = point.msPerToken;
    for (; count > 0 && blockAt(count - 1).ms > blockAt(count).ms; count--) {
      const last = blockAt(count - 1);
      const { to, weight, ms } = blockAt(count);
      const sum = last.weight + weight;
      last.ms = (last.ms * last.weight + ms * weight) / sum;
      last.weight = sum;
      last.to = to;
    }
    count++;
  }
  table.length = 0;
  if (count > 0) table.push(0);
  for (let index = 0; index < count; index++) {
    const { from, to, ms } = blockAt(index);
    const before = table.length - 1;
    // Below the first measured concurrency its own speed stands in.
    const start = before === 0 ? ms : (table[before] ?? ms);
    for (let at = before + 1; at < from; at++)
      table.push(start + ((ms - start) * (at - before)) / (from - before));
    for (let at = from; at <= to; at++) table.push(ms);
  }
}
