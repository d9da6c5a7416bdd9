/**
 * /v1/sessions: parse, ask services/sessions.ts, shape the answer. The wire models are in schema/sessions.ts.
 * Another key's session is answered as if it did not exist, unless the caller is an admin.
 */
import { Elysia } from "elysia";
import type { Clock } from "../ports/clock.ts";
import { noSession } from "../services/session-refusals.ts";
import type { SessionView as Session, Sessions } from "../services/sessions.ts";
import type { RequestContext, RequestContexts } from "./request-context.ts";
import { SessionIdParams, SessionView, type SessionViewBody } from "./schema/sessions.ts";

export interface SessionsRoutesDeps {
  readonly sessions: Sessions;
  readonly contexts: RequestContexts;
  readonly clock: Clock;
}

export function sessionsRoutes({ sessions, contexts, clock }: SessionsRoutesDeps) {
  const owned = (id: string, caller: RequestContext & { readonly keyId: string }): Session => {
    const session = sessions.find(id.toLowerCase(), clock.nowMs());
    if (session !== null && (caller.admin || session.keyId === caller.keyId)) return session;
    throw noSession();
  };
  return new Elysia({ name: "sessions" })
    .get("/v1/sessions/:id", ({ params, request }) => viewOf(owned(params.id, contexts.caller(request))), {
      params: SessionIdParams,
      response: { 200: SessionView },
      detail: { tags: ["sessions"] },
    })
    .delete(
      "/v1/sessions/:id",
      async ({ params, request, set }) => {
        await sessions.remove(owned(params.id, contexts.caller(request)).sessionId);
        set.status = 204;
      },
      { params: SessionIdParams, detail: { tags: ["sessions"] } },
    );
}

function viewOf({ sessionId, ttlLeftMs, turns, kv, remaining }: Session): SessionViewBody {
  return {
    session_id: sessionId,
    ttl_ms_remaining: ttlLeftMs,
    turns,
    kv_bytes: kv?.kvBytes ?? null,
    kv_warmth: kv?.warm ?? false,
    tokens_budget_remaining: remaining.tokens,
    time_budget_remaining_ms: remaining.timeMs,
    cost_budget_remaining: remaining.cost,
  };
}
