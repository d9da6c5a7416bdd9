/**
 * GET /metrics, /healthz and /readyz, open to monitoring without a key: ask, shape the answer.
 * The wire models are in schema/ops.ts; /metrics is text and has none.
 */
import { Elysia } from "elysia";
import type { Readiness } from "../services/readiness.ts";
import { Healthz, type HealthzBody, Readyz, type ReadyzBody } from "./schema/ops.ts";

export interface ObservabilityRoutesDeps {
  readonly readiness: Readiness;
  readonly metrics: {
    render(): Promise<string>;
    readonly contentType: string;
  };
}

/** A probe wants to know how it is now. */
const fresh = "no-store";

export function observabilityRoutes({ readiness, metrics }: ObservabilityRoutesDeps) {
  return new Elysia({ name: "observability" })
    .get(
      "/metrics",
      async () =>
        new Response(await metrics.render(), {
          headers: { "content-type": metrics.contentType, "cache-control": fresh },
        }),
      { detail: { tags: ["observability"], summary: "Prometheus exposition, text format 0.0.4" } },
    )
    .get(
      "/healthz",
      ({ set }): HealthzBody => {
        set.headers["cache-control"] = fresh;
        const { status, uptimeMs } = readiness.health();
        return { status, uptime_ms: Math.round(uptimeMs) };
      },
      {
        response: { 200: Healthz },
        detail: { tags: ["observability"], summary: "The process turns its loop" },
      },
    )
    .get(
      "/readyz",
      ({ set, status }) => {
        set.headers["cache-control"] = fresh;
        const { ready, reasons, retryAfterMs } = readiness.readiness();
        const body: ReadyzBody = { ready, reasons: [...reasons] };
        if (retryAfterMs === null) return body;
        // As on every 503.
        set.headers["retry-after"] = String(Math.ceil(retryAfterMs / 1000));
        set.headers["x-backoff-ms"] = String(Math.ceil(retryAfterMs));
        return status(503, body);
      },
      {
        response: { 200: Readyz, 503: Readyz },
        detail: { tags: ["observability"], summary: "At least one pool can take work" },
      },
    );
}
