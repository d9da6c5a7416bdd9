/**
 * Owns the model on which rounding shows: the demo's vocabulary over layers of random numbers. Called by
 * scripts/determinism.ts and test/engine/determinism.test.ts. The demo model's next words are far apart by design
 * (demo-weights.ts), so its text hides a sum that came out a little different; here many words are nearly as likely
 * as each other, and what was said steers what comes, so one different bit soon is another text.
 * Always holds: the same bytes on every run and machine; no byte token, special token or end is ever likely.
 */
import { buildModel } from "../make-demo-model.ts";
import type { GgufFile, MetadataValue, Tensor } from "./gguf-writer.ts";
import { normalSource } from "./random.ts";
import { buildVocabulary } from "./vocabulary.ts";

const shape = { width: 256, layers: 4, feedForward: 512, heads: 4, headWidth: 64 } as const;
/** Standard deviation of the logits: at temperature 0.8 a few words share most of the probability. */
const logitSpread = 3;
const seed = 20_261_121;

/** Words of at least two letters, marks excluded: whole characters, so that every token is a piece of text. */
const isWord = (piece: string): boolean => /^▁\p{L}{2,}$/u.test(piece);

export function buildRandomModel(): GgufFile {
  const vocabulary = buildVocabulary();
  const normal = normalSource(seed);
  const { width, layers, feedForward, heads, headWidth } = shape;
  const random = (name: string, columns: number, rows: number, deviation: number): Tensor => {
    const data = new Float32Array(columns * rows);
    for (let at = 0; at < data.length; at++) data[at] = deviation * normal();
    return { name: `${name}.weight`, shape: [columns, rows], type: "F32", data };
  };
  const ones = (name: string): Tensor => ({
    ...{ name: `${name}.weight`, shape: [width], type: "F32" },
    data: new Float32Array(width).fill(1),
  });
  /** Keeps the size of what it is multiplied with. */
  const even = (columns: number): number => 1 / Math.sqrt(columns);
  const attention = heads * headWidth;
  const output = random("output", width, vocabulary.pieces.length, logitSpread * even(width));
  vocabulary.pieces.forEach((piece, id) => {
    if (!isWord(piece)) output.data?.fill(0, id * width, (id + 1) * width);
  });
  const tensors = [
    random("token_embd", width, vocabulary.pieces.length, 1),
    ones("output_norm"),
    output,
    ...Array.from({ length: layers }, (_, layer) => {
      const named = (name: string): string => `blk.${layer}.${name}`;
      return [
        ones(named("attn_norm")),
        // Sharp enough that single earlier words matter.
        random(named("attn_q"), width, attention, 1.5 * even(width)),
        random(named("attn_k"), width, attention, 1.5 * even(width)),
        random(named("attn_v"), width, attention, even(width)),
        random(named("attn_output"), attention, width, even(attention)),
        ones(named("ffn_norm")),
        random(named("ffn_gate"), width, feedForward, even(width)),
        random(named("ffn_up"), width, feedForward, even(width)),
        random(named("ffn_down"), feedForward, width, even(feedForward)),
      ];
    }).flat(),
  ];
  const count = (value: number): MetadataValue => ({ kind: "uint32", value });
  const metadata = new Map(buildModel("demo").metadata);
  metadata.set("general.name", { kind: "string", value: "orchestratord random" });
  metadata.set("llama.embedding_length", count(width));
  metadata.set("llama.block_count", count(layers));
  metadata.set("llama.feed_forward_length", count(feedForward));
  metadata.set("llama.attention.head_count", count(heads));
  metadata.set("llama.attention.head_count_kv", count(heads));
  metadata.set("llama.attention.key_length", count(headWidth));
  metadata.set("llama.attention.value_length", count(headWidth));
  metadata.set("llama.rope.dimension_count", count(headWidth));
  return { metadata, tensors };
}
