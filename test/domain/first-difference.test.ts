/** Where two texts begin to differ, and how a replay is judged. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { firstDifference, utf8Length } from "../../src/domain/first-difference.ts";
import { compareRuns, type SeenRun } from "../../src/domain/replay-comparison.ts";
import type { ReadTranscript } from "../../src/domain/transcript-reading.ts";

describe("the first difference", () => {
  test("of equal texts is none", () => {
    expect(firstDifference("", "")).toBeNull();
    expect(firstDifference("naïve 🦙", "naïve 🦙")).toBeNull();
  });

  test("is told in bytes and characters, and no character is cut", () => {
    // Both llamas begin with the same half of a pair.
    expect(firstDifference("ï🦙x", "ï🦚x")).toEqual({
      byteOffset: 2,
      charOffset: 1,
      expected: "ï🦙x",
      actual: "ï🦚x",
    });
    expect(firstDifference("ab", "abc")).toEqual({
      byteOffset: 2,
      charOffset: 2,
      expected: "ab",
      actual: "abc",
    });
    const long = "x".repeat(200);
    const found = firstDifference(`${long}a${long}`, `${long}b${long}`);
    expect(found).toEqual({
      byteOffset: 200,
      charOffset: 200,
      expected: `${"x".repeat(40)}a${"x".repeat(39)}`,
      actual: `${"x".repeat(40)}b${"x".repeat(39)}`,
    });
  });

  test("of any two texts: all before it is the same, the bytes at it are not", () => {
    const text = fc.string({ unit: "grapheme", maxLength: 12 });
    fc.assert(
      fc.property(text, text, text, (same, one, other) => {
        const [a, b] = [Buffer.from(same + one), Buffer.from(same + other)];
        const found = firstDifference(same + one, same + other);
        if (found === null) expect(a.equals(b)).toBe(true);
        else {
          const { byteOffset } = found;
          expect(a.subarray(0, byteOffset).equals(b.subarray(0, byteOffset))).toBe(true);
          expect(a.subarray(byteOffset, byteOffset + 4).equals(b.subarray(byteOffset, byteOffset + 4))).toBe(
            false,
          );
          expect(byteOffset).toBeGreaterThanOrEqual(0);
        }
      }),
    );
  });

  test("lengths are those of UTF-8", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        expect(utf8Length(text)).toBe(Buffer.byteLength(text));
      }),
    );
  });
});

describe("a replay", () => {
  const then = (more: Partial<ReadTranscript> = {}): ReadTranscript => ({
    policy: "full",
    omitted: [],
    task: {},
    request: {},
    engine: null,
    pieces: [
      { text: "ab", ids: [] },
      { text: "c", ids: [] },
    ],
    events: [{ seq: 0, type: "started", data: { engine: "mock", engine_version: "1", seed: 7 } }],
    ending: { type: "end", data: { finish_reason: "stop", tokens_out: 2 }, resultOmitted: false },
    ...more,
  });
  const now = (more: Partial<SeenRun> = {}): SeenRun => ({
    text: "abc",
    tokens: 2,
    started: { engine: "mock", engine_version: "1", seed: 7 },
    end: { finish_reason: "stop", tokens_out: 2 },
    ...more,
  });

  test("that says the same is equal, whatever else differs, and that is told", () => {
    expect(compareRuns(then(), now())).toMatchObject({ equal: true, of: "text", bytes: 3, otherwise: [] });
    const other = now({ started: { engine_version: "2" }, end: { finish_reason: "length" } });
    expect(compareRuns(then(), other)).toMatchObject({
      equal: true,
      otherwise: [
        { name: "engine_version", recorded: "1", replayed: "2" },
        { name: "finish_reason", recorded: "stop", replayed: "length" },
      ],
    });
  });

  test("that goes on where the other ended is different", () => {
    expect(compareRuns(then(), now({ text: "abcd" }))).toMatchObject({
      equal: false,
      difference: { byteOffset: 3 },
    });
  });

  test("of a task that was cut short is judged by the beginning", () => {
    const cut = then({ ending: { type: "error", data: { code: "CANCELED" }, resultOmitted: false } });
    expect(compareRuns(cut, now({ text: "abcd", end: null }))).toMatchObject({ equal: true, otherwise: [] });
    expect(compareRuns(cut, now({ text: "ab" }))).toMatchObject({ equal: false });
  });

  test("of what has no text is judged by its result", () => {
    const data = { result: { embeddings: [[1, 0.5]] } };
    const embedded = then({ pieces: [], ending: { type: "end", data, resultOmitted: false } });
    expect(compareRuns(embedded, now({ text: "", end: data }))).toMatchObject({ equal: true, of: "result" });
    const other = now({ text: "", end: { result: { embeddings: [[1, 0.25]] } } });
    expect(compareRuns(embedded, other)).toMatchObject({
      equal: false,
      of: "result",
      difference: { byteOffset: 20 },
    });
  });

  test("cannot be judged where the answer was not kept", () => {
    expect(compareRuns(then({ pieces: null }), now())).toBeNull();
    expect(compareRuns(then({ ending: { type: "end", data: {}, resultOmitted: true } }), now())).toBeNull();
  });
});
