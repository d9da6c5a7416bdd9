/** Where a task goes: the least busy replica with a free slot, its id breaking ties, and its first free slot. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  chooseSlot as chooseSlotOf,
  forgetSession,
  neverUsed,
  place as placeOf,
  type ReplicaSlots,
  readyReplica,
  type SlotState,
  sessionRoomInMs,
} from "../../src/domain/placement.ts";
import { prefixOf } from "../../src/domain/prefix.ts";

const slotOf = (letter: string, leaseId: number): SlotState =>
  letter === "."
    ? neverUsed
    : {
        kind: letter === "L" ? "leased" : "releasing",
        leaseId,
        taskId: "t",
        prefix: [],
        sessionId: null,
        preempted: false,
        lost: letter === "x",
        expectedEndMs: 0,
      };
const chooseSlot = (replica: ReplicaSlots, prefix: readonly number[]): number =>
  chooseSlotOf(replica, prefix, null).slot;
const place = (replicas: Iterable<ReplicaSlots>) => placeOf(replicas, null);

/** A replica drawn by its slots: `.` free, `L` leased, `r` releasing, `x` releasing since its engine broke off. */
const replica = (replicaId: string, drawn: string, more: Partial<ReplicaSlots> = {}): ReplicaSlots => ({
  ...readyReplica(replicaId, 1, 1),
  slots: [...drawn].map(slotOf),
  busy: [...drawn].filter((letter) => letter !== ".").length,
  ...more,
});

describe("place", () => {
  const rows: [replicas: Record<string, string>, placed: string | null][] = [
    [{}, null],
    [{ a: "L" }, null],
    [{ a: "r" }, null],
    [{ a: "." }, "a:0"],
    [{ a: "L." }, "a:1"],
    [{ a: "r.." }, "a:1"],
    [{ a: "x.." }, null],
    [{ a: "x..", b: "L." }, "b:1"],
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
    sessionId: null,
    freedAt,
  });
  const of = (...slots: SlotState[]): ReplicaSlots => ({
    ...readyReplica("a", 1, 1),
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
    const leased: SlotState = {
      kind: "leased",
      leaseId: 1,
      taskId: "t",
      prefix: prefixOf(system),
      sessionId: null,
      preempted: false,
      lost: false,
      expectedEndMs: 0,
    };
    expect(chooseSlot(of(leased, neverUsed), prefixOf(system))).toBe(1);
  });
});

/** Slots of sessions: `s.` free and last used by session s, `sL` leased to it until 100 ms, `sr` releasing. */
const sessions = (replicaId: string, drawn: string[], more: Partial<ReplicaSlots> = {}): ReplicaSlots => {
  const slots = drawn.map((two, at): SlotState => {
    const sessionId = two[0] === "-" ? null : (two[0] ?? null);
    const slot = slotOf(two[1] ?? ".", at);
    return slot.kind === "free" ? { ...slot, sessionId } : { ...slot, sessionId, expectedEndMs: 100 };
  });
  return {
    ...readyReplica(replicaId, 1, 1),
    slots,
    busy: slots.filter((s) => s.kind !== "free").length,
    ...more,
  };
};

describe("what decides between replicas", () => {
  const rows: [why: string, replicas: ReplicaSlots[], placed: string | null][] = [
    ["the only one", [replica("a", "."), replica("b", "L")], "a only"],
    [
      "the session's, although it is busier",
      [sessions("a", ["-."]), sessions("b", ["s.", "-L"])],
      "b session",
    ],
    [
      "the session's free slot before its busy one",
      [sessions("a", ["sL", "-."]), sessions("b", ["s.", "-L", "-L"])],
      "b session",
    ],
    ["not a session's that has no room", [sessions("a", ["-."]), sessions("b", ["sL"])], "a only"],
    ["fewest busy slots", [replica("a", "L."), replica("b", "..")], "b fewest_busy"],
    ["busy before memory", [replica("a", "L.", { vramFreeBytes: 9 }), replica("b", "..")], "b fewest_busy"],
    [
      "free memory",
      [replica("a", ".", { vramFreeBytes: 1 }), replica("b", ".", { vramFreeBytes: 2 })],
      "b vram",
    ],
    ["known memory before unknown", [replica("a", "."), replica("b", ".", { vramFreeBytes: 2 })], "b vram"],
    ["speed", [replica("a", ".", { decodeTps: 10 }), replica("b", ".", { decodeTps: 20 })], "b speed"],
    ["id", [replica("b", "."), replica("a", ".")], "a id"],
    ["reserved ones are closed", [replica("a", ".", { reservedFor: "t" }), replica("b", "L.")], "b only"],
    ["held ones are closed", [replica("a", "L.", { exclusiveLeaseId: 1 })], null],
  ];
  for (const [why, replicas, placed] of rows)
    test(why, () => {
      for (const given of [replicas, [...replicas].reverse()]) {
        const found = placeOf(given, "s");
        expect(found === null ? null : `${found.replica.replicaId} ${found.reason}`).toBe(placed);
      }
    });
});

describe("sessions", () => {
  test("a slot that held the session wins over a longer common beginning", () => {
    const text = "You are a careful assistant that answers in one sentence. ".repeat(3);
    const slots: SlotState[] = [
      { kind: "free", prefix: prefixOf(text), sessionId: "other", freedAt: 1 },
      { kind: "free", prefix: [], sessionId: "s", freedAt: 2 },
    ];
    const at = { ...readyReplica("a", 1, 1), slots };
    expect(chooseSlotOf(at, prefixOf(text), "s")).toEqual({ slot: 1, reason: "session" });
    expect(chooseSlotOf(at, prefixOf(text), "new")).toEqual({ slot: 0, reason: "prefix" });
    forgetSession(at, "s");
    expect(chooseSlotOf(at, prefixOf(text), "s")).toEqual({ slot: 0, reason: "prefix" });
    expect(chooseSlotOf(at, [], null)).toEqual({ slot: 0, reason: "idle" });
  });

  test("say how long there is no room where their KV is", () => {
    const at = (replicas: ReplicaSlots[], session: string | null = "s") =>
      sessionRoomInMs(replicas, session, 40);
    expect(at([sessions("a", ["sL", "-L"])])).toBe(60);
    expect(at([sessions("a", ["sr"])])).toBe(0);
    expect(at([sessions("a", ["sL", "-."])])).toBeNull();
    expect(at([sessions("a", ["-L"])])).toBeNull();
    expect(at([sessions("a", ["sL"])], null)).toBeNull();
    expect(at([sessions("a", ["sL"], { reservedFor: "t" })])).toBeNull();
    expect(sessionRoomInMs([sessions("a", ["sL"])], "s", 500)).toBe(0);
  });
});
