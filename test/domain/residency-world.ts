/**
 * A machine with devices and pools in virtual time, to see what src/domain/residency.ts makes of a workload. The world
 * keeps its own books (memory, groups, waits) and throws where a command breaks what the module promises.
 */
import { expect } from "bun:test";
import { decide, tell } from "../../src/domain/residency.ts";
import {
  createResidency,
  type Residency,
  type ResidencyCommand,
  type ResidencyPoolSpec,
  type ResidencyRules,
} from "../../src/domain/residency-state.ts";

export interface PlannedPool extends ResidencyPoolSpec {
  readonly slots: number;
  readonly unloadMs: number;
}

export interface Arrival {
  readonly atMs: number;
  readonly poolId: string;
  readonly runMs: number;
  /** Its client gives up if it has not been started by then; absent: waits. */
  readonly patienceMs?: number;
}

/** A client that asks again `pauseMs` after each answer. */
export interface Caller {
  readonly atMs: number;
  readonly poolId: string;
  readonly calls: number;
  readonly runMs: number;
  readonly pauseMs: number;
}

export interface Loan {
  readonly atMs: number;
  readonly untilMs: number;
  readonly deviceId: string;
  readonly bytes: number;
}

export interface Scenario {
  readonly rules: ResidencyRules;
  readonly devices: readonly { deviceId: string; totalBytes: number; reservedBytes: number }[];
  readonly pools: readonly PlannedPool[];
  readonly arrivals: readonly Arrival[];
  readonly callers?: readonly Caller[];
  readonly loans?: readonly Loan[];
  /** Numbers of loads, from 0, that fail; they are tried again after retryMs. */
  readonly failing?: { readonly loads: ReadonlySet<number>; readonly retryMs: number };
}

export interface Outcome {
  readonly loads: number;
  readonly worstWaitMs: number;
  readonly meanWaitMs: number;
  /** Of the last task. */
  readonly endMs: number;
  readonly started: number;
  /** Longest time that a pool had work and was not loaded. */
  readonly worstWantMs: number;
  readonly log: readonly string[];
}

/** Things that happen at a time; those of the same time in the order in which they were planned. */
export class Timeline {
  readonly #planned: { atMs: number; act: () => void }[] = [];
  nowMs = 0;

