/**
 * The replica machine on walks through arbitrary facts in arbitrary order, which check what always holds. The
 * walk's environment is written against the description of the machine, not with it.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { replicaStates } from "../../src/domain/pool.ts";
import { isServing } from "../../src/domain/replica-model.ts";
import { type Choice, ReplicaWorld, replicaPolicy } from "../support/replica-world.ts";
import { identity } from "../support/replicas.ts";

describe("walks", () => {
  // Left to itself fast-check makes most walks a few steps short.
  const choices: fc.Arbitrary<Choice[]> = fc.array(fc.nat({ max: 2 ** 20 }), {
    minLength: 60,
    maxLength: 200,
  });

  test("whatever happens: ready only after a decode, one process at a time, stale facts ignored, timers and waits bounded", () => {
    const visited = new Set<string>();
    fc.assert(
      fc.property(choices, (walk) => {
        const world = new ReplicaWorld(replicaPolicy, identity());
        for (const choice of walk) {
          world.turn(choice);
          visited.add(world.replica.state);
        }
      }),
      { numRuns: 600, seed: 20_261_121 },
    );
    // The walk is worth something only if it gets everywhere.
    expect([...visited].sort()).toEqual([...replicaStates].sort());
  });

  test("stop always ends in stopped, with no process, no timer and no lease left", () => {
    fc.assert(
      fc.property(choices, fc.boolean(), (walk, obedient) => {
        const world = new ReplicaWorld(replicaPolicy, identity());
        for (const choice of walk) world.turn(choice);
        world.stopAndSettle(obedient);
        expect(world.replica.state).toBe("stopped");
        expect(world.armedTimers()).toEqual([]);
        expect(world.processRuns).toBe(false);
        expect(isServing(world.replica)).toBe(false);
        expect(world.readyReports).toBe(world.lostReports);
      }),
      { numRuns: 400, seed: 20_261_122 },
    );
  });
});
