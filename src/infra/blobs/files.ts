/**
 * The steps of the file system that the blob folder is made of, one by one, so that a test can cut the power
 * between any two of them. folder-blob-store.ts calls them; systemFiles are the real ones.
 */
import { constants } from "node:fs";
import { mkdir, open, readdir, readFile, rename, stat, unlink } from "node:fs/promises";
import { limits } from "../../domain/limits.ts";

export interface FileWriter {
  write(bytes: Uint8Array): Promise<void>;
  /** The content is on the disk. */
  sync(): Promise<void>;
  close(): Promise<void>;
}

export interface FileReader {
  readonly sizeBytes: number;
  /** From the beginning, every time it is called. */
  chunks(): AsyncIterable<Uint8Array>;
  close(): Promise<void>;
}

export interface Files {
  /** One level; nothing where it is there, ENOENT where its parent is not. */
  makeFolder(path: string): Promise<void>;
  /** The entries of the folder are on the disk. */
  syncFolder(path: string): Promise<void>;
  /** A new file; one that is there already is an error. */
  create(path: string): Promise<FileWriter>;
  rename(from: string, to: string): Promise<void>;
  /** @returns whether there was something. */
  remove(path: string): Promise<boolean>;
  read(path: string): Promise<Uint8Array | null>;
  open(path: string): Promise<FileReader | null>;
  stat(path: string): Promise<{ readonly sizeBytes: number; readonly modifiedMs: number } | null>;
  /** Names in a folder, none where it is not there. */
  names(path: string): Promise<readonly string[]>;
}

const folderMode = 0o700;
const fileMode = 0o600;

export const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "";

async function unless<T>(code: string, work: Promise<T>, answer: T): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (codeOf(error) === code) return answer;
    throw error;
  }
}

export const systemFiles: Files = {
  async makeFolder(path) {
    await unless("EEXIST", mkdir(path, { mode: folderMode }), undefined);
  },
  async syncFolder(path) {
    const folder = await open(path, constants.O_RDONLY);
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  },
  async create(path) {
    const file = await open(path, "wx", fileMode);
    return {
      async write(bytes) {
        for (let at = 0; at < bytes.byteLength; )
          at += (await file.write(bytes, at, bytes.byteLength - at)).bytesWritten;
      },
      sync: () => file.sync(),
      close: () => file.close(),
    };
  },
  rename,
  remove: (path) =>
    unless(
      "ENOENT",
      unlink(path).then(() => true),
      false,
    ),
  read: (path) => unless<Uint8Array | null>("ENOENT", readFile(path), null),
  async open(path) {
    const file = await unless("ENOENT", open(path, constants.O_RDONLY), null);
    if (file === null) return null;
    const { size } = await file.stat();
    return {
      sizeBytes: size,
      async *chunks() {
        for (let at = 0; ; ) {
          // A buffer of its own for each piece: whoever takes it may still be sending it.
          const buffer = new Uint8Array(limits.blobChunkBytes);
          const { bytesRead } = await file.read(buffer, 0, buffer.byteLength, at);
          if (bytesRead === 0) return;
          at += bytesRead;
          yield buffer.subarray(0, bytesRead);
        }
      },
      close: () => file.close(),
    };
  },
  async stat(path) {
    const found = await unless("ENOENT", stat(path), null);
    return found === null ? null : { sizeBytes: found.size, modifiedMs: Math.round(found.mtimeMs) };
  },
  names: (path) => unless<readonly string[]>("ENOENT", readdir(path), []),
};
