/**
 * Viewers that do not read, on real sockets: what they cost, what they are told when they read again, and that nobody
 * else notices (ORCHD-STREAM-3, ORCHD-STREAM-8). Paces of many viewers are measured by scripts/bench/slow-viewer.ts.
 */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import type { TaskAcceptedBody } from "../../src/api/schema/tasks.ts";
import { limits } from "../../src/domain/limits.ts";
import { heldByKernel } from "../support/kernel-buffers.ts";
import { RawStream } from "../support/raw-stream.ts";
import { keys, startDaemon } from "../support/running-daemon.ts";
import { SseClient, type SseEvent } from "../support/sse-client.ts";
import { waitFor } from "../support/wait.ts";

setDefaultTimeout(60_000);

const key = keys.alice;
const daemon = await startDaemon({
  streaming: { metrics_every_ms: 20 },
  pools: [
    {
      id: "fast",
      engine: "mock",
      model: "mock:fast",
      slots: 2,
      ctx: 200_000,
      mock: { token_ms: 0, prefill_ms_per_token: 0, load_ms: 0 },
    },
  ],
});
afterAll(() => daemon.close());

const ask = (path: string, init: RequestInit = {}): Promise<Response> =>
  fetch(daemon.url + path, {
    ...init,
    headers: { "x-api-key": key, "content-type": "application/json", ...init.headers },
  });
async function submit(tokens: number): Promise<string> {
  const answer = await ask("/v1/tasks", {
    method: "POST",
    body: JSON.stringify({ prompt: "Once upon a time", max_tokens: tokens }),
  });
  expect(answer.status).toBe(202);
  return ((await answer.json()) as TaskAcceptedBody).task_id;
}
/** A viewer that reads the head of the answer and nothing else. */
async function stuckViewer(taskId: string): Promise<RawStream> {
  const path = `/v1/tasks/${taskId}/stream`;
  const stuck = new RawStream(daemon.port, { method: "GET", path, key });
  await stuck.head;
  stuck.pause();
  return stuck;
}
const watch = async (taskId: string): Promise<SseClient> =>
  new SseClient(await ask(`/v1/tasks/${taskId}/stream`));
const of = (type: string, events: readonly SseEvent[]): SseEvent[] =>
  events.filter((event) => event.type === type);
const idsOf = (events: readonly SseEvent[]): number[] => events.map(({ id }) => id);

test("one that does not read is handed what its socket holds and one chunk, and a cancel takes back the rest", async () => {
  const taskId = await submit(190_000);
  const stuck = await stuckViewer(taskId);
  // Somebody else has it all: several megabytes.
  const reader = await watch(taskId);
  await reader.until("token", 150_000);
  const { unsent } = heldByKernel(daemon.port, stuck.localPort);
  expect((await ask(`/v1/tasks/${taskId}/cancel`, { method: "POST" })).status).toBe(204);
  // The kernel's buffers grow while nobody reads: what they hold after the cancel is what can still come.
  const held = heldByKernel(daemon.port, stuck.localPort);
  const read = stuck.body.length + stuck.waiting;
  stuck.resume();
  await stuck.ended;
  const last = stuck.sse.events.at(-1);
  expect([last?.type, last?.data.code]).toEqual(["error", "CANCELED"]);
  // In the daemon: what Bun's stream collects, and the rest of a chunk of the log that its socket could not take.
  const own = limits.viewerChunkBytesMax + 16 * 1024;
  expect(stuck.body.length).toBeLessThan(read + held.unread + held.unsent + own);
  // Of the daemon's machine it has a part that does not depend on how much there was to say: the bound and a segment.
  expect(unsent).toBeGreaterThan(0);
  expect(unsent).toBeLessThan(limits.viewerUnsentBytesMax + limits.viewerChunkBytesMax);
  expect(reader.text.length).toBeGreaterThan(5_000_000);
});

test("one that goes while its socket is full is forgotten", async () => {
  const viewers = async (): Promise<number> =>
    Number(/^viewers (\d+)$/m.exec(await (await ask("/metrics")).text())?.[1]);
  const taskId = await submit(60_000);
  const stuck = await stuckViewer(taskId);
  await (await watch(taskId)).all();
  await waitFor(async () => (await viewers()) === 1, 8_000, "only the one that does not read is left");
  stuck.destroy();
  await waitFor(async () => (await viewers()) === 0, 8_000, "nobody is left");
});

test("one that reads again has every token and of the metrics that it missed the newest; who kept up has all", async () => {
  const tokens = 180_000;
  const taskId = await submit(tokens);
  const stuck = await stuckViewer(taskId);
  const reader = await watch(taskId);
  const all = await reader.all();
  stuck.resume();
  await stuck.ended;
  expect([stuck.failure, stuck.complete]).toEqual([null, true]);
  const { events } = stuck.sse;
  expect(Bun.deepEquals(of("token", events), of("token", all))).toBe(true);
  expect(of("token", events).length).toBe(tokens);
  const ids = idsOf(events);
  expect(ids.every((id, at) => at === 0 || id > (ids[at - 1] ?? 0))).toBe(true);
  // Nobody who kept up misses anything, and neither does who asks for what was.
  const replay = await (await watch(taskId)).all();
  for (const whole of [all, replay]) expect(Bun.deepEquals(idsOf(whole), [...whole.keys()])).toBe(true);
  const [missed, made] = [of("metrics", events), of("metrics", all)];
  expect(made.length).toBeGreaterThan(5);
  expect(missed.length).toBeLessThan(made.length);
  expect(missed.at(-1)).toEqual(made.at(-1) as SseEvent);
});
