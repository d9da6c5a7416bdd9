/**
 * The file-watch port on inotify, by folders: editors and mounted volumes put another file, or another link, in the place
 * of the one that was there. bootstrap.ts makes it.
 *
 * Always holds: what the system cannot watch or read is an answer, never an error; at most `fileBytesMax` are read.
 */
import { type FSWatcher, readdirSync, readFileSync, realpathSync, statSync, watch } from "node:fs";
import { dirname, join } from "node:path";
import type { FileWatch, Following, Watched } from "../ports/file-watch.ts";

const fileBytesMax = 4 * 1024 * 1024;

export class FolderFileWatch implements FileWatch {
  follow(watched: Watched, stirred: () => void): Following {
    return new Watches(watched, stirred);
  }
}

class Watches implements Following {
  readonly #watchers = new Map<string, FSWatcher>();
  #closed = false;

  constructor(
    private readonly watched: Watched,
    private readonly stirred: () => void,
  ) {
    this.#renew();
  }

  print(): string {
    // A link may lead elsewhere now, and a folder may be there again.
    this.#renew();
    const { file, modelsDir } = this.watched;
    return JSON.stringify([
      file === null ? null : bytesOf(file),
      modelsDir === null ? null : modelsIn(modelsDir),
    ]);
  }

  close(): void {
    this.#closed = true;
    for (const watcher of this.#watchers.values()) watcher.close();
    this.#watchers.clear();
  }

  #renew(): void {
    if (this.#closed) return;
    const { file, modelsDir } = this.watched;
    const folders = new Set<string>();
    if (file !== null) for (const path of [file, realOf(file)]) folders.add(dirname(path));
    if (modelsDir !== null) folders.add(realOf(modelsDir));
    for (const [folder, watcher] of this.#watchers) if (!folders.has(folder)) this.#drop(folder, watcher);
    for (const folder of folders) if (!this.#watchers.has(folder)) this.#add(folder);
  }

  #add(folder: string): void {
    try {
      const watcher = watch(folder, { persistent: false }, () => this.stirred());
      // A folder that went, or too many watches: from time to time is often enough.
      watcher.on("error", () => this.#drop(folder, watcher));
      this.#watchers.set(folder, watcher);
    } catch (error) {
      refused(error, null);
    }
  }

  #drop(folder: string, watcher: FSWatcher): void {
    watcher.close();
    if (this.#watchers.get(folder) === watcher) this.#watchers.delete(folder);
  }
}

function bytesOf(file: string): string | null {
  try {
    const { size } = statSync(file);
    if (size > fileBytesMax) return `${size} bytes`;
    return new Bun.CryptoHasher("sha256").update(readFileSync(file)).digest("hex");
  } catch (error) {
    return refused(error, null);
  }
}

function modelsIn(folder: string): string[] | null {
  try {
    return readdirSync(folder)
      .filter((name) => /\.gguf$/i.test(name))
      .sort()
      .map((name) => `${name} ${sizeOf(join(folder, name))}`);
  } catch (error) {
    return refused(error, null);
  }
}

function sizeOf(path: string): number | null {
  try {
    return statSync(path).size;
  } catch (error) {
    return refused(error, null);
  }
}

function realOf(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    return refused(error, path);
  }
}

/** An adapter's edge: what the operating system refuses is an answer, anything else is a bug. */
function refused<T>(error: unknown, answer: T): T {
  if (error instanceof Error && "code" in error) return answer;
  throw error;
}
