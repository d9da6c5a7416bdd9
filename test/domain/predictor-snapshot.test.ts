/** What a predictor learnt survives as JSON to the last digit, and a damaged snapshot changes nothing. */
import { expect, test } from "bun:test";
import { createPredictor, predict } from "../../src/domain/predictor.ts";
import { restore, snapshotOf } from "../../src/domain/predictor-snapshot.ts";
import { laws } from "./laws.ts";
import { PoolWorld } from "./pool-world.ts";

function learnt() {
  const law = laws.stationary;
  if (law === undefined) throw new Error("there is a stationary law");
  const world = new PoolWorld({ ...law, tasks: 1500 }, 3);
  world.run();
  return world.state;
}
const state = learnt();
const json = JSON.stringify(snapshotOf(state));
const load = {
  slotFreeInMs: [100, 200],
  slotSpreadMs: 50,
  workAheadMs: 5000,
  overtaking: { share: 0.2, jitterMs: 10, error: 0.1 },
  agedInMs: null,
};
const asked = (of: typeof state) => predict(of, "batch", load, 5, { mean: 900, variance: 1e4 }, 4000);

test("a restored predictor promises the same", () => {
  const other = createPredictor();
  expect(restore(other, JSON.parse(json))).toBe(true);
  expect(other).toEqual(state);
  expect(asked(other)).toEqual(asked(state));
  expect(asked(createPredictor())).not.toEqual(asked(state));
});

test("a snapshot is a copy", () => {
  const snapshot = snapshotOf(state);
  const other = createPredictor();
  restore(other, snapshot);
  other.classes.batch.starts.recent.length = 0;
  expect(JSON.stringify(snapshotOf(state))).toBe(json);
});

test("anything out of bounds, missing or of another kind is refused, and nothing is taken", () => {
  const places: (readonly string[])[] = [];
  const walk = (value: unknown, path: readonly string[]): void => {
    // One element stands for its list.
    const entries = Object.entries(value as object).filter(([key]) => !/^([1-9]|\d\d+)$/.test(key));
    for (const [key, item] of entries) {
      places.push([...path, key]);
      if (typeof item === "object" && item !== null) walk(item, [...path, key]);
    }
  };
  walk(JSON.parse(json), []);
  expect(places.length).toBeGreaterThan(50);
  for (const path of places)
    for (const bad of [undefined, "x", Number.NaN, -1e300, { a: 1 }]) {
      const snapshot = JSON.parse(json);
      let at = snapshot;
      for (const key of path.slice(0, -1)) at = at[key];
      at[path.at(-1) ?? ""] = bad;
      const fresh = createPredictor();
      expect([path.join("."), bad, restore(fresh, snapshot)]).toEqual([path.join("."), bad, false]);
      expect(fresh).toEqual(createPredictor());
    }
  for (const nothing of [null, undefined, 7, "{}", [], {}])
    expect(restore(createPredictor(), nothing)).toBe(false);
});
