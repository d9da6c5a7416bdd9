/**
 * What the configuration asks of the disk, as a small reader that tests replace by a table.
 * app/config.ts and its neighbours call it, once, at start; nothing here writes.
 */
import { accessSync, closeSync, constants, openSync, readdirSync, readSync, statSync } from "node:fs";

export interface FileFacts {
  readonly kind: "file" | "directory" | "other";
  /** Permission bits, e.g. 0o600. */
  readonly mode: number;
  readonly executable: boolean;
}

export interface ConfigFiles {
  /** Null where there is nothing at this path, or nothing that this user may see. */
  facts(path: string): FileFacts | null;
  /** Null where it cannot be read, or is longer than `bytesMax`. */
  readText(path: string, bytesMax: number): string | null;
  /** Names in a folder, unsorted; null where it cannot be listed. */
  list(folder: string): readonly string[] | null;
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch (error) {
    return notThere(error, false);
  }
}

/** An adapter's edge: what the operating system refuses is an answer here, anything else is a bug. */
function notThere<T>(error: unknown, answer: T): T {
  if (error instanceof Error && "syscall" in error) return answer;
  throw error;
}

export const systemFiles: ConfigFiles = {
  facts(path) {
    try {
      const stat = statSync(path);
      const kind = stat.isFile() ? "file" : stat.isDirectory() ? "directory" : "other";
      return { kind, mode: stat.mode & 0o777, executable: kind === "file" && isExecutable(path) };
    } catch (error) {
      return notThere(error, null);
    }
  },

  // Read through one bounded buffer: the size that stat tells means nothing for a pipe or /dev/zero.
  readText(path, bytesMax) {
    let descriptor: number | null = null;
    try {
      descriptor = openSync(path, "r");
      const buffer = Buffer.alloc(bytesMax + 1);
      let length = 0;
      while (length <= bytesMax) {
        const read = readSync(descriptor, buffer, length, buffer.length - length, null);
        if (read === 0) return buffer.toString("utf8", 0, length);
        length += read;
      }
      return null;
    } catch (error) {
      return notThere(error, null);
    } finally {
      if (descriptor !== null) closeSync(descriptor);
    }
  },

  list(folder) {
    try {
      return readdirSync(folder);
    } catch (error) {
      return notThere(error, null);
    }
  },
};
