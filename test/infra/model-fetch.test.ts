/**
 * Fetching over real sockets from a server that breaks connections, lies about lengths, changes its file and redirects
 * where it should not. What came is whole and right or is not there; what came before is not fetched again.
 */
import { afterEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseAllowedHost } from "../../src/domain/fetch-policy.ts";
import { limits } from "../../src/domain/limits.ts";
import { HttpModelSource, type HttpModelSourceOptions } from "../../src/infra/models/http-model-source.ts";
import type { Clock } from "../../src/ports/clock.ts";
import { type FetchProgress, type FetchTarget, isFetchError } from "../../src/ports/model-source.ts";
import { ModelServer, type ModelServerOptions, type Reply } from "../support/model-server.ts";
import { SeededEntropy } from "../support/virtual-clock.ts";
import { waitFor } from "../support/wait.ts";

/** Pauses end at once; what watches over an answer waits until it is told to fire. */
class HastyClock implements Clock {
  readonly pausesMs: number[] = [];
  readonly watches = new Set<() => void>();
  onWatch: () => void = () => undefined;

  nowMs(): number {
    return 1_700_000_000_000;
  }
  setTimer(ms: number, fn: () => void): { cancel(): void } {
    if (ms === limits.fetchStallMs || ms === limits.fetchAnswerMs) {
      this.watches.add(fn);
      this.onWatch();
      return { cancel: () => void this.watches.delete(fn) };
    }
    this.pausesMs.push(ms);
    setImmediate(fn);
    return { cancel: () => undefined };
  }
  soon(fn: () => void): void {
    setImmediate(fn);
  }
  yieldTurn(): Promise<void> {
    return new Promise((resolve) => setImmediate(resolve));
  }
}

/** What one request asks for of files as small as these. */
const piece = limits.fetchPieceBytesMin;

