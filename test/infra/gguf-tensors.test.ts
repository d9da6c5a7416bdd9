/** The shape of a model, read from files that the product's writer made, then every way to be broken. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import {
  type GgufFile,
  type MetadataValue,
  type Tensor,
  writeGguf,
} from "../../scripts/model/gguf-writer.ts";
import { buildZeroModel, type ZeroModel } from "../../scripts/model/zero-weights.ts";
import type { ModelShape } from "../../src/domain/model-memory.ts";
import { isGgufError } from "../../src/infra/engines/gguf-cursor.ts";
import { parseGgufContent, readModelShape, shapeOf } from "../../src/infra/engines/gguf-tensors.ts";

const base: ZeroModel = {
  ...{ architecture: "llama", layers: 4, width: 256, feedForward: 768, heads: 8, kvHeads: 2, headWidth: 32 },
  ...{ vocabulary: 2000, context: 4096, type: "Q4_0" },
};

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "gguf-tensors-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
const weights = ({ tensors }: ModelShape): number =>
  tensors.tokenEmbedding + tensors.output + tensors.other + sum(tensors.layers);

async function written(file: GgufFile, name = "model.gguf"): Promise<string> {
  const path = join(folder, name);
  await writeGguf(path, file);
  return path;
}
const shapeOfZeros = async (change: Partial<ZeroModel>): Promise<ModelShape> =>
  readModelShape(await written(buildZeroModel({ ...base, ...change })));

/** The shape with some metadata or tensors besides. */
async function shapeWith(
  metadata: Readonly<Record<string, MetadataValue | null>>,
  tensors: readonly Tensor[] = [],
): Promise<ModelShape> {
  const file = buildZeroModel(base);
  const entries = new Map(file.metadata);
  for (const [key, value] of Object.entries(metadata)) {
    if (value === null) entries.delete(key);
    else entries.set(key, value);
  }
  return readModelShape(await written({ metadata: entries, tensors: [...file.tensors, ...tensors] }));
}

const count = (value: number): MetadataValue => ({ kind: "uint32", value });

describe("the shape", () => {
  test("is what was written, and all tensors are counted", async () => {
    const shape = await shapeOfZeros({});
    expect(shape).toMatchObject({
      ...{ architecture: "llama", embedding: 256, heads: 8, kvHeads: [2, 2, 2, 2], feedForward: 768 },
      ...{ keyLength: 32, valueLength: 32, vocabulary: 2000, contextTrained: 4096 },
      ...{ experts: null, sliding: null, recurrent: null, bound: false },
    });
    const matrices = 2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 768;
    expect(shape.tensors.layers).toEqual(new Array(4).fill((matrices / 32) * 18 + 2 * 256 * 4));
    expect(shape.tensors.tokenEmbedding).toBe(((256 * 2000) / 32) * 18);
    expect(shape.tensors.output).toBe(((256 * 2000) / 32) * 18 + 256 * 4);
    expect(shape.tensors.tied).toBe(false);
    expect((await shapeOfZeros({ tied: true })).tensors).toMatchObject({ tied: true, output: 256 * 4 });
  });

  test.each(["F16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"] as const)(
    "of %s weights is as large as the file but for its header",
    async (type) => {
      const path = await written(buildZeroModel({ ...base, type }));
      const shape = readModelShape(path);
      const rest = statSync(path).size - weights(shape);
      // Names and the vocabulary.
      expect(rest).toBeGreaterThan(0);
      expect(rest).toBeLessThan(200_000);
    },
  );

  test("of experts: their part of each layer, and how wide those in use are together", async () => {
    const shape = await shapeOfZeros({ experts: { count: 8, used: 2 } });
    expect(shape.experts).toEqual({ count: 8, used: 2 });
    expect(shape.feedForward).toBe(2 * 768);
    expect(shape.tensors.experts).toEqual(new Array(4).fill((8 * 3 * 256 * 768 * 18) / 32));
    expect(shape.tensors.layers[0]).toBeGreaterThan(shape.tensors.experts[0] ?? 0);
  });

  test("of fused matrices is that of the plain ones", async () => {
    const shape = await shapeOfZeros({ architecture: "phi3" });
    expect(shape).toMatchObject({ feedForward: 768, kvHeads: [2, 2, 2, 2], sliding: null });
  });

  test("of a recurrent model has states and no heads for keys", async () => {
    const shape = await shapeOfZeros({ architecture: "mamba", heads: 0, kvHeads: 0, headWidth: 0 });
    expect(shape.kvHeads).toEqual([0, 0, 0, 0]);
    expect(shape.recurrent).toEqual({
      ...{ layers: [true, true, true, true], inner: 512 },
      stateValues: 3 * 512 + 16 * 512,
    });
    expect(shape.bound).toBe(true);
  });

  test("values that the file leaves out follow from the others", async () => {
    const shape = await shapeWith({
      "llama.attention.key_length": null,
      "llama.attention.value_length": null,
      "llama.attention.head_count_kv": null,
      "llama.context_length": null,
    });
    expect(shape).toMatchObject({
      keyLength: 32,
      valueLength: 32,
      kvHeads: [8, 8, 8, 8],
      contextTrained: null,
    });
  });

  test("values of each layer", async () => {
    const shape = await shapeWith({
      "llama.attention.head_count_kv": { kind: "int32s", value: [2, 0, 4, 1] },
      "llama.attention.head_count": { kind: "int32s", value: [8, 4, 16, 8] },
    });
    expect(shape.kvHeads).toEqual([2, 0, 4, 1]);
    expect(shape.heads).toBe(16);
  });

  test("tensors of no layer stay apart", async () => {
    const more = (name: string): Tensor => ({ name, shape: [100], type: "F32", data: null });
    const shape = await shapeWith({}, [more("rope_freqs.weight"), more("blk.77.attn_norm.weight")]);
    expect(shape.tensors.other).toBe(800);
  });
});

