/**
 * Puts the middleware on an Elysia instance, in its one order: correlation id, percent-encoding, key, rate,
 * announced length; then, once the route is known, the body. Called by router.ts before any route is added:
 * a hook reaches only the routes that come after it.
 *
 * Always: everything that reaches the application passes `onRequest`, also what no route takes, so every
 * response carries the correlation id. Hooks are arrow functions: Elysia reads their source, and a bound
 * function has none. There is no mapResponse hook: it would empty the body of a 404.
 */
import type { AnyElysia } from "elysia";
import type { RequestContexts } from "../../api/request-context.ts";
import type { Clock, Entropy } from "../../ports/clock.ts";
import type { Log } from "../../ports/telemetry.ts";
import { type AuthDeps, authenticate } from "./auth.ts";
import { correlationHeader, openContext } from "./correlation.ts";
import { type KnownRoute, toHttp } from "./errors.ts";
import { checkContentLength, RateLimiter, readBody } from "./limits.ts";
import { checkEncoding, requestPath } from "./request-path.ts";

export interface MiddlewareDeps {
  readonly contexts: RequestContexts;
  readonly clock: Clock;
  readonly entropy: Entropy;
  readonly log: Log;
  readonly auth: AuthDeps;
  /** Told each time that a bound of the key itself holds a request back, by its policy_label. */
  readonly limited: (policy: string) => void;
  /** As it is now. */
  readonly maxBodyBytes: () => number;
  /** Largest body of one path where it differs; null: the route reads and bounds it itself. */
  readonly bodyBytesOf?: (path: string) => number | null | undefined;
  /** Raw paths that need no key. */
  readonly openPaths: ReadonlySet<string>;
}

export function installMiddleware(app: AnyElysia, deps: MiddlewareDeps): void {
  const rates = new RateLimiter();

  const bodyBytesMax = (request: Request): number | null => {
    const own = deps.bodyBytesOf?.(requestPath(request));
    return own === undefined ? deps.maxBodyBytes() : own;
  };

  const admit = (request: Request): void => {
    checkEncoding(request);
    if (!deps.openPaths.has(requestPath(request))) {
      const key = authenticate(request, app.server?.requestIP(request)?.address ?? null, deps.auth);
      const context = deps.contexts.of(request);
      deps.contexts.set(request, { ...context, keyId: key.keyId, admin: key.admin });
      rates.admit(key, context.receivedMs);
    }
    const bytesMax = bodyBytesMax(request);
    if (bytesMax !== null) checkContentLength(request, bytesMax);
  };

  // Asked for on the way to a 404 only; by then all routes are there.
  let known: readonly KnownRoute[] | undefined;
  const routes = (): readonly KnownRoute[] => {
    known ??= app.routes.map(({ method, path }) => ({ method, path }));
    return known;
  };

  app
    .onRequest(({ request, set }) => {
      set.headers[correlationHeader] = openContext(request, deps);
      admit(request);
    })
    .onParse({ as: "global" }, ({ request, contentType }) => {
      const bytesMax = bodyBytesMax(request);
      // Null and not undefined: undefined would make Elysia read the body.
      return bytesMax === null ? null : readBody(request, contentType, bytesMax);
    })
    .onError({ as: "global" }, ({ error, request, set }) => {
      const known = deps.contexts.find(request);
      const correlationId = known?.correlationId ?? deps.entropy.uuid();
      const keyId = known?.keyId ?? null;
      const { status, headers, body } = toHttp(error, {
        request,
        correlationId,
        keyId,
        routes,
        log: deps.log,
        limited: deps.limited,
      });
      set.status = status;
      return new Response(body, { status, headers: { ...headers, [correlationHeader]: correlationId } });
    });
}
