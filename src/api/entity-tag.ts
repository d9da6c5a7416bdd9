/** ETags and the question whether a client has what it asks for. api/artifacts.ts and api/capabilities.ts use it. */

/** `digest`: what changes whenever the answer does, without quotes. */
export const etagOf = (digest: string): string => `"${digest}"`;

/** RFC 9110, section 13.1.2: a list of ETags, compared weakly, or `*`. */
export const matches = (header: string | undefined, digest: string): boolean =>
  (header ?? "").split(",").some((part) => ["*", etagOf(digest)].includes(part.trim().replace(/^W\//, "")));
