/**
 * What clients get wrong, against a whole daemon on a real socket: a table of the single mistakes, then ten
 * thousand requests out of a seed (BAD_INPUT_SEED repeats a run).
 */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { Value } from "@sinclair/typebox/value";
import type { ErrorEnvelopeBody } from "../../src/api/schema/errors.ts";
import { TaskRequest } from "../../src/api/schema/tasks.ts";
import { type ErrorCode, errorTable } from "../../src/domain/errors.ts";
import { type MutatedRequest, nextRequest, randomFrom } from "../support/mutations.ts";
import { keys, startDaemon } from "../support/running-daemon.ts";

setDefaultTimeout(20_000);

const mock = { token_ms: 0, prefill_ms_per_token: 0, load_ms: 0 };
const daemon = await startDaemon({
  tasks: { retention_ms: 1000 },
  pools: [
    {
      id: "words",
      engine: "mock",
      model: "mock:words",
      slots: 16,
      ctx: 512,
      queue: { capacity: 10_000 },
      mock,
    },
    {
      id: "vectors",
      engine: "mock",
      model: "mock:vectors",
      slots: 4,
      workloads: ["embedding", "rerank"],
      queue: { capacity: 10_000 },
      mock,
    },
  ],
});
afterAll(() => daemon.close());

const json = { "x-api-key": keys.alice, "content-type": "application/json" };
const send = (
  body: string | Uint8Array<ArrayBuffer> | ReadableStream,
  headers: Record<string, string> = json,
): Promise<Response> => fetch(`${daemon.url}/v1/tasks`, { method: "POST", headers, body });

async function expectRefused(response: Response, code: ErrorCode): Promise<ErrorEnvelopeBody> {
  const text = await response.text();
  expect({ status: response.status, text }).toEqual({ status: errorTable[code].status, text });
  const body = JSON.parse(text) as ErrorEnvelopeBody;
  expect(body.code).toBe(code);
  expect(body.message).not.toBe("");
  expect(body.correlation_id).toBe(response.headers.get("x-correlation-id") ?? "");
  return body;
}

describe("a field of a wrong type", () => {
  const wrong: readonly unknown[] = [null, true, 7.5, "\u0001", [], {}, [7], { x: 1 }];
  for (const [field, schema] of Object.entries(TaskRequest.properties)) {
    test(`${field} is named in the refusal`, async () => {
      const refused = wrong.filter((value) => !Value.Check(schema, value));
      expect(refused.length).toBeGreaterThan(0);
      for (const value of refused) {
        const given = ["prompt", "messages", "inputs"].includes(field) ? {} : { prompt: "a" };
        const response = await send(JSON.stringify({ ...given, [field]: value }));
        const { details } = await expectRefused(response, "INVALID_PARAMS");
        const at = String((details as Record<string, unknown> | undefined)?.field);
        expect({ value, at: at.split(".")[0] }).toEqual({ value, at: field });
      }
    });
  }
});

describe("a request that is refused", () => {
  const table: readonly (readonly [string, ErrorCode, unknown, string])[] = [
    ["an unknown field", "INVALID_PARAMS", { prompt: "a", promt: "b" }, 'Did you mean "prompt"?'],
    ["an unknown field below", "INVALID_PARAMS", { prompt: "a", sampling: { top: 1 } }, "sampling.top"],
    [
      "a grammar that would crash the engine's parser",
      "INVALID_PARAMS",
      { prompt: "a", sampling: { grammar: `root ::= ${"(".repeat(20_000)}"a"${")".repeat(20_000)}` } },
      "nests deeper than 64",
    ],
    ["an unknown model", "INVALID_PARAMS", { prompt: "a", model_ref: "word" }, "the nearest is words"],
    [
      "an unknown pool",
      "INVALID_PARAMS",
      { prompt: "a", placement: { mode: "pin", pin_pool_id: "wrds" } },
      "words",
    ],
    ["a ctx beyond the pool's", "INVALID_PARAMS", { prompt: "a", ctx: 513 }, "512"],
    ["max_tokens beyond the context", "INVALID_PARAMS", { prompt: "a", max_tokens: 512 }, "ask for fewer"],
    [
      "prompt and max_tokens beyond the context",
      "INVALID_PARAMS",
      { prompt: "a ".repeat(300), max_tokens: 300 },
      "at most",
    ],
    ["nothing at all", "INVALID_PARAMS", {}, "exactly one of"],
    ["a deadline that is over", "DEADLINE_UNMET", { prompt: "a", deadline_ms: 0 }, "has passed"],
    ["__proto__", "INVALID_PARAMS", JSON.parse('{"prompt":"a","__proto__":{"x":1}}'), "There is no field"],
  ];
  for (const [name, code, body, part] of table) {
    test(`${name}: ${part}`, async () => {
      const { message } = await expectRefused(await send(JSON.stringify(body)), code);
      expect(message).toContain(part);
    });
  }

  test("bytes that are not UTF-8", async () => {
    const body = Buffer.concat([Buffer.from('{"prompt":"'), Buffer.from([0xc3, 0x28]), Buffer.from('"}')]);
    await expectRefused(await send(new Uint8Array(body)), "INVALID_PARAMS");
  });

  test("a number that is too large for a number, wherever it stands", async () => {
    const id = "0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e";
    for (const body of [
      '{"prompt":"a","seed":1e999}',
      `{"prompt":"a","task_id":"${id}","sampling":{"json_schema":{"maximum":1e999}}}`,
    ])
      await expectRefused(await send(body), "INVALID_PARAMS");
  });

  test("two megabytes, announced and in chunks", async () => {
    const body = JSON.stringify({ prompt: "x".repeat(2 * 1024 * 1024) });
    await expectRefused(await send(body), "PAYLOAD_TOO_LARGE");
    const stream = new ReadableStream({
      start(controller) {
        controller.enqueue(new TextEncoder().encode(body));
        controller.close();
      },
    });
    await expectRefused(await send(stream), "PAYLOAD_TOO_LARGE");
  });

  test("another type than JSON", async () => {
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
      await expectRefused(await send('{"prompt":"a"}', { ...json, "content-type": type }), "INVALID_PARAMS");
  });
});

