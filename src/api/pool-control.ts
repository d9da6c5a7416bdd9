/**
 * What operators do to pools: parse, ask services/pool-drain.ts or pool-reload.ts, answer with the pool's health. Admin keys only. The wire
 * models are in schema/pool-control.ts.
 */
import { Elysia } from "elysia";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { PoolDrains } from "../services/pool-drain.ts";
import type { PoolReloads } from "../services/pool-reload.ts";
import type { Pools } from "../services/pools.ts";
import { healthOf } from "./pools.ts";
import type { RequestContexts } from "./request-context.ts";
import { DrainRequest, ReloadQuery, ReloadRequest } from "./schema/pool-control.ts";
import { PoolHealth, PoolIdParams } from "./schema/pools.ts";

export interface PoolControlRoutesDeps {
  readonly pools: Pick<Pools, "get" | "health">;
  readonly drains: Pick<PoolDrains, "drain" | "resume">;
  readonly reloads: Pick<PoolReloads, "reload">;
  readonly contexts: RequestContexts;
}

export function poolControlRoutes({ pools, drains, reloads, contexts }: PoolControlRoutesDeps) {
  const assertAdmin = (request: Request): void => {
    if (!contexts.caller(request).admin)
      throw new OrchestratorError("FORBIDDEN", "pools are controlled by admins only: use an admin's key");
  };
  return new Elysia({ name: "pool-control" })
    .post(
      "/v1/pools/:id/drain",
      async ({ params, body, request, status }) => {
        assertAdmin(request);
        pools.get(params.id);
        await drains.drain(params.id, body.deadline_ms ?? limits.drainDeadlineMsDefault);
        return status(202, healthOf(pools.health(params.id), true));
      },
      {
        params: PoolIdParams,
        body: DrainRequest,
        response: { 202: PoolHealth },
        detail: { tags: ["pools"], summary: "Start nothing more in a pool" },
      },
    )
    .post(
      "/v1/pools/:id/reload",
      async ({ params, query, body, request, server, status }) => {
        assertAdmin(request);
        pools.get(params.id);
        const { ended } = reloads.reload(params.id, {
          modelRef: body.new_model_ref,
          digest: body.digest ?? null,
          strategy: body.strategy,
          deadlineMs: body.deadline_ms ?? limits.drainDeadlineMsDefault,
        });
        if (query.wait !== "true") return status(202, healthOf(pools.health(params.id), true));
        // Models take longer to load than a connection may be quiet.
        server?.timeout(request, 0);
        await ended;
        return status(200, healthOf(pools.health(params.id), true));
      },
      {
        params: PoolIdParams,
        query: ReloadQuery,
        body: ReloadRequest,
        response: { 200: PoolHealth, 202: PoolHealth },
        detail: { tags: ["pools"], summary: "Give a pool another model, or start its engines anew" },
      },
    )
    .post(
      "/v1/pools/:id/resume",
      async ({ params, request }) => {
        assertAdmin(request);
        pools.get(params.id);
        await drains.resume(params.id);
        return healthOf(pools.health(params.id), true);
      },
      {
        params: PoolIdParams,
        response: { 200: PoolHealth },
        detail: { tags: ["pools"], summary: "Take up work again in a drained pool" },
      },
    );
}
