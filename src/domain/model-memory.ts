/**
 * What a llama.cpp engine will reserve for a model, reckoned before it is started: weights from the file's tensors,
 * the context from the shape, compute buffers from a formula fitted to what engines report (docs/memory-estimate.md has
 * the measurements). Called where a load has to be fitted into memory; memory-experience.ts corrects the result.
 *
 * Always holds: bytes are whole and never negative; host and device together are the total; where the engine's
 * own rule is not known (`bound`) the figure errs upwards.
 */
import { assert } from "./assert.ts";
import { bytesOf, ggmlTypeNamed } from "./ggml-types.ts";

/** Bytes of the tensors, as they lie in the file. */
export interface TensorBytes {
  readonly tokenEmbedding: number;
  /** Its ggml type; empty where there is none. */
  readonly tokenEmbeddingType: string;
  /** Output matrix and norm; without a matrix the engine takes the token embedding a second time. */
  readonly output: number;
  readonly tied: boolean;
  /** Each layer whole, its experts included. */
  readonly layers: readonly number[];
  /** The part of each layer that is experts. */
  readonly experts: readonly number[];
  /** Whatever else there is. It stays on the host. */
  readonly other: number;
}

export interface ModelShape {
  readonly architecture: string;
  readonly embedding: number;
  /** Query heads of the layer that has most. */
  readonly heads: number;
  /** Key and value heads of each layer; 0: a layer without attention. */
  readonly kvHeads: readonly number[];
  /** Values of one head. */
  readonly keyLength: number;
  readonly valueLength: number;
  /** Width of the widest feed-forward layer; of experts, of those that are in use together. */
  readonly feedForward: number;
  readonly vocabulary: number;
  readonly experts: { readonly count: number; readonly used: number } | null;
  /** Layers that see only so many of the last tokens, and keep no more. */
  readonly sliding: {
    readonly window: number;
    readonly layers: readonly boolean[];
    readonly keyLength: number;
    readonly valueLength: number;
  } | null;
  /** State space models: values that a recurrent layer keeps for a sequence, and the width it works in. */
  readonly recurrent: {
    readonly layers: readonly boolean[];
    readonly stateValues: number;
    readonly inner: number;
  } | null;
  /** The engine's own rules for this architecture are not known here: estimates are upper bounds. */
  readonly bound: boolean;
  readonly contextTrained: number | null;
  readonly tensors: TensorBytes;
}

/** The engine's flags, as far as memory depends on them. */
export interface LoadSettings {
  readonly slots: number;
  readonly contextPerSlot: number;
  /** Tokens: -b and -ub. */
  readonly batch: number;
  readonly ubatch: number;
  /** One cache for all slots (--kv-unified). */
  readonly unifiedKv: boolean;
  /** Names of ggml types, any case. */
  readonly cacheTypeK: string;
  readonly cacheTypeV: string;
  readonly flashAttention: boolean;
  /** -ngl: layers from the last backwards, the output counted as one; Infinity: all. */
  readonly gpuLayers: number;
  /** Layers whose experts stay on the host all the same (-ncmoe; Infinity: -cmoe). */
  readonly hostExpertLayers: number;
  /** The cache lies where its layer does (false: -nkvo). */
  readonly offloadKv: boolean;
  readonly mmap: boolean;
}

export interface MemoryParts {
  readonly weightsBytes: number;
  /** All that belongs to the context: KV cache, recurrent states, rows of output. */
  readonly kvBytes: number;
  readonly computeBytes: number;
}

export interface MemoryEstimate extends MemoryParts {
  readonly totalBytes: number;
  readonly host: MemoryParts;
  /** All accelerators together. */
  readonly device: MemoryParts;
  /** Of the host's weights, what may be pages of the file that the system takes back when it needs them. */
  readonly mappedBytes: number;
  /** The engine's rule for this architecture is not known: at most so much. */
  readonly bound: boolean;
}

/** Cells of a cache come in steps of so many. */
const cellStep = 256;
const floatBytes = 4;
/** Of a mask's entry: half precision with flash attention. */
const maskBytes = { flash: 2, plain: 4 } as const;

const roundUp = (value: number, step: number): number => Math.ceil(value / step) * step;

