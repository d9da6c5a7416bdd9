/**
 * Owns models of any shape without weights: all zeros, so a file of hundreds of MB is a hole on the disk. Called by
 * scripts/bench/memory-estimate.ts and test/engine/memory-estimate.test.ts. llama-server loads them and reserves
 * for them what it would for real ones; what they say is nonsense.
 * Always holds: the tensors are those that llama.cpp asks for of that architecture, in its names.
 */
import type { GgufFile, MetadataValue, Tensor } from "./gguf-writer.ts";
import { buildVocabulary, specialTokens } from "./vocabulary.ts";

export type ZeroArchitecture =
  | "llama"
  | "qwen2"
  | "qwen3"
  | "qwen3moe"
  | "phi3"
  | "gemma2"
  | "gemma3"
  | "mamba";

export interface ZeroModel {
  readonly architecture: ZeroArchitecture;
  readonly layers: number;
  readonly width: number;
  readonly feedForward: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headWidth: number;
  readonly vocabulary: number;
  readonly context: number;
  /** Of the large matrices; norms are F32 as everywhere. */
  readonly type: Tensor["type"];
  /** Of the token embedding and the output, where it is another: quantisers keep those finer. */
  readonly endsType?: Tensor["type"];
  /** The output matrix is the token embedding. */
  readonly tied?: true;
  readonly experts?: { readonly count: number; readonly used: number };
  readonly slidingWindow?: number;
}

const count = (value: number): MetadataValue => ({ kind: "uint32", value });
const real = (value: number): MetadataValue => ({ kind: "float32", value });
const text = (value: string): MetadataValue => ({ kind: "string", value });

/** Values of `tokenizer.ggml.token_type`: user defined. */
const userDefined = 4;

function tokenizer(size: number): [string, MetadataValue][] {
  const { pieces, scores, types } = buildVocabulary();
  if (size < pieces.length) throw new Error(`a vocabulary has ${pieces.length} tokens at least`);
  // The engine looks this one up by its text where the architecture is phi3.
  const more = Array.from({ length: size - pieces.length }, (_, i) =>
    i === 0 ? "<|endoftext|>" : `<more_${i}>`,
  );
  return [
    ["tokenizer.ggml.model", text("llama")],
    ["tokenizer.ggml.pre", text("default")],
    ["tokenizer.ggml.tokens", { kind: "strings", value: [...pieces, ...more] }],
    ["tokenizer.ggml.scores", { kind: "float32s", value: [...scores, ...more.map(() => -1000)] }],
    ["tokenizer.ggml.token_type", { kind: "int32s", value: [...types, ...more.map(() => userDefined)] }],
    ["tokenizer.ggml.bos_token_id", count(specialTokens.begin)],
    ["tokenizer.ggml.eos_token_id", count(specialTokens.end)],
    ["tokenizer.ggml.unknown_token_id", count(specialTokens.unknown)],
  ];
}

function metadata(model: ZeroModel): Map<string, MetadataValue> {
  const a = model.architecture;
  const entries: [string, MetadataValue][] = [
    ["general.architecture", text(a)],
    ["general.type", text("model")],
    ["general.name", text(`zeros ${a}`)],
    ["general.quantization_version", count(2)],
    [`${a}.vocab_size`, count(model.vocabulary)],
    [`${a}.context_length`, count(model.context)],
    [`${a}.embedding_length`, count(model.width)],
    [`${a}.block_count`, count(model.layers)],
    [`${a}.feed_forward_length`, count(model.feedForward)],
    [`${a}.attention.layer_norm_rms_epsilon`, real(1e-6)],
    ...tokenizer(model.vocabulary),
  ];
  if (a === "mamba") {
    const state = mambaOf(model);
    entries.push(
      [`${a}.ssm.conv_kernel`, count(state.convolution)],
      [`${a}.ssm.inner_size`, count(state.inner)],
      [`${a}.ssm.state_size`, count(state.size)],
      [`${a}.ssm.time_step_rank`, count(state.rank)],
    );
    return new Map(entries);
  }
  entries.push(
    [`${a}.attention.head_count`, count(model.heads)],
    [`${a}.attention.head_count_kv`, count(model.kvHeads)],
    [`${a}.attention.key_length`, count(model.headWidth)],
    [`${a}.attention.value_length`, count(model.headWidth)],
    [`${a}.rope.dimension_count`, count(model.headWidth)],
    [`${a}.rope.freq_base`, real(10_000)],
  );
  if (model.slidingWindow !== undefined)
    entries.push([`${a}.attention.sliding_window`, count(model.slidingWindow)]);
  if (a === "phi3") entries.push([`${a}.rope.scaling.original_context_length`, count(model.context)]);
  if (model.experts !== undefined) {
    entries.push([`${a}.expert_count`, count(model.experts.count)]);
    entries.push([`${a}.expert_used_count`, count(model.experts.used)]);
    entries.push([`${a}.expert_feed_forward_length`, count(model.feedForward)]);
  }
  return new Map(entries);
}

