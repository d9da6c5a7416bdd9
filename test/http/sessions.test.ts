/**
 * Sessions and their budgets over real sockets, many tasks at once (ORCHD-BUDG-1): what is accepted never exceeds
 * the budget, and no task is refused that would fit. How the ledger counts is tested in test/services.
 */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { SessionViewBody } from "../../src/api/schema/sessions.ts";
import type { TaskViewBody } from "../../src/api/schema/tasks.ts";
import { keys, type RunningDaemon, type Settings, startDaemon } from "../support/running-daemon.ts";
import { waitFor } from "../support/wait.ts";

setDefaultTimeout(30_000);

const concurrent = 500;
const fitting = 100;
const maxTokens = 8;

const pool = (id: string, mock: Settings): Settings => ({
  id,
  engine: "mock",
  model: `mock:${id}`,
  slots: 8,
  queue: { capacity: concurrent },
  mock: { token_ms: 0, prefill_ms_per_token: 0, load_ms: 0, ...mock },
});

const daemon: RunningDaemon = await startDaemon({
  sessions: { max_turns: 2 * concurrent },
  pools: [pool("waiting", { load_ms: 60_000 }), pool("running", {}), pool("slow", { token_ms: 1 })],
});
afterAll(() => daemon.close());

const ask = (path: string, init: RequestInit = {}): Promise<Response> =>
  fetch(daemon.url + path, {
    ...init,
    headers: { "x-api-key": keys.alice, "content-type": "application/json", ...init.headers },
  });

const post = (poolId: string, sessionId: string, budgetTokens: number): Promise<Response> =>
  ask("/v1/tasks", {
    method: "POST",
    body: JSON.stringify({
      prompt: "Once upon a time",
      max_tokens: maxTokens,
      session_id: sessionId,
      budget: { tokens: budgetTokens },
      placement: { mode: "pin", pin_pool_id: poolId },
    }),
  });

const view = async <T>(path: string): Promise<T> => (await (await ask(path)).json()) as T;
const remainingOf = async (sessionId: string): Promise<number> =>
  (await view<SessionViewBody>(`/v1/sessions/${sessionId}`)).tokens_budget_remaining ?? Number.NaN;

/** What one such task reserves, as one says that does not start. */
async function reservedByOne(): Promise<number> {
  const sessionId = crypto.randomUUID();
  const response = await post("waiting", sessionId, 10_000);
  expect(response.status).toBe(202);
  const left = Number(response.headers.get("x-budget-tokens-remaining"));
  expect((await ask(`/v1/sessions/${sessionId}`, { method: "DELETE" })).status).toBe(204);
  return 10_000 - left;
}

interface Flood {
  readonly sessionId: string;
  readonly accepted: readonly string[];
  /** What each 202 said is left. */
  readonly left: readonly number[];
  readonly refused: readonly Readonly<Record<string, unknown>>[];
}

/** All at once, a connection each. */
async function flood(poolId: string, budgetTokens: number): Promise<Flood> {
  const sessionId = crypto.randomUUID();
  const answers = await Promise.all(
    Array.from({ length: concurrent }, async () => {
      const response = await post(poolId, sessionId, budgetTokens);
      const left = Number(response.headers.get("x-budget-tokens-remaining") ?? Number.NaN);
      return { status: response.status, left, body: (await response.json()) as Record<string, unknown> };
    }),
  );
  const taken = answers.filter(({ status }) => status === 202);
  return {
    sessionId,
    accepted: taken.map(({ body }) => String(body.task_id)),
    left: taken.map(({ left }) => left),
    refused: answers.filter(({ status }) => status !== 202).map(({ status, body }) => ({ status, ...body })),
  };
}

const tasksOf = (taskIds: readonly string[]): Promise<TaskViewBody[]> =>
  Promise.all(taskIds.map((id) => view<TaskViewBody>(`/v1/tasks/${id}`)));

describe(`${concurrent} tasks at once on one session with tokens for ${fitting}`, () => {
  test("while none ends, exactly those that fit are taken, the others told why", async () => {
    const one = await reservedByOne();
    expect(one).toBeGreaterThan(maxTokens);
    // One token short of one more.
    const { sessionId, accepted, left, refused } = await flood("waiting", fitting * one + one - 1);
    expect(accepted).toHaveLength(fitting);
    expect(new Set(accepted).size).toBe(fitting);
    expect(refused).toHaveLength(concurrent - fitting);
    for (const refusal of refused)
      expect(refusal).toMatchObject({
        status: 429,
        code: "BUDGET_EXHAUSTED",
        policy_label: "budget-tokens",
        retriable: false,
      });
    // Those that were taken in one turn are all told what is left behind it.
    expect(Math.min(...left)).toBe(one - 1);
    for (const remaining of left) expect((remaining - (one - 1)) % one).toBe(0);
    expect(await remainingOf(sessionId)).toBe(one - 1);

    // What never began was never spent: all of it comes back.
    expect((await ask(`/v1/tasks/${accepted[0]}/cancel`, { method: "POST" })).status).toBe(204);
    expect(await remainingOf(sessionId)).toBe(2 * one - 1);
    expect((await ask(`/v1/sessions/${sessionId}`, { method: "DELETE" })).status).toBe(204);
    for (const { state } of await tasksOf(accepted)) expect(state).toBe("canceled");
  });

  for (const poolId of ["running", "slow"])
    test(`while they run and settle (pool ${poolId}), at least those that fit are taken, and not a token too much is spent`, async () => {
      const one = await reservedByOne();
      const budget = fitting * one;
      const { sessionId, accepted, left, refused } = await flood(poolId, budget);
      for (const remaining of left) expect(remaining).toBeGreaterThanOrEqual(0);
      for (const refusal of refused) expect(refusal).toMatchObject({ code: "BUDGET_EXHAUSTED" });
      const ended = await waitFor(
        async () => {
          const tasks = await tasksOf(accepted);
          return tasks.every(({ state }) => state === "done") && tasks;
        },
        20_000,
        "all that was accepted is done",
      );
      const spent = ended.reduce((sum, { tokens_in, tokens_out }) => sum + (tokens_in ?? 0) + tokens_out, 0);
      expect(spent).toBeLessThanOrEqual(budget);
      expect(await remainingOf(sessionId)).toBe(budget - spent);
      console.info(
        `budget for ${fitting}, pool ${poolId}: ${accepted.length} taken, ${spent} of ${budget} tokens spent`,
      );
      // A refusal is right only where a task does not fit, and what settled early makes room for more.
      expect(accepted.length).toBeGreaterThanOrEqual(fitting);
      expect(accepted.length + refused.length).toBe(concurrent);
    });
});