const releases: (() => void | Promise<void>)[] = [];
afterEach(async () => {
  for (const release of releases.splice(0).reverse()) await release();
});

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), "orchd-fetch-"));
  releases.push(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

async function server(options: ModelServerOptions): Promise<ModelServer> {
  const started = await ModelServer.start(options);
  releases.push(() => started.stop());
  return started;
}

/** Bytes that repeat nowhere near, behind the magic of a GGUF file. */
function model(bytes: number, seed = 1): Uint8Array {
  const entropy = new SeededEntropy(seed);
  const words = new Uint32Array(Math.ceil(bytes / 4));
  for (let at = 0; at < words.length; at++) words[at] = entropy.uint32();
  const file = new Uint8Array(words.buffer).subarray(0, bytes);
  file.set(Buffer.from("GGUF"), 0);
  return file;
}

const sha256 = (bytes: Uint8Array): string => new Bun.CryptoHasher("sha256").update(bytes).digest("hex");

function source(more: Partial<HttpModelSourceOptions> & { hosts?: readonly string[] } = {}) {
  const clock = new HastyClock();
  const { hosts = [], ...options } = more;
  const allowed = hosts.map((text) => {
    const entry = parseAllowedHost(text);
    if (entry === null) throw new Error(`no entry: ${text}`);
    return entry;
  });
  const headerProblem = () => null;
  const made = new HttpModelSource({
    clock,
    entropy: new SeededEntropy(7),
    allowed,
    headerProblem,
    ...options,
  });
  return { clock, source: made };
}

const never = new AbortController().signal;
const ignore = (): void => undefined;

const targetOf = (url: string, path: string, more: Partial<FetchTarget> = {}): FetchTarget => ({
  url,
  path,
  digest: null,
  sizeBytes: null,
  ...more,
});

async function refusal(work: Promise<unknown>): Promise<{ kind: string; message: string }> {
  try {
    await work;
  } catch (error) {
    if (!isFetchError(error)) throw error;
    return { kind: error.fetchErrorKind, message: error.message };
  }
  throw new Error("it was fetched");
}

const left = (path: string): string[] => readdirSync(path).sort();

describe("a fetch", () => {
  test("brings the file over several connections, each byte once", async () => {
    const file = model(3 * piece + 12_345);
    const from = await server({ file });
    const dir = folder();
    const path = join(dir, "deep", "er", "m.gguf");
    const seen: FetchProgress[] = [];
    const { source: made } = source({ hosts: [from.host] });
    const got = await made.fetch(
      targetOf(from.url(), path, { digest: sha256(file), sizeBytes: file.byteLength }),
      (progress) => seen.push(progress),
      never,
    );
    expect(got).toMatchObject({ digest: sha256(file), sizeBytes: file.byteLength, sourceDigest: null });
    expect(got.file.sizeBytes).toBe(file.byteLength);
    expect(sha256(readFileSync(path))).toBe(sha256(file));
    expect(left(join(dir, "deep", "er"))).toEqual(["m.gguf"]);
    // One byte for the question.
    expect(from.sentBytes).toBe(file.byteLength + 1);
    expect(from.asked).toHaveLength(5);
    expect(from.asked.slice(1).map(({ headers }) => headers["if-range"])).toEqual(Array(4).fill('"v1"'));
    const last = seen.at(-1);
    expect(last).toMatchObject({
      phase: "checking",
      bytesDone: file.byteLength,
      interruptions: 0,
      resumable: true,
    });
    const received = seen.filter(({ phase }) => phase === "receiving").map(({ bytesDone }) => bytesDone);
    expect(received).toEqual([...received].sort((a, b) => a - b));
    expect(received.at(-1)).toBe(file.byteLength);
  });

  test("goes on where connections break, and fetches little twice", async () => {
    const file = model(4 * piece);
    const from = await server({
      file,
      reply: ({ range }, nth) => {
        if (range === null || nth === 1 || nth > 40) return null;
        const body = file.subarray(range[0], range[1] + 1);
        const about = { etag: '"v1"', "content-range": `bytes ${range[0]}-${range[1]}/${file.byteLength}` };
        return {
          status: 206,
          headers: { ...about, "content-length": body.byteLength },
          body,
          breakAfter: Math.min(body.byteLength, 100_000 + nth),
        };
      },
    });
    const path = join(folder(), "m.gguf");
    const { source: made, clock } = source({ hosts: [from.host] });
    let last: FetchProgress | null = null;
    const got = await made.fetch(
      targetOf(from.url(), path),
      (progress) => {
        last = progress;
      },
      never,
    );
    expect(got.digest).toBe(sha256(file));
    expect(last).toMatchObject({ bytesReceived: file.byteLength });
    expect(Number((last as FetchProgress | null)?.interruptions)).toBeGreaterThan(20);
    expect(clock.pausesMs.length).toBeGreaterThan(20);
  });

  test("that was called off goes on in another run, with the bytes that had come", async () => {
    const file = model(3 * piece);
    const from = await server({ file });
    const path = join(folder(), "m.gguf");
    const { source: made } = source({ hosts: [from.host] });
    const stop = new AbortController();
    const kept: number[] = [];
    const first = made.fetch(
      targetOf(from.url(), path),
      ({ bytesDone, phase }) => {
        kept.push(bytesDone);
        if (phase === "receiving" && bytesDone > 1_000_000) stop.abort();
      },
      stop.signal,
    );
    expect((await refusal(first)).kind).toBe("aborted");
    expect(existsSync(path)).toBe(false);
    expect(existsSync(`${path}.part`)).toBe(true);
    const had = Math.max(...kept);
    let received = 0;
    const got = await made.fetch(
      targetOf(from.url(), path),
      ({ bytesReceived }) => {
        received = bytesReceived;
      },
      never,
    );
    expect(got.digest).toBe(sha256(file));
    expect(received).toBeLessThanOrEqual(file.byteLength - had);
  });

  test("that was killed again and again fetches little twice", async () => {
    const file = model(40 * piece);
    const from = await server({ file });
    const path = join(folder(), "m.gguf");
    const main = new URL("../support/fetch-child.ts", import.meta.url).pathname;
    let kills = 0;
    for (let done = ""; done === ""; ) {
      const child = Bun.spawn([process.execPath, main, from.url(), path], {
        stdout: "pipe",
        stderr: "inherit",
      });
      const said = new Response(child.stdout).text();
      const due = ((kills + 1) * file.byteLength) / 6;
      if (kills < 5) {
        await waitFor(() => from.sentBytes >= due, 10_000);
        child.kill("SIGKILL");
        kills += 1;
      }
      await child.exited;
      done = await said;
      if (done !== "") expect(done).toBe(sha256(file));
    }
    // For each kill at most what was under way on every connection, and two words of the journal.
    const most = file.byteLength + kills * (limits.fetchParts + 3) * piece + 6;
    expect(from.sentBytes).toBeLessThanOrEqual(most);
    expect(from.sentBytes).toBeLessThan(2 * file.byteLength);
    expect(sha256(readFileSync(path))).toBe(sha256(file));
  });

  test("after the machine went down counts only what was synced", async () => {
    const file = model(piece);
    const from = await server({ file });
    const path = join(folder(), "m.gguf");
    const { source: made } = source({ hosts: [from.host] });
    const url = from.url();
    // As it lies there when the journal's last words were not synced: some of the bytes never reached the disk.
    const content = new Uint8Array(file.byteLength);
    content.set(file.subarray(0, 1000));
    writeFileSync(`${path}.part`, content);
    writeFileSync(
      `${path}.part.json`,
      JSON.stringify({
        version: 1,
        url,
        size: file.byteLength,
        etag: '"v1"',
        modified: null,
        digest: null,
        boot: "another start of the machine",
        written: [[0, 500_000]],
        synced: [[0, 1000]],
      }),
    );
    const got = await made.fetch(targetOf(url, path), ignore, never);
    expect(got.digest).toBe(sha256(file));
    expect(from.asked[1]?.range).toEqual([1000, file.byteLength - 1]);
  });

  test("begins anew where the part is of another version, or its journal makes no sense", async () => {
    const file = model(100_000);
    for (const journal of ["", "{", "[]", '{"version":1}', '{"version":1,"url":"x","size":100000}']) {
      const from = await server({ file });
      const path = join(folder(), "m.gguf");
      writeFileSync(`${path}.part`, "rubbish");
      writeFileSync(`${path}.part.json`, journal);
      const { source: made } = source({ hosts: [from.host] });
      expect((await made.fetch(targetOf(from.url(), path), ignore, never)).digest).toBe(sha256(file));
      expect(from.asked[1]?.range).toEqual([0, 99_999]);
    }
  });

  test("begins anew when the file changes meanwhile, and gives up when it does so all the time", async () => {
    const [before, after] = [model(400_000, 1), model(400_000, 2)];
    const from = await server({
      file: before,
      reply: (_asked, nth) => {
        if (nth === 2) {
          from.file = after;
          from.etag = '"v2"';
        }
        return null;
      },
    });
    const path = join(folder(), "m.gguf");
    const { source: made } = source({ hosts: [from.host] });
    expect((await made.fetch(targetOf(from.url(), path), ignore, never)).digest).toBe(sha256(after));

    const restless = await server({
      file: before,
      reply: (_asked, nth) => {
        restless.etag = `"v${nth}"`;
        return null;
      },
    });
    const { source: other } = source({ hosts: [restless.host] });
    const told = await refusal(
      other.fetch(targetOf(restless.url(), join(folder(), "m.gguf")), ignore, never),
    );
    expect(told.kind).toBe("wrong");
    expect(restless.asked.length).toBe(2 * (limits.fetchRestartsMax + 1));
  });

  test("takes a source without ranges in one go, again from the start after each break", async () => {
    const file = model(3_000_000);
    const from = await server({
      file,
      ranges: false,
      reply: (_asked, nth) =>
        nth > 1 && nth < 5
          ? {
              headers: { "content-length": file.byteLength, etag: '"v1"' },
              body: file,
              breakAfter: 1_000_000,
            }
          : null,
    });
    const path = join(folder(), "m.gguf");
    const { source: made } = source({ hosts: [from.host] });
    let last: FetchProgress | null = null;
    const got = await made.fetch(
      targetOf(from.url(), path),
      (progress) => {
        last = progress;
      },
      never,
    );
    expect(got.digest).toBe(sha256(file));
    expect(last).toMatchObject({ resumable: false, interruptions: 3 });
  });

  test("asks no more of a source that says when to come back, and gives up in the end", async () => {
    const from = await server({ reply: () => ({ status: 503, headers: { "retry-after": 7 } }) });
    const { source: made, clock } = source({ hosts: [from.host] });
    const told = await refusal(made.fetch(targetOf(from.url(), join(folder(), "m.gguf")), ignore, never));
    expect(told).toMatchObject({ kind: "unavailable", message: expect.stringContaining("503") });
    expect(from.asked).toHaveLength(limits.fetchFruitlessMax);
    expect(clock.pausesMs.every((ms) => ms >= 7_000)).toBe(true);
  });

  test("waits longer each time for one that resets every connection", async () => {
    const from = await server({ reply: () => ({ breakAfter: 0, headers: { "content-length": 10 } }) });
    const { source: made, clock } = source({ hosts: [from.host] });
    from.file = model(10);
    const told = await refusal(made.fetch(targetOf(from.url(), join(folder(), "m.gguf")), ignore, never));
    expect(told.kind).toBe("unavailable");
    const most = (n: number): number => Math.min(limits.fetchBackoffMsMax, limits.fetchBackoffMs * 2 ** n);
    clock.pausesMs.forEach((ms, at) => {
      expect(ms).toBeLessThanOrEqual(most(at % (limits.fetchFruitlessMax - 1)));
    });
  });

  test("leaves a connection on which nothing comes", async () => {
    const file = model(100_000);
    for (const hangs of ["head", "body"] as const) {
      const from = await server({
        file,
        reply: ({ range }, nth) =>
          nth === 2 && range !== null
            ? {
                hangs,
                status: 206,
                headers: { "content-range": `bytes 0-99999/100000`, "content-length": 100_000, etag: '"v1"' },
              }
            : null,
      });
      const { source: made, clock } = source({ hosts: [from.host] });
      // Fires once, when the request that hangs is on its way and watched.
      clock.onWatch = () => {
        if (from.asked.length < 2 || hangs === "head") return;
        clock.onWatch = ignore;
        setImmediate(() => [...clock.watches].at(-1)?.());
      };
      const work = made.fetch(targetOf(from.url(), join(folder(), "m.gguf")), ignore, never);
      if (hangs === "head") {
        await waitFor(() => from.asked.length === 2);
        for (const fire of [...clock.watches]) fire();
      }
      expect((await work).digest).toBe(sha256(file));
      expect(from.asked.length).toBe(3);
    }
  });

  test("is thrown away when its bytes are others than said, and does not go on with them", async () => {
    const file = model(50_000);
    const from = await server({ file });
    const dir = folder();
    const { source: made } = source({ hosts: [from.host] });
    const wrong = targetOf(from.url(), join(dir, "m.gguf"), { digest: "0".repeat(64) });
    expect(await refusal(made.fetch(wrong, ignore, never))).toMatchObject({
      kind: "digest",
      message: expect.stringContaining(sha256(file)),
    });
    expect(left(dir)).toEqual([]);
  });

  test("is not begun when the source tells another size or digest", async () => {
    const file = model(50_000);
    const from = await server({
      file,
      reply: () => ({
        status: 206,
        headers: { "content-range": "bytes 0-0/50000", "x-linked-etag": `"${"a".repeat(64)}"` },
        body: file.subarray(0, 1),
      }),
    });
    const dir = folder();
    const { source: made } = source({ hosts: [from.host] });
    const at = (more: Partial<FetchTarget>) =>
      made.fetch(targetOf(from.url(), join(dir, "m.gguf"), more), ignore, never);
    expect((await refusal(at({ sizeBytes: 49_999 }))).kind).toBe("wrong");
    expect((await refusal(at({ digest: "b".repeat(64) }))).kind).toBe("digest");
    expect(left(dir)).toEqual([]);
    expect(from.asked).toHaveLength(2);
  });

  test("is compared with the digest that its source told, where nobody said another", async () => {
    const file = model(50_000);
    const linked = (digest: string): ModelServerOptions => ({
      file,
      reply: ({ path }) =>
        path === "/resolve.gguf"
          ? { status: 302, headers: { location: "/model.gguf", "x-linked-etag": `"${digest}"` } }
          : null,
    });
    const right = await server(linked(sha256(file)));
    const { source: made } = source({ hosts: [right.host] });
    const got = await made.fetch(
      targetOf(right.url("/resolve.gguf"), join(folder(), "m.gguf")),
      ignore,
      never,
    );
    expect(got.sourceDigest).toBe(sha256(file));
    const lying = await server(linked("a".repeat(64)));
    const { source: other } = source({ hosts: [lying.host] });
    const work = other.fetch(targetOf(lying.url("/resolve.gguf"), join(folder(), "m.gguf")), ignore, never);
    expect((await refusal(work)).kind).toBe("digest");
  });

  test("takes nothing for a model that is none", async () => {
    const page = Buffer.from("<!doctype html> sorry".repeat(1000));
    const from = await server({ file: page });
    const dir = folder();
    const { source: made } = source({ hosts: [from.host] });
    const work = made.fetch(targetOf(from.url(), join(dir, "m.gguf")), ignore, never);
    expect(await refusal(work)).toMatchObject({ kind: "header", message: expect.stringContaining("GGUF") });
    expect(existsSync(join(dir, "m.gguf"))).toBe(false);

    const odd = await server({ file: model(1000) });
    const { source: strict } = source({ hosts: [odd.host], headerProblem: () => "version 9 is not known" });
    const place = folder();
    const told = await refusal(strict.fetch(targetOf(odd.url(), join(place, "m.gguf")), ignore, never));
    expect(told).toMatchObject({ kind: "header", message: expect.stringContaining("version 9") });
    expect(left(place)).toEqual([]);
  });

  test("says what the source says where it gives nothing", async () => {
    for (const status of [401, 403, 404, 410, 400]) {
      const from = await server({ reply: () => ({ status }) });
      const { source: made } = source({ hosts: [from.host] });
      const told = await refusal(made.fetch(targetOf(from.url(), join(folder(), "m.gguf")), ignore, never));
      expect(told).toMatchObject({ kind: "refused", message: expect.stringContaining(String(status)) });
      expect(from.asked).toHaveLength(1);
    }
    const empty = await server({ file: new Uint8Array() });
    const { source: made } = source({ hosts: [empty.host] });
    const told = await refusal(made.fetch(targetOf(empty.url(), join(folder(), "m.gguf")), ignore, never));
    expect(told.kind).toBe("header");
  });
});

describe("a lie about lengths", () => {
  const file = model(300_000);
  const lie = (reply: (range: readonly [number, number]) => Reply): ModelServerOptions => ({
    file,
    reply: ({ range }, nth) => (nth === 2 && range !== null ? reply(range) : null),
  });
  const answer = (
    range: string,
    body: Uint8Array,
    more: Readonly<Record<string, string | number>> = {},
  ): Reply => ({
    status: 206,
    headers: { etag: '"v1"', "content-range": range, "content-length": body.byteLength, ...more },
    body,
  });
  const lies: readonly [string, (range: readonly [number, number]) => Reply][] = [
    ["other bytes than were asked for", () => answer("bytes 1000-299999/300000", file.subarray(1000))],
    ["a range that makes no sense", () => answer("bytes 300000-0/300000", file)],
    ["no range at all", () => answer("", file)],
    ["less than was asked for", () => answer("bytes 0-99999/300000", file.subarray(0, 100_000))],
    [
      "more than was asked for",
      () => answer("bytes 0-299999/300000", Buffer.concat([file, file]), { "content-length": 600_000 }),
    ],
    [
      "a length that never comes",
      () => ({
        ...answer("bytes 0-299999/300000", file, { "content-length": 300_001 }),
        breakAfter: 200_000,
      }),
    ],
    [
      "the whole file instead of a part",
      () => ({ headers: { etag: '"v1"', "content-length": 300_000 }, body: file }),
    ],
  ];
  for (const [what, reply] of lies)
    test(`${what}: the file is right all the same`, async () => {
      const from = await server(lie(reply));
      const path = join(folder(), "m.gguf");
      const { source: made } = source({ hosts: [from.host] });
      await made.fetch(targetOf(from.url(), path), ignore, never);
      expect(sha256(readFileSync(path))).toBe(sha256(file));
    });

  test("a source without ranges that sends more or less than it tells is not believed", async () => {
    for (const told of [299_999, 300_001]) {
      const from = await server({
        ranges: false,
        reply: () => ({
          headers: { "content-length": told },
          body: file,
          ...(told > 300_000 ? { breakAfter: 300_000 } : {}),
        }),
      });
      const dir = folder();
      const { source: made } = source({ hosts: [from.host] });
      const target = targetOf(from.url(), join(dir, "m.gguf"), { digest: sha256(file) });
      const { kind } = await refusal(made.fetch(target, ignore, never));
      // Cut by HTTP itself it is another file; short of what was told it never ends.
      expect(kind).toBe(told < 300_000 ? "digest" : "unavailable");
      expect(existsSync(join(dir, "m.gguf"))).toBe(false);
    }
  });

  test("a length that nobody tells is asked of the operator", async () => {
    const from = await server({
      ranges: false,
      reply: () => ({
        headers: { "content-length": "", "transfer-encoding": "chunked" },
        body: chunked(file),
      }),
    });
    const { source: made } = source({ hosts: [from.host] });
    const path = join(folder(), "m.gguf");
    expect((await refusal(made.fetch(targetOf(from.url(), path), ignore, never))).message).toContain(
      "size_bytes",
    );
    const got = await made.fetch(targetOf(from.url(), path, { sizeBytes: 300_000 }), ignore, never);
    expect(got.digest).toBe(sha256(file));
  });
});

const chunked = (bytes: Uint8Array): Uint8Array =>
  Buffer.concat([Buffer.from(`${bytes.byteLength.toString(16)}\r\n`), bytes, Buffer.from("\r\n0\r\n\r\n")]);

describe("where a fetch may lead", () => {
  const file = model(10_000);

  test("nowhere that the list does not name: nothing is even asked", async () => {
    const from = await server({ file });
    const { source: made } = source({ hosts: ["models.example"] });
    const told = await refusal(made.fetch(targetOf(from.url(), join(folder(), "m.gguf")), ignore, never));
    expect(told).toMatchObject({ kind: "host", message: expect.stringContaining("allow_hosts") });
    expect(from.asked).toEqual([]);
  });

  test("not from a listed host to one that is not, however many hops there are", async () => {
    const inside = await server({ file });
    const from = await server({
      reply: ({ path }) => ({
        status: 302,
        headers: { location: path === "/a.gguf" ? "/b.gguf" : inside.url() },
      }),
    });
    const { source: made } = source({ hosts: [from.host] });
    const told = await refusal(
      made.fetch(targetOf(from.url("/a.gguf"), join(folder(), "m.gguf")), ignore, never),
    );
    expect(told.kind).toBe("host");
    expect([from.asked.length, inside.asked.length]).toEqual([2, 0]);
  });

  test("not in circles", async () => {
    const from = await server({ reply: () => ({ status: 307, headers: { location: "/model.gguf" } }) });
    const { source: made } = source({ hosts: [from.host] });
    const told = await refusal(made.fetch(targetOf(from.url(), join(folder(), "m.gguf")), ignore, never));
    expect(told).toMatchObject({ kind: "refused", message: expect.stringContaining("redirects more than") });
    expect(from.asked).toHaveLength(limits.fetchRedirectsMax + 1);
  });

  test("not by a name to an address that is not of the internet, also when only one of several is", async () => {
    for (const addresses of [
      ["127.0.0.1"],
      ["10.0.0.1"],
      ["169.254.169.254"],
      ["::1"],
      ["1.1.1.1", "192.168.0.1"],
    ]) {
      const { source: made } = source({ hosts: ["models.example"], resolve: async () => addresses });
      const work = made.fetch(
        targetOf("https://models.example/m.gguf", join(folder(), "m.gguf")),
        ignore,
        never,
      );
      expect(await refusal(work)).toMatchObject({
        kind: "host",
        message: expect.stringContaining("no address of the internet"),
      });
    }
  });

  test("to the address that was judged and to no other; the certificate is that of the name", async () => {
    const tls = await selfSigned("models.example");
    const asked: string[] = [];
    const secure = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      tls,
      fetch: (request) => {
        asked.push(request.headers.get("host") ?? "");
        return new Response(file, { headers: { "content-length": String(file.byteLength) } });
      },
    });
    releases.push(() => secure.stop(true));
    const host = `models.example:${secure.port}`;
    let looks = 0;
    const resolve = async (): Promise<string[]> => {
      looks += 1;
      return ["127.0.0.1"];
    };
    const { source: made } = source({ hosts: [host], resolve, trustLoopback: true, ca: tls.cert });
    const got = await made.fetch(targetOf(`https://${host}/m.gguf`, join(folder(), "m.gguf")), ignore, never);
    expect(got.digest).toBe(sha256(file));
    // The name itself resolves nowhere: only the look-up that was judged can have led there.
    expect(looks).toBe(asked.length);
    expect(new Set(asked)).toEqual(new Set([host]));

    const other = `impostor.example:${secure.port}`;
    const { source: wrong } = source({ hosts: [other], resolve, trustLoopback: true, ca: tls.cert });
    const told = await refusal(
      wrong.fetch(targetOf(`https://${other}/m.gguf`, join(folder(), "m.gguf")), ignore, never),
    );
    expect(told).toMatchObject({ kind: "unavailable", message: expect.stringContaining("certificate") });
    const { source: unknown } = source({ hosts: [host], resolve, trustLoopback: true });
    const refused = await refusal(
      unknown.fetch(targetOf(`https://${host}/m.gguf`, join(folder(), "m.gguf")), ignore, never),
    );
    expect(refused.kind).toBe("unavailable");
    expect(asked).toHaveLength(looks - 2);
  });
});

