/** The wire models of /v1/artifacts and /v1/attachments (contracts/openapi/data.yaml says the same). Used by api/artifacts.ts. */
import { type Static, Type } from "@sinclair/typebox";
import { artifactKinds, digestPattern } from "../../domain/artifact.ts";
import { limits } from "../../domain/limits.ts";
import { count, epochMs, metadata, nullable, oneOf, queryInteger, strict, text } from "./wire.ts";

const digest = (description: string) => Type.String({ pattern: digestPattern, description });
const kind = () => oneOf(artifactKinds, { description: "What it is." });
const tag = (description: string) =>
  Type.String({ pattern: `^[A-Za-z0-9._:/-]{1,${limits.artifactTagCharsMax}}$`, description });
const tags = () =>
  Type.Array(tag("A label to find it by."), { maxItems: limits.artifactTagsMax, uniqueItems: true });
const attachments = () =>
  Type.Array(digest("Digest of an attachment that was sent before."), {
    maxItems: limits.artifactAttachmentsMax,
    uniqueItems: true,
  });
const content = () =>
  Type.Union([Type.String(), Type.Object({}, { additionalProperties: true }), Type.Array(Type.Unknown())], {
    description: "The document itself: a text, an object or a list.",
  });

export const ArtifactIdParams = strict({ id: digest("The artifact's id.") });
export const AttachmentParams = strict({ digest: digest("SHA-256 of the attachment's bytes.") });
export const ConditionalHeaders = Type.Object({
  "if-none-match": Type.Optional(Type.String({ maxLength: 4096, description: "ETags that the client has." })),
});

export const ArtifactRequest = strict(
  {
    kind: kind(),
    content: content(),
    tags: Type.Optional(tags()),
    parent: Type.Optional(nullable(digest("Id of the artifact that this one goes on from."))),
    metadata: Type.Optional(metadata("Labels that come back with it.")),
    attachments: Type.Optional(attachments()),
  },
  { description: "A document to be kept under its own digest." },
);

export const ArtifactStored = strict(
  {
    id: digest("SHA-256 of the canonical JSON (RFC 8785) of {kind, content, tags, parent, metadata}."),
    kind: kind(),
    digest: digest("The same as the id: what `sha256sum` says of the stored file."),
    created_ms: epochMs("When this key stored it first."),
    tags: tags(),
    size_bytes: count("Bytes of the canonical JSON."),
    parent: nullable(digest("Id of the artifact that this one goes on from.")),
    attachments: attachments(),
  },
  { description: "An artifact without its content." },
);
export type ArtifactStoredBody = Static<typeof ArtifactStored>;

export const ArtifactView = strict(
  {
    ...ArtifactStored.properties,
    content: content(),
    metadata: metadata("Labels that were sent with it."),
  },
  { description: "An artifact, compared with its digest before it was sent." },
);
export type ArtifactViewBody = Static<typeof ArtifactView>;

export const ArtifactList = strict(
  {
    artifacts: Type.Array(ArtifactStored),
    next_cursor: nullable(
      Type.String(),
      "Where to go on; null: that was all. A search may give a short page, even an empty one, and still go on.",
    ),
  },
  { description: "A page, newest first." },
);

export const ArtifactListQuery = strict({
  kind: Type.Optional(kind()),
  tag: Type.Optional(tag("Only those with this tag.")),
  q: Type.Optional(
    text(256, "At most 8 words that must all occur in content, metadata or tags, also inside of words."),
  ),
  limit: Type.Optional(queryInteger(1, limits.listPageMax, "How many at most; 50 where absent.")),
  cursor: Type.Optional(text(64, "next_cursor of the page before.")),
});

export const AttachmentStored = strict(
  {
    digest: digest("SHA-256 of the bytes: what artifacts refer to it by."),
    size_bytes: count("How many bytes came."),
  },
  { description: "Bytes that are kept under their digest." },
);
