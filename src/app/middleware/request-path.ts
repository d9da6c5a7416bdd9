/**
 * The path of a request, read in the one way that all middleware shares: what auth.ts lets through without a
 * key and what errors.ts knows as a route must be the same string.
 */
import { OrchestratorError } from "../../domain/errors.ts";

/**
 * The raw path: neither decoded nor cleaned of dot segments, without the query. Never throws: the URL of an
 * HTTP/1.0 request without Host, or with a Host that is none, has no origin and is a bare path.
 */
export function requestPath(request: Request): string {
  const url = request.url;
  const start = url.startsWith("/") ? 0 : url.indexOf("/", url.indexOf("://") + 3);
  if (start === -1) return "/";
  let end = url.length;
  for (let at = start; at < url.length; at += 1) {
    const char = url.charCodeAt(at);
    if (char === 0x3f /* ? */ || char === 0x23 /* # */) {
      end = at;
      break;
    }
  }
  return url.slice(start, end);
}

/** Refuses a URL whose percent-encoding is not UTF-8: routers and query parsers each guess differently. */
export function checkEncoding(request: Request): void {
  if (!request.url.includes("%")) return;
  try {
    decodeURIComponent(request.url);
  } catch {
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "The URL is not valid percent-encoded UTF-8. Encode each path segment and query value (encodeURIComponent).",
    );
  }
}
