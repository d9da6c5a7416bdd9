/** Where a task goes: the least busy replica with a free slot, its id breaking ties, and its first free slot. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  chooseSlot,
  neverUsed,
  place,
  type ReplicaSlots,
  type SlotState,
} from "../../src/domain/placement.ts";
import { prefixOf } from "../../src/domain/prefix.ts";

const slotOf = (letter: string, leaseId: number): SlotState =>
  letter === "."
    ? neverUsed
    : { kind: letter === "L" ? "leased" : "releasing", leaseId, taskId: "t", prefix: [] };

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
      expect(found === null ? null : `${found.replica.replicaId}:${chooseSlot(found.replica, [])}`).toBe(
        placed,
      );
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
        expect(found.replica.slots[chooseSlot(found.replica, [])]?.kind).toBe("free");
        for (const other of able) expect(found.replica.busy).toBeLessThanOrEqual(other.busy);
        const again = place([...replicas].reverse());
        expect(again?.replica.replicaId).toBe(found.replica.replicaId);
      }),
    );
  });
});

describe("chooseSlot", () => {
  const free = (text: string, freedAt: number): SlotState => ({
    kind: "free",
    prefix: prefixOf(text),
    freedAt,
  });
  const of = (...slots: SlotState[]): ReplicaSlots => ({
    replicaId: "a",
    incarnation: 1,
    slots,
    busy: slots.filter((slot) => slot.kind !== "free").length,
  });
  const system = "You are a careful assistant that answers in one sentence. ".repeat(3);
  const other = "Summarise the following text for a reader in a hurry, please. ".repeat(3);

  test("prefers the slot that held the longest common beginning", () => {
    const slots = of(
      free(other, 1),
      free(`${system}What is rain?`, 9),
      free(`${system}${"a".repeat(200)}`, 8),
    );
    expect(chooseSlot(slots, prefixOf(`${system}${"a".repeat(130)}b`))).toBe(2);
    expect(chooseSlot(slots, prefixOf(`${other}!`))).toBe(0);
  });

  test("else the one that was idle longest, one that was never used first of all", () => {
    expect(chooseSlot(of(free(system, 5), free(system, 3), free(system, 4)), prefixOf(other))).toBe(1);
    expect(chooseSlot(of(free(system, 5), neverUsed, free(system, 4)), prefixOf(other))).toBe(1);
  });

  test("texts that agree on less than a block share nothing", () => {
    expect(chooseSlot(of(free("The harbour", 2), free("The mill", 1)), prefixOf("The harbour"))).toBe(1);
  });

  test("a leased slot is not taken however well it would fit", () => {
    const leased: SlotState = { kind: "leased", leaseId: 1, taskId: "t", prefix: prefixOf(system) };
    expect(chooseSlot(of(leased, neverUsed), prefixOf(system))).toBe(1);
  });
});
