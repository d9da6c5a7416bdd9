/** A pool's flags read back as settings, and its model's file as an estimate (ORCHD-MEM-3). */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeGguf } from "../../scripts/model/gguf-writer.ts";
import { buildZeroModel, type ZeroModel } from "../../scripts/model/zero-weights.ts";
import type { PoolSpec } from "../../src/domain/pool.ts";
import { readModelShape } from "../../src/infra/engines/gguf-tensors.ts";
import { LlamaCppReckoner, settingsOf } from "../../src/infra/engines/llamacpp-reckoning.ts";
import { poolSpec } from "../support/replicas.ts";

let folder = "";
let model = "";
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "orchd-reckoning-"));
  model = join(folder, "model.gguf");
  const zeros: ZeroModel = {
    ...{ architecture: "llama", layers: 4, width: 256, feedForward: 768, heads: 8, kvHeads: 2 },
    ...{ headWidth: 32, vocabulary: 2000, context: 4096, type: "Q4_0" },
  };
  await writeGguf(model, buildZeroModel(zeros));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const pool = (more: Partial<PoolSpec> = {}): PoolSpec =>
  poolSpec({
    engine: "llamacpp",
    modelPath: model,
    engineBin: process.execPath,
    slots: 2,
    ctx: null,
    ...more,
  });
const settings = (args: readonly string[], more: Partial<PoolSpec> = {}, onHost = true) =>
  settingsOf(pool({ args, ...more }), readModelShape(model), onHost);

describe("settings", () => {
  test("are those that the engine is started with", () => {
    expect(settings([])).toEqual({
      ...{ slots: 2, contextPerSlot: 4096, ubatch: 512, unifiedKv: false, cacheTypeK: "f16" },
      ...{ cacheTypeV: "f16", flashAttention: true, gpuLayers: 0, hostExpertLayers: 0 },
      ...{ offloadKv: true, mmap: true, batch: expect.any(Number) },
    });
    expect(settings([], { ctx: 512 }).contextPerSlot).toBe(512);
    expect(settings([], {}, false).gpuLayers).toBe(Number.POSITIVE_INFINITY);
    expect(settings([], { workloads: ["embedding"] })).toMatchObject({ batch: 4096, ubatch: 4096 });
  });

  test("follow the operator's flags; the last of two counts", () => {
    expect(
      settings(["-b", "256", "-ub=9", "--ubatch-size=128", "-ctk", "q8_0", "-ctv", "q4_0", "-fa", "off"]),
    ).toMatchObject({
      batch: 256,
      ubatch: 128,
      cacheTypeK: "q8_0",
      cacheTypeV: "q4_0",
      flashAttention: false,
    });
    expect(settings(["-ngl", "3", "-ngl", "7"], {}, false).gpuLayers).toBe(7);
    expect(settings(["-ngl", "auto"], {}, false).gpuLayers).toBe(Number.POSITIVE_INFINITY);
    expect(settings(["--no-kv-unified", "-kvu", "-nkvo", "--no-mmap", "-cmoe"])).toMatchObject({
      ...{ unifiedKv: true, offloadKv: false, mmap: false, hostExpertLayers: Number.POSITIVE_INFINITY },
    });
    expect(settings(["-ncmoe", "2", "-ctk", "nonsense"])).toMatchObject({
      ...{ hostExpertLayers: 2, cacheTypeK: "f16" },
    });
  });
});

describe("a load", () => {
  test("is reckoned from the file, and of another file anew", async () => {
    const reckoner = new LlamaCppReckoner();
    const small = reckoner.reckon(pool({ ctx: 512 }), true);
    const large = reckoner.reckon(pool({ ctx: 4096 }), true);
    expect(small?.estimate.weightsBytes).toBeGreaterThan(100_000);
    expect(large?.estimate.kvBytes).toBeGreaterThan(7 * (small?.estimate.kvBytes ?? 0));
    expect(small?.model).toBe(large?.model ?? "");
    expect(small?.engine).toContain(process.execPath);
  });

  test("of what is no model, or not there, or no engine of this kind, is not known", () => {
    const reckoner = new LlamaCppReckoner();
    const path = join(folder, "broken.gguf");
    writeFileSync(path, "GGUF and then nothing");
    for (const more of [
      { modelPath: path },
      { modelPath: join(folder, "absent.gguf") },
      { engine: "mock", modelPath: null },
    ] as const)
      expect(reckoner.reckon(pool(more), true)).toBeNull();
    expect(reckoner.fileBytes(pool({ modelPath: path }))).toBe(21);
    expect(reckoner.fileBytes(pool({ modelPath: join(folder, "absent.gguf") }))).toBeNull();
  });
});
