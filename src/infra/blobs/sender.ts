/**
 * What comes from outside while a blob is received: its bytes, and whoever keeps operations on one blob apart. Both stores of
 * this folder use it, so that a sender that fails is never taken for a disk or a service that does.
 */
import type { Naming } from "../../ports/blob-store.ts";

class SenderFailed extends Error {
  readonly senderFailed = true;
}

/** The same chunks; what they throw comes marked. */
export async function* fromSender(chunks: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
  try {
    yield* chunks;
  } catch (cause) {
    throw new SenderFailed("the sender failed", { cause });
  }
}

/** Null: it is the store's own error. */
export const sendersError = (error: unknown): { readonly thrown: unknown } | null =>
  error instanceof Error && "senderFailed" in error ? { thrown: error.cause } : null;

/** For who has nobody to wait for. */
export const atOnce: Naming = (_, work) => work();
