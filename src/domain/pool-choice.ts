/**
 * Which pool a task goes to: a pure choice among snapshots of all pools (ORCHD-PLACE-1). Called by
 * admission for every submission, before the turn that admits the task; the replica is chosen in that turn.
 *
 * What the task needs (model, engine, workload, context) and what the client rules out (pin, devices, prefer,
 * avoid) decide who may take it at all; then the first by this order gets it: takes tasks now, is what the
 * client wants most, holds the session's KV cache, is loaded, has the least waiting per slot, id.
 *
 * Always holds: every pool given has a reason in the answer; a pool that was ruled out is never chosen; where
 * no pool takes tasks the best of those that may is chosen still, so that its own refusal is told.
 */
import { assert } from "./assert.ts";
import type { EngineKind } from "./engine-kind.ts";
import type { ErrorCode } from "./errors.ts";
import type { Workload } from "./task.ts";

export const placementModes = ["auto", "pin", "prefer"] as const;
export type PlacementMode = (typeof placementModes)[number];

/** Where the client wants its task, as it said it. */
export interface PlacementWish {
  readonly mode: PlacementMode;
  /** Not null with mode pin, and only then. */
  readonly pinPoolId: string | null;
  /** Best first; not empty with mode prefer, and only then. */
  readonly preferPools: readonly string[];
  readonly avoidPools: readonly string[];
  /** Only pools all of whose devices are among these; null: any. */
  readonly requireDevices: readonly number[] | null;
  /** null: the mode's own default, yes for prefer, no for pin and for avoided pools. */
  readonly allowFallback: boolean | null;
}

export const anywhere: PlacementWish = {
  mode: "auto",
  pinPoolId: null,
  preferPools: [],
  avoidPools: [],
  requireDevices: null,
  allowFallback: null,
};

export interface PoolRequest {
  readonly modelRef: string | null;
  readonly engine: EngineKind | null;
  readonly workload: Workload;
  /** Tokens of context without which the task is none; 0: any will do. */
  readonly ctxMin: number;
  readonly wish: PlacementWish;
}

/** A pool as it stands at the moment of the choice. */
export interface PoolCandidate {
  readonly id: string;
  readonly engine: EngineKind;
  /** All names that its model goes by. */
  readonly modelNames: readonly string[];
  readonly workloads: readonly Workload[];
  /** Tokens; null while unknown. */
  readonly ctxPerSlot: number | null;
  /** Slots of all its replicas once they run. */
  readonly slots: number;
  readonly readyReplicas: number;
  readonly slotsBusy: number;
  readonly waiting: number;
  /** What a task of this class would be refused with now, POOL_UNREADY where it would only queue; null: it would be taken. */
  readonly refusal: ErrorCode | null;
  readonly devices: readonly number[];
  /** One of its slots holds the context of the task's session. */
  readonly holdsSession: boolean;
}

/** Why a pool was not chosen: the first thing that spoke against it. */
export const passedOverFor = [
  "other_model",
  "other_engine",
  "other_workload",
  "ctx_too_small",
  "not_pinned",
  "other_devices",
  "avoided",
  "not_preferred",
  "queue_full",
  "drained",
  "unavailable",
  "less_preferred",
  "no_session",
  "not_loaded",
  "busier",
  "later_id",
] as const;
export type PassedOver = (typeof passedOverFor)[number];

/** Why a pool was chosen: the first thing that set it apart from the next best. */
export const chosenFor = [
  "only",
  "takes_tasks",
  "pinned",
  "preferred",
  "not_avoided",
  "session",
  "loaded",
  "least_busy",
  "id",
] as const;
export type ChosenFor = (typeof chosenFor)[number];

export interface PoolReason {
  readonly poolId: string;
  readonly reason: ChosenFor | PassedOver;
}

export interface PoolChoice {
  readonly kind: "chosen";
  readonly poolId: string;
  readonly rule: ChosenFor;
  /** The client named one pool; with `fallback` it is another that was chosen. */
  readonly pinned: boolean;
  /** It is not where the client wanted its task first. */
  readonly fallback: boolean;
  /** Pools that might have taken it. */
  readonly candidates: number;
  /** One for each pool, in the order of their configuration. */
  readonly reasons: readonly PoolReason[];
}

