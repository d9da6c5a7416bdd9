/**
 * The read path from socket bytes to tokens: HTTP body, SSE lines, llama-server frames. Every fixture is cut at
 * every byte, and at random places, and must tell the same.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { HttpResponseParser } from "../../src/infra/engines/http-response.ts";
import {
  type FastToken,
  httpError,
  readFrame,
  readTokenFrame,
} from "../../src/infra/engines/llamacpp-frames.ts";
import { SseDecoder } from "../../src/infra/engines/sse-decoder.ts";

/** Cuts `bytes` at the given places and hands the parts over in turn. */
function feed(bytes: Buffer, cuts: readonly number[], push: (part: Buffer) => void): void {
  const places = [0, ...[...cuts].sort((a, b) => a - b), bytes.length];
  for (let i = 1; i < places.length; i++) push(Buffer.from(bytes.subarray(places[i - 1], places[i])));
}

function payloads(bytes: Buffer, cuts: readonly number[], bytesMax = 1_000_000): string[] {
  const told: string[] = [];
  const decoder = new SseDecoder(bytesMax, (from, start, end) =>
    told.push(from.toString("utf8", start, end)),
  );
  feed(bytes, cuts, (part) => decoder.push(part));
  return told;
}

const stream = Buffer.from(
  [
    ": a comment\n\n",
    'data: {"index":0,"content":"🙂é 東京","tokens":[1]}\n\n',
    "event: ignored\r\ndata:no space\r\n\r\n",
    "data: \n\n",
    "data\ndatum: no\n\n",
    "id: 7\n\n\n\n",
    "data: last without a blank line\n",
    "data: torn",
  ].join(""),
);
const expected = [
  '{"index":0,"content":"🙂é 東京","tokens":[1]}',
  "no space",
  "",
  "last without a blank line",
];

describe("SSE decoder", () => {
  test("tells each payload once, wherever the stream is cut", () => {
    expect(payloads(stream, [])).toEqual(expected);
    for (let cut = 0; cut <= stream.length; cut++) expect(payloads(stream, [cut])).toEqual(expected);
    expect(
      payloads(
        stream,
        Array.from(stream, (_, i) => i),
      ),
    ).toEqual(expected);
  });

  test("any cuts of any lines tell the same (property)", () => {
    const line = fc.oneof(
      fc
        .string({ unit: "grapheme", maxLength: 40 })
        .map((text) => `data: ${text.replace(/[\r\n]/g, "")}\n\n`),
      fc.constantFrom(": hb\n\n", "event: x\n", "\n", "\r\n", "data:\n"),
    );
    fc.assert(
      fc.property(fc.array(line, { maxLength: 12 }), fc.array(fc.nat(), { maxLength: 12 }), (lines, cuts) => {
        const bytes = Buffer.from(lines.join(""));
        const places = cuts.map((cut) => cut % (bytes.length + 1));
        expect(payloads(bytes, places)).toEqual(payloads(bytes, []));
      }),
      { numRuns: 300 },
    );
  });

  test("tells a range of a larger chunk only", () => {
    const told: string[] = [];
    const decoder = new SseDecoder(100, (from, start, end) => told.push(from.toString("utf8", start, end)));
    const chunk = Buffer.from("xx\ndata: a\n\ndata: byy\n");
    decoder.push(chunk, 3, 19);
    expect(decoder.midLine).toBe(true);
    decoder.push(Buffer.from("\n"));
    expect(told).toEqual(["a", "b"]);
    expect(decoder.midLine).toBe(false);
  });

  test("a line beyond the cap is a protocol error, whole or in parts", () => {
    const long = Buffer.from(`data: ${"x".repeat(200)}\n\n`);
    expect(() => payloads(long, [], 100)).toThrow("longer than 100 bytes");
    expect(() =>
      payloads(
        long,
        Array.from(long, (_, i) => i),
        100,
      ),
    ).toThrow("longer than 100 bytes");
    expect(payloads(Buffer.from(`data: ${"x".repeat(94)}\n`), [50], 100)).toHaveLength(1);
  });

  test("stopped by its reader in the middle of a chunk, it tells no more", () => {
    const told: string[] = [];
    const decoder = new SseDecoder(100, (from, start, end) => {
      told.push(from.toString("utf8", start, end));
      decoder.stop();
    });
    decoder.push(Buffer.from("data: 1\n\ndata: 2\n\ndata: 3"));
    decoder.push(Buffer.from("\n\ndata: 4\n\n"));
    expect(told).toEqual(["1"]);
  });
});

interface Heard {
  status: number;
  body: string;
  ended: boolean;
}

function response(bytes: Buffer, cuts: readonly number[], close = false): Heard {
  const heard: Heard = { status: 0, body: "", ended: false };
  const parts: Buffer[] = [];
  const parser = new HttpResponseParser({
    onHead: (status) => {
      heard.status = status;
    },
    onBody: (from, start, end) => parts.push(Buffer.from(from.subarray(start, end))),
    onEnd: () => {
      heard.ended = true;
    },
  });
  feed(bytes, cuts, (part) => parser.push(part));
  if (close) parser.eof();
  heard.body = Buffer.concat(parts).toString("utf8");
  return heard;
}