  at(atMs: number, act: () => void): void {
    let low = 0;
    let high = this.#planned.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#planned[middle]?.atMs ?? 0) > atMs) low = middle + 1;
      else high = middle;
    }
    // The end of the list comes first.
    this.#planned.splice(low, 0, { atMs, act });
  }

  /** Does all that is planned for the next time; false: nothing is. */
  next(): boolean {
    const first = this.#planned.at(-1);
    if (first === undefined) return false;
    this.nowMs = Math.max(this.nowMs, first.atMs);
    while ((this.#planned.at(-1)?.atMs ?? Number.POSITIVE_INFINITY) <= this.nowMs) this.#planned.pop()?.act();
    return true;
  }
}

interface Waiting {
  readonly atMs: number;
  readonly runMs: number;
  readonly caller?: Caller;
}

interface Place {
  readonly spec: PlannedPool;
  readonly line: Waiting[];
  residence: "unloaded" | "loading" | "loaded" | "unloading";
  held: boolean;
  busy: number;
  started: number;
  dirty: boolean;
  /** Those that waited when it was loaded, and have neither started nor given up. */
  group: Set<Waiting>;
  loadedMs: number;
  wantMs: number | null;
}

export class ResidencyWorld {
  readonly #time = new Timeline();
  readonly #scenario: Scenario;
  readonly #state: Residency;
  readonly #places: ReadonlyMap<string, Place>;
  readonly #lent = new Map<string, number>();
  readonly #log: string[] = [];
  #loads = 0;
  #waits: number[] = [];
  #worstWantMs = 0;
  #endMs = 0;

  constructor(scenario: Scenario) {
    this.#scenario = scenario;
    this.#state = createResidency(scenario.rules, scenario.devices, scenario.pools);
    this.#places = new Map(
      scenario.pools.map((spec) => [
        spec.poolId,
        {
          spec,
          line: [],
          residence: "unloaded",
          held: false,
          busy: 0,
          started: 0,
          dirty: false,
          group: new Set<Waiting>(),
          loadedMs: 0,
          wantMs: null,
        },
      ]),
    );
    for (const arrival of scenario.arrivals) this.#time.at(arrival.atMs, () => this.#arrive(arrival));
    for (const caller of scenario.callers ?? []) this.#time.at(caller.atMs, () => this.#call(caller));
    for (const loan of scenario.loans ?? []) this.#plan(loan);
  }

  /** Runs until nothing is planned any more. */
  run(): Outcome {
    this.#turn();
    for (let turns = 0; this.#time.next(); turns += 1) {
      if (turns > 1_000_000) throw new Error("it never comes to rest");
      this.#turn();
    }
    for (const { spec, line, busy } of this.#places.values())
      expect({ pool: spec.poolId, waiting: line.length, busy }).toEqual({
        pool: spec.poolId,
        waiting: 0,
        busy: 0,
      });
    return {
      loads: this.#loads,
      worstWaitMs: Math.max(0, ...this.#waits),
      meanWaitMs: this.#waits.reduce((sum, ms) => sum + ms, 0) / Math.max(1, this.#waits.length),
      endMs: this.#endMs,
      started: this.#waits.length,
      worstWantMs: this.#worstWantMs,
      log: this.#log,
    };
  }

  isLoaded = (poolId: string): boolean => this.#place(poolId).residence === "loaded";

  #plan({ atMs, untilMs, deviceId, bytes }: Loan): void {
    this.#time.at(atMs, () => {
      this.#lent.set(deviceId, bytes);
      tell(this.#state, { type: "device_lent", deviceId, bytes }, this.#time.nowMs);
    });
    this.#time.at(untilMs, () => {
      this.#lent.delete(deviceId);
      tell(this.#state, { type: "device_returned", deviceId }, this.#time.nowMs);
    });
  }

  #arrive({ poolId, runMs, patienceMs }: Arrival): void {
    const place = this.#place(poolId);
    const task: Waiting = { atMs: this.#time.nowMs, runMs };
    place.line.push(task);
    place.dirty = true;
    if (patienceMs === undefined) return;
    this.#time.at(this.#time.nowMs + patienceMs, () => {
      const at = place.line.indexOf(task);
      if (at < 0) return;
      place.line.splice(at, 1);
      place.group.delete(task);
      place.dirty = true;
    });
  }

  #call(caller: Caller): void {
    const place = this.#place(caller.poolId);
    place.line.push({ atMs: this.#time.nowMs, runMs: caller.runMs, caller });
    place.dirty = true;
  }

  #turn(): void {
    for (let rounds = 0; ; rounds += 1) {
      if (rounds > 100) throw new Error(`a turn does not end: ${this.#log.slice(-12).join("; ")}`);
      for (const place of this.#places.values()) this.#dispatch(place);
      for (const place of this.#places.values()) this.#report(place);
      const commands = decide(this.#state, this.#time.nowMs);
      for (const command of commands) this.#carryOut(command);
      if (commands.every(({ type }) => type === "wake_at")) break;
    }
    for (const place of this.#places.values()) this.#noteWant(place);
  }

  #dispatch(place: Place): void {
    while (place.residence === "loaded" && !place.held && place.busy < place.spec.slots) {
      const task = place.line.shift();
      if (task === undefined) return;
      place.group.delete(task);
      place.busy += 1;
      place.started += 1;
      place.dirty = true;
      this.#waits.push(this.#time.nowMs - task.atMs);
      this.#time.at(this.#time.nowMs + task.runMs, () => {
        place.busy -= 1;
        place.dirty = true;
        this.#endMs = this.#time.nowMs;
        callAgain(this.#time, task.caller, (next) => this.#call(next));
      });
    }
  }

  #report(place: Place): void {
    if (!place.dirty) return;
    const { spec, busy, line, started } = place;
    tell(
      this.#state,
      {
        type: "work_changed",
        poolId: spec.poolId,
        busy,
        waiting: line.length,
        oldestMs: line[0]?.atMs ?? null,
        started,
      },
      this.#time.nowMs,
    );
    place.started = 0;
    place.dirty = false;
  }

  #noteWant(place: Place): void {
    const wants = place.residence === "unloaded" && place.line.length > 0;
    if (wants) place.wantMs ??= this.#time.nowMs;
    // Who wanted it may have given up.
    else if (place.residence === "unloaded") place.wantMs = null;
  }

  #carryOut(command: ResidencyCommand): void {
    const { nowMs } = this.#time;
    const { type, ...rest } = command;
    this.#log.push(`${nowMs} ${type} ${Object.values(rest).join(" ")}`);
    if (type === "wake_at") {
      expect(command.atMs).toBeGreaterThan(nowMs);
      this.#time.at(command.atMs, () => undefined);
      return;
    }
    const place = this.#place(command.poolId);
    if (type === "load_pool") this.#load(place);
    else if (type === "unload_pool") this.#unload(place, command.why);
    else if (type === "hold_pool") {
      expect(place.held).toBe(false);
      place.held = true;
      if (command.for !== null) this.#expectTurnOver(place);
    } else {
      expect(place.held).toBe(true);
      place.held = false;
    }
  }

  #load(place: Place): void {
    expect(place.residence).toBe("unloaded");
    place.residence = "loading";
    // Others may have to leave a device of which it takes nothing.
    for (const [deviceId, bytes] of place.spec.needs) if (bytes > 0) this.#expectFits(deviceId);
    const { poolId, loadMs } = place.spec;
    const number = this.#loads;
    this.#loads += 1;
    this.#time.at(this.#time.nowMs + loadMs, () => {
      const { nowMs } = this.#time;
      const { failing } = this.#scenario;
      if (failing?.loads.has(number) === true) {
        place.residence = "unloaded";
        place.held = false;
        place.wantMs = null;
        const retryAtMs = nowMs + failing.retryMs;
        tell(this.#state, { type: "pool_load_failed", poolId, retryAtMs }, nowMs);
        return;
      }
      place.residence = "loaded";
      place.loadedMs = nowMs;
      place.group = new Set(place.line);
      // It was told of them before.
      this.#report(place);
      if (place.wantMs !== null) this.#worstWantMs = Math.max(this.#worstWantMs, nowMs - place.wantMs);
      place.wantMs = null;
      tell(this.#state, { type: "pool_loaded", poolId, tookMs: loadMs }, nowMs);
    });
  }

  #unload(place: Place, why: string): void {
    expect(place.residence).toBe("loaded");
    expect(place.busy).toBe(0);
    if (why === "pool") this.#expectTurnOver(place);
    if (why === "idle") {
      expect(place.line).toEqual([]);
      expect(place.spec.preload).toBe(false);
    }
    place.residence = "unloading";
    place.held = false;
    this.#time.at(this.#time.nowMs + place.spec.unloadMs, () => {
      place.residence = "unloaded";
      tell(this.#state, { type: "pool_unloaded", poolId: place.spec.poolId }, this.#time.nowMs);
    });
  }

  /** Nobody has to leave before all that waited when it was loaded has started, or its time is up. */
  #expectTurnOver(place: Place): void {
    const timeUp = this.#time.nowMs >= place.loadedMs + this.#scenario.rules.swapTurnMaxMs;
    if (!timeUp) expect([...place.group]).toEqual([]);
  }

  #expectFits(deviceId: string): void {
    const device = this.#scenario.devices.find((one) => one.deviceId === deviceId);
    let held = 0;
    for (const { spec, residence } of this.#places.values())
      if (residence !== "unloaded") held += spec.needs.get(deviceId) ?? 0;
    const lent = this.#lent.get(deviceId) ?? 0;
    expect(held).toBeLessThanOrEqual(
      Math.max(0, (device?.totalBytes ?? 0) - (device?.reservedBytes ?? 0) - lent),
    );
  }

  #place(poolId: string): Place {
    const place = this.#places.get(poolId);
    if (place === undefined) throw new Error(`no pool ${poolId}`);
    return place;
  }
}

export function callAgain(time: Timeline, caller: Caller | undefined, call: (next: Caller) => void): void {
  if (caller === undefined || caller.calls === 1) return;
  const next = { ...caller, calls: caller.calls - 1 };
  time.at(time.nowMs + caller.pauseMs, () => call(next));
}

export const runResidency = (scenario: Scenario): Outcome => new ResidencyWorld(scenario).run();

/** The bound that the head of residency.ts states, for pools that all share devices and loads that do not fail. */
export function wantBoundMs({ rules, pools, arrivals, callers = [] }: Scenario): number {
  const most = (values: readonly number[]): number => Math.max(0, ...values);
  const loadMs = most(pools.map((pool) => pool.loadMs));
  const stageMs =
    loadMs +
    rules.swapTurnMaxMs +
    most([...arrivals, ...callers].map(({ runMs }) => runMs)) +
    most(pools.map(({ unloadMs }) => unloadMs));
  return rules.swapMaxWaitMs + pools.length * stageMs + loadMs;
}
