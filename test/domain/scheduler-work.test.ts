/** What a pool has to do, as memory is told of it. */
import { expect, test } from "bun:test";
import { admit, createScheduler, decide } from "../../src/domain/scheduler.ts";
import { workOf } from "../../src/domain/scheduler-work.ts";

const options = { attemptsMax: 3, batchMaxWaitMs: 60_000, fair: "fifo" } as const;
const pool = { id: "p", capacity: 10, fullPolicy: "reject", unloaded: true } as const;

function bench() {
  const state = createScheduler(options, [pool]);
  const work = () => {
    const found = state.pools.get("p");
    if (found === undefined) throw new Error("there is a pool");
    return workOf(found);
  };
  let tasks = 0;
  const submit = (priority: "interactive" | "batch", nowMs: number) =>
    admit(
      state,
      {
        ...{ taskId: `t${tasks++}`, poolId: "p", keyId: "k", sessionId: null, priority, expectedMs: 1 },
        ...{ exclusive: false, prefix: [] },
      },
      nowMs,
    );
  return { state, work, submit };
}

test("counts what waits since when, what runs and what was started; an unloaded pool asks for no engine", () => {
  const { state, work, submit } = bench();
  expect(work()).toEqual({ busy: 0, waiting: 0, oldestMs: null, starts: 0 });
  const first = submit("batch", 5);
  expect(first.kind === "accepted" && first.commands).toEqual([]);
  submit("interactive", 7);
  expect(work()).toEqual({ busy: 0, waiting: 2, oldestMs: 5, starts: 0 });
  expect([...state.touched]).toEqual(["p"]);
  decide(state, { type: "replica_ready", poolId: "p", replicaId: "r", incarnation: 1, slots: 1 }, 8);
  expect(work().starts).toBe(0);
  decide(state, { type: "pool_released", poolId: "p", by: "memory" }, 9);
  expect(work()).toEqual({ busy: 1, waiting: 1, oldestMs: 5, starts: 1 });
});

test("what an operator holds back asks for no memory", () => {
  const { state, work, submit } = bench();
  submit("interactive", 5);
  decide(state, { type: "pool_held", poolId: "p", by: "drain" }, 6);
  expect(work()).toEqual({ busy: 0, waiting: 0, oldestMs: null, starts: 0 });
  decide(state, { type: "pool_released", poolId: "p", by: "drain" }, 7);
  expect(work().waiting).toBe(1);
});
