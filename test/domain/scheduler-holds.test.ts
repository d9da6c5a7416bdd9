/** Pools that are held, rule by rule. Random sequences of events are in scheduler-random.test.ts. */
import { describe, expect, test } from "bun:test";
import { isDrained, isQuiet, isRetiredQuiet } from "../../src/domain/scheduler.ts";
import type { AttemptOutcome, HoldReason } from "../../src/domain/scheduler-protocol.ts";
import { poolOf } from "../../src/domain/scheduler-state.ts";
import { Bench, lost } from "./scheduler-bench.ts";

const held = (bench: Bench, by: HoldReason = "drain", finishing = false) =>
  bench.tell({ type: "pool_held", poolId: "p", by, finishing });
const released = (bench: Bench, by: HoldReason = "drain") =>
  bench.tell({ type: "pool_released", poolId: "p", by });
const overdue = (bench: Bench, by: HoldReason = "drain", ...spare: string[]) =>
  bench.tell({ type: "hold_deadline_passed", poolId: "p", by, spare: new Set(spare) });
const cut = (reason: HoldReason, tokensProduced = 0): AttemptOutcome => ({
  kind: "cut",
  reason,
  tokensProduced,
});
const quiet = (bench: Bench) => isQuiet(poolOf(bench.state, "p"), bench.state);

describe("a pool that is held", () => {
  test("starts nothing, whoever comes or ends, and everything once it is released", () => {
    const bench = new Bench();
    bench.ready(2);
    bench.admit("a");
    expect(held(bench)).toEqual([]);
    expect(isDrained(bench.state, "p")).toBe(true);
    expect(bench.admit("b").said).toEqual([]);
    expect(bench.ended("a")).toEqual(["finish a done"]);
    expect(bench.ready(2, "p-1")).toEqual([]);
    expect(bench.admit("c").said).toEqual([]);
    expect(released(bench)).toEqual(["start b", "start c"]);
    expect(released(bench)).toEqual([]);
  });

  test("for two reasons is released when both are gone", () => {
    const bench = new Bench();
    bench.ready(1);
    held(bench);
    held(bench, "reload");
    bench.admit("a");
    expect(released(bench)).toEqual([]);
    expect(isDrained(bench.state, "p")).toBe(false);
    expect(released(bench, "reload")).toEqual(["start a"]);
  });

  test("cuts at its deadline what runs, but not what is spared; who was cut goes first again", () => {
    const bench = new Bench();
    bench.ready(2);
    for (const id of ["a", "b", "c"]) bench.admit(id);
    held(bench);
    expect(overdue(bench, "drain", "b")).toEqual(["cut a"]);
    expect(overdue(bench, "drain", "b")).toEqual([]);
    expect(bench.ended("a", cut("drain"), true)).toEqual(["requeue a"]);
    expect(bench.ended("b")).toEqual(["finish b done"]);
    expect(released(bench)).toEqual(["start a", "start c"]);
    expect(overdue(bench)).toEqual([]);
  });

  test("asks for no engine before it is released", () => {
    const bench = new Bench();
    held(bench);
    expect(bench.admit("a").said).toEqual([]);
    expect(released(bench)).toEqual(["ensure_pool"]);
  });

  test("refuses beyond its capacity, also where a slot is free", () => {
    const bench = new Bench("reject", {}, 1);
    bench.ready(4);
    held(bench);
    expect(bench.admit("a").kind).toBe("accepted");
    expect(bench.admit("b").kind).toBe("refused");
  });
});

