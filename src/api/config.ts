/** GET /v1/config: ask services/config-status.ts, shape the answer. Admin keys only. The wire model is in schema/config.ts. */
import { Elysia } from "elysia";
import { OrchestratorError } from "../domain/errors.ts";
import type { ConfigStatus } from "../services/config-status.ts";
import type { RequestContexts } from "./request-context.ts";
import { type ConfigStatusBody, ConfigStatus as ConfigStatusModel } from "./schema/config.ts";

export interface ConfigRoutesDeps {
  readonly config: Pick<ConfigStatus, "view">;
  readonly contexts: RequestContexts;
}

export function configRoutes({ config, contexts }: ConfigRoutesDeps) {
  return new Elysia({ name: "config" }).get(
    "/v1/config",
    ({ request }): ConfigStatusBody => {
      if (!contexts.caller(request).admin)
        throw new OrchestratorError(
          "FORBIDDEN",
          "the configuration is shown to admins only: use an admin's key",
        );
      const { source, watched, generation, digest, loadedMs, lastError, atNextStart, pools } = config.view();
      return {
        source,
        watched,
        generation,
        digest,
        loaded_ms: Math.round(loadedMs),
        last_error:
          lastError === null
            ? null
            : { at_ms: Math.round(lastError.atMs), problems: [...lastError.problems] },
        pending_restart: [...atNextStart],
        pools: pools.map(({ poolId, change, problem }) => ({ pool_id: poolId, change, problem })),
      };
    },
    {
      response: { 200: ConfigStatusModel },
      detail: { tags: ["config"], summary: "The configuration in force, and what of the file is not" },
    },
  );
}
