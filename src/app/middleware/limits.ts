/**
 * Bounds on what comes in: size of a body, and requests of a key. Called by install.ts.
 *
 * Always: at most maxBodyBytes of a body (and one network chunk) are held, whether or not its length was
 * announced; at most limits.rateBucketsMax buckets exist.
 */
import { OrchestratorError } from "../../domain/errors.ts";
import { limits } from "../../domain/limits.ts";
import { fullBucket, type TokenBucket, takeToken } from "../../domain/token-bucket.ts";
import type { VerifiedKey } from "./auth.ts";
import { parseJsonBody } from "./json-body.ts";

const tooLarge = (maxBodyBytes: number): OrchestratorError =>
  new OrchestratorError(
    "PAYLOAD_TOO_LARGE",
    `The body is larger than the ${maxBodyBytes} bytes that are taken here. Send less.`,
    {
      details: { max_bytes: maxBodyBytes },
    },
  );

/** Refuses by the announced length, before a byte of the body is read. */
export function checkContentLength(request: Request, maxBodyBytes: number): void {
  const announced = request.headers.get("content-length");
  if (announced !== null && Number(announced) > maxBodyBytes) throw tooLarge(maxBodyBytes);
}

/**
 * The body as JSON; undefined when there is none. Anything but `application/json` is refused: a page of
 * another origin can send every other type without asking first.
 */
export async function readBody(
  request: Request,
  contentType: string,
  maxBodyBytes: number,
): Promise<unknown> {
  if (request.body === null) return undefined;
  const bytes = await readBytes(request, maxBodyBytes);
  // Null and not undefined: undefined would make Elysia read the body again.
  if (bytes.byteLength === 0) return null;
  if (contentType.trim().toLowerCase() !== "application/json") {
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "Send the body as JSON with `Content-Type: application/json`.",
      {
        details: { in: "headers", field: "content-type" },
      },
    );
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "The body is not UTF-8 text (compressed bodies are not taken).",
      {
        details: { in: "body" },
        cause,
      },
    );
  }
  return parseJsonBody(text);
}

async function readBytes(request: Request, maxBodyBytes: number): Promise<Uint8Array> {
  // An announced length is kept by HTTP itself and was checked before.
  if (request.headers.has("content-length")) return request.bytes();
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of request.body ?? []) {
    length += chunk.byteLength;
    if (length > maxBodyBytes) throw tooLarge(maxBodyBytes);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, length);
}

/** One token bucket for each key that has a rate. */
export class RateLimiter {
  /** In order of last use: the first is the one that was idle longest. */
  readonly #buckets = new Map<string, TokenBucket>();
  readonly #bucketsMax: number;

  constructor(bucketsMax: number = limits.rateBucketsMax) {
    this.#bucketsMax = bucketsMax;
  }

  get size(): number {
    return this.#buckets.size;
  }

  /** Throws RATE_LIMITED when the key has asked too often. */
  admit(key: VerifiedKey, nowMs: number): void {
    if (key.rate === null) return;
    const bucket = this.#buckets.get(key.keyId) ?? fullBucket(key.rate, nowMs);
    const taken = takeToken(bucket, key.rate, nowMs);
    this.#buckets.delete(key.keyId);
    this.#buckets.set(key.keyId, taken.bucket);
    if (this.#buckets.size > this.#bucketsMax) {
      for (const idle of this.#buckets.keys()) {
        this.#buckets.delete(idle);
        break;
      }
    }
    if (!taken.granted) {
      throw new OrchestratorError(
        "RATE_LIMITED",
        `This key may send ${key.rate.perSecond} requests a second and ${key.rate.burst} at once. Wait ${taken.retryAfterMs} ms.`,
        { policyLabel: "rate", retryAfterMs: taken.retryAfterMs },
      );
    }
  }
}
