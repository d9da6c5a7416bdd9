/**
 * Artifacts as data: what a document is, its canonical form, what a search sees of it, which entries may go.
 * services/artifacts.ts is the caller; api/schema/artifacts.ts takes the closed sets from here.
 *
 * Always holds: the same document has the same canonical text, whoever sends it and whenever; created_ms and the
 * owner are no part of it. Absent attachments leave no trace in it, so that a client can reckon the id from
 * {kind, content, tags, parent, metadata} alone.
 */
import canonicalize from "canonicalize";
import { OrchestratorError } from "./errors.ts";
import { limits } from "./limits.ts";

export const artifactKinds = ["plan", "summary", "diff", "trace", "other"] as const;
export type ArtifactKind = (typeof artifactKinds)[number];

/** SHA-256 in lower-case hexadecimal: of the canonical document, or of an attachment's bytes. */
export const digestPattern = "^[0-9a-f]{64}$";

export type ArtifactContent = string | readonly unknown[] | { readonly [name: string]: unknown };

export interface ArtifactDocument {
  readonly kind: ArtifactKind;
  readonly content: ArtifactContent;
  readonly tags: readonly string[];
  /** Id of the artifact that this one goes on from. */
  readonly parent: string | null;
  readonly metadata: Readonly<Record<string, string>>;
  /** Digests of what was uploaded on its own. */
  readonly attachments: readonly string[];
}

/** What a plan or a summary is at most, in bytes of the canonical document; the others may take the whole limit. */
const kindBytesMax: Readonly<Partial<Record<ArtifactKind, number>>> = {
  plan: limits.artifactPlanBytesMax,
  summary: limits.artifactSummaryBytesMax,
};

export const documentBytesMax = (kind: ArtifactKind, artifactBytes: number): number =>
  Math.min(artifactBytes, kindBytesMax[kind] ?? artifactBytes);

/**
 * RFC 8785 (JSON Canonicalization Scheme) of the document; its SHA-256 is the artifact's id.
 * @throws INVALID_PARAMS where a text is not valid Unicode: such a document has no canonical form.
 */
export function canonicalText({ attachments, ...document }: ArtifactDocument): string {
  const whole = attachments.length === 0 ? document : { ...document, attachments };
  try {
    return canonicalize(whole) ?? "";
  } catch (cause) {
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "a text of the document has half a surrogate pair: send valid Unicode",
      { details: { in: "body", field: "content" }, cause },
    );
  }
}

/** The stored bytes again as the document that they were; null: they never were one. */
export function parseDocument(text: string): ArtifactDocument | null {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) return null;
  const { kind, content, tags, parent, metadata, attachments = [] } = value as Record<string, unknown>;
  const known = artifactKinds.find((name) => name === kind);
  const isContent = typeof content === "string" || (typeof content === "object" && content !== null);
  const isMetadata = typeof metadata === "object" && metadata !== null && !Array.isArray(metadata);
  if (known === undefined || !isContent || !isTexts(tags) || !isTexts(attachments) || !isMetadata)
    return null;
  if (parent !== null && typeof parent !== "string") return null;
  return {
    kind: known,
    content: content as ArtifactContent,
    tags,
    parent,
    metadata: metadata as Record<string, string>,
    attachments,
  };
}

const isTexts = (value: unknown): value is string[] =>
  Array.isArray(value) && value.every((item) => typeof item === "string");

/** What a search looks through: every text of content, metadata and tags, lower case, cut at its bound. */
export function searchText({ content, metadata, tags }: ArtifactDocument): string {
  const parts: string[] = [];
  let left = limits.artifactSearchCharsMax;
  const take = (text: string): void => {
    if (left <= 0) return;
    const part = text.slice(0, left).toLowerCase();
    parts.push(part);
    left -= part.length + 1;
  };
  for (const tag of tags) take(tag);
  for (const [name, value] of Object.entries(metadata)) take(`${name} ${value}`);
  // A stack of its own and no recursion: how deep a document nests is bounded only where it came over HTTP.
  const open: unknown[] = [searchedPart(content)];
  while (open.length > 0 && left > 0) {
    const value = open.pop();
    if (typeof value === "string") take(value);
    else if (typeof value === "number") take(String(value));
    else if (Array.isArray(value)) open.push(...value.slice(0, limits.artifactSearchCharsMax).reverse());
    else if (typeof value === "object" && value !== null) {
      for (const [name, member] of Object.entries(value).reverse()) open.push(member, name);
    }
  }
  return parts.join("\n").slice(0, limits.artifactSearchCharsMax);
}

/** Of a transcript its texts: a walk through the ids of its tokens finds nothing that anybody looks for. */
function searchedPart(content: ArtifactContent): unknown {
  if (typeof content === "string" || !("trace_version" in content)) return content;
  const { request, output, ending } = content;
  const text = typeof output === "object" && output !== null && "text" in output ? output.text : null;
  return { request, text, ending };
}

/** All of these must occur, as parts of words too. */
export const searchWords = (query: string): string[] =>
  [...new Set(query.toLowerCase().split(/\s+/u))].filter((word) => word !== "");

/** An entry that nothing refers to, as the collection sees it. */
export interface Collectable {
  /** When it was stored last. */
  readonly storedMs: number;
  readonly sizeBytes: number;
}

export interface CollectionRules {
  /** Null: age alone ends nothing. */
  readonly maxAgeMs: number | null;
  /** How many bytes there are more than may be. */
  readonly overBytes: number;
}

/**
 * Why an unreferenced entry goes now; null: it stays. What came in only just stays in any case: an attachment is
 * there before the document that will name it, and a parent before its child.
 */
export function collected(
  entry: Collectable,
  { maxAgeMs, overBytes }: CollectionRules,
  nowMs: number,
): "age" | "quota" | null {
  const ageMs = nowMs - entry.storedMs;
  if (ageMs < limits.artifactGraceMs) return null;
  if (maxAgeMs !== null && ageMs >= maxAgeMs) return "age";
  return overBytes > 0 ? "quota" : null;
}
