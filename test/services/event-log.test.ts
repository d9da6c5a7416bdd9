/** A task's log: frames once and in order for every cursor, whatever the chunk borders; seals; memory given back. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { StreamEvent } from "../../src/domain/events.ts";
import { decodeFrame } from "../../src/domain/sse.ts";
import { type Cursor, type LogAccount, TaskLog } from "../../src/services/event-log.ts";
import { eventsIn, type SeenEvent } from "./rig.ts";

const metrics = (tokens_out: number): Extract<StreamEvent, { type: "metrics" }> => ({
  type: "metrics",
  data: {
    queue_depth: 0,
    on_time_probability: null,
    kv_warmth: false,
    tokens_out,
    tokens_per_second: 1,
    tokens_budget_remaining: null,
    time_budget_remaining_ms: null,
    cost_budget_remaining: null,
  },
});
const canceled: Extract<StreamEvent, { type: "error" }> = {
  type: "error",
  data: {
    code: "CANCELED",
    message: "canceled on request",
    engine: "mock",
    retriable: false,
    retry_after_ms: null,
    artifact_id: null,
  },
};

function newLog(): { log: TaskLog; account: LogAccount } {
  const account = { bytes: 0 };
  return { log: new TaskLog(account, "a task"), account };
}

/** Everything that a cursor has now. */
function drain(cursor: Cursor): SeenEvent[] {
  const parts: Uint8Array[] = [];
  for (let bytes = cursor.take(); bytes !== null; bytes = cursor.take()) parts.push(bytes);
  return eventsIn(new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(parts)));
}

const idsOf = (events: readonly SeenEvent[]): number[] => events.map((e) => e.id);
const upTo = (n: number, from = 0): number[] => Array.from({ length: n - from }, (_, i) => from + i);

describe("a log", () => {
  test("numbers its frames from 0 and its tokens for themselves", () => {
    const { log } = newLog();
    log.appendToken("a");
    log.append(metrics(1));
    log.appendToken("b");
    log.seal(canceled, false);
    const seen = drain(log.open(-1));
    expect(seen.map((e) => [e.id, e.event])).toEqual([
      [0, "token"],
      [1, "metrics"],
      [2, "token"],
      [3, "error"],
    ]);
    expect([seen[0]?.data, seen[2]?.data]).toEqual([
      { t: "a", i: 0 },
      { t: "b", i: 1 },
    ]);
    expect([log.length, log.tokenCount, log.sealed]).toEqual([4, 2, true]);
  });

  test("takes nothing after its end", () => {
    const { log } = newLog();
    log.seal(canceled, false);
    expect(() => log.appendToken("x")).toThrow("after the terminal event");
    expect(() => log.append(metrics(0))).toThrow("after the terminal event");
    expect(() => log.seal(canceled, false)).toThrow("sealed once");
  });

  test("keeps frames whole where chunks end, byte by byte around every border", () => {
    // The first chunk has 1 KiB: one frame that ends just before, on and after each of its last bytes.
    for (let length = 930; length <= 1030; length++) {
      const { log } = newLog();
      const texts = ["é", "x".repeat(length), "東", "y"];
      for (const text of texts) log.appendToken(text);
      expect(drain(log.open(-1)).map((e) => e.data.t)).toEqual(texts);
    }
  });

  test("takes a frame larger than any chunk, and small ones after it", () => {
    const { log } = newLog();
    const giant = '🦊é\n"'.repeat(100_000);
    for (const text of ["a", giant, "b", "c"]) log.appendToken(text);
    expect(drain(log.open(-1)).map((e) => e.data.t)).toEqual(["a", giant, "b", "c"]);
    expect(idsOf(drain(log.open(0)))).toEqual([1, 2, 3]);
    expect(idsOf(drain(log.open(1)))).toEqual([2, 3]);
  });

  test("does not change what a viewer was handed when it grows", () => {
    const { log } = newLog();
    log.appendToken("first");
    const cursor = log.open(-1);
    const view = cursor.take();
    const copy = Buffer.from(view ?? []).toString();
    for (let n = 0; n < 500; n++) log.appendToken(`later ${n}`);
    expect(Buffer.from(view ?? []).toString()).toBe(copy);
    expect(idsOf(drain(cursor))[0]).toBe(1);
  });

  test("resumes after every frame", () => {
    const { log } = newLog();
    for (let n = 0; n < 300; n++) log.appendToken("token ".repeat(n % 40));
    log.seal(canceled, false);
    for (let after = -1; after <= 300; after++)
      expect(idsOf(drain(log.open(after)))).toEqual(upTo(301, after + 1));
    for (const beyond of [301, 1e9]) {
      const cursor = log.open(beyond);
      expect([cursor.take(), cursor.done]).toEqual([null, true]);
    }
    expect(idsOf(drain(log.open(-7)))).toEqual(upTo(301));
  });
});

