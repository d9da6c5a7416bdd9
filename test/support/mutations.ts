/**
 * Requests that are almost right, out of a seed: a valid request is taken apart and put together wrong, in its
 * structure (fields dropped, doubled, renamed, retyped, nested anew), in its text (cut, spliced, raw bytes) and in
 * its headers. The same seed makes the same requests.
 */

export type Random = () => number;

/** mulberry32: 32 bits of state, enough to tell ten thousand requests apart. */
export function randomFrom(seed: number): Random {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface MutatedRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array<ArrayBuffer> | null;
}

type Fields = { [name: string]: unknown };

const below = (random: Random, bound: number): number => Math.floor(random() * bound);
function pick<T>(random: Random, from: readonly T[]): T {
  const found = from[below(random, from.length)];
  if (found === undefined) throw new Error("nothing to pick from");
  return found;
}

const uuidOf = (random: Random): string => {
  const hex = (digits: number) =>
    Array.from({ length: digits }, () => below(random, 16).toString(16)).join("");
  return `${hex(8)}-${hex(4)}-4${hex(3)}-8${hex(3)}-${hex(12)}`;
};

const bases: readonly ((random: Random) => Fields)[] = [
  () => ({ prompt: "Once upon a time", max_tokens: 4 }),
  (random) => ({
    task_id: uuidOf(random),
    session_id: uuidOf(random),
    prompt: "Once upon a time",
    workload: "completion",
    model_ref: "mock:words",
    engine: "mock",
    ctx: 256,
    priority: "batch",
    seed: 7,
    determinism: "best_effort",
    sampler_profile_version: "v1",
    sampling: { temperature: 0.5, top_p: 0.9, top_k: 10, min_p: 0.1, stop: ["\n\n", "."] },
    max_tokens: 8,
    deadline_ms: 60_000,
    expected_tokens: 4,
    kv_hint: "cold",
    placement: { mode: "pin", pin_pool_id: "words" },
    on_disconnect: "continue",
    metadata: { team: "docs", "a/b": "c" },
  }),
  (random) => ({
    task_id: uuidOf(random),
    messages: [
      { role: "system", content: "Be brief." },
      { role: "user", content: "Hello" },
    ],
    max_tokens: 4,
  }),
  (random) => ({ task_id: uuidOf(random), inputs: ["a quiet river", "seven engines"] }),
  () => ({ query: "bread", inputs: ["bicycles", "bread and salt"], workload: "rerank" }),
  (random) => ({
    task_id: uuidOf(random),
    prompt: "List:",
    max_tokens: 2,
    sampling: { json_schema: { type: "array", items: { type: "string", maxLength: 3 } } },
  }),
];

const nested = (depth: number, leaf: unknown): unknown =>
  depth === 0 ? leaf : depth % 2 === 0 ? [nested(depth - 1, leaf)] : { a: nested(depth - 1, leaf) };
/** Stands in the text for a number that JSON.stringify would not write. */
const rawNumbers = [
  "1e999",
  "-1e999",
  "1e-999",
  "-0",
  "9007199254740993",
  "1E+2",
  "0.1e1",
  "123456789".repeat(40),
];
const rawMark = "\u0001raw:";

const strange: readonly ((random: Random) => unknown)[] = [
  () => null,
  () => true,
  () => false,
  () => 0,
  () => -1,
  () => 1.5,
  () => 2 ** 31,
  () => 2 ** 53,
  () => Number.MAX_VALUE,
  (random) => rawMark + pick(random, rawNumbers),
  () => "",
  () => " ",
  () => "x",
  () => "7",
  () => "x".repeat(70_000),
  () => "\ud800",
  () => "a\udfff\ud800b",
  () => "\u0000",
  () => "\u202eabc\u2066",
  () => "👩‍👩‍👧 e\u0301 ﷽ 🏳️‍🌈",
  () => "\r\n\r\ndata: x\n\n",
  () => "../../../etc/passwd",
  () => "__proto__",
  () => [],
  () => {
    return {};
  },
  () => [null],
  () => [[]],
  () => Array.from({ length: 1500 }, () => "x"),
  () => ({ a: { b: { c: 1 } } }),
  () => JSON.parse('{"__proto__":{"prompt":"x"},"constructor":{"prototype":1}}') as unknown,
  (random) => nested(10 + below(random, 90), "deep"),
  () => Object.fromEntries(Array.from({ length: 200 }, (_, index) => [`k${index}`, "v"])),
];

/** Every object and array within, the value itself first. */
function containers(value: unknown): (Fields | unknown[])[] {
  if (typeof value !== "object" || value === null) return [];
  const members = Array.isArray(value) ? value : Object.values(value);
  return [value as Fields | unknown[], ...members.flatMap(containers)];
}

const slip = (random: Random, name: string): string => {
  const at = below(random, name.length + 1);
  return pick(random, [
    name.slice(0, at) + name.slice(at + 1),
    `${name.slice(0, at)}_${name.slice(at)}`,
    name.toUpperCase(),
    `${name} `,
    `${name}\u0000`,
    "__proto__",
    "constructor",
    "toString",
    "",
    "\ud800",
    "n".repeat(3000),
  ]);
};

