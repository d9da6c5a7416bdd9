/**
 * A whole daemon in front of a llama-server that it did not start, through its /v1 and with its key: streams, chats,
 * and a server that is killed in the middle of an answer and comes back at the same address (ORCHD-REMOTE-1 to -4).
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type StartedServer, startLlamaServer, testModel } from "../support/engine.ts";
import { keys, type RunningDaemon, startDaemon } from "../support/running-daemon.ts";
import { SseClient, type SseEvent } from "../support/sse-client.ts";
import { waitFor } from "../support/wait.ts";

const key = "a-key-for-the-server-elsewhere";
const folder = mkdtempSync(join(tmpdir(), "orchd-elsewhere-"));
let server: StartedServer;
let daemon: RunningDaemon;

beforeAll(async () => {
  // Slow enough that a kill finds it at work.
  server = await startLlamaServer(testModel("slow"), "completion", key);
  writeFileSync(join(folder, "key"), key, { mode: 0o600 });
  daemon = await startDaemon(
    {
      restart: { backoff_ms: 1 },
      pools: [
        {
          id: "elsewhere",
          engine: "openai",
          base_url: server.url,
          model: "whatever",
          api_key_file: join(folder, "key"),
          slots: 2,
        },
      ],
    },
    folder,
  );
});
afterAll(async () => {
  await daemon.close();
  await server.stop();
  rmSync(folder, { recursive: true, force: true });
});

const headers = { "x-api-key": keys.alice, "content-type": "application/json", accept: "text/event-stream" };
const submit = async (body: object): Promise<SseClient> =>
  new SseClient(
    await fetch(`${daemon.url}/v1/tasks`, { method: "POST", headers, body: JSON.stringify(body) }),
  );
const greedy = { sampling: { temperature: 0 } };
const textOf = (events: readonly SseEvent[]): string =>
  events.flatMap((event) => (event.type === "token" ? [String(event.data.t)] : [])).join("");

async function whole(body: object): Promise<{ text: string; events: readonly SseEvent[] }> {
  const events = await (await submit(body)).all();
  return { text: textOf(events), events };
}

describe("a llama-server elsewhere", () => {
  test("answers a prompt and a chat, counted by its own tokenizer", async () => {
    const prompt = await whole({ prompt: "Once upon a time", max_tokens: 8, ...greedy });
    expect(prompt.events[0]).toMatchObject({
      type: "started",
      data: { engine: "openai", pool_id: "elsewhere" },
    });
    expect(String(prompt.events[0]?.data.engine_version)).toStartWith("llama-server b");
    expect(prompt.events.at(-1)).toMatchObject({ type: "end", data: { tokens_out: 8, exact: "yes" } });
    const chat = await whole({ messages: [{ role: "user", content: "hello" }], max_tokens: 8, ...greedy });
    expect(chat.events.at(-1)).toMatchObject({ type: "end", data: { tokens_out: 8 } });
    expect(chat.events[0]?.data.tokens_in).toBeGreaterThan(3);
  });

  test("that is killed within an answer: it goes on once the server is back, and is the uncut one", async () => {
    const body = { prompt: "Two friends went to the sea", max_tokens: 48, ...greedy };
    const uncut = await whole(body);
    const stream = await submit(body);
    await stream.until("token", 12);
    await server.stop();
    const health = async () =>
      (await (await fetch(`${daemon.url}/v1/pools/elsewhere/health`, { headers })).json()) as {
        state: string;
        last_error: { cause: string } | null;
      };
    await waitFor(async () => (await health()).last_error?.cause === "unreachable", 10_000, "it is missed");
    server = await startLlamaServer(testModel("slow"), "completion", key, Number(new URL(server.url).port));
    const events = await stream.all();
    expect(textOf(events)).toBe(uncut.text);
    expect(events.at(-1)).toMatchObject({
      type: "end",
      data: { tokens_out: 48, continuations: 1, exact: "unverified" },
    });
  });
});
