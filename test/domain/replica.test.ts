/** The replica machine: tables for each path. Walks through arbitrary facts are in replica-walks.test.ts. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { limits } from "../../src/domain/limits.ts";
import { step } from "../../src/domain/replica.ts";
import {
  backoffDelayMs,
  newReplica,
  type Replica,
  type ReplicaCommand,
  type ReplicaEvent,
  stopLadderMs,
} from "../../src/domain/replica-model.ts";
import { replicaPolicy } from "../support/replica-world.ts";
import { identity } from "../support/replicas.ts";

const speed = { prefillTps: 100, decodeTps: 50 };
const died = { type: "process_exited", code: 1, signal: null, reason: null, logTail: [] } as const;

/** Applies the events in order and returns the last state with all commands given on the way. */
function after(
  from: Replica,
  events: readonly ReplicaEvent[],
  nowMs = 0,
  jitter = 0,
): { state: Replica; commands: ReplicaCommand[] } {
  const commands: ReplicaCommand[] = [];
  let state = from;
  for (const event of events) {
    const next = step(state, event, nowMs, replicaPolicy, jitter);
    state = next.state;
    commands.push(...next.commands);
  }
  return { state, commands };
}

const incarnation = 1;
const toLoading: ReplicaEvent[] = [
  { type: "start_requested" },
  { type: "process_started", incarnation, pid: 42 },
];
const toWarming: ReplicaEvent[] = [...toLoading, { type: "health_ok", incarnation }];
const toReady: ReplicaEvent[] = [
  ...toWarming,
  { type: "warm_up_done", incarnation, identity: identity(), speed },
];
const toBusy: ReplicaEvent[] = [...toReady, { type: "slots_changed", incarnation, slotsBusy: 2 }];

const types = (commands: readonly ReplicaCommand[]): string[] => commands.map((command) => command.type);
const timersSet = (commands: readonly ReplicaCommand[]): Record<string, number> =>
  Object.fromEntries(
    commands.flatMap((command) => (command.type === "set_timer" ? [[command.timer, command.ms]] : [])),
  );

describe("the way up", () => {
  test("ready comes after a health answer and a real decode, and not before", () => {
    const loading = after(newReplica(), toLoading);
    expect(loading.state.state).toBe("loading");
    expect(types(loading.commands)).toEqual(["start_process", "set_timer", "probe_health"]);
    const warming = after(loading.state, [{ type: "health_ok", incarnation }]);
    expect(warming.state.state).toBe("warming");
    expect(types(warming.commands)).toEqual(["cancel_timer", "warm_up"]);
    expect(types([...loading.commands, ...warming.commands])).not.toContain("report_ready");
    const ready = after(warming.state, toReady.slice(-1));
    expect(ready.state).toMatchObject({ state: "ready", pid: 42, incarnation: 1, restarts: 0 });
    expect(ready.commands).toEqual([
      { type: "cancel_timer", timer: "load" },
      { type: "remove_secrets" },
      { type: "report_ready", speed },
    ]);
  });

  test("a probe without an answer is repeated by the clock", () => {
    const pending = after(newReplica(), [...toLoading, { type: "health_pending", incarnation }]);
    expect(pending.commands.at(-1)).toEqual({ type: "set_timer", timer: "probe", ms: 50 });
    const fired = after(pending.state, [{ type: "timer_fired", incarnation, timer: "probe", logTail: [] }]);
    expect(types(fired.commands)).toEqual(["probe_health"]);
  });

  test("an engine that announces itself is probed at once, also while a probe is on its way", () => {
    const waiting = after(newReplica(), [...toLoading, { type: "health_pending", incarnation }]);
    const announced = after(waiting.state, [{ type: "engine_announced", incarnation }]);
    expect(types(announced.commands)).toEqual(["cancel_timer", "probe_health"]);
    const during = after(newReplica(), [...toLoading, { type: "engine_announced", incarnation }]);
    expect(types(during.commands)).toEqual(["start_process", "set_timer", "probe_health"]);
    const answered = after(during.state, [{ type: "health_pending", incarnation }]);
    expect(types(answered.commands)).toEqual(["probe_health"]);
  });

  test("slots make it busy and ready again", () => {
    const busy = after(newReplica(), toBusy);
    expect(busy.state).toMatchObject({ state: "busy", slotsBusy: 2 });
    const more = after(busy.state, [{ type: "slots_changed", incarnation, slotsBusy: 4 }]);
    expect(more.state).toMatchObject({ state: "busy", slotsBusy: 4 });
    expect(after(more.state, [{ type: "slots_changed", incarnation, slotsBusy: 0 }]).state.state).toBe(
      "ready",
    );
    expect(() => after(busy.state, [{ type: "slots_changed", incarnation, slotsBusy: 5 }])).toThrow("5 of 4");
  });
});

