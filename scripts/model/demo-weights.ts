/**
 * Owns the weights of the generating models (shapes `demo` and `slow`). Called by make-demo-model.ts.
 *
 * How it works. The residual stream is cut into regions (`region`); dimension 0 holds a constant so large that
 * RMSNorm changes nothing else (matrix.ts). Every token has a code of −1 and +1 entries.
 * 1. Layer 0: one head has constant Q and K, turned by RoPE so that only the previous token counts, and copies
 *    its code (`previous`). The other heads are clocks: each looks at the begin token through one RoPE pair and
 *    so knows in which half of a short period its position lies. The FFN multiplies current code, previous code
 *    and a clock's sign (`signed`); with the clock, sums over a text have no drift towards one sign.
 * 2. Layer 1: a head with Q = K = 0 averages `signed` over all tokens so far (`history`). The FFN multiplies its
 *    signs with `signed` again (`mixed`), which so depends on everything before, in order. A step from −1 to +1
 *    is made of two SiLU ramps. A second head adds the code of the token before the previous one.
 * 3. Layer 2: a head averages `mixed` (`digest`); the FFN multiplies its signs with the local codes (`choice`).
 * 4. The output head offers the words that follow the current one in the corpus, all about equally, and the
 *    products of `choice` and of the clocks with random vectors per word pick one. Without the clocks a
 *    repeated phrase would repeat for ever.
 *
 * What always holds: everything attention sums up is a small multiple of 1/4, which is exact in F16, in any
 * order; so greedy output does not depend on batch splits, threads or slots. (With flash attention, which is
 * llama-server's default; without it the averages' weights are rounded first.) One changed token flips some
 * signs at many later positions, these change the digest, and the continuation differs.
 */
import type { Tensor } from "./gguf-writer.ts";
import { constantSize, Matrix, normTensor } from "./matrix.ts";
import { buildNextWords } from "./next-words.ts";
import { normalSource, signVector, uniformSource } from "./random.ts";
import { specialTokens, type Vocabulary } from "./vocabulary.ts";

export const demoShape = { width: 768, layers: 3, heads: 4, headWidth: 64, ropeBase: 10000 } as const;
const { width, layers, heads, headWidth } = demoShape;
const codeWidth = headWidth;
/** In tokens; no two have a common divisor, so that no combination of bits comes back within any context. */
const clockPeriods = [7, 11, 16, 13, 17, 5, 9, 19] as const;
/** What the heads of each layer do; a number is an index of `clockPeriods`. */
const headRoles = [
  ["previous", 0, 1, 2],
  ["average", "previous", 3, 4],
  ["average", 5, 6, 7],
] as const;
const signedClocks = 3;
const nextWordsWidth = width - 2 - clockPeriods.length - 7 * codeWidth;

const regionAt = (index: number) => 1 + nextWordsWidth + index * codeWidth;
const region = {
  constant: 0,
  nextWords: 1,
  code: regionAt(0),
  previous: regionAt(1),
  signed: regionAt(2),
  history: regionAt(3),
  mixed: regionAt(4),
  digest: regionAt(5),
  choice: regionAt(6),
  /** 1 at the begin token, else 0. */
  begin: regionAt(7),
  clocks: regionAt(7) + 1,
} as const;

/** Score of a possible next word, and of one that the corpus does not allow. */
const wordScore = 45;
const neverScore = -60;
/** Standard deviation of what the context code adds to a word's score. */
const choiceDeviation = 2;
/** What one clock bit adds to a word's score: enough to break loops, less than the context does. */
const clockDeviation = 0.8;
/** Width of the step between its two SiLU ramps, and its slope: steep enough for a sum of 1/2 over 1024. */
const stepWidth = 64;
const stepSlope = ((stepWidth / 2 + 8) * 1024) / 0.5;
/** Slope of the SiLU pair that makes an absolute value; at the arguments that occur, 0 and from 1/2, it is exact. */
const absoluteSlope = 64;
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

interface Attention {
  readonly query: Matrix;
  readonly key: Matrix;
  readonly value: Matrix;
  readonly output: Matrix;
}

interface FeedForward {
  readonly gate: Matrix;
  readonly up: Matrix;
  readonly down: Matrix;
}

/** Q and K constant, but K starts one position ahead, so that they agree at the previous token. */
function setPreviousPointer({ query, key }: Attention, head: number): void {
  pairAngles().forEach((angle, pair) => {
    const [cosine, sine] = cosineAndSine(angle);
    const row = head * headWidth + 2 * pair;
    query.set(row, region.constant, pointerLength);
    key.set(row, region.constant, pointerLength * cosine);
    key.set(row + 1, region.constant, pointerLength * sine);
  });
}

/**
 * A head that tells in which half of its period a position lies: the score of the begin token is then above or
 * below the others' zero. The quarter step keeps every position clear of the change.
 */
function setClock({ query, key, value, output }: Attention, head: number, clock: number): void {
  const [cosine, sine] = cosineAndSine(Math.PI / (2 * (clockPeriods[clock] ?? 1)));
  const row = head * headWidth + 2 * clock;
  query.set(row, region.constant, clockLength);
  key.set(row, region.begin, clockLength * sine);
  key.set(row + 1, region.begin, -clockLength * cosine);
  value.set(head * headWidth, region.begin, 1);
  output.set(region.clocks + clock, head * headWidth, 1);
}

