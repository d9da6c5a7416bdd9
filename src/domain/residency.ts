/**
 * Which models stay loaded. Pools that share devices are loaded when work waits for them and unloaded when their memory
 * is wanted, when they were idle for long, or when a device is lent to another program. Pure: `tell` it what happened,
 * then `decide` in the same turn; the caller carries the commands out and tells how they ended. It is the only one that
 * loads and unloads; an engine that is restarted in its place stays loaded.
 *
 * | residence | left by                                                                                |
 * |-----------|----------------------------------------------------------------------------------------|
 * | unloaded  | load_pool, once its memory is free → loading                                           |
 * | loading   | pool_loaded → loaded; pool_load_failed, pool_unloaded → unloaded                       |
 * | loaded    | unload_pool, only while nothing runs → unloading; pool_unloaded → unloaded             |
 * | unloading | pool_unloaded → unloaded                                                               |
 *
 * A pool whose work waits claims memory in the order in which pools began to want: when its oldest task came, or when it
 * was unloaded itself, whichever is later. What is idle makes room, the least costly set of it: the time to load it again,
 * weighted by the likelihood that it is needed within limits.residencyHalfLifeMs (residency-costs.ts). So whoever is loaded
 * serves all that waits for it, later ones too, and who pauses shortly between calls does not lose its place at once.
 *
 * A pool that has wanted for swapMaxWaitMs and finds too little idle memory claims that of pools in use: each is held
 * once its turn is over (all that waited when it was loaded has started, or swapTurnMaxMs passed), finishes what
 * runs, and is unloaded. While such a pool cannot claim either, because others claimed before, nobody who
 * began to want later claims on its devices.
 *
 * Always holds: what is loaded by a command fits; a pool with a busy slot is never unloaded; of a claim nobody who claims
 * later takes anything.
 *
 * The wait is bounded. Let m pools be linked by devices, L and U be the longest load and unload, R the longest run of a
 * task, T = swapTurnMaxMs. A pool that began to want, whose need the devices have and whose load does not fail, is loaded after
 *
 *     swapMaxWaitMs + m (L + T + R + U) + L        at most; after swapMaxWaitMs + R + U + L where one pool is in its way
 *                                                   whose turn is over.
 *
 * For: after swapMaxWaitMs nobody who began later claims before it, and each of the m - 1 others once at most: when it
 * wants again it began later. The first claim that has none before it lacks nothing but pools that are loading (L), in their
 * turn (T), finishing (R) or going (U); then it loads, and is itself among those that the next one waits for.
 */
import { assert, assertNever } from "./assert.ts";
import { type Bytes, byId } from "./eviction.ts";
import { chooseLeavers, lingersUntilMs, noteUse, turnEndsMs } from "./residency-costs.ts";
import {
  assertSized,
  availableOn,
  deviceOf,
  freeOn,
  holdsMemory,
  isIdle,
  isTooMuch,
  missingFor,
  poolOf,
  type Residency,
  type ResidencyCommand,
  type ResidencyDevice,
  type ResidencyEvent,
  type ResidencyPool,
  shortfall,
  unclaimedOn,
  unloaded,
} from "./residency-state.ts";

export function tell(state: Residency, event: ResidencyEvent, nowMs: number): void {
  switch (event.type) {
    case "device_measured": {
      const { deviceId, totalBytes, reservedBytes } = event;
      if (!state.devices.has(deviceId))
        state.devices.set(deviceId, { deviceId, totalBytes, reservedBytes, lentBytes: 0 });
      resize(state, deviceId, { totalBytes, reservedBytes });
      break;
    }
    case "device_lent":
      resize(state, event.deviceId, { lentBytes: event.bytes });
      break;
    case "device_returned":
      resize(state, event.deviceId, { lentBytes: 0 });
      break;
    case "pool_added": {
      const { spec } = event;
      assert(!state.pools.has(spec.poolId), `pool ${spec.poolId} is added once`);
      const pool = unloaded(spec);
      assertSized(state, pool);
      state.pools.set(spec.poolId, pool);
      break;
    }
    case "pool_configured": {
      const { poolId, idleUnloadMs, preload } = event;
      Object.assign(poolOf(state, poolId), { idleUnloadMs, preload });
      break;
    }
    case "pool_removed": {
      const pool = poolOf(state, event.poolId);
      if (pool.claim !== null) giveUpClaim(state, pool);
      state.pools.delete(event.poolId);
      break;
    }
    case "pool_sized": {
      const pool = poolOf(state, event.poolId);
      pool.needs = event.needs;
      pool.loadMs = event.loadMs;
      assertSized(state, pool);
      break;
    }
    case "work_changed":
      onWork(poolOf(state, event.poolId), event, nowMs);
      break;
    case "pool_loaded":
      onLoaded(poolOf(state, event.poolId), event.tookMs, nowMs);
      break;
    case "pool_load_failed":
      poolOf(state, event.poolId).retryAtMs = event.retryAtMs;
      onGone(poolOf(state, event.poolId), nowMs);
      break;
    case "retry_allowed": {
      const pool = poolOf(state, event.poolId);
      pool.retryAtMs = Math.min(pool.retryAtMs, event.atMs);
      break;
    }
    case "pool_unloaded":
      onGone(poolOf(state, event.poolId), nowMs);
      break;
    default:
      assertNever(event, "residency event");
  }
}

