/** /v1/sessions through the real router: whose session it is, what is told of it, and what deleting does (ORCHD-SESS-2). */
import { expect, test } from "bun:test";
import { RequestContexts } from "../../src/api/request-context.ts";
import { sessionsRoutes } from "../../src/api/sessions.ts";
import { createRouter } from "../../src/app/router.ts";
import { CountingEntropy, RecordingLog } from "../support/test-app.ts";
import { atMost, SessionsBench, sessionA, tokens } from "./sessions-bench.ts";

const keyIds: Readonly<Record<string, { keyId: string; admin: boolean }>> = {
  owner: { keyId: "default", admin: false },
  other: { keyId: "other", admin: false },
  admin: { keyId: "root", admin: true },
};

function serve(bench: SessionsBench) {
  const contexts = new RequestContexts();
  const { clock, sessions } = bench;
  const app = createRouter({
    contexts,
    clock,
    entropy: new CountingEntropy(),
    log: new RecordingLog(),
    auth: {
      mode: "required",
      verify: (presented) => ({ ...(keyIds[presented] ?? { keyId: "x", admin: false }), rate: null }),
      local: { keyId: "local", admin: true, rate: null },
    },
    limited: () => undefined,
    maxBodyBytes: () => 1024,
    plugins: [sessionsRoutes({ sessions, contexts, clock })],
  });
  return (method: string, key: string, id = sessionA): Promise<Response> =>
    app.handle(new Request(`http://localhost/v1/sessions/${id}`, { method, headers: { "x-api-key": key } }));
}

test("its owner and an admin see it, nobody else learns that it is there", async () => {
  const bench = new SessionsBench({ budget: { ...atMost(100), cost: 1.5 } });
  const ask = serve(bench);
  expect((await ask("GET", "owner")).status).toBe(404);
  bench.settle(bench.admit({ tokens: 40, timeMs: 100, cost: 1 }), { tokens: 30, timeMs: 250, cost: 0.75 });
  await bench.clock.advance(60_000);
  const answer = await ask("GET", "owner", sessionA.toUpperCase());
  expect(answer.status).toBe(200);
  expect(await answer.json()).toEqual({
    session_id: sessionA,
    ttl_ms_remaining: 540_000,
    turns: 1,
    kv_bytes: null,
    kv_warmth: false,
    tokens_budget_remaining: 70,
    time_budget_remaining_ms: null,
    cost_budget_remaining: 0.75,
  });
  expect((await ask("GET", "admin")).status).toBe(200);
  for (const method of ["GET", "DELETE"]) {
    const refused = await ask(method, "other");
    expect([refused.status, await refused.json()]).toMatchObject([404, { code: "NOT_FOUND" }]);
  }
  expect((await ask("GET", "owner", "not-a-uuid")).status).toBe(400);
});

test("what the engine said of its context is told, unknown as null", async () => {
  const bench = new SessionsBench();
  const ask = serve(bench);
  bench.admit(tokens(1));
  const kv = { warm: true, cachedTokens: 12, kvBytes: 36_864, replicaId: "demo/0", slot: 0 };
  bench.sessions.noteKv(sessionA, kv);
  expect(await (await ask("GET", "owner")).json()).toMatchObject({ kv_bytes: 36_864, kv_warmth: true });
  bench.sessions.noteKv(sessionA, { ...kv, warm: false, kvBytes: null });
  expect(await (await ask("GET", "owner")).json()).toMatchObject({ kv_bytes: null, kv_warmth: false });
});

test("deleting answers once its tasks were told; then it is unknown", async () => {
  const bench = new SessionsBench();
  const ask = serve(bench);
  const task = bench.admit(tokens(1));
  const answer = await ask("DELETE", "owner");
  expect([answer.status, await answer.text()]).toEqual([204, ""]);
  expect(bench.removed).toMatchObject([{ sessionId: sessionA, reason: "deleted", taskIds: [task.taskId] }]);
  expect((await ask("GET", "owner")).status).toBe(404);
  expect((await ask("DELETE", "owner")).status).toBe(404);
});
