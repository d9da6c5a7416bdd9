/**
 * The correlation id: taken from the client when it is well-formed, else minted; on every response and in every
 * log line and error body. Called first for every request by install.ts, before anything can fail.
 */
import type { RequestContexts } from "../../api/request-context.ts";
import { isCorrelationId } from "../../domain/ids.ts";
import type { Clock, Entropy } from "../../ports/clock.ts";

export const correlationHeader = "X-Correlation-Id";

/** Opens the request's context and returns its correlation id. */
export function openContext(
  request: Request,
  deps: { readonly contexts: RequestContexts; readonly clock: Clock; readonly entropy: Entropy },
): string {
  const given = request.headers.get(correlationHeader);
  const correlationId = given !== null && isCorrelationId(given) ? given : deps.entropy.uuid();
  deps.contexts.set(request, { correlationId, receivedMs: deps.clock.nowMs(), keyId: null, admin: false });
  return correlationId;
}
