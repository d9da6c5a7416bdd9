/**
 * What the tests of the daemon on real engines share: viewers and a cancel on sockets of this process's own event
 * loop, a way to submit, a llama-server alone to compare with, and seeded chance.
 */
import type { RunningDaemon } from "../support/daemon.ts";
import { engineBin } from "../support/engine.ts";
import { RawStream } from "../support/raw-stream.ts";
import type { SseEvent } from "../support/sse-client.ts";
import { waitFor } from "../support/wait.ts";

export type Json = Readonly<Record<string, unknown>>;

export const isTerminal = ({ type }: SseEvent): boolean => type === "end" || type === "error";

/** Longer than anything a loaded machine needs; a test that waits so long has failed. */
export const patienceMs = 30_000;

/** One event stream, read to its end as its bytes come. */
export class Viewer {
  readonly taskId: string;
  /** The stream has ended, or broke: then `failure` says how. */
  ended = false;
  failure: unknown = null;

  /** The head of the answer is there. */
  constructor(readonly stream: RawStream) {
    this.taskId = stream.headers["x-task-id"] ?? "";
    void this.#read();
  }

  get events(): readonly SseEvent[] {
    return this.stream.sse.events;
  }

  get tokens(): SseEvent[] {
    return this.events.filter(({ type }) => type === "token");
  }

  get text(): string {
    return this.tokens.map(({ data }) => data.t).join("");
  }

  /** The terminal event; throws unless it is the only one and the last. */
  get terminal(): SseEvent {
    const [first, ...more] = this.events.filter(isTerminal);
    if (first === undefined || more.length > 0 || this.events.at(-1) !== first)
      throw new Error(`not one terminal event, the last: ${JSON.stringify(this.events.slice(-3))}`);
    return first;
  }

  /** How the task ended: the reason of `end`, the code of `error`. */
  get outcome(): string {
    const { type, data } = this.terminal;
    return String(type === "end" ? data.finish_reason : data.code);
  }

  hasTokens(count: number): Promise<true> {
    return waitFor(() => this.ended || this.tokens.length >= count, patienceMs, `${count} tokens`);
  }

  hasStarted(): Promise<true> {
    return waitFor(() => this.ended || this.events.length > 0, patienceMs, "the event started");
  }

  /** Itself at its end, its order checked: ids and token numbers without gaps, one `started`. */
  async finished(timeoutMs = patienceMs): Promise<this> {
    await waitFor(() => this.ended, timeoutMs, `the end of stream ${this.taskId}`);
    if (this.failure !== null) throw this.failure;
    this.checkOrder();
    return this;
  }

  checkOrder(): void {
    const wrong = (what: string) => new Error(`task ${this.taskId}: ${what}`);
    const [first] = this.events;
    this.events.forEach((event, at) => {
      // A cancel withholds what was not sent yet: only its own event may leave a gap behind it.
      if (event.id !== (first?.id ?? 0) + at && !isTerminal(event)) throw wrong(`id ${event.id} at ${at}`);
      if (event.type === "started" && at > 0) throw wrong("started is not the first");
    });
    const [firstToken] = this.tokens;
    this.tokens.forEach(({ data }, at) => {
      if (data.i !== Number(firstToken?.data.i ?? 0) + at) throw wrong(`token ${String(data.i)} at ${at}`);
    });
    void this.terminal;
  }

  async #read(): Promise<void> {
    const { stream } = this;
    await stream.ended;
    if (stream.failure !== null) this.failure = stream.failure;
    else if (!stream.complete) this.failure = new Error(`the connection of stream ${this.taskId} broke`);
    else if (stream.status !== 200) this.failure = refusalOf(stream);
    this.ended = true;
  }
}

const refusalOf = ({ status, body }: RawStream): Error => new Error(`${status}: ${body.toString()}`);

/** Resolves when the head of the answer is there. */
function exchange(
  daemon: RunningDaemon,
  method: "GET" | "POST",
  path: string,
  body?: Json,
): Promise<RawStream> {
  const request = { method, path, key: daemon.key, headers: { accept: "text/event-stream" } };
  const sent = body === undefined ? request : { ...request, body: JSON.stringify(body) };
  return new RawStream(Number(new URL(daemon.url).port), sent).head;
}

const posted = (body: Json, headers: Readonly<Record<string, string>> = {}): RequestInit => ({
  method: "POST",
  headers: { "content-type": "application/json", ...headers },
  body: JSON.stringify(body),
});

/** POST with its stream in the same request. */
export async function submitAndWatch(daemon: RunningDaemon, body: Json): Promise<Viewer> {
  const stream = await exchange(daemon, "POST", "/v1/tasks", body);
  if (stream.status === 200) return new Viewer(stream);
  await stream.ended;
  throw new Error("the task was refused", { cause: refusalOf(stream) });
}

/** POST alone: the answer as it came. */
export async function submit(daemon: RunningDaemon, body: Json): Promise<{ status: number; body: Json }> {
  const response = await daemon.fetch("/v1/tasks", posted(body));
  return { status: response.status, body: (await response.json()) as Json };
}

