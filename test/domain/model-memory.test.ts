/**
 * The estimate of a model's memory: figures that llama-server b11669 reported, measured with models of zeros
 * (docs/memory-estimate.md), and what must hold whatever the shape.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { bytesOf, ggmlTypeNamed, ggmlTypes } from "../../src/domain/ggml-types.ts";
import {
  estimateMemory,
  type LoadSettings,
  type ModelShape,
  totalOf,
} from "../../src/domain/model-memory.ts";

const mib = 2 ** 20;
const all = Number.POSITIVE_INFINITY;

const settings: LoadSettings = {
  slots: 2,
  contextPerSlot: 4096,
  batch: 512,
  ubatch: 512,
  unifiedKv: false,
  cacheTypeK: "f16",
  cacheTypeV: "f16",
  flashAttention: true,
  gpuLayers: 0,
  hostExpertLayers: 0,
  offloadKv: true,
  mmap: true,
};

/** The shape that was varied: 4 layers, embedding 1024, 16 heads of 64, 4 for keys and values. */
function shape(change: Partial<ModelShape> = {}, layers = 4): ModelShape {
  const each = (value: number): number[] => new Array<number>(layers).fill(value);
  return {
    architecture: "llama",
    embedding: 1024,
    heads: 16,
    kvHeads: each(4),
    keyLength: 64,
    valueLength: 64,
    feedForward: 2816,
    vocabulary: 32_000,
    experts: null,
    sliding: null,
    recurrent: null,
    bound: false,
    contextTrained: 32_768,
    tensors: {
      ...{ tokenEmbedding: 60 * mib, tokenEmbeddingType: "Q8_0", output: 61 * mib, tied: false, other: 0 },
      ...{ layers: each(20 * mib), experts: each(0) },
    },
    ...change,
  };
}

const compute = (model: ModelShape, change: Partial<LoadSettings> = {}): number =>
  estimateMemory(model, { ...settings, ...change }).computeBytes / mib;
const kv = (model: ModelShape, change: Partial<LoadSettings> = {}): number =>
  estimateMemory(model, { ...settings, ...change }).kvBytes / mib - logits(model, change);
/** Rows of output stand beside the cache, and are no part of it. */
const logits = (model: ModelShape, change: Partial<LoadSettings>): number =>
  ((change.slots ?? settings.slots) * model.vocabulary * 4) / mib;
/** A tenth of what was reported, and the hundredths of a MiB that its log leaves out. */
const near = (estimated: number, reported: number): void => {
  expect(Math.abs(estimated - reported)).toBeLessThanOrEqual(0.1 * reported + 0.05);
};

describe("number formats", () => {
  test("have the sizes of files that there are", () => {
    const bits = (name: string): number => {
      const type = ggmlTypeNamed(name);
      return type === null ? Number.NaN : (8 * type.blockBytes) / type.blockValues;
    };
    expect(bits("f16")).toBe(16);
    expect(bits("Q8_0")).toBe(8.5);
    expect(bits("q4_0")).toBe(4.5);
    expect(bits("Q4_K")).toBe(4.5);
    expect(bits("Q5_K")).toBe(5.5);
    expect(bits("Q6_K")).toBe(6.5625);
    expect(bits("IQ4_XS")).toBe(4.25);
    expect(bits("IQ1_M")).toBe(1.75);
    expect(bits("TQ1_0")).toBe(1.6875);
    expect(bits("MXFP4")).toBe(4.25);
    expect(ggmlTypeNamed("q9_9")).toBeNull();
  });

  test("have one name each, and part of a block costs a whole one", () => {
    expect(new Set([...ggmlTypes.values()].map(({ name }) => name)).size).toBe(ggmlTypes.size);
    const q8 = ggmlTypes.get(8);
    if (q8 === undefined) throw new Error("Q8_0 is number 8");
    expect(bytesOf(q8, 33)).toBe(68);
    expect(bytesOf(q8, 0)).toBe(0);
  });
});

