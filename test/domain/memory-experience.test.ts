/** What was learnt of models' memory: told again, scaled, bounded, kept as text and refused where that is damaged. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  corrected,
  decode,
  encode,
  learn,
  type MemoryExperience,
  type MemoryObservation,
  noExperience,
} from "../../src/domain/memory-experience.ts";
import type { LoadSettings, MemoryEstimate, MemoryParts } from "../../src/domain/model-memory.ts";

const settings: LoadSettings = {
  slots: 2,
  contextPerSlot: 4096,
  batch: 512,
  ubatch: 512,
  unifiedKv: false,
  cacheTypeK: "f16",
  cacheTypeV: "f16",
  flashAttention: true,
  gpuLayers: Number.POSITIVE_INFINITY,
  hostExpertLayers: 0,
  offloadKv: true,
  mmap: true,
};
const parts = (weightsBytes: number, kvBytes: number, computeBytes: number): MemoryParts => ({
  weightsBytes,
  kvBytes,
  computeBytes,
});
const estimated = { host: parts(100, 10, 20), device: parts(1000, 500, 60) };
const reported = { host: parts(110, 10, 30), device: parts(1000, 600, 130) };
const seen: MemoryObservation = {
  ...{ model: "sha256:1", architecture: "llama", engine: "b11669", settings, estimated, reported },
};
const estimate: MemoryEstimate = {
  ...{ ...parts(1100, 510, 80), totalBytes: 1690 },
  ...{ ...estimated, mappedBytes: 100, bound: true },
};
const ask = (experience: MemoryExperience, change: Partial<MemoryObservation> = {}) =>
  corrected(experience, { ...seen, ...change }, estimate);

describe("corrected", () => {
  test("without experience it is the formula", () => {
    expect(ask(noExperience)).toEqual({ ...estimate, basis: "formula" });
  });

  test("the same load is told as it was reported, and is no bound any more", () => {
    const told = ask(learn(noExperience, seen));
    expect(told.basis).toBe("same-load");
    expect({ host: told.host, device: told.device }).toEqual(reported);
    expect(told.totalBytes).toBe(110 + 10 + 30 + 1000 + 600 + 130);
    expect(told.computeBytes).toBe(160);
    expect(told.mappedBytes).toBe(110);
    expect(told.bound).toBe(false);
  });

  test("types are the same in any case", () => {
    const change = { settings: { ...settings, cacheTypeK: "F16" } };
    expect(ask(learn(noExperience, seen), change).basis).toBe("same-load");
  });

  test("other settings of the model, or another build, are scaled part by part", () => {
    const known = learn(noExperience, seen);
    for (const change of [{ settings: { ...settings, slots: 3 } }, { engine: "b12000" }]) {
      const told = ask(known, change);
      expect(told.basis).toBe("same-model");
      expect(told.kvBytes).toBe(Math.round(10 * (610 / 510)) + Math.round(500 * (610 / 510)));
      expect(told.computeBytes).toBe(160);
      expect(told.host.computeBytes).toBe(40);
      expect(told.bound).toBe(true);
    }
  });

  test("of another model of the architecture only the compute buffer is scaled", () => {
    const told = ask(learn(noExperience, seen), { model: "sha256:2" });
    expect(told.basis).toBe("same-architecture");
    expect(told).toMatchObject(parts(1100, 510, 160));
    expect(ask(learn(noExperience, seen), { model: "sha256:2", architecture: "qwen3" }).basis).toBe(
      "formula",
    );
  });

  test("one odd report does not move the middle of many, and none moves it out of bounds", () => {
    let known = noExperience;
    for (let slots = 1; slots <= 5; slots++) {
      const odd = slots === 3 ? { host: parts(1, 1, 1e9), device: parts(1, 1, 1e9) } : estimated;
      known = learn(known, { ...seen, settings: { ...settings, slots }, reported: odd });
    }
    expect(ask(known, { settings: { ...settings, slots: 9 } }).computeBytes).toBe(80);
    const wild = { ...seen, reported: { host: parts(1, 1, 1e9), device: parts(1, 1, 1e9) } };
    const told = ask(learn(noExperience, wild), { model: "sha256:2" });
    expect(told.computeBytes).toBe(8 * 80);
  });

  test("this build's own reports count before others', and the same kind of attention", () => {
    const double = { host: parts(100, 10, 40), device: parts(1000, 500, 120) };
    const triple = { host: parts(100, 10, 60), device: parts(1000, 500, 180) };
    const plain = { ...settings, flashAttention: false };
    let known = learn(noExperience, { ...seen, engine: "b1", reported: triple });
    known = learn(known, { ...seen, reported: double });
    known = learn(known, { ...seen, settings: plain, reported: triple });
    expect(ask(known, { model: "sha256:2" }).computeBytes).toBe(160);
    expect(ask(known, { model: "sha256:2", settings: plain }).computeBytes).toBe(240);
    expect(ask(known, { model: "sha256:2", engine: "b1" }).computeBytes).toBe(240);
  });
});

describe("learn", () => {
  test("the newer report of a load replaces the older", () => {
    const again = { ...seen, reported: estimated };
    expect(learn(learn(noExperience, seen), again)).toEqual([again]);
  });

  test("is bounded, the oldest goes", () => {
    let known = noExperience;
    for (let i = 0; i < 600; i++) known = learn(known, { ...seen, model: `sha256:${i}` });
    expect(known.length).toBe(512);
    expect(known[0]?.model).toBe("sha256:88");
    expect(known.at(-1)?.model).toBe("sha256:599");
  });
});

describe("as text", () => {
  const count = fc.integer({ min: 0, max: 2 ** 50 });
  const somePart = fc.record({ weightsBytes: count, kvBytes: count, computeBytes: count });
  const both = fc.record({ host: somePart, device: somePart });
  const positive = fc.integer({ min: 1, max: 1e6 });
  const layers = fc.oneof(fc.integer({ min: 0, max: 200 }), fc.constant(Number.POSITIVE_INFINITY));
  const type = fc.constantFrom("f16", "q8_0");
  const observation: fc.Arbitrary<MemoryObservation> = fc.record({
    ...{
      model: fc.string(),
      architecture: fc.string(),
      engine: fc.string(),
      estimated: both,
      reported: both,
    },
    settings: fc.record({
      ...{ slots: positive, contextPerSlot: positive, batch: positive, ubatch: positive },
      ...{ unifiedKv: fc.boolean(), flashAttention: fc.boolean(), offloadKv: fc.boolean() },
      ...{ cacheTypeK: type, cacheTypeV: type, gpuLayers: layers, hostExpertLayers: layers },
      mmap: fc.boolean(),
    }),
  });

  test("comes back as it was", () => {
    fc.assert(
      fc.property(fc.array(observation, { maxLength: 8 }), (known) => {
        expect(decode(encode(known))).toEqual(known);
      }),
    );
  });

  test("what is damaged is refused whole", () => {
    const good = encode([seen, { ...seen, model: "sha256:2" }]);
    const document = (
      change: (value: { version: number; observations: Record<string, unknown>[] }) => void,
    ) => {
      const value = JSON.parse(good);
      change(value);
      return JSON.stringify(value);
    };
    expect(decode(good)).toHaveLength(2);
    const bad = [
      "",
      "null",
      "[]",
      good.slice(0, -1),
      document((value) => Object.assign(value, { version: 2 })),
      document((value) => Object.assign(value, { observations: new Array(513).fill(seen) })),
      ...[
        { model: 1 },
        { engine: "x".repeat(5000) },
        { settings: null },
        { settings: { ...settings, gpuLayers: "all", slots: 0 } },
        { settings: { ...settings, gpuLayers: "some" } },
        { settings: { ...settings, gpuLayers: "all", mmap: 1 } },
        { reported: { host: reported.host } },
        { reported: { ...reported, host: { ...reported.host, kvBytes: -1 } } },
        { estimated: { ...estimated, host: { ...estimated.host, kvBytes: 0.5 } } },
      ].map((change) => document((value) => void Object.assign(value.observations[1] ?? {}, change))),
    ];
    for (const text of bad) expect([text.slice(0, 80), decode(text)]).toEqual([text.slice(0, 80), null]);
  });
});
