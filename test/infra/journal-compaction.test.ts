/** What compaction gives back, and that a process which ends at any of its steps, or a disk that refuses one, loses nothing. */
import { describe, expect, test } from "bun:test";
import { FileJournal } from "../../src/infra/journal/file-journal.ts";
import { isJournalError, type JournalRecord } from "../../src/ports/journal.ts";
import { type Image, MemoryFiles } from "../support/journal-files.ts";
import { journalRecord, journalToken, plain } from "../support/journal-records.ts";

class World {
  readonly files = new MemoryFiles();
  readonly journal = new FileJournal(this.files, 1024);
  /** Of live tasks, flushed. */
  readonly flushed = new Map<string, JournalRecord[]>();

  constructor() {
    this.journal.recover();
  }
  put(taskId: string, record: JournalRecord): void {
    this.journal.append(taskId, record);
    const before = record.kind === "begin_again" ? [] : (this.flushed.get(taskId) ?? []);
    this.flushed.set(taskId, [...before, record]);
  }
  frame(taskId: string): void {
    const seq = (this.flushed.get(taskId) ?? []).filter(({ kind }) => kind === "token").length;
    this.put(taskId, journalToken(taskId, seq));
  }
  forget(taskId: string): void {
    this.journal.forget(taskId);
    this.flushed.delete(taskId);
  }
  /** Long-lived tasks among many short ones: old segments become sparse. */
  fill(rounds: number): void {
    for (let round = 0; round < rounds; round++) {
      const short = `short ${round}`;
      for (let frame = 0; frame < 12; frame++) this.frame(short);
      this.frame("long a");
      if (round % 3 === 0) this.frame("long b");
      if (round === 7) this.put("long b", journalRecord("begin_again", "long b", 0));
      this.journal.flush();
      if (round % 10 !== 9) this.forget(short);
    }
  }
  expectIn(image: Image, what: string): void {
    const { tasks, damage } = new FileJournal(new MemoryFiles(image), 1024).recover();
    if (damage.length > 0) throw new Error(`${what}: ${JSON.stringify(damage)}`);
    for (const [taskId, records] of this.flushed) {
      const found = tasks.get(taskId);
      if (found?.damaged !== false || JSON.stringify(plain(found.records)) !== JSON.stringify(plain(records)))
        throw new Error(`${what}: ${taskId} is not what was flushed`);
    }
  }
}

const compactAll = async (journal: FileJournal): Promise<number> => {
  let steps = 1;
  while (await journal.compact()) steps++;
  return steps;
};

describe("compaction", () => {
  test("room comes back: what is left is about what live tasks have, and nothing when none lives", async () => {
    const world = new World();
    world.fill(60);
    const before = world.journal.sizeBytes();
    await compactAll(world.journal);
    const live = [...world.flushed.values()].flat().reduce((sum, { bytes }) => sum + bytes.byteLength, 0);
    expect(world.journal.sizeBytes()).toBeLessThan(live * 2 + 3 * 1024);
    expect(world.journal.sizeBytes()).toBeLessThan(before / 2);
    const onDisk = [...world.files.image.values()].reduce((sum, { byteLength }) => sum + byteLength, 0);
    expect(world.journal.sizeBytes()).toBe(onDisk);
    world.expectIn(world.files.image, "after it");
    for (const taskId of [...world.flushed.keys()]) world.forget(taskId);
    await compactAll(world.journal);
    // The open segment stays.
    expect(world.files.list()).toHaveLength(1);
    await world.journal.close();
    expect(world.files.openHandles).toBe(0);
  });

  test("a process that ends at any step leaves everything that was flushed", async () => {
    const world = new World();
    const images: { image: Image; what: string }[] = [];
    world.fill(40);
    world.files.onChange = (what) => images.push({ image: world.files.image, what });
    await compactAll(world.journal);
    for (const { image, what } of images) world.expectIn(image, what);
    expect(new Set(images.map(({ what }) => what.split(" ")[0]))).toEqual(
      new Set(["remove", "create", "half", "write", "truncate", "sync", "rename"]),
    );
    await world.journal.close();
  });

  test("at boot what a step left behind goes, and compaction goes on from there", async () => {
    const world = new World();
    world.fill(40);
    const images: Image[] = [];
    world.files.onChange = () => images.push(world.files.image);
    await compactAll(world.journal);
    for (const image of images) {
      const files = new MemoryFiles(image);
      const journal = new FileJournal(files, 1024);
      for (const taskId of journal.recover().tasks.keys())
        if (!world.flushed.has(taskId)) journal.forget(taskId);
      await compactAll(journal);
      world.expectIn(files.image, "compacted after a restart");
      const onDisk = [...files.image.values()].reduce((sum, { byteLength }) => sum + byteLength, 0);
      expect(journal.sizeBytes()).toBe(onDisk);
      expect(files.list().filter((name) => name.endsWith(".tmp"))).toEqual([]);
    }
  });

  test("frames, ends and new beginnings while it runs", async () => {
    const world = new World();
    world.fill(40);
    for (let round = 0; round < 30; round++) {
      const step = world.journal.compact();
      world.frame("long a");
      if (round % 7 === 3) world.put("long b", journalRecord("begin_again", "long b", 0));
      if (round % 5 === 2) world.forget(`short ${round - 3 + 10}`);
      world.journal.flush();
      await step;
      world.expectIn(world.files.image, `round ${round}`);
    }
    await world.journal.close();
  });

  test("what begins again keeps its past until the beginning is flushed", async () => {
    const world = new World();
    world.fill(40);
    for (const taskId of ["long a", "long b"])
      world.journal.append(taskId, journalRecord("begin_again", taskId, 0));
    await compactAll(world.journal);
    world.expectIn(world.files.image, "not flushed");
    world.journal.flush();
    for (const taskId of ["long a", "long b"])
      world.flushed.set(taskId, [journalRecord("begin_again", taskId, 0)]);
    await compactAll(world.journal);
    world.expectIn(world.files.image, "flushed");
    await world.journal.close();
  });

  test("a refused write rejects the step, and all is where it was", async () => {
    const world = new World();
    world.fill(40);
    await world.journal.compact();
    world.files.failNextWrite("full", 10);
    const failure = await compactAll(world.journal).catch((error: unknown) => error);
    expect(isJournalError(failure) && failure.journalErrorKind).toBe("full");
    world.expectIn(world.files.image, "refused");
    await compactAll(world.journal);
    world.expectIn(world.files.image, "later");
    await world.journal.close();
  });
});