export async function watch(daemon: RunningDaemon, taskId: string, query = ""): Promise<Viewer> {
  return new Viewer(await exchange(daemon, "GET", `/v1/tasks/${taskId}/stream${query}`));
}

/**
 * Resolves with the time at which the 204 was here, in milliseconds of performance.now(), one turn of the event
 * loop later: what the server wrote to any viewer before the 204 was readable in the same poll at the latest, so
 * every viewer has it by now, and what a viewer gets from now on was written after the 204.
 */
export async function cancel(daemon: RunningDaemon, taskId: string): Promise<number> {
  const answer = await exchange(daemon, "POST", `/v1/tasks/${taskId}/cancel`);
  const atMs = performance.now();
  if (answer.status !== 204) {
    await answer.ended;
    throw new Error("the cancel was refused", { cause: refusalOf(answer) });
  }
  await new Promise((resume) => setImmediate(resume));
  return atMs;
}

export interface PoolHealth {
  readonly ready: boolean;
  readonly state: string;
  readonly replicas: readonly {
    readonly state: string;
    readonly pid: number | null;
    readonly slots_busy: number;
    readonly restarts: number;
    readonly last_error: { readonly cause: string; readonly signal: string | null } | null;
  }[];
  readonly queue: { readonly interactive: number; readonly batch: number };
  readonly metrics: {
    readonly decode_tokens_per_second: number | null;
    readonly prefill_tokens_per_second: number | null;
  };
}

export const health = (daemon: RunningDaemon, poolId: string): Promise<PoolHealth> =>
  daemon.json(`/v1/pools/${poolId}/health`);

export async function slotsBusy(daemon: RunningDaemon, poolId: string): Promise<number> {
  const { replicas } = await health(daemon, poolId);
  return replicas.reduce((sum, replica) => sum + replica.slots_busy, 0);
}

/** A llama-server of its own, asked directly. */
export interface Reference {
  /** The streamed text of /completion, put together. */
  complete(body: Json): Promise<string>;
  post<T>(path: string, body: Json): Promise<T>;
  stop(): Promise<void>;
}

export async function startReference(model: string, args: readonly string[] = []): Promise<Reference> {
  const child = Bun.spawn(
    [engineBin(), ...["-m", model, "--host", "127.0.0.1", "--port", "0", "-np", "1", "-t", "1"], ...args],
    { stdin: "ignore", stdout: "ignore", stderr: "pipe", env: { PATH: process.env.PATH ?? "" } },
  );
  let log = "";
  const drained = (async () => {
    const decoder = new TextDecoder();
    for await (const bytes of child.stderr) log += decoder.decode(bytes, { stream: true });
  })();
  const stop = async () => {
    child.kill("SIGKILL");
    await child.exited;
    await drained;
  };
  const listening = () => (child.exitCode === null ? /listening on (http:\/\/\S+)/.exec(log)?.[1] : "");
  const url = await waitFor(listening, patienceMs, "the engine alone listens").catch((error: unknown) => {
    child.kill("SIGKILL");
    throw error;
  });
  if (url === "") throw new Error(`the engine alone did not start:\n${log}`);
  const ask = async (path: string, body: Json): Promise<string> => {
    const response = await fetch(url + path, posted(body, { connection: "close" }));
    const answer = await response.text();
    if (!response.ok) throw new Error(`${path}: ${response.status} ${answer}`);
    return answer;
  };
  return {
    complete: async (body) => {
      const frames = (await ask("/completion", { ...body, stream: true })).split("\n\n");
      const parsed = frames
        .filter((frame) => frame.startsWith("data: "))
        .map((frame) => JSON.parse(frame.slice("data: ".length)) as { content: string; stop: boolean });
      if (parsed.at(-1)?.stop !== true) throw new Error("the engine alone broke off");
      return parsed.map(({ content }) => content).join("");
    },
    post: async <T>(path: string, body: Json) => JSON.parse(await ask(path, body)) as T,
    stop,
  };
}

/** mulberry32: small, fast, the same on every machine. Numbers in [0, 1). */
export class Chance {
  #state: number;

  constructor(readonly seed: number) {
    this.#state = seed;
  }

  unit(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** An integer from `from` to `to`, both included. */
  between(from: number, to: number): number {
    return from + Math.floor(this.unit() * (to - from + 1));
  }

  pick<T>(items: readonly T[]): T {
    const item = items[this.between(0, items.length - 1)];
    if (item === undefined) throw new Error("nothing to choose from");
    return item;
  }
}

/** Resolves when the moment has come: at most a poll of 5 ms late. */
export async function moment(ms: number): Promise<void> {
  const untilMs = performance.now() + ms;
  await waitFor(() => performance.now() >= untilMs, ms + patienceMs, "a moment");
}

export function percentiles(values: readonly number[]): {
  p50: number;
  p90: number;
  p99: number;
  max: number;
} {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) =>
    Math.round(sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0);
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1) };
}
