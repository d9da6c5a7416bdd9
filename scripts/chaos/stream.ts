/**
 * One client of a chaos run: submits a task, watches its stream, and comes back whenever the connection breaks, as
 * an EventSource does. It believes nothing: every event is checked as it comes, over all connections together.
 *
 * Always holds: it ends with what the task ended with, or throws `Broken`; it never waits longer than its patience
 * for something new.
 */
import { type SseEvent, SseParser } from "../../test/support/sse-client.ts";

export type Json = Readonly<Record<string, unknown>>;

/** A rule that did not hold; the message says which. */
export class Broken extends Error {}

/** The task was refused, and trying again would not help. */
export class Refused extends Broken {
  constructor(
    readonly status: number,
    readonly body: string,
  ) {
    super(`the task was answered ${status} ${body.slice(0, 300)}`);
  }
}

/** Where the daemon answers; a start later it is the same address. */
export interface Server {
  readonly url: string;
  readonly key: string;
}

export interface StreamOptions {
  readonly server: Server;
  readonly body: Json;
  /** Whether the POST brings the stream itself, or a 202 and a GET. */
  readonly inOneRequest: boolean;
  /** Longest wait without anything new, milliseconds. */
  readonly patienceMs: number;
}

const retryMs = 30;
const recentEvents = 12;

export class ChaosStream {
  readonly taskId: string = crypto.randomUUID();
  /** Times that its connection broke, or was refused, and it came back. */
  reconnects = 0;
  resubmits = 0;
  refusals = 0;
  longestPauseMs = 0;
  lastTokenMs = 0;
  /** What the first event said; null: it has not come. */
  started: Json | null = null;
  /** The latest events, shortened, for whoever has to find out what went wrong. */
  readonly recent: string[] = [];
  readonly #options: StreamOptions;
  readonly #pieces: string[] = [];
  #nextId = 0;
  #terminal: SseEvent | null = null;
  #newsMs = performance.now();
  #connection = new AbortController();
  #broken: Broken | null = null;

  constructor(options: StreamOptions) {
    this.#options = options;
  }

  get tokens(): number {
    return this.#pieces.length;
  }

  get text(): string {
    return this.#pieces.join("");
  }

  /** Its connection goes away, as a client's network does. It comes back. */
  cut(): void {
    this.#connection.abort();
  }

