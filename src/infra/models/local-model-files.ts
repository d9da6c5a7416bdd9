/**
 * Model files where they lie on this machine. bootstrap.ts makes it; the port says what holds.
 */
import { realpathSync, statSync } from "node:fs";
import { resolve, sep } from "node:path";
import type { FileFacts } from "../../domain/catalog.ts";
import { FetchError, isFetchError, type Located, type ModelFiles } from "../../ports/model-source.ts";
import { sha256OfFile } from "./file-digest.ts";
import { codeOf } from "./part-file.ts";

export interface LocalModelFilesOptions {
  /** Absolute paths. */
  readonly dir: string;
  readonly roots: readonly string[];
  /** What is wrong with a file's header, in one line; null: it is a GGUF file. */
  readonly headerProblem: (path: string) => string | null;
}

export class LocalModelFiles implements ModelFiles {
  constructor(private readonly options: LocalModelFilesOptions) {}

  pathOf(path: string): string {
    return resolve(this.options.dir, path);
  }

  locate(path: string, confined: boolean): Located {
    const { dir, roots } = this.options;
    const absolute = this.pathOf(path);
    const homes = [dir, ...roots];
    if (confined && !homes.some((home) => isBelow(absolute, home))) return { kind: "outside" };
    const file = factsOf(absolute);
    if (file === null) return { kind: "absent", path: absolute };
    // A link within them may lead out of them; the homes themselves may be links.
    const real = realpathSync(absolute);
    if (confined && !homes.some((home) => isBelow(real, realOf(home)))) return { kind: "outside" };
    return { kind: "file", path: absolute, file };
  }

  headerProblem(path: string): string | null {
    return this.options.headerProblem(path);
  }

  async digest(path: string, onBytes: (done: number) => void, signal: AbortSignal): Promise<string> {
    try {
      return await sha256OfFile(path, onBytes, signal);
    } catch (error) {
      if (isFetchError(error) || codeOf(error) === "") throw error;
      throw new FetchError("io", `cannot read ${path} (${codeOf(error)})`, { cause: error });
    }
  }
}

/** Null: there is no file. */
export function factsOf(path: string): FileFacts | null {
  try {
    const found = statSync(path, { throwIfNoEntry: false });
    return found?.isFile() === true ? { sizeBytes: found.size, modifiedMs: found.mtimeMs } : null;
  } catch (error) {
    if (codeOf(error) === "") throw error;
    return null;
  }
}

const isBelow = (path: string, home: string): boolean =>
  path.startsWith(home.endsWith(sep) ? home : home + sep);

function realOf(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    if (codeOf(error) === "") throw error;
    return path;
  }
}
