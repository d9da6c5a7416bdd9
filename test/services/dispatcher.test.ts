/** The dispatcher with the real mock engine on a virtual clock: from submit to the end, cancels, refusals, repeats. */
import { afterEach, describe, expect, test } from "bun:test";
import { isAssertion } from "../../src/domain/assert.ts";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { MockAdapter, type MockEngineClient } from "../../src/infra/engines/mock.ts";
import type { Submitted } from "../../src/services/mailbox.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { readableOf } from "../support/viewer-readable.ts";
import { SeededEntropy, type VirtualClock } from "../support/virtual-clock.ts";
import { mockPool, Rig, replay, StreamReader } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const tick = () => rig.clock.advance(0);

/** The outcome of a submit: the record, or the refusal. */
async function submit(more: Partial<TaskSpec> = {}): Promise<Submitted> {
  const submitted = rig.submit(rig.spec(more));
  // Looked at below; until then a refusal is nobody's fault.
  submitted.catch(() => undefined);
  await tick();
  return submitted;
}
const accept = async (more: Partial<TaskSpec> = {}): Promise<TaskRecord> => (await submit(more)).record;

async function cancel(record: TaskRecord): Promise<void> {
  const done = rig.dispatcher.cancel(record.spec.taskId, "client");
  await tick();
  await done;
}

describe("a task", () => {
  test("starts, speaks token by token from i = 0 and ends", async () => {
    rig = await new Rig().start();
    const record = await accept({ maxTokens: 12, seed: 5 });
    await rig.clock.advance(500);
    const events = replay(record);
    expect(events.map((e) => e.id)).toEqual(events.map((_, at) => at));
    expect(events.map((e) => e.event)).toEqual(["started", ...new Array<string>(12).fill("token"), "end"]);
    expect(events.slice(1, -1).map((e) => e.data.i)).toEqual(Array.from({ length: 12 }, (_, i) => i));
    expect(events[0]?.data).toMatchObject({
      task_id: record.spec.taskId,
      pool_id: "chat",
      replica_id: "chat-0",
      engine: "mock",
      engine_version: "mock-1",
      seed: 5,
      attempt: 1,
      queue_position: 0,
    });
    expect(events.at(-1)?.data).toMatchObject({
      tokens_out: 12,
      finish_reason: "length",
      continuations: 0,
      exact: "yes",
      queue_ms: 0,
    });
    expect(record).toMatchObject({ state: "done", tokensOut: 12, finishReason: "length", attempts: 1 });
  });

  test("counts tokens as the engine does, also where a stop string swallows some", async () => {
    rig = await new Rig().start();
    const first = await accept({ maxTokens: 20 });
    await rig.clock.advance(500);
    const words = replay(first).filter((e) => e.event === "token");
    const stop = String(words[6]?.data.t) + String(words[7]?.data.t);
    const record = await accept({ maxTokens: 20, sampling: { ...first.spec.sampling, stop: [stop] } });
    await rig.clock.advance(500);
    const end = replay(record).at(-1);
    expect(end?.data).toMatchObject({ finish_reason: "stop", tokens_out: 8 });
    expect(record.tokensOut).toBe(8);
    expect(rig.dispatcher.runtime("chat").tokensOut).toBe(28);
  });

  test("gets metrics once a second, and none before its first token", async () => {
    rig = await new Rig().start();
    const record = await accept({ maxTokens: 400 });
    await rig.clock.advance(5000);
    const names = replay(record).map((e) => e.event);
    expect(names.filter((name) => name === "metrics").length).toBe(3);
    expect(names.indexOf("metrics")).toBeGreaterThan(names.indexOf("token"));
    const metrics = replay(record).find((e) => e.event === "metrics");
    expect(metrics?.data).toMatchObject({ tokens_out: 101, tokens_per_second: 100, queue_depth: 0 });
  });

  test("waits while all slots are busy and starts when one is free, at the position it was told", async () => {
    rig = await new Rig().start();
    const records = [await accept(), await accept(), await accept({ priority: "batch" }), await accept()];
    expect(records.map((r) => [r.state, r.promise.queuePosition])).toEqual([
      ["running", 0],
      ["queued", 0],
      ["queued", 1],
      ["queued", 1],
    ]);
    await rig.clock.advance(1000);
    const order = records.toSorted((a, b) => (a.startedMs ?? 0) - (b.startedMs ?? 0));
    expect(order.map((r) => records.indexOf(r))).toEqual([0, 1, 3, 2]);
  });

  test("starts its pool where that is not loaded", async () => {
    rig = await new Rig({ pools: [mockPool({ preload: false })] }).start();
    expect(rig.supervisor.snapshots("chat").map((r) => r.state)).toEqual(["stopped"]);
    const record = await accept();
    await rig.clock.advance(1000);
    expect(record.state).toBe("done");
  });
});

