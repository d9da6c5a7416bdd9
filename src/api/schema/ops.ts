/**
 * Wire models of /healthz and /readyz (ORCHD-OBS-2, ORCHD-OBS-3). api/observability.ts answers with them;
 * contracts/openapi/control.yaml repeats them. /metrics is text and has no model.
 */
import { type Static, Type } from "@sinclair/typebox";
import { milliseconds, oneOf, strict } from "./wire.ts";

export const Healthz = strict(
  { status: oneOf(["ok"]), uptime_ms: milliseconds("Since the process started.") },
  { description: "The process turns its loop." },
);
export type HealthzBody = Static<typeof Healthz>;

export const Readyz = strict(
  {
    ready: Type.Boolean({ description: "Whether at least one pool can take work." }),
    reasons: Type.Array(Type.String(), { description: "Why not, pool by pool; empty when ready." }),
  },
  { description: "Whether work can be taken now." },
);
export type ReadyzBody = Static<typeof Readyz>;
