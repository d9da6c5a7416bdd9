/**
 * The bytes of one file on their way here: asks what there is, then for what is missing, again and again while that
 * gets anywhere. http-model-source.ts makes one for each fetch.
 *
 * Always holds: a byte is written where the answer says it belongs, and only from an answer that says it is of the same
 * version; a connection that brings nothing new gives up after limits.fetchFruitlessMax answers, with growing pauses.
 */
import { limits } from "../../domain/limits.ts";
import type { Clock, Entropy } from "../../ports/clock.ts";
import { FetchError, type FetchProgress, type FetchTarget } from "../../ports/model-source.ts";
import type { ByteRange } from "./byte-ranges.ts";
import { type Answer, type HopClient, Interrupted, isInterrupted, shown } from "./hop-client.ts";
import type { PartFile, SourceVersion } from "./part-file.ts";

export interface Facts {
  readonly version: SourceVersion;
  /** Whether it answers with parts of the file. */
  readonly ranges: boolean;
}

/** What is fetched is not any more what it was when the fetch began. */
class Changed extends Error {
  readonly changed = true;
}

export const isChanged = (error: unknown): error is Error =>
  error instanceof Error && (error as Partial<Changed>).changed === true;

export interface ReceiverOptions {
  readonly client: HopClient;
  readonly clock: Clock;
  readonly entropy: Entropy;
  readonly target: FetchTarget;
  readonly onProgress: (progress: FetchProgress) => void;
  readonly signal: AbortSignal;
}

const magic = "GGUF";
/** How long the address behind the redirects is asked directly: less than any signature lives. */
const directMs = 60_000;

