/**
 * The logs of engines over HTTP's route and real log tails: who may see them, what is taken out of them, and a reader
 * that follows, falls behind, comes back or leaves.
 */
import { beforeEach, describe, expect, test } from "bun:test";
import { Value } from "@sinclair/typebox/value";
import { Elysia } from "elysia";
import { engineLogsRoutes } from "../../src/api/engine-logs.ts";
import { RequestContexts } from "../../src/api/request-context.ts";
import {
  EngineLogGap,
  EngineLogLine,
  EngineLogs as EngineLogsModel,
} from "../../src/api/schema/engine-logs.ts";
import { isOrchestratorError, OrchestratorError } from "../../src/domain/errors.ts";
import { limits } from "../../src/domain/limits.ts";
import { scrub } from "../../src/infra/telemetry/redact.ts";
import { EngineLogs } from "../../src/services/engine-logs.ts";
import { LogTail } from "../../src/services/log-tail.ts";
import type { ByteSink } from "../../src/services/streams.ts";
import { snapshot } from "../support/replicas.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

const heartbeatMs = 10_000;
let clock: VirtualClock;
let tails: Map<string, LogTail>;
let logs: EngineLogs;
let placesTaken: number;
const contexts = new RequestContexts();

const tail = (replicaId: string): LogTail => {
  const found = tails.get(replicaId);
  if (found === undefined) throw new Error(`${replicaId} has no log`);
  return found;
};
const says = (replicaId: string, ...lines: string[]) => {
  for (const line of lines) tail(replicaId).push(line);
};

beforeEach(() => {
  clock = new VirtualClock();
  tails = new Map(["chat-0", "chat-1", "solo-0"].map((id) => [id, new LogTail()]));
  placesTaken = 0;
  logs = new EngineLogs({
    clock,
    scrub,
    rules: { heartbeatMs },
    pools: {
      get: (id) => {
        if (id === "chat" || id === "solo") return undefined as never;
        throw new OrchestratorError("NOT_FOUND", `no pool "${id}"`);
      },
    },
    control: {
      snapshots: (poolId) =>
        [...tails.keys()]
          .filter((id) => id.startsWith(poolId))
          .map((replicaId) => snapshot({ replicaId, poolId })),
      logOf: tail,
    },
  });
});

/** One place is left for a follower. */
const streams = {
  reserve: () => {
    if (placesTaken > 0) throw new OrchestratorError("RATE_LIMITED", "too many", { retryAfterMs: 1 });
    placesTaken += 1;
    return {
      release: () => {
        placesTaken -= 1;
      },
    };
  },
};

function ask(path: string, admin = true, headers: Record<string, string> = {}): Promise<Response> {
  const app = new Elysia({ normalize: false })
    .onError(({ error, set }) => {
      if (!isOrchestratorError(error)) return;
      set.status = error.status;
      return { code: error.code, message: error.message };
    })
    .use(engineLogsRoutes({ engineLogs: logs, streams, contexts }));
  const request = new Request(`http://localhost/v1/pools${path}`, { headers });
  contexts.set(request, { correlationId: "c", receivedMs: 0, keyId: "k", admin });
  return app.handle(request);
}

/** A client's connection: what was written, and whether more fits. */
class Sink implements ByteSink {
  text = "";
  closed = false;
  full: PromiseWithResolvers<number> | null = null;
  write(bytes: Uint8Array): number | Promise<number> {
    this.text += new TextDecoder().decode(bytes);
    return this.full?.promise ?? bytes.length;
  }
  flush(): number {
    return 0;
  }
  close(): void {
    this.closed = true;
  }
  /** Event and data of each frame so far; what it has read is gone. */
  read(): string[] {
    const frames = this.text.split("\n\n").filter((frame) => frame !== "");
    this.text = "";
    return frames.map((frame) => frame.replace(/^id: (\d+)\nevent: line\ndata: (.*)$/, "$1 $2"));
  }
}