/** Where there is more than before, those that were to leave for lack of memory may be chosen anew. */
function resize(
  state: Residency,
  deviceId: string,
  change: Partial<Pick<ResidencyDevice, "totalBytes" | "reservedBytes" | "lentBytes">>,
): void {
  const device = deviceOf(state, deviceId);
  const beforeBytes = availableOn(device);
  Object.assign(device, change);
  const { totalBytes, reservedBytes, lentBytes } = device;
  assert(totalBytes >= 0 && reservedBytes >= 0 && lentBytes >= 0, "memory is not negative");
  if (availableOn(device) <= beforeBytes) return;
  for (const pool of state.pools.values())
    if (pool.leaving?.for === "device" && pool.residence !== "unloading") stay(pool);
}

function stay(pool: ResidencyPool): void {
  pool.leaving = null;
  pool.restore = false;
}

function onLoaded(pool: ResidencyPool, tookMs: number, nowMs: number): void {
  assert(pool.residence === "loading", `${pool.poolId} is loaded because it was asked for`);
  assert(tookMs >= 0 && Number.isFinite(tookMs), "a load takes time");
  pool.residence = "loaded";
  pool.loadedMs = nowMs;
  pool.loadMs = tookMs;
  pool.groupLeft = pool.waiting;
  // The device may have been lent meanwhile.
  if (pool.leaving?.for !== "device") pool.restore = false;
}

function onWork(
  pool: ResidencyPool,
  event: Extract<ResidencyEvent, { type: "work_changed" }>,
  nowMs: number,
): void {
  const { busy, waiting, oldestMs, started } = event;
  assert(busy >= 0 && waiting >= 0 && started >= 0, "numbers of tasks are not negative");
  assert((oldestMs !== null) === waiting > 0, "the oldest is one of those that wait");
  assert(started === 0 || pool.residence === "loaded", "tasks start only where the model is loaded");
  const wasIdle = isIdle(pool);
  const isUsed = wasIdle ? busy + waiting > 0 : started > 0 || waiting > pool.waiting;
  if (isUsed) noteUse(pool, nowMs);
  Object.assign(pool, { busy, waiting, oldestMs });
  if (!wasIdle || !isIdle(pool)) pool.lastUsedMs = nowMs;
  // Those that were canceled or dropped wait no longer, either.
  pool.groupLeft = Math.min(Math.max(0, pool.groupLeft - started), waiting);
}

function onGone(pool: ResidencyPool, nowMs: number): void {
  assert(holdsMemory(pool), `${pool.poolId} held memory until now`);
  pool.residence = "unloaded";
  pool.leaving = null;
  pool.held = false;
  pool.groupLeft = 0;
  pool.unloadedMs = nowMs;
}

/** `nowMs` never goes back. What it commands counts as begun. */
export function decide(state: Residency, nowMs: number): ResidencyCommand[] {
  const commands: ResidencyCommand[] = [];
  for (const pool of state.pools.values())
    if (pool.claim !== null && pool.waiting === 0) giveUpClaim(state, pool);
  makeWay(state, nowMs);
  for (const pool of state.pools.values())
    if (idleDueMs(pool) <= nowMs && pool.leaving === null) pool.leaving = { for: "idle" };
  improveClaims(state, nowMs);
  grantClaims(state, nowMs);
  for (const pool of state.pools.values()) leave(state, pool, nowMs, commands);
  for (const pool of claimants(state)) if (isFreeFor(state, pool)) load(state, pool, "wanted", commands);
  restore(state, nowMs, commands);
  wake(state, nowMs, commands);
  return commands;
}

// Who wants, and since when.

const wants = ({ residence, claim, waiting, retryAtMs }: ResidencyPool, nowMs: number): boolean =>
  residence === "unloaded" && claim === null && waiting > 0 && retryAtMs <= nowMs;

/** Milliseconds. After a load that failed it begins again. */
function wantsSince({ oldestMs, unloadedMs, retryAtMs }: ResidencyPool): number {
  assert(oldestMs !== null, "it wants because work waits");
  return Math.max(oldestMs, unloadedMs, retryAtMs);
}

