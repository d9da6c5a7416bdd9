/**
 * Reads the shape of a model from its GGUF file, without loading it: hyperparameters and the bytes of its tensors, as
 * domain/model-memory.ts wants them. Synchronous and bounded like gguf-header.ts; a model in several files is
 * read through its first.
 *
 * Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md for the file; llama.cpp's llama-model.cpp for
 * which layers slide, llama-hparams.cpp for what a recurrent layer keeps.
 */
import { bytesOf, ggmlTypes } from "../../domain/ggml-types.ts";
import type { ModelShape, TensorBytes } from "../../domain/model-memory.ts";
import {
  ARRAY,
  bounds,
  Cursor,
  type GgufSource,
  invalid,
  readOpening,
  readScalar,
  STRING,
  scalarBytes,
  skipArray,
  withGguf,
} from "./gguf-cursor.ts";

const shapeBounds = {
  layersMax: 4096,
  tensorNameBytesMax: 1024,
  dimensionsMax: 4,
  /** Values of one tensor: with a block's bytes still an exact number. */
  valuesMax: 2 ** 44,
  /** Numbers of one metadata array, one per layer; longer ones are the vocabulary's. */
  arrayItemsMax: 4096,
  arraysMax: 64,
  filesMax: 512,
} as const;

export interface GgufTensor {
  readonly name: string;
  /** Row length first. */
  readonly dimensions: readonly number[];
  readonly type: string;
  readonly bytes: number;
}

type Metadata = ReadonlyMap<string, string | number | readonly number[]>;

export interface GgufContent {
  readonly metadata: Metadata;
  readonly tensors: readonly GgufTensor[];
}

/** Throws GgufError. */
export function readModelShape(path: string): ModelShape {
  const first = withGguf(path, parseGgufContent);
  const files = first.metadata.get("split.count");
  if (typeof files !== "number" || files <= 1) return shapeOf(first);
  const more = siblings(path, files).flatMap((file) => withGguf(file, parseGgufContent).tensors);
  return shapeOf({ ...first, tensors: [...first.tensors, ...more] });
}

/** The other files of a model that was split: `…-00001-of-00003.gguf`. */
function siblings(path: string, files: number): string[] {
  const ending = /-00001-of-(\d{5})\.gguf$/.exec(path);
  if (ending === null || Number(ending[1]) !== files || files > shapeBounds.filesMax)
    throw invalid("it is one of several files, and not the first by its name");
  const stem = path.slice(0, ending.index);
  return Array.from(
    { length: files - 1 },
    (_, i) => `${stem}-${String(i + 2).padStart(5, "0")}-of-${ending[1]}.gguf`,
  );
}

/** Throws GgufError. */
export function parseGgufContent(source: GgufSource): GgufContent {
  const cursor = new Cursor(source);
  const opening = readOpening(cursor, source);
  const metadata = new Map<string, string | number | readonly number[]>();
  let arrays = 0;
  for (let i = 0; i < opening.keys; i++) {
    const key = cursor.string(bounds.keyBytesMax, "a key length");
    const type = cursor.u32();
    if (type === ARRAY) {
      if (key.startsWith("tokenizer.") || arrays === shapeBounds.arraysMax) {
        skipArray(cursor);
        continue;
      }
      arrays++;
      const items = smallArray(cursor);
      if (items !== null) metadata.set(key, items);
    } else if (type !== STRING) metadata.set(key, Number(readScalar(cursor, type)));
    else if (key === "general.architecture")
      metadata.set(key, cursor.string(bounds.keyBytesMax, "an architecture"));
    else cursor.skipString();
  }
  const tensors = Array.from({ length: opening.tensors }, () => tensor(cursor));
  return { metadata, tensors };
}

/** Null, and past it: strings, or more numbers than there can be layers. */
function smallArray(cursor: Cursor): readonly number[] | null {
  const start = cursor.at;
  const type = cursor.u32();
  const items = cursor.u64(bounds.arrayItemsMax, "an array length");
  if (typeof scalarBytes[type] !== "number" || items > shapeBounds.arrayItemsMax) {
    cursor.at = start;
    skipArray(cursor);
    return null;
  }
  return Array.from({ length: items }, () => Number(readScalar(cursor, type)));
}