describe("a disk that refuses a flush", () => {
  test("after any number of bytes: what was collected is kept, and written by the next one", async () => {
    for (let bytes = 0; bytes < 400; bytes += 7) {
      const world = new World();
      for (let frame = 0; frame < 5; frame++) world.frame("a");
      world.journal.flush();
      const before = world.files.image;
      world.journal.append("a", journalToken("a", 5));
      world.journal.append("b", journalToken("b", 0));
      world.journal.append("c", journalToken("c", 0));
      world.files.failNextWrite("full", bytes);
      expect(() => world.journal.flush()).toThrow("asked for");
      world.journal.forget("c");
      // Killed now: at least all that was flushed is there, nothing of it is damaged.
      expect(new FileJournal(new MemoryFiles(world.files.image)).recover().damage).toEqual([]);
      expect(new FileJournal(new MemoryFiles(before)).recover().tasks.get("a")?.records).toHaveLength(5);
      world.journal.append("b", journalToken("b", 1));
      world.journal.flush();
      world.flushed.set(
        "a",
        [0, 1, 2, 3, 4, 5].map((seq) => journalToken("a", seq)),
      );
      world.flushed.set("b", [journalToken("b", 0), journalToken("b", 1)]);
      world.expectIn(world.files.image, `refused after ${bytes} bytes`);
      world.files.failNextWrite("io", 3);
      world.journal.append("b", journalToken("b", 2));
      expect(() => world.journal.flush()).toThrow("asked for");
      await world.journal.close();
      world.expectIn(world.files.image, "closed without another try");
    }
  });

  test("where segments change: the next flush makes another one", () => {
    const world = new World();
    for (let frame = 0; frame < 30; frame++) world.frame("a");
    world.journal.flush();
    for (const bytes of [0, 5]) {
      world.journal.append("a", journalToken("a", 30));
      world.files.failNextWrite("full", bytes);
      expect(() => world.journal.flush()).toThrow("asked for");
      world.expectIn(world.files.image, "the first one could not be closed");
      world.journal.flush();
      world.flushed.set(
        "a",
        Array.from({ length: 31 }, (_, seq) => journalToken("a", seq)),
      );
      world.expectIn(world.files.image, "later");
      break;
    }
    // The seal succeeds, the header of the new one does not.
    for (let frame = 0; frame < 30; frame++) world.frame("a");
    world.journal.flush();
    world.frame("a");
    world.files.onChange = (what) => {
      if (what.startsWith("create")) world.files.failNextWrite("full", 9);
    };
    expect(() => world.journal.flush()).toThrow("asked for");
    world.files.onChange = () => undefined;
    world.journal.flush();
    world.expectIn(world.files.image, "after a header that was refused");
  });
});
