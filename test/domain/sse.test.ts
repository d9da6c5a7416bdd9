/** The bytes of events, read back by a parser written after the WHATWG HTML standard, section 9.2. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { encodeEvent, encodeToken, heartbeatFrame } from "../../src/domain/sse.ts";

interface Read {
  readonly id: string;
  readonly event: string;
  readonly data: string;
}

/** The standard's algorithm: lines end with CR LF, LF or CR; an event ends with an empty line. */
function readEvents(text: string): Read[] {
  const events: Read[] = [];
  let id = "";
  let event = "";
  let data: string[] = [];
  for (const line of text.split(/\r\n|\n|\r/)) {
    if (line === "") {
      if (data.length > 0) events.push({ id, event, data: data.join("\n") });
      event = "";
      data = [];
      continue;
    }
    if (line.startsWith(":")) continue;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "id") id = value;
    else if (field === "event") event = value;
    else if (field === "data") data.push(value);
  }
  return events;
}

const anyText = fc.oneof(
  fc.string({ unit: "binary" }),
  fc.string({
    unit: fc.constantFrom("\n", "\r", "\r\n", "\u2028", "\u2029", '"', "\\", "data: x", "\0", "é", "🦊"),
  }),
);

describe("a token frame", () => {
  test("is one event whatever its text holds", () => {
    fc.assert(
      fc.property(fc.nat(), anyText, fc.nat(), (seq, t, i) => {
        expect(readEvents(encodeToken(seq, t, i))).toEqual([
          { id: String(seq), event: "token", data: JSON.stringify({ t, i }) },
        ]);
        expect(encodeEvent(seq, { type: "token", t, i })).toBe(encodeToken(seq, t, i));
      }),
    );
  });

  test("survives UTF-8, also where the text holds half a surrogate pair", () => {
    const [read] = readEvents(
      new TextDecoder().decode(new TextEncoder().encode(encodeToken(0, "a\ud83d", 0))),
    );
    expect(JSON.parse(read?.data ?? "")).toEqual({ t: "a\ud83d", i: 0 });
  });
});

test("frames one after the other are read one after the other", () => {
  const frames = [
    encodeEvent(0, { type: "token", t: "a", i: 0 }),
    heartbeatFrame,
    encodeEvent(1, {
      type: "error",
      data: {
        code: "CANCELED",
        message: "line one\nline two",
        engine: "mock",
        retriable: false,
        retry_after_ms: null,
        artifact_id: null,
      },
    }),
  ];
  const read = readEvents(frames.join(""));
  expect(read.map(({ id, event }) => [id, event])).toEqual([
    ["0", "token"],
    ["1", "error"],
  ]);
  expect(JSON.parse(read[1]?.data ?? "").message).toBe("line one\nline two");
});

test("a heartbeat is no event and has no id", () => {
  expect(readEvents(heartbeatFrame)).toEqual([]);
  expect(heartbeatFrame).not.toContain("id:");
});
