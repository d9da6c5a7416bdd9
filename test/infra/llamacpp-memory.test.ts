/** Recorded logs of llama-server (b11669; older ones by their form) as figures of memory. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { MemoryLog, type MemoryReport } from "../../src/infra/engines/llamacpp-memory.ts";

const mib = 2 ** 20;
const recorded = (name: string): string[] =>
  readFileSync(join(import.meta.dir, "fixtures", name), "utf8")
    .trimEnd()
    .split("\n");

function read(...lines: readonly string[]): MemoryReport | null {
  const memory = new MemoryLog();
  for (const line of lines) memory.line(line);
  return memory.report();
}
function told(...lines: readonly string[]): MemoryReport {
  const report = read(...lines);
  if (report === null) throw new Error("nothing was told");
  return report;
}
/** Rounded as the log does. */
const inMib = ({ weightsBytes, kvBytes, computeBytes }: MemoryReport["host"]): number[] =>
  [weightsBytes, kvBytes, computeBytes].map((bytes) => Number((bytes / mib).toFixed(2)));

describe("a recorded load", () => {
  test("on the host, JSON lines", () => {
    const report = told(...recorded("llama-server-memory-host.jsonl"));
    expect(report.source).toBe("buffers");
    expect(inMib(report)).toEqual([20.08, 12.01, 1.19]);
    expect(inMib(report.device)).toEqual([0, 0, 0]);
    expect(report.devices.map(({ name }) => name)).toEqual(["CPU_Mapped", "CPU"]);
    expect(report.totalBytes).toBe(report.weightsBytes + report.kvBytes + report.computeBytes);
  });

  test("split between host and device, plain lines, two caches", () => {
    const report = told(...recorded("llama-server-memory-split.txt"));
    expect(inMib(report.host)).toEqual([59.98, 23.24, 3.97]);
    expect(inMib(report.device)).toEqual([47.9, 18, 3.22]);
    expect(report.devices.map(({ name, kind }) => `${name} ${kind}`)).toEqual([
      "CPU_Mapped host",
      "CPU_REPACK host",
      "RPC0[127.0.0.1:19251] device",
      "CPU host",
    ]);
  });

  test("where only the fitting step tells, in whole MiB", () => {
    const report = told(...recorded("llama-server-memory-breakdown.jsonl"));
    expect(report.source).toBe("breakdown");
    expect(inMib(report.host)).toEqual([17 + 42, 23, 3]);
    expect(inMib(report.device)).toEqual([47, 18, 3]);
    expect(report.devices.map(({ name }) => name)).toEqual(["RPC0", "Host", "CPU_REPACK"]);
  });
});

describe("other forms", () => {
  test("an older engine's words", () => {
    const report = told(
      "llm_load_tensors: ggml ctx size =    0.34 MiB",
      "llm_load_tensors:        CPU buffer size =   245.62 MiB",
      "llm_load_tensors:      CUDA0 buffer size =  5049.71 MiB",
      "llm_load_tensors:      CUDA1 buffer size =  1000.00 MiB",
      "llama_kv_cache_init:      CUDA0 KV buffer size =   640.00 MiB",
      "llama_kv_cache_init:  CUDA_Host KV buffer size =    64.00 MiB",
      "llama_new_context_with_model: KV self size  =  640.00 MiB, K (f16):  320.00 MiB, V (f16):  320.00 MiB",
      "llama_new_context_with_model:  CUDA_Host  output buffer size =     0.98 MiB",
      "llama_new_context_with_model:      CUDA0 compute buffer size =  1104.00 MiB",
      "llama_new_context_with_model:  CUDA_Host compute buffer size =    32.01 MiB",
    );
    expect(inMib(report.device)).toEqual([6049.71, 640, 1104]);
    expect(inMib(report.host)).toEqual([245.62, 64.98, 32.01]);
  });

  test("a decimal comma, megabytes, recurrent states and adapters", () => {
    const report = told(
      "load_tensors:        CPU model buffer size =   636,18 MiB",
      "llama_memory_recurrent:        CPU RS buffer size =     1.19 MiB",
      "llama_adapter_lora_init_impl:      CUDA0 LoRA buffer size =     2.00 MiB",
      "llama_context:  CPU compute buffer size = 3 MB",
    );
    expect(inMib(report.host)).toEqual([636.18, 1.19, 2.86]);
    expect(inMib(report.device)).toEqual([2, 0, 0]);
  });
});

describe("what is made again", () => {
  const load = [
    "load_tensors:   CPU_Mapped model buffer size =    10.00 MiB",
    "llama_context: constructing llama_context",
    "llama_kv_cache:        CPU KV buffer size =     4.00 MiB",
    "sched_reserve:        CPU compute buffer size =     2.00 MiB",
  ];

  test("a plan replaces the one before it", () => {
    const report = told(...load, "sched_reserve:        CPU compute buffer size =     3.00 MiB");
    expect(inMib(report)).toEqual([10, 4, 3]);
  });

  test("a model that wakes up is told anew, and not before it is there", () => {
    const wakes = "srv    load_model: loading model 'model.gguf'";
    expect(inMib(told(...load, wakes, ...load))).toEqual([10, 4, 2]);
    expect(read(...load, wakes)).toBeNull();
  });

  test("what the fitting step reserved is gone before the load", () => {
    const fitted = "common_fit_params: fitting params to free memory took 0.11 seconds";
    expect(inMib(told(...load, fitted, ...load))).toEqual([10, 4, 2]);
  });

  test("a draft model and a projector come on top", () => {
    const report = told(
      ...load,
      ...load.map((line) => line.replace("10.00", "1.00")),
      "alloc_compute_meta:        CPU compute buffer size =     7.00 MiB",
    );
    expect(inMib(report)).toEqual([11, 8, 11]);
  });
});

describe("what says nothing", () => {
  test("of memory, or not enough, tells nothing", () => {
    expect(read()).toBeNull();
    expect(read("main: model loaded", "load_tensors: CPU model buffer size = 10.00 MiB")).toBeNull();
    expect(read("{", '{"type":"log"}', "{}", "[]", "null", '{"type":"log","msg":7}')).toBeNull();
    expect(read("x: CPU model buffer size = many MiB", "x: CPU compute buffer size = 1.0 GiB")).toBeNull();
  });

  test("a breakdown in another form is left alone", () => {
    const row = { kind: "host", name: "Host", self: 3, model: 1, context: 1, compute: 1 };
    const breakdown = (data: unknown): string => JSON.stringify({ type: "fit_memory_breakdown", data });
    expect(read(breakdown({ unit: "MiB", rows: [row] }))).not.toBeNull();
    for (const data of [
      null,
      { unit: "GiB", rows: [row] },
      { unit: "MiB", rows: [] },
      { unit: "MiB", rows: [null] },
      { unit: "MiB", rows: [{ ...row, model: "1" }] },
      { unit: "MiB", rows: [{ ...row, context: -1 }] },
      { unit: "MiB", rows: new Array(65).fill(row) },
    ]) {
      expect(read(breakdown(data))).toBeNull();
    }
  });

  test("an endless log costs bounded memory, an endless line none", () => {
    const memory = new MemoryLog();
    for (let i = 0; i < 5000; i++) memory.line(`load_tensors: D${i} model buffer size = 1.00 MiB`);
    memory.line(`sched_reserve: CPU compute buffer size = 1.00 MiB${" ".repeat(20_000)}`);
    expect(memory.report()).toBeNull();
  });
});
