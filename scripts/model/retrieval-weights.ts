/**
 * Owns the weights of the models that compare texts (shapes `embedding` and `rerank`). Called by
 * make-demo-model.ts. Always holds: a text counts as the bag of its words; the forms of a
 * word, in small or capital letters, share one random code, and function words and marks count for little.
 *
 * The embedding model (architecture llama) is a table: llama.cpp's mean pooling averages the codes.
 *
 * The rerank model has the architecture qwen3, because llama.cpp reads the score of that one at the last token
 * (other architectures: at the first, which sees nothing in a causal model), by a head `cls.output` with the
 * labels yes and no. Layer 0 averages the codes seen so far and the mark of the document's beginning, so that
 * this marker carries the query's mean and every later token knows that it is in the document. In layer 1,
 * head 0 fetches the query's mean from the marker and head 1 averages the document's content words; the FFN
 * multiplies the two means, and their sum of products is the score.
 */
import type { Tensor } from "./gguf-writer.ts";
import { constantSize, Matrix, normTensor, vectorTensor } from "./matrix.ts";
import { normalSource, seedOf, signVector, uniformSource } from "./random.ts";
import { documentMarker, requireId, type Vocabulary, wordKey } from "./vocabulary.ts";

export const embeddingShape = {
  width: 128,
  layers: 1,
  feedForward: 32,
  heads: 1,
  headWidth: 64,
  ropeBase: 10000,
} as const;

const headWidth = 128;
const codeWidth = headWidth - 4;

export const rerankShape = {
  width: 512,
  layers: 2,
  feedForward: 2 * codeWidth,
  heads: 2,
  headWidth,
  // Slow enough that the last pairs do not turn within a context.
  ropeBase: 1_000_000,
} as const;

const region = {
  constant: 0,
  marker: 1,
  stop: 2,
  inDocument: 3,
  score: 4,
  code: 8,
  history: 8 + codeWidth,
  query: 8 + 2 * codeWidth,
  document: 8 + 3 * codeWidth,
} as const;

/** A word that makes up more of the corpus than this says nothing about what a text is about. */
const functionWordCount = 9;
/** Score at which a document is as likely relevant as not. */
const scoreMiddle = 3;

/** Words of one stem share a key. */
function stemOf(piece: string): string {
  return wordKey(piece).replace(/(?<=..\p{L})(?:ing|ed|s)$/u, "");
}

/** How much a token says about its text's subject, from 0 to 1. */
function contentOf(vocabulary: Vocabulary, counts: ReadonlyMap<string, number>, id: number): number {
  const piece = vocabulary.pieces[id] ?? "";
  if (!/^▁?\p{L}/u.test(piece)) return 0;
  const word = wordKey(piece);
  const count = counts.get(word) ?? 0;
  if (count > functionWordCount) return 0;
  // Beginnings of words are what unknown words fall apart into.
  return count > 0 ? 1 : word.length > 2 ? 0.5 : 0;
}

function wordCounts(vocabulary: Vocabulary): Map<string, number> {
  const counts = new Map<string, number>();
  for (const [id, count] of vocabulary.frequency) {
    const word = wordKey(vocabulary.pieces[id] ?? "");
    counts.set(word, (counts.get(word) ?? 0) + count);
  }
  return counts;
}

export function buildEmbeddingTensors(vocabulary: Vocabulary): Tensor[] {
  const { width, feedForward } = embeddingShape;
  const counts = wordCounts(vocabulary);
  const embedding = new Matrix(vocabulary.pieces.length, width);
  vocabulary.pieces.forEach((piece, id) => {
    const normal = normalSource(seedOf(stemOf(piece)));
    const weight = 0.06 + contentOf(vocabulary, counts, id);
    embedding.set(id, region.constant, constantSize);
    for (let k = 1; k < width; k++) embedding.set(id, k, weight * normal());
  });
  const zeros = (name: string, columns: number, rows: number): Tensor => ({
    name: `blk.0.${name}.weight`,
    shape: [columns, rows],
    type: "F32",
    data: null,
  });
  const attention = embeddingShape.heads * embeddingShape.headWidth;
  return [
    embedding.tensor("token_embd.weight"),
    // The constant must not be part of the vector, or all texts would look alike.
    normTensor("output_norm.weight", width, 0),
    normTensor("blk.0.attn_norm.weight", width),
    zeros("attn_q", width, attention),
    zeros("attn_k", width, attention),
    zeros("attn_v", width, attention),
    zeros("attn_output", attention, width),
    normTensor("blk.0.ffn_norm.weight", width),
    zeros("ffn_gate", width, feedForward),
    zeros("ffn_up", width, feedForward),
    zeros("ffn_down", feedForward, width),
  ];
}

