/**
 * The estimate of a model's memory against a real llama-server, on small models of zeros; the large ones and the
 * figures are in docs/memory-estimate.md. What the daemon's own verbosity tells is read too.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { defaultSettings, engineMemory } from "../../scripts/bench/engine-memory.ts";
import { writeGguf } from "../../scripts/model/gguf-writer.ts";
import { buildZeroModel, type ZeroModel } from "../../scripts/model/zero-weights.ts";
import { corrected, learn, noExperience } from "../../src/domain/memory-experience.ts";
import { estimateMemory, type LoadSettings } from "../../src/domain/model-memory.ts";
import { readModelShape } from "../../src/infra/engines/gguf-tensors.ts";
import { engineBin } from "../support/engine.ts";

const mib = 2 ** 20;
const common = { width: 512, heads: 8, kvHeads: 2, headWidth: 64, vocabulary: 4000, context: 8192 } as const;
const cases: readonly (readonly [string, ZeroModel, Partial<LoadSettings>])[] = [
  [
    "llama",
    { ...common, architecture: "llama", layers: 4, feedForward: 1408, type: "Q4_0" },
    { slots: 4, contextPerSlot: 2000, batch: 64, cacheTypeK: "q8_0", cacheTypeV: "q8_0" },
  ],
  [
    "gemma3",
    {
      ...common,
      architecture: "gemma3",
      layers: 7,
      feedForward: 1536,
      type: "F16",
      slidingWindow: 512,
      tied: true,
    },
    { slots: 2, contextPerSlot: 4096 },
  ],
  [
    "qwen3moe",
    {
      ...common,
      architecture: "qwen3moe",
      layers: 2,
      feedForward: 256,
      type: "F16",
      experts: { count: 16, used: 4 },
    },
    { slots: 1, contextPerSlot: 4096, flashAttention: false },
  ],
];

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "memory-estimate-test-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const off = (estimated: number, reported: number): number => Math.abs(estimated / reported - 1);

for (const [name, model, asked] of cases) {
  test(`${name}: the estimate is what the engine reports, part by part`, async () => {
    const path = join(folder, `${name}.gguf`);
    await writeGguf(path, buildZeroModel(model));
    const settings = { ...defaultSettings, ...asked };
    const estimate = estimateMemory(readModelShape(path), settings);
    const run = { engineBin: engineBin(), model: path, settings };

    const { report } = await engineMemory({ ...run, verbosity: 4 });
    expect(report.source).toBe("buffers");
    expect(off(estimate.weightsBytes, report.weightsBytes)).toBeLessThan(0.01);
    expect(off(estimate.kvBytes, report.kvBytes)).toBeLessThan(0.01);
    expect(off(estimate.computeBytes, report.computeBytes)).toBeLessThan(0.15);
    expect(off(estimate.totalBytes, report.totalBytes)).toBeLessThan(0.02);

    const coarse = (await engineMemory({ ...run, verbosity: 3 })).report;
    expect(coarse.source).toBe("breakdown");
    for (const part of ["weightsBytes", "kvBytes", "computeBytes"] as const) {
      // Rounded down to whole MiB, once for each kind of memory.
      expect(report[part] - coarse[part]).toBeGreaterThanOrEqual(-0.01 * mib);
      expect(report[part] - coarse[part]).toBeLessThan(2 * mib);
    }

    const load = { model: path, architecture: model.architecture, engine: "here", settings };
    const experience = learn(noExperience, { ...load, estimated: estimate, reported: report });
    expect(corrected(experience, load, estimate)).toMatchObject({
      ...{ basis: "same-load", totalBytes: report.totalBytes },
    });
  }, 60_000);
}