describe("the same task_id", () => {
  test("with the same body is the same task, live or ended", async () => {
    rig = await new Rig().start();
    const first = await submit();
    const { taskId } = first.record.spec;
    const again = await submit({ taskId });
    expect([first.repeated, again.repeated, again.record]).toEqual([false, true, first.record]);
    await rig.clock.advance(1000);
    expect((await submit({ taskId })).record).toBe(first.record);
    expect(rig.metrics.of("taskEnqueued").length).toBe(1);
  });

  test("twice in one turn is one task", async () => {
    rig = await new Rig().start();
    const spec = rig.spec();
    const both = [rig.submit(spec), rig.submit(spec)];
    await tick();
    const [first, second] = await Promise.all(both);
    expect([first?.repeated, second?.repeated, second?.record]).toEqual([false, true, first?.record]);
  });

  test("with another body, or from another key, is a conflict that tells nothing", async () => {
    rig = await new Rig().start();
    const { taskId } = (await accept()).spec;
    const conflict = { code: "CONFLICT", details: { task_id: taskId } };
    expect(submit({ taskId, bodyDigest: "other" })).rejects.toMatchObject(conflict);
    await tick();
    expect(submit({ taskId, keyId: "mallory" })).rejects.toMatchObject(conflict);
    await tick();
  });

  test("is answered with its task also when nothing new is taken", async () => {
    rig = await new Rig().start();
    const record = await accept();
    rig.dispatcher.close();
    expect((await submit({ taskId: record.spec.taskId })).record).toBe(record);
  });
});

describe("a refusal", () => {
  test("says that the queue is full and when to come again; a place is free when a task started", async () => {
    rig = await new Rig().start();
    for (let n = 0; n < 5; n++) await accept();
    const refused = submit();
    expect(refused).rejects.toMatchObject({ code: "ADMISSION_REJECT", status: 429, policyLabel: "reject" });
    await tick();
    expect(rig.dispatcher.refusalFor("chat", "batch")?.retryAfterMs).toBeGreaterThan(0);
    expect(rig.metrics.of("taskRejected")).toEqual([[{ engine: "mock", reason: "ADMISSION_REJECT" }]]);
    expect(rig.metrics.of("backpressure")).toEqual([[{ engine: "mock", policy: "reject" }]]);
    await rig.clock.advance(60);
    await accept();
  });

  test("leaves nothing behind", async () => {
    rig = await new Rig().start();
    for (let n = 0; n < 5; n++) await accept();
    const { size } = rig.registry;
    const armed = rig.clock.pendingTimers;
    expect(submit({ deadlineMs: 5000 })).rejects.toMatchObject({ code: "ADMISSION_REJECT" });
    await tick();
    expect([rig.registry.size, rig.clock.pendingTimers]).toEqual([size, armed]);
  });

  test("says that the daemon is shutting down", async () => {
    rig = await new Rig().start();
    rig.dispatcher.close();
    expect(submit()).rejects.toMatchObject({ code: "POOL_UNREADY", status: 503 });
    await tick();
  });
});

describe("cancel", () => {
  test("of a waiting task takes it out of the queue at once", async () => {
    rig = await new Rig().start();
    await accept();
    const record = await accept();
    await cancel(record);
    expect(record.state).toBe("canceled");
    expect(replay(record).map((e) => [e.event, e.data.code])).toEqual([["error", "CANCELED"]]);
    expect(rig.dispatcher.view.depth("chat")).toMatchObject({ interactive: 0 });
  });

  test("of a running task seals its log: nothing comes after it resolved", async () => {
    rig = await new Rig().start();
    const record = await accept({ maxTokens: 300 });
    const reader = new StreamReader(readableOf(rig.streams.open(record, "alice", -1, false)));
    await rig.clock.advance(105);
    await cancel(record);
    const { length } = record.log;
    await rig.clock.advance(3000);
    expect([record.log.length, record.log.sealed, record.state]).toEqual([length, true, "canceled"]);
    expect(reader.last).toMatchObject({ id: length - 1, event: "error", data: { code: "CANCELED" } });
    expect([reader.closed, rig.runner.size, rig.dispatcher.view.slotsBusy("chat-0")]).toEqual([true, 0, 0]);
  });

  test("gives the slot to the next task", async () => {
    rig = await new Rig().start();
    const [first, second] = [await accept({ maxTokens: 300 }), await accept()];
    await cancel(first);
    await rig.clock.advance(100);
    expect(second.state).toBe("done");
  });

  test("may come again and for tasks that are unknown or done", async () => {
    rig = await new Rig().start();
    const record = await accept();
    await rig.clock.advance(1000);
    const { length } = record.log;
    await cancel(record);
    const unknown = rig.dispatcher.cancel("nobody", "client");
    await tick();
    await unknown;
    expect([record.state, record.log.length]).toEqual(["done", length]);
    const running = await accept({ maxTokens: 300 });
    await Promise.all([cancel(running), cancel(running)]);
    expect(replay(running).filter((e) => e.event === "error").length).toBe(1);
  });

  test("in the same turn as the submit is a canceled task", async () => {
    rig = await new Rig().start();
    const spec = rig.spec();
    const submitted = rig.submit(spec);
    const canceled = rig.dispatcher.cancel(spec.taskId, "client");
    await tick();
    await canceled;
    expect((await submitted).record.state).toBe("canceled");
    await rig.clock.advance(100);
    expect(rig.dispatcher.view.slotsBusy("chat-0")).toBe(0);
  });

  test("that meets the end of the attempt does not lose the slot", async () => {
    // Posted when the engine has finished and the runner has not heard of it yet: both lie in one mailbox.
    let atEnd = (): void => undefined;
    rig = await new Rig({ adapter: (clock) => new InterruptedAdapter(clock, () => atEnd()) }).start();
    const record = await accept({ maxTokens: 5 });
    atEnd = () => {
      atEnd = () => undefined;
      void rig.dispatcher.cancel(record.spec.taskId, "client");
    };
    const next = await accept();
    await rig.clock.advance(1000);
    expect([record.state, next.state]).toEqual(["canceled", "done"]);
    expect(rig.dispatcher.view.slotsBusy("chat-0")).toBe(0);
  });
});

