/**
 * Which models stay loaded, step by step: who is loaded, who makes room, who is held, and what a loan does.
 */
import { describe, expect, test } from "bun:test";
import { decide, tell } from "../../src/domain/residency.ts";
import {
  createResidency,
  type ResidencyEvent,
  type ResidencyPoolSpec,
  shortfall,
} from "../../src/domain/residency-state.ts";

const rules = { swapMaxWaitMs: 30_000, swapTurnMaxMs: 300_000 };
type Told<Type extends ResidencyEvent["type"]> = Extract<ResidencyEvent, { type: Type }>;

/** One card of 10 and one of 4; pools take what a test says of them. */
class Bench {
  nowMs = 0;
  readonly state;

  constructor(
    pools: Readonly<Record<string, Partial<ResidencyPoolSpec> & { gpu?: number; small?: number }>>,
  ) {
    this.state = createResidency(
      rules,
      [
        { deviceId: "gpu", totalBytes: 12, reservedBytes: 2 },
        { deviceId: "small", totalBytes: 4, reservedBytes: 0 },
      ],
      Object.entries(pools).map(([poolId, { gpu = 10, small = 0, ...more }]) => ({
        poolId,
        needs: new Map([
          ["gpu", gpu],
          ["small", small],
        ]),
        loadMs: 5_000,
        idleUnloadMs: null,
        preload: false,
        ...more,
      })),
    );
  }

  at(nowMs: number): this {
    expect(nowMs).toBeGreaterThanOrEqual(this.nowMs);
    this.nowMs = nowMs;
    return this;
  }

  tell(event: ResidencyEvent): string[] {
    tell(this.state, event, this.nowMs);
    return this.decide();
  }

  /** As text, without `wake_at`. */
  decide(): string[] {
    return decide(this.state, this.nowMs).flatMap((command) => {
      if (command.type === "wake_at") return [];
      const { type, ...rest } = command;
      return [
        [type.replace("_pool", ""), ...Object.values(rest).filter((value) => value !== null)].join(" "),
      ];
    });
  }

  work(poolId: string, busy: number, waiting: number, more: Partial<Told<"work_changed">> = {}): string[] {
    const oldestMs = waiting > 0 ? this.nowMs : null;
    return this.tell({ type: "work_changed", poolId, busy, waiting, oldestMs, started: 0, ...more });
  }

  loaded = (poolId: string, tookMs = 5_000): string[] => this.tell({ type: "pool_loaded", poolId, tookMs });
  unloaded = (poolId: string): string[] => this.tell({ type: "pool_unloaded", poolId });
  lend = (deviceId: string, bytes: number): string[] => this.tell({ type: "device_lent", deviceId, bytes });
  returned = (deviceId: string): string[] => this.tell({ type: "device_returned", deviceId });

  /** Loads it for one task, which has ended by `untilMs`. */
  used(poolId: string, untilMs: number): this {
    expect(this.work(poolId, 0, 1)).toEqual([`load ${poolId} wanted`]);
    expect(this.loaded(poolId)).toEqual([]);
    this.work(poolId, 1, 0, { started: 1 });
    this.at(untilMs).work(poolId, 0, 0);
    return this;
  }
}

