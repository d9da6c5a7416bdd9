/**
 * Frames on disk before anybody sees them (write-ahead.ts), through the whole of the services: a killed daemon's
 * successor tells the same and goes on; a disk that refuses holds streams back and loses nothing.
 */
import { afterEach, expect, test } from "bun:test";
import type { TaskSpec } from "../../src/domain/task.ts";
import { JournalError, type JournalRecord } from "../../src/ports/journal.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { MemoryJournal } from "../support/memory-journal.ts";
import { readableOf } from "../support/viewer-readable.ts";
import { eventsIn, mockPool, profile, Rig, type RigOptions, replay, StreamReader } from "./rig.ts";

let rig: Rig;
afterEach(() => rig.stop());

const greedy = { ...profile, temperature: 0 };
const maxTokens = 24;
const textOf = (events: ReturnType<typeof replay>): string =>
  events
    .filter(({ event }) => event === "token")
    .map(({ data }) => data.t)
    .join("");

async function submit(more: Partial<TaskSpec> = {}): Promise<TaskRecord> {
  const submitted = rig.submit(rig.spec({ maxTokens, sampling: greedy, onDisconnect: "continue", ...more }));
  await rig.clock.advance(0);
  return (await submitted).record;
}

/** kill -9, and the next process. */
async function restart(options: RigOptions = {}): Promise<void> {
  const [store, journal] = [rig.store.reopen("kill"), rig.journal.reopen()];
  await rig.stop();
  rig = await new Rig({ store, journal, ...options }).start(0);
}

/** At the beginning only what is there; the rest as time goes on. */
const view = (record: TaskRecord, after = -1): StreamReader =>
  new StreamReader(readableOf(rig.streams.open(record, "alice", after, true)));

async function uncut(): Promise<string> {
  rig = await new Rig().start();
  const record = await submit();
  await rig.clock.advance(1000);
  const text = textOf(replay(record));
  await rig.stop();
  expect(text.length).toBeGreaterThan(40);
  return text;
}

test.each([
  ["greedy", {}, "unverified"],
  ["strict", { determinism: "strict", sampling: profile, seed: 7 }, "yes"],
] as const)("a killed daemon's successor goes on where viewers are: %s", async (_, more, exact) => {
  rig = await new Rig().start();
  const whole = textOf(replay(await ended(await submit(more))));
  await rig.stop();
  rig = await new Rig().start();
  const { taskId } = (await submit(more)).spec;
  let seen = "";
  for (let kills = 0; kills < 4; kills++) {
    const viewer = view(rig.registry.get(taskId), eventsIn(seen).at(-1)?.id ?? -1);
    await rig.clock.advance(47);
    seen += viewer.text;
    await restart();
  }
  const record = rig.registry.get(taskId);
  const early = replay(record);
  expect(early.slice(0, eventsIn(seen).length)).toEqual(eventsIn(seen));
  const viewer = view(record, eventsIn(seen).at(-1)?.id ?? -1);
  await rig.clock.advance(1000);
  const events = eventsIn(seen + viewer.text);
  expect(events.map(({ id }) => id)).toEqual(events.map((_event, at) => at));
  expect(events.filter(({ event }) => event === "started")).toHaveLength(1);
  expect(textOf(events)).toBe(whole);
  expect(events.at(-1)).toMatchObject({ event: "end", data: { tokens_out: maxTokens, exact } });
  const first = events.find(({ event }) => event === "end")?.data.first_token_ms;
  expect(first).toBeLessThan(100);
  expect(rig.journal.tasks()).toEqual([]);
});

async function ended(record: TaskRecord): Promise<TaskRecord> {
  await rig.clock.advance(1000);
  expect(record.state).toBe("done");
  return record;
}

