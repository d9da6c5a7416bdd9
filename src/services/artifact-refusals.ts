/**
 * What a caller of the artifacts is told when something is not there, too large, or has no room. services/artifacts.ts
 * throws these; the messages say what to do next and name nothing of another key.
 */
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";

export const noArtifact = (): OrchestratorError =>
  new OrchestratorError(
    "NOT_FOUND",
    "no such artifact: it was never stored with this key, or is no longer kept",
  );

export const noAttachment = (): OrchestratorError =>
  new OrchestratorError(
    "NOT_FOUND",
    "no such attachment: it was never sent with this key, or is no longer kept",
  );

export const notThere = (field: string, message: string): OrchestratorError =>
  new OrchestratorError("INVALID_PARAMS", message, { details: { in: "body", field } });

export const tooLarge = (what: string, bytesMax: number): OrchestratorError =>
  new OrchestratorError("PAYLOAD_TOO_LARGE", `${what} may have ${bytesMax} bytes here: send less`, {
    details: { max_bytes: bytesMax },
  });

export const noRoom = (cause: unknown): OrchestratorError =>
  new OrchestratorError(
    "STORAGE_UNAVAILABLE",
    "the room for artifacts is used up by what is still needed: raise artifacts.max_bytes, or wait until something may go",
    { policyLabel: "artifacts", retryAfterMs: limits.artifactRetryMs, cause },
  );

export const tooManyWords = (): OrchestratorError =>
  new OrchestratorError(
    "INVALID_PARAMS",
    `a search takes ${limits.artifactSearchWordsMax} words at most: leave some out`,
    { details: { in: "query", field: "q" } },
  );

export const brokenOff = (cause: unknown): OrchestratorError =>
  new OrchestratorError("INVALID_PARAMS", "the body broke off before its end: send it again", {
    details: { in: "body" },
    cause,
  });

/** While the index is made again, nobody knows that something is not there. */
export const notKnownYet = (): OrchestratorError =>
  new OrchestratorError(
    "STORAGE_UNAVAILABLE",
    "the index of the artifacts is being made again: ask again shortly",
    { policyLabel: "artifacts", retryAfterMs: limits.artifactSettleRetryMs },
  );