describe("work that waits", () => {
  test("has its model loaded where there is room, and once only", () => {
    const bench = new Bench({ a: { gpu: 6 }, b: { gpu: 4 }, c: { gpu: 0, small: 4 } });
    expect(bench.decide()).toEqual([]);
    expect(bench.work("a", 0, 1)).toEqual(["load a wanted"]);
    expect(bench.work("a", 0, 2)).toEqual([]);
    expect(bench.work("b", 0, 1)).toEqual(["load b wanted"]);
    expect(bench.work("c", 0, 1)).toEqual(["load c wanted"]);
  });

  test("has an idle one unloaded, and loads when its memory is free and not before", () => {
    const bench = new Bench({ a: {}, b: {} }).used("a", 1_000);
    expect(bench.work("b", 0, 1)).toEqual(["unload a pool b"]);
    expect(bench.decide()).toEqual([]);
    expect(bench.unloaded("a")).toEqual(["load b wanted"]);
  });

  test("lets the loaded model serve all that waits for it, also what came later, while nobody waited too long", () => {
    const bench = new Bench({ a: {}, b: {} });
    bench.work("a", 0, 1);
    bench.loaded("a");
    bench.work("a", 1, 0, { started: 1 });
    expect(bench.at(10).work("b", 0, 3)).toEqual([]);
    expect(bench.at(20).work("a", 1, 5)).toEqual([]);
    expect(bench.at(29_000).work("a", 1, 1, { started: 5 })).toEqual([]);
    expect(bench.at(29_500).work("a", 0, 0, { started: 1 })).toEqual(["unload a pool b"]);
  });

  test("that is gone wants no room any more", () => {
    const bench = new Bench({ a: { gpu: 6 }, b: { gpu: 4 }, c: {} }).used("a", 100);
    bench.used("b", 200);
    bench.work("b", 1, 0, { started: 1 });
    bench.work("c", 0, 1);
    expect(bench.at(30_200).decide()).toEqual(["unload a pool c", "hold b c"]);
    expect(bench.work("c", 0, 0)).toEqual(["release b"]);
    expect(bench.unloaded("a")).toEqual([]);
  });

  test("is not tried again before the time that a failed load named", () => {
    const bench = new Bench({ a: {}, b: {} });
    bench.work("a", 0, 1);
    expect(bench.at(100).tell({ type: "pool_load_failed", poolId: "a", retryAtMs: 5_000 })).toEqual([]);
    expect(bench.at(4_999).decide()).toEqual([]);
    expect(bench.at(5_000).decide()).toEqual(["load a wanted"]);
    bench.tell({ type: "pool_load_failed", poolId: "a", retryAtMs: 9_000 });
    // Others need not wait for it.
    expect(bench.work("b", 0, 1)).toEqual(["load b wanted"]);
  });

  test("for which the devices are too small is told by how much", () => {
    const bench = new Bench({ a: { gpu: 13, small: 5 } });
    expect(bench.work("a", 0, 1)).toEqual([]);
    expect([...shortfall(bench.state, "a")]).toEqual([
      ["gpu", 3],
      ["small", 1],
    ]);
  });
});

describe("who makes room", () => {
  test("is what is loaded again soonest", () => {
    const bench = new Bench({ slow: { gpu: 5 }, swift: { gpu: 5 }, c: { gpu: 5 } });
    bench.work("slow", 0, 1);
    bench.work("swift", 0, 1);
    bench.loaded("slow", 60_000);
    bench.loaded("swift", 2_000);
    bench.work("slow", 0, 0);
    bench.at(1_000).work("swift", 0, 0);
    expect(bench.at(60_000).work("c", 0, 1)).toEqual(["unload swift pool c"]);
  });

  test("is what is asked for least, of those that load alike", () => {
    const bench = new Bench({ often: { gpu: 5 }, seldom: { gpu: 5 }, c: { gpu: 5 } });
    bench.used("often", 1_000).used("seldom", 2_000);
    for (let hour = 0; hour < 5; hour += 1) {
      bench.at(100_000 + 20_000 * hour).work("often", 1, 0, { started: 1 });
      bench.at(101_000 + 20_000 * hour).work("often", 0, 0);
    }
    // Used last of all, though.
    bench.at(200_000).work("seldom", 1, 0, { started: 1 });
    bench.at(201_000).work("seldom", 0, 0);
    expect(bench.at(260_000).work("c", 0, 1)).toEqual(["unload seldom pool c"]);
  });

  test("is what was asked for in one burst rather than what is asked for again and again", () => {
    const bench = new Bench({ burst: { gpu: 5 }, again: { gpu: 5 }, c: { gpu: 5 } });
    bench.used("burst", 1_000).used("again", 1_001);
    for (const atMs of [20_000, 40_000]) {
      bench.at(atMs).work("again", 1, 0, { started: 1 });
      bench.work("again", 0, 0);
    }
    for (let call = 0; call < 9; call += 1) {
      bench.at(60_000 + 100 * call).work("burst", 1, 0, { started: 1 });
      bench.work("burst", 0, 0);
    }
    expect(bench.at(90_000).work("c", 0, 1)).toEqual(["unload burst pool c"]);
  });

  test("is not one that the operator wants loaded while another does", () => {
    const bench = new Bench({ wanted: { gpu: 5, preload: true }, b: { gpu: 5 }, c: { gpu: 5 } });
    expect(bench.decide()).toEqual(["load wanted preload"]);
    bench.loaded("wanted");
    bench.used("b", 1_000);
    expect(bench.at(60_000).work("c", 0, 1)).toEqual(["unload b pool c"]);
  });

  test("goes as a set: nobody is unloaded while the rest that it takes is busy", () => {
    const bench = new Bench({ a: { gpu: 5 }, b: { gpu: 5 }, c: {} });
    bench.used("a", 100).used("b", 200);
    bench.work("b", 1, 0, { started: 1 });
    expect(bench.work("c", 0, 1)).toEqual([]);
    expect(bench.at(300).work("b", 0, 0)).toEqual(["unload a pool c", "unload b pool c"]);
    expect(bench.unloaded("b")).toEqual([]);
    expect(bench.unloaded("a")).toEqual(["load c wanted"]);
  });

  test("frees memory for who claimed first, though it would suffice sooner for a later one", () => {
    const bench = new Bench({
      x: { gpu: 3 },
      y: { gpu: 2 },
      z: { gpu: 5, preload: true, loadMs: 60_000 },
      p: { gpu: 4 },
      j: { gpu: 2 },
      k: { gpu: 3 },
    });
    expect(bench.decide()).toEqual(["load z preload"]);
    bench.loaded("z", 60_000);
    bench.used("x", 100).used("y", 200);
    expect(bench.at(60_000).work("p", 0, 1)).toEqual(["unload x pool p", "unload y pool p"]);
    expect(bench.at(60_001).work("j", 0, 1)).toEqual(["unload z pool j"]);
    expect(bench.at(60_002).work("k", 0, 1)).toEqual([]);
    expect(bench.unloaded("x")).toEqual([]);
    expect(bench.unloaded("y")).toEqual(["load p wanted"]);
    expect(bench.unloaded("z")).toEqual(["load j wanted", "load k wanted"]);
  });

  test("does not lose its place in a pause that is short beside a load, unless somebody waited too long", () => {
    const bench = new Bench({ a: {}, b: {} }).used("a", 1_000);
    for (let call = 1; call <= 5; call += 1) {
      bench.at(1_500 * call).work("a", 1, 0, { started: 1 });
      bench.at(1_500 * call + 1_000).work("a", 0, 0);
    }
    expect(bench.at(8_600).work("b", 0, 1)).toEqual([]);
    expect(bench.state.wakeAtMs).toBe(9_500);
    expect(bench.at(8_900).work("a", 1, 0, { started: 1 })).toEqual([]);
    expect(bench.at(9_900).work("a", 0, 0)).toEqual([]);
    // It did not come back.
    expect(bench.at(10_300).decide()).toEqual([]);
    expect(bench.at(11_500).decide()).toEqual(["unload a pool b"]);
  });
});

