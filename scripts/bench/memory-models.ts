/**
 * The models and settings on which memory-estimate.ts compares estimate and report: after models that there are, and by
 * chance. Always holds: a seed gives the same ones; every model is half a GB or more.
 */
import type { LoadSettings } from "../../src/domain/model-memory.ts";
import { uniformSource } from "../model/random.ts";
import type { ZeroModel } from "../model/zero-weights.ts";

const context = 32_768;
const tied = true;
/** After models that there are, with fewer layers where they would be much larger than half a GB. */
export const models: Readonly<Record<string, ZeroModel>> = {
  "llama 1B": {
    ...{ architecture: "llama", layers: 16, width: 2048, feedForward: 8192, heads: 32, kvHeads: 8 },
    ...{ headWidth: 64, vocabulary: 128_256, context, type: "Q4_0", endsType: "Q6_K", tied },
  },
  "llama 7B, 2 layers": {
    ...{ architecture: "llama", layers: 2, width: 4096, feedForward: 11_008, heads: 32, kvHeads: 32 },
    ...{ headWidth: 128, vocabulary: 32_000, context, type: "F16" },
  },
  "llama 8B, 4 layers": {
    ...{ architecture: "llama", layers: 4, width: 4096, feedForward: 14_336, heads: 32, kvHeads: 8 },
    ...{ headWidth: 128, vocabulary: 128_256, context, type: "Q4_K", endsType: "Q6_K" },
  },
  "mistral 7B, 6 layers": {
    ...{ architecture: "llama", layers: 6, width: 4096, feedForward: 14_336, heads: 32, kvHeads: 8 },
    ...{ headWidth: 128, vocabulary: 32_768, context, type: "IQ4_NL" },
  },
  "tinyllama 1.1B": {
    ...{ architecture: "llama", layers: 22, width: 2048, feedForward: 5632, heads: 32, kvHeads: 4 },
    ...{ headWidth: 64, vocabulary: 32_000, context, type: "Q6_K" },
  },
  "llama 3B, 10 layers": {
    ...{ architecture: "llama", layers: 10, width: 3072, feedForward: 8192, heads: 24, kvHeads: 8 },
    ...{ headWidth: 128, vocabulary: 128_256, context, type: "Q5_K", endsType: "Q8_0", tied },
  },
  "qwen2 1.5B": {
    ...{ architecture: "qwen2", layers: 28, width: 1536, feedForward: 8960, heads: 12, kvHeads: 2 },
    ...{ headWidth: 128, vocabulary: 151_936, context, type: "Q8_0", tied },
  },
  "qwen3 0.6B": {
    ...{ architecture: "qwen3", layers: 28, width: 1024, feedForward: 3072, heads: 16, kvHeads: 8 },
    ...{ headWidth: 128, vocabulary: 151_936, context, type: "F16", tied },
  },
  "qwen3 4B, 12 layers": {
    ...{ architecture: "qwen3", layers: 12, width: 2560, feedForward: 9728, heads: 32, kvHeads: 8 },
    ...{ headWidth: 128, vocabulary: 151_936, context, type: "Q4_K", endsType: "Q6_K", tied },
  },
  "phi3 mini, 12 layers": {
    ...{ architecture: "phi3", layers: 12, width: 3072, feedForward: 8192, heads: 32, kvHeads: 32 },
    ...{ headWidth: 96, vocabulary: 32_064, context, type: "Q4_0" },
  },
  "gemma2 2B, 13 layers": {
    ...{ architecture: "gemma2", layers: 13, width: 2304, feedForward: 9216, heads: 8, kvHeads: 4 },
    ...{ headWidth: 256, vocabulary: 256_000, context, type: "Q8_0", slidingWindow: 4096, tied },
  },
  "gemma3 1B": {
    ...{ architecture: "gemma3", layers: 26, width: 1152, feedForward: 6912, heads: 4, kvHeads: 1 },
    ...{ headWidth: 256, vocabulary: 262_144, context, type: "Q8_0", slidingWindow: 512, tied },
  },
  "gemma3 4B, 12 layers": {
    ...{ architecture: "gemma3", layers: 12, width: 2560, feedForward: 10_240, heads: 8, kvHeads: 4 },
    ...{
      headWidth: 256,
      vocabulary: 262_144,
      context,
      type: "Q4_0",
      endsType: "Q6_K",
      slidingWindow: 1024,
      tied,
    },
  },
  "mixtral, 8 experts, 4 layers": {
    ...{ architecture: "llama", layers: 4, width: 2048, feedForward: 7168, heads: 32, kvHeads: 8 },
    ...{ headWidth: 64, vocabulary: 32_000, context, type: "Q4_0", experts: { count: 8, used: 2 } },
  },
  "qwen3moe, 64 experts, 4 layers": {
    ...{ architecture: "qwen3moe", layers: 4, width: 2048, feedForward: 768, heads: 32, kvHeads: 4 },
    ...{ headWidth: 128, vocabulary: 151_936, context, type: "Q4_K", endsType: "Q6_K" },
    experts: { count: 64, used: 8 },
  },
  "mamba 1.4B, 24 layers": {
    ...{ architecture: "mamba", layers: 24, width: 2048, feedForward: 0, heads: 0, kvHeads: 0 },
    ...{ headWidth: 0, vocabulary: 50_280, context, type: "Q8_0" },
  },
};

