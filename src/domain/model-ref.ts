/**
 * What a model is called by, parsed: a file, a file of a hub's repository, an address, an entry of the catalog.
 * app/config-pools.ts, services/models.ts and api/catalog.ts read references through here; nobody else takes one apart.
 *
 * Always holds: a reference that parses names one place, holds no credential and no step out of its folder, and
 * gives the same place in the cache whoever parses it; what does not parse comes with a sentence that says what to write.
 */

export type ModelRef =
  /** Absolute, or relative to models.dir. */
  | { readonly kind: "file"; readonly path: string }
  | {
      readonly kind: "hub";
      readonly org: string;
      readonly repo: string;
      /** Branch, tag or commit. */
      readonly revision: string;
      /** Path in the repository. */
      readonly file: string;
    }
  /** Without credentials, query and fragment. */
  | { readonly kind: "url"; readonly url: string }
  | { readonly kind: "catalog"; readonly id: string };

export type RemoteRef = Extract<ModelRef, { kind: "hub" | "url" }>;

export type ParsedRef =
  | { readonly ok: true; readonly ref: ModelRef }
  /** One line: what is wrong, and what to write instead. */
  | { readonly ok: false; readonly problem: string };

/** Tells two files of one path apart, as long as nobody sets a file's time back. */
export const modelStampOf = (file: {
  readonly size: number;
  readonly ino: number;
  readonly mtimeMs: number;
}): string => `${file.size}-${file.ino}-${Math.round(file.mtimeMs)}`;

export const modelRefCharsMax = 2048;
/** What a file system takes as one name. */
const segmentCharsMax = 200;
const hubOrigin = "https://huggingface.co";
const defaultRevision = "main";

export const catalogIdPattern = "^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$";
const catalogId = new RegExp(catalogIdPattern);
const name = /^[A-Za-z0-9_][A-Za-z0-9._-]*$/;
const hubForm = "hf:ORG/REPO/FILE.gguf, or hf:ORG/REPO@REVISION/FILE.gguf";
const urlForm = "https://HOST/PATH/FILE.gguf";
export const modelRefForms = `file:/absolute.gguf, a path relative to models.dir, ${hubForm}, ${urlForm}, or the id of a catalog entry`;

export function parseModelRef(text: string): ParsedRef {
  if (text.length === 0 || text.length > modelRefCharsMax)
    return wrong(`found ${text.length} characters, expected 1 to ${modelRefCharsMax}`);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
  if (/[\u0000-\u001f\u007f]/.test(text) || !text.isWellFormed())
    return wrong("found a control character or half of a surrogate pair, expected a line of text");
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):/.exec(text)?.[1]?.toLowerCase() ?? null;
  const rest = scheme === null ? text : text.slice(scheme.length + 1);
  switch (scheme) {
    case null:
      // An id has no slash and no ending; a file without either is written file:NAME.
      if (catalogId.test(text) && !text.endsWith(".gguf"))
        return { ok: true, ref: { kind: "catalog", id: text } };
      return { ok: true, ref: { kind: "file", path: text } };
    case "file":
      return rest === "" || rest.startsWith("//")
        ? wrong("found file: without a plain path, expected file:/absolute.gguf or file:relative.gguf")
        : { ok: true, ref: { kind: "file", path: rest } };
    case "hf":
      return parseHub(rest);
    case "https":
    case "http":
      return parseUrl(text);
    case "mock":
      return wrong("mock: goes with engine mock only");
    default:
      return wrong(`found the scheme ${scheme}:, expected ${modelRefForms}`);
  }
}