describe("work that waited too long", () => {
  const busy = (): Bench => {
    const bench = new Bench({ a: {}, b: {}, c: {} });
    bench.work("a", 0, 3);
    bench.loaded("a");
    bench.at(100).work("a", 2, 1, { started: 2 });
    bench.at(200).work("b", 0, 1);
    return bench;
  };

  test("has the one in use held once all that waited when it was loaded has started", () => {
    const bench = busy();
    expect(bench.at(30_199).work("a", 2, 2)).toEqual([]);
    expect(bench.at(30_200).decide()).toEqual([]);
    expect(bench.at(31_000).work("a", 2, 1, { started: 1 })).toEqual(["hold a b"]);
    expect(bench.at(32_000).work("a", 1, 4)).toEqual([]);
    expect(bench.at(33_000).work("a", 0, 4)).toEqual(["unload a pool b"]);
    expect(bench.at(33_500).unloaded("a")).toEqual(["load b wanted"]);
  });

  test("or its turn has lasted long enough", () => {
    const bench = busy();
    expect(bench.at(30_200).decide()).toEqual([]);
    expect(bench.state.wakeAtMs).toBe(300_000);
    expect(bench.at(299_999).decide()).toEqual([]);
    expect(bench.at(300_000).decide()).toEqual(["hold a b"]);
  });

  test("takes the place of one whose turn is over rather than of one that is in it and loads sooner", () => {
    const bench = new Bench({ a: { gpu: 5 }, b: { gpu: 5 }, c: { gpu: 5 } });
    bench.work("a", 0, 1);
    bench.loaded("a", 9_000);
    bench.work("a", 1, 0, { started: 1 });
    bench.at(100).work("b", 0, 3);
    bench.loaded("b", 5_000);
    bench.work("b", 1, 2, { started: 1 });
    bench.at(200).work("c", 0, 1);
    expect(bench.at(30_200).decide()).toEqual(["hold a c"]);
  });

  test("takes what becomes idle instead, and the other is released", () => {
    const bench = new Bench({ a: { gpu: 5 }, b: { gpu: 5 }, c: { gpu: 5 } });
    bench.used("a", 100).used("b", 200);
    bench.work("a", 1, 0, { started: 1 });
    bench.work("b", 1, 0, { started: 1 });
    bench.work("c", 0, 1);
    const [held = ""] = bench.at(30_200).decide();
    expect(held).toMatch(/^hold [ab] c$/);
    const other = held === "hold a c" ? "b" : "a";
    const freed = bench.at(31_000).work(other, 0, 0);
    expect(freed.toSorted()).toEqual([`release ${held.split(" ")[1]}`, `unload ${other} pool c`]);
  });

  test("is served before what began to want later, even where that would fit sooner", () => {
    const bench = new Bench({ a: { gpu: 5 }, b: { gpu: 5 }, big: {}, d: { gpu: 5 } });
    bench.used("a", 100).used("b", 200);
    bench.work("a", 1, 0, { started: 1 });
    bench.work("b", 1, 0, { started: 1 });
    bench.work("big", 0, 1);
    bench.at(20_000).work("d", 0, 1);
    expect(bench.at(30_200).decide()).toEqual(["hold a big", "hold b big"]);
    expect(bench.at(31_000).work("a", 0, 0)).toEqual(["unload a pool big"]);
    expect(bench.at(32_000).unloaded("a")).toEqual([]);
    expect(bench.at(33_000).work("b", 0, 0)).toEqual(["unload b pool big"]);
    expect(bench.at(34_000).unloaded("b")).toEqual(["load big wanted"]);
  });

  test("and cannot claim yet: who began to want later does not get in between", () => {
    const bench = new Bench({ a: {}, b: { gpu: 6 }, c: {}, d: { gpu: 4 } }).used("a", 100);
    bench.work("a", 1, 0, { started: 1 });
    bench.at(200).work("b", 0, 1);
    bench.at(300).work("c", 0, 1);
    bench.at(400).work("d", 0, 1);
    expect(bench.at(30_400).decide()).toEqual(["hold a b"]);
    expect(bench.at(31_000).work("a", 0, 0)).toEqual(["unload a pool b"]);
    // There is room for d beside b, but c would have to wait for both.
    expect(bench.at(32_000).unloaded("a")).toEqual(["load b wanted"]);
    expect(bench.loaded("b")).toEqual([]);
    expect(bench.work("b", 1, 0, { started: 1 })).toEqual(["hold b c"]);
    expect(bench.at(33_000).work("b", 0, 0)).toEqual(["unload b pool c"]);
    expect(bench.unloaded("b")).toEqual(["load c wanted"]);
  });

  test("waits anew from the time at which its own pool had to go", () => {
    const bench = busy();
    bench.at(31_000).work("a", 2, 1, { started: 1 });
    bench.at(33_000).work("a", 0, 1, { oldestMs: 150 });
    bench.unloaded("a");
    bench.loaded("b");
    bench.work("b", 1, 0, { started: 1 });
    expect(bench.at(62_999).decide()).toEqual([]);
    expect(bench.at(63_000).decide()).toEqual(["hold b a"]);
  });
});