/** Copies or averages (as Q and K say) the entries of a region, and adds them to others with a sign. */
function moveCode(
  { value, output }: Attention,
  head: number,
  from: number,
  to: (k: number) => readonly (readonly [entry: number, sign: 1 | -1])[],
): void {
  for (let k = 0; k < codeWidth; k++) {
    value.set(head * headWidth + k, from + k, 1);
    for (const [entry, sign] of to(k)) output.set(entry, head * headWidth + k, sign);
  }
}

/** Regions take codes over rotated by a few entries, so that no entry is ever multiplied with itself. */
function rotated(k: number, by: number): number {
  return (k + by) % codeWidth;
}

function setAttention(attention: Attention, layer: number): void {
  headRoles[layer]?.forEach((role, head) => {
    if (role === "previous") setPreviousPointer(attention, head);
    else if (role !== "average") setClock(attention, head, role);
  });
  // The negative copies are what the FFN's products need as their starting point, see setFeedForward.
  if (layer === 0) {
    moveCode(attention, 0, region.code, (k) => {
      const to = rotated(k, 3);
      return [
        [region.previous + to, 1],
        [region.signed + to, -1],
        [region.mixed + rotated(to, 7), 1],
        [region.choice + to, -1],
      ];
    });
  } else if (layer === 1) {
    moveCode(attention, 0, region.signed, (k) => [[region.history + k, 1]]);
    moveCode(attention, 1, region.previous, (k) => [
      [region.previous + rotated(k, 1), 1],
      [region.choice + rotated(k, 1), -1],
    ]);
  } else {
    moveCode(attention, 0, region.mixed, (k) => [[region.digest + k, 1]]);
  }
}

function setFeedForward(feedForward: FeedForward, layer: number): void {
  const { gate, up, down } = feedForward;
  for (let k = 0; k < codeWidth; k++) {
    for (const [unit, side] of [
      [2 * k, 1],
      [2 * k + 1, -1],
    ] as const) {
      if (layer === 0) {
        // For signs a and b, a·b = |a + b| − 1; the clock's bit c stands for the sign 2c − 1.
        gate.set(unit, region.code + k, side * absoluteSlope);
        gate.set(unit, region.clocks + (k % signedClocks), 2 * side * absoluteSlope);
        gate.set(unit, region.constant, -side * absoluteSlope);
        up.set(unit, region.previous + k, 1);
        down.set(region.signed + k, unit, 1 / absoluteSlope);
        down.set(region.mixed + rotated(k, 7), unit, -1 / absoluteSlope);
      } else {
        // sign(h)·u = 2·step(h)·u − u, where step(h) is the difference of two ramps.
        const [sign, factor, to] =
          layer === 1
            ? [region.history + rotated(k, 7), region.signed + k, region.mixed + rotated(k, 7)]
            : [region.digest + k, region.previous + k, region.choice + k];
        gate.set(unit, sign, stepSlope);
        gate.set(unit, region.constant, (side * stepWidth) / 2);
        up.set(unit, factor, 1);
        down.set(to, unit, (2 * side) / stepWidth);
      }
    }
  }
}

function layerTensors(layer: number, feedForwardWidth: number): Tensor[] {
  const attentionWidth = heads * headWidth;
  const attention: Attention = {
    query: new Matrix(attentionWidth, width),
    key: new Matrix(attentionWidth, width),
    value: new Matrix(attentionWidth, width),
    output: new Matrix(width, attentionWidth),
  };
  const feedForward: FeedForward = {
    gate: new Matrix(feedForwardWidth, width),
    up: new Matrix(feedForwardWidth, width),
    down: new Matrix(width, feedForwardWidth),
  };
  setAttention(attention, layer);
  setFeedForward(feedForward, layer);
  const name = (part: string) => `blk.${layer}.${part}.weight`;
  return [
    normTensor(name("attn_norm"), width),
    attention.query.tensor(name("attn_q")),
    attention.key.tensor(name("attn_k")),
    attention.value.tensor(name("attn_v")),
    attention.output.tensor(name("attn_output")),
    normTensor(name("ffn_norm"), width),
    feedForward.gate.tensor(name("ffn_gate")),
    feedForward.up.tensor(name("ffn_up")),
    feedForward.down.tensor(name("ffn_down")),
  ];
}

/** A layer that costs what a layer costs and adds nothing. */
function idleLayerTensors(layer: number, feedForwardWidth: number): Tensor[] {
  return layerTensors(layer, feedForwardWidth).map((tensor) =>
    tensor.shape.length === 1 ? tensor : { ...tensor, type: "F16", data: null },
  );
}

export interface DemoSize {
  readonly feedForward: number;
  readonly idleLayers: number;
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
    // The half sizes of the begin token keep most later sums away from a tie at zero.
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

/** Builds the model with `idleLayers` layers of pure cost behind the working ones. */
export function buildDemoTensors(vocabulary: Vocabulary, size: DemoSize): Tensor[] {
  const tensors = vocabularyTensors(vocabulary);
  for (let layer = 0; layer < layers; layer++) tensors.push(...layerTensors(layer, size.feedForward));
  for (let i = 0; i < size.idleLayers; i++) tensors.push(...idleLayerTensors(layers + i, size.feedForward));
  return tensors;
}
