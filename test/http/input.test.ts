/** What comes in: bounds on the body, JSON, and the words with which a schema refuses, on real sockets. */
import { afterAll, describe, expect, test } from "bun:test";
import type { ErrorEnvelopeBody } from "../../src/api/schema/errors.ts";
import { parseJsonBody } from "../../src/app/middleware/json-body.ts";
import { sendRaw } from "../support/raw-http.ts";
import { sampleStream, startTestApp, taskId, testKey } from "../support/test-app.ts";

const maxBodyBytes = 16 * 1024;
const server = startTestApp({ maxBodyBytes });
afterAll(() => server.stop());

const json = { "content-type": "application/json" };
const ask = (
  path: string,
  init: RequestInit & { headers?: Record<string, string> } = {},
): Promise<Response> =>
  fetch(server.url + path, { ...init, headers: { "x-api-key": testKey, ...init.headers } });
const submit = (
  body: string | Uint8Array<ArrayBuffer> | ReadableStream,
  headers: Record<string, string> = json,
): Promise<Response> => ask("/v1/tasks", { method: "POST", body, headers });
const envelope = async (response: Response): Promise<ErrorEnvelopeBody> =>
  (await response.json()) as ErrorEnvelopeBody;
const detailsOf = async (response: Response) =>
  (await envelope(response)).details as Record<string, unknown> | undefined;

const streamed = (text: string): ReadableStream =>
  new ReadableStream({
    start(controller) {
      controller.enqueue(new TextEncoder().encode(text));
      controller.close();
    },
  });

