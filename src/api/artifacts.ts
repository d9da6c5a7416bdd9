/**
 * /v1/artifacts and /v1/attachments: parse, ask services/artifacts.ts, shape the answer. The wire models are in
 * schema/artifacts.ts. Another key's are answered as if they did not exist, unless the caller is an admin.
 *
 * Attachments come as they are, whatever Content-Type says: the middleware reads no body at `attachmentsPath`.
 */
import { Elysia } from "elysia";
import type { ArtifactDocument } from "../domain/artifact.ts";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { IndexedEntry, IndexPlace } from "../ports/artifact-index.ts";
import type { OpenBlob } from "../ports/blob-store.ts";
import type { Artifact, Artifacts } from "../services/artifacts.ts";
import { etagOf, matches } from "./entity-tag.ts";
import type { RequestContexts } from "./request-context.ts";
import {
  ArtifactIdParams,
  ArtifactList,
  ArtifactListQuery,
  ArtifactRequest,
  ArtifactStored,
  type ArtifactStoredBody,
  ArtifactView,
  type ArtifactViewBody,
  AttachmentParams,
  AttachmentStored,
  ConditionalHeaders,
} from "./schema/artifacts.ts";

export interface ArtifactsRoutesDeps {
  readonly artifacts: Artifacts;
  readonly contexts: RequestContexts;
}

/** The one path whose bodies are not JSON. */
export const attachmentsPath = "/v1/attachments";
export const artifactsPath = "/v1/artifacts";
/** What it is called can never change; who may see it can, so shared caches keep out. */
const forever = "private, max-age=31536000, immutable";

export function artifactsRoutes({ artifacts, contexts }: ArtifactsRoutesDeps) {
  return new Elysia({ name: "artifacts" })
    .post(
      "/v1/artifacts",
      async ({ body, request, set, status }) => {
        const document = { tags: [], parent: null, metadata: {}, attachments: [], ...body };
        const { entry, fresh } = await artifacts.put(contexts.caller(request), document as ArtifactDocument);
        set.headers.etag = etagOf(entry.id);
        return status(fresh ? 201 : 200, storedOf(entry));
      },
      {
        body: ArtifactRequest,
        response: { 200: ArtifactStored, 201: ArtifactStored },
        detail: { tags: ["artifacts"] },
      },
    )
    .get(
      "/v1/artifacts",
      async ({ query, request }) => {
        const { entries, next } = await artifacts.list(contexts.caller(request), {
          kind: query.kind ?? null,
          tag: query.tag ?? null,
          search: query.q ?? null,
          before: query.cursor === undefined ? null : placeOf(query.cursor),
          limit: query.limit ?? limits.listPageDefault,
        });
        return {
          artifacts: entries.map(storedOf),
          next_cursor: next === null ? null : `${next.createdMs}-${next.ordinal}`,
        };
      },
      { query: ArtifactListQuery, response: { 200: ArtifactList }, detail: { tags: ["artifacts"] } },
    )
    .get(
      "/v1/artifacts/:id",
      async ({ params, headers, request, set }) => {
        const caller = contexts.caller(request);
        const { id } = artifacts.head(caller, params.id);
        if (matches(headers["if-none-match"], id)) return notModified(id) as never;
        Object.assign(set.headers, cacheHeaders(id));
        return viewOf(await artifacts.get(caller, id));
      },
      {
        params: ArtifactIdParams,
        headers: ConditionalHeaders,
        response: { 200: ArtifactView },
        detail: { tags: ["artifacts"] },
      },
    )
    .post(
      attachmentsPath,
      async ({ request, status }) => {
        const chunks = request.body ?? new Blob([]).stream();
        const announced = request.headers.get("content-length");
        const bytes = announced === null ? null : Number(announced);
        const { digest, sizeBytes, fresh } = await artifacts.attach(contexts.caller(request), chunks, bytes);
        return status(fresh ? 201 : 200, { digest, size_bytes: sizeBytes });
      },
      {
        parse: "none",
        response: { 200: AttachmentStored, 201: AttachmentStored },
        detail: { tags: ["artifacts"] },
      },
    )
    .get(
      `${attachmentsPath}/:digest`,
      async ({ params, headers, request }) => {
        const caller = contexts.caller(request);
        const { id, sizeBytes } = artifacts.headAttachment(caller, params.digest);
        if (matches(headers["if-none-match"], id)) return notModified(id);
        const about = {
          ...cacheHeaders(id),
          // Whatever somebody put there, no browser shall run it.
          "content-type": "application/octet-stream",
          "content-disposition": "attachment",
          "x-content-type-options": "nosniff",
        };
        if (request.method === "HEAD")
          return new Response(null, { headers: { ...about, "content-length": String(sizeBytes) } });
        const blob = await artifacts.openAttachment(caller, id);
        return new Response(streamOf(blob), {
          headers: { ...about, "content-length": String(blob.sizeBytes) },
        });
      },
      { params: AttachmentParams, headers: ConditionalHeaders, detail: { tags: ["artifacts"] } },
    );
}

function streamOf({ chunks, close }: OpenBlob): ReadableStream<Uint8Array> {
  const walk = chunks[Symbol.asyncIterator]();
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await walk.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    // A client that leaves: the file is closed.
    async cancel() {
      await walk.return?.();
      await close();
    },
  });
}

const cacheHeaders = (id: string) => ({ etag: etagOf(id), "cache-control": forever });
const notModified = (id: string): Response => new Response(null, { status: 304, headers: cacheHeaders(id) });

const storedOf = ({
  id,
  kind,
  createdMs,
  tags,
  sizeBytes,
  parent,
  attachments,
}: IndexedEntry): ArtifactStoredBody => ({
  id,
  kind: kind ?? "other",
  digest: id,
  created_ms: createdMs,
  tags: [...tags],
  size_bytes: sizeBytes,
  parent,
  attachments: [...attachments],
});

const viewOf = ({ entry, document }: Artifact): ArtifactViewBody => ({
  ...storedOf(entry),
  content: document.content as ArtifactViewBody["content"],
  metadata: { ...document.metadata },
});

function placeOf(cursor: string): IndexPlace {
  const [, createdMs, ordinal] = /^(\d{1,16})-(\d{1,16})$/.exec(cursor) ?? [];
  if (createdMs !== undefined && ordinal !== undefined)
    return { createdMs: Number(createdMs), ordinal: Number(ordinal) };
  throw new OrchestratorError(
    "INVALID_PARAMS",
    "cursor is not one that this server gave out: use next_cursor as it came",
    { details: { field: "cursor" } },
  );
}
