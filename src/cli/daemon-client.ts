/**
 * A running daemon as `replay` and `fetch` speak to it: JSON in and out, and one stream. Made by replay.ts and fetch.ts.
 */

import type { SeenRun } from "../domain/replay-comparison.ts";
import { decodeFrame } from "../domain/sse.ts";

/** What cannot be done, for the operator. */
export class CommandError extends Error {
  readonly commandFailed = true;
}

export const isCommandError = (error: unknown): error is CommandError =>
  error instanceof Error && (error as Partial<CommandError>).commandFailed === true;

type Fields = Record<string, unknown>;

export class DaemonClient {
  constructor(
    /** Without a slash at the end. */
    private readonly url: string,
    /** Null: none is sent. */
    private readonly key: string | null,
  ) {}

  /** Null: there is no such thing. @throws CommandError */
  async get(path: string): Promise<Fields | null> {
    const response = await this.#ask(path, {});
    if (response.status === 404) {
      await response.text();
      return null;
    }
    return (await this.#sound(path, response)).json() as Promise<Fields>;
  }

  /** Null: there is no such thing. @throws CommandError */
  async post(path: string, body: Fields): Promise<Fields | null> {
    const init = {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    };
    const response = await this.#ask(path, init);
    if (response.status === 404) {
      await response.text();
      return null;
    }
    return (await this.#sound(path, response)).json() as Promise<Fields>;
  }

  /**
   * Submits the task and reads its stream: to its end, or until `enough` says so of the text; then the task is canceled.
   * @throws CommandError where it was refused or ended otherwise than done
   */
  async run(body: Fields, enough: (text: string) => boolean): Promise<SeenRun & { readonly taskId: string }> {
    const headers = { accept: "text/event-stream", "content-type": "application/json" };
    const init = { method: "POST", headers, body: JSON.stringify(body) };
    const response = await this.#sound("/v1/tasks", await this.#ask("/v1/tasks", init));
    const taskId = response.headers.get("x-task-id") ?? "";
    let text = "";
    let tokens = 0;
    let started: Fields | null = null;
    let end: Fields | null = null;
    for await (const frame of framesOf(response)) {
      const event = decodeFrame(frame);
      if (event?.type === "started") started = { ...event.data };
      else if (event?.type === "token") {
        text += event.t;
        tokens += 1;
        if (!enough(text)) continue;
        await this.#cancel(taskId);
        return { taskId, text, tokens, started, end };
      } else if (event?.type === "end") end = { ...event.data };
      else if (event?.type === "error")
        throw new CommandError(`the replay ${taskId} failed: ${event.data.code}, ${event.data.message}`);
    }
    if (end === null) throw new CommandError(`the stream of the replay ${taskId} broke off before its end`);
    return { taskId, text, tokens, started, end };
  }

  async #cancel(taskId: string): Promise<void> {
    const path = `/v1/tasks/${taskId}/cancel`;
    await this.#sound(path, await this.#ask(path, { method: "POST" }));
  }

  async #ask(path: string, init: RequestInit): Promise<Response> {
    const headers = new Headers(init.headers);
    if (this.key !== null) headers.set("x-api-key", this.key);
    try {
      return await fetch(this.url + path, { ...init, headers });
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw new CommandError(
        `no daemon answers at ${this.url} (${why}): start it, or name another with --server`,
      );
    }
  }

  async #sound(path: string, response: Response): Promise<Response> {
    if (response.ok) return response;
    const { code, message } = (await response.json().catch(() => ({}))) as Fields;
    const hint = response.status === 401 || response.status === 403 ? "; name the key with --key-file" : "";
    const said = typeof code === "string" ? `${code}, ${String(message)}` : `status ${response.status}`;
    throw new CommandError(`${this.url}${path} answered ${said}${hint}`);
  }
}

/** The frames of an event stream, each with the blank line that ends it; comments are left out. */
async function* framesOf(response: Response): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of response.body ?? []) {
    rest += decoder.decode(bytes, { stream: true });
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const frame = rest.slice(0, end + 2);
      rest = rest.slice(end + 2);
      if (!frame.startsWith(":")) yield frame;
    }
  }
}
