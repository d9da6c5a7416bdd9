/**
 * The dispatcher and its store: what is stored when, what a disk that refuses leaves behind, what the next process
 * finds (ORCHD-DUR-1, ORCHD-DUR-2, ORCHD-DUR-3, ORCHD-TASK-3).
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { Submitted } from "../../src/services/mailbox.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { uuidOf } from "../support/stored-tasks.ts";
import { readableOf } from "../support/viewer-readable.ts";
import { mockPool, Rig, type RigOptions, replay, StreamReader, submission } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const tick = () => rig.clock.advance(0);
const session = uuidOf(0x5e55);
const unavailable = { code: "STORAGE_UNAVAILABLE", status: 503 };
const unbounded = { tokens: null, timeMs: null, cost: null };

/** An answer that can be looked at before it is there. */
interface Asked {
  readonly spec: TaskSpec;
  readonly answer: Promise<Submitted>;
  outcome: "none" | "accepted" | "refused";
}

function ask(more: Partial<TaskSpec> = {}): Asked {
  const spec = rig.spec(more);
  const asked: Asked = { spec, answer: rig.submit(spec), outcome: "none" };
  asked.answer.then(
    () => {
      asked.outcome = "accepted";
    },
    () => {
      asked.outcome = "refused";
    },
  );
  return asked;
}
async function accept(more: Partial<TaskSpec> = {}): Promise<TaskRecord> {
  const { answer } = ask(more);
  await tick();
  return (await answer).record;
}

/** All that a task may leave behind. */
const traces = () => ({
  records: rig.registry.size,
  logBytes: rig.registry.account.bytes,
  live: rig.registry.liveCount,
  waiting: rig.dispatcher.view.depth("chat"),
  busy: rig.dispatcher.view.slotsBusy("chat-0"),
  running: rig.runner.size,
  sessions: rig.sessions.size,
  submitting: rig.dispatcher.runtime("chat").submitting,
  failed: rig.dispatcher.runtime("chat").failed,
  timers: rig.clock.pendingTimers,
  stored: rig.store.reopen("kill").recover().live.length,
});

/** The next process over what this one left. */
async function restart(
  after: "kill" | "power",
  options: RigOptions = {},
  downMs = 5_000,
): Promise<TaskRecord[]> {
  const store = rig.store.reopen(after);
  const nowMs = rig.clock.nowMs();
  await rig.stop();
  rig = new Rig({ ...options, store });
  await rig.clock.advance(nowMs - rig.clock.nowMs() + downMs);
  rig.supervisor.start(rig.pools, rig.dispatcher);
  const live = rig.dispatcher.recover();
  for (const record of live) rig.streams.expect(record);
  return [...live];
}
const pool = (more: Partial<PoolSpec> = {}): RigOptions => ({ pools: [mockPool(more)] });

describe("the answer", () => {
  test("comes only when the task is synced; its attempt need not wait for that", async () => {
    rig = await new Rig().start();
    const release = rig.store.holdSyncs();
    const asked = ask({ maxTokens: 20 });
    await rig.clock.advance(50);
    expect([asked.outcome, rig.registry.get(asked.spec.taskId).tokensOut > 0]).toEqual(["none", true]);
    release();
    await tick();
    expect(asked.outcome).toBe("accepted");
  });

  test("to a repeat comes no sooner, in the same turn, in a later one, or before any", async () => {
    rig = await new Rig().start();
    const release = rig.store.holdSyncs();
    const asked = ask({ taskId: uuidOf(1) });
    const repeats = [ask({ taskId: uuidOf(1) })];
    await tick();
    repeats.push(ask({ taskId: uuidOf(1) }));
    const named = { taskId: uuidOf(2) };
    const first = rig.admission.submit(submission(named));
    await tick();
    let early = 0;
    const again = rig.admission.submit(submission(named)).then(({ repeated }) => {
      early++;
      return repeated;
    });
    await tick();
    expect([asked, ...repeats].map(({ outcome }) => outcome)).toEqual(["none", "none", "none"]);
    expect(early).toBe(0);
    release();
    await tick();
    const [one, two] = await Promise.all(repeats.map(({ answer }) => answer));
    expect([one?.repeated, two?.repeated, (await first).repeated, await again]).toEqual([
      true,
      true,
      false,
      true,
    ]);
    expect(one?.record).toBe((await asked.answer).record);
  });

  test("of all that came in one moment is one transaction and one sync (ORCHD-ARCH-10)", async () => {
    rig = await new Rig(pool({ queueCapacity: 64 })).start();
    const { writes, syncs } = rig.store;
    const asked = Array.from({ length: 40 }, () => ask());
    await tick();
    expect(asked.every(({ outcome }) => outcome === "accepted")).toBe(true);
    expect([rig.store.writes - writes, rig.store.syncs - syncs]).toEqual([1, 1]);
  });

  test("is a refusal for whoever comes after the halt", async () => {
    rig = await new Rig().start();
    const inMailbox = ask();
    rig.dispatcher.halt();
    const late = ask();
    await tick();
    expect([inMailbox.outcome, late.outcome]).toEqual(["refused", "refused"]);
    expect(late.answer).rejects.toMatchObject({ code: "POOL_UNREADY", status: 503 });
  });
});

