/**
 * Model files where they lie on this machine. bootstrap.ts makes it; the port says what holds.
 */
import { realpathSync, type Stats, statSync } from "node:fs";
import { resolve, sep } from "node:path";
import type { FileFacts } from "../../domain/catalog.ts";
import { modelStampOf } from "../../domain/model-ref.ts";
import { FetchError, isFetchError, type Located, type ModelFiles } from "../../ports/model-source.ts";
import { haveSameBytes } from "./file-comparison.ts";
import { sha256OfFile } from "./file-digest.ts";
import { codeOf } from "./part-file.ts";

export interface ModelHomes {
  /** Absolute paths, as they are now. */
  readonly dir: string;
  readonly roots: readonly string[];
}

export class LocalModelFiles implements ModelFiles {
  /** `problemOf`: what is wrong with a file's header, in one line; null: it is a GGUF file. */
  constructor(
    private readonly options: ModelHomes,
    private readonly problemOf: (path: string) => string | null,
  ) {}

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

  stamp(path: string): string | null {
    const found = statOf(path);
    return found === null ? null : modelStampOf(found);
  }

  headerProblem(path: string): string | null {
    return this.problemOf(path);
  }

  async digest(path: string, onBytes: (done: number) => void, signal: AbortSignal): Promise<string> {
    return await reading(path, sha256OfFile(path, onBytes, signal));
  }

  async sameBytes(path: string, other: string, signal: AbortSignal): Promise<boolean> {
    return await reading(`${path} or ${other}`, haveSameBytes(path, other, signal));
  }
}

async function reading<T>(what: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (isFetchError(error) || codeOf(error) === "") throw error;
    throw new FetchError("io", `cannot read ${what} (${codeOf(error)})`, { cause: error });
  }
}

/** Null: there is no file. */
export function factsOf(path: string): FileFacts | null {
  const found = statOf(path);
  return found === null ? null : { sizeBytes: found.size, modifiedMs: found.mtimeMs };
}

function statOf(path: string): Stats | null {
  try {
    const found = statSync(path, { throwIfNoEntry: false });
    return found?.isFile() === true ? found : null;
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
