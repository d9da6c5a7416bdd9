/**
 * Transcripts over real sockets and a whole daemon: the bytes of a stream after a restart are those of the stream that
 * was sent, from every place in it; ids are good at once and stay good while they move into the artifact store.
 */

import { afterEach, beforeEach, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import {
  keys,
  newFolder,
  type RunningDaemon,
  removeFolder,
  type Settings,
  startDaemon,
} from "../support/running-daemon.ts";
import { waitFor } from "../support/wait.ts";

let folder = "";
let daemon: RunningDaemon | null = null;
beforeEach(() => {
  folder = newFolder();
});
afterEach(async () => {
  await daemon?.close();
  daemon = null;
  removeFolder(folder);
});

const settings: Settings = {
  streaming: { metrics_every_ms: 10 },
  pools: [
    {
      id: "words",
      engine: "mock",
      model: "mock:words",
      slots: 2,
      mock: { token_ms: 3, prefill_ms_per_token: 0, load_ms: 0, faults: [] },
    },
  ],
};

async function start(more: Settings = {}): Promise<string> {
  daemon = await startDaemon({ ...settings, ...more }, folder);
  return daemon.url;
}
async function restart(): Promise<string> {
  await daemon?.close();
  return await start();
}
const ask = (
  url: string,
  path: string,
  init: RequestInit = {},
  key: string = keys.alice,
): Promise<Response> =>
  fetch(url + path, {
    ...init,
    headers: { "x-api-key": key, "content-type": "application/json", ...init.headers },
  });

/** Without comments: they are no events, and come when nothing else does. */
const bytesOf = async (response: Response): Promise<string> =>
  (await response.text()).replaceAll(": hb\n\n", "");

async function run(url: string, body: Record<string, unknown>): Promise<{ id: string; sent: string }> {
  const headers = { accept: "text/event-stream" };
  const response = await ask(url, "/v1/tasks", { method: "POST", body: JSON.stringify(body), headers });
  return { id: response.headers.get("x-task-id") ?? "", sent: await bytesOf(response) };
}
const view = async (url: string, id: string): Promise<Record<string, unknown>> =>
  (await (await ask(url, `/v1/tasks/${id}`)).json()) as Record<string, unknown>;

/** By the gauge: nothing waits to be moved any more. */
const allMoved = (url: string): Promise<true> =>
  waitFor(async () => /^transcripts_pending 0$/m.test(await (await ask(url, "/metrics")).text()), 20_000);
const files = (): string[] =>
  readdirSync(join(folder, "state", "artifacts"), { recursive: true }).map((path) => String(path));

test("after a restart the stream is the same bytes, from its beginning and from every place", async () => {
  const { id, sent } = await run(await start(), { prompt: "Once upon a time", max_tokens: 24, seed: 3 });
  expect(sent).toContain("event: metrics");
  const frames = sent.split(/(?<=\n\n)/);
  const url = await restart();
  const path = `/v1/tasks/${id}/stream`;
  expect(await bytesOf(await ask(url, path))).toBe(sent);
  for (const after of frames.keys()) {
    const rest = frames.slice(after + 1).join("");
    const header = await ask(url, path, { headers: { "last-event-id": String(after) } });
    const query = await ask(url, `${path}?after=${after}`);
    expect([header.status, query.status]).toEqual(rest === "" ? [204, 204] : [200, 200]);
    expect([await bytesOf(header), await bytesOf(query)]).toEqual([rest, rest]);
  }
  const head = await ask(url, path, { method: "HEAD" });
  expect([head.status, head.headers.get("content-type")]).toEqual([200, "text/event-stream; charset=utf-8"]);
  expect((await ask(url, path, {}, keys.bob)).status).toBe(404);
  expect(await bytesOf(await ask(url, path, {}, keys.operator))).toBe(sent);
});

test("of a task that the daemon's end cut: what both processes sent is one stream, told whole", async () => {
  let url = await start();
  const body = { prompt: "Once upon a time", max_tokens: 400, seed: 3, sampling: { temperature: 0 } };
  const { task_id: id } = (await (
    await ask(url, "/v1/tasks", { method: "POST", body: JSON.stringify(body) })
  ).json()) as { task_id: string };
  await waitFor(async () => Number((await view(url, id)).tokens_out) > 5);
  url = await restart();
  await waitFor(async () => (await view(url, id)).state === "done", 20_000);
  const path = `/v1/tasks/${id}/stream`;
  const sent = await bytesOf(await ask(url, path));
  expect(sent.match(/event: token/g)).toHaveLength(400);
  expect(sent).toContain('"continuations":1');
  url = await restart();
  expect(await bytesOf(await ask(url, path))).toBe(sent);
});

test("embeddings come back, too", async () => {
  const embed = {
    pools: [{ id: "vectors", engine: "mock", model: "mock:vectors", workloads: ["embedding"] }],
  };
  let url = await start(embed);
  const { id, sent } = await run(url, { inputs: ["one", "two"] });
  expect(sent).toContain('"embeddings":[[');
  await daemon?.close();
  url = await start(embed);
  expect(await bytesOf(await ask(url, `/v1/tasks/${id}/stream`))).toBe(sent);
});

test("an id is good from the moment it is told, before and after it was moved, and across a restart", async () => {
  let url = await start();
  const { id, sent } = await run(url, { prompt: "Once upon a time", max_tokens: 5 });
  const { artifact_id: artifactId } = await view(url, id);
  expect(sent).toContain(`"artifact_id":"${artifactId}"`);
  const path = `/v1/artifacts/${artifactId}`;
  const first = await ask(url, path);
  expect(first.status).toBe(200);
  const told = await first.text();
  const etag = { "if-none-match": `"${artifactId}"` };
  expect((await ask(url, path, { headers: etag })).status).toBe(304);
  await waitFor(() => files().some((name) => name.endsWith(String(artifactId))));
  await allMoved(url);
  expect(await (await ask(url, path)).text()).toBe(told);
  const listed = (await (await ask(url, `/v1/artifacts?kind=trace&tag=task:${id}`)).json()) as {
    artifacts: { id: string; created_ms: number }[];
  };
  expect(listed.artifacts.map((one) => one.id)).toEqual([String(artifactId)]);
  expect(listed.artifacts[0]?.created_ms).toBe((JSON.parse(told) as { created_ms: number }).created_ms);
  url = await restart();
  expect(await (await ask(url, path)).text()).toBe(told);
  expect((await view(url, id)).artifact_id).toBe(artifactId);
});

test("a thousand ends at once: each leaves its own, all are moved, and none is missing", async () => {
  const fast = {
    pools: [{ id: "words", engine: "mock", model: "mock:words", slots: 64, queue: { capacity: 5000 } }],
  };
  const url = await start(fast);
  const body = JSON.stringify({ prompt: "x", max_tokens: 4 });
  const ids = await Promise.all(
    Array.from({ length: 1000 }, async () => {
      const answer = await ask(url, "/v1/tasks", { method: "POST", body });
      return ((await answer.json()) as { task_id: string }).task_id;
    }),
  );
  await waitFor(async () => {
    const states = await Promise.all(ids.slice(-64).map(async (id) => (await view(url, id)).state));
    return states.every((state) => state === "done");
  });
  const names = await Promise.all(ids.map(async (id) => String((await view(url, id)).artifact_id)));
  expect(new Set(names).size).toBe(1000);
  await allMoved(url);
  const there = new Set(files().map((path) => path.split("/").at(-1)));
  expect(names.filter((name) => !there.has(name))).toEqual([]);
});

test("where the artifact is gone the stream says so", async () => {
  let url = await start();
  const { id } = await run(url, { prompt: "Once upon a time", max_tokens: 3 });
  await allMoved(url);
  await daemon?.close();
  removeFolder(join(folder, "state", "artifacts", "documents"));
  url = await start();
  const answer = await ask(url, `/v1/tasks/${id}/stream`);
  expect(answer.status).toBe(404);
  expect(((await answer.json()) as { message: string }).message).toContain(
    "its transcript is no longer kept",
  );
  expect((await view(url, id)).state).toBe("done");
});
