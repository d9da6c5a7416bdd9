/**
 * What one scenario knows: the daemon it describes and runs, the people who ask, and what they were answered.
 * The steps in ../steps speak HTTP through it; every exchange is held to the contracts on the way.
 *
 * Always: a scenario has a daemon of its own, started at its first request, and a folder of its own, in which it can
 * start again; `close` ends every stream and it, and removes the folder.
 */
import { expect } from "bun:test";
import type { PoolHealthBody } from "../../src/api/schema/pools.ts";
import {
  databaseFile,
  failToStart,
  keys,
  type LoggingDaemon,
  newFolder,
  type RunningDaemon,
  removeFolder,
  replaceConfig,
  type Setting,
  startDaemon,
  startLoggingDaemon,
} from "../../test/support/running-daemon.ts";
import { SseClient, type SseEvent } from "../../test/support/sse-client.ts";
import { waitFor } from "../../test/support/wait.ts";
import { checkEvents, checkExchange } from "./contract-check.ts";

export const people = ["alice", "bob", "the operator", "a stranger", "an impostor"] as const;
export type Person = (typeof people)[number];

const keyOf: Readonly<Record<Person, string | null>> = {
  alice: keys.alice,
  bob: keys.bob,
  "the operator": keys.operator,
  "a stranger": null,
  "an impostor": "impostor-test-key-000000",
};

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  readonly json: Readonly<Record<string, unknown>>;
}

export interface Ask {
  readonly method?: string;
  readonly body?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

type MutableSettings = { [name: string]: Setting };

export class World {
  /** The configuration under construction. */
  readonly settings: MutableSettings = {};
  readonly pools: MutableSettings[] = [];
  logged = false;
  /** Task ids and bodies by the names that the scenario gives them. */
  readonly tasks = new Map<string, { readonly id: string; readonly body: string }>();
  readonly streams = new Map<string, SseClient>();
  /** Servers beside the daemon; they end with the scenario. */
  readonly neighbours: { stop(): Promise<void> }[] = [];
  closing: Promise<void> | null = null;
  /** What the last start that failed came to. */
  failedStart: { readonly code: number; readonly stderr: string } | null = null;
  /** The answers before the last one. */
  readonly answersBefore: Answer[] = [];
  #answer: Answer | null = null;
  #daemon: Promise<RunningDaemon> | null = null;
  #logging: LoggingDaemon | null = null;
  readonly #folder = newFolder();
  readonly #sessions = new Map<string, string>();
  /** Body of the last dry run. */
  dryRunFields: Readonly<Record<string, unknown>> = {};
  /** Headers that the next request carries besides its own. */
  nextHeaders: Record<string, string> = {};

  // ---- the daemon ----

  /** The pool that the scenario speaks of. */
  pool(): MutableSettings {
    this.#assertNotStarted();
    const pool = this.pools.at(-1);
    if (pool === undefined) throw new Error("name a pool first");
    return pool;
  }

  mock(): MutableSettings {
    return this.pool().mock as MutableSettings;
  }

  addPool(id: string, slots: number): void {
    this.#assertNotStarted();
    const mock: MutableSettings = { token_ms: 0, prefill_ms_per_token: 0, load_ms: 0, faults: [] };
    this.pools.push({ id, engine: "mock", model: `mock:${id}`, slots, mock });
  }

  /** `streaming.heartbeat_ms` and its like. */
  set(path: string, value: Setting): void {
    this.#assertNotStarted();
    const [section = "", name = ""] = path.split(".");
    this.settings[section] = {
      ...((this.settings[section] as MutableSettings | undefined) ?? {}),
      [name]: value,
    };
  }

  #assertNotStarted(): void {
    if (this.#daemon !== null) throw new Error("the daemon runs already: say this before the first request");
  }

  daemon(): Promise<RunningDaemon> {
    this.#daemon ??= this.logged
      ? startLoggingDaemon(this.#allSettings(), this.#folder).then((daemon) => {
          this.#logging = daemon;
          return daemon;
        })
      : startDaemon(this.#allSettings(), this.#folder);
    return this.#daemon;
  }

  #allSettings(): MutableSettings {
    return { ...this.settings, pools: this.pools };
  }

