/**
 * GET /v1/capabilities: ask services/capabilities.ts, shape the answer. The wire model is in
 * schema/capabilities.ts.
 */
import { Elysia } from "elysia";
import type {
  Capabilities,
  CapabilitiesView,
  EngineCapability,
  ModelCapability,
  PoolCapability,
  RateLimits,
} from "../services/capabilities.ts";
import { etagOf, matches } from "./entity-tag.ts";
import { ConditionalHeaders } from "./schema/artifacts.ts";
import { type CapabilitiesBody, Capabilities as CapabilitiesModel } from "./schema/capabilities.ts";
import { ErrorEnvelope } from "./schema/errors.ts";

export interface CapabilitiesRoutesDeps {
  readonly capabilities: Capabilities;
}

export function capabilitiesRoutes({ capabilities }: CapabilitiesRoutesDeps) {
  return new Elysia({ name: "capabilities" }).get(
    "/v1/capabilities",
    ({ headers, set }) => {
      const body = bodyOf(capabilities.view());
      const digest = new Bun.CryptoHasher("sha256").update(JSON.stringify(body)).digest("hex");
      // It may be kept, and is asked for again each time: what runs changes at any moment.
      const about = { etag: etagOf(digest), "cache-control": "private, no-cache" };
      if (matches(headers["if-none-match"], digest))
        return new Response(null, { status: 304, headers: about }) as never;
      Object.assign(set.headers, about);
      return body;
    },
    {
      headers: ConditionalHeaders,
      response: { 200: CapabilitiesModel, 401: ErrorEnvelope, 403: ErrorEnvelope },
      detail: { tags: ["capabilities"], summary: "What can be asked for, from what runs now" },
    },
  );
}

const bodyOf = (view: CapabilitiesView): CapabilitiesBody => ({
  api_version: view.apiVersion,
  engines: view.engines.map((engine) => engineOf(engine, view.rateLimits)),
  pools: view.pools.map(poolOf),
  models: view.models.map(modelOf),
});

const engineOf = (engine: EngineCapability, limits: RateLimits): CapabilitiesBody["engines"][number] => ({
  engine: engine.engine,
  engine_version: engine.engineVersion,
  engine_versions: [...engine.engineVersions],
  ctx_max: engine.ctxMax,
  max_tokens_out: engine.maxTokensOut,
  concurrency: engine.concurrency,
  supported_workloads: [...engine.workloads],
  rate_limits: {
    requests_per_second: limits.requestsPerSecond,
    burst: limits.burst,
    streams_per_key: limits.streamsPerKey,
  },
  features: [...engine.features],
});

const poolOf = (pool: PoolCapability): CapabilitiesBody["pools"][number] => ({
  id: pool.id,
  engine: pool.engine,
  engine_version: pool.engineVersion,
  engine_versions: [...pool.engineVersions],
  model_ref: pool.modelRef,
  state: pool.state,
  ready: pool.ready,
  slots_total: pool.slotsTotal,
  ctx: pool.ctx,
  max_tokens_out: pool.maxTokensOut,
  sampler_profile_version: pool.samplerProfileVersion,
  workloads: [...pool.workloads],
  features: [...pool.features],
});

const modelOf = (model: ModelCapability): CapabilitiesBody["models"][number] => ({
  model_ref: model.modelRef,
  pool_ids: [...model.poolIds],
  size_bytes: model.sizeBytes,
  params: model.params,
  ctx_train: model.ctxTrain,
  state: model.state,
});