describe("an idle pool", () => {
  test("is unloaded after idle_unload_ms, not while it is used and never when the operator wants it loaded", () => {
    const bench = new Bench({
      a: { gpu: 5, idleUnloadMs: 60_000 },
      p: { gpu: 5, preload: true, idleUnloadMs: 1 },
    });
    bench.decide();
    bench.loaded("p");
    bench.used("a", 1_000);
    expect(bench.at(60_999).decide()).toEqual([]);
    bench.work("a", 1, 0, { started: 1 });
    expect(bench.at(200_000).decide()).toEqual([]);
    bench.work("a", 0, 0);
    expect(bench.at(259_999).decide()).toEqual([]);
    expect(bench.at(260_000).decide()).toEqual(["unload a idle"]);
    expect(bench.unloaded("a")).toEqual([]);
  });

  test("that the operator wants loaded comes back when nobody wants its room", () => {
    const bench = new Bench({ p: { preload: true }, a: { idleUnloadMs: 60_000 } });
    bench.decide();
    bench.loaded("p");
    bench.work("a", 0, 1);
    bench.unloaded("p");
    bench.loaded("a");
    bench.work("a", 1, 0, { started: 1 });
    bench.at(1_000).work("a", 0, 0);
    expect(bench.at(61_000).decide()).toEqual(["unload a idle"]);
    expect(bench.unloaded("a")).toEqual(["load p preload"]);
  });
});

