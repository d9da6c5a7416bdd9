/**
 * Which replica and slot a task gets: a pure choice among those that can take it now (ORCHD-PLACE-1).
 * Replica: the one that holds its session, fewest busy slots, most free VRAM, highest measured speed, replica id.
 * Slot: the one that held its session, else the longest common beginning, else the one that was idle longest, so that
 * the others keep what they hold. Called by the scheduler for every start; a replica's slots belong to the scheduler.
 */
import { assert } from "./assert.ts";
import { sharedBlocks } from "./prefix.ts";

/** What the slot's KV cache holds, as far as the scheduler knows. */
interface Held {
  /** How the text of its last task begins (prefix.ts). */
  readonly prefix: readonly number[];
  /** Whose turns it held last; null: nobody's, or a session that is forgotten. */
  readonly sessionId: string | null;
}

/** A slot is free, leased, or releasing: its attempt was cut and the engine has not said yet that it is free. */
export type SlotState =
  | (Held & {
      readonly kind: "free";
      /** When it was freed, counted in leases. */
      readonly freedAt: number;
    })
  | (Held & {
      readonly kind: "leased" | "releasing";
      readonly leaseId: number;
      readonly taskId: string;
      readonly expectedEndMs: number;
      /** Cut for an interactive task, which waits apart for a slot. */
      readonly preempted: boolean;
      /** Its engine broke off, and may be dying. */
      readonly lost: boolean;
    });

export const neverUsed: SlotState = { kind: "free", prefix: [], sessionId: null, freedAt: 0 };

export interface ReplicaSlots {
  readonly replicaId: string;
  readonly incarnation: number;
  readonly slots: SlotState[];
  busy: number;
  /** The exclusive lease that holds the whole replica. */
  exclusiveLeaseId: number | null;
  /** Nothing else starts here until this exclusive task has. */
  reservedFor: string | null;
  /** Which model it runs: it counts the models of its pool. */
  readonly generation: number;
  /** Others have taken its place: nothing starts here but what has to finish on its model. */
  retired: boolean;
  /** As last measured; null: not known. */
  vramFreeBytes: number | null;
  decodeTps: number | null;
}

export function readyReplica(
  replicaId: string,
  incarnation: number,
  slots: number,
  generation = 0,
): ReplicaSlots {
  return {
    replicaId,
    incarnation,
    slots: Array.from({ length: slots }, () => neverUsed),
    busy: 0,
    exclusiveLeaseId: null,
    reservedFor: null,
    generation,
    retired: false,
    vramFreeBytes: null,
    decodeTps: null,
  };
}

/** What decided, for logs and metrics. */
export type ReplicaReason = "only" | "session" | "fewest_busy" | "vram" | "speed" | "id";
export type SlotReason = "session" | "prefix" | "idle";

export interface Placement {
  readonly replica: ReplicaSlots;
  readonly reason: ReplicaReason;
  /** Replicas that could have taken it. */
  readonly candidates: number;
}

/** Its attempt was cut for an interactive task, and the engine has not freed it yet. */
export const isPreempted = (slot: SlotState): boolean => slot.kind === "releasing" && slot.preempted;

/** No exclusive lease has it or waits for it, and no other has taken its place. */
export const isOpen = (replica: ReplicaSlots): boolean =>
  replica.exclusiveLeaseId === null && replica.reservedFor === null && !replica.retired;

/** An engine that broke off is given nothing before it has freed that slot, which shows that it lives. */
const isDoubted = (replica: ReplicaSlots): boolean =>
  replica.slots.some((slot) => slot.kind === "releasing" && slot.lost);

/** A retired one, for what has to finish there. */
export const hasLastRoom = (replica: ReplicaSlots): boolean =>
  replica.exclusiveLeaseId === null && replica.busy < replica.slots.length && !isDoubted(replica);

export const hasRoom = (replica: ReplicaSlots): boolean =>
  isOpen(replica) && replica.busy < replica.slots.length && !isDoubted(replica);

