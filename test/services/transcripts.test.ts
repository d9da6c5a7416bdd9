/**
 * Transcripts from the end of a task to the artifact store, over the rig's virtual clock: what is left by which end, how
 * the moving fares when the artifact store refuses, and the streams that are made again from them.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { parseDocument } from "../../src/domain/artifact.ts";
import { isOrchestratorError, OrchestratorError } from "../../src/domain/errors.ts";
import { limits } from "../../src/domain/limits.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { readTranscript } from "../../src/domain/transcript-reading.ts";
import { type NewTranscript, StoreError } from "../../src/ports/task-store.ts";
import { EndedStreams } from "../../src/services/ended-streams.ts";
import type { TaskRecord } from "../../src/services/task-registry.ts";
import { type TranscriptRulesOfUse, Transcripts } from "../../src/services/transcripts.ts";
import { waitingArtifacts } from "../../src/services/waiting-artifacts.ts";
import { MemoryTaskStore } from "../support/memory-store.ts";
import { newTranscript, storedEnd, storedTask, uuidOf } from "../support/stored-tasks.ts";
import { VirtualClock } from "../support/virtual-clock.ts";
import { mockPool, RecordingLog, Rig, type RigOptions } from "./rig.ts";

/** An artifact store that takes everything, until it is told otherwise. */
class Shelf {
  readonly kept: NewTranscript[] = [];
  refusal: OrchestratorError | null = null;
  asked = 0;
  readonly keep = async (transcript: NewTranscript): Promise<void> => {
    this.asked++;
    if (this.refusal !== null) throw this.refusal;
    this.kept.push(transcript);
  };
}

let rig: Rig | null = null;
let moving: Transcripts | null = null;
afterEach(async () => {
  const stopped = moving?.stop();
  if (rig !== null) await rig.clock.advance(0);
  await stopped;
  await rig?.stop();
  rig = null;
  moving = null;
});

const full: TranscriptRulesOfUse = { policy: "full", bytesMax: 1e6 };

async function start(options: RigOptions = {}): Promise<Rig> {
  rig = new Rig({ transcripts: full, ...options });
  moving = rig.transcripts;
  return await rig.start();
}

async function submit(of: Rig, more: Partial<TaskSpec> = {}): Promise<{ record: TaskRecord }> {
  const submitted = of.submit(of.spec(more));
  await of.clock.advance(0);
  return await submitted;
}

const contentOf = (text: string | null | undefined) => {
  const content = parseDocument(text ?? "")?.content;
  const read = readTranscript(content);
  if (read === null) throw new Error("it is a transcript");
  return { ...read, content: content as Record<string, unknown> };
};
const left = (of: Rig, record: TaskRecord) => {
  const { artifactId } = record;
  if (artifactId === null) throw new Error("it left one");
  return contentOf(of.store.findTranscript(artifactId, record.spec.keyId)?.text);
};
const textOf = (record: TaskRecord, after = -1): string => {
  const cursor = record.log.open(after);
  let text = "";
  for (let bytes = cursor.take(); bytes !== null; bytes = cursor.take())
    text += new TextDecoder().decode(bytes);
  cursor.close();
  return text;
};
const storage = (): OrchestratorError => new OrchestratorError("STORAGE_UNAVAILABLE", "the disk refuses");