describe("the body", () => {
  test("of exactly the bound is read, one byte more is not", async () => {
    const bodyOf = (bytes: number) => `{"prompt":"${"x".repeat(bytes - 13)}"}`;
    expect((await submit(bodyOf(maxBodyBytes))).status).toBe(202);
    expect((await submit(streamed(bodyOf(maxBodyBytes)))).status).toBe(202);
    for (const body of [bodyOf(maxBodyBytes + 1), streamed(bodyOf(maxBodyBytes + 1))]) {
      const response = await submit(body);
      expect(response.status).toBe(413);
      expect(await envelope(response)).toMatchObject({
        code: "PAYLOAD_TOO_LARGE",
        retriable: false,
        details: { max_bytes: maxBodyBytes },
      });
    }
  });

  test("that grows too large in chunks is answered before it ends", async () => {
    const chunk = `${(8192).toString(16)}\r\n${"x".repeat(8192)}\r\n`;
    const request = `POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nX-API-Key: ${testKey}\r\nX-Correlation-Id: early\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n${chunk.repeat(3)}`;
    const answer = await sendRaw(server.port, request, '"correlation_id":"early"}');
    expect(answer.status).toBe(413);
    expect(answer.headers["x-correlation-id"]).toBe("early");
  });

  test("that announces too much is answered before it comes", async () => {
    const request = `POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nX-API-Key: ${testKey}\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n`;
    expect((await sendRaw(server.port, request, "PAYLOAD_TOO_LARGE")).status).toBe(413);
  });

  test.each([
    ["nothing", "", null],
    ["half an object", '{"prompt":"x"', 13],
    ["a comma too many", '{"prompt":"x",}', 14],
    ["a comma too few", '{"prompt":"x" "seed":1}', 14],
    ["a bare word", '{"prompt":yes}', 10],
    ["single quotes", "{'prompt':1}", 1],
    ["a leading zero", '{"seed":01}', 8],
    ["a line break in a string", '{"prompt":"a\nb"}', 12],
    ["two documents", '{"prompt":"x"} {}', 15],
    ["an unclosed string", '{"prompt":"x', 12],
    ["a stray bracket", '{"prompt":"x"]', 13],
    ["a bad escape", '{"prompt":"\\x"}', 11],
    ["a missing colon", '{"prompt" 1}', 10],
    ["a number as a name", "{1:2}", 1],
    ["on the second line", '{\n  "seed": ,\n}', 12],
  ] as const)("that is not JSON (%s) says where", async (_name, body, offset) => {
    const response = await submit(body === "" ? streamed("") : body);
    expect(response.status).toBe(400);
    const { code, details } = await envelope(response);
    expect(code).toBe("INVALID_PARAMS");
    const before = body.slice(0, offset ?? 0).split("\n");
    expect(details).toMatchObject(
      offset === null
        ? { in: "body" }
        : { offset, line: before.length, column: (before.at(-1)?.length ?? 0) + 1 },
    );
  });

  test("that is not JSON after a long string says where, in little time", () => {
    const long = "x\\n\\u00e9".repeat(1024 * 1024);
    const before = process.cpuUsage();
    for (const [text, offset] of [
      [`{"prompt":"${long}" "seed":1}`, long.length + 13],
      [`{"prompt":"${long}\n"}`, long.length + 11],
      [`{"prompt":"${long}\\q"}`, long.length + 11],
      [`{"prompt":"${long}`, long.length + 11],
    ] as const) {
      expect(() => parseJsonBody(text)).toThrow(`(character ${offset})`);
    }
    const cpu = process.cpuUsage(before);
    expect((cpu.user + cpu.system) / 1e6 / 4).toBeLessThan(1);
  });

  test("in other bytes than UTF-8 is refused", async () => {
    for (const bytes of [[0xff], [0xc3, 0x28], [0xed, 0xa0, 0x80], [0xf8, 0x88, 0x80, 0x80, 0x80]]) {
      const body = new Uint8Array([
        ...new TextEncoder().encode('{"prompt":"'),
        ...bytes,
        ...new TextEncoder().encode('"}'),
      ]);
      const response = await submit(body);
      expect(response.status).toBe(400);
      expect((await envelope(response)).message).toContain("UTF-8");
    }
    expect((await submit('\ufeff{"prompt":"é 😀"}')).status).toBe(202);
  });

  test("that nests without end is refused, not recursed into", async () => {
    const response = await submit(`{"sampling":{"json_schema":${"[".repeat(5000)}${"]".repeat(5000)}}}`);
    expect(response.status).toBe(400);
    expect((await envelope(response)).message).toContain("64 levels");
    expect((await submit(`{"prompt":"${"[{".repeat(500)}"}`)).status).toBe(202);
  });

  test.each(["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])(
    "of the type %p is refused: only JSON is asked for across origins",
    async (type) => {
      const response = await submit(
        new TextEncoder().encode('{"prompt":"x"}'),
        type === "" ? {} : { "content-type": type },
      );
      expect(response.status).toBe(400);
      expect(await detailsOf(response)).toMatchObject({ field: "content-type" });
    },
  );

  test("may name its charset, in any case", async () => {
    expect(
      (await submit('{"prompt":"x"}', { "content-type": "Application/JSON; charset=UTF-8" })).status,
    ).toBe(202);
  });

  test("is not needed where none is taken, and JSON there does no harm", async () => {
    const path = `/v1/tasks/${taskId}/cancel`;
    expect((await ask(path, { method: "POST", headers: json })).status).toBe(204);
    expect((await ask(path, { method: "POST", headers: json, body: "{}" })).status).toBe(204);
  });
});

describe("validation", () => {
  test.each([
    [{ priorty: "batch" }, "priorty", "priority"],
    [{ prompt: "x", sampling: { temprature: 1 } }, "sampling.temprature", "temperature"],
    [{ prompt: "x", priority: "interactiv" }, "priority", "interactive"],
  ])("of %j names the field and the nearest known name", async (body, field, nearest) => {
    const response = await submit(JSON.stringify(body));
    expect(response.status).toBe(400);
    const { code, message, details } = await envelope(response);
    expect([code, (details as { in?: string }).in, (details as { field?: string }).field]).toEqual([
      "INVALID_PARAMS",
      "body",
      field,
    ]);
    expect(message).toContain(`Did you mean "${nearest}"?`);
  });

  test.each([
    ['{"prompt":"x","seed":-1}', "seed must be an integer from 0 to 4294967295."],
    ['{"prompt":"x","seed":4294967296}', "seed must be an integer from 0 to 4294967295."],
    ['{"prompt":"x","seed":1.5}', "seed must be an integer from 0 to 4294967295."],
    ['{"prompt":"x","seed":"1"}', "seed must be an integer from 0 to 4294967295."],
    ['{"prompt":""}', "prompt must be a string of 1 to 8388608 characters."],
    ['{"prompt":null}', "prompt must be a string of 1 to 8388608 characters."],
    ['{"prompt":"x","task_id":"abc"}', "task_id must be a UUID."],
    ['{"messages":[]}', "messages must be an array of 1 to 1024 items."],
    [
      '{"messages":[{"role":"user"}]}',
      "messages.0.content is missing: it must be a string of at most 8388608 characters.",
    ],
    [
      '{"prompt":"x","placement":{"mode":"pin","pin_pool_id":"A"}}',
      "placement.pin_pool_id must be a pool id (1 to 64 of a-z 0-9 . _ -).",
    ],
    ['{"prompt":"x","determinism":"loose"}', "determinism must be one of strict, best_effort."],
    ['{"prompt":"x","metadata":{"a b":"c"}}', "A name in metadata must match ^[A-Za-z0-9._:/-]{1,64}$."],
    [
      '{"prompt":"x","metadata":{"__proto__":1}}',
      "metadata.__proto__ must be a string of at most 1024 characters.",
    ],
    ['{"prompt":"x","__proto__":{}}', 'There is no field "__proto__".'],
    ["[]", "The body must be a JSON object."],
    ["null", "The body is missing: it must be a JSON object."],
  ])("of %s says what was expected", async (body, message) => {
    const response = await submit(body);
    expect(response.status).toBe(400);
    expect((await envelope(response)).message).toStartWith(message);
  });

  test.each([
    ["/v1/tasks?limit=0", "The query parameter limit must be an integer from 1 to 500."],
    ["/v1/tasks?limit=501", "The query parameter limit must be an integer from 1 to 500."],
    ["/v1/tasks?limit=1.5", "The query parameter limit must be an integer from 1 to 500."],
    ["/v1/tasks?limit=many", "The query parameter limit must be an integer from 1 to 500."],
    ["/v1/tasks?stat=done", 'There is no query parameter "stat". Did you mean "state"?'],
    ["/v1/tasks?session_id=7", "The query parameter session_id must be a UUID."],
    [`/v1/tasks/${taskId}/stream?observe=yes`, "The query parameter observe must be one of 0, 1."],
    ["/v1/tasks/0", "The path parameter id must be a UUID."],
    [`/v1/tasks/${"a".repeat(5000)}`, "The path parameter id must be a UUID."],
    [`/v1/tasks/${taskId}%0a`, "The path parameter id must be a UUID."],
    ["/v1/pools/a%2Fb/health", "The path parameter id must be a pool id (1 to 64 of a-z 0-9 . _ -)."],
  ])("of %s", async (path, message) => {
    const response = await ask(path);
    expect(response.status).toBe(400);
    expect(await envelope(response)).toMatchObject({ code: "INVALID_PARAMS", message });
  });

  test("of a header", async () => {
    const response = await ask(`/v1/tasks/${taskId}/stream`, { headers: { "last-event-id": "-1" } });
    expect(response.status).toBe(400);
    expect((await envelope(response)).message).toStartWith("The header last-event-id must be");
  });

  test("never echoes what was sent", async () => {
    const secret = "sk-this-is-a-secret";
    for (const body of [
      { prompt: "x", seed: secret },
      { prompt: { text: secret } },
      { prompt: "x", [`${"n".repeat(70)}${secret}`]: 1 },
    ]) {
      const text = await (await submit(JSON.stringify(body))).text();
      expect(text).not.toContain(secret);
    }
    expect(JSON.stringify(server.log.lines)).not.toContain(secret);
  });

  test.each([
    "/v1/tasks/%E0%A4%A",
    "/v1/tasks?state=%ff",
    "/v1/pools/%/health",
    "/%c0%af",
    "/v1/tasks?%zz=1",
  ])("of the encoding of %s", async (path) => {
    const answer = await sendRaw(
      server.port,
      `GET ${path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: ${testKey}\r\nConnection: close\r\n\r\n`,
    );
    expect([answer.status, (JSON.parse(answer.body) as ErrorEnvelopeBody).code]).toEqual([
      400,
      "INVALID_PARAMS",
    ]);
  });

  test("lets good input through", async () => {
    const body = {
      messages: [{ role: "user", content: "hi" }],
      sampling: { temperature: 0, stop: ["."] },
      metadata: { "a/b": "c" },
      deadline_ms: -5,
    };
    expect((await submit(JSON.stringify(body))).status).toBe(202);
    expect((await ask(`/v1/tasks?limit=500&state=done&session_id=${taskId}`)).status).toBe(200);
    const stream = await ask(`/v1/tasks/${taskId}/stream?after=0&observe=1`, {
      headers: { "last-event-id": "3" },
    });
    expect(await stream.text()).toBe(sampleStream.join(""));
    expect(stream.headers.get("content-type")).toBe("text/event-stream");
  });
});