/** The replica for a task of this session; null while none has room. */
export function place(replicas: Iterable<ReplicaSlots>, sessionId: string | null): Placement | null {
  const able = [...replicas].filter(hasRoom);
  const [first, ...others] = able;
  if (first === undefined) return null;
  let best = first;
  for (const other of others) if (compared(best, other, sessionId).order > 0) best = other;
  // What set it apart from the closest of the others: the last criterion that was needed.
  let needed = -1;
  for (const other of able)
    if (other !== best) needed = Math.max(needed, compared(best, other, sessionId).criterion);
  return { replica: best, reason: reasons[needed] ?? "only", candidates: able.length };
}

const reasons: readonly ReplicaReason[] = ["session", "fewest_busy", "vram", "speed", "id"];

/** Negative order: a is the better one; and which of `reasons` said so. */
function compared(
  a: ReplicaSlots,
  b: ReplicaSlots,
  sessionId: string | null,
): { order: number; criterion: number } {
  const orders = [
    sessionRank(b, sessionId) - sessionRank(a, sessionId),
    a.busy - b.busy,
    (b.vramFreeBytes ?? -1) - (a.vramFreeBytes ?? -1),
    (b.decodeTps ?? -1) - (a.decodeTps ?? -1),
    a.replicaId < b.replicaId ? -1 : 1,
  ];
  const criterion = orders.findIndex((order) => order !== 0);
  return { order: orders[criterion] ?? 0, criterion };
}

/** 2: a free slot holds the session; 1: one that is busy does; 0: none. */
function sessionRank(replica: ReplicaSlots, sessionId: string | null): number {
  if (sessionId === null) return 0;
  let rank = 0;
  for (const slot of replica.slots)
    if (slot.sessionId === sessionId) rank = Math.max(rank, slot.kind === "free" ? 2 : 1);
  return rank;
}

/**
 * Milliseconds until a replica that holds the session is expected to have room; null where there is nothing to wait
 * for: none holds it, or one has room.
 */
export function sessionRoomInMs(
  replicas: Iterable<ReplicaSlots>,
  sessionId: string | null,
  nowMs: number,
): number | null {
  let soonestMs: number | null = null;
  for (const replica of replicas) {
    if (sessionRank(replica, sessionId) === 0 || !isOpen(replica)) continue;
    if (hasRoom(replica)) return null;
    for (const slot of replica.slots) {
      if (slot.kind === "free") continue;
      const inMs = slot.kind === "releasing" ? 0 : Math.max(0, slot.expectedEndMs - nowMs);
      soonestMs = Math.min(soonestMs ?? inMs, inMs);
    }
  }
  return soonestMs;
}

/** The replica's slot for a text of this session that begins like this; it has a free one. */
export function chooseSlot(
  replica: ReplicaSlots,
  prefix: readonly number[],
  sessionId: string | null,
): { readonly slot: number; readonly reason: SlotReason } {
  let best: { slot: number; own: boolean; shared: number; freedAt: number } | null = null;
  for (const [index, slot] of replica.slots.entries()) {
    if (slot.kind !== "free") continue;
    const own = sessionId !== null && slot.sessionId === sessionId;
    const found = { slot: index, own, shared: sharedBlocks(prefix, slot.prefix), freedAt: slot.freedAt };
    if (best === null || isBetter(found, best)) best = found;
  }
  assert(best !== null, `replica ${replica.replicaId} has a free slot`);
  return { slot: best.slot, reason: best.own ? "session" : best.shared > 0 ? "prefix" : "idle" };
}

interface Fit {
  readonly own: boolean;
  readonly shared: number;
  readonly freedAt: number;
}

function isBetter(a: Fit, b: Fit): boolean {
  if (a.own !== b.own) return a.own;
  if (a.shared !== b.shared) return a.shared > b.shared;
  return a.freedAt < b.freedAt;
}

/** Busy slots stay as they are; none of them says any more whose session it holds. */
export function forgetSession(replica: ReplicaSlots, sessionId: string): void {
  for (const [index, slot] of replica.slots.entries())
    if (slot.sessionId === sessionId) replica.slots[index] = { ...slot, sessionId: null };
}
