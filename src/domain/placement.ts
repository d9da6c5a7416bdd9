/**
 * Which replica and slot a task gets: a pure choice among those that can take it now (behaviour §10).
 * Replica: fewest busy slots, then replica id. Slot: the one that last held the longest common beginning, else
 * the one that was idle longest, so that the others keep what they hold. Called by the scheduler for every start.
 */
import { assert } from "./assert.ts";
import { sharedBlocks } from "./prefix.ts";

/** A slot is free, leased, or releasing: its attempt was cut and the engine has not said yet that it is free. */
export type SlotState =
  | {
      readonly kind: "free";
      /** What it held last (prefix.ts), and when it was freed, counted in leases. */
      readonly prefix: readonly number[];
      readonly freedAt: number;
    }
  | {
      readonly kind: "leased" | "releasing";
      readonly prefix: readonly number[];
      readonly leaseId: number;
      readonly taskId: string;
    };

export const neverUsed: SlotState = { kind: "free", prefix: [], freedAt: 0 };

export interface ReplicaSlots {
  readonly replicaId: string;
  readonly incarnation: number;
  readonly slots: SlotState[];
  busy: number;
}

export interface Placement {
  readonly replica: ReplicaSlots;
  /** Replicas that had a free slot. */
  readonly candidates: number;
}

/** The replica that the next task gets, whichever task that is; null while none has a free slot. */
export function place(replicas: Iterable<ReplicaSlots>): Placement | null {
  let best: ReplicaSlots | null = null;
  let candidates = 0;
  for (const replica of replicas) {
    if (replica.busy >= replica.slots.length) continue;
    candidates++;
    if (
      best === null ||
      replica.busy < best.busy ||
      (replica.busy === best.busy && replica.replicaId < best.replicaId)
    )
      best = replica;
  }
  return best === null ? null : { replica: best, candidates };
}

/** The replica's slot for a text that begins like this; it has a free one. */
export function chooseSlot(replica: ReplicaSlots, prefix: readonly number[]): number {
  let best: { index: number; shared: number; freedAt: number } | null = null;
  for (const [index, slot] of replica.slots.entries()) {
    if (slot.kind !== "free") continue;
    const shared = sharedBlocks(prefix, slot.prefix);
    if (best === null || shared > best.shared || (shared === best.shared && slot.freedAt < best.freedAt))
      best = { index, shared, freedAt: slot.freedAt };
  }
  assert(best !== null, `replica ${replica.replicaId} has a free slot`);
  return best.index;
}