function mutate(random: Random, body: Fields): unknown {
  const owner = pick(random, containers(body));
  if (Array.isArray(owner)) {
    const at = below(random, owner.length + 1);
    pick(random, [
      () => owner.splice(at, 1),
      () => owner.splice(at, 0, pick(random, strange)(random)),
      () => owner.push(...owner),
    ])();
    return body;
  }
  const names = Object.keys(owner);
  const name = names.length === 0 ? "prompt" : pick(random, names);
  const value = owner[name];
  const put = (key: string, to: unknown) =>
    Object.defineProperty(owner, key, { value: to, enumerable: true, configurable: true, writable: true });
  pick<() => unknown>(random, [
    () => delete owner[name],
    () => put(name, pick(random, strange)(random)),
    () => put(name, pick(random, strange)(random)),
    () => put(name, [value]),
    () => put(name, { [name]: value }),
    () => put(name, JSON.stringify(value) ?? ""),
    () => put(slip(random, name), value),
    () => {
      delete owner[name];
      put(slip(random, name), value);
    },
    () => put(pick(random, names.length === 0 ? ["x"] : names), value),
    () => put("extra", pick(random, strange)(random)),
  ])();
  return body;
}

const encoder = new TextEncoder();

/** JSON text, with raw numbers in place and sometimes a field twice. */
function textOf(random: Random, body: unknown): string {
  const text = JSON.stringify(body).replaceAll(/"\\u0001raw:([^"]*)"/g, "$1");
  if (random() >= 0.05 || !text.startsWith("{") || text === "{}") return text;
  return `{"prompt":"first","max_tokens":1,${text.slice(1)}`;
}

/** What happens to the bytes; most of the time nothing. */
function bytesOf(random: Random, text: string): Uint8Array<ArrayBuffer> {
  const bytes = encoder.encode(text);
  const at = below(random, bytes.length + 1);
  const splice = (...inserted: number[]): Uint8Array<ArrayBuffer> =>
    new Uint8Array([...bytes.subarray(0, at), ...inserted, ...bytes.subarray(at)]);
  switch (below(random, 24)) {
    case 0:
      return bytes.slice(0, at);
    case 1:
      return splice(0xff);
    case 2:
      return splice(0xed, 0xa0, 0x80);
    case 3:
      return splice(0xc0, 0xaf);
    case 4:
      return splice(below(random, 256));
    case 5:
      return new Uint8Array([0xef, 0xbb, 0xbf, ...bytes]);
    case 6:
      return new Uint8Array(Buffer.from(text, "utf16le"));
    case 7:
      return new Uint8Array(Array.from({ length: below(random, 400) }, () => below(random, 256)));
    case 8:
      return encoder.encode(text + pick(random, ["}", "garbage", "\u0000", text]));
    default:
      return bytes;
  }
}

const contentTypes = [
  "text/plain",
  "application/x-www-form-urlencoded",
  "multipart/form-data; boundary=x",
  "multipart/form-data",
  "application/json; charset=utf-8",
  "application/json; charset=latin1",
  "APPLICATION/JSON",
  "application/json;;;",
  "application/octet-stream",
  "application",
  ",",
];

function headersOf(random: Random): Record<string, string> {
  const headers: Record<string, string> = { "content-type": "application/json" };
  const often = random();
  if (often < 0.06) headers["content-type"] = pick(random, contentTypes);
  else if (often < 0.08) delete headers["content-type"];
  else if (often < 0.12)
    headers.accept = pick(random, ["text/event-stream", "*/*, text/event-stream;q=0", ";", "x/y"]);
  else if (often < 0.14) headers["content-encoding"] = pick(random, ["gzip", "br", "identity", "x"]);
  if (random() < 0.1)
    headers["x-correlation-id"] = pick(random, ["good.id-1", "bad id", "x".repeat(300), "é", "{}", "a\tb"]);
  return headers;
}

const paths: readonly ((random: Random) => string)[] = [
  (random) => `/v1/tasks/${uuidOf(random)}`,
  (random) => `/v1/tasks/${uuidOf(random)}/stream`,
  () => "/v1/tasks?limit=10",
  () => "/v1/tasks?state=done&limit=3",
  () => "/v1/pools/words/health",
  () => "/v1/pools",
  () => "/v1/capabilities",
];
const oddValues = [
  "-1",
  "1e9",
  "%00",
  "%F0%9F%99%82",
  "%ff",
  "%",
  "__proto__",
  "",
  "NaN",
  "9".repeat(400),
  "a[]",
  "x".repeat(2000),
];

function mutatedPath(random: Random): string {
  const path = pick(random, paths)(random);
  const query = path.includes("?") ? "&" : "?";
  const name = pick(random, [
    "limit",
    "state",
    "cursor",
    "session_id",
    "after",
    "observe",
    "x",
    "limit[]",
    "__proto__",
  ]);
  return pick(random, [
    `${path}${query}${name}=${pick(random, oddValues)}`,
    `${path}${query}${name}=1&${name}=2`,
    path.replace("/v1/", `/v1/${pick(random, ["./", "x/", "%2e%2e/", "//"])}`),
    path.slice(0, below(random, path.length) + 1),
    `${path}/`,
    `${path}%00`,
    path.replace(/[a-f]/, pick(random, ["g", "%61", "é"])),
  ]);
}

/** The next request of this seed. One in eight asks for something else than a task. */
export function nextRequest(random: Random): MutatedRequest {
  const headers = headersOf(random);
  if (random() < 0.125) {
    if (random() < 0.3)
      headers["last-event-id"] = pick(random, ["0", "-1", "1e3", "x", "9".repeat(15), "9".repeat(16)]);
    const method = pick(random, ["GET", "GET", "GET", "GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"]);
    return {
      method,
      path: mutatedPath(random),
      headers,
      body: method === "GET" ? null : encoder.encode("{}"),
    };
  }
  const body = pick(random, bases)(random);
  let sent: unknown = body;
  for (let left = 1 + below(random, 3); left > 0; left -= 1) sent = mutate(random, body);
  if (random() < 0.02) sent = pick(random, strange)(random);
  return { method: "POST", path: "/v1/tasks", headers, body: bytesOf(random, textOf(random, sent)) };
}