function parseHub(rest: string): ParsedRef {
  const [org = "", repoAndRevision = "", ...segments] = rest.split("/");
  const at = repoAndRevision.indexOf("@");
  const repo = at < 0 ? repoAndRevision : repoAndRevision.slice(0, at);
  const revision = at < 0 ? defaultRevision : repoAndRevision.slice(at + 1);
  const file = segments.join("/");
  const named = [org, repo, revision, ...segments].every(isName);
  if (!named || !isGguf(file)) return wrong(`found ${JSON.stringify(`hf:${rest}`)}, expected ${hubForm}`);
  return { ok: true, ref: { kind: "hub", org, repo, revision, file } };
}

function parseUrl(text: string): ParsedRef {
  const url = URL.canParse(text) ? new URL(text) : null;
  // Not quoted: it may hold a secret.
  if (url === null) return wrong(`found an address that cannot be read, expected ${urlForm}`);
  if (url.username !== "" || url.password !== "")
    return wrong(`found credentials in the address, expected ${urlForm} without them`);
  if (url.search !== "" || text.includes("?") || text.includes("#"))
    return wrong(`found a query or a fragment in the address, which may be a secret; expected ${urlForm}`);
  const segments = url.pathname.slice(1).split("/");
  const plain = segments.every((segment) => {
    const whole = decoded(segment);
    return whole !== null && isPlain(whole) && segment.length <= segmentCharsMax;
  });
  if (!plain || !isGguf(url.pathname)) return wrong(`found an address of no .gguf file, expected ${urlForm}`);
  return { ok: true, ref: { kind: "url", url: url.href } };
}

const wrong = (problem: string): ParsedRef => ({ ok: false, problem });
const isName = (text: string): boolean => name.test(text) && text.length <= segmentCharsMax;
const isGguf = (path: string): boolean => /[^/]\.gguf$/i.test(path);
const isPlain = (segment: string): boolean =>
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
  segment !== "" && segment !== "." && segment !== ".." && !/[/\\\u0000-\u001f\u007f]/.test(segment);

function decoded(segment: string): string | null {
  try {
    return decodeURIComponent(segment);
  } catch {
    return null;
  }
}

export const isRemote = (ref: ModelRef): ref is RemoteRef => ref.kind === "hub" || ref.kind === "url";

/** Where it is asked for. `origin`: of the hub, without a slash at the end. */
export function urlOf(ref: RemoteRef, origin: string = hubOrigin): string {
  if (ref.kind === "url") return ref.url;
  const { org, repo, revision, file } = ref;
  return `${origin}/${org}/${repo}/resolve/${revision}/${file}`;
}

/** Its place below models.dir: the same for every spelling that names the same place. */
export function cachePathOf(ref: RemoteRef): string {
  if (ref.kind === "hub") {
    const { org, repo, revision, file } = ref;
    return `hf/${org}/${revision === defaultRevision ? repo : `${repo}@${revision}`}/${file}`;
  }
  const { protocol, host, pathname } = new URL(ref.url);
  // As it stands in the address: what is escaped there stays escaped, so that no two addresses share a place.
  return `${protocol.slice(0, -1)}/${host.replace(/[[\]]/g, "").replaceAll(":", "_")}${pathname}`;
}

/** An id for a model that nobody has named: the name of its file, as far as an id can hold it. */
export function idOf(ref: RemoteRef): string {
  const name = cachePathOf(ref).split("/").at(-1) ?? "";
  const id = name
    .toLowerCase()
    .replace(/\.gguf$/, "")
    .replace(/[^a-z0-9._-]+/g, "-")
    .replace(/^[^a-z0-9]+/, "")
    .slice(0, 56)
    .replace(/[^a-z0-9]+$/, "");
  return id === "" ? "model" : id;
}

/** The one spelling that entries are compared and stored by. */
export function refText(ref: ModelRef): string {
  switch (ref.kind) {
    case "file":
      return `file:${ref.path}`;
    case "hub": {
      const { org, repo, revision, file } = ref;
      return `hf:${org}/${repo}${revision === defaultRevision ? "" : `@${revision}`}/${file}`;
    }
    case "url":
      return ref.url;
    case "catalog":
      return ref.id;
  }
}