export const onHost: readonly Partial<LoadSettings>[] = [
  // As the daemon starts an engine without an accelerator, and with one.
  { slots: 4, contextPerSlot: 8192, batch: 64 },
  { slots: 8, contextPerSlot: 4096, cacheTypeK: "q8_0", cacheTypeV: "q8_0" },
  { slots: 1, contextPerSlot: 32_768, cacheTypeK: "q4_0", cacheTypeV: "q4_0", batch: 2048 },
  { slots: 2, contextPerSlot: 2048, flashAttention: false, ubatch: 256 },
  { slots: 16, contextPerSlot: 1000, cacheTypeK: "q8_0", unifiedKv: true, mmap: false },
];
const all = Number.POSITIVE_INFINITY;
export const onDevice: readonly Partial<LoadSettings>[] = [
  { slots: 4, contextPerSlot: 8192, gpuLayers: all },
  { slots: 2, contextPerSlot: 4096, gpuLayers: 3, cacheTypeK: "q8_0", cacheTypeV: "q8_0" },
  { slots: 4, contextPerSlot: 4096, gpuLayers: all, offloadKv: false },
  { slots: 1, contextPerSlot: 4096, gpuLayers: all, hostExpertLayers: all },
];

export interface Sample {
  readonly name: string;
  readonly model: ZeroModel;
  readonly settings: Partial<LoadSettings>;
}

/**
 * Proportions as models have them, none of which the formula was fitted to. Architectures that take any width of
 * attention; the others' graphs are the same.
 */
export function randomSamples(count: number, seed: number): Sample[] {
  const uniform = uniformSource(seed);
  const pick = <const T>(values: readonly [T, ...T[]]): T =>
    values[Math.floor(uniform() * values.length)] ?? values[0];
  return Array.from({ length: count }, (_, i) => {
    const architecture = pick(["llama", "llama", "qwen3", "gemma2", "gemma3", "qwen3moe"]);
    const headWidth = pick([64, 96, 128]);
    const kvHeads = pick([1, 2, 4, 8]);
    const heads = kvHeads * pick([1, 2, 4]);
    // Rows of K-quants are whole blocks of 256.
    const width = 256 * Math.max(3, Math.round((heads * headWidth * pick([0.5, 0.75, 1, 1, 1.25])) / 256));
    const experts =
      architecture === "qwen3moe" ? { count: pick([16, 32, 64]), used: pick([2, 4, 8]) } : undefined;
    const feedForward =
      256 * Math.max(1, Math.round((width * pick([2, 2.7, 3.5, 4, 6])) / 256 / (experts?.used ?? 1)));
    const vocabulary = pick([32_000, 64_000, 128_256]);
    const wholeBlocks = (heads * headWidth) % 256 === 0;
    const type = wholeBlocks
      ? pick(["F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_NL"])
      : pick(["F16", "Q8_0", "Q4_0", "IQ4_NL"]);
    const model: Omit<ZeroModel, "layers"> = {
      ...{ architecture, headWidth, kvHeads, heads, width, feedForward, vocabulary, type },
      context: 131_072,
      ...(experts === undefined ? {} : { experts }),
      ...(architecture.startsWith("gemma") ? { slidingWindow: pick([512, 1024, 4096]), tied } : {}),
    };
    const flashAttention = uniform() < 0.75;
    const slots = pick([1, 2, 3, 4, 8, 16]);
    const settings: Partial<LoadSettings> = {
      slots,
      contextPerSlot: Math.min(pick([1024, 3000, 4096, 8192, 20_000]), Math.floor(24_000 / slots)),
      ...{ batch: pick([64, 512, 2048]), ubatch: pick([128, 512, 512, 1024]), flashAttention },
      ...{ unifiedKv: uniform() < 0.25, cacheTypeK: pick(["f16", "q8_0", "q4_0", "q5_1"]) },
      // Without flash attention the engine takes no quantised values.
      cacheTypeV: flashAttention ? pick(["f16", "q8_0", "q4_0"]) : "f16",
    };
    return { name: `random ${i}, ${architecture}`, model: { ...model, layers: layersOf(model) }, settings };
  });
}

/** So many layers that the file has 700 MB; three at least, so that none is special. */
function layersOf({
  width,
  heads,
  kvHeads,
  headWidth,
  feedForward,
  experts,
  vocabulary,
  type,
}: Omit<ZeroModel, "layers">): number {
  const bytes = { F16: 2, Q8_0: 1.06, Q6_K: 0.82 }[type as string] ?? 0.56;
  const layer =
    width * headWidth * (2 * heads + 2 * kvHeads) + 3 * width * feedForward * (experts?.count ?? 1);
  const ends = width * vocabulary;
  return Math.max(3, Math.ceil((700e6 / bytes - ends) / layer));
}
