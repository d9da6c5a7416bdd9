/** The records of tasks: one for an id, bounded when they have ended, listed newest first page by page. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { limits } from "../../src/domain/limits.ts";
import type { Prediction } from "../../src/domain/predictor.ts";
import type { TaskSpec, TaskState } from "../../src/domain/task.ts";
import { type ListQuery, type TaskRecord, TaskRegistry } from "../../src/services/task-registry.ts";
import { endEvent, errorEvent } from "../../src/services/terminal-events.ts";
import { Rig } from "./rig.ts";

const promise: Prediction = {
  queuePosition: 0,
  startMs: 0,
  startLowMs: 0,
  startHighMs: 0,
  endMs: 0,
  onTimeProbability: null,
  basis: "assumed",
};
const specs = new Rig();

function add(registry: TaskRegistry, more: Partial<TaskSpec> = {}): TaskRecord {
  return registry.add(specs.spec(more), promise, 1, 0);
}

function end(registry: TaskRegistry, record: TaskRecord, nowMs: number): void {
  record.state = "failed";
  record.finishedMs = nowMs;
  record.log.seal(errorEvent({ code: "INTERNAL", message: "x" }, "mock", null), false);
  registry.noteEnded(record, nowMs);
}

const query = (more: Partial<ListQuery> = {}): ListQuery => ({
  keyId: null,
  state: null,
  sessionId: null,
  before: null,
  limit: 50,
  ...more,
});

describe("the registry", () => {
  test("has one record for an id", () => {
    const registry = new TaskRegistry(1000);
    const record = add(registry);
    expect(registry.find(record.spec.taskId)).toBe(record);
    expect(() => registry.add(record.spec, promise, 1, 0)).toThrow("one record");
    expect(registry.find("nobody")).toBeNull();
    expect(() => registry.get("nobody")).toThrow("has a record");
    expect([registry.size, registry.liveCount]).toEqual([1, 1]);
  });

  test("refuses to note the end of a task that has none", () => {
    const registry = new TaskRegistry(1000);
    expect(() => registry.noteEnded(add(registry), 0)).toThrow("sealed");
  });

  test("forgets ended tasks after the retention, never live ones", () => {
    const registry = new TaskRegistry(1000);
    const live = add(registry);
    const first = add(registry);
    const second = add(registry);
    end(registry, first, 0);
    end(registry, second, 600);
    registry.prune(1000);
    expect(registry.size).toBe(3);
    registry.prune(1001);
    expect(registry.find(first.spec.taskId)).toBeNull();
    registry.prune(1e9);
    expect([...registry.all()]).toEqual([live]);
    live.log.release();
    expect(registry.account.bytes).toBe(0);
  });

  test("keeps the log that someone reads, and forgets it when he left", () => {
    const registry = new TaskRegistry(1000);
    const read = add(registry);
    const other = add(registry);
    end(registry, read, 0);
    end(registry, other, 1);
    const viewer = read.log.open(-1);
    registry.prune(1e6);
    expect([...registry.all()]).toEqual([read]);
    expect(viewer.take()).not.toBeNull();
    viewer.close();
    registry.prune(1e6);
    expect([registry.size, registry.account.bytes]).toEqual([0, 0]);
  });

  test("keeps at most so many ended tasks, the oldest ended go first", () => {
    const registry = new TaskRegistry(1e9);
    const records = Array.from({ length: limits.finishedTasksMax + 3 }, () => add(registry));
    for (const record of records) end(registry, record, 0);
    expect(registry.size).toBe(limits.finishedTasksMax);
    expect(records.slice(0, 4).map((r) => registry.find(r.spec.taskId) !== null)).toEqual([
      false,
      false,
      false,
      true,
    ]);
  });

  test("keeps at most so many bytes of logs, giving up the oldest ended ones", () => {
    const registry = new TaskRegistry(1e9);
    const megabyte = "x".repeat(1024 * 1024);
    const count = Math.ceil(limits.finishedLogBytesMax / megabyte.length) + 4;
    for (let n = 0; n < count; n++) {
      const record = add(registry);
      record.log.appendToken(megabyte);
      end(registry, record, n);
      expect(registry.account.bytes).toBeLessThanOrEqual(limits.finishedLogBytesMax);
    }
    expect(registry.size).toBeGreaterThan(count - 12);
    registry.prune(1e12);
    expect(registry.account.bytes).toBe(0);
  });
});

describe("a list", () => {
  const registry = new TaskRegistry(1000);
  const states: TaskState[] = ["queued", "running"];
  const records = Array.from({ length: 60 }, (_, n) => {
    const record = add(registry, {
      keyId: n % 2 === 0 ? "alice" : "bob",
      sessionId: n % 5 === 0 ? "s" : null,
    });
    record.state = states[n % 2] ?? "queued";
    return record;
  });

  test("is newest first", () => {
    const ordinals = registry.listLive(query({ limit: 500 })).map((r) => r.ordinal);
    expect(ordinals).toEqual(records.map((r) => r.ordinal).reverse());
  });

  test("shows what was asked for, in pages without gap or repetition", () => {
    const wanted = fc.record({
      keyId: fc.constantFrom(null, "alice", "bob", "carol"),
      state: fc.constantFrom<TaskState | null>(null, "queued", "running", "done", "failed"),
      sessionId: fc.constantFrom(null, "s", "other"),
      limit: fc.integer({ min: 1, max: 20 }),
    });
    fc.assert(
      fc.property(wanted, (asked) => {
        const pages: TaskRecord[] = [];
        let before: number | null = null;
        for (;;) {
          const page: TaskRecord[] = registry.listLive({ ...asked, before });
          expect(page.length).toBeLessThanOrEqual(asked.limit);
          pages.push(...page);
          const last = page.at(-1);
          if (last === undefined) break;
          before = last.ordinal;
        }
        const expected = records.filter(
          (r) =>
            (asked.keyId === null || r.spec.keyId === asked.keyId) &&
            (asked.state === null || r.state === asked.state) &&
            (asked.sessionId === null || r.spec.sessionId === asked.sessionId),
        );
        expect(pages).toEqual(expected.reverse());
      }),
    );
  });
});

test("an ended task keeps no input: prompts may be megabytes, and thousands of ended tasks are remembered", () => {
  const registry = new TaskRegistry(3_600_000);
  const held = (): number => {
    Bun.gc(true);
    const { heapUsed, external } = process.memoryUsage();
    return heapUsed + external;
  };
  const before = held();
  for (let n = 0; n < 64; n++) {
    // Filled, not repeated: a repeated string is kept as a few bytes.
    const prompt = Buffer.alloc(500_000, `${n} long words `).toString();
    end(registry, add(registry, { input: { kind: "prompt", prompt }, renderedPrompt: `<${prompt}>` }), n);
  }
  expect(registry.size).toBe(64);
  // 64 MB of text went through.
  expect(held() - before).toBeLessThan(8 * 1024 * 1024);
});

test("an ended task's labels count for the bound on memory", () => {
  const registry = new TaskRegistry(3_600_000);
  const metadata = { note: "x".repeat(limits.metadataValueCharsMax) };
  const count = Math.ceil(limits.finishedLogBytesMax / (2 * limits.metadataValueCharsMax));
  for (let n = 0; n < Math.min(count, limits.finishedTasksMax - 1); n++)
    end(registry, add(registry, { metadata }), n);
  expect(registry.size).toBeLessThan(count);
});

test("the one that ended last stays, whatever its size: nobody has read it yet", () => {
  const registry = new TaskRegistry(3_600_000);
  const small = add(registry);
  end(registry, small, 1);
  const big = add(registry);
  const embeddings = [Array.from({ length: limits.finishedLogBytesMax / 8 }, () => 0.123456)];
  big.state = "done";
  big.finishedMs = 2;
  const work = { tokensIn: 1, tokensCached: 0, tokensOut: 0, promptMs: 1, decodeMs: 0 };
  big.log.seal(endEvent(big, { finishReason: "stop", ...work, work, result: { embeddings } }, 2), false);
  registry.noteEnded(big, 2);
  expect([registry.find(small.spec.taskId), registry.find(big.spec.taskId)]).toEqual([null, big]);
});
