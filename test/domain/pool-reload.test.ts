/** The reload machine: its way from end to end, and what any sequence of events leaves true. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  beginReload,
  isOver,
  type Reload,
  type ReloadCommand,
  type ReloadEvent,
  type ReloadStrategy,
  reloadPhases,
  reloadStrategies,
  startsNothing,
  stepReload,
} from "../../src/domain/pool-reload.ts";

const wrong = { type: "new_failed", problem: "no memory" } as const;
const all: readonly ReloadEvent[] = [
  { type: "checked" },
  { type: "check_failed", problem: "other bytes" },
  { type: "deadline_passed" },
  { type: "quiet" },
  { type: "old_stopped" },
  { type: "new_ready" },
  wrong,
  { type: "rechecked" },
  { type: "flipped" },
  { type: "new_stopped" },
];
function run(
  events: readonly (ReloadEvent | ReloadEvent["type"])[],
  strategy: ReloadStrategy = "recreate",
): {
  state: Reload;
  commands: ReloadCommand[];
} {
  let { state, commands } = beginReload(strategy);
  const told = [...commands];
  for (const one of events) {
    const event = typeof one === "string" ? all.find(({ type }) => type === one) : one;
    if (event === undefined) throw new Error(`no event ${String(one)}`);
    ({ state, commands } = stepReload(state, event));
    told.push(...commands);
  }
  return { state, commands: told };
}

describe("a reload beside what serves", () => {
  test("loads, checks again, flips, drains and stops, in this order (ORCHD-RELOAD-5)", () => {
    const events = [
      "checked",
      "new_ready",
      "rechecked",
      "flipped",
      "deadline_passed",
      "quiet",
      "old_stopped",
    ];
    const { state, commands } = run(events as ReloadEvent["type"][], "surge");
    expect(state).toMatchObject({ phase: "done", problem: null });
    expect(commands).toEqual(
      "check start_new hold recheck flip release arm cut stop_old conclude".split(" ") as ReloadCommand[],
    );
  });

  test.each([
    [["checked"], "stop_new conclude"],
    [["checked", "new_ready"], "release stop_new conclude"],
    [["checked", "new_ready", "rechecked"], "release stop_new conclude"],
  ] as const)("that fails behind %p leaves the old ones as they are (ORCHD-RELOAD-5)", (events, told) => {
    const { state, commands } = run([...events, wrong, "new_stopped"], "surge");
    expect(state).toMatchObject({ phase: "failed", problem: "no memory" });
    expect(commands.slice(-told.split(" ").length).join(" ")).toBe(told);
  });
});

describe("a reload", () => {
  test("drains, stops, loads, checks again, flips and releases, in this order (ORCHD-RELOAD-1)", () => {
    const events = [
      "checked",
      "deadline_passed",
      "quiet",
      "old_stopped",
      "new_ready",
      "rechecked",
      "flipped",
    ] as const;
    const { state, commands } = run(events);
    expect(state).toMatchObject({ phase: "done", problem: null });
    expect(commands).toEqual(
      "check hold arm cut stop_old start_new recheck flip release conclude".split(" ") as ReloadCommand[],
    );
  });

  test("touches nothing where the file is wrong (ORCHD-RELOAD-2)", () => {
    const { state, commands } = run(["check_failed", "quiet", "new_ready"]);
    expect(state).toMatchObject({ phase: "failed", problem: "other bytes" });
    expect(commands).toEqual(["check", "conclude"]);
  });

  test.each([
    [["checked", "quiet", "old_stopped"]],
    [["checked", "quiet", "old_stopped", "new_ready"]],
    [["checked", "quiet", "old_stopped", "new_ready", "rechecked"]],
  ] as const)("that fails behind %p starts the old ones again (ORCHD-RELOAD-2)", (events) => {
    const { state, commands } = run([...events, wrong, "new_stopped"]);
    expect(state).toMatchObject({ phase: "failed", problem: "no memory" });
    expect(commands.slice(-4)).toEqual(["stop_new", "start_old", "release", "conclude"]);
  });

  test.each([...reloadStrategies])(
    "%s never stops the old before it is quiet, never flips unchecked, ends once",
    (strategy) => {
      fc.assert(
        fc.property(fc.array(fc.constantFrom(...all), { maxLength: 60 }), (events) => {
          const { state, commands } = run(events, strategy);
          const at = (command: ReloadCommand) => commands.indexOf(command);
          const count = (command: ReloadCommand) => commands.filter((one) => one === command).length;
          for (const once of ["hold", "stop_old", "start_new", "flip", "release", "conclude"] as const)
            expect(count(once)).toBeLessThanOrEqual(1);
          expect(count("conclude")).toBe(isOver(state) ? 1 : 0);
          // Whoever was held is released by the end.
          if (isOver(state)) expect(count("release")).toBe(count("hold"));
          if (at("flip") >= 0) expect(at("recheck")).toBeLessThan(at("flip"));
          if (state.phase === "failed" && strategy === "recreate")
            expect(count("start_old")).toBe(count("stop_old"));
          if (state.phase === "failed" && strategy === "surge") expect(count("stop_old")).toBe(0);
          if (state.phase === "done") expect([count("flip"), count("start_old")]).toEqual([1, 0]);
        }),
      );
    },
  );
});

test("nothing starts from the hold of a recreate to its end; a surge serves all the while (ORCHD-RELOAD-1)", () => {
  const held = (strategy: ReloadStrategy) =>
    reloadPhases.filter((phase) => startsNothing({ strategy, phase, problem: null }));
  expect(held("surge")).toEqual([]);
  expect(held("recreate")).toEqual(
    reloadPhases.filter((one) => !["checking", "done", "failed"].includes(one)),
  );
});
