/** The table of domain/pool-state.ts, and what is told of a pool's engine and failures. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type EngineIdentity, type ReplicaState, replicaStates } from "../../src/domain/pool.ts";
import {
  compareVersions,
  newestFailure,
  newestIdentity,
  poolCondition,
  slotsServing,
} from "../../src/domain/pool-state.ts";
import { failure, identity, snapshot } from "../support/replicas.ts";

type Row = [
  states: (ReplicaState | `${ReplicaState}+`)[],
  state: string,
  live: boolean,
  ready: boolean,
  draining: boolean,
];

/** A trailing + stands for a replica that was restarted after a failure. */
const rows: Row[] = [
  [[], "stopped", true, false, false],
  [["stopped"], "stopped", true, false, false],
  [["stopping"], "stopped", true, false, false],
  [["starting"], "loading", true, false, false],
  [["loading"], "loading", true, false, false],
  [["warming"], "loading", true, false, false],
  [["starting+"], "restarting", true, false, false],
  [["warming+"], "restarting", true, false, false],
  [["backoff"], "restarting", true, false, false],
  [["ready"], "ready", true, true, false],
  [["ready+"], "ready", true, true, false],
  [["busy"], "ready", true, true, false],
  [["draining"], "stopped", true, false, true],
  [["failed"], "restarting", true, false, false],
  [["circuit_open"], "unavailable", false, false, false],
  [["circuit_open", "circuit_open"], "unavailable", false, false, false],
  [["circuit_open", "failed"], "restarting", true, false, false],
  [["circuit_open", "backoff"], "restarting", true, false, false],
  [["circuit_open", "stopped"], "stopped", true, false, false],
  [["circuit_open", "busy"], "ready", true, true, false],
  [["backoff", "loading"], "loading", true, false, false],
  [["draining", "ready"], "ready", true, true, false],
  [["draining", "loading"], "loading", true, false, true],
];

describe("the condition of a pool", () => {
  for (const [states, state, live, ready, draining] of rows)
    test(`[${states.join(", ")}] is ${state}`, () => {
      const replicas = states.map((s) => ({
        state: s.replace("+", "") as ReplicaState,
        restarts: s.endsWith("+") ? 2 : 0,
      }));
      expect(poolCondition(replicas)).toEqual({
        state: state as never,
        live,
        ready,
        draining,
      });
    });

  test("does not depend on the order of replicas, and never contradicts itself", () => {
    const replica = fc.record({ state: fc.constantFrom(...replicaStates), restarts: fc.nat(2) });
    fc.assert(
      fc.property(fc.array(replica, { maxLength: 6 }), (replicas) => {
        const condition = poolCondition(replicas);
        expect(poolCondition([...replicas].reverse())).toEqual(condition);
        expect(condition.ready).toBe(condition.state === "ready");
        expect(condition.ready && (condition.draining || !condition.live)).toBe(false);
        expect(condition.live).toBe(condition.state !== "unavailable");
      }),
    );
  });
});

describe("the newest identity", () => {
  const at = (engineVersion: string, more: Partial<EngineIdentity> = {}) =>
    identity({ engineVersion, ...more });

  test("is null while no engine has spoken", () => {
    expect(newestIdentity([])).toBeNull();
    expect(newestIdentity([snapshot({ identity: null })])).toBeNull();
  });

  test("compares versions by their numbers", () => {
    expect(compareVersions("b11669-Debian", "b9999")).toBeGreaterThan(0);
    const replicas = [
      snapshot({ replicaId: "a/0", state: "ready", identity: at("b9999") }),
      snapshot({ replicaId: "a/1", state: "ready", identity: at("b11669") }),
    ];
    expect(newestIdentity(replicas)?.engineVersion).toBe("b11669");
    expect(newestIdentity([...replicas].reverse())?.engineVersion).toBe("b11669");
  });

  test("prefers what serves now among equals", () => {
    const stale = snapshot({ state: "backoff", identity: at("b1", { ctxPerSlot: 1 }) });
    const serving = snapshot({ state: "busy", identity: at("b1", { ctxPerSlot: 2 }) });
    expect(newestIdentity([stale, serving])?.ctxPerSlot).toBe(2);
    expect(newestIdentity([serving, stale])?.ctxPerSlot).toBe(2);
  });
});

test("the newest failure is the one that happened last", () => {
  expect(newestFailure([{ lastError: null }])).toBeNull();
  const old = failure({ atMs: 1 });
  const recent = failure({ atMs: 2, cause: "out_of_host_memory" });
  expect(newestFailure([{ lastError: recent }, { lastError: null }, { lastError: old }])).toBe(recent);
});

test("only replicas that serve lend their slots", () => {
  expect(
    slotsServing([
      snapshot({ state: "ready", slotsTotal: 4 }),
      snapshot({ state: "busy", slotsTotal: 2 }),
      snapshot({ state: "loading", slotsTotal: 8 }),
      snapshot({ state: "circuit_open", slotsTotal: 16 }),
    ]),
  ).toBe(6);
});
