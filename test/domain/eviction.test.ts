/**
 * The least costly set of pools that makes room: by hand, and against the search through all sets.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Bytes, type Leaver, leastCostly } from "../../src/domain/eviction.ts";

const leaver = (poolId: string, costMs: number, needs: Record<string, number>): Leaver => ({
  poolId,
  costMs,
  needs: new Map(Object.entries(needs)),
});
const lacking = (needs: Record<string, number>): Bytes => new Map(Object.entries(needs));

const frees = (set: readonly Leaver[], missing: Bytes): boolean =>
  [...missing].every(
    ([device, bytes]) => set.reduce((sum, { needs }) => sum + (needs.get(device) ?? 0), 0) >= bytes,
  );
const cost = (set: readonly Leaver[]): number => set.reduce((sum, { costMs }) => sum + costMs, 0);

describe("the least costly set", () => {
  test("is two cheap ones rather than one that takes long to load", () => {
    const pools = [
      leaver("big", 60_000, { gpu: 10 }),
      leaver("a", 4_000, { gpu: 5 }),
      leaver("b", 4_000, { gpu: 5 }),
    ];
    expect(leastCostly(pools, lacking({ gpu: 8 }), 12)).toEqual(["a", "b"]);
    expect(leastCostly(pools, lacking({ gpu: 11 }), 12)).toEqual(["a", "big"]);
    expect(leastCostly(pools, lacking({ gpu: 21 }), 12)).toBeNull();
  });

  test("frees what is missing on every device, and takes nobody who holds nothing there", () => {
    const pools = [
      leaver("left", 1, { gpu0: 8 }),
      leaver("right", 1, { gpu1: 8 }),
      leaver("both", 3, { gpu0: 4, gpu1: 4 }),
      leaver("elsewhere", 0, { gpu2: 8 }),
    ];
    expect(leastCostly(pools, lacking({ gpu0: 4, gpu1: 4 }), 12)).toEqual(["left", "right"]);
    expect(leastCostly(pools, lacking({ gpu1: 9 }), 12)).toEqual(["both", "right"]);
    expect(leastCostly(pools, lacking({ gpu0: 1, gpu3: 1 }), 12)).toBeNull();
  });

  test("has the fewest pools among equals, and the same ones whatever their order", () => {
    const pools = [leaver("a", 0, { gpu: 4 }), leaver("b", 0, { gpu: 4 }), leaver("c", 0, { gpu: 8 })];
    expect(leastCostly(pools, lacking({ gpu: 8 }), 12)).toEqual(["c"]);
    expect(leastCostly(pools.toReversed(), lacking({ gpu: 8 }), 12)).toEqual(["c"]);
    expect(leastCostly(pools.toReversed(), lacking({ gpu: 4 }), 12)).toEqual(["a"]);
  });
});

const pools = (max: number): fc.Arbitrary<Leaver[]> =>
  fc
    .array(fc.record({ costMs: fc.nat({ max: 50 }), gpu0: fc.nat({ max: 10 }), gpu1: fc.nat({ max: 10 }) }), {
      minLength: 1,
      maxLength: max,
    })
    .map((all) => all.map(({ costMs, gpu0, gpu1 }, index) => leaver(`p${index}`, costMs, { gpu0, gpu1 })));
const missingBytes: fc.Arbitrary<Bytes> = fc
  .record({ gpu0: fc.nat({ max: 25 }), gpu1: fc.nat({ max: 25 }) })
  .map((bytes) => new Map(Object.entries(bytes).filter(([, value]) => value > 0)));

/** All subsets: one for each number of as many bits. */
const subsets = (all: readonly Leaver[]): Leaver[][] =>
  Array.from({ length: 2 ** all.length }, (_, bits) => all.filter((_one, index) => (bits >> index) & 1));

describe("any pools", () => {
  test("searched: nothing that frees enough costs less", () => {
    let found = 0;
    fc.assert(
      fc.property(pools(8), missingBytes, (candidates, missing) => {
        const ids = leastCostly(candidates, missing, 12);
        const enough = subsets(candidates).filter((set) => frees(set, missing));
        expect(ids === null).toBe(enough.length === 0);
        if (ids === null) return;
        found += 1;
        const chosen = candidates.filter(({ poolId }) => ids.includes(poolId));
        expect(frees(chosen, missing)).toBe(true);
        expect(cost(chosen)).toBe(Math.min(...enough.map(cost)));
      }),
      { numRuns: 500, seed: 20_261_121 },
    );
    expect(found).toBeGreaterThan(100);
  });

  test("approached: enough is freed, and nobody goes who could stay", () => {
    let several = 0;
    fc.assert(
      fc.property(pools(20), missingBytes, (candidates, missing) => {
        const ids = leastCostly(candidates, missing, 0);
        expect(ids === null).toBe(!frees(candidates, missing));
        if (ids === null) return;
        const chosen = candidates.filter(({ poolId }) => ids.includes(poolId));
        expect(frees(chosen, missing)).toBe(true);
        for (const one of chosen)
          expect(
            frees(
              chosen.filter((other) => other !== one),
              missing,
            ),
          ).toBe(false);
        expect(leastCostly(candidates.toReversed(), missing, 0)).toEqual(ids);
        if (ids.length > 1) several += 1;
      }),
      { numRuns: 500, seed: 20_261_122 },
    );
    expect(several).toBeGreaterThan(100);
  });
});