describe("what is left", () => {
  test("the end names it, the store has it in the same transaction, and its id is its digest", async () => {
    const of = await start();
    const { record } = await submit(of, { maxTokens: 6 });
    await of.clock.advance(1000);
    expect(record.state).toBe("done");
    const found = of.store.findTranscript(record.artifactId ?? "", "alice");
    expect(new Bun.CryptoHasher("sha256").update(found?.text ?? "").digest("hex")).toBe(
      record.artifactId ?? "",
    );
    expect(of.store.find(record.spec.taskId)?.ended?.artifactId).toBe(record.artifactId);
    expect(textOf(record)).toContain(`"artifact_id":"${record.artifactId}"`);
    const { content, pieces } = left(of, record);
    expect(pieces).toHaveLength(6);
    expect(content.attempts).toMatchObject([{ attempt: 1, engine: "mock", replica_id: "chat-0", slot: 0 }]);
    expect(content.request).toMatchObject({ prompt: "Tell me of the river", max_tokens: 6 });
  });

  test("by one that went on after its engine died: both attempts, and the text is whole", async () => {
    const fault = { kind: "crash", nth: 1, afterTokens: 3, delayMs: 0 } as const;
    const mock = { tokenMs: 10, prefillMsPerToken: 0, loadMs: 0, faults: [fault] };
    const of = await start({ pools: [mockPool({ mock })] });
    const { record } = await submit(of, { maxTokens: 6 });
    await of.clock.advance(5000);
    expect(record.state).toBe("done");
    const { content, pieces } = left(of, record);
    expect(content).toMatchObject({ continuations: 1, attempts: [{ attempt: 1 }, { attempt: 2 }] });
    expect(textOf(record)).toContain(JSON.stringify(pieces?.at(-1)?.text));
    expect(pieces).toHaveLength(6);
  });

  test("by one that was canceled while its input was on disk only", async () => {
    const of = await start({ inputBytesMax: 0 });
    await submit(of, { maxTokens: 100 });
    const { record } = await submit(of);
    expect(record.inputBytes).toBeNull();
    await of.clock.advance(20);
    const canceled = of.dispatcher.cancel(record.spec.taskId, "client");
    await of.clock.advance(0);
    await canceled;
    expect(left(of, record).content).toMatchObject({
      request: { prompt: "Tell me of the river" },
      ending: { type: "error", data: { code: "CANCELED" } },
      attempts: [],
    });
  });

  test("not by one whose input cannot be read any more: it ends all the same", async () => {
    const of = await start({ inputBytesMax: 0 });
    await submit(of, { maxTokens: 100 });
    const { record } = await submit(of);
    await of.clock.advance(20);
    const find = of.store.find.bind(of.store);
    of.store.find = () => {
      throw new StoreError("io", "the disk is broken");
    };
    const canceled = of.dispatcher.cancel(record.spec.taskId, "client");
    await of.clock.advance(0);
    await canceled;
    of.store.find = find;
    expect(record.state).toBe("canceled");
    expect(record.artifactId).toBeNull();
    expect(of.log.of("transcript_without_input")).toHaveLength(1);
  });

  test("off: nothing; too large whatever is left out: nothing, and the log says it", async () => {
    for (const transcripts of [
      { ...full, policy: "off" as const },
      { ...full, bytesMax: 200 },
    ]) {
      const of = await start({ transcripts });
      const { record } = await submit(of);
      await of.clock.advance(1000);
      expect(record.artifactId).toBeNull();
      expect(of.store.transcriptTotals().count).toBe(0);
      expect(textOf(record)).toContain('"artifact_id":null');
      expect(of.log.of("transcript_too_large")).toHaveLength(transcripts.policy === "off" ? 0 : 1);
      await of.stop();
      rig = null;
    }
  });

  test("while the disk refuses the end waits with it, and both are stored together", async () => {
    const of = await start();
    const { record } = await submit(of, { maxTokens: 3 });
    of.store.failNextWrite("full");
    await of.clock.advance(1000);
    expect(record.state).toBe("done");
    expect(of.store.transcriptTotals().count).toBe(0);
    await of.clock.advance(limits.storageRetryMs);
    await submit(of);
    expect(left(of, record).pieces).toHaveLength(3);
  });
});

