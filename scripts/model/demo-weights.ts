/**
 * Owns the weights of the generating models (shapes `demo` and `slow`). Called by make-demo-model.ts.
 *
 * How it works. The residual stream is cut into regions (`region`). One dimension holds a constant so large
 * that RMSNorm divides by the same number everywhere; the norms' own weights undo that, so the rest of the
 * network sees the stream as it is. Then, with codes of −1 and +1:
 * 1. Layer 0, head 0 has Q = K = 0 and so averages the codes of all tokens so far (`history`). Head 1 sees
 *    constant Q and K, turned by RoPE so that only the previous token counts, and copies its code (`previous`).
 * 2. The FFN of layer 0 multiplies the previous code by the sign of the history (`mixed`): a code that depends
 *    on every token before it. The sign is a step made of two SiLU ramps.
 * 3. Layer 1, head 0 averages `mixed` over the context (`digest`). Head 1 adds the code before the previous one.
 * 4. The FFN of layer 1 multiplies these local codes by the sign of the digest (`choice`).
 * 5. The remaining heads are clocks: each looks at the begin token through one RoPE pair and so knows in which
 *    half of a short period the position lies. Without them a repeated phrase would repeat for ever.
 * 6. The output head offers the words that follow the current one in the corpus, all about equally, and the
 *    products of `choice` and of the clock bits with random vectors per word pick one.
 *
 * What always holds: everything that attention sums up is a small multiple of 1/2, which is exact in F16, in
 * any order; so greedy output does not depend on batch splits, threads or slots. One changed token flips some
 * signs at most later positions, these change the digest, and the continuation differs.
 */
import type { Tensor } from "./gguf-writer.ts";
import { constantSize, Matrix, normTensor } from "./matrix.ts";
import { buildNextWords } from "./next-words.ts";
import { normalSource, signVector, uniformSource } from "./random.ts";
import { specialTokens, type Vocabulary } from "./vocabulary.ts";

export const demoShape = { width: 768, heads: 6, headWidth: 64, ropeBase: 10000 } as const;
const { width, heads, headWidth } = demoShape;
const codeWidth = headWidth;
/** In tokens; no two have a common divisor, so that no combination of bits comes back within any context. */
const clockPeriods = [5, 7, 9, 11, 13, 16, 17, 19] as const;
const clocksPerLayer = clockPeriods.length / 2;
const nextWordsWidth = width - 2 - clockPeriods.length - 6 * codeWidth;

const region = {
  constant: 0,
  nextWords: 1,
  code: 1 + nextWordsWidth,
  previous: 1 + nextWordsWidth + codeWidth,
  history: 1 + nextWordsWidth + 2 * codeWidth,
  mixed: 1 + nextWordsWidth + 3 * codeWidth,
  digest: 1 + nextWordsWidth + 4 * codeWidth,
  choice: 1 + nextWordsWidth + 5 * codeWidth,
  /** 1 at the begin token, else 0. */
  begin: 1 + nextWordsWidth + 6 * codeWidth,
  clocks: 2 + nextWordsWidth + 6 * codeWidth,
} as const;

/** Score of a possible next word, and of one that the corpus does not allow. */
const wordScore = 45;
const neverScore = -60;
/** Standard deviation of what the context code adds to a word's score. */
const choiceDeviation = 2;
/** What one clock bit adds to a word's score: enough to break loops, less than the context does. */
const clockDeviation = 0.8;
/** Width of the step between its two SiLU ramps, and its slope: steep enough for averages of 1/2 over 1024. */
const stepWidth = 64;
const stepSlope = ((stepWidth / 2 + 8) * 1024) / 0.5;
/** Length of Q and K per RoPE pair: the previous token leads by more than exp can represent in F32. */
const pointerLength = 24;
/** The same for the clocks, whose weakest lead is sin(π/38) of the full score. */
const clockLength = 80;

/** Cosine and sine of an angle of at most 1 by their series, to be independent of the C library. */
function cosineAndSine(angle: number): [number, number] {
  let cosine = 0;
  let sine = 0;
  let term = 1;
  for (let n = 0; n < 24; n++) {
    if (n % 2 === 0) cosine += n % 4 === 0 ? term : -term;
    else sine += n % 4 === 1 ? term : -term;
    term = (term * angle) / (n + 1);
  }
  return [cosine, sine];
}

