/**
 * Reads what the daemon wants to know of a GGUF file from its header, without loading it: the launch plan sizes
 * the context by it, the catalog shows it. Synchronous and bounded: the header of a large model is a few MB
 * (its vocabulary), read in pieces; no array is kept.
 *
 * Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
import {
  ARRAY,
  bounds,
  Cursor,
  type GgufScalar,
  type GgufSource,
  invalid,
  readOpening,
  readScalar,
  STRING,
  skipArray,
  sourceOf,
  withGguf,
} from "./gguf-cursor.ts";

export { isGgufError } from "./gguf-cursor.ts";

export interface GgufHeader {
  readonly version: number;
  readonly architecture: string;
  readonly name: string | null;
  readonly tensorCount: number;
  readonly blockCount: number | null;
  /** Tokens of context the model was trained with. */
  readonly contextLength: number | null;
  readonly embeddingLength: number | null;
  readonly hasChatTemplate: boolean;
  /** llama.cpp's enum: 0 none, 1 mean, 2 cls, 3 last, 4 rank; null when the file does not say. */
  readonly poolingType: number | null;
  readonly fileSizeBytes: number;
}

const wanted =
  /^(general\.(architecture|name)|[^.]+\.(block_count|context_length|embedding_length|pooling_type))$/;

export function parseGgufHeader(source: GgufSource): GgufHeader {
  const cursor = new Cursor(source);
  const { version, tensors: tensorCount, keys } = readOpening(cursor, source);
  const values = new Map<string, string | GgufScalar>();
  let hasChatTemplate = false;
  for (let i = 0; i < keys; i++) {
    const key = cursor.string(bounds.keyBytesMax, "a key length");
    const type = cursor.u32();
    if (key === "tokenizer.chat_template") hasChatTemplate = true;
    if (type === ARRAY) skipArray(cursor);
    else if (type !== STRING) values.set(key, readScalar(cursor, type));
    else if (wanted.test(key)) values.set(key, cursor.string(bounds.stringBytesMax, "a string length"));
    else cursor.skipString();
  }
  return summary(values, { version, tensorCount, hasChatTemplate, fileSizeBytes: source.sizeBytes });
}

function summary(
  values: ReadonlyMap<string, string | GgufScalar>,
  known: Pick<GgufHeader, "version" | "tensorCount" | "hasChatTemplate" | "fileSizeBytes">,
): GgufHeader {
  const architecture = values.get("general.architecture");
  if (typeof architecture !== "string") throw invalid("it names no architecture");
  const name = values.get("general.name");
  const count = (key: string): number | null => {
    const value = values.get(`${architecture}.${key}`);
    return typeof value === "number" || typeof value === "bigint" ? Number(value) : null;
  };
  return {
    ...known,
    architecture,
    name: typeof name === "string" ? name : null,
    blockCount: count("block_count"),
    contextLength: count("context_length"),
    embeddingLength: count("embedding_length"),
    poolingType: count("pooling_type"),
  };
}

/** Throws GgufError. */
export function readGgufHeader(path: string): GgufHeader {
  return withGguf(path, parseGgufHeader);
}

/** As readGgufHeader; the file stays open. */
export function readOpenGguf(fd: number): GgufHeader {
  return parseGgufHeader(sourceOf(fd));
}
