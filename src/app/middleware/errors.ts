/**
 * The one place where an error becomes HTTP: status, envelope, headers. Installed by install.ts as Elysia's
 * error hook; listen.ts uses `internalError` for what escapes even that.
 *
 * Always: the body is the envelope of ORCHD-HTTP-2; the message of an unexpected error is logged with its stack
 * and never shown. Nothing here throws.
 */
import { NotFoundError, ParseError, ValidationError } from "elysia";
import type { ErrorEnvelopeBody } from "../../api/schema/errors.ts";
import { isOrchestratorError, OrchestratorError } from "../../domain/errors.ts";
import { limits } from "../../domain/limits.ts";
import type { Log } from "../../ports/telemetry.ts";
import { requestPath } from "./request-path.ts";
import { explain } from "./validation-message.ts";

export interface KnownRoute {
  readonly method: string;
  /** As Elysia writes it: `/v1/tasks/:id`. */
  readonly path: string;
}

export interface HttpError {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

export interface ErrorContext {
  readonly request: Request;
  readonly correlationId: string;
  /** Null where no key was accepted. */
  readonly keyId: string | null;
  readonly routes: () => readonly KnownRoute[];
  readonly log: Log;
  readonly limited: (policy: string) => void;
}

export function toHttp(error: unknown, context: ErrorContext): HttpError {
  const known = asOrchestratorError(error, context);
  if (known !== null) {
    // Not the message: it may quote what the client sent.
    context.log.info("request_refused", {
      correlation_id: context.correlationId,
      key_id: context.keyId,
      method: context.request.method,
      path: requestPath(context.request),
      code: known.code,
      status: known.status,
      policy_label: known.policyLabel,
      engine: known.engine,
      pool_id: known.poolId,
      retry_after_ms: known.retryAfterMs,
      human: `Refused with ${known.code}.`,
    });
    // Every other bound is counted where it refuses, under the engine that was meant.
    if (known.code === "RATE_LIMITED" && known.policyLabel !== undefined) context.limited(known.policyLabel);
    return render(known, context.correlationId);
  }
  context.log.error(
    "request_failed",
    {
      correlation_id: context.correlationId,
      method: context.request.method,
      path: requestPath(context.request),
      human: "A request met a bug: see the stack.",
    },
    error,
  );
  return internalError(context.correlationId);
}

export function internalError(correlationId: string): HttpError {
  return render(
    new OrchestratorError(
      "INTERNAL",
      "Something went wrong here that should not have. The log has the details under this correlation id.",
    ),
    correlationId,
  );
}

/** Null: a bug. */
function asOrchestratorError(error: unknown, context: ErrorContext): OrchestratorError | null {
  // First Elysia's own: its NotFoundError carries a code of our table too.
  if (error instanceof NotFoundError) return notFound(context);
  if (error instanceof ParseError) {
    // What the body reader threw arrives as its cause.
    if (isOrchestratorError(error.cause)) return error.cause;
    return new OrchestratorError("INVALID_PARAMS", "The body could not be read. Send it again, whole.", {
      cause: error.cause,
    });
  }
  if (error instanceof ValidationError) return error.type === "response" ? null : invalidParams(error);
  return isOrchestratorError(error) && error.code !== "INTERNAL" ? error : null;
}

function invalidParams(error: ValidationError): OrchestratorError {
  // Typed loosely by Elysia; absent when another schema library refused, of which there is none.
  const refusal = error.valueError as
    | { path?: string; type?: number; schema?: unknown; value?: unknown }
    | undefined;
  const { message, details } = explain({
    in: error.type,
    path: refusal?.path ?? "",
    kind: refusal?.type ?? -1,
    schema: refusal?.schema ?? {},
    value: refusal?.value,
  });
  return new OrchestratorError("INVALID_PARAMS", message, { details });
}

function notFound(context: ErrorContext): OrchestratorError {
  const { request } = context;
  const allowed = allowedMethods(requestPath(request), context.routes());
  if (allowed.length === 0 || allowed.includes(request.method)) {
    return new OrchestratorError(
      "NOT_FOUND",
      "There is nothing at this path. GET /docs lists what there is.",
    );
  }
  return new OrchestratorError("METHOD_NOT_ALLOWED", `This path takes ${allowed.join(", ")}.`, {
    details: { allowed },
  });
}

function allowedMethods(path: string, routes: readonly KnownRoute[]): string[] {
  const methods = new Set<string>();
  const segments = path.replace(/\/$/, "").split("/");
  for (const route of routes) {
    const pattern = route.path.split("/");
    const matches =
      pattern.length === segments.length &&
      pattern.every((part, at) => (part.startsWith(":") ? segments[at] !== "" : part === segments[at]));
    if (!matches) continue;
    methods.add(route.method);
    if (route.method === "GET") methods.add("HEAD");
  }
  return [...methods].sort();
}

function render(error: OrchestratorError, correlationId: string): HttpError {
  const { status } = error;
  const comesBack = status === 429 || status === 503;
  const retryAfterMs = error.retryAfterMs ?? (comesBack ? limits.retryMsDefault : undefined);
  const envelope: ErrorEnvelopeBody = {
    code: error.code,
    message: error.message,
    retriable: error.retriable,
    ...(retryAfterMs === undefined ? {} : { retry_after_ms: retryAfterMs }),
    ...(error.policyLabel === undefined ? {} : { policy_label: error.policyLabel }),
    ...(error.engine === undefined ? {} : { engine: error.engine }),
    ...(error.poolId === undefined ? {} : { pool_id: error.poolId }),
    ...(error.details === undefined ? {} : { details: error.details }),
    correlation_id: correlationId,
  };
  const headers: Record<string, string> = { "Content-Type": "application/json" };
  if (comesBack && retryAfterMs !== undefined) {
    headers["Retry-After"] = String(Math.ceil(retryAfterMs / 1000));
    headers["X-Backoff-Ms"] = String(Math.ceil(retryAfterMs));
  }
  if (error.code === "UNAUTHORIZED") headers["WWW-Authenticate"] = "Bearer";
  const allowed = error.code === "METHOD_NOT_ALLOWED" ? error.details?.allowed : undefined;
  if (Array.isArray(allowed)) headers.Allow = allowed.join(", ");
  return { status, headers, body: jsonOf(envelope) };
}

/** `details` come from everywhere: what JSON cannot say must not take the answer with it. */
function jsonOf(envelope: ErrorEnvelopeBody): string {
  try {
    return JSON.stringify(envelope);
  } catch {
    const { details: _unsayable, ...rest } = envelope;
    return JSON.stringify(rest);
  }
}