/** The mock engine; something happens between its last token and the word that it is done. */
class InterruptedAdapter extends MockAdapter {
  constructor(
    clock: VirtualClock,
    private readonly atEnd: () => void,
  ) {
    super({ clock, entropy: new SeededEntropy(1) });
  }
  override connectInProcess(pool: PoolSpec, replicaId: string): MockEngineClient {
    const client = super.connectInProcess(pool, replicaId);
    const generate = client.generate.bind(client);
    client.generate = async (...call) => {
      const result = await generate(...call);
      this.atEnd();
      return result;
    };
    return client;
  }
}

test("an assertion that fails in a turn is the end of the daemon, not of that turn only (ORCHD-ARCH-8)", async () => {
  rig = await new Rig().start();
  const ready = rig.dispatcher.runtime("chat").ready.get("chat-0");
  if (ready === undefined) throw new Error("the replica is ready");
  const snapshot = rig.supervisor.snapshots("chat")[0];
  if (snapshot === undefined) throw new Error("the replica has a snapshot");
  // It was not lost in between: a programmer's mistake.
  rig.dispatcher.replicaReady(snapshot, ready.client, { prefillTps: 100, decodeTps: 100 });
  await tick();
  const [fatal] = rig.fatal.splice(0);
  expect(isAssertion(fatal) && fatal.message).toContain("was lost before it is ready again");
});

describe("two replicas", () => {
  test("that are equally busy: the one whose warm-up was faster takes the task (ORCHD-PLACE-1)", async () => {
    rig = new Rig({ pools: [mockPool({ replicas: 2, slots: 2 })] });
    const ready = rig.dispatcher.replicaReady.bind(rig.dispatcher);
    rig.dispatcher.replicaReady = (snapshot, client, speed) =>
      ready(snapshot, client, { ...speed, decodeTps: snapshot.replicaId === "chat-1" ? 90 : 30 });
    await rig.start();
    const records = [await accept(), await accept(), await accept()];
    expect(records.map(({ replicaId }) => replicaId)).toEqual(["chat-1", "chat-0", "chat-1"]);
    expect(rig.log.of("task_started").map(({ why }) => String(why).split("; ")[1])).toEqual([
      expect.stringContaining("replica by speed"),
      expect.stringContaining("replica by fewest_busy"),
      expect.stringContaining("replica by speed"),
    ]);
  });

  test("that are equally busy: the one with more free memory on its cards does, as last told and as long as it runs (ORCHD-GPU-2)", async () => {
    rig = await new Rig({ pools: [mockPool({ replicas: 2, slots: 2 })] }).start();
    const [first, second] = rig.supervisor.snapshots("chat");
    if (first === undefined || second === undefined) throw new Error("the pool has two replicas");
    rig.dispatcher.vramMeasured(first, 4e9);
    rig.dispatcher.vramMeasured(second, 9e9);
    expect((await accept()).replicaId).toBe(second.replicaId);
    expect(String(rig.log.of("task_started").at(-1)?.why)).toContain("replica by vram");
    expect((await accept()).replicaId).toBe(first.replicaId);
    rig.dispatcher.vramMeasured(first, 12e9);
    // An engine that is gone has nothing to say for the one that came after it.
    rig.dispatcher.vramMeasured({ ...second, incarnation: second.incarnation - 1 }, 99e9);
    expect((await accept()).replicaId).toBe(first.replicaId);
    rig.dispatcher.vramMeasured(first, null);
    expect((await accept()).replicaId).toBe(second.replicaId);
  });
});