describe("KV cache", () => {
  test("is as reported, for every type, and shared or not", () => {
    expect(kv(shape())).toBe(32);
    expect(kv(shape(), { cacheTypeK: "q8_0", cacheTypeV: "q8_0" })).toBe(17);
    expect(kv(shape(), { cacheTypeK: "Q4_0", cacheTypeV: "Q4_0" })).toBe(9);
    expect(kv(shape(), { cacheTypeV: "q8_0" })).toBe(24.5);
    expect(kv(shape(), { slots: 4, contextPerSlot: 2048, unifiedKv: true })).toBe(32);
    expect(kv(shape({ kvHeads: [32, 32, 32, 32] }))).toBe(256);
  });

  test("comes in steps of 256 cells", () => {
    expect(kv(shape(), { contextPerSlot: 4095 })).toBe(32);
    expect(kv(shape(), { contextPerSlot: 3841 })).toBe(32);
    expect(kv(shape(), { contextPerSlot: 3840 })).toBe(30);
  });

  test("is short in layers that slide, and longer there where slots share it", () => {
    const sliding = (window: number, every: number, layers: number): ModelShape =>
      shape(
        {
          sliding: {
            ...{ window, keyLength: 64, valueLength: 64 },
            layers: Array.from({ length: layers }, (_, layer) => layer % every < every - 1),
          },
        },
        layers,
      );
    // gemma3's: reported as 64 + 30, shared 64 + 25, alone with small batches 64 + 12.5.
    expect(kv(sliding(1024, 6, 12), { contextPerSlot: 16_384 })).toBe(94);
    expect(kv(sliding(1024, 6, 12), { contextPerSlot: 16_384, unifiedKv: true })).toBe(89);
    expect(kv(sliding(1024, 6, 12), { slots: 1, contextPerSlot: 32_768, batch: 64 })).toBe(76.5);
    // gemma2's: a window as long as the context saves nothing.
    expect(kv(sliding(4096, 2, 4))).toBe(32);
  });

  test("of a recurrent model is its state, and none in layers without attention", () => {
    const mamba = shape({
      ...{ kvHeads: [0, 0, 0, 0], heads: 1, keyLength: 0, bound: true },
      recurrent: { layers: [true, true, true, true], stateValues: 3 * 2048 + 16 * 2048, inner: 2048 },
    });
    near(kv(mamba), 1.19);
    near(kv(mamba, { slots: 4 }), 2.38);
    expect(estimateMemory(mamba, settings).bound).toBe(true);
    expect(estimateMemory(shape(), settings).bound).toBe(false);
  });
});

describe("compute buffer", () => {
  test.each([
    [{}, {}, 30.52],
    [{}, { batch: 64 }, 3.81],
    [{}, { batch: 2048 }, 30.52],
    [{}, { batch: 1024, ubatch: 1024 }, 61.04],
    [{}, { contextPerSlot: 16_384 }, 42.52],
    [{}, { slots: 8, contextPerSlot: 1024 }, 27.52],
    [{}, { slots: 4, contextPerSlot: 2048, unifiedKv: true }, 34.52],
    [{}, { cacheTypeK: "q8_0", cacheTypeV: "q8_0" }, 30.55],
    [{ feedForward: 8192 }, {}, 62.02],
    [{ feedForward: 1024 }, {}, 16.02],
    [{ embedding: 2048 }, {}, 40.52],
    [{ feedForward: 256, heads: 32 }, {}, 22.02],
    [{ feedForward: 256, heads: 64, kvHeads: [8, 8, 8, 8] }, {}, 30.02],
    [{ feedForward: 256, heads: 32, kvHeads: [32, 32, 32, 32] }, {}, 30.02],
    [{ feedForward: 256, heads: 32, embedding: 4096 }, {}, 44.02],
  ] as const)("with flash attention: %j, %j is %f MiB", (model, change, reported) => {
    near(compute(shape(model), change), reported);
  });

  test.each([
    [{}, {}, 149.01],
    [{}, { contextPerSlot: 1024 }, 47.01],
    [{}, { slots: 1, contextPerSlot: 8192 }, 285.01],
    [{}, { slots: 1, contextPerSlot: 8192, batch: 64 }, 35.63],
    [{ feedForward: 256, heads: 32, kvHeads: [8, 8, 8, 8] }, {}, 284.01],
    [{ feedForward: 256, heads: 64, kvHeads: [8, 8, 8, 8] }, { batch: 64 }, 68.5],
    [{ feedForward: 8192, heads: 32, kvHeads: [8, 8, 8, 8] }, { contextPerSlot: 512 }, 61.01],
  ] as const)("without: %j, %j is %f MiB", (model, change, reported) => {
    near(compute(shape(model), { flashAttention: false, ...change }), reported);
  });

  test.each([
    [{ count: 8, used: 2 }, 1024, 2 * 512, 18.02],
    [{ count: 8, used: 2 }, 1024, 2 * 4096, 62.02],
    [{ count: 8, used: 4 }, 2048, 4 * 2048, 72.02],
    [{ count: 64, used: 8 }, 1024, 8 * 768, 50.02],
    [{ count: 64, used: 8 }, 2048, 8 * 512, 80.02],
    [{ count: 64, used: 8 }, 1024, 8 * 256, 42.02],
    [{ count: 64, used: 8 }, 2048, 8 * 768, 84.02 + 4],
    [{ count: 16, used: 8 }, 3840, 8 * 2048, 134 + 4],
  ])(
    "with experts %j, embedding %d, together %d wide is %f MiB",
    (experts, embedding, feedForward, reported) => {
      near(compute(shape({ experts, embedding, feedForward })), reported);
    },
  );

  test("needs no full cache's mask and scores where every layer slides", () => {
    const sliding = { window: 1024, layers: [true, true, true, true], keyLength: 64, valueLength: 64 };
    const long = { contextPerSlot: 8192, flashAttention: false };
    expect(compute(shape({ sliding }), long)).toBe(
      compute(shape(), { contextPerSlot: 1536, flashAttention: false }),
    );
  });

  test("has a mask for each length of cache", () => {
    const sliding = { window: 1024, layers: [true, false, true, false], keyLength: 64, valueLength: 64 };
    near(compute(shape({ sliding }), { contextPerSlot: 8192 }), 36.03);
  });

  test("grows with the rows of output where those are most", () => {
    const large = shape({ vocabulary: 151_936, feedForward: 256 });
    near(compute(large, { slots: 64, contextPerSlot: 1024, batch: 64 }), 38.47);
  });
});