/** Made by the openssl of the machine, as the engine's tests make theirs. */
async function selfSigned(name: string): Promise<{ cert: string; key: string }> {
  const dir = folder();
  const [cert, key] = [join(dir, "c.pem"), join(dir, "k.pem")];
  const made = Bun.spawnSync([
    ...["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
    ...[
      "-keyout",
      key,
      "-out",
      cert,
      "-days",
      "2",
      "-subj",
      `/CN=${name}`,
      "-addext",
      `subjectAltName=DNS:${name}`,
    ],
  ]);
  if (!made.success) throw new Error(made.stderr.toString());
  return { cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") };
}

describe("this machine", () => {
  const file = model(10_000);

  test("two at once do not fetch the same file; what a dead one left is taken over", async () => {
    const from = await server({ file, reply: (_asked, nth) => (nth === 1 ? { hangs: "head" } : null) });
    const path = join(folder(), "m.gguf");
    const stop = new AbortController();
    const { source: made } = source({ hosts: [from.host] });
    const first = made.fetch(targetOf(from.url(), path), ignore, stop.signal);
    expect((await refusal(made.fetch(targetOf(from.url(), path), ignore, never))).kind).toBe("busy");
    await waitFor(() => from.asked.length === 1);
    stop.abort();
    expect((await refusal(first)).kind).toBe("aborted");
    const other = Bun.spawn(["cat"], { stdin: "pipe" });
    const stat = readFileSync(`/proc/${other.pid}/stat`, "utf8");
    const ticks = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    writeFileSync(`${path}.part.lock`, `${other.pid} ${ticks} ${boot}`);
    expect((await refusal(made.fetch(targetOf(from.url(), path), ignore, never))).kind).toBe("busy");
    other.kill();
    await other.exited;
    expect((await made.fetch(targetOf(from.url(), path), ignore, never)).digest).toBe(sha256(file));
  });

  test("a place that cannot be written is told", async () => {
    const from = await server({ file });
    const dir = folder();
    writeFileSync(join(dir, "a-file"), "");
    const { source: made } = source({ hosts: [from.host] });
    const work = made.fetch(targetOf(from.url(), join(dir, "a-file", "m.gguf")), ignore, never);
    expect((await refusal(work)).kind).toBe("io");
    mkdirSync(join(dir, "taken.gguf.part"), { recursive: true });
    const taken = made.fetch(targetOf(from.url(), join(dir, "taken.gguf")), ignore, never);
    expect((await refusal(taken)).kind).toBe("io");
  });

  test("a disk that is full is told before anything comes", async () => {
    const told = 3 * 1024 ** 4;
    const from = await server({
      reply: () => ({
        status: 206,
        headers: { "content-range": `bytes 0-0/${told}` },
        body: new Uint8Array(1),
      }),
    });
    const dir = folder();
    const { source: made } = source({ hosts: [from.host] });
    const { kind } = await refusal(made.fetch(targetOf(from.url(), join(dir, "m.gguf")), ignore, never));
    expect(["full", "io"]).toContain(kind);
    expect(from.asked).toHaveLength(1);
  });

  test("nothing is left of a part that is given up", async () => {
    const from = await server({ file, reply: (_asked, nth) => (nth > 1 ? { status: 404 } : null) });
    const dir = folder();
    const { source: made } = source({ hosts: [from.host] });
    await refusal(made.fetch(targetOf(from.url(), join(dir, "m.gguf")), ignore, never));
    expect(left(dir)).toEqual(["m.gguf.part", "m.gguf.part.json"]);
    await made.discard(join(dir, "m.gguf"));
    expect(left(dir)).toEqual([]);
  });
});
