/** Tasks that wait for a certain replica: exclusive ones for one of their own, turns of a session for its KV. */
import { describe, expect, test } from "bun:test";
import { limits } from "../../src/domain/limits.ts";
import type { StartReason } from "../../src/domain/scheduler-protocol.ts";
import { Bench, lost } from "./scheduler-bench.ts";
import { batchMaxWaitMs } from "./scheduler-model.ts";

describe("an exclusive task", () => {
  const strict = { exclusive: true };

  test("runs alone: its replica is reserved, drained, held and given back", () => {
    const bench = new Bench();
    bench.ready(2);
    bench.admit("a");
    expect(bench.admit("x", strict).said).toEqual([]);
    expect(bench.admit("b").said).toEqual([]);
    expect(bench.ended("a")).toEqual(["finish a done", "start x"]);
    expect(bench.admit("c").said).toEqual([]);
    expect(bench.ended("x")).toEqual(["finish x done", "start b", "start c"]);
  });

  test("lets others go on elsewhere, and no more than exclusiveMax replicas are withheld", () => {
    const bench = new Bench("reject", { exclusiveMax: 1 });
    bench.ready(1, "p-0");
    bench.ready(2, "p-1", 2);
    bench.admit("a");
    bench.admit("b");
    // One slot is left: p-1's. The least busy is reserved; a runs on p-0 and b on p-1.
    bench.admit("x", strict);
    const reserved = () =>
      [...(bench.state.pools.get("p")?.replicas.values() ?? [])].filter((r) => r.reservedFor !== null);
    expect(reserved()).toHaveLength(1);
    bench.admit("y", strict);
    bench.admit("c");
    expect(reserved().map((r) => r.reservedFor)).toEqual(["x"]);
    const [withheld] = reserved();
    const there = [...bench.leases].find(([, lease]) => lease.replicaId === withheld?.replicaId)?.[0] ?? "";
    expect(bench.ended(there)).toContain("start x");
    expect(bench.ended("x")).toContain("start y");
  });

  test("gives its replica back when it is canceled, and takes another when that one is lost", () => {
    const bench = new Bench();
    bench.ready(2);
    bench.admit("a");
    bench.admit("x", strict);
    bench.admit("b");
    expect(bench.cancel("x")).toEqual(["finish x canceled CANCELED", "start b"]);
    bench.admit("c");
    bench.ended("a");
    bench.admit("y", strict);
    bench.lose();
    expect(bench.ended("b", lost(), false)).toEqual(["requeue b"]);
    expect(bench.ready(1, "p-9", 9)).toContain("start b");
  });

  test("is not kept waiting by what comes later, and keeps others waiting for one draining only", () => {
    const bench = new Bench("reject", {}, 1000);
    bench.ready(4);
    for (const id of ["a", "b", "c"]) bench.admit(id);
    bench.admit("x", strict);
    for (let n = 0; n < 100; n++) bench.admit(`late${n}`);
    expect([bench.ended("a"), bench.ended("b")]).toEqual([["finish a done"], ["finish b done"]]);
    expect(bench.ended("c")).toEqual(["finish c done", "start x"]);
    expect(bench.ended("x").slice(1)).toEqual([0, 1, 2, 3].map((n) => `start late${n}`));
  });
});

test("exclusive tasks wait apart in bounded number, and ordinary ones pass the rest", () => {
  const bench = new Bench("reject", { exclusiveMax: 1 }, 1000);
  bench.ready(2, "p-0");
  bench.ready(2, "p-1", 2);
  for (let n = 0; n < 40; n++) bench.admit(`x${n}`, { exclusive: true });
  expect([...(bench.state.pools.get("p")?.queue.called() ?? [])].map((e) => e.taskId)).toEqual(
    Array.from({ length: limits.exclusiveCalledMax }, (_, n) => `x${n + 1}`),
  );
  expect(bench.admit("a").said).toEqual(["start a"]);
  expect(bench.ended("x0")).toEqual(["finish x0 done", "start x1"]);
});

