/**
 * What operators do to pools: parse, ask services/pool-drain.ts, answer with the pool's health. Admin keys only. The wire
 * models are in schema/pool-control.ts.
 */
import { Elysia } from "elysia";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { PoolDrains } from "../services/pool-drain.ts";
import type { Pools } from "../services/pools.ts";
import { healthOf } from "./pools.ts";
import type { RequestContexts } from "./request-context.ts";
import { DrainRequest } from "./schema/pool-control.ts";
import { PoolHealth, PoolIdParams } from "./schema/pools.ts";

export interface PoolControlRoutesDeps {
  readonly pools: Pick<Pools, "get" | "health">;
  readonly drains: Pick<PoolDrains, "drain" | "resume">;
  readonly contexts: RequestContexts;
}

export function poolControlRoutes({ pools, drains, contexts }: PoolControlRoutesDeps) {
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
