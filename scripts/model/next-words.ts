/**
 * Owns the part of the demo model that knows which word may follow which: a direction per token, such that
 * the product with a candidate's own direction is 1 if it may follow and well below 1 if it may not.
 * Called by demo-weights.ts. Always holds: all candidates of a token come out equal up to their bonus for
 * being frequent, so that the context code alone decides among them.
 */
import { normalSource, uniformSource } from "./random.ts";
import { specialTokens, type Vocabulary } from "./vocabulary.ts";

/** More candidates than this cannot be told apart from the rest in so few dimensions. */
const candidateLimit = 24;
/** What a token that may not follow is pressed down to, as a share of what one that may reaches. */
const outsiderLimit = 0.45;
/** At temperature 0.8 the end token has odds of about one in a million at the end of a sentence. */
const endPenalty = 0.28;
/** Gain per harmonic step of the count: with it, frequent successors win about as often as in the corpus. */
const frequencyGain = 0.035;

export interface NextWords {
  /** Direction to read a candidate's score with, by token id; only for tokens that can be generated. */
  readonly readDirections: ReadonlyMap<number, Float64Array>;
  /** Direction to put into the residual stream for a token that has just been read, by token id. */
  readonly writeDirections: readonly Float64Array[];
}

/** Wanted score per candidate of one token. */
type Targets = Map<number, number>;

function harmonic(count: number): number {
  let sum = 0;
  for (let i = 2; i <= count; i++) sum += 1 / i;
  return sum;
}

/** The most frequent successors, every unusual character, and an even sample of what is left. */
function chooseCandidates(vocabulary: Vocabulary, counts: ReadonlyMap<number, number>): Targets {
  const unusual = (id: number) => /^▁?$|[^\p{ASCII}▁]/u.test(vocabulary.pieces[id] ?? "");
  const sorted = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  const first = sorted.filter(
    ([id, count], index) => unusual(id) || (count > 1 && index < candidateLimit / 2),
  );
  const rest = sorted.filter((entry) => !first.includes(entry));
  const room = Math.max(0, Math.min(rest.length, candidateLimit - first.length));
  for (let i = 0; i < room; i++) {
    const entry = rest[Math.floor((i * rest.length) / room)];
    if (entry !== undefined) first.push(entry);
  }
  return new Map(first.map(([id, count]) => [id, 1 + frequencyGain * harmonic(count)]));
}

/** Candidates after a token that the corpus does not contain: a few of the most frequent words. */
function fallbackPatterns(vocabulary: Vocabulary): Targets[] {
  const frequent = [...vocabulary.frequency.keys()].filter((id) =>
    /^▁\p{L}/u.test(vocabulary.pieces[id] ?? ""),
  );
  const uniform = uniformSource(0x5eed0001);
  return Array.from({ length: 16 }, () => {
    const targets: Targets = new Map();
    while (targets.size < 12) {
      const id = frequent[Math.floor(uniform() * 40)];
      if (id !== undefined) targets.set(id, 1);
    }
    return targets;
  });
}

/** Solves a symmetric positive definite system by Cholesky decomposition. */
function solve(matrix: Float64Array[], right: Float64Array): Float64Array {
  const n = right.length;
  const at = (row: Float64Array | undefined, column: number) => row?.[column] ?? 0;
  const lower: Float64Array[] = [];
  for (let i = 0; i < n; i++) {
    const row = new Float64Array(n);
    for (let j = 0; j <= i; j++) {
      const other = j === i ? row : lower[j];
      let sum = at(matrix[i], j);
      for (let k = 0; k < j; k++) sum -= at(row, k) * at(other, k);
      row[j] = i === j ? Math.sqrt(sum) : sum / at(other, j);
    }
    lower.push(row);
  }
  const solution = Float64Array.from(right);
  for (let i = 0; i < n; i++) {
    let sum = at(solution, i);
    for (let k = 0; k < i; k++) sum -= at(lower[i], k) * at(solution, k);
    solution[i] = sum / at(lower[i], i);
  }
  for (let i = n - 1; i >= 0; i--) {
    let sum = at(solution, i);
    for (let k = i + 1; k < n; k++) sum -= at(lower[k], i) * at(solution, k);
    solution[i] = sum / at(lower[i], i);
  }
  return solution;
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] ?? 0) * (b[i] ?? 0);
  return sum;
}

/** Finds the directions for `width` dimensions. */
export function buildNextWords(vocabulary: Vocabulary, width: number): NextWords {
  const fallbacks = fallbackPatterns(vocabulary);
  const chosen = new Map<ReadonlyMap<number, number>, Targets>();
  const targetsOf = vocabulary.pieces.map((_, id): Targets => {
    const counts = vocabulary.successors.get(id);
    if (counts === undefined) return fallbacks[id % fallbacks.length] ?? new Map();
    const targets = chosen.get(counts) ?? chooseCandidates(vocabulary, counts);
    chosen.set(counts, targets);
    return targets;
  });
  const generated = [...new Set(targetsOf.flatMap((targets) => [...targets.keys()]))].sort((a, b) => a - b);
  const normal = normalSource(0x5eed0002);
  const directions = generated.map(() =>
    Float64Array.from({ length: width }, () => normal() / Math.sqrt(width)),
  );
  const gram = directions.map((a) => Float64Array.from(directions, (b) => dot(a, b)));
  const indexOf = new Map(generated.map((id, index) => [id, index]));
  const fullStop = vocabulary.idOf.get(".");

  const direction = (targets: Targets): Float64Array => {
    const wanted = new Map([...targets].map(([id, value]) => [indexOf.get(id) ?? 0, value]));
    for (;;) {
      const members = [...wanted.keys()];
      const matrix = members.map((i) => Float64Array.from(members, (j) => gram[i]?.[j] ?? 0));
      const weights = solve(matrix, Float64Array.from(wanted.values()));
      const before = wanted.size;
      generated.forEach((_, index) => {
        if (wanted.has(index)) return;
        let score = 0;
        members.forEach((member, k) => {
          score += (weights[k] ?? 0) * (gram[index]?.[member] ?? 0);
        });
        if (score > outsiderLimit) wanted.set(index, outsiderLimit - 0.1);
      });
      if (wanted.size > before) continue;
      const sum = new Float64Array(width);
      members.forEach((member, k) => {
        const weight = weights[k] ?? 0;
        directions[member]?.forEach((value, dimension) => {
          sum[dimension] = (sum[dimension] ?? 0) + weight * value;
        });
      });
      return sum;
    }
  };
  const solved = new Map<Targets, Float64Array>();
  const writeDirections = targetsOf.map((targets, id) => {
    const known = solved.get(targets);
    if (known !== undefined) return known;
    if (id === fullStop) targets.set(specialTokens.end, 1 - endPenalty);
    const found = direction(targets);
    solved.set(targets, found);
    return found;
  });
  return {
    readDirections: new Map(generated.map((id, index) => [id, directions[index] ?? new Float64Array(width)])),
    writeDirections,
  };
}