/** Nobody may take it. What is wrong with the request itself goes before what its placement rules out. */
export type NoPool =
  | {
      readonly kind: "unknown_pool";
      readonly field: "pin_pool_id" | "prefer_pools" | "avoid_pools";
      readonly poolId: string;
    }
  | { readonly kind: "unknown_model" }
  | { readonly kind: "no_workload" }
  /** `poolId` is the widest of those that would do otherwise. */
  | { readonly kind: "ctx_too_large"; readonly poolId: string }
  | { readonly kind: "ruled_out"; readonly reasons: readonly PoolReason[] };

export function choosePool(request: PoolRequest, pools: readonly PoolCandidate[]): PoolChoice | NoPool {
  assert(pools.length > 0, "there is a pool");
  const { wish } = request;
  const unknown = unknownPool(wish, pools);
  if (unknown !== null) return unknown;
  // What a pinned pool without fallback cannot do is told of it, not of all.
  const asked = isSolePin(wish) ? pools.filter(({ id }) => id === wish.pinPoolId) : pools;
  const misfit = noneFits(request, asked);
  if (misfit !== null) return misfit;

  const against = new Map(pools.map((pool) => [pool.id, unfit(request, pool) ?? ruledOut(wish, pool)]));
  const ranked = pools
    .filter(({ id }) => against.get(id) === null)
    .map((pool) => ({ pool, rank: rankOf(wish, pool) }))
    .sort(byRank);
  const [best, next] = ranked;
  for (const one of ranked)
    if (best !== undefined && one !== best) against.set(one.pool.id, behind(wish, one, best));
  const rule = best === undefined ? null : ruleOf(wish, best, next);
  const reasons = pools.map(({ id: poolId }) => {
    const reason = against.get(poolId) ?? rule;
    assert(reason !== null, "a pool that is not chosen has something against it");
    return { poolId, reason };
  });
  if (best === undefined || rule === null) return { kind: "ruled_out", reasons };
  return {
    kind: "chosen",
    poolId: best.pool.id,
    rule,
    pinned: wish.mode === "pin",
    fallback: !isWanted(wish, best.pool.id),
    candidates: ranked.length,
    reasons,
  };
}

// ---- who may take it ----

const isSolePin = ({ mode, allowFallback }: PlacementWish): boolean =>
  mode === "pin" && allowFallback !== true;

function unknownPool(wish: PlacementWish, pools: readonly PoolCandidate[]): NoPool | null {
  const { pinPoolId, preferPools, avoidPools } = wish;
  for (const [field, named] of [
    ["pin_pool_id", pinPoolId === null ? [] : [pinPoolId]],
    ["prefer_pools", preferPools],
    ["avoid_pools", avoidPools],
  ] as const) {
    const poolId = named.find((id) => pools.every((pool) => pool.id !== id));
    if (poolId !== undefined) return { kind: "unknown_pool", field, poolId };
  }
  return null;
}

/** What the task needs and the pool has not. */
function unfit({ modelRef, engine, workload, ctxMin }: PoolRequest, pool: PoolCandidate): PassedOver | null {
  if (modelRef !== null && !pool.modelNames.includes(modelRef)) return "other_model";
  if (engine !== null && pool.engine !== engine) return "other_engine";
  if (!pool.workloads.includes(workload)) return "other_workload";
  // A context that nobody knows yet is checked before the first attempt.
  return pool.ctxPerSlot !== null && pool.ctxPerSlot < ctxMin ? "ctx_too_small" : null;
}

/** Why the request itself is refused; null: some pool could do it. */
function noneFits(request: PoolRequest, pools: readonly PoolCandidate[]): NoPool | null {
  const verdicts = pools.map((pool) => ({ pool, reason: unfit(request, pool) }));
  if (verdicts.some(({ reason }) => reason === null)) return null;
  if (verdicts.every(({ reason }) => reason === "other_model")) return { kind: "unknown_model" };
  const narrow = verdicts.filter(({ reason }) => reason === "ctx_too_small").map(({ pool }) => pool);
  const [widest] = narrow.sort((a, b) => (b.ctxPerSlot ?? 0) - (a.ctxPerSlot ?? 0));
  return widest === undefined ? { kind: "no_workload" } : { kind: "ctx_too_large", poolId: widest.id };
}

