/**
 * The way through the beginning of a GGUF file, for gguf-header.ts and gguf-tensors.ts: bounded reads that only move
 * forward, the value types, and the one kind of error. Synchronous; no array is kept unless it is asked for.
 *
 * Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";

/** The file is missing, no GGUF, or cut short. The message is one line and names no folder. */
export class GgufError extends Error {
  readonly ggufErrorKind: "missing" | "invalid";
  constructor(kind: "missing" | "invalid", message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.ggufErrorKind = kind;
  }
}

export function isGgufError(error: unknown): error is GgufError {
  return error instanceof Error && typeof (error as Partial<GgufError>).ggufErrorKind === "string";
}

/** Random access to the file's bytes: up to `length` of them at `offset`, fewer at its end. */
export interface GgufSource {
  readonly sizeBytes: number;
  read(offset: number, length: number): Buffer;
}

export const bounds = {
  headerBytesMax: 256 * 1024 * 1024,
  keysMax: 65_536,
  keyBytesMax: 65_535,
  stringBytesMax: 16 * 1024 * 1024,
  arrayItemsMax: 16 * 1024 * 1024,
  tensorsMax: 1_000_000,
  windowBytes: 256 * 1024,
} as const;

export const STRING = 8;
export const ARRAY = 9;
/** Bytes of each fixed-size value type, by its number; strings and arrays have none. */
export const scalarBytes: readonly (number | null)[] = [1, 1, 2, 2, 4, 4, 4, 1, null, null, 8, 8, 8];

export const invalid = (what: string) => new GgufError("invalid", `not a usable GGUF file: ${what}`);

/** A window over the source that moves forward. */
export class Cursor {
  readonly #source: GgufSource;
  #window: Buffer = Buffer.alloc(0);
  #windowStart = 0;
  at = 0;

  constructor(source: GgufSource) {
    this.#source = source;
  }

  skip(length: number): void {
    this.at += length;
    if (this.at > this.#source.sizeBytes) throw invalid("its header is cut short");
    if (this.at > bounds.headerBytesMax) throw invalid("its header is too long");
  }

  take(length: number): Buffer {
    const start = this.#advance(length);
    return this.#window.subarray(start, start + length);
  }

  u32(): number {
    const start = this.#advance(4);
    return this.#window.readUInt32LE(start);
  }

  /** A count or a length: larger than what is bounded here means nonsense. */
  u64(max: number, what: string): number {
    const start = this.#advance(8);
    // Not as a bigint: a vocabulary has hundreds of thousands of them.
    const value = this.#window.readUInt32LE(start) + this.#window.readUInt32LE(start + 4) * 2 ** 32;
    if (value > max) throw invalid(`${what} of ${value} is out of bounds`);
    return value;
  }

  /** Past an array of strings: a vocabulary, hundreds of thousands of them, hence the loop without calls. */
  skipStrings(items: number): void {
    let window = this.#window;
    let inWindow = this.at - this.#windowStart;
    for (let i = 0; i < items; i++) {
      if (inWindow < 0 || inWindow + 8 > window.length) {
        this.at = this.#windowStart + inWindow;
        inWindow = this.#advance(8);
        window = this.#window;
      }
      const high = (window[inWindow + 7] ?? 0) | (window[inWindow + 6] ?? 0) | (window[inWindow + 5] ?? 0);
      const low =
        (window[inWindow] ?? 0) | ((window[inWindow + 1] ?? 0) << 8) | ((window[inWindow + 2] ?? 0) << 16);
      const length = low + ((window[inWindow + 3] ?? 0) + (window[inWindow + 4] ?? 0) * 256) * 2 ** 24;
      if (high !== 0 || length > bounds.stringBytesMax) throw invalid("a string length is out of bounds");
      inWindow += 8 + length;
    }
    this.at = this.#windowStart + inWindow;
    this.skip(0);
  }

  /** Moves on by `length` bytes that are then in the window; returns where they begin in it. */
  #advance(length: number): number {
    const start = this.at;
    this.skip(length);
    if (start + length > this.#windowStart + this.#window.length) {
      this.#window = this.#source.read(start, Math.max(length, bounds.windowBytes));
      this.#windowStart = start;
      if (this.#window.length < length) throw invalid("its header is cut short");
    }
    return start - this.#windowStart;
  }

  string(max: number, what: string): string {
    return this.take(this.u64(max, what)).toString("utf8");
  }

  skipString(): void {
    this.skip(this.u64(bounds.stringBytesMax, "a string length"));
  }
}

export function skipArray(cursor: Cursor): void {
  const itemType = cursor.u32();
  const items = cursor.u64(bounds.arrayItemsMax, "an array length");
  const bytes = scalarBytes[itemType];
  if (typeof bytes === "number") cursor.skip(items * bytes);
  else if (itemType === STRING) cursor.skipStrings(items);
  else throw invalid(`an array of value type ${itemType}`);
}

export function readScalar(cursor: Cursor, type: number): GgufScalar {
  const bytes = scalarBytes[type];
  if (typeof bytes !== "number") throw invalid(`value type ${type} is unknown`);
  const raw = cursor.take(bytes);
  if (type === 7) return raw[0] !== 0;
  if (type === 6) return raw.readFloatLE(0);
  if (type === 12) return raw.readDoubleLE(0);
  const signed = type === 1 || type === 3 || type === 5 || type === 11;
  if (bytes === 8) return signed ? raw.readBigInt64LE(0) : raw.readBigUInt64LE(0);
  return signed ? raw.readIntLE(0, bytes) : raw.readUIntLE(0, bytes);
}

export type GgufScalar = number | bigint | boolean;

/** Past magic and version; what the file holds. */
export function readOpening(
  cursor: Cursor,
  source: GgufSource,
): { version: number; tensors: number; keys: number } {
  if (source.sizeBytes < 24) throw invalid("it is too short");
  if (cursor.take(4).toString("latin1") !== "GGUF") throw invalid("it does not begin with GGUF");
  const version = cursor.u32();
  if (version !== 2 && version !== 3) throw invalid(`version ${version} is not 2 or 3`);
  const tensors = cursor.u64(bounds.tensorsMax, "a tensor count");
  const keys = cursor.u64(bounds.keysMax, "a key count");
  return { version, tensors, keys };
}

/** Opens the file for one reading. Throws GgufError. */
export function withGguf<T>(path: string, read: (source: GgufSource) => T): T {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (cause) {
    throw new GgufError("missing", "the model file cannot be opened", { cause });
  }
  try {
    return read(sourceOf(fd));
  } finally {
    closeSync(fd);
  }
}

/** The bytes of an open file. Throws GgufError. */
export function sourceOf(fd: number): GgufSource {
  const stat = orInvalid(() => fstatSync(fd));
  if (!stat.isFile()) throw invalid("it is no file");
  return {
    sizeBytes: stat.size,
    read: (offset, length) => {
      const buffer = Buffer.allocUnsafe(length);
      return buffer.subarray(
        0,
        orInvalid(() => readSync(fd, buffer, 0, length, offset)),
      );
    },
  };
}

/** A disk that fails and a network file that is gone make a file as unusable as wrong bytes do. */
function orInvalid<T>(act: () => T): T {
  try {
    return act();
  } catch (cause) {
    const code = (cause as { code?: unknown }).code;
    if (typeof code !== "string") throw cause;
    throw new GgufError("invalid", `the model file cannot be read (${code})`, { cause });
  }
}