describe("a write that fails (ORCHD-DUR-3)", () => {
  test("refuses every submitter of the turn and leaves nothing of them", async () => {
    rig = await new Rig(pool({ slots: 2 })).start();
    const before = traces();
    rig.store.failNextWrite("full");
    const more = { sessionId: session, budget: { ...unbounded, tokens: 1000 }, deadlineMs: 60_000 };
    const asked = [ask(more), ask({ ...more, determinism: "strict" }), ask(more), ask({ priority: "batch" })];
    const repeat = ask({ taskId: asked[0]?.spec.taskId ?? "" });
    await tick();
    for (const { answer } of [...asked, repeat]) expect(answer).rejects.toMatchObject(unavailable);
    expect(traces()).toEqual(before);
    expect(rig.sessions.find(session, rig.clock.nowMs())).toBeNull();
    expect(rig.metrics.of("taskEnqueued")).toEqual([]);
    expect(rig.metrics.of("taskRejected").length).toBe(4);
    expect(rig.dispatcher.refusalFor("chat", "batch")).toMatchObject(unavailable);
    await rig.clock.advance(1000);
    const record = await accept({ taskId: asked[0]?.spec.taskId ?? "" });
    await rig.clock.advance(100);
    expect(record.state).toBe("done");
  });

  test("does not end what runs and waits; ends that were refused are stored with the next batch", async () => {
    rig = await new Rig().start();
    const [first, second] = [await accept({ sessionId: session }), await accept()];
    rig.store.failNextWrite("io");
    const refused = ask();
    await tick();
    expect(refused.outcome).toBe("refused");
    rig.store.failNextWrite("io");
    await rig.clock.advance(60);
    expect([first.state, first.log.sealed, second.state]).toEqual(["done", true, "running"]);
    expect(rig.store.find(first.spec.taskId)?.ended).toBeNull();
    await rig.clock.advance(60);
    expect(second.state).toBe("done");
    expect(rig.store.find(first.spec.taskId)?.ended).toMatchObject({ state: "done", tokensOut: 5 });
    expect(rig.store.find(second.spec.taskId)?.ended).toMatchObject({ state: "done" });
    const [kept] = rig.store.reopen("kill").recover().sessions;
    expect(kept?.spent.tokens).toBe((first.tokensIn ?? 0) + 5);
    expect(rig.log.of("storage_unavailable").length).toBe(1);
    expect(rig.log.of("storage_back").length).toBe(1);
  });

  test("at the last end before the daemon stops is tried once more", async () => {
    rig = await new Rig().start();
    const record = await accept();
    rig.store.failNextWrite("full");
    await rig.clock.advance(100);
    expect([record.state, rig.store.find(record.spec.taskId)?.ended]).toEqual(["done", null]);
    rig.dispatcher.close();
    rig.dispatcher.halt();
    expect(rig.store.reopen("kill").recover().live).toEqual([]);
  });

  test("and a cancel in the same turn: no slot stays behind, whether it had started or not", async () => {
    rig = await new Rig(pool({ slots: 2 })).start();
    const before = traces();
    rig.store.failNextWrite("full");
    const asked = [ask(), ask(), ask(), ask({ determinism: "strict" })];
    const canceled = asked.map(({ spec }) => rig.dispatcher.cancel(spec.taskId, "client"));
    await tick();
    await Promise.all(canceled);
    expect(asked.map(({ outcome }) => outcome)).toEqual(["refused", "refused", "refused", "refused"]);
    expect(traces()).toEqual(before);
    await rig.clock.advance(1000);
    const both = [ask(), ask()];
    await tick();
    expect((await Promise.all(both.map(({ answer }) => answer))).map(({ record }) => record.state)).toEqual([
      "running",
      "running",
    ]);
  });

  test("gives the slot that it takes back to what waited", async () => {
    rig = await new Rig(pool({ preload: false })).start();
    const waiting = await accept({ priority: "batch" });
    // In one turn: an interactive task comes, the engine is ready, and that task would start first.
    let refused: Asked | null = null;
    const ready = rig.dispatcher.replicaReady.bind(rig.dispatcher);
    rig.dispatcher.replicaReady = (...told) => {
      rig.store.failNextWrite("full");
      refused = ask();
      ready(...told);
    };
    await rig.clock.advance(1000);
    expect(refused).toMatchObject({ outcome: "refused" });
    expect([waiting.state, waiting.attempts, waiting.tokensOut]).toEqual(["done", 1, 5]);
  });

  test("drops nobody twice: the victim ends once, one of the same turn was never there", async () => {
    rig = await new Rig(pool({ fullPolicy: "drop-lru", queueCapacity: 1 })).start();
    await accept({ maxTokens: 100 });
    const victim = await accept({ priority: "batch" });
    rig.store.failNextWrite("full");
    const before = rig.dispatcher.runtime("chat").failed;
    const asked = [ask({ priority: "batch" }), ask()];
    await tick();
    for (const { answer } of asked) expect(answer).rejects.toMatchObject(unavailable);
    expect(replay(victim).map(({ data }) => data.code)).toEqual(["QUEUE_FULL_DROP_LRU"]);
    expect([rig.registry.liveCount, rig.dispatcher.runtime("chat").failed - before]).toEqual([1, 1]);
    expect(rig.dispatcher.view.depth("chat")).toMatchObject({ interactive: 0, batch: 0 });
    await rig.clock.advance(1100);
    await accept();
    expect(rig.store.find(victim.spec.taskId)?.ended?.error?.code).toBe("QUEUE_FULL_DROP_LRU");
  });

  test("again and again keeps of a session only how it stands", async () => {
    rig = await new Rig({ sessions: { turnsMax: 100 } }).start();
    const sizes: number[] = [];
    const write = rig.store.write.bind(rig.store);
    rig.store.write = (batch) => {
      sizes.push(batch.length);
      write(batch);
    };
    for (let n = 0; n < 20; n++) {
      rig.store.failNextWrite("full");
      const refused = ask({ sessionId: session });
      await rig.clock.advance(1000);
      expect(refused.outcome).toBe("refused");
    }
    expect(Math.max(...sizes)).toBeLessThanOrEqual(3);
    await accept({ sessionId: session });
    expect(
      rig.store
        .reopen("kill")
        .recover()
        .sessions.map(({ turns }) => turns),
    ).toEqual([1]);
  });
});

