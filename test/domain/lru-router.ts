/**
 * What residency is compared with: a router that loads a model when a request asks for it and evicts the least recently
 * used idle one, in the same virtual time.
 *
 * overtaking  as llama-server's router does: requests for a loaded model pass those that wait for another
 * in-order    requests start in the order in which they came
 *
 * All pools are of one size; `resident` of them fit (--models-max).
 */
import { type Caller, callAgain, type Outcome, type Scenario, Timeline } from "./residency-world.ts";

interface Request {
  readonly poolId: string;
  readonly atMs: number;
  readonly runMs: number;
  readonly caller?: Caller;
}

interface Model {
  state: "unloaded" | "loading" | "loaded" | "unloading";
  /** Handed over to its server, where it runs or waits for a slot. */
  readonly inside: Request[];
  busy: number;
  usedMs: number;
}

export type RouterKind = "overtaking" | "in-order";

export function runRouter(
  { pools, arrivals, callers = [] }: Scenario,
  resident: number,
  kind: RouterKind,
): Outcome {
  const time = new Timeline();
  const models = new Map<string, Model>(
    pools.map(({ poolId }) => [poolId, { state: "unloaded", inside: [], busy: 0, usedMs: 0 }]),
  );
  const modelOf = (poolId: string): Model => {
    const model = models.get(poolId);
    if (model === undefined) throw new Error(`no model ${poolId}`);
    return model;
  };
  const specOf = (poolId: string) => {
    const spec = pools.find((pool) => pool.poolId === poolId);
    if (spec === undefined) throw new Error(`no pool ${poolId}`);
    return spec;
  };
  const line: Request[] = [];
  const waits: number[] = [];
  let loads = 0;
  let endMs = 0;

  const call = (caller: Caller): void =>
    void line.push({ poolId: caller.poolId, atMs: time.nowMs, runMs: caller.runMs, caller });

  const serve = (poolId: string): void => {
    const model = modelOf(poolId);
    while (model.busy < specOf(poolId).slots) {
      const request = model.inside.shift();
      if (request === undefined) return;
      model.busy += 1;
      waits.push(time.nowMs - request.atMs);
      time.at(time.nowMs + request.runMs, () => {
        model.busy -= 1;
        model.usedMs = time.nowMs;
        endMs = time.nowMs;
        serve(poolId);
        callAgain(time, request.caller, call);
      });
    }
  };

  const handOver = (): void => {
    for (let at = 0; at < line.length; ) {
      const request = line[at] as Request;
      const model = modelOf(request.poolId);
      if (model.state === "loaded") {
        line.splice(at, 1);
        model.inside.push(request);
        model.usedMs = time.nowMs;
        endMs = time.nowMs;
        serve(request.poolId);
      } else if (kind === "in-order") return;
      else at += 1;
    }
  };

  /** For the first that waits for a model which is not on its way; false: nothing can be done now. */
  const makeReady = (): boolean => {
    const wanted = (kind === "in-order" ? line.slice(0, 1) : line).find(
      ({ poolId }) => modelOf(poolId).state === "unloaded",
    );
    if (wanted === undefined) return false;
    const present = [...models.values()].filter(({ state }) => state !== "unloaded");
    if (present.length < resident) {
      const model = modelOf(wanted.poolId);
      model.state = "loading";
      loads += 1;
      time.at(time.nowMs + specOf(wanted.poolId).loadMs, () => {
        model.state = "loaded";
      });
      return true;
    }
    // One swap at a time for each that is wanted.
    if (present.some(({ state }) => state === "unloading")) return false;
    const idle = [...models].filter(
      ([, { state, busy, inside }]) => state === "loaded" && busy === 0 && inside.length === 0,
    );
    const [evicted] = idle.sort(([, a], [, b]) => a.usedMs - b.usedMs);
    if (evicted === undefined) return false;
    const [poolId, model] = evicted;
    model.state = "unloading";
    time.at(time.nowMs + specOf(poolId).unloadMs, () => {
      model.state = "unloaded";
    });
    return true;
  };

  for (const { atMs, poolId, runMs } of arrivals)
    time.at(atMs, () => void line.push({ poolId, atMs: time.nowMs, runMs }));
  for (const caller of callers) time.at(caller.atMs, () => call(caller));
  while (time.next()) {
    handOver();
    while (makeReady()) handOver();
  }
  if (line.length > 0) throw new Error("the router left requests behind");
  return {
    loads,
    worstWaitMs: Math.max(0, ...waits),
    meanWaitMs: waits.reduce((sum, ms) => sum + ms, 0) / Math.max(1, waits.length),
    endMs,
    started: waits.length,
    worstWantMs: 0,
    log: [],
  };
}