test("a frame is in the journal when a viewer sees it, and one flush takes those of all tasks (ORCHD-ARCH-11)", async () => {
  rig = await new Rig({ pools: [mockPool({ slots: 4 })] }).start();
  const records = [await submit(), await submit(), await submit(), await submit()];
  for (let ms = 0; ms < 100; ms++) {
    await rig.clock.advance(1);
    const kept = rig.journal.reopen().recover().tasks;
    for (const record of records) {
      const told = replay(record).length;
      const frames = kept.get(record.spec.taskId)?.records.filter(({ kind }) => kind !== "attempt") ?? [];
      expect(frames.length).toBe(told);
    }
  }
  const tokens = records.reduce((sum, { log }) => sum + log.tokenCount, 0);
  expect(tokens).toBeGreaterThan(30);
  expect(rig.journal.flushes).toBeLessThan(tokens / 2);
});

test("while the disk refuses nothing is shown; afterwards everything is", async () => {
  const whole = await uncut();
  rig = await new Rig().start();
  const record = await submit();
  await rig.clock.advance(50);
  const viewer = view(record);
  await rig.clock.advance(0);
  const before = viewer.events.length;
  rig.journal.failNextFlush("full");
  await rig.clock.advance(120);
  expect(record.log.length).toBeGreaterThan(before + 8);
  expect(viewer.events).toHaveLength(before);
  expect(rig.log.of("journal_unavailable")).toHaveLength(1);
  await rig.clock.advance(2000);
  expect(textOf(viewer.events)).toBe(whole);
  expect(viewer.last).toMatchObject({ event: "end", data: { exact: "yes" } });
  expect(rig.log.of("journal_back")).toHaveLength(1);
});

/** Takes so many tokens. */
class SmallJournal extends MemoryJournal {
  left = 5;
  override append(taskId: string, record: JournalRecord): boolean {
    if (record.kind === "token" && --this.left < 0) throw new JournalError("full", "no room");
    return super.append(taskId, record);
  }
}

test("a journal that takes no more ends what it cannot keep, and the next task finds out for itself", async () => {
  const journal = new SmallJournal();
  rig = await new Rig({ journal }).start();
  const record = await submit();
  await rig.clock.advance(1000);
  expect(replay(record).map(({ event }) => event)).toEqual(["started", ...Array(5).fill("token"), "error"]);
  expect(record.error).toMatchObject({ code: "STORAGE_UNAVAILABLE" });
  journal.left = 1000;
  await ended(await submit());
});

test("a damaged log begins again: viewers are told what they have not seen", async () => {
  const whole = await uncut();
  rig = await new Rig().start();
  const { taskId } = (await submit()).spec;
  const viewer = view(rig.registry.get(taskId));
  await rig.clock.advance(105);
  const seen = viewer.events;
  rig.journal.damage(taskId, 3);
  await restart();
  expect(rig.log.of("journal_damaged")).toHaveLength(1);
  const record = rig.registry.get(taskId);
  const later = view(record, seen.at(-1)?.id ?? -1);
  await rig.clock.advance(1000);
  expect(textOf(seen) + textOf(later.events)).toBe(whole);
  expect(textOf(replay(record))).toBe(whole);
  expect(record.continuations).toBe(0);
  expect(rig.journal.tasks()).toEqual([]);
});

test("an end that the disk refuses keeps its frames until it is stored", async () => {
  rig = await new Rig().start();
  const { taskId } = (await submit()).spec;
  await rig.clock.advance(100);
  rig.store.failNextWrite("full");
  for (let ms = 0; ms < 200 && rig.registry.get(taskId).state !== "done"; ms++) await rig.clock.advance(1);
  expect(rig.registry.get(taskId).state).toBe("done");
  await rig.clock.advance(2000);
  expect(rig.journal.tasks()).toEqual([taskId]);
  await rig.clock.advance(2000);
  await ended(await submit());
  expect(rig.journal.tasks()).toEqual([]);
});

test("what had settled when the journal had not yet forgotten it is forgotten at the next start", async () => {
  rig = await new Rig().start();
  const record = await submit();
  await rig.clock.advance(100);
  const early = rig.journal.reopen();
  await ended(record);
  const store = rig.store.reopen("kill");
  await rig.stop();
  rig = await new Rig({ store, journal: early }).start();
  expect(early.tasks()).toEqual([]);
  expect(rig.registry.find(record.spec.taskId)).toBeNull();
});