describe("moving", () => {
  test("what was left is moved and removed, also what the last process left", async () => {
    const shelf = new Shelf();
    const of = await start();
    const { record } = await submit(of);
    await of.clock.advance(1000);
    expect(of.transcripts?.pending).toBe(1);
    of.transcripts?.start(shelf.keep);
    expect(of.transcripts?.pending).toBe(1);
    await of.clock.advance(limits.transcriptMoveEveryMs);
    expect(shelf.kept.map(({ artifactId }) => artifactId)).toEqual([record.artifactId ?? ""]);
    expect(of.store.transcriptTotals().count).toBe(0);
    await submit(of);
    await of.clock.advance(1000);
    expect(shelf.kept).toHaveLength(2);
    expect(of.transcripts?.pending).toBe(0);
  });

  const clock = new VirtualClock();
  const log = new RecordingLog();
  function waiting(count: number, more: Partial<NewTranscript> = {}): MemoryTaskStore {
    const store = new MemoryTaskStore();
    for (let n = 1; n <= count; n++) {
      const transcript = newTranscript(n, more);
      store.write([
        { kind: "task_admitted", task: storedTask(n) },
        { kind: "task_ended", taskId: uuidOf(n), end: storedEnd(), transcript },
      ]);
    }
    return store;
  }

  test("many, a bounded number at once, in their order", async () => {
    const store = waiting(3 * limits.transcriptBatch + 5);
    const transcripts = new Transcripts({ store, clock, log, rules: full });
    const shelf = new Shelf();
    transcripts.start(shelf.keep);
    await clock.advance(limits.transcriptMoveEveryMs);
    expect(shelf.kept).toHaveLength(limits.transcriptBatch);
    expect(transcripts.pending).toBe(2 * limits.transcriptBatch + 5);
    await clock.advance(10 * limits.transcriptMoveEveryMs);
    expect(shelf.kept.map(({ artifactId }) => Number.parseInt(artifactId, 16))).toEqual(
      Array.from({ length: 3 * limits.transcriptBatch + 5 }, (_, at) => at + 1),
    );
    expect(transcripts.pending).toBe(0);
    expect(clock.pendingTimers).toBe(0);
    await transcripts.stop();
  });

  test("a store that refuses is asked ever more seldom; nothing is lost, and then it goes on", async () => {
    const store = waiting(2);
    const transcripts = new Transcripts({ store, clock, log, rules: full });
    const shelf = new Shelf();
    shelf.refusal = storage();
    transcripts.start(shelf.keep);
    await clock.advance(600_000);
    expect(shelf.asked).toBeLessThan(40);
    expect(shelf.asked).toBeGreaterThan(10);
    expect(transcripts.pending).toBe(2);
    expect(log.of("transcripts_wait")).toHaveLength(1);
    shelf.refusal = null;
    await clock.advance(limits.transcriptRetryMsMax);
    expect(shelf.kept).toHaveLength(2);
    expect(log.of("transcripts_move")).toHaveLength(1);
    await transcripts.stop();
  });

  test("it waits while tasks run, but not for ever and not where many wait", async () => {
    const shelf = new Shelf();
    let busy = true;
    const count = 2 * limits.transcriptBatch + 3;
    const transcripts = new Transcripts({ store: waiting(count), clock, log, rules: full, busy: () => busy });
    transcripts.start(shelf.keep);
    await clock.advance(limits.transcriptDeferMsMax - limits.transcriptDeferMs);
    expect(shelf.asked).toBe(0);
    await clock.advance(2 * limits.transcriptDeferMs);
    // Its time is over: all of them go, however many batches that takes.
    expect(shelf.kept).toHaveLength(count);
    await transcripts.stop();
    for (const much of [
      { count: limits.transcriptsHurry, chars: 1 },
      { count: 1, chars: limits.transcriptsHurryChars },
    ]) {
      const few = waiting(limits.transcriptBatch);
      const totals = few.transcriptTotals();
      few.transcriptTotals = () => ({ count: totals.count + much.count, chars: totals.chars + much.chars });
      const hurried = new Transcripts({ store: few, clock, log, rules: full, busy: () => busy });
      const kept = new Shelf();
      hurried.start(kept.keep);
      await clock.advance(limits.transcriptMoveEveryMs);
      expect(kept.kept).toHaveLength(limits.transcriptBatch);
      await hurried.stop();
    }
    busy = false;
  });

  test("one that will never be taken does not hold up the others", async () => {
    const store = waiting(3);
    const transcripts = new Transcripts({ store, clock, log, rules: full });
    const kept: string[] = [];
    transcripts.start(async ({ artifactId }) => {
      if (artifactId.endsWith("2")) throw new OrchestratorError("PAYLOAD_TOO_LARGE", "too large by now");
      kept.push(artifactId.at(-1) ?? "");
    });
    await clock.advance(limits.transcriptMoveEveryMs);
    expect(kept).toEqual(["1", "3"]);
    expect(transcripts.pending).toBe(0);
    expect(log.of("transcript_refused")).toHaveLength(1);
    await transcripts.stop();
  });

  test("a stop in the middle leaves the rest to the next process; again and again is once", async () => {
    const store = waiting(5);
    const gate = Promise.withResolvers<void>();
    const transcripts = new Transcripts({ store, clock, log, rules: full });
    transcripts.start(() => gate.promise);
    await clock.advance(limits.transcriptMoveEveryMs);
    const stopped = transcripts.stop();
    await clock.advance(limits.artifactStopMs);
    await stopped;
    // What is answered after that finds a store that may be closed.
    await store.close();
    gate.resolve();
    await clock.advance(0);
    const next = store.reopen("kill");
    const shelf = new Shelf();
    const again = new Transcripts({ store: next, clock, log, rules: full });
    again.start(shelf.keep);
    await clock.advance(limits.transcriptMoveEveryMs);
    expect(shelf.kept).toHaveLength(5);
    await again.stop();
    expect(clock.pendingTimers).toBe(0);
  });

  test("where too much waits tasks leave none, and do again later", async () => {
    const of = await start();
    const { store } = of;
    const totals = store.transcriptTotals.bind(store);
    store.transcriptTotals = () => ({ count: limits.transcriptsPendingMax, chars: 0 });
    const shelf = new Shelf();
    of.transcripts?.start(shelf.keep);
    const first = await submit(of);
    await of.clock.advance(1000);
    expect(first.record.artifactId).toBeNull();
    expect(of.log.of("transcripts_overfull")).toHaveLength(1);
    store.transcriptTotals = totals;
    await of.clock.advance(limits.transcriptMoveEveryMs);
    const second = await submit(of);
    await of.clock.advance(1000);
    expect(second.record.artifactId).not.toBeNull();
  });
});