function follow(poolId: string, replicaId: string | null, lines = 100, after: number | null = null) {
  const sink = new Sink();
  const follower = logs.follow(poolId, replicaId, lines, after, streams.reserve());
  const done = follower.pump(sink);
  return { sink, follower, done };
}
const line = (n: number, text: string) => `${n} ${JSON.stringify({ n, text })}`;
const settled = () => clock.advance(0);

describe("the last lines (ORCHD-LOG-1)", () => {
  test("of every replica, as far as asked for, with their numbers", async () => {
    says("chat-0", "one", '{"level":"info","msg":"two\\n"}', "three");
    const response = await ask("/chat/logs?lines=2");
    const body: unknown = await response.json();
    expect([...Value.Errors(EngineLogsModel, body)]).toEqual([]);
    expect(body).toEqual({
      pool_id: "chat",
      replicas: [
        { id: "chat-0", first: 1, lines: ["two", "three"] },
        { id: "chat-1", first: 0, lines: [] },
      ],
    });
  });

  test("of one replica; of one that is not there: 404 and its neighbour's name", async () => {
    says("chat-1", "here");
    expect(await (await ask("/chat/logs?replica=chat-1")).json()).toMatchObject({
      replicas: [{ id: "chat-1", lines: ["here"] }],
    });
    const missing = await ask("/chat/logs?replica=chat-7");
    expect([missing.status, ((await missing.json()) as { message: string }).message]).toEqual([
      404,
      expect.stringContaining('no replica "chat-7": the nearest one is "chat-0"'),
    ]);
    expect((await ask("/nothing/logs")).status).toBe(404);
  });

  test("lose their credentials", async () => {
    says(
      "solo-0",
      "launched with --api-key abcdefgh --port 1",
      "Authorization: Bearer 0123456789abcdef",
      "plain",
    );
    const { replicas } = (await (await ask("/solo/logs")).json()) as { replicas: { lines: string[] }[] };
    expect(replicas[0]?.lines).toEqual([
      "launched with --api-key [redacted] --port 1",
      "Authorization: Bearer [redacted]",
      "plain",
    ]);
  });

  test("are bounded, whatever the engine wrote", async () => {
    for (let at = 0; at < limits.engineLogLinesMax + 5; at += 1) says("solo-0", `line ${at}`);
    const { replicas } = (await (await ask(`/solo/logs?lines=${limits.engineLogLinesMax}`)).json()) as {
      replicas: { first: number; lines: string[] }[];
    };
    expect(replicas[0]?.first).toBe(5);
    expect(replicas[0]?.lines).toHaveLength(limits.engineLogLinesMax);
    expect(replicas[0]?.lines[0]).toBe("line 5");
    expect(replicas[0]?.lines.at(-1)).toBe(`line ${limits.engineLogLinesMax + 4}`);
    for (const lines of ["0", String(limits.engineLogLinesMax + 1), "x"])
      expect((await ask(`/solo/logs?lines=${lines}`)).status).toBe(422);
  });

  test("are for admins only, the stream too", async () => {
    says("solo-0", "a path");
    for (const path of ["/solo/logs", "/solo/logs?follow=1", "/nothing/logs"]) {
      const refused = await ask(path, false);
      expect([refused.status, await refused.text()]).toEqual([403, expect.not.stringContaining("a path")]);
    }
    expect(placesTaken).toBe(0);
  });
});