describe("failures", () => {
  const cases: [string, ReplicaEvent[], ReplicaEvent, string, boolean][] = [
    ["exit while loading", toLoading, { ...died, incarnation }, "crashed", false],
    ["exit while warming", toWarming, { ...died, incarnation }, "crashed", false],
    ["exit while ready", toReady, { ...died, incarnation }, "crashed", true],
    ["exit while busy", toBusy, { ...died, incarnation, code: null, signal: "SIGSEGV" }, "crashed", true],
  ];
  for (const [name, way, event, cause, lost] of cases) {
    test(`${name}: backoff`, () => {
      const before = after(newReplica(), way);
      const { state, commands } = after(before.state, [event]);
      expect(state).toMatchObject({ state: "backoff", pid: null, slotsBusy: 0, identity: null });
      expect(state.lastError?.cause).toBe(cause as "crashed");
      expect(types(commands).includes("report_lost")).toBe(lost);
      expect(types(commands)).toContain("clean_up");
      expect(timersSet(commands).backoff).toBe(50);
    });
  }

  const kills: [string, ReplicaEvent[], ReplicaEvent, string, boolean][] = [
    [
      "load timeout",
      toLoading,
      { type: "timer_fired", incarnation, timer: "load", logTail: ["slow"] },
      "load_timeout",
      false,
    ],
    [
      "a first decode that hangs",
      toWarming,
      { type: "timer_fired", incarnation, timer: "load", logTail: [] },
      "load_timeout",
      false,
    ],
    [
      "a first decode that fails",
      toWarming,
      { type: "warm_up_failed", incarnation, message: "nonsense", logTail: [] },
      "warm_up_failed",
      false,
    ],
    ["wedged", toBusy, { type: "wedged", incarnation, message: "no token", logTail: [] }, "wedged", true],
  ];
  for (const [name, way, event, cause, lost] of kills) {
    test(`${name}: killed, and started again only when reaped`, () => {
      const before = after(newReplica(), way);
      const failed = after(before.state, [event]);
      expect(failed.state).toMatchObject({ state: "failed", process: "running" });
      expect(failed.state.lastError?.cause).toBe(cause as "wedged");
      expect(failed.commands).toContainEqual({ type: "signal", signal: "SIGKILL" });
      expect(types(failed.commands).includes("report_lost")).toBe(lost);
      expect(types(failed.commands)).not.toContain("start_process");
      const reaped = after(failed.state, [{ ...died, incarnation, code: null, signal: "SIGKILL" }]);
      expect(reaped.state.state).toBe("backoff");
      // Our own SIGKILL is not the cause.
      expect(reaped.state.lastError?.cause).toBe(cause as "wedged");
      const again = after(reaped.state, [
        { type: "timer_fired", incarnation, timer: "backoff", logTail: [] },
      ]);
      expect(again.state).toMatchObject({ state: "starting", incarnation: 2, restarts: 1 });
    });
  }

  test("the backoff doubles, is bounded, and a decoded token starts it anew", () => {
    let state = after(newReplica(), toReady).state;
    const waits: number[] = [];
    for (let n = 1; n <= 7; n += 1) {
      const down = after(
        state,
        [{ ...died, incarnation: n, code: null, signal: "SIGSEGV" }],
        n * 100_000,
        0.999,
      );
      waits.push(timersSet(down.commands).backoff ?? -1);
      state = after(down.state, [
        { type: "timer_fired", incarnation: n, timer: "backoff", logTail: [] },
        { type: "process_started", incarnation: n + 1, pid: 1 },
        { type: "health_ok", incarnation: n + 1 },
        { type: "warm_up_done", incarnation: n + 1, identity: identity(), speed },
      ]).state;
    }
    expect(waits).toEqual([100, 200, 400, 800, 1000, 1000, 1000]);
    const decoded = after(state, [
      { type: "progress_made", incarnation: 8 },
      { ...died, incarnation: 8 },
    ]);
    expect(timersSet(decoded.commands).backoff).toBe(50);
  });

  test("jitter spreads a wait over its upper half", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 2000 }),
        fc.double({ min: 0, max: 0.999, noNaN: true }),
        (n, jitter) => {
          const ms = backoffDelayMs(n, replicaPolicy, jitter);
          const full = Math.min(1000, 100 * 2 ** (n - 1));
          return ms >= full / 2 && ms <= full;
        },
      ),
    );
  });
});

