/**
 * GET /v1/pools/{id}/logs: parse, ask services/engine-logs.ts, shape the answer. Admin keys only. The wire models are
 * in schema/engine-logs.ts.
 */
import { Elysia } from "elysia";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { EngineLogs, LogFollower, ReplicaLog } from "../services/engine-logs.ts";
import type { Streams } from "../services/streams.ts";
import type { RequestContexts } from "./request-context.ts";
import { EngineLogQuery, EngineLogs as EngineLogsModel } from "./schema/engine-logs.ts";
import { PoolIdParams } from "./schema/pools.ts";
import { StreamHeaders } from "./schema/tasks.ts";

export interface EngineLogsRoutesDeps {
  readonly engineLogs: EngineLogs;
  /** Its bound on open streams holds for followers too. */
  readonly streams: Pick<Streams, "reserve">;
  readonly contexts: RequestContexts;
}

export function engineLogsRoutes({ engineLogs, streams, contexts }: EngineLogsRoutesDeps) {
  return new Elysia({ name: "engine-logs" }).get(
    "/v1/pools/:id/logs",
    ({ params, query, headers, request }) => {
      const { admin, keyId } = contexts.caller(request);
      if (!admin)
        throw new OrchestratorError(
          "FORBIDDEN",
          "what engines log is shown to admins only: use an admin's key",
        );
      const { replica = null, lines = limits.engineLogLinesShownDefault } = query;
      if (query.follow !== "1")
        return { pool_id: params.id, replicas: engineLogs.tail(params.id, replica, lines).map(logOf) };
      const lastEventId = headers["last-event-id"];
      const after = lastEventId !== undefined ? Number(lastEventId) : (query.after ?? null);
      const place = streams.reserve(keyId);
      try {
        const follower = engineLogs.follow(params.id, replica, lines, after, place);
        // Never: a stream beside JSON of the same status is more than Elysia's types can say.
        return streamOf(follower, request.method === "HEAD") as never;
      } catch (error) {
        place.release();
        throw error;
      }
    },
    {
      params: PoolIdParams,
      query: EngineLogQuery,
      headers: StreamHeaders,
      response: { 200: EngineLogsModel },
      detail: { tags: ["pools"], summary: "What the engines of a pool log" },
    },
  );
}

const logOf = ({ replicaId, first, lines }: ReplicaLog) => ({ id: replicaId, first, lines: [...lines] });

function streamOf(follower: LogFollower, headOnly: boolean): Response {
  if (headOnly) follower.leave();
  const stream = headOnly
    ? null
    : new ReadableStream<Uint8Array>({
        type: "direct",
        pull: (controller) => follower.pump(controller),
        cancel: () => follower.leave(),
      });
  return new Response(stream, {
    headers: {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache, no-transform",
      "x-accel-buffering": "no",
    },
  });
}
