/**
 * Owns the command that makes the models the tests, the demonstration and the benchmarks run on. Called by
 * hand, by the set-up and by tests: `bun scripts/make-demo-model.ts --out FILE [--shape SHAPE]`.
 * Always holds: the same shape gives the same bytes on every run; FILE is complete or untouched.
 *
 * Shapes, and what llama-server wants to hear for them:
 * - `demo` (default): readable words at a GPU's pace on one CPU core; every word depends on the whole context.
 * - `slow`: the same text model with idle layers; prompts take seconds.
 * - `embedding`: `--embeddings --pooling mean`; texts that share words get similar vectors.
 * - `rerank`: `--rerank`; documents that share words with the query score higher.
 */
import { resolve } from "node:path";
import { Command, Option } from "commander";
import { buildDemoTensors, demoShape } from "./model/demo-weights.ts";
import { type GgufFile, type MetadataValue, type Tensor, writeGguf } from "./model/gguf-writer.ts";
import {
  buildEmbeddingTensors,
  buildRerankTensors,
  embeddingShape,
  rerankShape,
} from "./model/retrieval-weights.ts";
import { buildVocabulary, documentMarker, specialTokens, type Vocabulary } from "./model/vocabulary.ts";

export const shapes = ["demo", "slow", "embedding", "rerank"] as const;
export type Shape = (typeof shapes)[number];

const chatTemplate = [
  "{% for message in messages %}",
  "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '</s>\\n' }}",
  "{% endfor %}",
  "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
].join("");

/** `general.file_type` as llama.cpp counts it. */
const fileTypes = { F32: 0, F16: 1 } as const;

interface Architecture {
  readonly name: "llama" | "qwen3";
  readonly width: number;
  readonly layers: number;
  readonly feedForward: number;
  readonly heads: number;
  readonly headWidth: number;
  readonly ropeBase: number;
}

const text = (value: string): MetadataValue => ({ kind: "string", value });
const count = (value: number): MetadataValue => ({ kind: "uint32", value });
const flag = (value: boolean): MetadataValue => ({ kind: "bool", value });
const real = (value: number): MetadataValue => ({ kind: "float32", value });

function metadata(
  shape: Shape,
  vocabulary: Vocabulary,
  architecture: Architecture,
  fileType: keyof typeof fileTypes,
): Map<string, MetadataValue> {
  const a = architecture.name;
  const entries: [string, MetadataValue][] = [
    ["general.architecture", text(a)],
    ["general.type", text("model")],
    ["general.name", text(shape === "demo" ? "orchestratord demo" : `orchestratord demo (${shape})`)],
    ["general.license", text("Apache-2.0")],
    ["general.file_type", count(fileTypes[fileType])],
    ["general.quantization_version", count(2)],
    [`${a}.vocab_size`, count(vocabulary.pieces.length)],
    [`${a}.context_length`, count(4096)],
    [`${a}.embedding_length`, count(architecture.width)],
    [`${a}.block_count`, count(architecture.layers)],
    [`${a}.feed_forward_length`, count(architecture.feedForward)],
    [`${a}.attention.head_count`, count(architecture.heads)],
    [`${a}.attention.head_count_kv`, count(architecture.heads)],
    [`${a}.attention.key_length`, count(architecture.headWidth)],
    [`${a}.attention.value_length`, count(architecture.headWidth)],
    [`${a}.attention.layer_norm_rms_epsilon`, real(1e-6)],
    [`${a}.rope.dimension_count`, count(architecture.headWidth)],
    [`${a}.rope.freq_base`, real(architecture.ropeBase)],
    ["tokenizer.ggml.model", text("llama")],
    ["tokenizer.ggml.pre", text("default")],
    ["tokenizer.ggml.tokens", { kind: "strings", value: vocabulary.pieces }],
    ["tokenizer.ggml.scores", { kind: "float32s", value: vocabulary.scores }],
    ["tokenizer.ggml.token_type", { kind: "int32s", value: vocabulary.types }],
    ["tokenizer.ggml.bos_token_id", count(specialTokens.begin)],
    ["tokenizer.ggml.eos_token_id", count(specialTokens.end)],
    ["tokenizer.ggml.unknown_token_id", count(specialTokens.unknown)],
    ["tokenizer.ggml.add_bos_token", flag(true)],
    ["tokenizer.ggml.add_eos_token", flag(false)],
    ["tokenizer.ggml.add_space_prefix", flag(true)],
    ["tokenizer.chat_template", text(chatTemplate)],
  ];
  if (shape === "rerank") {
    entries.push(
      ["tokenizer.chat_template.rerank", text(`<s>{query}${documentMarker}{document}</s>`)],
      [`${a}.pooling_type`, count(4)],
      [`${a}.classifier.output_labels`, { kind: "strings", value: ["yes", "no"] }],
    );
  }
  if (shape === "embedding") entries.push([`${a}.pooling_type`, count(1)]);
  return new Map(entries);
}

/** The whole content of a model file. */
export function buildModel(shape: Shape): GgufFile {
  const vocabulary = buildVocabulary();
  const file = (a: Architecture, fileType: keyof typeof fileTypes, tensors: Tensor[]): GgufFile => ({
    metadata: metadata(shape, vocabulary, a, fileType),
    tensors,
  });
  switch (shape) {
    case "demo":
    case "slow": {
      const size =
        shape === "demo" ? { feedForward: 128, idleLayers: 0 } : { feedForward: 3072, idleLayers: 6 };
      const layers = demoShape.layers + size.idleLayers;
      const architecture = { name: "llama", ...demoShape, layers, feedForward: size.feedForward } as const;
      return file(architecture, shape === "demo" ? "F32" : "F16", buildDemoTensors(vocabulary, size));
    }
    case "embedding":
      return file({ name: "llama", ...embeddingShape }, "F32", buildEmbeddingTensors(vocabulary));
    case "rerank":
      return file({ name: "qwen3", ...rerankShape }, "F32", buildRerankTensors(vocabulary));
  }
}

if (import.meta.main) {
  const command = new Command("make-demo-model")
    .requiredOption("--out <file>", "where to write the GGUF file")
    .addOption(new Option("--shape <shape>", "which model").choices(shapes).default("demo"))
    .parse();
  const options = command.opts<{ out: string; shape: Shape }>();
  const path = resolve(options.out);
  const { bytes, sha256 } = await writeGguf(path, buildModel(options.shape));
  process.stdout.write(`${path} ${bytes} ${sha256}\n`);
}
