/**
 * Which replica and slot a task gets: a pure choice among those that can take it now (behaviour §10).
 * Order: fewest busy slots, then replica id. Called by the scheduler for every start.
 */

/** A slot is free, leased, or releasing: its attempt was cut and the engine has not said yet that it is free. */
export type SlotState =
  | { readonly kind: "free" }
  | { readonly kind: "leased" | "releasing"; readonly leaseId: number; readonly taskId: string };

export interface ReplicaSlots {
  readonly replicaId: string;
  readonly incarnation: number;
  readonly slots: SlotState[];
  busy: number;
}

export interface Placement {
  readonly replica: ReplicaSlots;
  readonly slot: number;
  /** Replicas that had a free slot. */
  readonly candidates: number;
}

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
  if (best === null) return null;
  const slot = best.slots.findIndex((s) => s.kind === "free");
  return slot < 0 ? null : { replica: best, slot, candidates };
}
