/**
 * Who may be asked for a model: models.fetch.allow_hosts, and which addresses belong to the internet. Pure; the
 * configuration checks entries with it, infra/models/ judges every hop of every request with it.
 *
 * Always holds: plain http and addresses of this machine or its network are reached only where the operator has written
 * that very address (or localhost) into the list; a name, whatever it resolves to, never leads there.
 */

export type AllowedHost =
  /** huggingface.co, or *.hf.co for everything below it; https only. */
  | { readonly kind: "name"; readonly name: string; readonly below: boolean; readonly port: number | null }
  /** An address or localhost: the operator's own, http or https. */
  | { readonly kind: "address"; readonly address: string; readonly port: number | null };

const label = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?";
const hostName = new RegExp(`^(?:${label}\\.)+${label}$`);
export const allowedHostForm =
  "a host as in huggingface.co, *.hf.co or huggingface.co:8443, or an IP address of your own";

/** The hub, and where its redirects lead. */
export const allowedHostsDefault = ["huggingface.co", "*.huggingface.co", "*.hf.co"] as const;

/** Null: no such entry. */
export function parseAllowedHost(text: string): AllowedHost | null {
  const parts = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(text);
  const host = (parts?.[1] ?? parts?.[2] ?? (isIPv6(text) ? text : "")).toLowerCase();
  const port = parts?.[3] === undefined ? null : Number(parts[3]);
  if (port !== null && (port < 1 || port > 65_535)) return null;
  const address = addressOf(host);
  if (address !== null || host === "localhost") return { kind: "address", address: address ?? host, port };
  const below = host.startsWith("*.");
  const plain = below ? host.slice(2) : host;
  return hostName.test(plain) && !/\.\d+$/.test(plain) ? { kind: "name", name: plain, below, port } : null;
}

export type HopVerdict =
  /** `own`: the operator wrote this address; where it leads is not asked. */
  { readonly ok: true; readonly own: boolean } | { readonly ok: false; readonly why: string };

/** May this address be asked? `url` as it stands in a reference or a redirect. */
export function judgeHop(url: string, allowed: readonly AllowedHost[]): HopVerdict {
  if (!URL.canParse(url)) return refused("an address that cannot be read");
  const { protocol, hostname, port, username, password } = new URL(url);
  if (protocol !== "https:" && protocol !== "http:") return refused(`the scheme ${protocol} is not fetched`);
  if (username !== "" || password !== "") return refused("an address with credentials in it");
  const host = hostname.toLowerCase().replace(/\.$/, "");
  const asked = port === "" ? (protocol === "https:" ? 443 : 80) : Number(port);
  const address = addressOf(host.replace(/^\[|\]$/g, "")) ?? (host === "localhost" ? host : null);
  const standard = protocol === "https:" ? 443 : 80;
  const fits = (one: AllowedHost): boolean => {
    if (asked !== (one.port ?? standard)) return false;
    if (one.kind === "address") return one.address === address;
    return one.below ? host.endsWith(`.${one.name}`) : host === one.name;
  };
  const entry = allowed.find(fits);
  if (entry === undefined) {
    const shown = port === "" ? host : `${host}:${port}`;
    return refused(`${shown} is not among models.fetch.allow_hosts`);
  }
  if (entry.kind === "address") return { ok: true, own: true };
  return protocol === "https:" ? { ok: true, own: false } : refused(`${host} is asked over https only`);
}

const refused = (why: string): HopVerdict => ({ ok: false, why });

/** [from, prefix length]: IANA's special-purpose registry, and multicast; everything in it is not the internet. */
const specialV4: readonly (readonly [number, number])[] = [
  [v4(0, 0, 0, 0), 8],
  [v4(10, 0, 0, 0), 8],
  [v4(100, 64, 0, 0), 10],
  [v4(127, 0, 0, 0), 8],
  [v4(169, 254, 0, 0), 16],
  [v4(172, 16, 0, 0), 12],
  [v4(192, 0, 0, 0), 24],
  [v4(192, 0, 2, 0), 24],
  [v4(192, 88, 99, 0), 24],
  [v4(192, 168, 0, 0), 16],
  [v4(198, 18, 0, 0), 15],
  [v4(198, 51, 100, 0), 24],
  [v4(203, 0, 113, 0), 24],
  [v4(224, 0, 0, 0), 3],
];

/**
 * Whether an IP address belongs to the internet: not loopback, not a private network, not link-local, not reserved.
 * Sources: the IANA special-purpose address registries for IPv4 and IPv6.
 */
export function isPublicAddress(text: string): boolean {
  const four = parseV4(text);
  if (four !== null) return isPublicV4(four);
  const six = parseV6(text);
  if (six === null) return false;
  const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0] = six;
  const embedded = g * 65_536 + h;
  // An IPv4 address behind a translator (RFC 6052) is what it leads to; one written as IPv6 (RFC 4291) too.
  if (a === 0x64 && b === 0xff9b && c + d + e + f === 0) return isPublicV4(embedded);
  if (a + b + c + d + e === 0 && f === 0xffff) return isPublicV4(embedded);
  if ((a & 0xe000) !== 0x2000) return false;
  if (a === 0x2001 && (b < 0x200 || b === 0xdb8)) return false;
  if (a === 0x2002) return isPublicV4(b * 65_536 + c);
  return !(a === 0x3fff && b < 0x1000);
}

function isPublicV4(address: number): boolean {
  return !specialV4.some(([from, bits]) => address >= from && address < from + 2 ** (32 - bits));
}

function v4(a: number, b: number, c: number, d: number): number {
  return ((a * 256 + b) * 256 + c) * 256 + d;
}

function parseV4(text: string): number | null {
  const parts = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text)?.slice(1).map(Number);
  if (parts === undefined || parts.some((part) => part > 255)) return null;
  const [a = 0, b = 0, c = 0, d = 0] = parts;
  return v4(a, b, c, d);
}

const isIPv6 = (text: string): boolean => parseV6(text) !== null;

/** Eight numbers of 16 bits; null: no IPv6 address (one with a zone is none either). */
function parseV6(text: string): readonly number[] | null {
  if (!/^[0-9a-f:.]{2,45}$/i.test(text) || !text.includes(":") || !URL.canParse(`http://[${text}]/`))
    return null;
  // The parser of addresses writes it in one form: no IPv4 at the end, at most one "::".
  const [head = "", tail] = new URL(`http://[${text}]/`).hostname.slice(1, -1).split("::");
  const groups = (part: string): number[] =>
    part === "" ? [] : part.split(":").map((group) => Number.parseInt(group, 16));
  if (tail === undefined) return groups(head);
  const [left, right] = [groups(head), groups(tail)];
  return [...left, ...Array.from({ length: 8 - left.length - right.length }, () => 0), ...right];
}

/** One spelling of an IP address; null: a name. */
function addressOf(host: string): string | null {
  if (parseV4(host) !== null) return host;
  return isIPv6(host) ? new URL(`http://[${host}]/`).hostname.slice(1, -1) : null;
}