  /** Called from time to time: gives up where nothing new has come for too long. */
  lookAtPatience(nowMs: number): void {
    if (nowMs - this.#newsMs > this.#options.patienceMs)
      this.giveUp(`nothing new for ${this.#options.patienceMs} ms`);
  }

  giveUp(why: string): void {
    this.#broken ??= new Broken(why);
    this.#connection.abort();
  }

  /** The terminal event. Throws `Broken`. */
  async run(): Promise<SseEvent> {
    await this.#submit();
    while (this.#terminal === null) {
      this.#assertWhole();
      const response = await this.#exchange(`/v1/tasks/${this.taskId}/stream`, {
        headers: this.#nextId === 0 ? {} : { "last-event-id": String(this.#nextId - 1) },
      });
      if (response?.status === 200) await this.#read(response);
      else if (response !== null)
        await this.#refused(
          response,
          (status, body) => new Broken(`the stream was answered ${status} ${body.slice(0, 300)}`),
        );
      if (this.#terminal === null) await this.#comesBack();
    }
    this.#assertWhole();
    return this.#terminal;
  }

  /**
   * Asks once more, behind the end and from the beginning: nothing is left to say, and what was said stays. Whether the
   * log was still there: a daemon that was killed since may have forgotten it.
   */
  async replays(): Promise<boolean> {
    const path = `/v1/tasks/${this.taskId}/stream`;
    const behind = await this.#exchange(`${path}?after=${this.#nextId - 1}`, {});
    if (behind === null || behind.status === 404) return false;
    if (behind.status !== 204) throw new Broken(`behind the end: ${behind.status} instead of 204`);
    const whole = await this.#exchange(path, {});
    if (whole?.status !== 200) return false;
    const parser = new SseParser();
    try {
      for await (const bytes of whole.body ?? []) parser.push(bytes);
    } catch {
      return false;
    }
    const { events } = parser;
    // A connection that broke in the middle proves nothing.
    if (events.at(-1)?.id !== this.#nextId - 1) return false;
    const said = events.flatMap(({ type, data }) => (type === "token" ? [data.t] : [])).join("");
    if (events.some(({ id }, at) => id !== at)) throw new Broken("the replay has a gap");
    if (said !== this.text) throw new Broken("the replay says something else");
    return true;
  }

  async #submit(): Promise<void> {
    const { body, inOneRequest } = this.#options;
    const headers = { "content-type": "application/json" };
    const request = {
      method: "POST",
      headers: inOneRequest ? { ...headers, accept: "text/event-stream" } : headers,
      body: JSON.stringify({ ...body, task_id: this.taskId }),
    };
    for (;;) {
      this.#assertWhole();
      const response = await this.#exchange("/v1/tasks", request);
      if (response !== null && (response.status === 200 || response.status === 202)) {
        this.#newsMs = performance.now();
        if (response.status === 200) await this.#read(response);
        else await response.text().catch(() => "");
        return;
      }
      if (response !== null) await this.#refused(response, (status, body) => new Refused(status, body));
      // No answer: whether it was accepted is not known. The same id again cannot make two of it.
      else this.resubmits++;
      await Bun.sleep(retryMs);
    }
  }

  /** Null: no answer. */
  async #exchange(path: string, init: RequestInit): Promise<Response | null> {
    this.#connection = new AbortController();
    const headers = new Headers(init.headers);
    headers.set("x-api-key", this.#options.server.key);
    try {
      const { signal } = this.#connection;
      return await fetch(this.#options.server.url + path, { ...init, headers, signal });
    } catch {
      return null;
    }
  }

  /** To the end of the connection, however it ends. */
  async #read(response: Response): Promise<void> {
    const parser = new SseParser();
    let taken = 0;
    try {
      for await (const bytes of response.body ?? []) {
        parser.push(bytes);
        for (const event of parser.events.slice(taken)) this.#take(event);
        taken = parser.events.length;
      }
    } catch (error) {
      if (error instanceof Broken) throw error;
      // The parser refuses what is no event stream; everything else is a connection that broke.
      if (error instanceof Error && /^(not an event|more after retry)|encoded data/.test(error.message))
        throw new Broken(error.message, { cause: error });
    } finally {
      this.#connection.abort();
    }
  }

  #take(event: SseEvent): void {
    const { id, type, data } = event;
    const nowMs = performance.now();
    this.recent.push(`${id} ${type} ${JSON.stringify(data).slice(0, type === "token" ? 60 : 300)}`);
    if (this.recent.length > recentEvents) this.recent.shift();
    if (this.#terminal !== null) throw new Broken(`event ${id} (${type}) behind the terminal one`);
    if (id !== this.#nextId) throw new Broken(`event id ${id} where ${this.#nextId} should come`);
    // An error may be the only event: of a task that never started.
    if ((type === "started") !== (id === 0) && !(id === 0 && type === "error"))
      throw new Broken(`event ${id} is ${type}`);
    this.#nextId = id + 1;
    this.#newsMs = nowMs;
    if (type === "started") this.started = data;
    else if (type === "token") this.#takeToken(data, nowMs);
    else if (type === "end" || type === "error") this.#terminal = event;
  }

  #takeToken({ t, i }: SseEvent["data"], nowMs: number): void {
    if (i !== this.#pieces.length) throw new Broken(`token i ${i} where ${this.#pieces.length} should come`);
    if (typeof t !== "string" || t === "") throw new Broken(`token ${i} without text`);
    if (i > 0) this.longestPauseMs = Math.max(this.longestPauseMs, nowMs - this.lastTokenMs);
    this.lastTokenMs = nowMs;
    this.#pieces.push(t);
  }

  /** Only what is to be tried again is no failure. */
  async #refused(response: Response, as: (status: number, body: string) => Broken): Promise<void> {
    const text = await response.text().catch(() => "");
    if (response.status !== 429 && response.status !== 503) throw as(response.status, text);
    this.refusals++;
  }

  async #comesBack(): Promise<void> {
    this.reconnects++;
    await Bun.sleep(retryMs);
  }

  #assertWhole(): void {
    if (this.#broken !== null) throw this.#broken;
  }
}