describe("a stream made again", () => {
  const readerOf = (store: MemoryTaskStore) => {
    const find = waitingArtifacts(store);
    return async (caller: { keyId: string }, id: string) => {
      const found = find(id, caller.keyId);
      if (found === null) throw new OrchestratorError("NOT_FOUND", "no such artifact");
      return found;
    };
  };
  const codeOf = (work: Promise<unknown>): Promise<string> =>
    work.then(
      () => "none",
      (error: unknown) => (isOrchestratorError(error) ? `${error.code}: ${error.message}` : String(error)),
    );

  test("has the same bytes, is shared, and its place is the one that was left", async () => {
    const of = await start({
      pools: [
        mockPool({
          mock: { tokenMs: 600, prefillMsPerToken: 0, loadMs: 0, faults: [] },
          timeouts: { loadMs: 10_000, firstTokenMs: 5000, interTokenMs: 5000, stopGraceMs: 100 },
        }),
      ],
    });
    const { record } = await submit(of, { maxTokens: 7 });
    await of.clock.advance(20_000);
    const sent = textOf(record);
    expect(sent).toContain("event: metrics");
    const archived = { ...record, log: emptyLog(of) };
    const streams = new EndedStreams(readerOf(of.store));
    const again = await streams.withLog(archived);
    expect(textOf(again)).toBe(sent);
    expect((await streams.withLog(archived)).log).toBe(again.log);
    const rest = textOf(again, 3);
    expect(rest.startsWith("id: 4\n")).toBe(true);
    expect(sent.endsWith(rest)).toBe(true);
    // A log that is there is left alone.
    expect(await streams.withLog(record)).toBe(record);
  });

  test("is kept for who asks next as long as there is room, also where many ask at once", async () => {
    const of = await start();
    const { record } = await submit(of, { maxTokens: 4 });
    await of.clock.advance(1000);
    const archived = { ...record, log: emptyLog(of) };
    const read = readerOf(of.store);
    let reads = 0;
    // Whatever the name, the same document: many logs without many tasks.
    const streams = new EndedStreams((caller) => {
      reads++;
      return read(caller, record.artifactId ?? "");
    });
    const both = await Promise.all([streams.withLog(archived), streams.withLog(archived)]);
    expect(reads).toBe(2);
    expect(textOf(both[0])).toBe(textOf(both[1]));
    await streams.withLog(archived);
    expect(reads).toBe(2);
    // As many others as no longer fit beside it.
    const others = Math.ceil(limits.rebuiltLogBytesMax / both[0].log.bytes) + 1;
    for (let n = 0; n < others; n++)
      await streams.withLog({ ...archived, artifactId: String(n).padStart(64, "0") });
    await streams.withLog(archived);
    expect(reads).toBe(3 + others);
  });

  test("that was changed on the disk is not shown", async () => {
    const store = new MemoryTaskStore();
    store.findTranscript = () => ({ ...newTranscript(1), ordinal: 1, text: null });
    const find = waitingArtifacts(store);
    expect(await codeOf(Promise.resolve().then(() => find("x", null)))).toMatch(/^UNTRUSTED_ARTIFACT/);
  });

  test("is refused with the reason where there is none", async () => {
    const of = await start();
    const { record } = await submit(of);
    await of.clock.advance(1000);
    const archived = { ...record, log: emptyLog(of) };
    const streams = new EndedStreams(readerOf(of.store));
    expect(await codeOf(streams.withLog({ ...archived, artifactId: null }))).toMatch(
      /^NOT_FOUND: .*left no transcript/,
    );
    expect(await codeOf(streams.withLog({ ...archived, artifactId: "f".repeat(64) }))).toMatch(
      /^NOT_FOUND: .*no longer kept; GET/,
    );
    const other = new EndedStreams(async () => {
      const found = waitingArtifacts(of.store)(record.artifactId ?? "", null);
      if (found === null) throw new Error("it is there");
      return { ...found, document: { ...found.document, content: { trace_version: 99 } } };
    });
    expect(await codeOf(other.withLog(archived))).toMatch(/another version/);
  });
});

/** Of the same task, as the archive has it. */
function emptyLog(of: Rig): TaskRecord["log"] {
  const [task] = of.store.list({ keyId: null, state: null, sessionId: null, before: null, limit: 1 });
  of.registry.prune(Number.POSITIVE_INFINITY);
  const found = of.archive.find(task?.spec.taskId ?? "");
  if (found === null) throw new Error("the archive has it");
  return found.log;
}