/** Infinity: never for being idle. */
function idleDueMs(pool: ResidencyPool): number {
  if (pool.residence !== "loaded" || !isIdle(pool) || pool.preload || pool.idleUnloadMs === null)
    return Number.POSITIVE_INFINITY;
  return Math.max(pool.lastUsedMs, pool.loadedMs) + pool.idleUnloadMs;
}

// Claims.

const claimants = (state: Residency): ResidencyPool[] =>
  [...state.pools.values()]
    .filter(({ claim }) => claim !== null)
    .sort((a, b) => (a.claim ?? 0) - (b.claim ?? 0));

const leavingFor = (state: Residency, poolId: string): ResidencyPool[] =>
  [...state.pools.values()].filter(
    ({ leaving }) => leaving !== null && leaving.for === "pool" && leaving.poolId === poolId,
  );

const lacks = (state: Residency, { needs }: ResidencyPool): Bytes =>
  missingFor(needs, (deviceId) => unclaimedOn(state, deviceId));

/** Who has not gone yet for its sake stays; who is going goes on. */
function giveUpClaim(state: Residency, pool: ResidencyPool): void {
  pool.claim = null;
  for (const leaver of leavingFor(state, pool.poolId))
    leaver.leaving = leaver.residence === "unloading" ? { for: "idle" } : null;
}

function sendAway(state: Residency, leavers: readonly string[], poolId: string): void {
  for (const leaver of leavers) poolOf(state, leaver).leaving = { for: "pool", poolId };
}

/**
 * A claim that waits for pools in use takes idle ones, or free memory, as soon as there is enough. A later claim may
 * count on what those in use leave over: it is to be met as well.
 */
function improveClaims(state: Residency, nowMs: number): void {
  for (const pool of claimants(state)) {
    const inUse = leavingFor(state, pool.poolId).filter(({ residence }) => residence !== "unloading");
    if (inUse.length === 0) continue;
    for (const leaver of inUse) leaver.leaving = null;
    const missing = excess(state);
    const idle = missing.size === 0 ? [] : chooseLeavers(state, missing, "lingering", nowMs);
    sendAway(state, idle ?? inUse.map(({ poolId }) => poolId), pool.poolId);
  }
}

function grantClaims(state: Residency, nowMs: number): void {
  const wanting = [...state.pools.values()]
    .filter((pool) => wants(pool, nowMs) && shortfall(state, pool.poolId).size === 0)
    .sort((a, b) => wantsSince(a) - wantsSince(b) || byId(a.poolId, b.poolId));
  /** Of those that waited too long and cannot claim yet. */
  const blocked = new Set<string>();
  for (const pool of wanting) {
    const devices = [...pool.needs].filter(([, bytes]) => bytes > 0).map(([deviceId]) => deviceId);
    const overdue = nowMs - wantsSince(pool) >= state.rules.swapMaxWaitMs;
    const leavers = devices.some((id) => blocked.has(id)) ? null : room(state, pool, overdue, nowMs);
    if (leavers !== null) {
      state.claims += 1;
      pool.claim = state.claims;
      sendAway(state, leavers, pool.poolId);
    } else if (overdue) for (const deviceId of devices) blocked.add(deviceId);
  }
}

/** Who has to leave for it; null: it cannot claim now. */
function room(
  state: Residency,
  pool: ResidencyPool,
  overdue: boolean,
  nowMs: number,
): readonly string[] | null {
  const missing = lacks(state, pool);
  if (missing.size === 0) return [];
  const idle = chooseLeavers(state, missing, overdue ? "lingering" : "idle", nowMs);
  return idle === null && overdue ? chooseLeavers(state, missing, "all", nowMs) : idle;
}

/** Its memory is free, without what earlier claims are owed of that. */
function isFreeFor(state: Residency, pool: ResidencyPool): boolean {
  if (leavingFor(state, pool.poolId).length > 0) return false;
  const earlier = claimants(state).filter(({ claim }) => (claim ?? 0) < (pool.claim ?? 0));
  const free = (deviceId: string): number =>
    freeOn(state, deviceId) - earlier.reduce((sum, other) => sum + owedOn(state, other, deviceId), 0);
  return missingFor(pool.needs, free).size === 0;
}

function owedOn(state: Residency, { poolId, needs }: ResidencyPool, deviceId: string): number {
  const coming = leavingFor(state, poolId).reduce(
    (sum, leaver) => sum + (leaver.needs.get(deviceId) ?? 0),
    0,
  );
  return Math.max(0, (needs.get(deviceId) ?? 0) - coming);
}

// Devices that were lent or turned out smaller.

/**
 * Who was to leave for another pool has no turn any more where its memory is no longer there. Claims give way first, the
 * latest before the others; then whatever no longer fits leaves, and comes back.
 */