describe("host and device", () => {
  const model = shape({
    tensors: {
      ...{ tokenEmbedding: 62 * mib, tokenEmbeddingType: "Q8_0", output: 63 * mib, tied: false, other: mib },
      ...{ layers: [20 * mib, 21 * mib, 22 * mib, 23 * mib], experts: [0, 0, 0, 15 * mib] },
    },
  });
  const split = (gpuLayers: number, change: Partial<LoadSettings> = {}) =>
    estimateMemory(model, { ...settings, gpuLayers, ...change });

  test("the output is the last layer and the first to go", () => {
    expect(split(0).device).toEqual({ weightsBytes: 0, kvBytes: 0, computeBytes: 0 });
    expect(split(1).device.weightsBytes).toBe(63 * mib);
    expect(split(1).device.kvBytes).toBe(0);
    expect(split(2).device.weightsBytes).toBe(86 * mib);
    expect(split(2).device.kvBytes).toBe(8 * mib);
    expect(split(5)).toEqual(split(all));
    expect(split(all).host.weightsBytes).toBe(63 * mib);
    expect(split(all).device.kvBytes).toBe(32 * mib);
  });

  test("buffers of both are as reported", () => {
    near(split(all).device.computeBytes / mib, 28.51);
    near(split(all).host.computeBytes / mib, 12.02);
    near(split(0).host.computeBytes / mib, 30.52);
    near(split(all, { contextPerSlot: 16_384 }).host.computeBytes / mib, 24.02);
  });

  test("a tied output costs its matrix once more on the device", () => {
    const tied = { ...model, tensors: { ...model.tensors, output: mib, tied: true } };
    const on = estimateMemory(tied, { ...settings, gpuLayers: all });
    expect(on.device.weightsBytes).toBe((20 + 21 + 22 + 23 + 1 + 62) * mib);
    expect(on.host.weightsBytes).toBe(63 * mib);
    expect(estimateMemory(tied, settings).weightsBytes).toBe((62 + 1 + 1 + 86) * mib);
  });

  test("and once more on the host where the processor keeps its type in another order", () => {
    const tied = (tokenEmbeddingType: string, vocabulary = 32_000): number =>
      estimateMemory(
        { ...model, vocabulary, tensors: { ...model.tensors, output: mib, tied: true, tokenEmbeddingType } },
        settings,
      ).weightsBytes;
    expect(tied("Q4_0") - tied("Q6_K")).toBe(62 * mib);
    expect(tied("IQ4_NL") - tied("F16")).toBe(62 * mib);
    // Rows are reordered eight by eight.
    expect(tied("Q4_0", 32_001)).toBe(tied("Q6_K", 32_001));
  });

  test("experts and caches stay on the host where they are told to", () => {
    const moe = split(all, { hostExpertLayers: all });
    expect(moe.host.weightsBytes).toBe((63 + 15) * mib);
    expect(split(all, { hostExpertLayers: 3 }).host.weightsBytes).toBe(63 * mib);
    const kept = split(all, { offloadKv: false });
    expect(kept.device.kvBytes).toBe(0);
    expect(kept.host.kvBytes).toBeGreaterThan(32 * mib);
  });

  test("what both plan for experts on the host, and for a cache there, is as reported", () => {
    const moe = shape({ experts: { count: 8, used: 2 }, feedForward: 2 * 2816 }, 2);
    const apart = estimateMemory(moe, { ...settings, gpuLayers: all, hostExpertLayers: all });
    near(apart.device.computeBytes / mib, 16.01);
    near(apart.host.computeBytes / mib, 41.02);
    const large = shape(
      { embedding: 4096, heads: 32, kvHeads: [32, 32], keyLength: 128, valueLength: 128 },
      2,
    );
    const llama7 = { ...large, feedForward: 11_008 };
    const kept = estimateMemory(llama7, { ...settings, slots: 4, gpuLayers: all, offloadKv: false });
    near(kept.computeBytes / mib, 340);
  });

  test("mapped pages are the host's weights, or none", () => {
    expect(split(2).mappedBytes).toBe(split(2).host.weightsBytes);
    expect(split(2, { mmap: false }).mappedBytes).toBe(0);
  });
});