interface RerankLayer {
  readonly query: Matrix;
  readonly key: Matrix;
  readonly value: Matrix;
  readonly output: Matrix;
  readonly gate: Matrix;
  readonly up: Matrix;
  readonly down: Matrix;
}

function emptyLayer(): RerankLayer {
  const { width, feedForward, heads } = rerankShape;
  return {
    query: new Matrix(heads * headWidth, width),
    key: new Matrix(heads * headWidth, width),
    value: new Matrix(heads * headWidth, width),
    output: new Matrix(width, heads * headWidth),
    gate: new Matrix(feedForward, width),
    up: new Matrix(feedForward, width),
    down: new Matrix(width, feedForward),
  };
}

/** Head 0 averages over everything so far; Q = K = 0. */
function gatheringLayer(): RerankLayer {
  const layer = emptyLayer();
  for (let k = 0; k < codeWidth; k++) {
    layer.value.set(k, region.code + k, 1);
    layer.output.set(region.history + k, k, 1);
  }
  layer.value.set(codeWidth, region.marker, 1);
  layer.output.set(region.inDocument, codeWidth, 1);
  return layer;
}

/** qwen3 brings Q and K of every head to one length, so that only their directions are set here. */
function comparingLayer(): RerankLayer {
  const layer = emptyLayer();
  // The halves of a RoPE pair lie headWidth / 2 apart; these two are in the slowest pairs.
  const slowest = headWidth / 2 - 1;
  const second = slowest - 1;
  layer.query.set(slowest, region.constant, 1);
  layer.key.set(slowest, region.marker, 1);
  layer.query.set(headWidth + slowest, region.constant, 1);
  layer.key.set(headWidth + slowest, region.inDocument, 1);
  layer.key.set(headWidth + slowest, region.stop, -1000);
  // A document without a content word reads the marker, whose code is zero.
  layer.query.set(headWidth + second, region.constant, 0.5);
  layer.key.set(headWidth + second, region.marker, 1000);
  for (let k = 0; k < codeWidth; k++) {
    layer.value.set(k, region.history + k, 1);
    layer.value.set(headWidth + k, region.code + k, 1);
    layer.output.set(region.query + k, k, 1);
    layer.output.set(region.document + k, headWidth + k, 1);
    // silu(z)·u − silu(−z)·u = z·u, exactly.
    for (const [unit, sign] of [
      [2 * k, 1],
      [2 * k + 1, -1],
    ] as const) {
      layer.gate.set(unit, region.query + k, sign);
      layer.up.set(unit, region.document + k, 1);
      layer.down.set(region.score, unit, sign);
    }
  }
  return layer;
}

function layerTensors(index: number, layer: RerankLayer): Tensor[] {
  const name = (part: string) => `blk.${index}.${part}.weight`;
  const { width } = rerankShape;
  return [
    normTensor(name("attn_norm"), width),
    layer.query.tensor(name("attn_q")),
    layer.key.tensor(name("attn_k")),
    layer.value.tensor(name("attn_v")),
    layer.output.tensor(name("attn_output")),
    // A score of 4 · 4 · √headWidth between aligned Q and K leaves nothing to the others.
    vectorTensor(name("attn_q_norm"), headWidth, 4),
    vectorTensor(name("attn_k_norm"), headWidth, 4),
    normTensor(name("ffn_norm"), width),
    layer.gate.tensor(name("ffn_gate")),
    layer.up.tensor(name("ffn_up")),
    layer.down.tensor(name("ffn_down")),
  ];
}

export function buildRerankTensors(vocabulary: Vocabulary): Tensor[] {
  const { width } = rerankShape;
  const counts = wordCounts(vocabulary);
  const marker = requireId(vocabulary.idOf, documentMarker);
  const embedding = new Matrix(vocabulary.pieces.length, width);
  vocabulary.pieces.forEach((piece, id) => {
    const content = contentOf(vocabulary, counts, id);
    embedding.set(id, region.constant, constantSize);
    if (id === marker) embedding.set(id, region.marker, 1);
    else if (content === 0) embedding.set(id, region.stop, 1);
    signVector(uniformSource(seedOf(stemOf(piece))), codeWidth).forEach((sign, k) => {
      embedding.set(id, region.code + k, content * sign);
    });
  });
  const classes = new Matrix(2, width);
  classes.set(0, region.score, 1);
  classes.set(0, region.constant, -scoreMiddle);
  return [
    embedding.tensor("token_embd.weight"),
    normTensor("output_norm.weight", width),
    ...layerTensors(0, gatheringLayer()),
    ...layerTensors(1, comparingLayer()),
    classes.tensor("cls.output.weight"),
  ];
}