describe("a device that is lent", () => {
  test("is cleared: idle pools go at once, busy ones when they have finished, and come back when it is returned", () => {
    const bench = new Bench({ a: { gpu: 5 }, b: { gpu: 5 }, c: { gpu: 0, small: 1 } });
    bench.used("a", 100).used("b", 200).used("c", 300);
    bench.work("b", 2, 1, { started: 2 });
    expect(bench.lend("gpu", Number.POSITIVE_INFINITY)).toEqual(["unload a device", "hold b"]);
    expect(bench.unloaded("a")).toEqual([]);
    expect(bench.work("b", 0, 1)).toEqual(["unload b device"]);
    bench.unloaded("b");
    // Its work waits; nothing is loaded there.
    expect(bench.work("a", 0, 1)).toEqual([]);
    expect([...shortfall(bench.state, "a")]).toEqual([["gpu", 5]]);
    bench.work("a", 0, 0);
    bench.work("b", 0, 0);
    expect(bench.at(90_000).returned("gpu")).toEqual(["load a restored", "load b restored"]);
  });

  test("brings back also what was still being loaded, and what could not be loaded at once", () => {
    const bench = new Bench({ a: {} });
    bench.work("a", 0, 1);
    expect(bench.lend("gpu", 1)).toEqual(["hold a"]);
    expect(bench.loaded("a")).toEqual(["unload a device"]);
    bench.unloaded("a");
    bench.work("a", 0, 0);
    expect(bench.returned("gpu")).toEqual(["load a restored"]);
    expect(bench.tell({ type: "pool_load_failed", poolId: "a", retryAtMs: 1_000 })).toEqual([]);
    expect(bench.at(1_000).decide()).toEqual(["load a restored"]);
    bench.loaded("a");
    expect(bench.unloaded("a")).toEqual([]);
  });

  test("in part: the least costly make way, and the rest stays", () => {
    const bench = new Bench({ a: { gpu: 3 }, b: { gpu: 4 }, c: { gpu: 3 } });
    bench.used("a", 100).used("b", 200).used("c", 300);
    expect(bench.lend("gpu", 4)).toEqual(["unload b device"]);
    expect(bench.unloaded("b")).toEqual([]);
    expect(bench.returned("gpu")).toEqual(["load b restored"]);
  });

  test("that comes back before a busy pool has gone: it goes on", () => {
    const bench = new Bench({ a: {} }).used("a", 100);
    bench.work("a", 1, 0, { started: 1 });
    expect(bench.lend("gpu", 1)).toEqual(["hold a"]);
    expect(bench.returned("gpu")).toEqual(["release a"]);
    expect(bench.at(200).work("a", 0, 0)).toEqual([]);
  });

  test("ends a claim that no longer fits, and who was held for it goes on", () => {
    const bench = new Bench({ a: { gpu: 4 }, b: {} }).used("a", 100);
    bench.work("a", 1, 0, { started: 1 });
    bench.work("b", 0, 1);
    expect(bench.at(40_000).decide()).toEqual(["hold a b"]);
    expect(bench.lend("gpu", 6)).toEqual(["release a"]);
    expect(bench.returned("gpu")).toEqual(["hold a b"]);
  });

  test("or of which others take more than before: the same", () => {
    const bench = new Bench({ a: {} }).used("a", 100);
    const measured = (reservedBytes: number): ResidencyEvent => ({
      type: "device_measured",
      deviceId: "gpu",
      totalBytes: 12,
      reservedBytes,
    });
    expect(bench.tell(measured(1))).toEqual([]);
    expect(bench.tell(measured(3))).toEqual(["unload a device"]);
    expect(bench.unloaded("a")).toEqual([]);
    expect(bench.tell(measured(2))).toEqual(["load a restored"]);
  });
});

describe("what it is told", () => {
  test("a pool that turns out larger leaves where it no longer fits beside others", () => {
    const bench = new Bench({ a: { gpu: 5 }, b: { gpu: 5 } }).used("a", 100).used("b", 200);
    bench.at(300_000);
    expect(
      bench.tell({ type: "pool_sized", poolId: "a", needs: new Map([["gpu", 6]]), loadMs: 5_000 }),
    ).toEqual(["unload a device"]);
  });

  test("an engine that is gone for good frees its memory", () => {
    const bench = new Bench({ a: {}, b: {} }).used("a", 100);
    bench.work("a", 1, 0, { started: 1 });
    bench.work("b", 0, 1);
    expect(bench.unloaded("a")).toEqual(["load b wanted"]);
  });

  test("nonsense is a programmer's mistake", () => {
    const bench = new Bench({ a: {} });
    expect(() => bench.loaded("a")).toThrow("asked for");
    expect(() => bench.unloaded("a")).toThrow("held memory");
    expect(() => bench.work("a", 1, 0, { started: 1 })).toThrow("only where the model is loaded");
    expect(() => bench.work("nobody", 0, 0)).toThrow("nobody is a pool");
    expect(() => bench.lend("gpu", -1)).toThrow("not negative");
  });
});