describe("a cursor", () => {
  test("sleeps until something comes and wakes once for all of it", async () => {
    const { log } = newLog();
    const cursor = log.open(-1);
    let wakes = 0;
    const woken = new Promise<void>((resolve) => {
      cursor.next(() => {
        wakes++;
        resolve();
      });
    });
    expect(cursor.idle).toBe(true);
    log.appendToken("a");
    log.appendToken("b");
    await woken;
    expect([wakes, cursor.idle]).toEqual([1, false]);
    expect(drain(cursor).length).toBe(2);
  });

  test("has one reader", () => {
    const cursor = newLog().log.open(-1);
    const never = (): void => undefined;
    cursor.next(never);
    expect(() => cursor.next(never)).toThrow("one reader");
  });

  test("that lives jumps to the end of a canceled log, a later one replays it", () => {
    const { log } = newLog();
    const behind = log.open(-1);
    const current = log.open(-1);
    for (let n = 0; n < 100; n++) log.appendToken("t");
    drain(current);
    log.seal(canceled, true);
    expect(drain(behind).map((e) => [e.id, e.event])).toEqual([[100, "error"]]);
    expect(drain(current).map((e) => e.id)).toEqual([100]);
    expect(idsOf(drain(log.open(-1)))).toEqual(upTo(101));
  });

  test("that is ahead of a restored log waits for its place, or for the end where that comes first", () => {
    const { log } = newLog();
    log.restore([
      { kind: "token", bytes: new TextEncoder().encode('id: 0\nevent: token\ndata: {"t":"a","i":0}\n\n') },
    ]);
    const [behind, ahead, beyond] = [log.open(-1), log.open(1), log.open(1e9)];
    log.appendToken("b");
    expect([ahead.take(), beyond.take()]).toEqual([null, null]);
    log.appendToken("c");
    expect(drain(behind).map(({ id, data }) => [id, data.t, data.i])).toEqual([
      [0, "a", 0],
      [1, "b", 1],
      [2, "c", 2],
    ]);
    expect(idsOf(drain(ahead))).toEqual([2]);
    log.seal(canceled, false);
    expect([idsOf(drain(ahead)), idsOf(drain(beyond))]).toEqual([[3], [3]]);
  });

  test("that closes wakes its reader and is forgotten", async () => {
    const { log } = newLog();
    const cursor = log.open(-1);
    const woken = new Promise<void>((resolve) => cursor.next(resolve));
    cursor.close();
    await woken;
    expect(log.viewers).toBe(0);
  });
});

test("what is no token is known as it was appended, and read from the frames where it came from before", () => {
  const { log } = newLog();
  expect(log.otherEvents).toEqual([]);
  log.append(metrics(0));
  log.appendToken("a");
  log.append(metrics(1));
  const frames = Array.from({ length: log.length }, (_, seq) => log.frameAt(seq).slice());
  const read = frames.flatMap((frame, seq) => {
    const event = decodeFrame(new TextDecoder().decode(frame));
    return event?.type === "metrics" ? [{ seq, ...event }] : [];
  });
  expect(read).toHaveLength(2);
  expect([...(log.otherEvents ?? [])]).toEqual(read);
  const { log: next } = newLog();
  next.restore([{ kind: "metrics", bytes: frames[0] ?? new Uint8Array() }]);
  next.append(metrics(2));
  expect(next.otherEvents).toBeNull();
});

test("memory is counted while it is held and given back whole", () => {
  const account = { bytes: 0 };
  const logs = Array.from({ length: 5 }, () => new TaskLog(account, "a task"));
  for (const [at, log] of logs.entries())
    for (let n = 0; n < 400 * at; n++) log.appendToken("some words of a token");
  expect(account.bytes).toBe(logs.reduce((sum, log) => sum + log.bytes, 0));
  const viewer = logs[2]?.open(-1);
  expect(() => logs[2]?.release()).toThrow("no viewer");
  viewer?.close();
  for (const log of logs) log.release();
  expect(account.bytes).toBe(0);
});

