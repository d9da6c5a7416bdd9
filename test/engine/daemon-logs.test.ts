/** What the real engine says, over HTTP: its last lines, and its log followed across a crash. */
import { afterEach, expect, test } from "bun:test";
import { endDaemons, enginePool, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { SseClient } from "../support/sse-client.ts";
import { waitFor } from "../support/wait.ts";
import { health, patienceMs, submitAndWatch } from "./support.ts";

afterEach(endDaemons, 60_000);

interface Logs {
  readonly replicas: readonly {
    readonly id: string;
    readonly first: number;
    readonly lines: readonly string[];
  }[];
}

test("the engine's lines are shown and followed, across its restart, numbered without a gap (ORCHD-LOG-1, ORCHD-LOG-2)", async () => {
  const daemon = await startDaemon({
    settings: {
      restart: { backoff_ms: 20 },
      limits: { streams_per_key: 2 },
      pools: [enginePool("chat", testModel("demo"), { slots: 1, ctx: 512 })],
    },
  });
  const path = "/v1/pools/chat/logs";
  const { replicas } = await daemon.json<Logs>(`${path}?lines=1000`);
  const [{ id, first, lines } = { id: "", first: -1, lines: [] }] = replicas;
  expect([replicas.length, id, first]).toEqual([1, "chat-0", 0]);
  // What it says, and not the JSON in which it says it.
  expect(lines.some((line) => line.includes("listening on"))).toBe(true);
  expect(lines.filter((line) => line.includes('"msg"'))).toEqual([]);

  const follower = new SseClient(await daemon.fetch(`${path}?follow=1&lines=3`));
  const numbers = () => follower.events.map((event) => event.id);
  const said = () => follower.events.map(({ data }) => String(data.text)).join("\n");
  await waitFor(() => follower.events.length >= 3, patienceMs, "the last lines");
  const began = follower.events[0]?.id ?? -1;
  await (await submitAndWatch(daemon, { prompt: "The harbour", max_tokens: 4 })).finished();
  await waitFor(() => follower.events.length > 3, patienceMs, "lines of a task");

  const before = (await health(daemon, "chat")).replicas[0]?.pid ?? 0;
  const upToHere = follower.events.length;
  process.kill(before, "SIGKILL");
  await waitFor(
    () => said().split("listening on").length >= 2 || follower.events.length > upToHere + 20,
    patienceMs,
    "the next engine's lines",
  );
  await daemon.ready("chat");
  expect(numbers()).toEqual(Array.from(numbers(), (_, at) => began + at));

  const after = numbers()[upToHere - 1] ?? -1;
  const again = new SseClient(
    await daemon.fetch(`${path}?follow=1`, { headers: { "last-event-id": String(after) } }),
  );
  await waitFor(() => again.events.length > 0, patienceMs, "the lines behind the last one");
  expect(again.events[0]?.id).toBe(after + 1);
  expect(again.events[0]?.data).toEqual(follower.events[upToHere]?.data ?? {});

  // Both places are taken until their clients have left.
  expect((await daemon.fetch(`${path}?follow=1`)).status).toBe(429);
  await Promise.all([follower.close(), again.close()]);
  const third = await waitFor(
    async () => {
      const response = await daemon.fetch(`${path}?follow=1`);
      return response.ok && response;
    },
    patienceMs,
    "a place of one that left",
  );
  await third.body?.cancel();
}, 60_000);
