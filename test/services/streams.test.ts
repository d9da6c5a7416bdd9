/** Viewers: heartbeats, what is thinned and what is collected for them, the grace after the last one left, who counts, the limit per key, what a leaver frees. */
import { afterEach, describe, expect, test } from "bun:test";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { readableOf } from "../support/viewer-readable.ts";
import { mockPool, Rig, type RigOptions, StreamReader } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const heartbeats = (reader: StreamReader): number => reader.text.split(": hb\n\n").length - 1;

/** A task that waits for ever: its pool's engine never gets ready. */
async function waiting(more: Partial<TaskSpec> = {}, options: RigOptions = {}): Promise<TaskRecord> {
  const never = { kind: "never_ready" as const, nth: null, afterTokens: 0, delayMs: 0 };
  const mock = { tokenMs: 10, prefillMsPerToken: 0, loadMs: 0, faults: [never] };
  const timeouts = { loadMs: 1e9, firstTokenMs: 500, interTokenMs: 200, stopGraceMs: 100 };
  rig = await new Rig({ pools: [mockPool({ mock, timeouts })], ...options }).start();
  return submit(more);
}

async function running(more: Partial<TaskSpec> = {}): Promise<TaskRecord> {
  rig = await new Rig().start();
  return submit({ maxTokens: 400, ...more });
}

async function submit(more: Partial<TaskSpec> = {}): Promise<TaskRecord> {
  const submitted = rig.submit(rig.spec(more));
  await rig.clock.advance(0);
  return (await submitted).record;
}

const watch = (record: TaskRecord, observe = false, after = -1, keyId = "alice"): StreamReader =>
  new StreamReader(readableOf(rig.streams.open(record, keyId, after, observe)));

describe("heartbeats", () => {
  test("come while a task waits, at least every second interval and to each idle viewer", async () => {
    const record = await waiting();
    const first = watch(record);
    await rig.clock.advance(2000);
    const second = watch(record);
    await rig.clock.advance(8000);
    expect(heartbeats(first)).toBeGreaterThanOrEqual(8);
    expect(heartbeats(second)).toBeGreaterThanOrEqual(6);
    expect(first.events).toEqual([]);
  });

  test("do not come while tokens do", async () => {
    const reader = watch(await running());
    await rig.clock.advance(3500);
    expect(heartbeats(reader)).toBe(0);
    expect(reader.names.filter((name) => name === "token").length).toBeGreaterThan(300);
  });

  test("stop when the last viewer left", async () => {
    const record = await waiting({ onDisconnect: "continue" });
    const armed = rig.clock.pendingTimers;
    const reader = watch(record);
    await rig.clock.advance(0);
    expect(rig.clock.pendingTimers).toBe(armed + 1);
    await reader.leave();
    expect([rig.clock.pendingTimers, rig.streams.size, record.log.viewers]).toEqual([armed, 0, 0]);
  });
});

describe("a viewer", () => {
  test("is shown the whole stream, and its end closes it", async () => {
    rig = await new Rig().start();
    const record = await submit({ maxTokens: 5 });
    const reader = watch(record);
    await rig.clock.advance(100);
    expect(reader.names).toEqual(["started", "token", "token", "token", "token", "token", "end"]);
    expect(reader.closed).toBe(true);
    expect([rig.streams.size, record.log.viewers, record.watchers]).toEqual([0, 0, 0]);
  });

  test("that comes after the end is shown everything, one that has it all is closed at once", async () => {
    rig = await new Rig().start();
    const record = await submit({ maxTokens: 2 });
    await rig.clock.advance(100);
    const late = watch(record);
    const knowing = watch(record, false, record.log.length - 1);
    await rig.clock.advance(0);
    expect(late.names).toEqual(["started", "token", "token", "end"]);
    expect([knowing.text, knowing.closed, late.closed]).toEqual(["", true, true]);
  });

  test("that does not read is handed nothing ahead: after a cancel its next event is CANCELED", async () => {
    const record = await running();
    const slow = new StreamReader(readableOf(rig.streams.open(record, "alice", -1, false)), false);
    await rig.clock.advance(1000);
    await slow.readOnce();
    const had = slow.events.length;
    await rig.clock.advance(500);
    const done = rig.dispatcher.cancel(record.spec.taskId, "client");
    await rig.clock.advance(0);
    await done;
    await slow.readOnce();
    expect(slow.events.slice(had).map((e) => [e.event, e.data.code])).toEqual([["error", "CANCELED"]]);
    expect(await slow.readOnce()).toBe(false);
  });

  test("at its own pace sees what a fast one sees", async () => {
    const record = await running({ maxTokens: 60 });
    const fast = watch(record);
    const slow = new StreamReader(readableOf(rig.streams.open(record, "alice", -1, false)), false);
    for (let n = 0; n < 7; n++) {
      await rig.clock.advance(90);
      await slow.readOnce();
    }
    await rig.clock.advance(1000);
    while (await slow.readOnce());
    expect(slow.text).toBe(fast.text);
    expect(fast.names.at(-1)).toBe("end");
  });
});

