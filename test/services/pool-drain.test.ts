/**
 * Drains through the dispatcher, the attempt runner and the mock engine: nothing starts, what runs is cut at the
 * deadline and goes on with what was sent, and a drain outlives the process.
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { DrainRecord } from "../../src/ports/pool-store.ts";
import { PoolDrains } from "../../src/services/pool-drain.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { MemoryRecords } from "../support/memory-records.ts";
import { mockPool, profile, Rig, type RigOptions, replay, submission } from "./rig.ts";

let rig: Rig;
let drains: PoolDrains;
let store: MemoryRecords<DrainRecord>;
afterEach(async () => {
  drains.stop();
  await rig.stop();
});

async function started(options: RigOptions = {}, kept = new MemoryRecords<DrainRecord>()): Promise<void> {
  store = kept;
  const drained = new Set(kept.records.keys());
  rig = await new Rig({ drained, ...options }).start();
  drains = new PoolDrains({
    clock: rig.clock,
    log: rig.log,
    store,
    isReloading: () => false,
    slotsBusy: (poolId) => rig.dispatcher.view.slotsBusyIn(poolId),
    tell: (event) => rig.dispatcher.tell(event),
    retry: (poolId) => rig.supervisor.retryPool(poolId),
  });
}

async function accept(more: Partial<TaskSpec> = {}): Promise<TaskRecord> {
  const submitted = rig.submit(rig.spec(more));
  await rig.clock.advance(0);
  return (await submitted).record;
}
async function drain(deadlineMs: number): Promise<void> {
  const told = drains.drain("chat", deadlineMs);
  await rig.clock.advance(0);
  await told;
}
async function resume(): Promise<void> {
  const told = drains.resume("chat");
  await rig.clock.advance(0);
  await told;
}
const end = (record: TaskRecord) => replay(record).at(-1);

describe("a drained pool", () => {
  test("starts nothing, lets go on what runs until the deadline, then cuts it; all goes on after the resume (ORCHD-DRAIN-1)", async () => {
    await started();
    const running = await accept({ maxTokens: 60, sampling: { ...profile, temperature: 0 } });
    const waiting = await accept();
    await rig.clock.advance(100);
    await drain(200);
    const held = await accept();
    expect(drains.view("chat")).toMatchObject({ state: "draining", running: 1 });
    await rig.clock.advance(199);
    expect(running.state).toBe("running");
    await rig.clock.advance(50);
    expect([running, waiting, held].map(({ state }) => state)).toEqual(["queued", "queued", "queued"]);
    expect(drains.view("chat")).toMatchObject({ state: "drained", running: 0 });
    expect(rig.log.of("task_requeued")).toEqual([expect.objectContaining({ cut: "drain" })]);
    await rig.clock.advance(10_000);
    expect(running.state).toBe("queued");
    await resume();
    await rig.clock.advance(5000);
    expect(end(running)).toMatchObject({ event: "end", data: { tokens_out: 60, continuations: 1 } });
    // The one that was cut goes first, the others in their order.
    expect(end(waiting)?.event).toBe("end");
    expect((running.finishedMs ?? 0) <= (waiting.startedMs ?? 0)).toBe(true);
    expect((waiting.startedMs ?? 0) < (held.startedMs ?? 0)).toBe(true);
    expect(drains.view("chat")).toBeNull();
  });

  test("that is told again gets the new deadline, and is as old as before", async () => {
    await started();
    const running = await accept({ maxTokens: 100 });
    await rig.clock.advance(50);
    const sinceMs = rig.clock.nowMs();
    await drain(100);
    await rig.clock.advance(50);
    await drain(500);
    expect(drains.view("chat")).toMatchObject({ sinceMs, deadlineMs: sinceMs + 550 });
    await rig.clock.advance(300);
    expect(running.state).toBe("running");
    await rig.clock.advance(300);
    expect(running.state).toBe("queued");
    await resume();
  });

  test("that is resumed before its deadline cuts nobody", async () => {
    await started();
    const running = await accept({ maxTokens: 60 });
    await drain(200);
    await rig.clock.advance(100);
    await resume();
    await rig.clock.advance(5000);
    expect(end(running)).toMatchObject({ event: "end", data: { continuations: 0 } });
    // Once more is nothing.
    await resume();
  });

  test("goes on with deadlines, cancels and the bound of its queue", async () => {
    await started({ pools: [mockPool({ queueCapacity: 2 })] });
    await drain(0);
    const late = await accept({ deadlineMs: 500 });
    const canceled = await accept();
    const over = rig.submit(rig.spec());
    const refused = over.catch((error: { code: string }) => error.code);
    await rig.clock.advance(0);
    expect(await refused).toBe("ADMISSION_REJECT");
    void rig.dispatcher.cancel(canceled.spec.taskId, "client");
    await rig.clock.advance(600);
    expect(end(late)).toMatchObject({ event: "error", data: { code: "DEADLINE_UNMET" } });
    expect(end(canceled)).toMatchObject({ event: "error", data: { code: "CANCELED" } });
  });

  test("loads nothing; its model is loaded once it is resumed", async () => {
    await started({ pools: [mockPool({ preload: false })] });
    await drain(0);
    const task = await accept();
    await rig.clock.advance(1000);
    expect(rig.supervisor.snapshots("chat")[0]?.state).toBe("stopped");
    await resume();
    await rig.clock.advance(1000);
    expect(end(task)?.event).toBe("end");
  });

  test("is passed over for others, and is where a task waits that may go nowhere else (ORCHD-DRAIN-2)", async () => {
    await started({ pools: [mockPool(), mockPool({ id: "more" })] });
    await drain(0);
    const anywhere = rig.admission.submit(submission());
    await rig.clock.advance(100);
    expect((await anywhere).record.spec.poolId).toBe("more");
    const wish = { ...submission().placement, mode: "pin", pinPoolId: "chat" } as const;
    const pinned = rig.admission.submit(submission({ placement: wish }));
    await rig.clock.advance(100);
    expect((await pinned).record).toMatchObject({ spec: { poolId: "chat" }, state: "queued" });
    expect(rig.admission.probe().map(({ poolId, error }) => [poolId, error?.code])).toEqual([
      ["chat", "POOL_UNREADY"],
      ["more", undefined],
    ]);
  });
});

describe("a drain", () => {
  test("is stored before it is carried out; a disk that refuses leaves the pool as it was", async () => {
    await started();
    store.full = true;
    expect(drains.drain("chat", 0)).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE" });
    await rig.clock.advance(0);
    expect(drains.isDrained("chat")).toBe(false);
    const task = await accept();
    await rig.clock.advance(1000);
    expect(end(task)?.event).toBe("end");
    store.full = false;
    await drain(0);
    store.full = true;
    expect(drains.resume("chat")).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE" });
    expect(drains.isDrained("chat")).toBe(true);
  });

  test("outlives the process, and is told at the next start", async () => {
    await started();
    await drain(0);
    drains.stop();
    await rig.stop();
    await started({}, store);
    expect(rig.log.of("pool_still_drained")).toEqual([expect.objectContaining({ pool_id: "chat" })]);
    const task = await accept();
    await rig.clock.advance(1000);
    expect(task.state).toBe("queued");
    await resume();
    await rig.clock.advance(1000);
    expect(end(task)?.event).toBe("end");
    expect(store.all()).toEqual([]);
  });
});
