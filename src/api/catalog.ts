/**
 * /v1/catalog/models: parse, ask services/catalog.ts, shape the answer. The wire models are in schema/catalog.ts. For
 * admins only: it names files of this machine and makes it fetch some.
 */
import { Elysia } from "elysia";
import { resultOf } from "../domain/catalog.ts";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { Catalog, CatalogView } from "../services/catalog.ts";
import type { JobView } from "../services/model-jobs.ts";
import type { RequestContexts } from "./request-context.ts";
import {
  CatalogIdParams,
  CatalogList,
  CatalogListQuery,
  CatalogModel,
  type CatalogModelBody,
  CatalogRequest,
  CatalogStateRequest,
} from "./schema/catalog.ts";

export interface CatalogRoutesDeps {
  readonly catalog: Catalog;
  readonly contexts: RequestContexts;
}

const path = "/v1/catalog/models";
const detail = { tags: ["catalog"] };

export function catalogRoutes({ catalog, contexts }: CatalogRoutesDeps) {
  const assertAdmin = (request: Request): void => {
    if (!contexts.caller(request).admin)
      throw new OrchestratorError("FORBIDDEN", "the catalog is for admins only: use an admin's key");
  };
  return new Elysia({ name: "catalog" })
    .post(
      path,
      ({ body, request, status }) => {
        assertAdmin(request);
        const { id, model_ref, digest, size_bytes, tags = [], references = [], fetch = false } = body;
        const asked = {
          id,
          modelRef: model_ref,
          digest: digest ?? null,
          sizeBytes: size_bytes ?? null,
          tags,
          references,
        };
        const { view, fresh } = catalog.add(asked, fetch);
        return status(fresh ? 201 : 200, bodyOf(view));
      },
      { body: CatalogRequest, response: { 200: CatalogModel, 201: CatalogModel }, detail },
    )
    .get(
      path,
      ({ query, request }) => {
        assertAdmin(request);
        const { views, next } = catalog.list({
          tag: query.tag ?? null,
          state: query.state ?? null,
          after: query.cursor ?? null,
          limit: query.limit ?? limits.listPageDefault,
        });
        return { models: views.map(bodyOf), next_cursor: next };
      },
      { query: CatalogListQuery, response: { 200: CatalogList }, detail },
    )
    .get(
      `${path}/:id`,
      ({ params, request }) => {
        assertAdmin(request);
        return bodyOf(catalog.get(params.id));
      },
      { params: CatalogIdParams, response: { 200: CatalogModel }, detail },
    )
    .delete(
      `${path}/:id`,
      async ({ params, request, set }) => {
        assertAdmin(request);
        await catalog.remove(params.id);
        set.status = 204;
      },
      { params: CatalogIdParams, detail },
    )
    .post(
      `${path}/:id/verify`,
      ({ params, request, status }) => {
        assertAdmin(request);
        return status(202, bodyOf(catalog.verify(params.id)));
      },
      { params: CatalogIdParams, response: { 202: CatalogModel }, detail },
    )
    .post(
      `${path}/:id/fetch`,
      ({ params, request, status }) => {
        assertAdmin(request);
        return status(202, bodyOf(catalog.fetch(params.id)));
      },
      { params: CatalogIdParams, response: { 202: CatalogModel }, detail },
    )
    .delete(
      `${path}/:id/fetch`,
      ({ params, request }) => {
        assertAdmin(request);
        return bodyOf(catalog.cancel(params.id));
      },
      { params: CatalogIdParams, response: { 200: CatalogModel }, detail },
    )
    .post(
      `${path}/:id/state`,
      ({ params, body, request }) => {
        assertAdmin(request);
        return bodyOf(catalog.move(params.id, body.state, body.deadline_ms ?? 0));
      },
      { params: CatalogIdParams, body: CatalogStateRequest, response: { 200: CatalogModel }, detail },
    );
}

function bodyOf({ entry, state, located, job, trust, url }: CatalogView): CatalogModelBody {
  const { verification } = entry;
  return {
    id: entry.id,
    model_ref: entry.modelRef,
    digest: entry.digest,
    size_bytes: entry.sizeBytes,
    tags: [...entry.tags],
    references: entry.references.map(({ kind, uri }) => ({ kind, uri })),
    state,
    retired_from_ms: entry.retiredFromMs,
    source: url,
    source_digest: entry.sourceDigest,
    path: located.kind === "outside" ? null : located.path,
    present: located.kind === "file",
    file_bytes: located.kind === "file" ? located.file.sizeBytes : null,
    trusted: trust.trusted,
    trust_problem: trust.trusted ? null : `the model ${entry.id} ${trust.why}`,
    verification:
      verification === null
        ? null
        : {
            result: resultOf(verification.reason) === "done" ? "done" : "failed",
            reason: verification.reason,
            digest: verification.digest,
            at_ms: verification.atMs,
          },
    job: job === null ? null : jobOf(job),
    fetch_problem: entry.fetchProblem,
    created_ms: entry.createdMs,
    updated_ms: entry.updatedMs,
  };
}

const jobOf = ({ kind, state, progress, startedMs }: JobView): NonNullable<CatalogModelBody["job"]> => ({
  kind,
  state,
  phase: progress.phase,
  bytes_done: progress.bytesDone,
  bytes_total: progress.bytesTotal,
  bytes_received: progress.bytesReceived,
  interruptions: progress.interruptions,
  resumable: progress.resumable,
  started_ms: startedMs,
});
