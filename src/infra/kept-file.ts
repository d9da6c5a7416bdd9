/**
 * A text in a file of the state folder that is replaced as a whole: written beside, synced, renamed. Made by
 * app/bootstrap-residency.ts.
 */
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import type { KeptText } from "../ports/memory.ts";

export class KeptFile implements KeptText {
  constructor(
    private readonly path: string,
    private readonly failed: (message: string) => void,
  ) {}

  read(): string | null {
    try {
      return readFileSync(this.path, "utf8");
    } catch (error) {
      if (!isSystemError(error)) throw error;
      if (error.code !== "ENOENT") this.failed(`${this.path} cannot be read: ${error.message}`);
      return null;
    }
  }

  write(text: string): boolean {
    const beside = `${this.path}.new`;
    try {
      const file = openSync(beside, "w", 0o600);
      try {
        writeFileSync(file, text);
        fsyncSync(file);
      } finally {
        closeSync(file);
      }
      renameSync(beside, this.path);
      return true;
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.failed(`${this.path} cannot be written: ${error.message}`);
      return false;
    }
  }
}

const isSystemError = (error: unknown): error is Error & { readonly code: string } =>
  error instanceof Error && "code" in error;
