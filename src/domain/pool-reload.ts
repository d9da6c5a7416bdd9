/**
 * The reload machine: how a pool gets another model, or its own anew, and what happens where that fails. Pure: events
 * in, the next state and commands as data out. services/pool-reload.ts feeds it and carries the commands out.
 *
 * recreate, where two generations of engines do not fit into memory:
 *
 * | phase      | what goes on                                               | left by                                  |
 * |------------|------------------------------------------------------------|------------------------------------------|
 * | checking   | the file is compared with its digest; tasks run as ever    | checked → draining; check_failed → failed |
 * | draining   | nothing new starts; at the deadline what runs is cut       | quiet → stopping                         |
 * | stopping   | the old replicas end                                       | old_stopped → loading                    |
 * | loading    | the new replicas load and decode for the first time        | new_ready → rechecking; new_failed → discarding |
 * | rechecking | what waits is held against the new model                   | rechecked → flipping; new_failed → discarding |
 * | flipping   | the new model is stored as the pool's                      | flipped → done; new_failed → discarding  |
 * | discarding | the new replicas end                                       | new_stopped → failed                     |
 *
 * surge, without a pause:
 *
 * | checking   | as above                                                   | checked → loading; check_failed → failed |
 * | loading    | the new replicas load beside the old ones, which serve     | as above                                 |
 * | rechecking | as above; for so long nothing new starts                   | as above                                 |
 * | flipping   | the new model is stored as the pool's                      | flipped → draining; new_failed → discarding |
 * | draining   | what is new starts on the new replicas; at the deadline what runs on the old ones is cut | quiet → stopping |
 * | stopping   | the old replicas end                                       | old_stopped → done                       |
 * | discarding | the new replicas end, the old ones serve                   | new_stopped → failed                     |
 *
 * In both done means that the new replicas serve, failed that the old model is the pool's.
 *
 * Always holds: whoever is held is released by the end; whatever fails before `flipped`, the old replicas serve or are
 * started again; behind it there is no way back.
 */
import { assert } from "./assert.ts";

export const reloadStrategies = ["surge", "recreate"] as const;
export type ReloadStrategy = (typeof reloadStrategies)[number];

export const reloadPhases = [
  "checking",
  "draining",
  "stopping",
  "loading",
  "rechecking",
  "flipping",
  "discarding",
  "done",
  "failed",
] as const;
export type ReloadPhase = (typeof reloadPhases)[number];

export interface Reload {
  readonly strategy: ReloadStrategy;
  readonly phase: ReloadPhase;
  /** Why it fails or failed; null: nothing has. */
  readonly problem: string | null;
}

export type ReloadEvent =
  | { readonly type: "checked" }
  | { readonly type: "check_failed"; readonly problem: string }
  /** The time of what runs is over. */
  | { readonly type: "deadline_passed" }
  | { readonly type: "quiet" }
  | { readonly type: "old_stopped" }
  | { readonly type: "new_ready" }
  | { readonly type: "new_failed"; readonly problem: string }
  | { readonly type: "rechecked" }
  | { readonly type: "flipped" }
  | { readonly type: "new_stopped" };

export type ReloadCommand =
  | "check"
  | "hold"
  /** Tell `deadline_passed` and `quiet`. */
  | "arm"
  | "cut"
  | "stop_old"
  | "start_new"
  | "recheck"
  | "flip"
  | "stop_new"
  | "start_old"
  | "release"
  | "conclude";

export interface ReloadStep {
  readonly state: Reload;
  readonly commands: readonly ReloadCommand[];
}

export const beginReload = (strategy: ReloadStrategy): ReloadStep => ({
  state: { strategy, phase: "checking", problem: null },
  commands: ["check"],
});

export const isOver = ({ phase }: Reload): boolean => phase === "done" || phase === "failed";

/** Nothing starts in the pool, from the hold to the end; a surge holds it only while what waits is looked at. */
export const startsNothing = (reload: Reload): boolean =>
  reload.strategy === "recreate" && reload.phase !== "checking" && !isOver(reload);

type Moves = {
  readonly [E in ReloadEvent["type"]]?: Partial<
    Record<ReloadPhase, readonly [ReloadPhase, ...ReloadCommand[]]>
  >;
};

/** Where an event moves the machine on; whatever is not here is late, and changes nothing. */
const moves: Readonly<Record<ReloadStrategy, Moves>> = {
  recreate: {
    checked: { checking: ["draining", "hold", "arm"] },
    check_failed: { checking: ["failed", "conclude"] },
    deadline_passed: { draining: ["draining", "cut"] },
    quiet: { draining: ["stopping", "stop_old"] },
    old_stopped: { stopping: ["loading", "start_new"] },
    new_ready: { loading: ["rechecking", "recheck"] },
    new_failed: {
      loading: ["discarding", "stop_new"],
      rechecking: ["discarding", "stop_new"],
      flipping: ["discarding", "stop_new"],
    },
    rechecked: { rechecking: ["flipping", "flip"] },
    flipped: { flipping: ["done", "release", "conclude"] },
    new_stopped: { discarding: ["failed", "start_old", "release", "conclude"] },
  },
  surge: {
    checked: { checking: ["loading", "start_new"] },
    check_failed: { checking: ["failed", "conclude"] },
    new_ready: { loading: ["rechecking", "hold", "recheck"] },
    new_failed: {
      loading: ["discarding", "stop_new"],
      rechecking: ["discarding", "release", "stop_new"],
      flipping: ["discarding", "release", "stop_new"],
    },
    rechecked: { rechecking: ["flipping", "flip"] },
    flipped: { flipping: ["draining", "release", "arm"] },
    deadline_passed: { draining: ["draining", "cut"] },
    quiet: { draining: ["stopping", "stop_old"] },
    old_stopped: { stopping: ["done", "conclude"] },
    new_stopped: { discarding: ["failed", "conclude"] },
  },
};

export function stepReload(reload: Reload, event: ReloadEvent): ReloadStep {
  const { strategy } = reload;
  const move = moves[strategy][event.type]?.[reload.phase];
  if (move === undefined) return { state: reload, commands: [] };
  const [phase, ...commands] = move;
  const problem = "problem" in event ? event.problem : reload.problem;
  assert(phase !== "done" || problem === null, "what failed is not done");
  assert(phase !== "failed" || problem !== null, "a failed reload knows why");
  return { state: { strategy, phase, problem }, commands };
}