describe("the breaker", () => {
  const failStart = (state: Replica, nowMs: number, logTail: string[] = []) => {
    const n = state.incarnation + (state.state === "stopped" ? 1 : 0);
    const begin: ReplicaEvent[] =
      state.state === "stopped"
        ? [{ type: "start_requested" }]
        : [{ type: "timer_fired", incarnation: n, timer: state.state as "backoff", logTail: [] }];
    const at = state.state === "stopped" ? n : n + 1;
    return after(
      state,
      [...begin, { type: "process_started", incarnation: at, pid: 1 }, { ...died, incarnation: at, logTail }],
      nowMs,
    );
  };

  /** The circuit is open after three failures that may pass. */
  const storm = (nowMs = 0) => {
    let next = failStart(newReplica(), nowMs);
    for (let n = 0; n < 2; n += 1) next = failStart(next.state, nowMs);
    return next;
  };

  test("opens after three starts in its window that never became ready", () => {
    let state = newReplica();
    const seen: string[] = [];
    for (const nowMs of [0, 1000, 2000]) {
      const next = failStart(state, nowMs);
      state = next.state;
      seen.push(state.state);
      expect(types(next.commands).includes("report_unavailable")).toBe(state.state === "circuit_open");
    }
    expect(seen).toEqual(["backoff", "backoff", "circuit_open"]);
  });

  test("stays closed when the failures are further apart than its window", () => {
    let state = newReplica();
    for (const nowMs of [0, 100_000, 200_000, 300_000]) state = failStart(state, nowMs).state;
    expect(state.state).toBe("backoff");
  });

  test("does not count crashes of replicas that were ready", () => {
    let state = newReplica();
    for (let n = 1; n <= 10; n += 1) {
      const begin: ReplicaEvent =
        n === 1
          ? { type: "start_requested" }
          : { type: "timer_fired", incarnation: n - 1, timer: "backoff", logTail: [] };
      state = after(state, [
        begin,
        { type: "process_started", incarnation: n, pid: 1 },
        { type: "health_ok", incarnation: n },
        { type: "warm_up_done", incarnation: n, identity: identity(), speed },
        { ...died, incarnation: n },
      ]).state;
      expect(state.state).toBe("backoff");
    }
  });

  test("opens at once for a cause that waiting does not cure", () => {
    const next = failStart(newReplica(), 0, ["error: invalid argument: --frobnicate"]);
    expect(next.state.state).toBe("circuit_open");
    expect(next.state.lastError?.cause).toBe("bad_flag");
    const spawn = after(newReplica(), [
      { type: "start_requested" },
      { type: "start_failed", incarnation, message: "cannot start x (ENOENT)" },
    ]);
    expect(spawn.state.state).toBe("circuit_open");
    expect(types(spawn.commands)).toContain("clean_up");
  });

  test("opened by what only a change can mend, it stays open until something has changed", () => {
    const open = failStart(newReplica(), 0, ["error: invalid argument: --frobnicate"]);
    expect(timersSet(open.commands)).toMatchObject({ look: limits.changeLookMs });
    expect(timersSet(open.commands).half_open).toBeUndefined();
    const due: ReplicaEvent = { type: "timer_fired", incarnation: 1, timer: "look", logTail: [] };
    expect(after(open.state, [due], 1_000)).toEqual({
      state: open.state,
      commands: [{ type: "look", asked: false }],
    });
    const looked = (changed: boolean, steady: boolean, isAsked = false) =>
      after(open.state, [{ type: "looked", incarnation: 1, changed, steady, asked: isAsked }], 1_000);
    for (const [changed, steady] of [
      [false, true],
      [false, false],
      // A file that is being copied is left to come whole.
      [true, false],
    ] as const) {
      const same = looked(changed, steady);
      expect([same.state.state, timersSet(same.commands)]).toEqual([
        "circuit_open",
        { look: limits.changeLookMs },
      ]);
    }
    const other = looked(true, true);
    expect(other.state).toMatchObject({ state: "starting", halfOpen: true, incarnation: 2, restarts: 1 });
    expect(other.commands[0]).toEqual({ type: "cancel_timer", timer: "half_open" });
    const late = { type: "looked", incarnation: 1, changed: true, steady: true, asked: false } as const;
    expect(after(other.state, [late]).commands).toEqual([]);
    // Who asks for the pool hears that it is as it was, or has it tried, no closer than the backoff.
    const task = after(open.state, [{ type: "start_requested" }], 90_000);
    expect(task.commands).toEqual([{ type: "look", asked: true }]);
    expect(types(looked(false, true, true).commands)).toEqual(["report_unavailable"]);
    expect(timersSet(looked(true, false, true).commands)).toEqual({ half_open: 0 });
    const asked = after(open.state, [{ type: "start_requested", anyway: true }], 90_000);
    expect(timersSet(asked.commands)).toEqual({ half_open: 0 });
  });

  test("half-opens after its window: one try, then open again or ready for good", () => {
    const open = storm();
    expect(timersSet(open.commands).half_open).toBe(60_000);
    const half: ReplicaEvent = { type: "timer_fired", incarnation: 3, timer: "half_open", logTail: [] };
    const tried = after(open.state, [half], 60_000);
    expect(tried.state).toMatchObject({ state: "starting", halfOpen: true });
    const started: ReplicaEvent = { type: "process_started", incarnation: 4, pid: 1 };
    expect(after(tried.state, [started, { ...died, incarnation: 4 }], 60_010).state.state).toBe(
      "circuit_open",
    );
    const ready = after(tried.state, [
      started,
      { type: "health_ok", incarnation: 4 },
      { type: "warm_up_done", incarnation: 4, identity: identity(), speed },
    ]);
    expect(after(ready.state, [{ ...died, incarnation: 4 }]).state.state).toBe("backoff");
  });

  test("asking for the pool brings the try forward, no closer than the backoff", () => {
    const open = storm(1000);
    const soon = after(open.state, [{ type: "start_requested" }], 1010);
    expect(soon.commands).toEqual([{ type: "set_timer", timer: "half_open", ms: 190 }]);
    const late = after(open.state, [{ type: "start_requested" }], 9000);
    expect(late.commands).toEqual([{ type: "set_timer", timer: "half_open", ms: 0 }]);
  });
});