function tensor(cursor: Cursor): GgufTensor {
  const name = cursor.string(shapeBounds.tensorNameBytesMax, "a tensor's name");
  const count = cursor.u32();
  if (count > shapeBounds.dimensionsMax) throw invalid(`a tensor of ${count} dimensions`);
  let values = 1;
  const dimensions = Array.from({ length: count }, () => {
    const dimension = cursor.u64(shapeBounds.valuesMax, "a dimension");
    values *= dimension;
    if (values > shapeBounds.valuesMax) throw invalid("a tensor's size is out of bounds");
    return dimension;
  });
  const number = cursor.u32();
  const type = ggmlTypes.get(number);
  if (type === undefined) throw invalid(`tensor type ${number} is unknown`);
  // Its offset: what is told here needs no data.
  cursor.skip(8);
  return { name, dimensions, type: type.name, bytes: bytesOf(type, values) };
}

/** Throws GgufError where the metadata do not describe a language model. */
export function shapeOf({ metadata, tensors }: GgufContent): ModelShape {
  const architecture = metadata.get("general.architecture");
  if (typeof architecture !== "string") throw invalid("it names no architecture");
  const values = (key: string): readonly number[] | null => {
    const value = metadata.get(`${architecture}.${key}`);
    if (typeof value === "number") return [value];
    return typeof value === "object" ? value : null;
  };
  /** Of a value per layer the largest. */
  const count = (key: string): number | null => {
    const found = values(key);
    return found === null || found.length === 0 ? null : countOf(Math.max(...found), key);
  };
  const layers = count("block_count");
  const embedding = count("embedding_length");
  if (layers === null || embedding === null) throw invalid("it does not tell its layers and their width");
  if (layers > shapeBounds.layersMax) throw invalid(`${layers} layers`);
  const parts = new Parts(layers, tensors);
  const heads = Math.max(1, count("attention.head_count") ?? 1);
  const keyLength = count("attention.key_length") ?? Math.floor(embedding / heads);
  const valueLength = count("attention.value_length") ?? Math.floor(embedding / heads);
  const kvHeads = perLayer(values("attention.head_count_kv") ?? [heads], layers);
  const used = count("expert_used_count") ?? 0;
  const experts = (count("expert_count") ?? 0) > 0 && used > 0;
  const pattern = slidingLayers(architecture, layers, values("attention.sliding_window_pattern"));
  const window = count("attention.sliding_window") ?? (architecture === "gemma2" ? 4096 : 0);
  const recurrent = recurrentState(count, parts, embedding);
  return {
    architecture,
    embedding,
    heads,
    kvHeads: kvHeads.map((each, layer) => (parts.attends[layer] === true ? each : 0)),
    keyLength,
    valueLength,
    feedForward: parts.feedForward(experts ? used : 1) ?? count("feed_forward_length") ?? embedding,
    vocabulary: parts.vocabulary ?? count("vocab_size") ?? 0,
    experts: experts ? { count: count("expert_count") ?? 0, used } : null,
    sliding:
      pattern === null || window === 0
        ? null
        : {
            window,
            layers: pattern,
            keyLength: count("attention.key_length_swa") ?? keyLength,
            valueLength: count("attention.value_length_swa") ?? valueLength,
          },
    recurrent,
    bound: recurrent !== null || count("attention.kv_lora_rank") !== null,
    contextTrained: count("context_length"),
    tensors: parts.bytes,
  };
}

function countOf(value: number, key: string): number {
  if (!Number.isSafeInteger(value) || value < 0 || value > shapeBounds.valuesMax)
    throw invalid(`${key} of ${value} is out of bounds`);
  return value;
}

function perLayer(values: readonly number[], layers: number): number[] {
  const only = values.length === 1 ? values[0] : undefined;
  return Array.from({ length: layers }, (_, layer) =>
    countOf(only ?? values[layer] ?? 0, "a count of heads"),
  );
}