export class Receiver {
  readonly #options: ReceiverOptions;
  #progress: FetchProgress = {
    phase: "asking",
    bytesDone: 0,
    bytesTotal: null,
    bytesReceived: 0,
    interruptions: 0,
    resumable: null,
  };
  #direct: { readonly url: string; readonly untilMs: number } | null = null;

  constructor(options: ReceiverOptions) {
    this.#options = options;
  }

  /** Size, version, and whether it gives ranges. @throws Interrupted, FetchError */
  async ask(): Promise<Facts> {
    this.#tell({ phase: "asking" });
    const facts = await this.#patiently(() => this.#ask());
    this.#tell({ bytesTotal: facts.version.size, resumable: facts.ranges });
    return facts;
  }

  /** All that `part` misses. @throws Interrupted, FetchError, Changed */
  async receive(part: PartFile, { ranges }: Facts): Promise<void> {
    this.#tell({ phase: "receiving", bytesDone: part.bytesDone });
    if (ranges) await this.#inPieces(part);
    else
      await this.#patiently(async () => {
        part.forget();
        await this.#whole(part);
      });
  }

  checked(bytesDone: number): void {
    this.#tell({ phase: "checking", bytesDone });
  }

  async #ask(): Promise<Facts> {
    const { client, target, signal } = this.#options;
    const answer = await client.get(target.url, { range: "bytes=0-0" }, signal);
    try {
      const { status, headers, url, digest } = answer;
      this.#direct = { url, untilMs: this.#options.clock.nowMs() + directMs };
      const total = rangeOf(headers)?.total ?? null;
      if (status === 416 && /^bytes \*\/0$/.test(headers.get("content-range") ?? ""))
        throw new FetchError("header", `${shown(url)} is empty`);
      if (status !== 200 && status !== 206) throw statusError(answer);
      const ranges = status === 206 && total !== null;
      if (ranges) await readFew(answer);
      const size = status === 206 ? (total ?? target.sizeBytes) : (lengthOf(headers) ?? target.sizeBytes);
      if (size === null)
        throw new FetchError(
          "wrong",
          `${shown(url)} does not tell how long it is; name size_bytes in the catalog entry`,
        );
      return {
        version: { size, etag: strongEtag(headers), modified: headers.get("last-modified"), digest },
        ranges,
      };
    } finally {
      answer.close();
    }
  }

  /** A few connections at once, each with the first piece that nobody has. */
  async #inPieces(part: PartFile): Promise<void> {
    const pending = part.missing();
    const stop = new AbortController();
    const signal = AbortSignal.any([this.#options.signal, stop.signal]);
    let failure: unknown = null;
    let gaveUp: Interrupted | null = null;
    const connection = async (): Promise<void> => {
      const patience = new Patience();
      for (let piece = pending.shift(); piece !== undefined; piece = pending.shift()) {
        const reached = { at: piece[0] };
        try {
          await this.#piece(part, piece, reached, signal);
          patience.progressed(piece[1] - piece[0]);
        } catch (error) {
          if (reached.at < piece[1]) pending.unshift([reached.at, piece[1]]);
          if (!isInterrupted(error)) throw error;
          this.#direct = null;
          this.#tell({ interruptions: this.#progress.interruptions + 1 });
          patience.progressed(reached.at - piece[0]);
          if (!patience.another()) {
            gaveUp = error;
            return;
          }
          await this.#pause(patience.fruitless, error.retryAfterMs, signal);
        }
      }
    };
    const guarded = (): Promise<void> =>
      connection().catch((error: unknown) => {
        // The others' own ends are but the echo of the first.
        if (failure === null) failure = error;
        stop.abort();
      });
    await Promise.all(Array.from({ length: Math.min(limits.fetchParts, pending.length) }, guarded));
    if (failure !== null) throw failure;
    if (part.missing().length > 0)
      throw gaveUp ?? new Interrupted("a piece stayed away although nothing failed");
  }

  async #piece(
    part: PartFile,
    [from, to]: ByteRange,
    reached: { at: number },
    signal: AbortSignal,
  ): Promise<void> {
    const { version } = part;
    const condition = version.etag ?? version.modified;
    const headers = {
      range: `bytes=${from}-${to - 1}`,
      ...(condition === null ? {} : { "if-range": condition }),
    };
    const direct =
      this.#direct !== null && this.#options.clock.nowMs() < this.#direct.untilMs ? this.#direct : null;
    const answer = await this.#options.client.get(direct?.url ?? this.#options.target.url, headers, signal);
    try {
      if (direct === null)
        this.#direct = { url: answer.url, untilMs: this.#options.clock.nowMs() + directMs };
      this.#assertRange(answer, version, from, direct !== null);
      for await (const chunk of answer.chunks()) {
        // More than was asked for is none of the file.
        if (reached.at === to) return;
        const bytes = chunk.subarray(0, to - reached.at);
        await this.#take(part, bytes, reached.at);
        reached.at += bytes.byteLength;
      }
      // Read to its end the connection can be used again.
      if (reached.at < to) throw new Interrupted(`${shown(answer.url)} broke off`);
    } finally {
      answer.close();
    }
  }

  #assertRange(answer: Answer, version: SourceVersion, from: number, direct: boolean): void {
    const { status, headers, url } = answer;
    const etag = strongEtag(headers);
    const other = version.etag !== null && etag !== null && etag !== version.etag;
    if (status === 206) {
      const range = rangeOf(headers);
      if (range === null || range.from !== from)
        throw new Interrupted(`${shown(url)} answers with other bytes than it was asked for`);
      if (other || (range.total !== null && range.total !== version.size))
        throw new Changed(`${shown(url)} has another version`);
      return;
    }
    if (status === 416) throw new Changed(`${shown(url)} does not have these bytes any more`);
    if (status === 200) {
      if (other || version.size !== (lengthOf(headers) ?? version.size))
        throw new Changed(`${shown(url)} has another version`);
      throw new Interrupted(`${shown(url)} answers with the whole file instead of a part`);
    }
    // A signed address has had its time: the next request asks where it is now.
    if (direct && [401, 403, 404, 410].includes(status))
      throw new Interrupted(`${shown(url)} answers ${status}`);
    throw statusError(answer);
  }

  async #whole(part: PartFile): Promise<void> {
    const { client, target, signal } = this.#options;
    const answer = await client.get(target.url, {}, signal);
    try {
      if (answer.status !== 200) throw statusError(answer);
      const { version } = part;
      const etag = strongEtag(answer.headers);
      if ((lengthOf(answer.headers) ?? version.size) !== version.size || etag !== version.etag)
        throw new Changed(`${shown(answer.url)} has another version`);
      this.#tell({ bytesDone: 0 });
      let at = 0;
      for await (const chunk of answer.chunks()) {
        if (at + chunk.byteLength > version.size)
          throw new Interrupted(`${shown(answer.url)} sends more than the ${version.size} bytes it told`);
        await this.#take(part, chunk, at);
        at += chunk.byteLength;
      }
      if (at < version.size) throw new Interrupted(`${shown(answer.url)} broke off`);
    } finally {
      answer.close();
    }
  }

  async #take(part: PartFile, bytes: Uint8Array, at: number): Promise<void> {
    // A page that says sorry is found by its first bytes, not by its last.
    const head = new TextDecoder("latin1").decode(bytes.subarray(0, magic.length));
    if (at === 0 && bytes.byteLength > 0 && !magic.startsWith(head))
      throw new FetchError("header", "what comes is no GGUF file: it does not begin with GGUF");
    await part.write(bytes, at);
    this.#tell({
      bytesDone: part.bytesDone,
      bytesReceived: this.#progress.bytesReceived + bytes.byteLength,
    });
  }

  /** The same once more while it is interrupted, a bounded number of times. */
  async #patiently<T>(work: () => Promise<T>): Promise<T> {
    const patience = new Patience();
    for (;;) {
      try {
        return await work();
      } catch (error) {
        if (!isInterrupted(error)) throw error;
        this.#tell({ interruptions: this.#progress.interruptions + 1 });
        if (!patience.another()) throw error;
        await this.#pause(patience.fruitless, error.retryAfterMs, this.#options.signal);
      }
    }
  }

  /** Exponential with full jitter, not less than what the source asks for. */
  async #pause(fruitless: number, retryAfterMs: number | null, signal: AbortSignal): Promise<void> {
    const { clock, entropy } = this.#options;
    const most = Math.min(limits.fetchBackoffMsMax, limits.fetchBackoffMs * 2 ** Math.max(0, fruitless - 1));
    const ms = Math.max(most * entropy.unit(), retryAfterMs ?? 0);
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = clock.setTimer(ms, resolve);
    signal.addEventListener("abort", () => resolve(), { once: true });
    await promise;
    timer.cancel();
    if (signal.aborted) throw new FetchError("aborted", "the fetch was called off");
  }

  #tell(news: Partial<FetchProgress>): void {
    this.#progress = { ...this.#progress, ...news };
    this.#options.onProgress(this.#progress);
  }
}

