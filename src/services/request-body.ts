/**
 * The body of a submission as a whole: whether it can be told on unchanged, and its digest. services/admission.ts calls it.
 */
import canonicalize from "canonicalize";
import { OrchestratorError } from "../domain/errors.ts";

/**
 * JSON can spell what no engine and no digest can take: half of a surrogate pair, a number beyond all numbers
 * (RFC 7493, I-JSON). Refused, for anything else would be a silent change. The parser has bounded the depth.
 */
export function assertInterchangeable(value: unknown): void {
  if (typeof value === "string" && !value.isWellFormed())
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "the body holds text that is not Unicode (half of a surrogate pair): send whole characters",
      { details: { in: "body" } },
    );
  if (typeof value === "number" && !Number.isFinite(value))
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "the body holds a number that is too large for a double: send a smaller one",
      { details: { in: "body" } },
    );
  if (typeof value !== "object" || value === null) return;
  for (const [name, member] of Object.entries(value)) {
    assertInterchangeable(name);
    assertInterchangeable(member);
  }
}

/** sha256 over the canonical JSON (RFC 8785) of the body, hex. */
export function digestOf(body: unknown): string {
  return new Bun.CryptoHasher("sha256").update(canonicalize(body) ?? "").digest("hex");
}