describe("a viewer that is behind", () => {
  test("is not sent metrics that are out of date, and every token; one that keeps up is sent all", async () => {
    const record = await running({ maxTokens: 790 });
    const fast = watch(record);
    const slow = new StreamReader(readableOf(rig.streams.open(record, "alice", -1, false)), false);
    await rig.clock.advance(0);
    await slow.readOnce();
    await rig.clock.advance(5500);
    const metricsOf = (reader: StreamReader): number[] =>
      reader.events.filter(({ event }) => event === "metrics").map(({ id }) => id);
    const made = metricsOf(fast);
    expect(made.length).toBe(5);
    while (slow.events.length < fast.events.length - made.length + 1) await slow.readOnce();
    expect(metricsOf(slow)).toEqual(made.slice(-1));
    // From now on it reads at once.
    const reading = (async () => {
      while (await slow.readOnce());
    })();
    await rig.clock.advance(5000);
    await reading;
    expect(metricsOf(slow)).toEqual(metricsOf(fast).slice(made.length - 1));
    expect(fast.events.map(({ id }) => id)).toEqual([...fast.events.keys()]);
    const tokensOf = (reader: StreamReader) => reader.events.filter(({ event }) => event === "token");
    expect(tokensOf(slow)).toEqual(tokensOf(fast));
    expect([slow.names.at(-1), tokensOf(slow).length]).toEqual(["end", 790]);
  });
});

describe("micro-batching", () => {
  const batched = { streams: { microbatchMs: 35 } };
  /** A sink with room for everything: when it was written to, and how many events came then. */
  function sinkOf(
    record: TaskRecord,
    after = -1,
  ): { readonly writes: [number, number][]; leave: () => void } {
    const viewer = rig.streams.open(record, "alice", after, false);
    const startedMs = rig.clock.nowMs();
    const writes: [number, number][] = [];
    void viewer.pump({
      write: (bytes) => {
        const events = new TextDecoder().decode(bytes).split("\nevent: ").length - 1;
        if (events > 0) writes.push([Math.round(rig.clock.nowMs() - startedMs), events]);
        return bytes.length;
      },
      flush: () => undefined,
      close: () => undefined,
    });
    return { writes, leave: () => viewer.leave() };
  }

  test("sends the first token at once, the others in blocks, the end with what waited for it", async () => {
    rig = await new Rig(batched).start();
    const record = await submit({ maxTokens: 12 });
    const armed = rig.clock.pendingTimers;
    const { writes } = sinkOf(record);
    await rig.clock.advance(200);
    // A token every 10 ms, the end with the last; a block may lie in two chunks.
    const [[firstMs] = [0]] = writes;
    const blocks = new Map<number, number>();
    for (const [atMs, events] of writes)
      blocks.set(atMs - firstMs, (blocks.get(atMs - firstMs) ?? 0) + events);
    expect([...blocks]).toEqual([
      [0, 2],
      [35, 3],
      [70, 3],
      [105, 4],
      [110, 2],
    ]);
    expect(rig.clock.pendingTimers).toBeLessThanOrEqual(armed);
  });

  test("has a timer only while something waits, and none for who left", async () => {
    rig = await new Rig(batched).start();
    const record = await submit({ maxTokens: 400, onDisconnect: "continue" });
    const bare = rig.clock.pendingTimers;
    const one = sinkOf(record);
    await rig.clock.advance(25);
    const waiting = rig.clock.pendingTimers;
    one.leave();
    await rig.clock.advance(0);
    // The heartbeat and the block that it waited for.
    expect([waiting, rig.clock.pendingTimers]).toEqual([bare + 2, bare]);
    const seen = one.writes.length;
    await rig.clock.advance(100);
    expect(one.writes.length).toBe(seen);
  });

  test("holds nothing back that was there before", async () => {
    rig = await new Rig(batched).start();
    const record = await submit({ maxTokens: 800 });
    await rig.clock.advance(5000);
    const late = sinkOf(record);
    await rig.clock.advance(0);
    // More than one chunk of it, at once.
    expect(late.writes.every(([atMs]) => atMs === 0)).toBe(true);
    expect(late.writes.reduce((sum, [, events]) => sum + events, 0)).toBe(record.log.length);
    expect(late.writes.length).toBeGreaterThan(1);
  });

  test("after a cancel sends CANCELED at once and nothing that waited", async () => {
    rig = await new Rig(batched).start();
    const record = await submit({ maxTokens: 400 });
    const reader = watch(record);
    await rig.clock.advance(310);
    const had = reader.events.length;
    expect(record.log.length).toBeGreaterThan(had);
    const done = rig.dispatcher.cancel(record.spec.taskId, "client");
    await rig.clock.advance(0);
    await done;
    expect(reader.events.slice(had).map(({ event, data }) => [event, data.code])).toEqual([
      ["error", "CANCELED"],
    ]);
    expect(reader.closed).toBe(true);
  });

  test("is bounded", () => {
    expect(() => new Rig({ streams: { microbatchMs: 251 } })).toThrow("within the bound");
  });
});

