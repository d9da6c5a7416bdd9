/** Whether two files that may be large have the same bytes: read up to the first difference, others get their turn in between. */
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { limits } from "../../domain/limits.ts";
import { FetchError } from "../../ports/model-source.ts";

/** @throws FetchError aborted; what node:fs throws */
export async function haveSameBytes(path: string, other: string, signal: AbortSignal): Promise<boolean> {
  const one = await open(path, constants.O_RDONLY);
  try {
    const two = await open(other, constants.O_RDONLY);
    try {
      return await areSame(one, two, signal);
    } finally {
      await two.close();
    }
  } finally {
    await one.close();
  }
}

async function areSame(one: FileHandle, two: FileHandle, signal: AbortSignal): Promise<boolean> {
  const [a, b] = [Buffer.alloc(limits.modelHashBytes), Buffer.alloc(limits.modelHashBytes)];
  for (let at = 0; ; ) {
    if (signal.aborted) throw new FetchError("aborted", "the comparison was called off");
    const [fromOne, fromTwo] = await Promise.all([filled(one, a, at), filled(two, b, at)]);
    if (fromOne !== fromTwo || !a.subarray(0, fromOne).equals(b.subarray(0, fromTwo))) return false;
    if (fromOne === 0) return true;
    at += fromOne;
    // Reads that are served from memory would otherwise follow each other without a turn for anybody else.
    await new Promise<void>((resolve) => void setImmediate(resolve));
  }
}

/** @returns bytes read: fewer than the buffer has only at the end of the file. */
async function filled(file: FileHandle, buffer: Buffer, from: number): Promise<number> {
  let count = 0;
  while (count < buffer.byteLength) {
    const { bytesRead } = await file.read(buffer, count, buffer.byteLength - count, from + count);
    if (bytesRead === 0) break;
    count += bytesRead;
  }
  return count;
}
