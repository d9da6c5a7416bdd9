/** Viewers: heartbeats, the grace after the last one left, who counts, the limit per key, what a leaver frees. */
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