describe("layers that slide", () => {
  const slides = (shape: ModelShape): string =>
    shape.sliding?.layers.map((each) => (each ? "s" : "F")).join("") ?? "none";

  test("follow the architecture", async () => {
    const gemma3 = await shapeOfZeros({ architecture: "gemma3", layers: 13, slidingWindow: 512 });
    expect(slides(gemma3)).toBe("sssssFsssssFs");
    expect(gemma3.sliding?.window).toBe(512);
    const gemma2 = await shapeOfZeros({ architecture: "gemma2" });
    expect(slides(gemma2)).toBe("sFsF");
    expect(gemma2.sliding?.window).toBe(4096);
  });

  test("are none where the engine ignores the window", async () => {
    expect(slides(await shapeOfZeros({ architecture: "qwen2", slidingWindow: 512 }))).toBe("none");
    expect(slides(await shapeOfZeros({ architecture: "gemma3" }))).toBe("none");
  });

  test("are those that the file names", async () => {
    const shape = await shapeWith({
      "llama.attention.sliding_window": count(256),
      "llama.attention.sliding_window_pattern": { kind: "int32s", value: [1, 0, 0, 1] },
      "llama.attention.key_length_swa": count(16),
    });
    expect(slides(shape)).toBe("sFFs");
    expect(shape.sliding).toMatchObject({ keyLength: 16, valueLength: 32 });
  });
});

describe("a model in several files", () => {
  test("is read through its first; a missing one is said", async () => {
    const whole = buildZeroModel(base);
    const part = async (name: string, tensors: readonly Tensor[]): Promise<string> => {
      const metadata = new Map([...whole.metadata, ["split.count", count(3)] as const]);
      return written({ metadata, tensors }, name);
    };
    const first = await part("m-00001-of-00003.gguf", whole.tensors.slice(0, 5));
    await part("m-00002-of-00003.gguf", whole.tensors.slice(5, 20));
    expect(() => readModelShape(first)).toThrow("cannot be opened");
    await part("m-00003-of-00003.gguf", whole.tensors.slice(20));
    expect(readModelShape(first)).toEqual(await shapeOfZeros({}));
    expect(() => readModelShape(join(folder, "m-00002-of-00003.gguf"))).toThrow("not the first");
  });
});

describe("broken files", () => {
  const parse = (bytes: Buffer): ModelShape =>
    shapeOf(
      parseGgufContent({
        sizeBytes: bytes.length,
        read: (offset, length) => bytes.subarray(offset, Math.min(bytes.length, offset + length)),
      }),
    );
  const small = async (): Promise<Buffer> => {
    const path = await written(buildZeroModel(base), "small.gguf");
    truncateSync(path, 150_000);
    return readFileSync(path);
  };

  test("the data behind the header are not needed, the header is", async () => {
    const bytes = await small();
    expect(parse(bytes).tensors.layers.length).toBe(4);
    expect(() => parse(bytes.subarray(0, bytes.indexOf("blk.3.ffn_up.weight")))).toThrow("cut short");
  });

  test("types, dimensions and layers out of bounds are said", async () => {
    const bytes = await small();
    const name = bytes.indexOf("token_embd.weight");
    const at = name + "token_embd.weight".length;
    const changed = (change: (copy: Buffer) => unknown): Buffer => {
      const copy = Buffer.from(bytes);
      change(copy);
      return copy;
    };
    expect(() => parse(changed((copy) => copy.writeUInt32LE(5, at)))).toThrow("5 dimensions");
    expect(() => parse(changed((copy) => copy.writeUInt32LE(2 ** 31, at + 8)))).toThrow("out of bounds");
    const huge = changed((copy) => {
      copy.writeUInt32LE(2 ** 31, at + 4);
      copy.writeUInt32LE(2 ** 31, at + 12);
    });
    expect(() => parse(huge)).toThrow("out of bounds");
    expect(() => parse(changed((copy) => copy.writeUInt32LE(4, at + 20)))).toThrow("type 4 is unknown");
    const layers = bytes.indexOf("llama.block_count") + "llama.block_count".length + 4;
    expect(() => parse(changed((copy) => copy.writeUInt32LE(1e9, layers)))).toThrow("layers");
  });

  test("no damage to a header is more than an error of its kind", async () => {
    const bytes = (await small()).subarray(0, 150_000);
    const header = bytes.indexOf("blk.3.ffn_up.weight");
    fc.assert(
      fc.property(fc.nat(header), fc.nat(255), (at, value) => {
        const copy = Buffer.from(bytes);
        copy[at] = value;
        try {
          const shape = parse(copy);
          expect(Number.isSafeInteger(weights(shape))).toBe(true);
        } catch (error) {
          expect(isGgufError(error)).toBe(true);
        }
      }),
      { numRuns: 300 },
    );
  });
});