/** What the client will not have. */
function ruledOut(wish: PlacementWish, { id, devices }: PoolCandidate): PassedOver | null {
  const { mode, pinPoolId, preferPools, avoidPools, requireDevices, allowFallback } = wish;
  if (isSolePin(wish) && id !== pinPoolId) return "not_pinned";
  // A pool that says nothing of its devices may use any.
  if (requireDevices !== null && (devices.length === 0 || !devices.every((d) => requireDevices.includes(d))))
    return "other_devices";
  if (avoidPools.includes(id) && allowFallback !== true) return "avoided";
  return mode === "prefer" && allowFallback === false && !preferPools.includes(id) ? "not_preferred" : null;
}

// ---- who gets it ----

interface Ranked {
  readonly pool: PoolCandidate;
  /** Smaller is better, the first difference decides: refuses, wish, session, loaded, load. */
  readonly rank: readonly [number, number, number, number, number];
}

function rankOf(wish: PlacementWish, pool: PoolCandidate): Ranked["rank"] {
  assert(pool.slots > 0, "a pool has slots");
  return [
    pool.refusal === null ? 0 : 1,
    wishOf(wish, pool.id),
    pool.holdsSession ? 0 : 1,
    pool.readyReplicas > 0 ? 0 : 1,
    (pool.waiting + pool.slotsBusy) / pool.slots,
  ];
}

/** 0 is what the client wants most; avoided pools come last. */
function wishOf({ mode, pinPoolId, preferPools, avoidPools }: PlacementWish, id: string): number {
  if (avoidPools.includes(id)) return Number.MAX_SAFE_INTEGER;
  if (mode === "pin") return id === pinPoolId ? 0 : 1;
  const at = preferPools.indexOf(id);
  return at === -1 ? preferPools.length : at;
}

function isWanted({ mode, pinPoolId, preferPools, avoidPools }: PlacementWish, id: string): boolean {
  if (avoidPools.includes(id)) return false;
  if (mode === "pin") return id === pinPoolId;
  return mode === "auto" || preferPools.includes(id);
}

/** Which figure of the ranks differs first; -1: none, the id decides. */
const difference = (a: Ranked, b: Ranked): number => a.rank.findIndex((value, at) => value !== b.rank[at]);

function byRank(a: Ranked, b: Ranked): number {
  const at = difference(a, b);
  if (at === -1) return a.pool.id < b.pool.id ? -1 : 1;
  return (a.rank[at] ?? 0) - (b.rank[at] ?? 0);
}

function ruleOf(wish: PlacementWish, best: Ranked, next: Ranked | undefined): ChosenFor {
  const named: ChosenFor =
    wish.mode === "pin" && isWanted(wish, best.pool.id)
      ? "pinned"
      : wish.preferPools.includes(best.pool.id)
        ? "preferred"
        : "not_avoided";
  if (next === undefined) return named === "pinned" ? named : "only";
  const rules: readonly ChosenFor[] = ["takes_tasks", named, "session", "loaded", "least_busy"];
  return rules[difference(best, next)] ?? "id";
}

const fullCodes: ReadonlySet<string> = new Set(["ADMISSION_REJECT", "QUEUE_FULL_DROP_LRU"]);

/** What put it behind the best. */
function behind(wish: PlacementWish, one: Ranked, best: Ranked): PassedOver {
  const { id, refusal } = one.pool;
  const wished = wish.avoidPools.includes(id)
    ? "avoided"
    : wish.mode === "pin"
      ? "not_pinned"
      : "less_preferred";
  const refused =
    refusal !== null && fullCodes.has(refusal)
      ? "queue_full"
      : refusal === "POOL_UNREADY"
        ? "drained"
        : "unavailable";
  const reasons: readonly PassedOver[] = [refused, wished, "no_session", "not_loaded", "busier"];
  return reasons[difference(best, one)] ?? "later_id";
}