describe("when the last viewer leaves", () => {
  test("the task is canceled after the grace", async () => {
    const record = await running();
    const reader = watch(record);
    await rig.clock.advance(100);
    await reader.leave();
    await rig.clock.advance(499);
    expect(record.state).toBe("running");
    await rig.clock.advance(2);
    expect([record.state, record.error?.code]).toEqual(["canceled", "CANCELED"]);
    expect(rig.metrics.of("taskCanceled")).toMatchObject([[{ reason: "disconnect" }]]);
  });

  test("a waiting task is canceled too", async () => {
    const record = await waiting();
    const reader = watch(record);
    await reader.leave();
    await rig.clock.advance(501);
    expect(record.state).toBe("canceled");
  });

  test("one who returns within the grace keeps it, and starts it anew when he leaves", async () => {
    const record = await running();
    const first = watch(record);
    await rig.clock.advance(100);
    await first.leave();
    await rig.clock.advance(400);
    const second = watch(record, false, 3);
    await rig.clock.advance(1000);
    expect(record.state).toBe("running");
    await second.leave();
    await rig.clock.advance(499);
    expect(record.state).toBe("running");
    await rig.clock.advance(2);
    expect(record.state).toBe("canceled");
  });

  test("and another one stays, nothing happens", async () => {
    const record = await running();
    const [first, second] = [watch(record), watch(record)];
    await first.leave();
    await rig.clock.advance(1000);
    expect([record.state, second.closed]).toEqual(["running", false]);
  });

  test("an observer neither keeps the task nor cancels it", async () => {
    const record = await running();
    const observer = watch(record, true);
    await rig.clock.advance(100);
    await observer.leave();
    await rig.clock.advance(1000);
    expect(record.state).toBe("running");
    const reader = watch(record);
    const staying = watch(record, true);
    await reader.leave();
    await rig.clock.advance(501);
    expect([record.state, staying.closed]).toEqual(["canceled", true]);
  });

  test("a task with on_disconnect continue runs to its end", async () => {
    const record = await running({ onDisconnect: "continue", maxTokens: 100 });
    await watch(record).leave();
    await rig.clock.advance(5000);
    expect(record.state).toBe("done");
  });

  test("a task that nobody ever watched runs to its end", async () => {
    const record = await running({ maxTokens: 100 });
    await rig.clock.advance(5000);
    expect(record.state).toBe("done");
  });

  test("after the end, nothing is armed for it", async () => {
    rig = await new Rig().start();
    const record = await submit({ maxTokens: 2 });
    await rig.clock.advance(100);
    const armed = rig.clock.pendingTimers;
    const reader = new StreamReader(readableOf(rig.streams.open(record, "alice", -1, false)), false);
    await reader.readOnce();
    await reader.leave();
    expect([rig.clock.pendingTimers, record.state]).toEqual([armed, "done"]);
  });
});

describe("the limit of streams", () => {
  test("is per key, told before anything is opened, and given back", async () => {
    const record = await waiting({ onDisconnect: "continue" }, { streams: { streamsPerKeyMax: 2 } });
    const readers = [watch(record), watch(record)];
    expect(() => watch(record)).toThrow("streams_per_key");
    expect(() => rig.streams.assertRoom("alice")).toThrow("2 streams open");
    expect(record.log.viewers).toBe(2);
    watch(record, false, -1, "bob");
    await readers[0]?.leave();
    watch(record);
    expect(rig.streams.size).toBe(3);
  });

  test("counts no stream twice that is left more than once", async () => {
    const record = await waiting({ onDisconnect: "continue" }, { streams: { streamsPerKeyMax: 1 } });
    for (let n = 0; n < 5; n++) {
      const reader = watch(record);
      await Promise.all([reader.leave(), reader.leave()]);
      expect([rig.streams.size, record.watchers]).toEqual([0, 0]);
    }
  });
});
