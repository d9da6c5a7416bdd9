/** Who may ask, and how often: keys, modes of authentication and rates on real sockets. */
import { afterAll, describe, expect, test } from "bun:test";
import type { ErrorEnvelopeBody } from "../../src/api/schema/errors.ts";
import type { VerifiedKey } from "../../src/app/middleware/auth.ts";
import { RateLimiter } from "../../src/app/middleware/limits.ts";
import { isOrchestratorError } from "../../src/domain/errors.ts";
import { sendRaw } from "../support/raw-http.ts";
import { slowKey, startTestApp, testKey } from "../support/test-app.ts";

const required = startTestApp();
const loopbackOpen = startTestApp({ auth: { mode: "loopback-open" } });
const off = startTestApp({ auth: { mode: "off" } });
afterAll(() => Promise.all([required.stop(), loopbackOpen.stop(), off.stop()]));

const statusOf = async (url: string, headers: Record<string, string> = {}): Promise<string> => {
  const response = await fetch(url, { headers });
  const text = await response.text();
  return response.ok
    ? String(response.status)
    : `${response.status} ${(JSON.parse(text) as ErrorEnvelopeBody).code}`;
};

describe("a key is required", () => {
  test.each([
    ["none", {}, "401 UNAUTHORIZED"],
    ["X-API-Key", { "x-api-key": testKey }, "200"],
    ["Bearer", { authorization: `Bearer ${testKey}` }, "200"],
    ["bearer in lower case", { authorization: `bearer  ${testKey}` }, "200"],
    ["an empty key", { "x-api-key": "" }, "401 UNAUTHORIZED"],
    ["another scheme", { authorization: `Basic ${btoa(`x:${testKey}`)}` }, "401 UNAUTHORIZED"],
    ["Bearer without a key", { authorization: "Bearer" }, "401 UNAUTHORIZED"],
    ["a wrong key", { "x-api-key": `${testKey}x` }, "403 FORBIDDEN"],
    ["a wrong bearer", { authorization: "Bearer wrong" }, "403 FORBIDDEN"],
    [
      "a wrong key beside a right bearer",
      { "x-api-key": "wrong", authorization: `Bearer ${testKey}` },
      "403 FORBIDDEN",
    ],
    ["a key beyond reason", { "x-api-key": "x".repeat(4000) }, "403 FORBIDDEN"],
  ])("%s", async (_name, headers, expected) => {
    expect(await statusOf(`${required.url}/v1/pools`, headers)).toBe(expected);
  });

  test("also for paths that do not exist: a stranger learns nothing", async () => {
    expect(await statusOf(`${required.url}/v1/nothing`)).toBe("401 UNAUTHORIZED");
    expect((await fetch(`${required.url}/v1/pools`, { method: "DELETE" })).status).toBe(401);
  });

  test.each(["/metrics", "/healthz", "/docs", "/docs/json", "/docs/ui.js", "/docs/ui.css", "/docs/start.js"])(
    "not for %s, and a wrong one there does not matter",
    async (path) => {
      expect(await statusOf(required.url + path)).toBe("200");
      expect(await statusOf(required.url + path, { "x-api-key": "wrong" })).toBe("200");
    },
  );

  test("401 names the scheme, and neither answer repeats the key", async () => {
    const none = await fetch(`${required.url}/v1/pools`);
    expect(none.headers.get("www-authenticate")).toBe("Bearer");
    const wrong = await fetch(`${required.url}/v1/pools`, { headers: { "x-api-key": "sk-wrong-one" } });
    expect(await wrong.text()).not.toContain("sk-wrong-one");
  });
});

describe("loopback-open", () => {
  test("asks no key of this machine, and checks one that is sent", async () => {
    const url = `${loopbackOpen.url}/v1/pools`;
    expect(await statusOf(url)).toBe("200");
    expect(await statusOf(url, { "x-api-key": testKey })).toBe("200");
    expect(await statusOf(url, { "x-api-key": "wrong" })).toBe("403 FORBIDDEN");
  });

  test.each(["x-forwarded-for", "forwarded", "x-real-ip"])(
    "asks one of what came through a proxy (%s)",
    async (header) => {
      expect(await statusOf(`${loopbackOpen.url}/v1/pools`, { [header]: "203.0.113.9" })).toBe(
        "401 UNAUTHORIZED",
      );
    },
  );
});