describe("HTTP response parser", () => {
  const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  const cases: [name: string, text: string, heard: Heard][] = [
    [
      "chunks, with an extension and a trailer",
      `${chunked}6\r\n🙂é\r\nA;x=1\r\n0123456789\r\n0\r\nT: 1\r\n\r\n`,
      { status: 200, body: "🙂é0123456789", ended: true },
    ],
    [
      "a length",
      "HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
      { status: 400, body: "hello", ended: true },
    ],
    ["no body", "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", { status: 503, body: "", ended: true }],
    [
      "an interim answer first",
      `HTTP/1.1 100 Continue\r\n\r\n${chunked}0\r\n\r\n`,
      { status: 200, body: "", ended: true },
    ],
    ["a body cut short", `${chunked}5\r\nabc`, { status: 200, body: "abc", ended: false }],
  ];
  for (const [name, text, heard] of cases) {
    test(`${name}, cut anywhere`, () => {
      const bytes = Buffer.from(text);
      for (let cut = 0; cut <= bytes.length; cut++) expect(response(bytes, [cut])).toEqual(heard);
      const everywhere = Array.from(bytes, (_, i) => i);
      expect(response(bytes, everywhere)).toEqual(heard);
    });
  }

  test("a body without a length lasts until the connection ends", () => {
    const bytes = Buffer.from("HTTP/1.0 200 OK\r\n\r\nall of it");
    expect(response(bytes, [25])).toEqual({ status: 200, body: "all of it", ended: false });
    expect(response(bytes, [25], true)).toEqual({ status: 200, body: "all of it", ended: true });
  });

  test("what is no HTTP is a protocol error", () => {
    for (const text of [
      "SSH-2.0-OpenSSH\r\n\r\n",
      "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
      `${chunked}zz\r\n`,
      `${chunked}\r\n`,
      `${chunked}123456789\r\n`,
      `${chunked}2\r\nabcd\r\n`,
      `HTTP/1.1 200 OK\r\nX: ${"y".repeat(70_000)}`,
    ]) {
      expect(() => response(Buffer.from(text), [])).toThrow("makes no sense");
    }
  });
});

describe("llama-server frames", () => {
  const out: FastToken = { text: "", ids: [] };
  const fast = (text: string) => {
    const bytes = Buffer.from(text);
    return readTokenFrame(bytes, 0, bytes.length, out) ? { text: out.text, ids: out.ids } : null;
  };
  const frame = (content: string, tokens: number[]) =>
    JSON.stringify({
      index: 0,
      content,
      tokens,
      stop: false,
      id_slot: -1,
      tokens_predicted: 1,
      tokens_evaluated: 5,
    });

  test("the quick reading agrees with JSON.parse (property)", () => {
    const content = fc.string({ unit: "grapheme", minLength: 1, maxLength: 20 });
    fc.assert(
      fc.property(content, fc.array(fc.nat(300_000), { maxLength: 5 }), (text, ids) => {
        expect(fast(frame(text.toWellFormed(), ids))).toEqual({ text: text.toWellFormed(), ids });
      }),
      { numRuns: 500 },
    );
  });

  test("whatever is not a plain token frame is left to JSON.parse", () => {
    for (const text of [
      frame("", [0]),
      '{"index":0,"content":"x","stop":false,"tokens":[1]}',
      '{"content":"x","tokens":[1],"stop":true}',
      '{"index":0,"content":"x","tokens":[1],"stop":true}',
      '{"index":0,"content":"x","tokens":[-1],"stop":false}',
      '{"index":0,"content":"x',
      '{"index":0,"content":"x\\',
      '{"index":0,"content":"x","tokens":[1',
      '{"error":{"code":500,"message":"no","type":"server_error"}}',
      "",
    ]) {
      expect(fast(text)).toBeNull();
    }
  });

  test("progress, token, final and error frames", () => {
    expect(
      readFrame(
        '{"content":"","tokens":[0],"stop":false,"prompt_progress":{"total":9,"cache":2,"processed":4}}',
      ),
    ).toEqual({ kind: "progress", total: 9, cached: 2, done: 4 });
    expect(readFrame('{"content":"a","tokens":[3],"stop":false}')).toEqual({
      kind: "token",
      text: "a",
      ids: [3],
      final: null,
    });
    const final = readFrame(
      '{"content":"","tokens":[],"stop":true,"stop_type":"eos","tokens_predicted":8,"tokens_evaluated":5,"timings":{"cache_n":4}}',
    );
    expect(final).toMatchObject({
      final: { stopType: "eos", tokensPredicted: 8, tokensEvaluated: 5, tokensCached: 4 },
    });
    for (const nonsense of ["{", "[]", "{}", '{"content":1,"stop":false}']) {
      expect(() => readFrame(nonsense)).toThrow();
    }
    expect(() => readFrame('{"error":{"code":500,"message":"broken","type":"server_error"}}')).toThrow(
      "broken",
    );
  });

  test("HTTP errors are told by what they mean", () => {
    const kind = (status: number, type: string, message = "m") =>
      httpError(status, JSON.stringify({ error: { code: status, message, type } })).engineErrorKind;
    expect(kind(400, "exceed_context_size_error")).toBe("context");
    expect(kind(500, "server_error", "input (9 tokens) is too large to process.")).toBe("context");
    expect(kind(400, "invalid_request_error")).toBe("rejected");
    expect(kind(501, "not_supported_error")).toBe("unsupported");
    expect(kind(503, "unavailable_error")).toBe("unavailable");
    expect(kind(401, "authentication_error")).toBe("protocol");
    expect(httpError(502, "<html>").engineErrorKind).toBe("protocol");
    expect(httpError(503, "").engineErrorKind).toBe("unavailable");
    expect(httpError(400, '{"error":{"message":"a\\nb\\u0007c"}}').message).toBe("a b c");
    expect(
      httpError(400, JSON.stringify({ error: { message: "x".repeat(9999) } })).message.length,
    ).toBeLessThan(600);
  });
});
