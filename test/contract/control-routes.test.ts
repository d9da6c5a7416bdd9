/**
 * The routes that only look (pools, capabilities, metrics, health) in one application with real services over
 * shown replicas: each answer fits its wire model, unknown fields refused.
 */
import { describe, expect, test } from "bun:test";
import type { Static, TSchema } from "@sinclair/typebox";
import { Value } from "@sinclair/typebox/value";
import { Elysia } from "elysia";
import { capabilitiesRoutes } from "../../src/api/capabilities.ts";
import { observabilityRoutes } from "../../src/api/observability.ts";
import { poolsRoutes } from "../../src/api/pools.ts";
import { RequestContexts } from "../../src/api/request-context.ts";
import { Capabilities as CapabilitiesModel } from "../../src/api/schema/capabilities.ts";
import { Healthz, Readyz } from "../../src/api/schema/ops.ts";
import { PoolHealth, PoolList } from "../../src/api/schema/pools.ts";
import { isOrchestratorError, OrchestratorError } from "../../src/domain/errors.ts";
import { PromMetrics } from "../../src/infra/telemetry/prom-metrics.ts";
import { Capabilities } from "../../src/services/capabilities.ts";
import { Pools } from "../../src/services/pools.ts";
import { Readiness } from "../../src/services/readiness.ts";
import { parseExposition } from "../support/prom-parse.ts";
import { failure, identity, poolSpec, ShownReplicas, snapshot } from "../support/replicas.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

let refusal: OrchestratorError | null = null;
const unscored = {
  startsScored: 0,
  intervalCoverage: null,
  deadlinesScored: 0,
  brierScore: null,
  baseRateBrierScore: null,
};
const contexts = new RequestContexts();
const specs = [
  poolSpec({ id: "chat" }),
  poolSpec({ id: "llama", engine: "llamacpp", modelRef: "file:/m/a.gguf", ctx: null }),
];
const control = new ShownReplicas()
  .show("chat", snapshot({ replicaId: "chat-0", state: "ready", pid: 12, identity: identity() }))
  .show("llama", snapshot({ replicaId: "llama-0", state: "circuit_open", lastError: failure() }));
const pools = new Pools({
  pools: specs,
  control,
  queues: { depth: () => ({ interactive: 1, batch: 2, capacity: 16 }), slotsBusy: () => 1 },
  speeds: {
    speed: () => ({ prefillTps: null, decodeTps: 12.5 }),
    totals: () => ({ done: 1, failed: 2, tokensOut: 3 }),
    prediction: () => ({ basis: "assumed", interactive: unscored, batch: unscored }),
  },
});
const app = new Elysia({ normalize: false })
  .onError(({ error, set }) => {
    if (!isOrchestratorError(error)) return;
    set.status = error.status;
    return { code: error.code };
  })
  .use(poolsRoutes({ pools, contexts }))
  .use(
    capabilitiesRoutes({
      capabilities: new Capabilities({
        apiVersion: "0.1.0",
        pools: specs,
        control,
        rateLimits: { requestsPerSecond: null, burst: null, streamsPerKey: 8 },
      }),
    }),
  )
  .use(
    observabilityRoutes({
      metrics: new PromMetrics({ build: { version: "1", commit: "c", bun: "b" } }),
      readiness: new Readiness({
        clock: new VirtualClock(),
        loopLag: { lastMs: () => null },
        probe: () => [{ poolId: "chat", error: refusal }],
      }),
    }),
  );

function get(path: string, admin = true): Promise<Response> {
  const request = new Request(`http://localhost${path}`);
  contexts.set(request, { correlationId: "c", receivedMs: 0, keyId: "k", admin });
  return app.handle(request);
}
async function bodyOf<M extends TSchema>(path: string, model: M, status = 200): Promise<Static<M>> {
  const response = await get(path);
  expect(response.status).toBe(status);
  expect(response.headers.get("content-type")).toStartWith("application/json");
  const body: unknown = await response.json();
  expect([...Value.Errors(model, body)].map((e) => `${e.path} ${e.message}`)).toEqual([]);
  return Value.Cast(model, body);
}

describe("answers fit their wire models", () => {
  test("GET /v1/pools", async () => {
    const body = await bodyOf("/v1/pools", PoolList);
    expect(body.pools.map((p) => [p.id, p.state])).toEqual([
      ["chat", "ready"],
      ["llama", "unavailable"],
    ]);
  });

  test("GET /v1/pools/:id/health", async () => {
    const chat = await bodyOf("/v1/pools/chat/health", PoolHealth);
    expect(chat).toMatchObject({ live: true, ready: true, draining: false, last_error: null });
    const llama = await bodyOf("/v1/pools/llama/health", PoolHealth);
    expect(llama).toMatchObject({ live: false, ready: false, engine_version: null });
    expect(llama.last_error).toEqual({
      cause: "crashed",
      message: "the engine exited with code 1",
      exit_code: 1,
      signal: null,
      log_tail: ["a last line"],
      at_ms: 1000,
    });
    expect(llama.replicas[0]?.last_error).toEqual(llama.last_error);
  });

  test("GET /v1/pools/:id/health shows the engine's last log lines to an admin only", async () => {
    const body = (await (await get("/v1/pools/llama/health", false)).json()) as {
      last_error: { log_tail: string[] };
      replicas: { last_error: { log_tail: string[] } }[];
    };
    expect([body.last_error, body.replicas[0]?.last_error].map((e) => e?.log_tail)).toEqual([[], []]);
  });

  test("GET /v1/capabilities", async () => {
    const body = await bodyOf("/v1/capabilities", CapabilitiesModel);
    expect(body.api_version).toBe("0.1.0");
    expect(body.engines.map((e) => e.engine)).toEqual(["mock", "llamacpp"]);
  });

  test("GET /healthz", async () => {
    expect(await bodyOf("/healthz", Healthz)).toEqual({ status: "ok", uptime_ms: 0 });
  });
});

test("a pool that is not there is 404, an id that cannot be one is not looked for", async () => {
  const missing = await get("/v1/pools/chta/health");
  expect([missing.status, await missing.json()]).toEqual([404, { code: "NOT_FOUND" }]);
  expect((await get("/v1/pools/NO%20POOL/health")).status).toBe(422);
});

test("GET /readyz is 200 or 503, and on 503 says when to come back", async () => {
  refusal = null;
  expect(await bodyOf("/readyz", Readyz)).toEqual({ ready: true, reasons: [] });
  refusal = new OrchestratorError("POOL_UNREADY", "draining", { retryAfterMs: 1_200 });
  expect(await bodyOf("/readyz", Readyz, 503)).toEqual({
    ready: false,
    reasons: ["pool chat: POOL_UNREADY: draining"],
  });
  const { headers } = await get("/readyz");
  expect([headers.get("retry-after"), headers.get("x-backoff-ms")]).toEqual(["2", "1200"]);
  expect(headers.get("cache-control")).toBe("no-store");
});

test("GET /metrics is the exposition under its content type", async () => {
  const response = await get("/metrics");
  expect(response.status).toBe(200);
  expect(response.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8");
  expect(parseExposition(await response.text()).get("build_info")?.samples).toHaveLength(1);
});
