/**
 * Has a real llama-server load a model and tell what memory it reserved. Called by memory-estimate.ts beside it and
 * test/engine/memory-estimate.test.ts. Always holds: the engine is gone, and reaped, when the promise settles.
 */
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import type { LoadSettings } from "../../src/domain/model-memory.ts";
import { MemoryLog, type MemoryReport } from "../../src/infra/engines/llamacpp-memory.ts";

export const defaultSettings: LoadSettings = {
  slots: 1,
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

const layers = (count: number): string => (Number.isFinite(count) ? String(count) : "999");

/** The engine's flags for these settings; in the order of the interface. */
export function flagsOf(settings: LoadSettings): string[] {
  return [
    ...["-np", String(settings.slots), "-c", String(settings.slots * settings.contextPerSlot)],
    ...["-b", String(settings.batch), "-ub", String(settings.ubatch)],
    settings.unifiedKv ? "--kv-unified" : "--no-kv-unified",
    ...["-ctk", settings.cacheTypeK, "-ctv", settings.cacheTypeV],
    ...["-fa", settings.flashAttention ? "on" : "off"],
    ...["-ngl", layers(settings.gpuLayers)],
    ...(settings.hostExpertLayers > 0 ? ["-ncmoe", layers(settings.hostExpertLayers)] : []),
    ...(settings.offloadKv ? [] : ["-nkvo"]),
    ...(settings.mmap ? [] : ["--load-mode", "none"]),
  ];
}

export interface EngineRun {
  readonly engineBin: string;
  readonly model: string;
  readonly settings: LoadSettings;
  /** 4: buffer by buffer; 3: what the daemon asks for, the breakdown alone. */
  readonly verbosity: 3 | 4;
  readonly more?: readonly string[];
}

export interface EngineMemory {
  readonly report: MemoryReport;
  /** The lines it was made from, and others. */
  readonly log: readonly string[];
}

/** Rejects with the end of the engine's log where it did not load the model. */
export async function engineMemory(run: EngineRun): Promise<EngineMemory> {
  const child = Bun.spawn(
    [
      ...[run.engineBin, "-m", run.model, "--host", "127.0.0.1", "--port", "0", "--offline", "--no-warmup"],
      ...["-t", "1", "--cache-ram", "0", "--log-jsonl", "-lv", String(run.verbosity)],
      ...flagsOf(run.settings),
      ...(run.more ?? []),
    ],
    { stdin: "ignore", stdout: "pipe", stderr: "pipe" },
  );
  // Where it does not understand its flags it says so there; a few lines, read at the end.
  const complaints = new Response(child.stderr).text();
  const memory = new MemoryLog();
  const log: string[] = [];
  try {
    for await (const line of createInterface({ input: Readable.fromWeb(child.stdout as never) })) {
      log.push(line);
      memory.line(line);
      if (/model loaded|listening on/.test(line)) break;
    }
    const report = memory.report();
    if (report !== null) return { report, log };
    child.kill("SIGKILL");
    throw new Error(`the engine told no memory:\n${log.slice(-12).join("\n")}\n${await complaints}`);
  } finally {
    child.kill("SIGKILL");
    await Promise.all([child.exited, complaints]);
  }
}
