/** Where a task goes: the least busy replica with a free slot, its id breaking ties, and its first free slot. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { place, type ReplicaSlots, type SlotState } from "../../src/domain/placement.ts";

const slotOf = (letter: string, leaseId: number): SlotState =>
  letter === "." ? { kind: "free" } : { kind: letter === "L" ? "leased" : "releasing", leaseId, taskId: "t" };

/** A replica drawn by its slots: `.` free, `L` leased, `r` releasing. */
const replica = (replicaId: string, drawn: string): ReplicaSlots => ({
  replicaId,
  incarnation: 1,
  slots: [...drawn].map(slotOf),
  busy: [...drawn].filter((letter) => letter !== ".").length,
});

describe("place", () => {
  const rows: [replicas: Record<string, string>, placed: string | null][] = [
    [{}, null],
    [{ a: "L" }, null],
    [{ a: "r" }, null],
    [{ a: "." }, "a:0"],
    [{ a: "L." }, "a:1"],
    [{ a: "r.." }, "a:1"],
    [{ a: "L..", b: "..." }, "b:0"],
    [{ b: "..", a: ".." }, "a:0"],
    [{ b: "L.", a: "LL" }, "b:1"],
    // Busy slots count, not free ones: a small idle replica is quicker than a big one at work.
    [{ big: "LL......", small: "L." }, "small:1"],
  ];
  for (const [drawn, placed] of rows) {
    test(`${JSON.stringify(drawn)} -> ${placed}`, () => {
      const found = place(Object.entries(drawn).map(([id, slots]) => replica(id, slots)));
      expect(found === null ? null : `${found.replica.replicaId}:${found.slot}`).toBe(placed);
    });
  }

  test("is a free slot of a least busy replica, whatever the replicas and their order", () => {
    const drawn = fc.string({ unit: fc.constantFrom(".", "L", "r"), minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(fc.array(drawn, { maxLength: 6 }), (all) => {
        const replicas = all.map((slots, at) => replica(`r${at}`, slots));
        const able = replicas.filter((r) => r.slots.some((s) => s.kind === "free"));
        const found = place(replicas);
        expect(found?.candidates ?? 0).toBe(able.length);
        if (found === null) return;
        expect(found.replica.slots[found.slot]?.kind).toBe("free");
        for (const other of able) expect(found.replica.busy).toBeLessThanOrEqual(other.busy);
        const again = place([...replicas].reverse());
        expect([again?.replica.replicaId, again?.slot]).toEqual([found.replica.replicaId, found.slot]);
      }),
    );
  });
});
