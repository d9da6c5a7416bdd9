/**
 * Entries of the model catalog as data: what is known of a model, whether it may be used, whether its bytes are
 * trusted. services/catalog.ts is the caller; ports/catalog-store.ts keeps the entries.
 *
 * Always holds: what was verified counts for exactly the file that was read (its size and time of change); a model
 * that failed a verification is never trusted, whatever the policy; Retired is an instant, before it the entry is Active.
 */
import { assert } from "./assert.ts";

export const catalogStates = ["Active", "Retired"] as const;
export type CatalogState = (typeof catalogStates)[number];

/** permissive: what was not found wrong may be loaded. strict: only what was verified against a digest that somebody gave. */
export const trustPolicies = ["permissive", "strict"] as const;
export type TrustPolicy = (typeof trustPolicies)[number];

export const referenceKinds = ["signature", "sbom", "license", "other"] as const;
/** Where more is said of a model; kept and shown, not read. */
export interface CatalogReference {
  readonly kind: (typeof referenceKinds)[number];
  readonly uri: string;
}

/** What a client says of a model. */
export interface CatalogRequest {
  readonly id: string;
  /** In the one spelling of domain/model-ref.ts. */
  readonly modelRef: string;
  /** SHA-256 that the file must have; null: nobody said. */
  readonly digest: string | null;
  /** Bytes that it must have; null: nobody said. */
  readonly sizeBytes: number | null;
  readonly tags: readonly string[];
  readonly references: readonly CatalogReference[];
}

/**
 * Why a file is not what it should be, or that it is.
 * given: it has the digest that the entry names · source: none was named, it has the one that its source told ·
 * measured: nobody named one, this is what it has
 */
export const verificationReasons = [
  "given",
  "source",
  "measured",
  "digest",
  "size",
  "header",
  "missing",
  "unreadable",
  "canceled",
] as const;
export type VerificationReason = (typeof verificationReasons)[number];
export type VerificationResult = "done" | "failed" | "canceled";

export const resultOf = (reason: VerificationReason): VerificationResult => {
  if (reason === "given" || reason === "source" || reason === "measured") return "done";
  return reason === "canceled" ? "canceled" : "failed";
};

export interface FileFacts {
  readonly sizeBytes: number;
  /** Milliseconds since the epoch, as the file system tells it. */
  readonly modifiedMs: number;
}

export interface Verification {
  readonly reason: Exclude<VerificationReason, "canceled">;
  /** SHA-256 that the file has; null: it could not be read to its end. */
  readonly digest: string | null;
  /** Null: there was no file. */
  readonly file: FileFacts | null;
  readonly atMs: number;
}

export interface CatalogEntry extends CatalogRequest {
  readonly createdMs: number;
  readonly updatedMs: number;
  /** From then on it is Retired; null: it is not. */
  readonly retiredFromMs: number | null;
  readonly verification: Verification | null;
  /** What the source said of the file's digest when it was fetched. */
  readonly sourceDigest: string | null;
  /** A fetch was asked for and has not come to its end. */
  readonly wanted: boolean;
  /** Why the last fetch did not succeed; null: it did, or there was none. */
  readonly fetchProblem: string | null;
}

export const newEntry = (request: CatalogRequest, nowMs: number): CatalogEntry => ({
  ...request,
  createdMs: nowMs,
  updatedMs: nowMs,
  retiredFromMs: null,
  verification: null,
  sourceDigest: null,
  wanted: false,
  fetchProblem: null,
});

/** Whether the same was asked for: then the entry that is there is the answer. */
export function asksTheSame(a: CatalogRequest, b: CatalogRequest): boolean {
  const shape = ({ id, modelRef, digest, sizeBytes, tags, references }: CatalogRequest): string =>
    JSON.stringify([
      id,
      modelRef,
      digest,
      sizeBytes,
      [...tags].sort(),
      references.map(({ kind, uri }) => `${kind} ${uri}`).sort(),
    ]);
  return shape(a) === shape(b);
}

export const stateOf = ({ retiredFromMs }: CatalogEntry, nowMs: number): CatalogState =>
  retiredFromMs !== null && nowMs >= retiredFromMs ? "Retired" : "Active";

/** `inMs`: how long it stays Active; 0: no longer. */
export function moved(entry: CatalogEntry, state: CatalogState, inMs: number, nowMs: number): CatalogEntry {
  assert(inMs >= 0, "an entry is retired now or later");
  return { ...entry, retiredFromMs: state === "Retired" ? nowMs + inMs : null, updatedMs: nowMs };
}

/** What a file that was read to its end is; `size` and `header` are found before it is read. */
export function judged(
  { digest: given, sourceDigest }: Pick<CatalogEntry, "digest" | "sourceDigest">,
  found: string,
): "given" | "source" | "measured" | "digest" {
  if (given !== null) return given === found ? "given" : "digest";
  if (sourceDigest !== null) return sourceDigest === found ? "source" : "digest";
  return "measured";
}

export type Trust =
  | { readonly trusted: true; readonly because: "verified" | "unrefuted" }
  /** `why`: ends a sentence that begins with the model's name. */
  | { readonly trusted: false; readonly why: string };

/**
 * May a file be loaded? `entry` null: the catalog does not know it. `file`: as it lies there now; null: it does not.
 */
export function trustOf(
  policy: TrustPolicy,
  entry: Pick<CatalogEntry, "id" | "digest" | "verification"> | null,
  file: FileFacts | null,
): Trust {
  const { verification = null } = entry ?? {};
  const same =
    verification?.file != null &&
    verification.file.sizeBytes === file?.sizeBytes &&
    verification.file.modifiedMs === file.modifiedMs;
  if (same && resultOf(verification.reason) === "failed")
    return {
      trusted: false,
      why: `failed its verification (${verification.reason}); put the right file there and verify again`,
    };
  if (same && verification.reason === "given") return { trusted: true, because: "verified" };
  if (policy === "permissive") return { trusted: true, because: "unrefuted" };
  if (entry === null) return { trusted: false, why: "is not in the catalog; models.trust is strict" };
  if (entry.digest === null)
    return { trusted: false, why: `has no digest in its catalog entry ${entry.id}; models.trust is strict` };
  if (verification === null)
    return { trusted: false, why: `was not verified yet; POST /v1/catalog/models/${entry.id}/verify` };
  return {
    trusted: false,
    why: `has changed since it was verified; POST /v1/catalog/models/${entry.id}/verify`,
  };
}
