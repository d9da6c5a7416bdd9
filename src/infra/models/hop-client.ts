/**
 * One GET, redirects followed by hand: every hop is judged by the allow list, its name resolved here, and the connection
 * made to the very address that was judged, so that no second look-up can lead elsewhere. download.ts is the caller.
 *
 * Always holds: nothing is sent to a host that the list does not name; a name leads to addresses of the internet only,
 * all of them; an answer that does not come, or stops coming, ends by the clock.
 */
import { lookup } from "node:dns/promises";
import { type AllowedHost, isPublicAddress, judgeHop } from "../../domain/fetch-policy.ts";
import { limits } from "../../domain/limits.ts";
import type { Clock } from "../../ports/clock.ts";
import { FetchError, isFetchError } from "../../ports/model-source.ts";

/** Worth another try. `retryAfterMs`: what the source asks for; null: nothing. */
export class Interrupted extends Error {
  readonly interrupted = true;
  readonly retryAfterMs: number | null;
  constructor(message: string, retryAfterMs: number | null = null, options?: { cause?: unknown }) {
    super(message, options);
    this.retryAfterMs = retryAfterMs;
  }
}

export const isInterrupted = (error: unknown): error is Interrupted =>
  error instanceof Error && (error as Partial<Interrupted>).interrupted === true;

export interface HopClientOptions {
  readonly clock: Clock;
  readonly allowed: readonly AllowedHost[];
  /** For tests: what a name resolves to. */
  readonly resolve?: (host: string) => Promise<readonly string[]>;
  /** For tests: names may lead to this machine. Nothing configures it. */
  readonly trustLoopback?: boolean;
  /** For tests: a certificate authority of their own, PEM. */
  readonly ca?: string;
}

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  /** Where it came from, behind all redirects. */
  readonly url: string;
  /** SHA-256 that a hop told of the file (the hub's X-Linked-ETag). */
  readonly digest: string | null;
  /** The body. @throws Interrupted, FetchError aborted */
  chunks(): AsyncGenerator<Uint8Array>;
  /** Idempotent; what was not read is not waited for. */
  close(): void;
}

const redirects = new Set([301, 302, 303, 307, 308]);

export class HopClient {
  readonly #options: HopClientOptions;
  readonly #resolve: (host: string) => Promise<readonly string[]>;

  constructor(options: HopClientOptions) {
    this.#options = options;
    this.#resolve =
      options.resolve ?? (async (host) => (await lookup(host, { all: true })).map(({ address }) => address));
  }

  /** @throws Interrupted; FetchError host, refused, unavailable, aborted */
  async get(url: string, headers: Readonly<Record<string, string>>, signal: AbortSignal): Promise<Answer> {
    let at = url;
    let digest: string | null = null;
    for (let hop = 0; hop <= limits.fetchRedirectsMax; hop++) {
      const answer = await this.#hop(at, headers, signal);
      const told = /^"?([0-9a-f]{64})"?$/i.exec(answer.headers.get("x-linked-etag") ?? "")?.[1];
      digest = told?.toLowerCase() ?? digest;
      const location = answer.headers.get("location");
      if (!redirects.has(answer.status) || location === null) return { ...answer, url: at, digest };
      answer.close();
      if (!URL.canParse(location, at))
        throw new FetchError("refused", `${shown(at)} redirects to an address that cannot be read`);
      at = new URL(location, at).href;
    }
    throw new FetchError("refused", `${shown(url)} redirects more than ${limits.fetchRedirectsMax} times`);
  }

