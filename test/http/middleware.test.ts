/**
 * The middleware on real sockets: correlation id, errors, odd requests, the port itself. What comes in is in
 * input.test.ts, keys and rates are in auth.test.ts, the documentation in docs.test.ts.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { Type } from "@sinclair/typebox";
import { Elysia } from "elysia";
import type { ErrorEnvelopeBody } from "../../src/api/schema/errors.ts";
import { listen } from "../../src/app/listen.ts";
import { isStartError } from "../../src/app/start-error.ts";
import { type ErrorCode, errorCodes, errorTable, OrchestratorError } from "../../src/domain/errors.ts";
import { sendRaw } from "../support/raw-http.ts";
import {
  buildApp,
  CountingEntropy,
  RecordingLog,
  slowKey,
  startTestApp,
  taskId,
  testKey,
} from "../support/test-app.ts";

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/;
const maxBodyBytes = 16 * 1024;
let thrown: unknown;
const broken = new Elysia()
  .get("/broken/throw", () => {
    throw thrown;
  })
  .get("/broken/answer", () => ({ n: "not a number" }) as unknown as { n: number }, {
    response: { 200: Type.Object({ n: Type.Number() }) },
  });
const server = startTestApp({ plugins: [broken], maxBodyBytes });
afterAll(() => server.stop());

const json = { "content-type": "application/json" };
const ask = (
  path: string,
  init: RequestInit & { headers?: Record<string, string> } = {},
): Promise<Response> =>
  fetch(server.url + path, { ...init, headers: { "x-api-key": testKey, ...init.headers } });
const envelope = async (response: Response): Promise<ErrorEnvelopeBody> =>
  (await response.json()) as ErrorEnvelopeBody;

describe("the log", () => {
  const cases: readonly (readonly [
    number,
    string,
    string,
    string | null,
    Record<string, string>,
    string | null,
  ])[] = [
    [400, "INVALID_PARAMS", "/v1/tasks", "somebody", json, '{"prompt":"x","of_mine":1}'],
    [401, "UNAUTHORIZED", "/v1/pools", null, { "x-api-key": "" }, null],
    [403, "FORBIDDEN", "/v1/pools", null, { "x-api-key": "of_mine" }, null],
    [404, "NOT_FOUND", "/v1/of_mine", "somebody", {}, null],
    [405, "METHOD_NOT_ALLOWED", "/v1/capabilities", "somebody", json, "{}"],
    [429, "RATE_LIMITED", "/v1/pools", "slow", { "x-api-key": slowKey }, null],
  ];
  test.each(cases)(
    "of a request refused with %i %s has one line, without the message (ORCHD-OBS-4)",
    async (status, code, path, keyId, headers, body) => {
      const { log, url, stop } = startTestApp();
      try {
        const once = () =>
          fetch(url + path, {
            ...(body === null ? {} : { method: "POST", body }),
            headers: { "x-api-key": testKey, ...headers, "x-correlation-id": `asked-${code}` },
          });
        let answer = await once();
        // The bucket of the slow key holds two.
        while (answer.ok) answer = await once();
        const { message } = await envelope(answer);
        expect(answer.status).toBe(status);

        const lines = log.lines.filter(({ event }) => event === "request_refused");
        expect(lines).toMatchObject([
          { level: "info", fields: { code, status, path, key_id: keyId, correlation_id: `asked-${code}` } },
        ]);
        expect(JSON.stringify(log.lines)).not.toContain(message);
        expect(JSON.stringify(log.lines).replaceAll(path, "")).not.toContain("of_mine");
      } finally {
        await stop();
      }
    },
  );
});

describe("correlation id", () => {
  const task = `/v1/tasks/${taskId}`;
  interface Case {
    readonly status: number;
    readonly path: string;
    readonly init?: { method?: string; body?: string; headers?: Record<string, string> };
  }
  const cases: readonly (readonly [string, number, string, Case["init"]?])[] = [
    ["an answer", 200, "/v1/pools"],
    ["202", 202, "/v1/tasks", { method: "POST", headers: json, body: '{"prompt":"x"}' }],
    ["204", 204, `${task}/cancel`, { method: "POST" }],
    ["a stream", 200, `${task}/stream`],
    [
      "a submitted stream",
      200,
      "/v1/tasks",
      { method: "POST", headers: { ...json, accept: "text/event-stream" }, body: '{"prompt":"x"}' },
    ],
    ["/metrics", 200, "/metrics"],
    ["/readyz that is not", 503, "/readyz"],
    ["/docs", 200, "/docs"],
    ["an embedded file", 200, "/docs/ui.js"],
    ["HEAD", 200, "/v1/pools", { method: "HEAD" }],
    ["HEAD of nothing", 404, "/nothing", { method: "HEAD" }],
    ["OPTIONS", 405, "/v1/tasks", { method: "OPTIONS" }],
    ["an unknown path", 404, "/v1/nothing"],
    ["another method", 405, "/v1/pools", { method: "PATCH" }],
    ["bad JSON", 400, "/v1/tasks", { method: "POST", headers: json, body: "{" }],
    ["a body against the schema", 400, "/v1/tasks", { method: "POST", headers: json, body: "{}" }],
    ["a path id against the schema", 400, "/v1/tasks/17"],
    [
      "a body that is too large",
      413,
      "/v1/tasks",
      { method: "POST", headers: json, body: "x".repeat(maxBodyBytes + 1) },
    ],
    ["no key", 401, "/v1/pools", { headers: { "x-api-key": "" } }],
    ["a wrong key", 403, "/v1/pools", { headers: { "x-api-key": "wrong" } }],
    ["a service's error", 404, "/v1/pools/demo/health"],
    ["a bug", 500, "/broken/answer"],
  ];

  // As one object: a test function with more parameters than values would wait for a callback.
  const rows = cases.map(
    ([name, status, path, init]) =>
      [name, { status, path, ...(init === undefined ? {} : { init }) }] as const,
  );

  test.each(rows)("is on %s", async (_name, { status, path, init }: Case) => {
    const response = await ask(path, {
      ...init,
      headers: { ...init?.headers, "x-correlation-id": "trace:1.a_b-C" },
    });
    const text = await response.text();
    expect([response.status, response.headers.get("x-correlation-id")]).toEqual([status, "trace:1.a_b-C"]);
    if (status < 400 || status === 503 || init?.method === "HEAD") return;
    expect(response.headers.get("content-type")).toBe("application/json");
    expect((JSON.parse(text) as ErrorEnvelopeBody).correlation_id).toBe("trace:1.a_b-C");
  });

  test.each([
    ["absent", null],
    ["empty", ""],
    ["with a space", "a b"],
    ["too long", "x".repeat(129)],
    ["outside the alphabet", "a/b"],
    ["not ASCII", "é"],
  ])("is replaced by a UUID when %s", async (_name, given) => {
    const response = await ask("/v1/pools", given === null ? {} : { headers: { "x-correlation-id": given } });
    expect(response.headers.get("x-correlation-id")).toMatch(uuid);
  });

  test("of 128 characters is kept", async () => {
    const given = "x".repeat(128);
    const response = await ask("/v1/pools", { headers: { "x-correlation-id": given } });
    expect(response.headers.get("x-correlation-id")).toBe(given);
  });
});

describe("errors", () => {
  test.each(errorCodes)("%s becomes its status and the envelope", async (code: ErrorCode) => {
    thrown = new OrchestratorError(code, "Do this next.", {
      retryAfterMs: 1500.5,
      policyLabel: "reject",
      engine: "mock",
      poolId: "demo",
      details: { a: 1 },
    });
    const response = await ask("/broken/throw", { headers: { "x-correlation-id": "c" } });
    const { status, retriable } = errorTable[code];
    expect(response.status).toBe(status);
    const body = await envelope(response);
    if (code === "INTERNAL") {
      expect(Object.keys(body).sort()).toEqual(["code", "correlation_id", "message", "retriable"]);
      return;
    }
    expect(body).toEqual({
      code,
      message: "Do this next.",
      retriable,
      retry_after_ms: 1500.5,
      policy_label: "reject",
      engine: "mock",
      pool_id: "demo",
      details: { a: 1 },
      correlation_id: "c",
    });
    const waits = status === 429 || status === 503;
    expect(response.headers.get("retry-after")).toBe(waits ? "2" : null);
    expect(response.headers.get("x-backoff-ms")).toBe(waits ? "1501" : null);
  });

  test("429 and 503 say when to come back even where the error does not", async () => {
    thrown = new OrchestratorError("POOL_UNAVAILABLE", "Later.");
    const response = await ask("/broken/throw");
    expect(response.headers.get("retry-after")).toBe("1");
    expect(response.headers.get("x-backoff-ms")).toBe("1000");
    expect((await envelope(response)).retry_after_ms).toBe(1000);
  });

  test.each([
    ["an Error", new Error("the database password is hunter2")],
    [
      "an error with a status of its own",
      Object.assign(new Error("hunter2"), { status: 418, code: "TEAPOT" }),
    ],
    ["an INTERNAL of ours", new OrchestratorError("INTERNAL", "hunter2")],
  ])("a bug (%s) is logged with its cause and not shown", async (_name, error) => {
    thrown = error;
    server.log.lines.length = 0;
    const response = await ask("/broken/throw", { headers: { "x-correlation-id": "bug-1" } });
    const text = await response.text();
    expect(response.status).toBe(500);
    expect(text).not.toContain("hunter2");
    expect(JSON.parse(text)).toMatchObject({ code: "INTERNAL", retriable: false, correlation_id: "bug-1" });
    expect(server.log.lines).toHaveLength(1);
    expect(server.log.lines[0]).toMatchObject({
      level: "error",
      fields: { correlation_id: "bug-1", path: "/broken/throw", method: "GET" },
    });
    expect(server.log.lines[0]?.cause).toBe(error);
  });

  test("an answer against its own schema is a bug", async () => {
    server.log.lines.length = 0;
    const response = await ask("/broken/answer");
    expect([response.status, (await envelope(response)).code]).toEqual([500, "INTERNAL"]);
    expect(server.log.lines).toHaveLength(1);
  });

  test("details that JSON cannot say do not take the answer with them", async () => {
    const details: Record<string, unknown> = { big: 1n };
    details.self = details;
    thrown = new OrchestratorError("CONFLICT", "Taken.", { details });
    const response = await ask("/broken/throw");
    expect(response.status).toBe(409);
    expect(await envelope(response)).toMatchObject({ code: "CONFLICT", message: "Taken." });
  });

  test("a known path with another method is 405 with Allow, an unknown one 404", async () => {
    for (const [method, path, allow] of [
      ["DELETE", "/v1/tasks", "GET, HEAD, POST"],
      ["OPTIONS", "/v1/tasks", "GET, HEAD, POST"],
      ["PUT", `/v1/tasks/${taskId}`, "GET, HEAD"],
      ["GET", `/v1/tasks/${taskId}/cancel`, "POST"],
      ["POST", "/metrics", "GET, HEAD"],
      ["DELETE", "/docs/json", "GET, HEAD"],
    ] as const) {
      const response = await ask(path, { method });
      expect([path, response.status, response.headers.get("allow")]).toEqual([path, 405, allow]);
      expect((await envelope(response)).code).toBe("METHOD_NOT_ALLOWED");
    }
    for (const path of ["/", "/v1", "/v1/tasks/a/b/c", "/v1/replicasets", "/docs/nothing"]) {
      const response = await ask(path);
      expect([path, response.status, (await envelope(response)).code]).toEqual([path, 404, "NOT_FOUND"]);
    }
  });
});

describe("what fetch would not send", () => {
  const key = `X-API-Key: ${testKey}\r\n`;

  test("HTTP/1.0 without Host works", async () => {
    const found = await sendRaw(server.port, `GET /v1/pools HTTP/1.0\r\n${key}\r\n`);
    expect([found.status, found.body]).toEqual([200, '{"pools":[]}']);
    expect(found.headers["x-correlation-id"]).toMatch(uuid);
    expect((await sendRaw(server.port, `GET /nothing HTTP/1.0\r\n${key}\r\n`)).status).toBe(404);
    expect((await sendRaw(server.port, `GET //v1/pools HTTP/1.0\r\n${key}\r\n`)).status).toBe(404);
    expect((await sendRaw(server.port, `DELETE /v1/pools HTTP/1.0\r\n${key}\r\n`)).headers.allow).toBe(
      "GET, HEAD",
    );
  });

  test("no way of writing a path gets around the key", async () => {
    for (const [target, host] of [
      ["/docs/../v1/pools", "localhost"],
      ["/metrics/../v1/pools", "localhost"],
      ["/v1/pools", "x/metrics?"],
      ["/v1/pools", "localhost/docs/json#"],
      ["/v1/pools?/metrics", "localhost"],
      ["/v1/pools#/metrics", "localhost"],
      ["http://localhost/metrics/../v1/pools", "localhost"],
      ["/v1/pools/", "localhost"],
      ["/v1/pools", ""],
      ["/v1/pools", "a"],
    ] as const) {
      const answer = await sendRaw(
        server.port,
        `GET ${target} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`,
      );
      expect([target, host, answer.status]).toEqual([target, host, 401]);
    }
  });

  test("garbage is refused and does no harm", async () => {
    for (const garbage of [
      "\u0000\u0001\u0002\r\n\r\n",
      "GET\r\n\r\n",
      "GET / HTTP/9.9\r\n\r\n",
      "GET /v1/pools HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
      `GET /${"a".repeat(40_000)} HTTP/1.1\r\nHost: x\r\n\r\n`,
    ]) {
      const { status } = await sendRaw(server.port, garbage, "\r\n\r\n");
      expect([0, 400, 401, 414, 431, 505]).toContain(status);
    }
    expect((await ask("/v1/pools")).status).toBe(200);
  });
});

describe("listen", () => {
  test("a port that is taken is an error, never shared", () => {
    const second = () =>
      listen(buildApp().app, {
        host: "127.0.0.1",
        port: server.port,
        tls: null,
        log: new RecordingLog(),
        entropy: new CountingEntropy(),
      });
    let refused: unknown;
    try {
      second();
    } catch (error) {
      refused = error;
    }
    expect(isStartError(refused) && refused.startErrorKind).toBe("address");
    expect(String(refused)).toContain(`address in use: 127.0.0.1:${server.port};`);
  });

  test("stop frees the port and leaves nothing behind", async () => {
    const listenersBefore = process.listenerCount("beforeExit");
    const first = startTestApp();
    await first.stop();
    expect(process.listenerCount("beforeExit")).toBe(listenersBefore);
    const again = listen(buildApp().app, {
      host: "127.0.0.1",
      port: first.port,
      tls: null,
      log: new RecordingLog(),
      entropy: new CountingEntropy(),
    });
    expect((await fetch(`${again.url}/healthz`)).status).toBe(200);
    await again.stop(true);
  });
});