describe("ten thousand requests out of a seed", () => {
  const total = 10_000;
  const lanes = 12;
  /** A request that takes longer hangs: the slowest answer is a few milliseconds. */
  const patienceMs = 10_000;
  const growthBytesMax = 96 * 1024 * 1024;

  test("are each answered with an envelope or taken, and leave nothing behind", async () => {
    const seed = Number(process.env.BAD_INPUT_SEED ?? 20261121);
    console.log(`bad input: BAD_INPUT_SEED=${seed}`);
    const random = randomFrom(seed);
    const statuses = new Map<number, number>();
    let sent = 0;
    let warmBytes = 0;
    const lane = async (): Promise<void> => {
      while (sent < total) {
        const nth = sent;
        sent += 1;
        if (nth === total / 5) warmBytes = settledRss();
        const request = nextRequest(random);
        try {
          const status = await exchange(request);
          statuses.set(status, (statuses.get(status) ?? 0) + 1);
        } catch (cause) {
          throw new Error(`seed ${seed}, request ${nth}: ${shown(request)}`, { cause });
        }
      }
    };
    await Promise.all(Array.from({ length: lanes }, lane));
    const grownBytes = settledRss() - warmBytes;
    console.log(
      `bad input: ${[...statuses]
        .sort()
        .map(([status, count]) => `${count} × ${status}`)
        .join(", ")}; ` + `resident memory +${Math.round(grownBytes / 1024 / 1024)} MiB after warming up`,
    );
    // The mutations are neither all harmless nor all fatal.
    expect(statuses.get(202) ?? 0).toBeGreaterThan(total / 100);
    expect(statuses.get(400) ?? 0).toBeGreaterThan(total / 4);
    expect(grownBytes).toBeLessThan(growthBytesMax);
    // It still works.
    const response = await send('{"prompt":"a","max_tokens":2}', { ...json, accept: "text/event-stream" });
    expect(await response.text()).toContain("event: end");
    const ready = await fetch(`${daemon.url}/readyz`);
    expect(ready.status).toBe(200);
  }, 120_000);

  function settledRss(): number {
    Bun.gc(true);
    return process.memoryUsage.rss();
  }

  /** Sends it, holds the answer to the rules, cancels what was taken. Returns the status. */
  async function exchange({ method, path, headers, body }: MutatedRequest): Promise<number> {
    const response = await fetch(daemon.url + path, {
      method,
      headers: { "x-api-key": keys.alice, ...headers },
      ...(body === null ? {} : { body }),
      signal: AbortSignal.timeout(patienceMs),
    });
    const { status } = response;
    expect(response.headers.get("x-correlation-id")).toMatch(/^[A-Za-z0-9._:-]{1,128}$/);
    const text = await response.text();
    if (status >= 400) {
      const envelope = JSON.parse(text) as ErrorEnvelopeBody;
      expect({ status, text }).toEqual({ status: errorTable[envelope.code].status, text });
      expect(status).toBeLessThan(500);
      expect(envelope.correlation_id).toBe(response.headers.get("x-correlation-id") ?? "");
    } else if (method === "POST" && path === "/v1/tasks") {
      const streamed = response.headers.get("x-task-id");
      if (streamed !== null) expect(text).toMatch(/event: (?:end|error)\ndata: [^\n]*\n\n$/);
      const taskId = streamed ?? (JSON.parse(text) as { task_id: string }).task_id;
      const canceled = await fetch(`${daemon.url}/v1/tasks/${taskId}/cancel`, {
        method: "POST",
        headers: { "x-api-key": keys.alice },
        signal: AbortSignal.timeout(patienceMs),
      });
      expect(canceled.status).toBe(204);
      const seen = await fetch(`${daemon.url}/v1/tasks/${taskId}`, { headers: { "x-api-key": keys.alice } });
      // Gone already: a run may be older than its retention.
      expect([200, 404]).toContain(seen.status);
      await seen.text();
    }
    return status;
  }

  const shown = ({ method, path, headers, body }: MutatedRequest): string =>
    `${method} ${path} ${JSON.stringify(headers)} ${JSON.stringify(
      Buffer.from(body ?? [])
        .toString("latin1")
        .slice(0, 600),
    )}`;
});