/** Radians per token by which RoPE turns each pair: the clocks first, then from 1 down to about 1/1000. */
function pairAngles(): number[] {
  const ratio = 1 / Math.sqrt(Math.sqrt(Math.sqrt(10)));
  const angles = clockPeriods.map((period) => (2 * Math.PI) / period);
  for (let angle = 1; angles.length < headWidth / 2; angle *= ratio) angles.push(angle);
  return angles;
}

/** What llama.cpp divides its own angles, base^(−2i/headWidth) = 10^(−i/8), by to arrive at ours. */
function ropeFactorTensor(): Tensor {
  const ratio = 1 / Math.sqrt(Math.sqrt(Math.sqrt(10)));
  let own = 1;
  const factors = pairAngles().map((angle) => {
    const factor = own / angle;
    own *= ratio;
    return factor;
  });
  return { name: "rope_freqs.weight", shape: [headWidth / 2], type: "F32", data: Float32Array.from(factors) };
}

/** Q and K of head 1: constant, but K starts one position ahead, so that they agree at the previous token. */
function setPreviousPointer(query: Matrix, key: Matrix): void {
  pairAngles().forEach((angle, pair) => {
    const [cosine, sine] = cosineAndSine(angle);
    const row = headWidth + 2 * pair;
    query.set(row, region.constant, pointerLength);
    key.set(row, region.constant, pointerLength * cosine);
    key.set(row + 1, region.constant, pointerLength * sine);
  });
}

/**
 * Q, K and V of a head that tells in which half of its period a position lies: the score of the begin token
 * is then above or below the others' zero. The quarter step keeps every position clear of the change.
 */
function setClock(query: Matrix, key: Matrix, value: Matrix, head: number, clock: number): void {
  const [cosine, sine] = cosineAndSine(Math.PI / (2 * (clockPeriods[clock] ?? 1)));
  const row = head * headWidth + 2 * clock;
  query.set(row, region.constant, clockLength);
  key.set(row, region.begin, clockLength * sine);
  key.set(row + 1, region.begin, -clockLength * cosine);
  value.set(head * headWidth, region.begin, 1);
}

interface SignProduct {
  /** Region whose signs are taken, and region the products go to. */
  readonly sign: number;
  readonly to: number;
  /** Entry of both regions that the entry k of the previous code meets. */
  readonly target: (k: number) => number;
}

/**
 * Which entry of `mixed` the entry k of the previous code goes to: not its own, because the history contains
 * that very entry, and a sign that mostly agrees with it would add up to a digest that is always positive.
 */
function mixedWith(k: number): number {
  return (k + 7) % codeWidth;
}

/** Sets the FFN to add 2·step(sign)·factor to `target`, to which attention has already added −factor. */
function setSignProduct(gate: Matrix, up: Matrix, down: Matrix, at: SignProduct): void {
  for (let k = 0; k < codeWidth; k++) {
    for (const [ramp, shift] of [stepWidth / 2, -stepWidth / 2].entries()) {
      const unit = 2 * k + ramp;
      const target = at.target(k);
      gate.set(unit, at.sign + target, stepSlope);
      gate.set(unit, region.constant, shift);
      up.set(unit, region.previous + k, 1);
      down.set(at.to + target, unit, (ramp === 0 ? 2 : -2) / stepWidth);
    }
  }
}

function layerTensors(index: 0 | 1, feedForward: number): Tensor[] {
  const query = new Matrix(heads * headWidth, width);
  const key = new Matrix(heads * headWidth, width);
  const value = new Matrix(heads * headWidth, width);
  const output = new Matrix(width, heads * headWidth);
  const gate = new Matrix(feedForward, width);
  const up = new Matrix(feedForward, width);
  const down = new Matrix(width, feedForward);
  setPreviousPointer(query, key);
  for (let i = 0; i < clocksPerLayer; i++) {
    const head = 2 + i;
    const clock = index * clocksPerLayer + i;
    setClock(query, key, value, head, clock);
    output.set(region.clocks + clock, head * headWidth, 1);
  }
  const averaged = index === 0 ? region.code : region.mixed;
  const copied = index === 0 ? region.code : region.previous;
  for (let k = 0; k < codeWidth; k++) {
    const copy = headWidth + k;
    value.set(k, averaged + k, 1);
    value.set(copy, copied + k, 1);
    output.set((index === 0 ? region.history : region.digest) + k, k, 1);
    if (index === 0) {
      output.set(region.previous + k, copy, 1);
      output.set(region.mixed + mixedWith(k), copy, -1);
      output.set(region.choice + k, copy, -1);
    } else {
      // Shifted by one, so that a pair of words in the other order gives another code.
      const shifted = (k + 1) % codeWidth;
      output.set(region.previous + shifted, copy, 1);
      output.set(region.choice + shifted, copy, -1);
    }
  }
  setSignProduct(
    gate,
    up,
    down,
    index === 0
      ? { sign: region.history, to: region.mixed, target: mixedWith }
      : { sign: region.digest, to: region.choice, target: (k) => k },
  );
  const prefix = `blk.${index}.`;
  return [
    normTensor(`${prefix}attn_norm.weight`, width),
    query.tensor(`${prefix}attn_q.weight`),
    key.tensor(`${prefix}attn_k.weight`),
    value.tensor(`${prefix}attn_v.weight`),
    output.tensor(`${prefix}attn_output.weight`),
    normTensor(`${prefix}ffn_norm.weight`, width),
    gate.tensor(`${prefix}ffn_gate.weight`),
    up.tensor(`${prefix}ffn_up.weight`),
    down.tensor(`${prefix}ffn_down.weight`),
  ];
}