describe("the way down", () => {
  test("an idle engine: SIGTERM at once, then the ladder", () => {
    const { state, commands } = after(after(newReplica(), toReady).state, [{ type: "stop_requested" }]);
    expect(state.state).toBe("stopping");
    expect(commands).toEqual([
      { type: "report_lost", failure: null },
      { type: "close_client" },
      { type: "signal", signal: "SIGTERM" },
      { type: "set_timer", timer: "second_term", ms: 2150 },
      { type: "set_timer", timer: "kill", ms: 3150 },
    ]);
  });

  test("a working engine: its clients are closed first, so that it notices; the grace bounds the ladder", () => {
    const { state, commands } = after(after(newReplica(), toBusy).state, [{ type: "stop_requested" }]);
    expect(commands).toEqual([
      { type: "report_lost", failure: null },
      { type: "close_client" },
      { type: "set_timer", timer: "first_term", ms: 150 },
      { type: "set_timer", timer: "second_term", ms: 2150 },
      { type: "set_timer", timer: "kill", ms: 3150 },
    ]);
    const first = after(state, [{ type: "timer_fired", incarnation, timer: "first_term", logTail: [] }]);
    expect(first.commands).toEqual([{ type: "signal", signal: "SIGTERM" }]);
    const second = after(first.state, [
      { type: "timer_fired", incarnation, timer: "second_term", logTail: [] },
    ]);
    expect(second.commands).toEqual([{ type: "signal", signal: "SIGTERM" }]);
    const kill = after(second.state, [{ type: "timer_fired", incarnation, timer: "kill", logTail: [] }]);
    expect(kill.commands).toEqual([{ type: "signal", signal: "SIGKILL" }]);
    const gone = after(kill.state, [{ ...died, incarnation }]);
    expect(gone.state).toMatchObject({ state: "stopped", lastError: null });
    expect(types(gone.commands)).toContain("clean_up");
    expect(stopLadderMs(315)).toEqual({ firstTermMs: 15, secondTermMs: 215, killMs: 315 });
  });

  test("a second signal kills at once", () => {
    const stopping = after(after(newReplica(), toReady).state, [{ type: "stop_requested" }]).state;
    const forced = after(stopping, [{ type: "force_stop_requested" }]);
    expect(forced.commands).toContainEqual({ type: "signal", signal: "SIGKILL" });
    expect(forced.commands).toContainEqual({ type: "cancel_timer", timer: "kill" });
    const atOnce = after(after(newReplica(), toBusy).state, [{ type: "force_stop_requested" }]);
    expect(types(atOnce.commands)).toEqual(["report_lost", "close_client", "signal"]);
  });

  test("draining waits for the last slot, or for its deadline", () => {
    const busy = after(newReplica(), toBusy).state;
    const draining = after(busy, [{ type: "drain_requested", deadlineMs: 700 }]);
    expect(draining.state.state).toBe("draining");
    expect(timersSet(draining.commands)).toEqual({ drain: 700 });
    const freed = after(draining.state, [
      { type: "slots_changed", incarnation, slotsBusy: 1 },
      { type: "slots_changed", incarnation, slotsBusy: 0 },
    ]);
    expect(freed.state.state).toBe("stopping");
    const late = after(draining.state, [{ type: "timer_fired", incarnation, timer: "drain", logTail: [] }]);
    expect(late.state.state).toBe("stopping");
    expect(after(draining.state, [{ ...died, incarnation }]).state.state).toBe("stopped");
    const idle = after(newReplica(), toReady).state;
    expect(after(idle, [{ type: "drain_requested", deadlineMs: 700 }]).state.state).toBe("stopping");
  });

  test("asked for again while it stops, it starts when it is reaped", () => {
    const { state } = after(after(newReplica(), toReady).state, [
      { type: "stop_requested" },
      { type: "start_requested" },
    ]);
    expect(state.state).toBe("stopping");
    const again = after(state, [{ ...died, incarnation, code: 0 }]);
    expect(again.state).toMatchObject({ state: "starting", incarnation: 2, restarts: 0 });
    expect(types(again.commands).slice(-3)).toEqual(["close_client", "clean_up", "start_process"]);
  });

  test("a process that comes after the stop gets the whole ladder", () => {
    const { state, commands } = after(newReplica(), [
      { type: "start_requested" },
      { type: "stop_requested" },
    ]);
    expect(types(commands)).toEqual(["start_process"]);
    const came = after(state, [{ type: "process_started", incarnation, pid: 7 }]);
    expect(types(came.commands)).toEqual(["close_client", "signal", "set_timer", "set_timer"]);
  });
});