export function estimateMemory(shape: ModelShape, settings: LoadSettings): MemoryEstimate {
  assert(shape.tensors.layers.length === shape.kvHeads.length, "every layer has its tensors and its heads");
  assert(
    settings.slots >= 1 && settings.contextPerSlot >= 1 && settings.batch >= 1 && settings.ubatch >= 1,
    "slots, context and batch are positive",
  );
  const layers = shape.kvHeads.length;
  /** Of layer count + 1 (the output is last), the first that lies on a device. */
  const firstOffloaded = Math.max(0, layers + 1 - settings.gpuLayers);
  const offloaded = (layer: number): boolean => layer >= firstOffloaded;
  const cells = cellsOf(shape, settings);
  const weights = weightsOf(shape, settings, offloaded);
  const context = contextOf(shape, settings, cells, offloaded);
  const compute = computeOf(shape, settings, cells, firstOffloaded);
  const part = (where: "host" | "device"): MemoryParts => ({
    weightsBytes: weights[where],
    kvBytes: context[where],
    computeBytes: compute[where],
  });
  const host = part("host");
  const device = part("device");
  const all = addParts(host, device);
  return {
    ...all,
    totalBytes: totalOf(all),
    host,
    device,
    mappedBytes: settings.mmap ? host.weightsBytes : 0,
    bound: shape.bound,
  };
}

export const totalOf = (parts: MemoryParts): number =>
  parts.weightsBytes + parts.kvBytes + parts.computeBytes;

export const addParts = (a: MemoryParts, b: MemoryParts): MemoryParts => ({
  weightsBytes: a.weightsBytes + b.weightsBytes,
  kvBytes: a.kvBytes + b.kvBytes,
  computeBytes: a.computeBytes + b.computeBytes,
});

interface Split {
  readonly host: number;
  readonly device: number;
}

function weightsOf(shape: ModelShape, settings: LoadSettings, offloaded: (layer: number) => boolean): Split {
  const { tensors } = shape;
  let host = tensors.tokenEmbedding + tensors.other;
  let device = 0;
  tensors.layers.forEach((bytes, layer) => {
    if (!offloaded(layer)) {
      host += bytes;
      return;
    }
    const kept = layer < settings.hostExpertLayers ? (tensors.experts[layer] ?? 0) : 0;
    host += kept;
    device += bytes - kept;
  });
  if (offloaded(tensors.layers.length))
    device += tensors.output + (tensors.tied ? tensors.tokenEmbedding : 0);
  else host += tensors.output + (tensors.tied && isRepacked(shape) ? tensors.tokenEmbedding : 0);
  return { host, device };
}

/**
 * Types that the processor's backend keeps in another order, so that a matrix which is also looked up in is there
 * twice. Seen with AVX-512; a processor that reorders fewer takes less.
 */
const repackedTypes: ReadonlySet<string> = new Set(["Q2_K", "Q4_0", "Q4_K", "IQ4_NL", "MXFP4"]);
const repackedRows = 8;
const isRepacked = ({ tensors, vocabulary }: ModelShape): boolean =>
  repackedTypes.has(tensors.tokenEmbeddingType) && vocabulary % repackedRows === 0;

/** Of one stream: a slot, or all slots where they share one cache. */
interface Cells {
  readonly streams: number;
  /** 0: every layer slides, or none has a cache. */
  readonly full: number;
  /** 0: no layer slides. */
  readonly sliding: number;
}

/** Source: llama-context.cpp (n_ctx_seq) and llama-kv-cache-iswa.cpp (size_swa). */
function cellsOf({ sliding, kvHeads }: ModelShape, settings: LoadSettings): Cells {
  const { slots, contextPerSlot, unifiedKv } = settings;
  const streams = unifiedKv ? 1 : slots;
  const all = roundUp(unifiedKv ? slots * contextPerSlot : contextPerSlot, cellStep);
  const slides = (layer: number): boolean => sliding?.layers[layer] === true;
  const full = kvHeads.some((heads, layer) => heads > 0 && !slides(layer)) ? all : 0;
  if (sliding === null || !kvHeads.some((heads, layer) => heads > 0 && slides(layer)))
    return { streams, full, sliding: 0 };
  const seen = sliding.window * (unifiedKv ? slots : 1) + batchOf(settings);
  return { streams, full, sliding: roundUp(Math.min(all, seen), cellStep) };
}

function contextOf(
  shape: ModelShape,
  settings: LoadSettings,
  cells: Cells,
  offloaded: (layer: number) => boolean,
): Split {
  const { recurrent } = shape;
  let host = logitsOf(shape, settings);
  let device = 0;
  shape.kvHeads.forEach((_, layer) => {
    const recurs = recurrent?.layers[layer] === true;
    const state = recurs ? settings.slots * recurrent.stateValues * floatBytes : 0;
    const bytes = cacheOf(shape, settings, cells, layer) + state;
    if (settings.offloadKv && offloaded(layer)) device += bytes;
    else host += bytes;
  });
  return { host, device };
}