describe("a cursor that fell behind", () => {
  /** `t`: a token, `m`: metrics; the number of frames. */
  function filled(log: TaskLog, kinds: string): number {
    for (const kind of kinds)
      kind === "t" ? log.appendToken("some words") : log.append(metrics(log.tokenCount));
    return log.length;
  }
  /** What it takes, as kinds with their numbers. */
  const taken = (cursor: Cursor): string =>
    drain(cursor)
      .map(({ id, event }) => `${event[0]}${id}`)
      .join(" ");

  test("is shown the newest metrics only, and every token", () => {
    const { log } = newLog();
    const [behind, keepsUp] = [log.open(-1), log.open(-1)];
    filled(log, "tmttmmtmt");
    behind.fellBehind();
    expect(taken(behind)).toBe("t0 t2 t3 t6 m7 t8");
    expect(taken(keepsUp)).toBe("t0 m1 t2 t3 m4 m5 t6 m7 t8");
    // It has caught up: the next ones are new.
    filled(log, "mtm");
    expect(taken(behind)).toBe("m9 t10 m11");
  });

  test("again is shown the newest of what has come since", () => {
    const { log } = newLog();
    const behind = log.open(-1);
    filled(log, "tmtmt");
    behind.fellBehind();
    behind.take();
    filled(log, "mtmm");
    behind.fellBehind();
    expect(taken(behind)).toBe("t2 t4 t6 m8");
  });

  test("is shown all that was there when it came", () => {
    const { log } = newLog();
    filled(log, "tmtm");
    const behind = log.open(0);
    filled(log, "tmtm");
    behind.fellBehind();
    expect(taken(behind)).toBe("m1 t2 m3 t4 t6 m7");
    const late = log.open(-1);
    late.fellBehind();
    expect(taken(late)).toBe("t0 m1 t2 m3 t4 m5 t6 m7");
  });

  test("wherever it stands misses metrics only, whatever the chunks", () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.oneof({ weight: 4, arbitrary: fc.nat(3000) }, { weight: 1, arbitrary: fc.constant(-1) }),
          {
            maxLength: 200,
          },
        ),
        fc.array(fc.nat(20), { maxLength: 60 }),
        (frames, reads) => {
          const { log, account } = newLog();
          const cursor = log.open(-1);
          const seen: SeenEvent[] = [];
          const metricsIds: number[] = [];
          const behindAt = new Set<number>();
          for (const [at, length] of frames.entries()) {
            if (length < 0) metricsIds.push(log.length);
            if (length < 0) log.append(metrics(log.tokenCount));
            else log.appendToken("ß".repeat(length));
            if (reads[at] === undefined || reads[at] > 4) continue;
            if (reads[at] === 0) {
              cursor.fellBehind();
              for (const id of metricsIds.slice(0, -1)) behindAt.add(id);
            }
            const bytes = cursor.take();
            if (bytes !== null) seen.push(...eventsIn(new TextDecoder().decode(bytes)));
          }
          log.seal(canceled, false);
          seen.push(...drain(cursor));
          const ids = idsOf(seen);
          expect(ids).toEqual([...ids].sort((a, b) => a - b));
          const missing = upTo(log.length).filter((id) => !ids.includes(id));
          expect(missing.filter((id) => !behindAt.has(id))).toEqual([]);
          cursor.close();
          expect(account.bytes).toBe(log.bytes);
          log.release();
          expect(account.bytes).toBe(0);
        },
      ),
      { numRuns: 60 },
    );
  });
});

type Step =
  | { readonly kind: "append"; readonly text: string }
  | { readonly kind: "open" | "read"; readonly at: number };
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({ kind: fc.constant("append" as const), text: fc.string({ unit: "binary" }) }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant("append" as const),
      text: fc.integer({ min: 200, max: 30_000 }).map((length) => "ß".repeat(length)),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constantFrom("open" as const, "read" as const), at: fc.nat(50) }),
  },
);

test("any number of cursors, each at its own pace, sees every frame once and in order (ORCHD-ARCH-11)", () => {
  fc.assert(
    fc.property(
      fc.array(step, { minLength: 10, maxLength: 80, size: "max" }),
      fc.boolean(),
      (steps, skip) => {
        const { log, account } = newLog();
        const cursors: { cursor: Cursor; from: number; seen: number[] }[] = [];
        for (const one of steps) {
          if (one.kind === "append") log.appendToken(one.text);
          else if (one.kind === "open") {
            const after = (one.at % (log.length + 1)) - 1;
            cursors.push({ cursor: log.open(after), from: after + 1, seen: [] });
          } else {
            // One take only: this viewer is slow.
            const viewer = cursors[one.at % Math.max(1, cursors.length)];
            const bytes = viewer?.cursor.take() ?? null;
            if (bytes !== null) viewer?.seen.push(...idsOf(eventsIn(new TextDecoder().decode(bytes))));
          }
        }
        log.seal(canceled, skip);
        for (const { cursor, from, seen } of cursors) {
          const rest = idsOf(drain(cursor));
          if (skip) expect([...seen, ...rest]).toEqual([...upTo(from + seen.length, from), log.length - 1]);
          else expect([...seen, ...rest]).toEqual(upTo(log.length, from));
          expect(cursor.done).toBe(true);
          cursor.close();
        }
        log.release();
        expect(account.bytes).toBe(0);
      },
    ),
    { numRuns: 60 },
  );
});
