/**
 * What the configuration's tests share: a disk as a table (text is a file, a list is a folder, "#!" begins a
 * program), and short ways to a Config or to its problems as lines.
 */
import { type Config, type ConfigFlags, type ConfigResult, compileConfig } from "../../src/app/config.ts";
import type { ConfigFiles } from "../../src/app/config-files.ts";
import type { ReadModelKind } from "../../src/app/config-pools.ts";
import { formatProblem } from "../../src/app/config-problems.ts";

export type DiskTable = Readonly<Record<string, string | readonly string[]>>;

export function diskOf(table: DiskTable, modes: Readonly<Record<string, number>> = {}): ConfigFiles {
  return {
    facts: (path) => {
      const entry = table[path];
      if (entry === undefined) return null;
      const executable = typeof entry === "string" && entry.startsWith("#!");
      return {
        kind: typeof entry === "string" ? "file" : "directory",
        mode: modes[path] ?? 0o600,
        executable,
      };
    },
    readText: (path, bytesMax) => {
      const entry = table[path];
      return typeof entry === "string" && entry.length <= bytesMax ? entry : null;
    },
    list: (folder) => {
      const entry = table[folder];
      return entry === undefined || typeof entry === "string" ? null : entry;
    },
  };
}

/** A machine with an engine, two models and a home. */
export const machine: DiskTable = {
  "/usr/bin/llama-server": "#!elf",
  "/opt/llama-server": "#!elf",
  "/models": ["chat.gguf", "embed.gguf"],
  "/models/chat.gguf": "GGUF",
  "/models/embed.gguf": "GGUF",
};

export interface CompileOptions {
  readonly flags?: ConfigFlags;
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly disk?: DiskTable;
  readonly modes?: Readonly<Record<string, number>>;
  readonly readModelKind?: ReadModelKind;
}

/** Compiles `text` as /etc/orchestratord/config.yaml; null: without a file. */
export const compileText = (text: string | null, options: CompileOptions = {}): ConfigResult =>
  compileConfig({
    flags: options.flags ?? {},
    env: { PATH: "/bin:/usr/bin", ...options.env },
    fileText: text,
    filePath: text === null ? null : "/etc/orchestratord/config.yaml",
    cwd: "/here",
    home: "/home/ada",
    files: diskOf({ ...machine, ...options.disk }, options.modes),
    readModelKind: options.readModelKind ?? (() => null),
  });

export const digest = "ab".repeat(32);

export function valid(result: ConfigResult): Config {
  if (!result.ok) throw new Error(`not valid:\n${result.problems.map(formatProblem).join("\n")}`);
  return result.config;
}
export const compiled = (text: string | null, options?: CompileOptions): Config =>
  valid(compileText(text, options));
export const lines = (result: ConfigResult): string[] =>
  result.ok
    ? []
    : result.problems.map(formatProblem).map((line) => line.replace("/etc/orchestratord/config.yaml", "F"));
export const problemsOf = (text: string | null, options?: CompileOptions): string[] =>
  lines(compileText(text, options));
export const pool = (more: string): string =>
  `pools:\n  - { id: a, model: file:/models/chat.gguf, ${more} }\n`;
export const mockPool = (more: string): string =>
  `pools:\n  - { id: a, engine: mock, model: mock:words, ${more} }\n`;