test("a full queue stays within its capacity where a cut task that was held may start first", () => {
  const bench = new Bench("reject", {}, 1);
  const turn = { sessionId: "s", expectedMs: limits.affinityWaitMs + 500 };
  bench.ready(1, "p-0");
  bench.admit("s1", turn);
  bench.ready(1, "p-1", 2);
  expect(bench.admit("s2", turn).said).toEqual(["start s2"]);
  bench.nowMs = 1000;
  bench.lose("p-1", 2);
  bench.ended("s2", lost(), false);
  expect(bench.ready(1, "p-1", 3)).toEqual(["wake_at"]);
  expect(bench.admit("s3", turn).said).toEqual([]);
  bench.nowMs = 1000 + limits.affinityWaitMs;
  expect(bench.admit("new")).toMatchObject({ kind: "refused", code: "ADMISSION_REJECT" });
});

describe("a session", () => {
  const turn = { sessionId: "s", expectedMs: 500 };
  const withTurnRunning = () => {
    const bench = new Bench();
    bench.ready(1, "p-0");
    bench.admit("s1", turn);
    bench.ready(1, "p-1", 2);
    return bench;
  };

  test("comes back to the slot that holds its KV", () => {
    const bench = new Bench();
    bench.ready(2, "p-0");
    bench.ready(2, "p-1", 2);
    bench.admit("s1", turn);
    bench.ended("s1");
    bench.admit("other");
    bench.admit("another");
    bench.admit("s2", turn);
    expect(bench.lease("s2")).toMatchObject({ replicaId: "p-0", slot: bench.lease("s1").slot });
    expect(bench.reasons.get("s2")).toEqual({
      rule: "interactive",
      replica: "session",
      slot: "session",
      held: false,
    });
  });

  test("waits for its replica while that is soon free, and others behind it start", () => {
    const bench = withTurnRunning();
    expect(bench.admit("s2", turn).said).toEqual(["wake_at"]);
    expect(bench.admit("other").said).toEqual(["start other"]);
    expect(bench.ended("s1")).toEqual(["finish s1 done", "start s2"]);
    expect(bench.lease("s2").replicaId).toBe("p-0");
    expect(bench.reasons.get("s2")).toMatchObject({ replica: "only", slot: "session", held: true });
  });

  test("waits no longer than affinityWaitMs in all", () => {
    const bench = withTurnRunning();
    bench.admit("s2", turn);
    expect(bench.wakes).toEqual([limits.affinityWaitMs]);
    bench.nowMs = limits.affinityWaitMs - 1;
    // A timer that is early is asked for bench.
    expect(bench.tell({ type: "wake", poolId: "p" })).toEqual(["wake_at"]);
    bench.nowMs = limits.affinityWaitMs;
    expect(bench.tell({ type: "wake", poolId: "p" })).toEqual(["start s2"]);
    expect(bench.lease("s2").replicaId).toBe("p-1");
  });

  test("does not wait where its replica is busy for longer, is lost, or the session is forgotten", () => {
    const long = withTurnRunning();
    long.admit("l1", { expectedMs: limits.affinityWaitMs + 1, sessionId: "l" });
    long.ready(1, "p-2", 3);
    expect(long.admit("l2", { sessionId: "l" }).said).toEqual(["start l2"]);
    const gone = withTurnRunning();
    gone.admit("s2", turn);
    expect(gone.lose("p-0")).toEqual(["start s2"]);
    const forgotten = withTurnRunning();
    forgotten.admit("s2", turn);
    expect(forgotten.tell({ type: "session_forgotten", sessionId: "s" })).toEqual(["start s2"]);
  });
});

test("every start says by which rules it was made", () => {
  const bench = new Bench();
  bench.batch("b");
  bench.admit("i");
  bench.ready(1);
  bench.nowMs = batchMaxWaitMs;
  bench.ended("i");
  const why = { replica: "only", slot: "idle", held: false };
  expect(bench.reasons.get("i")).toEqual({ rule: "interactive", ...why } as StartReason);
  expect(bench.reasons.get("b")).toEqual({ rule: "aged", ...why } as StartReason);
});