  async #hop(
    url: string,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<Omit<Answer, "url" | "digest">> {
    const verdict = judgeHop(url, this.#options.allowed);
    if (!verdict.ok) throw new FetchError("host", `not fetched: ${verdict.why}`);
    const address = await this.#addressOf(url, verdict.own);
    const watch = new Watch(this.#options.clock, signal);
    try {
      watch.arm(limits.fetchAnswerMs, "did not answer");
      const response = await fetch(...this.#pinned(url, address, headers, watch.signal));
      watch.disarm();
      const encoding = response.headers.get("content-encoding") ?? "identity";
      if (response.ok && encoding !== "identity")
        throw new FetchError("refused", `${shown(url)} answers in the encoding ${encoding}`);
      return {
        status: response.status,
        headers: response.headers,
        chunks: () => bodyOf(response, watch, url),
        close: () => watch.end(),
      };
    } catch (error) {
      watch.end();
      throw whatBroke(error, watch, url);
    }
  }

  /** The address to connect to; the operator's own are taken as they stand. */
  async #addressOf(url: string, own: boolean): Promise<string> {
    const host = new URL(url).hostname.replace(/^\[|\]$/g, "");
    if (own && host !== "localhost") return host;
    let addresses: readonly string[];
    try {
      addresses = await this.#resolve(host);
    } catch (cause) {
      throw new Interrupted(`the name ${host} cannot be resolved`, null, { cause });
    }
    const [first] = addresses;
    if (first === undefined) throw new Interrupted(`the name ${host} has no address`);
    if (own || this.#options.trustLoopback === true) return first;
    const inside = addresses.find((address) => !isPublicAddress(address));
    if (inside !== undefined)
      throw new FetchError(
        "host",
        `not fetched: ${host} leads to ${inside}, which is no address of the internet; a server of your own is named by its address in models.fetch.allow_hosts`,
      );
    return first;
  }

  #pinned(
    url: string,
    address: string,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): [string, RequestInit] {
    const there = new URL(url);
    const { host, hostname } = there;
    there.hostname = address.includes(":") ? `[${address}]` : address;
    const { ca } = this.#options;
    return [
      there.href,
      {
        headers: { ...headers, host, "accept-encoding": "identity", "user-agent": "orchestratord" },
        redirect: "manual",
        decompress: false,
        signal,
        tls: { serverName: hostname.replace(/^\[|\]$/g, ""), ...(ca === undefined ? {} : { ca }) },
      } as RequestInit,
    ];
  }
}

/** Ends a request when its caller does, when it has to wait too long, or when nobody reads it any more. */
class Watch {
  readonly #abort = new AbortController();
  readonly #onAbort = (): void => this.#abort.abort();
  #timer: { cancel(): void } | null = null;
  /** What it waited for in vain. */
  late: string | null = null;

  constructor(
    private readonly clock: Clock,
    private readonly caller: AbortSignal,
  ) {
    if (caller.aborted) this.#abort.abort();
    caller.addEventListener("abort", this.#onAbort, { once: true });
  }

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  get wasCalledOff(): boolean {
    return this.caller.aborted;
  }

  arm(ms: number, late: string): void {
    this.disarm();
    this.#timer = this.clock.setTimer(ms, () => {
      this.late = `${late} within ${ms} ms`;
      this.#abort.abort();
    });
  }

  disarm(): void {
    this.#timer?.cancel();
    this.#timer = null;
  }

  end(): void {
    this.disarm();
    this.caller.removeEventListener("abort", this.#onAbort);
    this.#abort.abort();
  }
}

async function* bodyOf(response: Response, watch: Watch, url: string): AsyncGenerator<Uint8Array> {
  const reader = response.body?.getReader();
  if (reader === undefined) return;
  try {
    for (;;) {
      watch.arm(limits.fetchStallMs, "sent nothing");
      const { done, value } = await reader.read();
      watch.disarm();
      if (done) return;
      yield value;
    }
  } catch (error) {
    throw whatBroke(error, watch, url);
  } finally {
    watch.end();
  }
}

function whatBroke(error: unknown, watch: Watch, url: string): unknown {
  if (isFetchError(error) || isInterrupted(error)) return error;
  if (watch.wasCalledOff) return new FetchError("aborted", "the fetch was called off", { cause: error });
  if (watch.late !== null) return new Interrupted(`${shown(url)} ${watch.late}`, null, { cause: error });
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const said = code !== "" ? code : error instanceof Error ? error.message : String(error);
  if (/CERT|SELF_SIGNED|TLS|UNABLE_TO_VERIFY/.test(code))
    return new FetchError("unavailable", `${shown(url)} shows a certificate that is not trusted (${code})`, {
      cause: error,
    });
  return new Interrupted(`${shown(url)} cannot be reached or broke off (${said})`, null, { cause: error });
}

/** Without the query: that of a redirect is a signature. */
export function shown(url: string): string {
  const { host, pathname } = new URL(url);
  return `${host}${pathname.length > 120 ? `${pathname.slice(0, 120)}…` : pathname}`;
}