/** A layer that costs what a layer costs and adds nothing. */
function idleLayerTensors(index: number, feedForward: number): Tensor[] {
  const prefix = `blk.${index}.`;
  const empty = (name: string, columns: number, rows: number): Tensor => ({
    name: prefix + name,
    shape: [columns, rows],
    type: "F16",
    data: null,
  });
  return [
    normTensor(`${prefix}attn_norm.weight`, width),
    empty("attn_q.weight", width, heads * headWidth),
    empty("attn_k.weight", width, heads * headWidth),
    empty("attn_v.weight", width, heads * headWidth),
    empty("attn_output.weight", heads * headWidth, width),
    normTensor(`${prefix}ffn_norm.weight`, width),
    empty("ffn_gate.weight", width, feedForward),
    empty("ffn_up.weight", width, feedForward),
    empty("ffn_down.weight", feedForward, width),
  ];
}

function vocabularyTensors(vocabulary: Vocabulary): Tensor[] {
  const nextWords = buildNextWords(vocabulary, nextWordsWidth);
  const embedding = new Matrix(vocabulary.pieces.length, width);
  const output = new Matrix(vocabulary.pieces.length, width);
  const uniform = uniformSource(0x5eed0003);
  const normal = normalSource(0x5eed0004);
  vocabulary.pieces.forEach((_, id) => {
    embedding.set(id, region.constant, constantSize);
    nextWords.writeDirections[id]?.forEach((value, k) => {
      embedding.set(id, region.nextWords + k, value);
    });
    if (id === specialTokens.begin) embedding.set(id, region.begin, 1);
    // The half sizes of the begin token keep every later sum away from a tie at zero.
    const size = id === specialTokens.begin ? 0.5 : 1;
    signVector(uniform, codeWidth).forEach((sign, k) => {
      embedding.set(id, region.code + k, size * sign);
    });
    const read = nextWords.readDirections.get(id);
    if (read === undefined) {
      output.set(id, region.constant, neverScore);
      return;
    }
    read.forEach((value, k) => {
      output.set(id, region.nextWords + k, wordScore * value);
    });
    clockPeriods.forEach((_, clock) => {
      const weight = normal() * clockDeviation;
      if (id !== specialTokens.end) output.set(id, region.clocks + clock, weight);
    });
    // A choice entry is a sum of two signs, so all of them together have a variance of 2 · codeWidth.
    for (let k = 0; k < codeWidth; k++) {
      const weight = (normal() * choiceDeviation) / Math.sqrt(2 * codeWidth);
      if (id !== specialTokens.end) output.set(id, region.choice + k, weight);
    }
  });
  return [
    { ...embedding.tensor("token_embd.weight"), type: "F16" },
    normTensor("output_norm.weight", width),
    output.tensor("output.weight"),
    ropeFactorTensor(),
  ];
}

export interface DemoSize {
  readonly feedForward: number;
  readonly idleLayers: number;
}

export function buildDemoTensors(vocabulary: Vocabulary, size: DemoSize): Tensor[] {
  const tensors = [...vocabularyTensors(vocabulary)];
  for (const index of [0, 1] as const) tensors.push(...layerTensors(index, size.feedForward));
  for (let i = 0; i < size.idleLayers; i++) tensors.push(...idleLayerTensors(2 + i, size.feedForward));
  return tensors;
}