  /** Another configuration for the daemon that runs: the file is replaced, as an editor does. */
  reconfigure(more: MutableSettings | string): void {
    replaceConfig(typeof more === "string" ? more : { ...this.#allSettings(), ...more }, this.#folder);
  }

  log(): LoggingDaemon {
    if (this.#logging === null)
      throw new Error("the scenario does not keep the log, or the daemon does not run");
    return this.#logging;
  }

  get folder(): string {
    return this.#folder;
  }

  async shutDown(): Promise<void> {
    const daemon = await this.daemon();
    this.closing = daemon.close();
  }

  /** Once it has ended: the settings may be changed, and the next request starts it again. */
  async stop(how: "drain" | "kill"): Promise<void> {
    const daemon = await this.daemon();
    await (how === "kill" ? this.log().kill() : daemon.close());
    this.closing = null;
    this.#daemon = null;
    this.#logging = null;
  }

  async failToStart(): Promise<void> {
    this.#assertNotStarted();
    this.failedStart = await failToStart(this.#allSettings(), this.#folder);
  }

  get database(): string {
    return databaseFile(this.#folder);
  }

  async close(): Promise<void> {
    for (const stream of this.streams.values()) await stream.close();
    try {
      await (await this.#daemon?.catch(() => null))?.close();
    } finally {
      for (const neighbour of this.neighbours) await neighbour.stop();
      removeFolder(this.#folder);
    }
  }

  // ---- requests ----

  /** Sends it and remembers the answer; streams are `open`ed. */
  async ask(who: Person, path: string, ask: Ask = {}): Promise<Answer> {
    const { response, sentCorrelationId } = await this.#send(who, path, ask);
    const text = await response.text();
    const isJson = (response.headers.get("content-type") ?? "").startsWith("application/json");
    const json = isJson && text !== "" ? (JSON.parse(text) as Answer["json"]) : null;
    checkExchange({ method: ask.method ?? "GET", path, response, json, sentCorrelationId });
    return this.#remember({ status: response.status, headers: response.headers, text, json: json ?? {} });
  }

  /** A stream under a name; an answer that is none is remembered as `ask` does. */
  async open(who: Person, viewer: string, path: string, ask: Ask = {}): Promise<SseClient | null> {
    const { response, sentCorrelationId } = await this.#send(who, path, ask);
    const json = response.ok ? null : await response.json();
    checkExchange({ method: ask.method ?? "GET", path, response, json, sentCorrelationId });
    const { status, headers } = response;
    this.#remember({ status, headers, text: "", json: (json ?? {}) as Answer["json"] });
    if (!response.ok || response.status === 204) return null;
    const stream = new SseClient(response);
    this.streams.set(viewer, stream);
    return stream;
  }

  /** A look that leaves the answer of the scenario as it is. */
  async look(who: Person, path: string): Promise<Answer> {
    const before = this.#answer;
    const seen = await this.ask(who, path);
    if (before !== null) this.answersBefore.pop();
    this.#answer = before;
    return seen;
  }

  #remember(answer: Answer): Answer {
    if (this.#answer !== null) this.answersBefore.push(this.#answer);
    this.#answer = answer;
    return answer;
  }

  async #send(
    who: Person,
    path: string,
    ask: Ask,
  ): Promise<{ response: Response; sentCorrelationId: string | null }> {
    const { url } = await this.daemon();
    const key = keyOf[who];
    const headers: Record<string, string> = {
      ...(key === null ? {} : { "x-api-key": key }),
      ...(ask.body === undefined ? {} : { "content-type": "application/json" }),
      ...ask.headers,
      ...this.nextHeaders,
    };
    this.nextHeaders = {};
    const response = await fetch(url + path, {
      method: ask.method ?? "GET",
      headers,
      ...(ask.body === undefined ? {} : { body: ask.body }),
    });
    return { response, sentCorrelationId: headers["x-correlation-id"] ?? null };
  }

  // ---- what the scenario speaks of ----

  get answer(): Answer {
    if (this.#answer === null) throw new Error("nobody asked anything yet");
    return this.#answer;
  }

  /** The id of the session that the scenario calls so. */
  session(name: string): string {
    const id = this.#sessions.get(name) ?? crypto.randomUUID();
    this.#sessions.set(name, id);
    return id;
  }

  task(name: string): string {
    const task = this.tasks.get(name);
    if (task === undefined) throw new Error(`no task is called "${name}"`);
    return task.id;
  }

  stream(viewer: string): SseClient {
    const stream = this.streams.get(viewer);
    if (stream === undefined) throw new Error(`no stream is called "${viewer}"`);
    return stream;
  }

  /** The task as its owner or the operator sees it now. */
  async view(name: string): Promise<Answer["json"]> {
    const { json } = await this.look("the operator", `/v1/tasks/${this.task(name)}`);
    return json;
  }

  async health(pool: string): Promise<PoolHealthBody> {
    return (await this.look("the operator", `/v1/pools/${pool}/health`)).json as unknown as PoolHealthBody;
  }

  async untilIdle(pool: string): Promise<void> {
    await waitFor(
      async () => (await this.health(pool)).replicas.every(({ slots_busy }) => slots_busy === 0),
      8_000,
      `no slot of ${pool} is busy`,
    );
  }

  async untilTask(name: string, state: string): Promise<void> {
    await waitFor(async () => (await this.view(name)).state === state, 8_000, `"${name}" is ${state}`);
  }

  /** The whole stream, held to the order that every stream has. `after`: it began behind that id. */
  async whole(viewer: string, after = -1): Promise<readonly SseEvent[]> {
    const events = await this.stream(viewer).all();
    checkEvents(events);
    checkOrder(events, after);
    return events;
  }
}

/** started → token* with metrics* after the first token → end | error; ids and i without gaps, but before a cancel. */
function checkOrder(events: readonly SseEvent[], after: number): void {
  const last = events.at(-1);
  // What a viewer had not been sent when its task was canceled is passed over.
  const canceled = last?.data.code === "CANCELED" ? last : null;
  const whole = canceled === null ? events : events.slice(0, -1);
  expect(whole.map(({ id }) => id)).toEqual(whole.map((_, at) => after + 1 + at));
  if (canceled !== null) expect(canceled.id).toBeGreaterThanOrEqual(after + events.length);
  const types = events.map(({ type }) => type).join(" ");
  expect(types).toMatch(
    after < 0
      ? /^(?:started (?:token (?:(?:token|metrics) )*)?)?(?:end|error)$/
      : /^(?:(?:token|metrics) )*(?:end|error)$/,
  );
  const tokens = events.filter(({ type }) => type === "token").map(({ data }) => Number(data.i));
  const first = tokens[0] ?? 0;
  expect(tokens).toEqual(tokens.map((_, at) => first + at));
  if (after < 0) expect(first).toBe(0);
}

export const tokensOf = (events: readonly SseEvent[]): string[] =>
  events.filter(({ type }) => type === "token").map(({ data }) => String(data.t));