/** Every so many layers one sees everything: the last of them, or the first. A window elsewhere the engine ignores. */
const slidingEvery: Readonly<Record<string, { readonly every: number; readonly firstFull?: true }>> = {
  gemma2: { every: 2 },
  gemma3: { every: 6 },
  gemma3n: { every: 5 },
  "gemma-embedding": { every: 6 },
  cohere2: { every: 4 },
  "gpt-oss": { every: 2 },
  olmo2: { every: 4 },
  exaone4: { every: 4 },
  smallthinker: { every: 4, firstFull: true },
};

function slidingLayers(
  architecture: string,
  layers: number,
  pattern: readonly number[] | null,
): readonly boolean[] | null {
  const numbers = Array.from({ length: layers }, (_, layer) => layer);
  // A file that says it for each layer is taken at its word.
  if (pattern !== null && pattern.length === layers && layers > 1)
    return numbers.map((layer) => pattern[layer] !== 0);
  const known = slidingEvery[architecture];
  if (known === undefined) return null;
  return numbers.map((layer) =>
    known.firstFull === true ? layer % known.every !== 0 : layer % known.every < known.every - 1,
  );
}

function recurrentState(
  count: (key: string) => number | null,
  parts: Parts,
  embedding: number,
): ModelShape["recurrent"] {
  if (!parts.recurs.includes(true)) return null;
  const inner = count("ssm.inner_size") ?? 2 * embedding;
  const groups = count("ssm.group_count") ?? 0;
  const size = Math.max(count("ssm.state_size") ?? 0, count("wkv.head_size") ?? 0, 16);
  const kernel = Math.max(count("ssm.conv_kernel") ?? 0, count("shortconv.l_cache") ?? 0, 4);
  return {
    layers: parts.recurs,
    stateValues: (kernel - 1) * (inner + 2 * groups * size) + size * inner,
    inner,
  };
}

/** The tensors, sorted by what they are for. */
class Parts {
  readonly bytes: TensorBytes;
  readonly attends: readonly boolean[];
  readonly recurs: readonly boolean[];
  readonly vocabulary: number | null;
  readonly #dense: number;
  readonly #expert: number;

  constructor(layerCount: number, tensors: readonly GgufTensor[]) {
    const layers = new Array<number>(layerCount).fill(0);
    const experts = new Array<number>(layerCount).fill(0);
    const attends = new Array<boolean>(layerCount).fill(false);
    const recurs = new Array<boolean>(layerCount).fill(false);
    const sums = { tokenEmbedding: 0, output: 0, other: 0 };
    let vocabulary: number | null = null;
    let tokenEmbeddingType = "";
    let tied = true;
    let dense = 0;
    let expert = 0;
    for (const { name, dimensions, type, bytes } of tensors) {
      const [, number, part = ""] = /^blk\.(\d{1,4})\.(.+)$/.exec(name) ?? [];
      const layer = Number(number);
      if (number !== undefined && layer < layerCount) {
        layers[layer] = (layers[layer] ?? 0) + bytes;
        if (/^ffn_\w+_exps\./.test(part)) experts[layer] = (experts[layer] ?? 0) + bytes;
        if (/^attn_(k|qkv|kv_\w+|k_b)\.weight$/.test(part)) attends[layer] = true;
        if (/^(ssm_|time_mix_|shortconv)/.test(part)) recurs[layer] = true;
        if (part === "ffn_down.weight") dense = Math.max(dense, dimensions[0] ?? 0);
        if (part === "ffn_down_exps.weight") expert = Math.max(expert, dimensions[0] ?? 0);
      } else if (name === "token_embd.weight") {
        sums.tokenEmbedding += bytes;
        vocabulary = dimensions[1] ?? null;
        tokenEmbeddingType = type;
      } else if (/^(output|output_norm|cls)\b/.test(name)) {
        sums.output += bytes;
        if (name === "output.weight") tied = false;
      } else sums.other += bytes;
    }
    this.bytes = { ...sums, tokenEmbeddingType, tied, layers, experts };
    this.attends = attends;
    this.recurs = recurs;
    this.vocabulary = vocabulary;
    this.#dense = dense;
    this.#expert = expert;
  }

  /** Null: no tensor tells. */
  feedForward(used: number): number | null {
    const widest = Math.max(this.#dense, this.#expert * used);
    return widest === 0 ? null : widest;
  }
}