function makeWay(state: Residency, nowMs: number): void {
  for (const pool of state.pools.values())
    if (pool.leaving?.for === "pool" && pool.residence !== "unloading" && isTooMuch(state, pool)) {
      pool.leaving = { for: "device" };
      pool.restore = true;
    }
  for (;;) {
    const tooMuch = excess(state);
    const last = claimants(state).findLast(({ needs }) => [...needs.keys()].some((id) => tooMuch.has(id)));
    if (last === undefined) break;
    giveUpClaim(state, last);
  }
  const over = excess(state);
  if (over.size === 0) return;
  const leavers = chooseLeavers(state, over, "all", nowMs);
  assert(leavers !== null, "nothing but pools that stay takes too much");
  for (const poolId of leavers) {
    const pool = poolOf(state, poolId);
    pool.leaving = { for: "device" };
    pool.restore = true;
  }
}

/** Bytes that are missing for what stays and what is claimed, by device. */
function excess(state: Residency): Bytes {
  const over = new Map<string, number>();
  for (const deviceId of state.devices.keys()) {
    const bytes = unclaimedOn(state, deviceId);
    if (bytes < 0) over.set(deviceId, -bytes);
  }
  return over;
}

// Carrying it out.

/** Holds who leaves and whose turn is over, unloads who is idle, and lets go on who may stay after all. */
function leave(state: Residency, pool: ResidencyPool, nowMs: number, commands: ResidencyCommand[]): void {
  const { poolId, leaving } = pool;
  if (pool.residence !== "loaded" && pool.residence !== "loading") return;
  const turnOver = pool.residence === "loaded" && turnEndsMs(state, pool) <= nowMs;
  const hold = leaving !== null && (leaving.for === "device" || (leaving.for === "pool" && turnOver));
  const forPool = leaving?.for === "pool" ? leaving.poolId : null;
  if (leaving !== null && pool.residence === "loaded" && pool.busy === 0 && (hold || pool.waiting === 0)) {
    pool.residence = "unloading";
    pool.held = false;
    commands.push({ type: "unload_pool", poolId, why: leaving.for, for: forPool });
    return;
  }
  if (hold === pool.held) return;
  pool.held = hold;
  commands.push(hold ? { type: "hold_pool", poolId, for: forPool } : { type: "release_pool", poolId });
}

function load(
  state: Residency,
  pool: ResidencyPool,
  why: Extract<ResidencyCommand, { type: "load_pool" }>["why"],
  commands: ResidencyCommand[],
): void {
  const missing = missingFor(pool.needs, (deviceId) => freeOn(state, deviceId));
  assert(missing.size === 0, `${pool.poolId} fits`);
  pool.residence = "loading";
  pool.claim = null;
  commands.push({ type: "load_pool", poolId: pool.poolId, why });
}

/** Into memory that nobody wants; nothing is evicted for it. What takes longest to load comes first. */
function restore(state: Residency, nowMs: number, commands: ResidencyCommand[]): void {
  const pools = [...state.pools.values()];
  if (pools.some((pool) => pool.claim !== null)) return;
  if (pools.some((pool) => wants(pool, nowMs) && shortfall(state, pool.poolId).size === 0)) return;
  const missed = pools
    .filter((pool) => comesBack(pool) && pool.retryAtMs <= nowMs)
    .sort((a, b) => b.loadMs - a.loadMs || byId(a.poolId, b.poolId));
  for (const pool of missed) {
    const fits = missingFor(pool.needs, (deviceId) => freeOn(state, deviceId)).size === 0;
    if (fits) load(state, pool, pool.preload ? "preload" : "restored", commands);
  }
}

const comesBack = ({ residence, preload, restore, waiting }: ResidencyPool): boolean =>
  residence === "unloaded" && (preload || restore) && waiting === 0;

/** Times at which something changes by itself. */
function wake(state: Residency, nowMs: number, commands: ResidencyCommand[]): void {
  let atMs = Number.POSITIVE_INFINITY;
  const at = (ms: number): void => {
    if (ms > nowMs && ms < atMs) atMs = ms;
  };
  for (const pool of state.pools.values()) {
    at(idleDueMs(pool));
    if (pool.residence === "loaded" && isIdle(pool)) at(lingersUntilMs(pool));
    if (wants(pool, nowMs)) at(wantsSince(pool) + state.rules.swapMaxWaitMs);
    if (pool.waiting > 0 || comesBack(pool)) at(pool.retryAtMs);
    if (pool.leaving?.for === "pool" && pool.residence === "loaded") at(turnEndsMs(state, pool));
  }
  const told = state.wakeAtMs !== null && state.wakeAtMs > nowMs ? state.wakeAtMs : null;
  state.wakeAtMs = Number.isFinite(atMs) ? atMs : null;
  if (state.wakeAtMs !== null && state.wakeAtMs !== told)
    commands.push({ type: "wake_at", atMs: state.wakeAtMs });
}