describe.each([
  ["loopback-open", loopbackOpen],
  ["off", off],
] as const)("%s against browsers", (_mode, server) => {
  const get = async (headers: string): Promise<number> =>
    (await sendRaw(server.port, `GET /v1/pools HTTP/1.1\r\n${headers}Connection: close\r\n\r\n`)).status;

  test.each(["localhost", "localhost:8080", "LOCALHOST", "127.0.0.1:9", "127.9.9.9", "[::1]:8080"])(
    "Host %s is this machine",
    async (host) => {
      expect(await get(`Host: ${host}\r\n`)).toBe(200);
    },
  );

  test.each([
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "[::2]",
    "10.0.0.1",
    "localhost@evil.example",
    "",
  ])("Host %p is not: its name may have been pointed here", async (host) => {
    expect(await get(`Host: ${host}\r\n`)).toBe(403);
  });

  test("a page of another origin is refused, one of this machine is not", async () => {
    expect(await get("Host: localhost\r\nOrigin: https://evil.example\r\n")).toBe(403);
    expect(await get("Host: localhost\r\nOrigin: null\r\n")).toBe(403);
    expect(await get("Host: localhost\r\nOrigin: http://localhost:3000\r\n")).toBe(200);
  });

  test("what needs no key is not concerned", async () => {
    const answer = await sendRaw(
      server.port,
      "GET /healthz HTTP/1.1\r\nHost: box.lan\r\nConnection: close\r\n\r\n",
    );
    expect(answer.status).toBe(200);
  });
});

describe("rates", () => {
  test("a key that asks too often gets 429 with the time to wait, and gets through after it", async () => {
    const ask = () => fetch(`${required.url}/v1/pools`, { headers: { "x-api-key": slowKey } });
    expect([(await ask()).status, (await ask()).status]).toEqual([200, 200]);
    const refused = await ask();
    expect(refused.status).toBe(429);
    expect(refused.headers.get("retry-after")).toBe("3");
    expect(refused.headers.get("x-backoff-ms")).toBe("2500");
    expect(await refused.json()).toMatchObject({
      code: "RATE_LIMITED",
      retriable: true,
      retry_after_ms: 2500,
      policy_label: "rate",
    });
    expect(required.limited).toEqual(["rate"]);
    expect(await statusOf(`${required.url}/v1/pools`, { "x-api-key": testKey })).toBe("200");
    expect(await statusOf(`${required.url}/healthz`, { "x-api-key": slowKey })).toBe("200");
    required.clock.now += 2500;
    expect((await ask()).status).toBe(200);
    expect((await ask()).status).toBe(429);
  });

  test("buckets are bounded: the one that was idle longest goes", () => {
    const limiter = new RateLimiter(2);
    const key = (keyId: string): VerifiedKey => ({
      keyId,
      admin: false,
      rate: { perSecond: 0.001, burst: 1 },
    });
    const admitted = (keyId: string): boolean => {
      try {
        limiter.admit(key(keyId), 0);
        return true;
      } catch (error) {
        expect(isOrchestratorError(error) && error.code).toBe("RATE_LIMITED");
        return false;
      }
    };
    expect([admitted("a"), admitted("b"), admitted("a"), admitted("c")]).toEqual([true, true, false, true]);
    expect(limiter.size).toBe(2);
    // b was forgotten and starts anew, a (used later) was not until c and b came.
    expect([admitted("b"), limiter.size]).toEqual([true, 2]);
  });

  test("a key without a rate has no bucket", () => {
    const limiter = new RateLimiter(2);
    for (let i = 0; i < 100; i += 1) limiter.admit({ keyId: `k${i}`, admin: false, rate: null }, 0);
    expect(limiter.size).toBe(0);
  });
});
