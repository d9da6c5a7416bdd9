/**
 * The ledger: sessions come, are used, expire and go (ORCHD-SESS-1); budgets of sessions, keys and tasks are never
 * overshot (ORCHD-BUDG-1, ORCHD-BUDG-2).
 */
import { describe, expect, test } from "bun:test";
import { isOrchestratorError, type OrchestratorError } from "../../src/domain/errors.ts";
import { limits } from "../../src/domain/limits.ts";
import type { StoredAllowance, StoredSession } from "../../src/ports/task-store.ts";
import { uuidOf } from "../support/stored-tasks.ts";
import { atMost, SessionsBench, sessionA, sessionB, tokens, unbounded } from "./sessions-bench.ts";

const minute = 60_000;

function thrown(run: () => void): OrchestratorError {
  try {
    run();
  } catch (error) {
    if (isOrchestratorError(error)) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

describe("a session", () => {
  test("is made by the first task that names it and belongs to that task's key", () => {
    const bench = new SessionsBench();
    expect(bench.sessions.find(sessionA, bench.nowMs)).toBeNull();
    bench.admit(tokens(10));
    expect(bench.sessions.find(sessionA, bench.nowMs)).toEqual({
      sessionId: sessionA,
      keyId: "default",
      ttlLeftMs: 600_000,
      turns: 1,
      kv: null,
      remaining: unbounded,
    });
    expect(bench.refusal(tokens(1), { keyId: "other" })).toBe("NOT_FOUND");
    expect(bench.sessions.remainingFor(bench.spec({ keyId: "other" }), bench.nowMs)).toBeNull();
  });

  test("has so many turns and no more; a refused one is none", () => {
    const bench = new SessionsBench({ turnsMax: 2, budget: atMost(100) });
    bench.settle(bench.admit(tokens(10)), tokens(10));
    expect(thrown(() => bench.admit(tokens(1000))).code).toBe("BUDGET_EXHAUSTED");
    bench.settle(bench.admit(tokens(10)), tokens(10));
    const refusal = thrown(() => bench.admit(tokens(10)));
    expect(refusal).toMatchObject({ code: "SESSION_EXHAUSTED", status: 409, retriable: false });
    expect(bench.counted).toEqual(["turn", "turn"]);
  });

  test("is forgotten by the timer when it was not used for its time, and leaves no timer", async () => {
    const bench = new SessionsBench();
    bench.settle(bench.admit(tokens(10)), tokens(10));
    await bench.clock.advance(599_999);
    expect(bench.sessions.size).toBe(1);
    await bench.clock.advance(1);
    expect(bench.sessions.size).toBe(0);
    expect(bench.removed).toEqual([{ sessionId: sessionA, reason: "ttl", taskIds: [] }]);
    expect(bench.clock.pendingTimers).toBe(0);
  });

  test("lives as long as a task of it, and its time begins with that task's end", async () => {
    const bench = new SessionsBench();
    const first = bench.admit(tokens(10));
    const second = bench.admit(tokens(10));
    await bench.clock.advance(60 * minute);
    bench.settle(first, tokens(10));
    await bench.clock.advance(60 * minute);
    bench.settle(second, tokens(10));
    await bench.clock.advance(9 * minute);
    expect(bench.sessions.find(sessionA, bench.nowMs)?.ttlLeftMs).toBe(minute);
    await bench.clock.advance(minute);
    expect(bench.sessions.size).toBe(0);
  });

  test("is not kept by refused requests nor by looks", async () => {
    const bench = new SessionsBench({ budget: atMost(100) });
    bench.settle(bench.admit(tokens(10)), tokens(10));
    await bench.clock.advance(6 * minute);
    const refusal = thrown(() => bench.admit(tokens(91)));
    expect(refusal).toMatchObject({ policyLabel: "budget-tokens", retryAfterMs: 4 * minute });
    bench.sessions.find(sessionA, bench.nowMs);
    await bench.clock.advance(4 * minute);
    expect(bench.sessions.size).toBe(0);
  });

  test("that has expired is gone for whoever asks, even before the timer comes", async () => {
    const bench = new SessionsBench();
    bench.settle(bench.admit(tokens(10)), tokens(10));
    bench.sessions.close();
    await bench.clock.advance(10 * minute);
    // Nobody's now: another key may begin one of this name.
    expect(bench.refusal(tokens(1), { keyId: "other" })).toBeNull();
    expect(bench.sessions.size).toBe(1);
    expect(bench.sessions.find(sessionA, bench.nowMs)).toBeNull();
    expect(bench.sessions.size).toBe(0);
  });

  test("expired sessions are forgotten a bounded number at a time, until none is left", async () => {
    const bench = new SessionsBench();
    const many = limits.sessionSweepMax * 2 + 1;
    for (let n = 0; n < many; n++)
      bench.settle(bench.admit(tokens(1), { sessionId: uuidOf(0x9000 + n) }), tokens(1));
    await bench.clock.advance(10 * minute);
    expect(bench.removed).toHaveLength(many);
    expect([bench.sessions.size, bench.clock.pendingTimers]).toEqual([0, 0]);
  });

  test("the one idle longest makes room; when all are in use, the next has to wait", () => {
    const bench = new SessionsBench();
    const named = (n: number) => ({ sessionId: uuidOf(0x9000 + n) });
    const kept = bench.admit(tokens(1), named(0));
    // Idle first, but in use again.
    bench.settle(bench.admit(tokens(1), named(1)), tokens(1));
    const idle = bench.admit(tokens(1), named(2));
    bench.settle(idle, tokens(1));
    bench.admit(tokens(1), named(1));
    for (let n = 3; n < limits.sessionsMax; n++) bench.admit(tokens(1), named(n));
    bench.admit(tokens(1), named(limits.sessionsMax));
    expect(bench.removed.map(({ sessionId, reason }) => [sessionId, reason])).toEqual([
      [idle.sessionId ?? "", "max"],
    ]);
    expect(bench.sessions.size).toBe(limits.sessionsMax);
    const refusal = thrown(() => bench.admit(tokens(1), { sessionId: sessionB }));
    expect(refusal).toMatchObject({ code: "ADMISSION_REJECT", retriable: true, policyLabel: "sessions" });
    // Those that there are go on, and one that becomes idle makes room.
    expect(bench.refusal(tokens(1), named(5))).toBeNull();
    bench.settle(kept, tokens(1));
    expect(bench.refusal(tokens(1), { sessionId: sessionB })).toBeNull();
  });

  test("that is deleted lets its live tasks settle, and its name stands for a new one", async () => {
    const bench = new SessionsBench({ budget: atMost(100) });
    const running = bench.admit(tokens(60));
    await bench.sessions.remove(sessionA);
    expect(bench.removed).toEqual([{ sessionId: sessionA, reason: "deleted", taskIds: [running.taskId] }]);
    bench.sessions.takeOps();
    const late = bench.admit(tokens(1), { sessionId: sessionB });
    await bench.sessions.remove(sessionB);
    bench.settle(late, tokens(1));
    // Nothing of it comes back with the end of its task.
    expect(bench.sessions.takeOps()).toEqual([{ kind: "session_removed", sessionId: sessionB }]);
    expect([bench.sessions.size, bench.clock.pendingTimers]).toEqual([0, 0]);
    bench.admit(tokens(70), { keyId: "other" });
    bench.settle(running, tokens(60));
    expect(bench.sessions.find(sessionA, bench.nowMs)).toMatchObject({ keyId: "other", turns: 1, kv: null });
    expect(bench.left()).toBe(30);
    await bench.sessions.remove(sessionB);
    expect(bench.removed).toHaveLength(2);
  });
});

describe("budgets", () => {
  test("of a session: the default or what its first task asks, lowered by later ones", () => {
    const bench = new SessionsBench({ budget: atMost(100) });
    bench.admit(tokens(10), { budget: atMost(1000) });
    expect(bench.left()).toBe(90);
    expect(bench.refusal(tokens(10), { budget: atMost(15) })).toBe("BUDGET_EXHAUSTED budget-tokens");
    expect(bench.left()).toBe(90);
    const task = bench.admit(tokens(10), { budget: atMost(50) });
    expect(bench.sessions.remaining(task.taskId)?.tokens).toBe(30);
    bench.settle(task, tokens(4));
    expect(bench.left()).toBe(36);
  });

  test("every dimension has its policy, and is counted when a submitter is refused", () => {
    const bench = new SessionsBench({ budget: { tokens: 10, timeMs: 10, cost: 0.5 } });
    const cases = [
      [{ tokens: 11, timeMs: 0, cost: 0 }, "tokens"],
      [{ tokens: 0, timeMs: 10.5, cost: 0 }, "time"],
      [{ tokens: 0, timeMs: 0, cost: 0.500001 }, "cost"],
    ] as const;
    for (const [amounts, name] of cases) {
      const refusal = bench.sessions.check(bench.spec(), amounts, bench.nowMs);
      expect(refusal).toMatchObject({
        code: "BUDGET_EXHAUSTED",
        policyLabel: `budget-${name}`,
        retriable: false,
      });
      if (refusal !== null) bench.sessions.noteRefusal(refusal);
    }
    const other = bench.sessions.check(bench.spec({ keyId: "other" }), tokens(1), bench.nowMs);
    expect(other).toBeNull();
    expect(bench.counted).toEqual(["refused tokens", "refused time", "refused cost"]);
    expect(bench.sessions.size).toBe(0);
  });

  test("what took longer than was reserved is spent, and the next finds that much less", () => {
    const bench = new SessionsBench({ budget: { ...unbounded, timeMs: 1000 } });
    const task = bench.admit({ tokens: 1, timeMs: 400, cost: 0 });
    bench.settle(task, { tokens: 1, timeMs: 5000, cost: 0 });
    expect(bench.sessions.find(sessionA, bench.nowMs)?.remaining.timeMs).toBe(0);
    expect(bench.refusal({ tokens: 1, timeMs: 1, cost: 0 })).toBe("BUDGET_EXHAUSTED budget-time");
  });

  test("of a task without a session bounds that task alone", () => {
    const bench = new SessionsBench({ budget: atMost(5) });
    const alone = { sessionId: null, budget: atMost(20) };
    expect(bench.refusal(tokens(21), alone)).toBe("BUDGET_EXHAUSTED budget-tokens");
    const task = bench.admit(tokens(15), alone);
    expect(bench.sessions.remaining(task.taskId)).toEqual(atMost(5));
    expect(bench.sessions.remainingFor(bench.spec(alone), bench.nowMs)).toEqual(atMost(20));
    expect(bench.refusal(tokens(20), alone)).toBeNull();
    bench.settle(task, tokens(15));
    expect(bench.sessions.remaining(task.taskId)).toBeNull();
    expect(bench.sessions.size).toBe(0);
  });

  test("a task that nothing bounds has nothing to tell", () => {
    const bench = new SessionsBench();
    const task = bench.admit(tokens(1e6), { sessionId: null });
    expect(bench.sessions.remaining(task.taskId)).toBeNull();
    bench.settle(task, tokens(1));
    bench.sessions.undo(task.taskId);
    expect(bench.sessions.takeOps()).toEqual([]);
  });
});

describe("the allowance of a key", () => {
  const hourly = { default: { budget: atMost(100), windowMs: 60 * minute } };

  test("is one for all its sessions and tasks: a new session is not new money", () => {
    const bench = new SessionsBench({}, hourly);
    const first = bench.admit(tokens(60));
    const second = bench.admit(tokens(30), { sessionId: null });
    const refusal = thrown(() => bench.admit(tokens(11), { sessionId: sessionB }));
    const startMs = Math.floor(bench.nowMs / (60 * minute)) * 60 * minute;
    expect(refusal).toMatchObject({
      code: "BUDGET_EXHAUSTED",
      policyLabel: "budget-tokens",
      retryAfterMs: startMs + 60 * minute - bench.nowMs,
      details: { budget_of: "key", remaining: 10 },
    });
    // What was refused made no session.
    expect(bench.sessions.find(sessionB, bench.nowMs)).toBeNull();
    expect(bench.refusal(tokens(101), { keyId: "unbounded", sessionId: null })).toBeNull();
    bench.settle(first, tokens(10));
    bench.settle(second, tokens(0));
    expect(bench.left()).toBe(90);
  });

  test("begins anew with the next window; a task is charged to the one that it was accepted in", async () => {
    const bench = new SessionsBench({}, hourly);
    const long = bench.admit(tokens(100), { sessionId: null });
    await bench.clock.advance(60 * minute);
    const next = bench.admit(tokens(100), { sessionId: null });
    bench.settle(long, tokens(100));
    expect(bench.refusal(tokens(1), { sessionId: null })).toBe("BUDGET_EXHAUSTED budget-tokens");
    bench.settle(next, tokens(70));
    expect(bench.refusal(tokens(30), { sessionId: null })).toBeNull();
    expect(bench.refusal(tokens(31), { sessionId: null })).toBe("BUDGET_EXHAUSTED budget-tokens");
  });

  test("and the session: the lesser of the two is told", () => {
    const bench = new SessionsBench({ budget: { ...atMost(500), cost: 2 } }, hourly);
    const task = bench.admit({ tokens: 40, timeMs: 5, cost: 0.5 });
    expect(bench.sessions.remaining(task.taskId)).toEqual({ tokens: 60, timeMs: null, cost: 1.5 });
  });
});

describe("an admission that could not be stored", () => {
  test("has never been: no session, no turn, no reservation, no use", async () => {
    const bench = new SessionsBench(
      { budget: atMost(100) },
      { default: { budget: atMost(100), windowMs: minute } },
    );
    const task = bench.admit(tokens(60));
    bench.sessions.takeOps();
    bench.sessions.undo(task.taskId);
    expect([bench.sessions.size, bench.clock.pendingTimers]).toEqual([0, 0]);
    expect(bench.refusal(tokens(100))).toBeNull();
    expect(bench.sessions.takeOps()).toContainEqual({ kind: "session_removed", sessionId: sessionA });
    expect(bench.removed).toEqual([]);
  });

  test("several of one turn are undone in reverse", async () => {
    const bench = new SessionsBench({ budget: atMost(100) });
    bench.settle(bench.admit(tokens(10)), tokens(10));
    const before = bench.sessions.find(sessionA, bench.nowMs);
    await bench.clock.advance(minute);
    const tasks = [80, 40, 20].map((n) => bench.admit(tokens(1), { budget: atMost(n) }));
    for (const task of tasks.reverse()) bench.sessions.undo(task.taskId);
    expect(bench.sessions.find(sessionA, bench.nowMs)).toEqual(
      before && { ...before, ttlLeftMs: 9 * minute },
    );
  });

  test("but ended in the same turn stays a turn", () => {
    const bench = new SessionsBench({ budget: atMost(100) });
    const task = bench.admit(tokens(60));
    bench.settle(task, tokens(0));
    bench.sessions.undo(task.taskId);
    expect(bench.sessions.find(sessionA, bench.nowMs)).toMatchObject({ turns: 1 });
    expect(bench.left()).toBe(100);
  });
});

describe("the store", () => {
  const allowed = { default: { budget: atMost(1000), windowMs: 60 * minute } };

  test("hears what changed, once", () => {
    const bench = new SessionsBench({ budget: atMost(100) }, allowed);
    const task = bench.admit(tokens(60), { budget: atMost(80) });
    bench.admit(tokens(5));
    const [saved, ...none] = bench.sessions.takeOps();
    expect(none).toEqual([]);
    expect(saved).toMatchObject({
      kind: "session_saved",
      session: {
        sessionId: sessionA,
        keyId: "default",
        turns: 2,
        budget: { tokens: 80 },
        spent: { tokens: 0 },
      },
    });
    expect(bench.sessions.takeOps()).toEqual([]);
    bench.settle(task, { tokens: 7, timeMs: 3, cost: 0.25 });
    expect(bench.sessions.takeOps().map(({ kind }) => kind)).toEqual(["allowance_saved", "session_saved"]);
  });

  test("gives sessions, allowances and reservations back after a restart", async () => {
    const old = new SessionsBench({ budget: atMost(100) }, allowed);
    old.settle(old.admit(tokens(60)), tokens(20));
    const running = old.admit(tokens(50));
    const free = old.admit(tokens(30), { sessionId: null, budget: atMost(31) });
    const sessions: StoredSession[] = [];
    const allowances: StoredAllowance[] = [];
    for (const op of old.sessions.takeOps()) {
      if (op.kind === "session_saved") sessions.push(op.session);
      if (op.kind === "allowance_saved") allowances.push(op.allowance);
    }
    const bench = new SessionsBench({ budget: atMost(7) }, allowed, old.clock);
    await old.clock.advance(minute);
    const live = [
      { spec: running, amounts: tokens(50) },
      { spec: free, amounts: tokens(30) },
    ];
    bench.sessions.recover(sessions, allowances, live, bench.nowMs);
    expect(bench.left()).toBe(30);
    expect(bench.sessions.remaining(free.taskId)?.tokens).toBe(1);
    expect(bench.refusal(tokens(901), { sessionId: null })).toBe("BUDGET_EXHAUSTED budget-tokens");
    expect(bench.refusal(tokens(900), { sessionId: null })).toBeNull();
    await bench.clock.advance(60 * minute);
    expect(bench.sessions.size).toBe(1);
    bench.settle(running, tokens(50));
    expect(bench.left()).toBe(30);
    expect(bench.sessions.find(sessionA, bench.nowMs)?.turns).toBe(2);
  });

  test("what expired while nobody ran is forgotten at once, what did not goes on in its order", async () => {
    const bench = new SessionsBench();
    const stored = (sessionId: string, ageMs: number): StoredSession => ({
      sessionId,
      keyId: "default",
      createdMs: 0,
      lastSeenMs: bench.nowMs - ageMs,
      turns: 1,
      budget: unbounded,
      spent: { tokens: 0, timeMs: 0, cost: 0 },
    });
    // The clock was set back meanwhile: as if it had been used now.
    const future = uuidOf(0xf);
    const all = [stored(future, -minute), stored(sessionB, 9 * minute), stored(sessionA, 10 * minute)];
    bench.sessions.recover(all, [], [], bench.nowMs);
    expect(bench.sessions.takeOps()).toEqual([{ kind: "session_removed", sessionId: sessionA }]);
    await bench.clock.advance(minute);
    expect(bench.removed.map(({ sessionId }) => sessionId)).toEqual([sessionA, sessionB]);
    await bench.clock.advance(9 * minute);
    expect([bench.sessions.size, bench.clock.pendingTimers]).toEqual([0, 0]);
  });

  test("what was spent in a window that is over is not asked for any more", () => {
    const bench = new SessionsBench({}, allowed);
    const past = Math.floor(bench.nowMs / (60 * minute)) * 60 * minute - 60 * minute;
    const spent = { tokens: 1000, timeMs: 0, cost: 0 };
    const known = (keyId: string) => ({ keyId, windowStartMs: past, spent });
    bench.sessions.recover([], [known("default"), known("no longer configured")], [], bench.nowMs);
    expect(bench.refusal(tokens(1000), { sessionId: null })).toBeNull();
  });

  test("a task whose session was deleted while it ran is nobody's turn after a restart", () => {
    const bench = new SessionsBench({ budget: atMost(100) });
    const orphan = bench.spec();
    bench.sessions.recover([], [], [{ spec: orphan, amounts: tokens(60) }], bench.nowMs);
    expect(bench.sessions.remaining(orphan.taskId)).toBeNull();
    bench.settle(orphan, tokens(60));
    expect(bench.sessions.size).toBe(0);
  });
});
