/**
 * Who asks? Checked before routing, so that an unknown path tells a stranger nothing. Called by install.ts.
 *
 * required       every request carries a key
 * loopback-open  clients on this machine need none; others do
 * off            nobody needs one; the configuration allows it on a loopback address only
 *
 * A browser is the stranger on a loopback address: a page may point its own name at 127.0.0.1 (DNS rebinding)
 * or post across origins. So without a key the Host must name this machine, and an Origin too where there is
 * one, and nothing may have come through a proxy.
 */
import { OrchestratorError } from "../../domain/errors.ts";
import type { Rate } from "../../domain/token-bucket.ts";
import type { AuthMode } from "../config-schema.ts";

export interface VerifiedKey {
  readonly keyId: string;
  readonly admin: boolean;
  /** Null: no limit. */
  readonly rate: Rate | null;
}

/** Asked at each request: the configuration may be read again. */
export interface AuthDeps {
  readonly mode: AuthMode;
  /** The key that was presented, or null when it is none of ours. Compares digests in constant time. */
  verify(presented: string): VerifiedKey | null;
  /** Who works without a key, where that is allowed: whoever sits at the machine is its operator. */
  readonly local: VerifiedKey;
}

const keyCharsMax = 1024;

/** The caller; throws UNAUTHORIZED without a key and FORBIDDEN with a wrong one. */
export function authenticate(request: Request, remoteAddress: string | null, deps: AuthDeps): VerifiedKey {
  if (deps.mode === "off") {
    if (!isLocalToBrowsers(request)) throw new OrchestratorError("FORBIDDEN", notLocal);
    return deps.local;
  }
  const presented = presentedKey(request);
  if (presented !== null) {
    const key = presented.length > keyCharsMax ? null : deps.verify(presented);
    if (key === null) {
      throw new OrchestratorError(
        "FORBIDDEN",
        "This API key is not known here. Check which server it belongs to.",
      );
    }
    return key;
  }
  if (deps.mode === "loopback-open" && isLoopback(remoteAddress) && !cameThroughProxy(request)) {
    if (!isLocalToBrowsers(request)) throw new OrchestratorError("FORBIDDEN", notLocal);
    return deps.local;
  }
  throw new OrchestratorError(
    "UNAUTHORIZED",
    "An API key is needed: send it as `X-API-Key: KEY` or `Authorization: Bearer KEY`.",
  );
}

const notLocal =
  "Without an API key this server answers only requests whose Host (and Origin, if any) is localhost or a loopback address.";

function presentedKey(request: Request): string | null {
  const direct = request.headers.get("x-api-key");
  if (direct !== null && direct !== "") return direct;
  const bearer = /^bearer +(\S+) *$/i.exec(request.headers.get("authorization") ?? "");
  return bearer?.[1] ?? null;
}

function isLoopback(address: string | null): boolean {
  if (address === null) return false;
  return address === "::1" || /^(?:::ffff:)?127(?:\.\d{1,3}){3}$/i.test(address);
}

const cameThroughProxy = (request: Request): boolean =>
  request.headers.has("forwarded") ||
  request.headers.has("x-forwarded-for") ||
  request.headers.has("x-real-ip");

function isLocalToBrowsers(request: Request): boolean {
  const host = request.headers.get("host");
  if (host === null || !isLoopbackHost(host)) return false;
  const origin = request.headers.get("origin");
  if (origin === null) return true;
  const authority = /^https?:\/\/([^/]+)$/i.exec(origin)?.[1];
  return authority !== undefined && isLoopbackHost(authority);
}

/** `localhost`, 127.x.x.x or [::1], with or without a port. */
function isLoopbackHost(authority: string): boolean {
  const host = authority.replace(/:\d{1,5}$/, "").toLowerCase();
  return host === "localhost" || host === "[::1]" || /^127(?:\.\d{1,3}){3}$/.test(host);
}