/** How often in a row nothing came of it. */
class Patience {
  fruitless = 0;
  #fresh = 0;

  progressed(bytes: number): void {
    this.#fresh += bytes;
    if (this.#fresh < limits.fetchProgressBytes) return;
    this.#fresh = 0;
    this.fruitless = 0;
  }

  another(): boolean {
    this.fruitless += 1;
    return this.fruitless < limits.fetchFruitlessMax;
  }
}

/** The one byte that was asked for, so that the connection can be used again; of more nobody waits for the end. */
async function readFew(answer: Answer): Promise<void> {
  let bytes = 0;
  for await (const chunk of answer.chunks()) {
    bytes += chunk.byteLength;
    if (bytes > magic.length) return;
  }
}

function statusError({ status, headers, url }: Answer): Error {
  if (status === 408 || status === 425 || status === 429 || status >= 500)
    return new Interrupted(`${shown(url)} answers ${status}`, retryAfterOf(headers));
  const why: Readonly<Record<number, string>> = {
    401: "it wants to know who asks; fetch the file yourself and name it by file:",
    403: "it does not give this file to everybody; fetch the file yourself and name it by file:",
    404: "there is no such file; check the reference",
    410: "there is no such file any more; check the reference",
  };
  return new FetchError(
    "refused",
    `${shown(url)} answers ${status}: ${why[status] ?? "check the reference"}`,
  );
}

/** Seconds only: a date would be compared with a clock that may be wrong. */
function retryAfterOf(headers: Headers): number | null {
  const seconds = /^\d{1,6}$/.exec(headers.get("retry-after") ?? "")?.[0];
  return seconds === undefined ? null : Math.min(limits.fetchRetryAfterMsMax, Number(seconds) * 1000);
}

/** RFC 9110, section 14.4. Null: none, or none that makes sense. */
function rangeOf(headers: Headers): { readonly from: number; readonly total: number | null } | null {
  const parts = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15}|\*)$/.exec(headers.get("content-range") ?? "");
  if (parts === null) return null;
  const [from, to, total] = [Number(parts[1]), Number(parts[2]), parts[3] === "*" ? null : Number(parts[3])];
  return to < from || (total !== null && to >= total) ? null : { from, total };
}

function lengthOf(headers: Headers): number | null {
  const text = headers.get("content-length");
  return text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null;
}

/** RFC 9110, section 13.1.5: only a strong one says that the bytes are the same. */
function strongEtag(headers: Headers): string | null {
  const etag = headers.get("etag");
  return etag !== null && /^"[\x21\x23-\x7e]{1,512}"$/.test(etag) ? etag : null;
}