describe("a follower (ORCHD-LOG-2)", () => {
  test("is sent the last lines, then each as it comes, numbered without a gap", async () => {
    says("solo-0", "a", "b", "c");
    const { sink, follower, done } = follow("solo", null, 2);
    await settled();
    expect(sink.read()).toEqual([line(1, "b"), line(2, "c")]);
    says("solo-0", "d", "api_key=12345678");
    await settled();
    expect(sink.read()).toEqual([line(3, "d"), line(4, "api_key=[redacted]")]);
    follower.leave();
    follower.leave();
    await done;
    expect(placesTaken).toBe(0);
    expect(clock.pendingTimers).toBe(0);
    says("solo-0", "e");
    await settled();
    expect(sink.read()).toEqual([]);
  });

  test("of a quiet engine is answered at once, and hears a heartbeat", async () => {
    const { sink, follower, done } = follow("solo", null);
    await settled();
    expect(sink.read()).toEqual([": hb"]);
    await clock.advance(heartbeatMs);
    expect(sink.read()).toEqual([": hb"]);
    follower.leave();
    await done;
  });

  test("that comes back goes on behind the line it has; one that was there in another life begins at the tail", async () => {
    says("solo-0", "a", "b", "c", "d");
    for (const [after, expected] of [
      [1, [line(2, "c"), line(3, "d")]],
      [3, [line(2, "c"), line(3, "d")].slice(2)],
      [3_000, [line(3, "d")]],
    ] as const) {
      const { sink, follower, done } = follow("solo", null, 1, after);
      await settled();
      expect(sink.read().filter((frame) => frame !== ": hb")).toEqual([...expected]);
      follower.leave();
      await done;
    }
  });

  test("that does not read is sent nothing more, costs nothing, and is told what it missed", async () => {
    const { sink, follower, done } = follow("solo", null);
    await settled();
    sink.read();
    sink.full = Promise.withResolvers<number>();
    says("solo-0", "first");
    await settled();
    for (let at = 0; at < limits.engineLogLinesMax + 20; at += 1) says("solo-0", `flood ${at}`);
    await settled();
    expect(sink.read()).toEqual([line(0, "first")]);
    const { resolve } = sink.full;
    sink.full = null;
    resolve(1);
    await settled();
    const frames = sink.read();
    expect(frames[0]).toBe('event: gap\ndata: {"missed":20}');
    expect(frames[1]).toBe(line(21, "flood 20"));
    expect(frames.at(-1)).toBe(line(limits.engineLogLinesMax + 20, `flood ${limits.engineLogLinesMax + 19}`));
    expect(frames).toHaveLength(1 + limits.engineLogLinesMax);
    follower.leave();
    await done;
  });

  test("closes after a hint to come back when the daemon stops, also where it waits", async () => {
    const { sink, done } = follow("solo", null);
    await settled();
    sink.read();
    logs.close();
    await done;
    expect(sink.read()).toEqual([": hb", "retry: 1000"]);
    expect(sink.closed).toBe(true);
    expect(placesTaken).toBe(0);
    expect(clock.pendingTimers).toBe(0);
  });

  test("of a pool of several names its replica; a refusal gives its place back", async () => {
    const refused = await ask("/chat/logs?follow=1");
    expect([refused.status, await refused.json()]).toMatchObject([400, { code: "INVALID_PARAMS" }]);
    expect((await ask("/chat/logs?follow=1&replica=chat-9")).status).toBe(404);
    expect(placesTaken).toBe(0);
  });

  test("counts among the streams of its key", async () => {
    const { follower, done } = follow("solo", null);
    expect((await ask("/chat/logs?follow=1&replica=chat-0")).status).toBe(429);
    follower.leave();
    await done;
  });

  test("reads events that fit the contract", async () => {
    for (let at = 0; at < limits.engineLogLinesMax + 2; at += 1) says("solo-0", `"quoted" \u2028 ${at}`);
    const { sink, follower, done } = follow("solo", null, 1, 0);
    await settled();
    const models = { gap: EngineLogGap, line: EngineLogLine };
    const seen = new Set<string>();
    for (const frame of sink.text.split("\n\n").filter((text) => text !== "")) {
      const [, event = "", data = ""] = /^(?:id: \d+\n)?event: (gap|line)\ndata: ([^\n]*)$/.exec(frame) ?? [];
      const model = models[event as keyof typeof models];
      expect(Value.Check(model, JSON.parse(data)) ? "fits" : frame).toBe("fits");
      seen.add(event);
    }
    expect([...seen]).toEqual(["gap", "line"]);
    follower.leave();
    await done;
  });
});
