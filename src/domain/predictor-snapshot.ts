/**
 * What a predictor has learnt as plain JSON, and back. Called where it is kept across restarts.
 *
 * Always holds: a snapshot that is not whole and within bounds is refused and changes nothing; what is derived
 * is made anew, never read.
 */
import type { ArrivalRate } from "./arrival-rate.ts";
import type { Calibration } from "./calibration.ts";
import { limits } from "./limits.ts";
import { type LengthHistogram, lengthBins, lengthBuckets } from "./output-length.ts";
import { createPredictor, type Moments, type PredictorState } from "./predictor.ts";
import { type ResidualWindow, residualMax, tailBounds, windowSizeMax } from "./residual-window.ts";
import { rebuild, type SpeedCurve } from "./speed-curve.ts";

const version = 1;
const large = 1e15;

/** Plain JSON. */
export function snapshotOf(state: PredictorState): unknown {
  const { prefill, decode, classes, ...rest } = state;
  return structuredClone({
    version,
    ...rest,
    prefill: prefill.points,
    decode: decode.points,
    classes: { interactive: learnt(classes.interactive), batch: learnt(classes.batch) },
  });
}

const learnt = ({ starts, ends, correction, tally }: Calibration) => ({
  starts: kept(starts),
  ends: kept(ends),
  correction,
  tally,
});
const kept = ({ recent, oldest, lowTail, highTail }: ResidualWindow) => ({
  recent,
  oldest,
  lowTail,
  highTail,
});

/** False: refused, the state is as it was. */
export function restore(state: PredictorState, snapshot: unknown): boolean {
  const reader = new Reader();
  const read = readState(reader, snapshot);
  if (reader.refused) return false;
  Object.assign(state, read);
  return true;
}

function readState(reader: Reader, snapshot: unknown): PredictorState {
  const from = reader.object(snapshot);
  reader.number(from.version, version, version);
  const evaluated = reader.object(from.evaluated);
  const share = (value: unknown) => (value === null ? null : reader.number(value, 0, 1));
  const classes = reader.object(from.classes);
  return {
    ...createPredictor(),
    prefill: readCurve(reader, from.prefill),
    decode: readCurve(reader, from.decode),
    lengths: reader
      .array(from.lengths, lengthBuckets, lengthBuckets)
      .map((item) => (item === null ? null : readLengths(reader, item))),
    evaluated: { exact: share(evaluated.exact), guessed: share(evaluated.guessed) },
    loadMs: readMoments(reader, from.loadMs),
    slotMs: readMoments(reader, from.slotMs),
    varianceRatio: reader.number(from.varianceRatio, 0, large),
    attempts: reader.count(from.attempts),
    arrivals: readArrivals(reader, from.arrivals),
    classes: {
      interactive: readCalibration(reader, classes.interactive),
      batch: readCalibration(reader, classes.batch),
    },
  };
}

function readCurve(reader: Reader, value: unknown): SpeedCurve {
  const points = reader.array(value, 0, limits.slotsPerReplicaMax + 1).map((item) => {
    const { weight, msPerToken } = reader.object(item);
    return { weight: reader.number(weight, 0, large), msPerToken: reader.number(msPerToken, 0, large) };
  });
  const curve: SpeedCurve = { points, table: [] };
  // A speed of nothing measured is none; the rest divides by it.
  reader.check(points.every((point) => point.weight === 0 || point.msPerToken > 0));
  rebuild(curve);
  return curve;
}

function readLengths(reader: Reader, value: unknown): LengthHistogram {
  const { weights, shares } = reader.object(value);
  return {
    weights: reader.array(weights, lengthBins, lengthBins).map((item) => reader.number(item, 0, large)),
    shares: reader.array(shares, lengthBins, lengthBins).map((item) => reader.number(item, 0, 1)),
  };
}

function readMoments(reader: Reader, value: unknown): Moments {
  const { count, mean, meanSquare } = reader.object(value);
  return {
    count: reader.count(count),
    mean: reader.number(mean, 0, large),
    meanSquare: reader.number(meanSquare, 0, large ** 2),
  };
}

function readArrivals(reader: Reader, value: unknown): ArrivalRate {
  const { stepSinceMs, stepWorkMs, steps, mean, meanSquare } = reader.object(value);
  return {
    stepSinceMs: stepSinceMs === null ? null : reader.number(stepSinceMs, 0, large),
    stepWorkMs: reader.number(stepWorkMs, 0, large),
    steps: reader.count(steps),
    mean: reader.number(mean, 0, large),
    meanSquare: reader.number(meanSquare, 0, large ** 2),
  };
}

function readCalibration(reader: Reader, value: unknown): Calibration {
  const from = reader.object(value);
  const { slope, shift } = reader.object(from.correction);
  const tally = reader.object(from.tally);
  const read = {
    starts: reader.count(tally.starts),
    startsInside: reader.count(tally.startsInside),
    deadlines: reader.count(tally.deadlines),
    deadlinesMet: reader.count(tally.deadlinesMet),
    squaredError: reader.number(tally.squaredError, 0, large),
  };
  reader.check(read.startsInside <= read.starts && read.deadlinesMet <= read.deadlines);
  reader.check(read.squaredError <= read.deadlines);
  return {
    starts: readWindow(reader, from.starts),
    ends: readWindow(reader, from.ends),
    correction: { slope: reader.number(slope, 0.1, 10), shift: reader.number(shift, -10, 10) },
    tally: read,
  };
}

function readWindow(reader: Reader, value: unknown): ResidualWindow {
  const from = reader.object(value);
  const recent = reader
    .array(from.recent, 1, windowSizeMax)
    .map((item) => reader.number(item, -residualMax, residualMax));
  const oldest = reader.count(from.oldest);
  // Only a full ring has turned.
  reader.check(oldest < (recent.length === windowSizeMax ? windowSizeMax : 1));
  return {
    recent,
    oldest,
    lowTail: reader.number(from.lowTail, tailBounds.min, tailBounds.max),
    highTail: reader.number(from.highTail, tailBounds.min, tailBounds.max),
    sorted: [...recent].sort((a, b) => a - b),
  };
}

/** Remembers that something was wrong and goes on with values that do no harm. */
class Reader {
  refused = false;

  check(holds: boolean): void {
    if (!holds) this.refused = true;
  }

  number(value: unknown, min: number, max: number): number {
    if (typeof value === "number" && value >= min && value <= max) return value;
    this.refused = true;
    return min;
  }

  count(value: unknown): number {
    this.check(Number.isSafeInteger(value));
    return this.number(value, 0, Number.MAX_SAFE_INTEGER);
  }

  array(value: unknown, least: number, most: number): readonly unknown[] {
    if (Array.isArray(value) && value.length >= least && value.length <= most) return value;
    this.refused = true;
    return [];
  }

  object(value: unknown): Readonly<Record<string, unknown>> {
    if (typeof value === "object" && value !== null) return value as Readonly<Record<string, unknown>>;
    this.refused = true;
    return {};
  }
}
