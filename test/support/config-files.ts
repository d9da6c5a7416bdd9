/** A disk as a table, for the configuration's tests: text is a file, a list is a folder, "#!" begins a program. */
import { type ConfigFlags, type ConfigResult, compileConfig } from "../../src/app/config.ts";
import type { ConfigFiles } from "../../src/app/config-files.ts";
import type { ReadModelKind } from "../../src/app/config-pools.ts";

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
    cwd: "/work",
    home: "/home/ada",
    files: diskOf({ ...machine, ...options.disk }, options.modes),
    readModelKind: options.readModelKind ?? (() => null),
  });
