/** Where a bench finds what it measures, and where it leaves its figures. */
import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { Command } from "commander";

const root = resolve(import.meta.dir, "../..");

export interface BenchFiles {
  readonly binary: string;
  readonly model: string;
  readonly engineBin: string;
}

/** A bench's command line with the daemon it measures; its own options come on top. */
export const daemonBench = (name: string): Command =>
  new Command(name).option("--binary <file>", "orchestratord", join(root, "dist/orchestratord"));

/** The same with the engine and the model behind the daemon: `opts()` has the `BenchFiles`. */
export const engineBench = (name: string): Command =>
  daemonBench(name)
    .option("--model <file>", "GGUF file", join(root, ".engine/models/demo.gguf"))
    .option("--engine-bin <file>", "llama-server", join(root, ".engine/bin/llama-server"));

/** Whole or not at all. @returns the file's path. */
export function writeFigures(name: string, figures: unknown): string {
  const folder = join(root, "bench-results");
  mkdirSync(folder, { recursive: true });
  const file = join(folder, `${name}.json`);
  writeFileSync(`${file}.tmp`, `${JSON.stringify(figures, null, 1)}\n`);
  renameSync(`${file}.tmp`, file);
  return file;
}
