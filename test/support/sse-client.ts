/**
 * A strict reader of event streams for tests: `SseParser` turns bytes into events, `SseClient` reads a fetch
 * Response with it as the bytes come. It shares no code with the server, and refuses what a lenient browser
 * would let pass: bytes that are not UTF-8, fields that nobody sends, an event without an id or with two data lines.
 *
 * Source: WHATWG HTML, section 9.2 (server-sent events)
 */

export interface SseEvent {
  readonly id: number;
  readonly type: string;
  readonly data: Readonly<Record<string, unknown>>;
}

export class SseParser {
  /** Every event so far, in order. */
  readonly events: SseEvent[] = [];
  comments = 0;
  /** What `retry:` said; null: nothing. Only the end of the stream may follow it. */
  retryMs: number | null = null;
  /** All text so far, for comparing what two viewers were sent. */
  text = "";
  readonly #decoder = new TextDecoder("utf-8", { fatal: true });
  #rest = "";

  push(bytes: Uint8Array): void {
    const piece = this.#decoder.decode(bytes, { stream: true });
    this.text += piece;
    this.#rest += piece;
    for (let end = this.#rest.indexOf("\n\n"); end >= 0; end = this.#rest.indexOf("\n\n")) {
      this.#frame(this.#rest.slice(0, end));
      this.#rest = this.#rest.slice(end + 2);
    }
  }

  /** The stream is over: nothing may be left half-said. */
  end(): void {
    const piece = this.#decoder.decode();
    if (this.#rest + piece !== "") throw new Error(`the stream ended within an event: ${this.#rest}`);
  }

  #frame(frame: string): void {
    if (this.retryMs !== null) throw new Error(`more after retry: ${JSON.stringify(frame)}`);
    const retry = /^retry: (\d+)$/.exec(frame);
    if (retry !== null) {
      this.retryMs = Number(retry[1]);
      return;
    }
    if (/^:[^\n]*$/.test(frame)) {
      this.comments += 1;
      return;
    }
    const match = /^id: (\d+)\nevent: ([a-z]+)\ndata: (\{[^\n]*\})$/.exec(frame);
    if (match === null) throw new Error(`not an event: ${JSON.stringify(frame)}`);
    const data = JSON.parse(match[3] ?? "") as Record<string, unknown>;
    this.events.push({ id: Number(match[1]), type: match[2] ?? "", data });
  }
}

/** Long enough for a loaded machine; a test that needs it has failed. */
const patienceMs = 8_000;

export class SseClient {
  readonly #parser = new SseParser();
  readonly #reader: Pick<ReadableStreamDefaultReader<Uint8Array>, "read" | "cancel">;
  #taken = 0;
  #pieces = 0;
  #ended = false;
  #failure: unknown = null;
  #news = Promise.withResolvers<void>();

  constructor(readonly response: Response) {
    const { body } = response;
    if (body === null) throw new Error(`an answer ${response.status} without a body`);
    this.#reader = body.getReader();
    void this.#pump();
  }

  /** Everything received so far, taken by `next` or not. */
  get events(): readonly SseEvent[] {
    return this.#parser.events;
  }
  get comments(): number {
    return this.#parser.comments;
  }
  get text(): string {
    return this.#parser.text;
  }
  /** How often something came; what was sent together comes together. */
  get pieces(): number {
    return this.#pieces;
  }
  /** When the server asked the client to come back; null: it did not. */
  get retryMs(): number | null {
    return this.#parser.retryMs;
  }
  /** The server has closed the stream. */
  get ended(): boolean {
    return this.#ended;
  }

  /** The next event; null when the stream has ended. */
  async next(): Promise<SseEvent | null> {
    await this.#until("the next event", () => this.#taken < this.events.length);
    const event = this.events[this.#taken] ?? null;
    if (event !== null) this.#taken += 1;
    return event;
  }

  /** The events from here to the `count`th of this type, that one included; throws when the stream ends before. */
  async until(type: string, count = 1): Promise<SseEvent[]> {
    const seen: SseEvent[] = [];
    for (let left = count; left > 0; ) {
      const event = await this.next();
      if (event === null)
        throw new Error(`the stream ended ${left} "${type}" too early: ${JSON.stringify(seen.at(-1))}`);
      seen.push(event);
      if (event.type === type) left -= 1;
    }
    return seen;
  }

  /** Everything of the stream from its beginning, once the server has closed it. */
  async all(): Promise<readonly SseEvent[]> {
    await this.#until("the end of the stream", () => this.#ended);
    this.#taken = this.events.length;
    return this.events;
  }

  /** Resolves once what was received so far, taken or not, is enough; throws when the stream ends before. */
  async come(what: string, enough: (events: readonly SseEvent[]) => boolean): Promise<void> {
    await this.#until(what, () => enough(this.events));
    if (!enough(this.events)) throw new Error(`the stream ended before ${what}`);
  }

  async untilComments(count: number): Promise<void> {
    await this.come(`comment ${count}`, () => this.comments >= count);
  }

  /** Goes away, as a browser does when its page is closed. */
  async close(): Promise<void> {
    await this.#reader.cancel().catch(() => undefined);
  }

  async #pump(): Promise<void> {
    try {
      for (;;) {
        const { done, value } = await this.#reader.read();
        if (done) break;
        this.#pieces += 1;
        this.#parser.push(value);
        this.#tell();
      }
      this.#parser.end();
    } catch (error) {
      this.#failure = error;
    }
    this.#ended = true;
    this.#tell();
  }

  #tell(): void {
    this.#news.resolve();
    this.#news = Promise.withResolvers();
  }

  async #until(what: string, come: () => boolean): Promise<void> {
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(
      () => late.reject(new Error(`not within ${patienceMs} ms: ${what}`)),
      patienceMs,
    );
    try {
      while (!come() && !this.#ended) await Promise.race([this.#news.promise, late.promise]);
    } finally {
      clearTimeout(timer);
    }
    if (this.#failure !== null) throw this.#failure;
  }
}
