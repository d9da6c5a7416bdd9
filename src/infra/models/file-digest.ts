/** SHA-256 of a file that may be large: read in slices, others get their turn in between. */
import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { limits } from "../../domain/limits.ts";
import { FetchError } from "../../ports/model-source.ts";

/** @throws FetchError aborted; what node:fs throws */
export async function sha256OfFile(
  path: string,
  onBytes: (done: number) => void,
  signal: AbortSignal,
): Promise<string> {
  const file = await open(path, constants.O_RDONLY);
  try {
    const hasher = new Bun.CryptoHasher("sha256");
    const buffer = new Uint8Array(limits.modelHashBytes);
    for (let at = 0; ; ) {
      if (signal.aborted) throw new FetchError("aborted", "the check was called off");
      const { bytesRead } = await file.read(buffer, 0, buffer.byteLength, at);
      if (bytesRead === 0) return hasher.digest("hex");
      hasher.update(buffer.subarray(0, bytesRead));
      at += bytesRead;
      onBytes(at);
      // Reads that are served from memory would otherwise follow each other without a turn for anybody else.
      await new Promise<void>((resolve) => void setImmediate(resolve));
    }
  } finally {
    await file.close();
  }
}