const mambaOf = (model: ZeroModel) => ({
  convolution: 4,
  inner: 2 * model.width,
  size: 16,
  rank: Math.ceil(model.width / 16),
});

const zeros = (name: string, shape: readonly number[], type: Tensor["type"]): Tensor => ({
  ...{ name: `${name}.weight`, shape, type },
  data: null,
});
const norm = (name: string, width: number): Tensor => zeros(name, [width], "F32");

function attention(model: ZeroModel, named: (name: string) => string): Tensor[] {
  const { architecture, width, heads, kvHeads, headWidth, type } = model;
  const output = zeros(named("attn_output"), [heads * headWidth, width], type);
  if (architecture === "phi3")
    return [zeros(named("attn_qkv"), [width, (heads + 2 * kvHeads) * headWidth], type), output];
  const parts = [
    zeros(named("attn_q"), [width, heads * headWidth], type),
    zeros(named("attn_k"), [width, kvHeads * headWidth], type),
    zeros(named("attn_v"), [width, kvHeads * headWidth], type),
    output,
  ];
  if (architecture === "qwen2") {
    for (const [part, rows] of [
      ["q", heads],
      ["k", kvHeads],
      ["v", kvHeads],
    ] as const)
      parts.push({ name: named(`attn_${part}.bias`), shape: [rows * headWidth], type: "F32", data: null });
  }
  if (["qwen3", "qwen3moe", "gemma3"].includes(architecture))
    parts.push(norm(named("attn_q_norm"), headWidth), norm(named("attn_k_norm"), headWidth));
  return parts;
}

function feedForward(model: ZeroModel, named: (name: string) => string): Tensor[] {
  const { architecture, width, feedForward: inner, type, experts } = model;
  if (experts !== undefined) {
    return [
      zeros(named("ffn_gate_inp"), [width, experts.count], "F32"),
      zeros(named("ffn_gate_exps"), [width, inner, experts.count], type),
      zeros(named("ffn_up_exps"), [width, inner, experts.count], type),
      zeros(named("ffn_down_exps"), [inner, width, experts.count], type),
    ];
  }
  const down = zeros(named("ffn_down"), [inner, width], type);
  if (architecture === "phi3") return [zeros(named("ffn_up"), [width, 2 * inner], type), down];
  return [zeros(named("ffn_gate"), [width, inner], type), zeros(named("ffn_up"), [width, inner], type), down];
}

function mambaLayer(model: ZeroModel, named: (name: string) => string): Tensor[] {
  const { width, type } = model;
  const { convolution, inner, size, rank } = mambaOf(model);
  const bare = (name: string, shape: readonly number[]): Tensor => ({
    ...{ name: named(name), shape, type: "F32" },
    data: null,
  });
  return [
    norm(named("attn_norm"), width),
    zeros(named("ssm_in"), [width, 2 * inner], type),
    bare("ssm_conv1d.weight", [convolution, inner]),
    bare("ssm_conv1d.bias", [inner]),
    zeros(named("ssm_x"), [inner, rank + 2 * size], type),
    bare("ssm_dt.weight", [rank, inner]),
    bare("ssm_dt.bias", [inner]),
    bare("ssm_a", [size, inner]),
    bare("ssm_d", [inner]),
    zeros(named("ssm_out"), [inner, width], type),
  ];
}

function layer(model: ZeroModel, index: number): Tensor[] {
  const named = (name: string): string => `blk.${index}.${name}`;
  if (model.architecture === "mamba") return mambaLayer(model, named);
  const around = ["gemma2", "gemma3"].includes(model.architecture)
    ? [norm(named("post_attention_norm"), model.width), norm(named("post_ffw_norm"), model.width)]
    : [];
  return [
    norm(named("attn_norm"), model.width),
    ...attention(model, named),
    norm(named("ffn_norm"), model.width),
    ...feedForward(model, named),
    ...around,
  ];
}

/** The whole content of a model file. */
export function buildZeroModel(model: ZeroModel): GgufFile {
  const ends = model.endsType ?? model.type;
  const shape = [model.width, model.vocabulary];
  return {
    metadata: metadata(model),
    tensors: [
      zeros("token_embd", shape, ends),
      norm("output_norm", model.width),
      ...(model.tied === true ? [] : [zeros("output", shape, ends)]),
      ...Array.from({ length: model.layers }, (_, index) => layer(model, index)).flat(),
    ],
  };
}
