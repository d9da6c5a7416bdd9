/** What pools need of devices: reckoned, learnt from what engines report, kept, and begun anew (ORCHD-MEM-3). */
import { describe, expect, test } from "bun:test";
import type { LoadSettings, MemoryParts } from "../../src/domain/model-memory.ts";
import type { LoadReckoning } from "../../src/ports/memory.ts";
import { type Lying, ModelNeeds } from "../../src/services/model-needs.ts";
import { poolSpec } from "../support/replicas.ts";
import { RecordingLog } from "./rig.ts";

const parts = (weightsBytes: number, kvBytes: number, computeBytes: number): MemoryParts => ({
  ...{ weightsBytes, kvBytes, computeBytes },
});
const none = parts(0, 0, 0);
const settings: LoadSettings = {
  ...{ slots: 1, contextPerSlot: 512, batch: 64, ubatch: 512, unifiedKv: false },
  ...{ cacheTypeK: "f16", cacheTypeV: "f16", flashAttention: true, gpuLayers: 0 },
  ...{ hostExpertLayers: 0, offloadKv: true, mmap: true },
};
const reckoning = (host: MemoryParts, device: MemoryParts): LoadReckoning => ({
  ...{ model: "/m.gguf 1 2", architecture: "llama", engine: "/llama-server 3 4", settings },
  estimate: {
    ...{ ...host, totalBytes: 0, host, device, mappedBytes: 0, bound: false },
  },
});

/** A text that is kept while a test lasts. */
class Paper {
  text: string | null = null;
  read(): string | null {
    return this.text;
  }
  write(text: string): boolean {
    this.text = text;
    return true;
  }
}

function made(of: LoadReckoning | null, kept = new Paper(), processBytes = 0, size: number | null = null) {
  const log = new RecordingLog();
  return {
    log,
    kept,
    needs: new ModelNeeds({ reckoner: { reckon: () => of, fileBytes: () => size }, kept, log, processBytes }),
  };
}

const llama = poolSpec({ engine: "llamacpp", modelPath: "/m.gguf" });
const onHost: Lying = { devices: ["host"], gpus: [], host: "host" };
const onCards: Lying = { devices: ["gpu-0", "gpu-1"], gpus: ["gpu-0", "gpu-1"], host: null };

describe("what is needed", () => {
  test("on the host all of it, for each replica", () => {
    const { needs } = made(reckoning(parts(100, 20, 3), none));
    expect([...(needs.of(llama, [onHost, onHost]) ?? [])]).toEqual([["host", 246]]);
  });

  test("on cards its part in equal shares, with what a process takes beside; the host's where it is shared out", () => {
    const { needs } = made(reckoning(parts(10, 0, 1), parts(101, 20, 4)), new Paper(), 7);
    expect([...(needs.of(llama, [onCards]) ?? [])]).toEqual([
      ["gpu-0", 63 + 7],
      ["gpu-1", 63 + 7],
    ]);
    expect([...(needs.of(llama, [{ ...onCards, host: "host" }]) ?? [])][2]).toEqual(["host", 11]);
  });

  test("of a mock pool what its configuration says, on each of its devices", () => {
    const { needs } = made(null);
    const mock = { tokenMs: 1, prefillMsPerToken: 0, loadMs: 0, memoryBytes: 5, faults: [] };
    const both = { devices: ["host", "gpu-0"], gpus: ["gpu-0"], host: "host" };
    expect([...(needs.of(poolSpec({ mock, replicas: 3 }), [both, both, both]) ?? [])]).toEqual([
      ["host", 15],
      ["gpu-0", 15],
    ]);
  });

  test("of a file that is not understood is its size and a fifth", () => {
    const { needs } = made(null, new Paper(), 7, 1000);
    expect(needs.of(llama, [onHost])?.get("host")).toBe(1200);
    expect(needs.of(llama, [onCards])?.get("gpu-1")).toBe(607);
  });

  test("is not known of a file that is not there", () => {
    expect(made(null).needs.of(llama, [onHost])).toBeNull();
  });
});

describe("what an engine reports", () => {
  test("counts from then on, also for the next process", () => {
    const of = reckoning(parts(100, 20, 3), none);
    const { needs, kept, log } = made(of);
    needs.learn(llama, onHost, { host: parts(110, 20, 4), device: none });
    expect(needs.of(llama, [onHost])?.get("host")).toBe(134);
    expect(made(of, kept).needs.of(llama, [onHost])?.get("host")).toBe(134);
    expect(log.of("model_memory_reported")[0]).toMatchObject({ expected_bytes: 0, reported_bytes: 134 });
  });

  test("the same again is not written again", () => {
    const { needs, kept } = made(reckoning(parts(100, 20, 3), none));
    needs.learn(llama, onHost, { host: parts(110, 20, 4), device: none });
    kept.text = "untouched";
    needs.learn(llama, onHost, { host: parts(110, 20, 4), device: none });
    expect(kept.text).toBe("untouched");
  });

  test("nothing is no report", () => {
    const { needs, kept } = made(reckoning(parts(100, 20, 3), none));
    needs.learn(llama, onHost, { host: none, device: none });
    expect(kept.text).toBeNull();
  });

  test("damaged experience is begun anew, with a line in the log", () => {
    const kept = new Paper();
    kept.text = '{"version":1,"observations":[{"model":';
    const { needs, log } = made(reckoning(parts(100, 20, 3), none), kept);
    expect(log.of("memory_experience_damaged")).toHaveLength(1);
    expect(needs.of(llama, [onHost])?.get("host")).toBe(123);
    needs.learn(llama, onHost, { host: parts(110, 20, 4), device: none });
    expect(needs.of(llama, [onHost])?.get("host")).toBe(134);
  });
});