describe("facts", () => {
  test("of an older incarnation change nothing; of one that never was are a mistake", () => {
    const second = after(newReplica(), [
      ...toLoading,
      { ...died, incarnation },
      { type: "timer_fired", incarnation, timer: "backoff", logTail: [] },
    ]).state;
    const stale: ReplicaEvent[] = [
      { type: "health_ok", incarnation },
      { ...died, incarnation },
      { type: "wedged", incarnation, message: "", logTail: [] },
      { type: "slots_changed", incarnation, slotsBusy: 99 },
    ];
    for (const event of stale) expect(after(second, [event])).toEqual({ state: second, commands: [] });
    expect(() => after(second, [{ type: "health_ok", incarnation: 3 }])).toThrow("were started");
  });

  const illegal: [string, ReplicaEvent[], ReplicaEvent][] = [
    ["an exit without a process", [], { ...died, incarnation: 0 }],
    ["a second process", toLoading, { type: "process_started", incarnation, pid: 9 }],
    ["a health answer that nobody asked for", toReady, { type: "health_ok", incarnation }],
    ["a timer that was cancelled", toReady, { type: "timer_fired", incarnation, timer: "load", logTail: [] }],
    [
      "a watchdog before the first lease",
      toLoading,
      { type: "wedged", incarnation, message: "", logTail: [] },
    ],
  ];
  for (const [name, way, event] of illegal) {
    test(`${name} asserts`, () => {
      const { state } = after(newReplica(), way);
      expect(() => after(state, [event])).toThrow("assertion failed");
    });
  }

  test("late words about leases of a replica that is gone are fine", () => {
    const gone = after(newReplica(), [...toBusy, { ...died, incarnation }]).state;
    for (const event of [
      { type: "slots_changed", incarnation, slotsBusy: 1 },
      { type: "progress_made", incarnation },
      { type: "wedged", incarnation, message: "", logTail: [] },
      { type: "health_pending", incarnation },
    ] as const) {
      expect(after(gone, [event]).commands).toEqual([]);
    }
  });
});