describe("any shape, any settings", () => {
  const width = fc.integer({ min: 1, max: 128 }).map((n) => n * 64);
  const anyShape = fc
    .record({ layers: fc.integer({ min: 1, max: 80 }), heads: fc.integer({ min: 1, max: 64 }) })
    .chain(({ layers, heads }) =>
      fc
        .record({
          embedding: width,
          feedForward: width,
          kvHeads: fc.array(fc.integer({ min: 0, max: heads }), { minLength: layers, maxLength: layers }),
          slides: fc.array(fc.boolean(), { minLength: layers, maxLength: layers }),
          window: fc.integer({ min: 1, max: 8192 }),
          used: fc.integer({ min: 0, max: 8 }),
        })
        .map(({ slides, window, used, ...rest }) =>
          shape(
            {
              ...{ ...rest, heads },
              sliding: { window, layers: slides, keyLength: 64, valueLength: 64 },
              experts: used === 0 ? null : { count: 64, used },
            },
            layers,
          ),
        ),
    );
  const anySettings: fc.Arbitrary<LoadSettings> = fc.record({
    slots: fc.integer({ min: 1, max: 128 }),
    contextPerSlot: fc.integer({ min: 1, max: 131_072 }),
    batch: fc.integer({ min: 1, max: 4096 }),
    ubatch: fc.integer({ min: 1, max: 4096 }),
    unifiedKv: fc.boolean(),
    cacheTypeK: fc.constantFrom("f16", "q8_0", "q4_0", "iq4_nl", "f32"),
    cacheTypeV: fc.constantFrom("f16", "q8_0", "q5_1"),
    flashAttention: fc.boolean(),
    gpuLayers: fc.oneof(fc.integer({ min: 0, max: 100 }), fc.constant(all)),
    hostExpertLayers: fc.constantFrom(0, 3, all),
    offloadKv: fc.boolean(),
    mmap: fc.boolean(),
  });

  test("host and device make the total; whole bytes, none negative", () => {
    fc.assert(
      fc.property(anyShape, anySettings, (model, load) => {
        const estimate = estimateMemory(model, load);
        expect(totalOf(estimate.host) + totalOf(estimate.device)).toBe(estimate.totalBytes);
        expect(totalOf(estimate)).toBe(estimate.totalBytes);
        for (const part of [...Object.values(estimate.host), ...Object.values(estimate.device)]) {
          expect(Number.isSafeInteger(part) && part >= 0).toBe(true);
        }
        if (load.gpuLayers === 0) expect(totalOf(estimate.device)).toBe(0);
      }),
      { numRuns: 300 },
    );
  });

  test("more slots, context or batch never take less", () => {
    const more = fc.constantFrom<keyof Pick<LoadSettings, "slots" | "contextPerSlot" | "batch" | "ubatch">>(
      ...(["slots", "contextPerSlot", "batch", "ubatch"] as const),
    );
    fc.assert(
      fc.property(anyShape, anySettings, more, (model, load, which) => {
        const larger = { ...load, [which]: 2 * load[which] };
        expect(estimateMemory(model, larger).kvBytes).toBeGreaterThanOrEqual(
          estimateMemory(model, load).kvBytes,
        );
        expect(estimateMemory(model, larger).totalBytes).toBeGreaterThanOrEqual(
          estimateMemory(model, load).totalBytes,
        );
      }),
      { numRuns: 300 },
    );
  });
});

test("settings that no engine takes are a mistake of the program", () => {
  expect(() => estimateMemory(shape(), { ...settings, cacheTypeK: "q9_9" })).toThrow("cache types");
  expect(() => estimateMemory(shape(), { ...settings, slots: 0 })).toThrow("positive");
});