/** Bytes of one layer's keys and values. */
function cacheOf(shape: ModelShape, settings: LoadSettings, cells: Cells, layer: number): number {
  const k = ggmlTypeNamed(settings.cacheTypeK);
  const v = ggmlTypeNamed(settings.cacheTypeV);
  assert(k !== null && v !== null, "the cache types are ggml's");
  const { sliding } = shape;
  const heads = shape.kvHeads[layer] ?? 0;
  const slides = sliding?.layers[layer] === true;
  const { keyLength, valueLength } = slides ? sliding : shape;
  const rows = (slides ? cells.sliding : cells.full) * cells.streams;
  return rows * (bytesOf(k, heads * keyLength) + bytesOf(v, heads * valueLength));
}

/** A row of output for each slot. */
const logitsOf = (shape: ModelShape, settings: LoadSettings): number =>
  settings.slots * shape.vocabulary * floatBytes;

/** Tokens that one step takes at most. */
const batchOf = ({ batch, ubatch }: LoadSettings): number => Math.min(batch, ubatch);

/**
 * The engine plans one graph for its largest batch and reserves the most that is needed at one time. What is live at
 * each of these moments is a small whole number of activations (tokens × width, float) beside the masks, found by
 * varying one width at a time: E embedding, Q query heads, F feed forward, all experts in use together.
 */
function computeOf(shape: ModelShape, settings: LoadSettings, cells: Cells, firstOffloaded: number): Split {
  const tokens = roundUp(
    Math.min(batchOf(settings), settings.slots * settings.contextPerSlot),
    cells.streams,
  );
  const activation = (width: number): number => tokens * width * floatBytes;
  const perMask = settings.flashAttention ? maskBytes.flash : maskBytes.plain;
  const masks = tokens * (cells.full + cells.sliding) * perMask;
  const e = activation(shape.embedding);
  const peak = peakOf(shape, settings, activation);
  const scores = settings.flashAttention ? 0 : scoresOf(shape, cells, tokens, activation);
  const graph = masks + Math.max(peak, scores);
  const layers = shape.kvHeads.length;
  if (firstOffloaded > layers) return { host: graph, device: 0 };
  if (firstOffloaded === layers) return { host: graph, device: logitsOf(shape, settings) + e };
  const attention = attentionOf(shape, activation);
  // A cache on the host visits the device layer by layer.
  const caches = shape.kvHeads.map((_, layer) => cacheOf(shape, settings, cells, layer));
  const visit = settings.offloadKv ? 0 : Math.max(0, ...caches) + attention - e;
  const { experts } = shape;
  const expertsApart = experts !== null && settings.hostExpertLayers >= layers;
  // Nothing is looked up there, which is one activation less; experts elsewhere send their answers.
  const here = expertsApart
    ? Math.max(attention - e, (experts.used + 4) * e, scores - e)
    : Math.max(peak, scores) - e;
  const device = masks + Math.max(here, visit);
  // What goes in, looked up or given, and once more on its way to the device.
  const inputs = masks + 4 * e;
  if (firstOffloaded > 0) return { host: graph, device };
  if (expertsApart) return { host: Math.max(inputs, graph - 3 * e), device };
  return { host: experts !== null && settings.hostExpertLayers > 0 ? graph : inputs, device };
}

/** Without the masks. */
function peakOf(shape: ModelShape, settings: LoadSettings, activation: (width: number) => number): number {
  const e = activation(shape.embedding);
  const f = activation(shape.feedForward);
  const kv = activation(Math.max(0, ...shape.kvHeads) * shape.keyLength);
  const attention = attentionOf(shape, activation) + (kv > e ? 2 * kv : 0);
  // Every expert in use answers with a whole embedding, where that is larger than what the step before has left.
  const answer = (shape.experts?.used ?? 0) * e;
  // What is no wider than the embedding fits into what the step before has left.
  const beside = f > e ? 5 : shape.experts === null ? 3 : 4;
  const feedForward = beside * e + 3 * f + (answer > 2 * f ? answer : 0);
  const logits = 5 * e + logitsOf(shape, settings);
  const state = shape.recurrent === null ? 0 : 8 * activation(shape.recurrent.inner);
  return Math.max(attention, feedForward, logits, state);
}

/** Attention without flash attention: a score for every token, cell and head. Without the masks. */
function scoresOf(
  shape: ModelShape,
  cells: Cells,
  tokens: number,
  activation: (width: number) => number,
): number {
  const kv = activation(Math.max(0, ...shape.kvHeads) * shape.keyLength);
  const scores = tokens * Math.max(cells.full, cells.sliding) * shape.heads * floatBytes;
  return scores + attentionOf(shape, activation) + 2 * kv;
}

function attentionOf(shape: ModelShape, activation: (width: number) => number): number {
  const e = activation(shape.embedding);
  const q = activation(shape.heads * shape.keyLength);
  return Math.min(3 * e + 3 * q, 5 * e + 2 * q);
}