describe("a pool that is held for another model", () => {
  test("goes on with what has sent something, before it is quiet", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    bench.admit("b");
    held(bench, "reload", true);
    expect(quiet(bench)).toBe(false);
    // Its engine broke off behind two tokens.
    expect(bench.ended("a", lost(2))).toEqual(["requeue a", "start a"]);
    expect(bench.ended("a")).toEqual(["finish a done"]);
    expect(quiet(bench)).toBe(true);
    expect(released(bench, "reload")).toEqual(["start b"]);
  });

  test("starts again nothing that has sent nothing", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    held(bench, "reload", true);
    overdue(bench, "reload");
    expect(bench.ended("a", cut("reload"))).toEqual(["requeue a"]);
    expect(quiet(bench)).toBe(true);
    expect(released(bench, "reload")).toEqual(["start a"]);
  });

  test("gives a strict task that has to finish a replica of its own", () => {
    const bench = new Bench();
    bench.ready(2);
    bench.admit("s", { exclusive: true });
    bench.admit("a");
    held(bench, "reload", true);
    expect(bench.ended("s", lost(5))).toEqual(["requeue s", "start s"]);
    expect(bench.ended("s")).toEqual(["finish s done"]);
    expect(quiet(bench)).toBe(true);
    expect(released(bench, "reload")).toEqual(["start a"]);
  });

  for (const by of ["memory", "drain"] as const)
    test(`and by ${by} as well: what was cut for that goes on once that is over`, () => {
      const bench = new Bench();
      bench.ready(1);
      bench.admit("a");
      held(bench, "reload", true);
      held(bench, by);
      expect(overdue(bench, by)).toEqual(["cut a"]);
      expect(bench.ended("a", cut(by, 2))).toEqual(["requeue a"]);
      expect(quiet(bench)).toBe(false);
      expect(released(bench, by)).toEqual(["start a"]);
      expect(bench.ended("a")).toEqual(["finish a done"]);
      expect(quiet(bench)).toBe(true);
    });

  test("ends what waits and does not fit, and only that", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    bench.admit("b");
    const unfit = (taskId: string) => bench.tell({ type: "task_unfit", taskId, message: "too long" });
    expect(unfit("a")).toEqual([]);
    expect(unfit("b")).toEqual(["finish b failed WORKER_RESET"]);
    expect(unfit("nobody")).toEqual([]);
  });
});

describe("replicas whose place others have taken", () => {
  const retired = (bench: Bench, another: boolean) =>
    bench.tell({ type: "replicas_retired", poolId: "p", replicaIds: ["p-0"], another });
  const over = (bench: Bench, ...spare: string[]) =>
    bench.tell({ type: "retirement_over", poolId: "p", spare: new Set(spare) });
  const gone = (bench: Bench) => isRetiredQuiet(poolOf(bench.state, "p"), bench.state);

  test("start nothing new; what runs there goes on", () => {
    const bench = new Bench();
    bench.ready(2);
    bench.admit("a");
    expect(retired(bench, false)).toEqual([]);
    expect(bench.admit("b").said).toEqual([]);
    expect(bench.ready(1, "p-0b")).toEqual(["start b"]);
    expect(bench.lease("b").replicaId).toBe("p-0b");
    expect(gone(bench)).toBe(false);
    expect(bench.ended("a")).toEqual(["finish a done"]);
    expect(gone(bench)).toBe(true);
  });

  test("with the same model: what is cut goes on with the others", () => {
    const bench = new Bench();
    bench.ready(1);
    bench.admit("a");
    retired(bench, false);
    bench.ready(1, "p-0b");
    expect(over(bench)).toEqual(["cut a"]);
    expect(bench.ended("a", cut("reload", 3))).toEqual(["requeue a", "start a"]);
    expect(bench.lease("a").replicaId).toBe("p-0b");
  });

  test("with another model: what has sent something goes on there, and ends where they are gone", () => {
    const bench = new Bench();
    bench.ready(2);
    bench.admit("a");
    bench.admit("b");
    bench.admit("w");
    retired(bench, true);
    expect(bench.ready(1, "p-0b")).toEqual(["start w"]);
    expect(over(bench, "a")).toEqual(["cut b"]);
    expect(bench.ended("b", cut("reload"))).toEqual(["requeue b"]);
    expect(bench.ended("a", lost(2))).toEqual(["requeue a", "start a"]);
    expect(bench.lease("a").replicaId).toBe("p-0");
    expect(bench.ended("w")).toEqual(["finish w done", "start b"]);
    expect(bench.lease("b").replicaId).toBe("p-0b");
    expect(bench.ended("a", lost(1), false)).toEqual(["requeue a"]);
    expect(gone(bench)).toBe(false);
    expect(bench.lose("p-0")).toEqual(["finish a failed WORKER_RESET"]);
    expect(gone(bench)).toBe(true);
  });

  test("with another model: a strict task that waits to go on gets one of them for itself", () => {
    const bench = new Bench();
    bench.ready(2);
    bench.admit("s", { exclusive: true });
    retired(bench, true);
    bench.ready(1, "p-0b");
    expect(bench.ended("s", lost(2))).toEqual(["requeue s", "start s"]);
    expect(bench.lease("s").replicaId).toBe("p-0");
    expect(bench.ended("s")).toEqual(["finish s done"]);
  });
});