test("a sync that fails: submitters are refused, their tasks canceled, nothing is taken until a restart (ORCHD-DUR-3)", async () => {
  rig = await new Rig().start();
  const old = await accept({ maxTokens: 10 });
  const release = rig.store.holdSyncs();
  const asked = [ask({ taskId: uuidOf(7) }), ask()];
  await tick();
  const repeat = ask({ taskId: uuidOf(7) });
  await tick();
  rig.store.failSyncs("io");
  release();
  await tick();
  for (const { answer } of [...asked, repeat]) expect(answer).rejects.toMatchObject(unavailable);
  await tick();
  for (const { spec } of asked) expect(rig.registry.get(spec.taskId).error?.code).toBe("CANCELED");
  await rig.clock.advance(60_000);
  expect([old.state, rig.registry.liveCount, rig.runner.size]).toEqual(["done", 0, 0]);
  const later = ask();
  await tick();
  expect(later.answer).rejects.toMatchObject(unavailable);
  // What was stored for good is still told of.
  expect((await accept({ taskId: old.spec.taskId })).state).toBe("done");
  await restart("power");
  await rig.clock.advance(1000);
  expect((await accept({ taskId: uuidOf(8) })).state).toBe("running");
});

describe("the next process", () => {
  test("finds after a kill all that was written, after a power cut all that was answered", async () => {
    rig = await new Rig().start();
    const answered = await accept({ maxTokens: 100 });
    rig.store.holdSyncs();
    const unanswered = ask();
    await tick();
    const found = (after: "kill" | "power") =>
      rig.store
        .reopen(after)
        .recover()
        .live.map(({ spec }) => spec.taskId);
    expect(found("power")).toEqual([answered.spec.taskId]);
    expect(found("kill")).toEqual([answered.spec.taskId, unanswered.spec.taskId]);
  });

  for (const after of ["kill", "power"] as const)
    test(`runs everything once, in its order, and counts on (${after})`, async () => {
      rig = await new Rig(pool({ queueCapacity: 8 })).start();
      const done = await accept();
      await rig.clock.advance(100);
      const running = await accept({ maxTokens: 100 });
      const batch = await accept({ priority: "batch" });
      const rest = [await accept(), await accept(), await accept()];
      const live = await restart(after, pool({ queueCapacity: 8 }));
      expect(live.map(({ ordinal }) => ordinal)).toEqual([2, 3, 4, 5, 6]);
      const fresh = await accept({ taskId: uuidOf(99) });
      expect(fresh.ordinal).toBe(7);
      await rig.clock.advance(5000);
      const inOrder = [running, ...rest, fresh, batch].map(({ spec }) => spec.taskId);
      expect(rig.log.of("task_started").map(({ task_id }) => task_id)).toEqual(inOrder);
      for (const id of inOrder) expect(rig.store.find(id)?.ended?.state).toBe("done");
      expect(rig.registry.find(done.spec.taskId)).toBeNull();
    });

  test("counts what waited against the capacity, and not what was seen to run", async () => {
    const small = pool({ queueCapacity: 2 });
    rig = await new Rig(small).start();
    await accept({ maxTokens: 100 });
    await rig.clock.advance(50);
    await accept();
    await accept();
    await restart("kill", { ...small, journal: rig.journal.reopen() });
    const refused = ask({ taskId: uuidOf(98) });
    await rig.clock.advance(0);
    expect(refused.outcome).toBe("refused");
    await expect(refused.answer).rejects.toMatchObject({ code: "ADMISSION_REJECT" });
    await rig.clock.advance(3000);
    expect((await accept({ taskId: uuidOf(99) })).ordinal).toBe(4);
  });

  test("gives viewers time to come back, and lets alone what nobody ever watched", async () => {
    rig = await new Rig(pool({ slots: 4 })).start();
    const long = { maxTokens: 200 };
    const [left, kept, alone] = [
      await accept(long),
      await accept({ ...long, onDisconnect: "continue" }),
      await accept(long),
    ];
    const back = await accept(long);
    for (const record of [left, kept, back])
      new StreamReader(readableOf(rig.streams.open(record, "alice", -1, false)));
    await tick();
    const live = await restart("kill", pool({ slots: 4 }));
    expect(live.map(({ watched }) => watched)).toEqual([true, true, false, true]);
    await rig.clock.advance(400);
    const again = rig.registry.get(back.spec.taskId);
    new StreamReader(readableOf(rig.streams.open(again, "alice", -1, false)));
    await rig.clock.advance(5000);
    const states = [left, kept, alone, back].map(({ spec }) => rig.registry.get(spec.taskId).state);
    expect(states).toEqual(["canceled", "done", "done", "done"]);
  });

  test("keeps deadlines: a passed one fails, another goes on from where it was", async () => {
    rig = await new Rig({ minOnTimeProbability: 0 }).start();
    await accept({ maxTokens: 200 });
    const [passed, later] = [await accept({ deadlineMs: 3_000 }), await accept({ deadlineMs: 6_000 })];
    const { createdMs } = later;
    const slow = pool({ mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 5_000, faults: [] } });
    await restart("kill", { ...slow, minOnTimeProbability: 0 }, 4_000);
    await tick();
    expect(rig.registry.get(passed.spec.taskId).error?.code).toBe("DEADLINE_UNMET");
    expect(rig.registry.get(later.spec.taskId).state).toBe("queued");
    await rig.clock.advance(1_999);
    expect(rig.registry.get(later.spec.taskId).state).toBe("queued");
    await rig.clock.advance(1);
    const ended = rig.registry.get(later.spec.taskId);
    expect([ended.error?.code, (ended.finishedMs ?? 0) - createdMs]).toEqual(["DEADLINE_UNMET", 6_000]);
    expect(rig.store.find(passed.spec.taskId)?.ended?.error?.code).toBe("DEADLINE_UNMET");
  });

  test("ends the tasks of a pool that is no longer configured, for good", async () => {
    rig = await new Rig({
      pools: [mockPool(), mockPool({ id: "old" })],
      sessions: { budget: { ...unbounded, tokens: 200 } },
    }).start();
    const homeless = await accept({ poolId: "old", engine: "llamacpp", maxTokens: 50, sessionId: session });
    const other = await accept({ maxTokens: 50, sessionId: session });
    const live = await restart("kill", { sessions: { budget: { ...unbounded, tokens: 200 } } });
    expect(live.map(({ spec }) => spec.taskId)).toEqual([other.spec.taskId]);
    const record = rig.registry.get(homeless.spec.taskId);
    // Whose it was is known from its admission.
    expect(replay(record).map(({ data }) => [data.code, data.engine])).toEqual([
      ["POOL_UNAVAILABLE", "llamacpp"],
    ]);
    expect(rig.metrics.of("taskFinished")).toMatchObject([[{ engine: "llamacpp", poolId: "old" }]]);
    expect(rig.log.of("task_failed")).toMatchObject([{ engine: "llamacpp", pool_id: "old" }]);
    // Nothing is reserved for it any more, nor spent.
    expect(rig.sessions.find(session, rig.clock.nowMs())).toMatchObject({
      turns: 2,
      remaining: { tokens: 200 - 58 },
    });
    expect(rig.dispatcher.repeats.find(homeless.spec.taskId, "alice", "d")).toMatchObject({
      repeated: true,
      record,
    });
    expect(
      rig.store
        .reopen("kill")
        .recover()
        .live.map(({ spec }) => spec.taskId),
    ).toEqual([other.spec.taskId]);
  });

  test("reserves again what live tasks of a session hold, and what was spent stays spent", async () => {
    const options = { sessions: { budget: { ...unbounded, tokens: 100 } } };
    rig = await new Rig(options).start();
    const done = await accept({ sessionId: session });
    await rig.clock.advance(100);
    const live = await accept({ sessionId: session, maxTokens: 30 });
    const used = (done.tokensIn ?? 0) + done.tokensOut;
    await restart("kill", options);
    const left = () => rig.sessions.find(session, rig.clock.nowMs())?.remaining.tokens;
    expect(left()).toBe(100 - used - 38);
    const refused = ask({ taskId: uuidOf(50), sessionId: session, maxTokens: 60 });
    await tick();
    expect(refused.answer).rejects.toMatchObject({ code: "BUDGET_EXHAUSTED" });
    await rig.clock.advance(1000);
    const record = rig.registry.get(live.spec.taskId);
    expect([record.state, left()]).toEqual(["done", 100 - used - (record.tokensIn ?? 0) - 30]);
  });

  test("knows repeats of what it recovered and of what had ended", async () => {
    rig = await new Rig().start();
    const ended = await accept();
    await rig.clock.advance(100);
    const waiting = await accept({ maxTokens: 50 });
    await restart("kill");
    const again = [ask({ ...waiting.spec }), ask({ ...ended.spec })];
    await tick();
    const [one, two] = await Promise.all(again.map(({ answer }) => answer));
    expect([one?.repeated, one?.record]).toEqual([true, rig.registry.get(waiting.spec.taskId)]);
    expect([two?.repeated, two?.record.state, two?.record.tokensOut]).toEqual([true, "done", 5]);
    const other = ask({ ...ended.spec, bodyDigest: "other" });
    await tick();
    expect(other.answer).rejects.toMatchObject({ code: "CONFLICT" });
    await tick();
  });
});
