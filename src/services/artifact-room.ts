/**
 * How much the artifacts may take together: who comes in claims room first, and what nothing refers to goes when it
 * is too old, or the oldest while there is too much. services/artifacts.ts has one.
 *
 * Always holds: what is stored and what is claimed never exceed the bound together; what is referred to, what came in
 * within limits.artifactGraceMs and what a running request needs is not collected; a claim that could never fit
 * costs nobody anything. The event loop turns between batches.
 */
import { collected } from "../domain/artifact.ts";
import { limits } from "../domain/limits.ts";
import type { ArtifactIndex, IndexEntry, IndexedEntry, LoosePlace } from "../ports/artifact-index.ts";
import { type BlobKey, type BlobStore, blobShelves } from "../ports/blob-store.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { Log } from "../ports/telemetry.ts";
import { noRoom } from "./artifact-refusals.ts";
import type { ArtifactTurns } from "./artifact-turns.ts";

export interface RoomRules {
  /** Everything together. */
  readonly bytesMax: number;
  /** Null: age alone ends nothing. */
  readonly maxAgeMs: number | null;
}

export interface ArtifactRoomDeps {
  readonly store: BlobStore;
  readonly index: ArtifactIndex;
  readonly clock: Clock;
  readonly log: Log;
  readonly rules: RoomRules;
  readonly turns: ArtifactTurns;
  /** Whether the index agrees with the blobs; before that nobody knows what is referred to. */
  readonly settled: () => boolean;
}

export interface Collected {
  readonly count: number;
  readonly bytes: number;
}

export const keyOf = ({ shelf, owner, id }: Pick<IndexEntry, "shelf" | "owner" | "id">): BlobKey => ({
  shelf,
  owner,
  digest: id,
});

export class ArtifactRoom {
  #claimedBytes = 0;
  #collecting: Promise<Collected> | null = null;
  #timer: Timer | null = null;
  #closed = false;

  constructor(private readonly deps: ArtifactRoomDeps) {}

  get bytesMax(): number {
    return this.deps.rules.bytesMax;
  }

  /** Makes room where there is none. @returns gives it back; idempotent. @throws STORAGE_UNAVAILABLE */
  async claim(bytes: number): Promise<() => void> {
    if (this.#claimedBytes + bytes > this.bytesMax) throw noRoom(undefined);
    this.#claimedBytes += bytes;
    let held = true;
    const giveBack = (): void => {
      if (held) this.#claimedBytes -= bytes;
      held = false;
    };
    try {
      // Twice: one that is under way may have passed by what can go for this claim.
      for (let round = 0; this.#overBytes() > 0; round += 1) {
        if (round === 2) throw noRoom(undefined);
        await this.collect();
      }
      return giveBack;
    } catch (error) {
      giveBack();
      throw error;
    }
  }

  /** Room for what comes in piece by piece and tells its length only at its end. */
  growing(): { readonly reach: (bytes: number) => Promise<void>; readonly giveBack: () => void } {
    const claims: (() => void)[] = [];
    let heldBytes = 0;
    return {
      reach: async (bytes) => {
        if (bytes <= heldBytes) return;
        const least = bytes - heldBytes;
        const step = Math.max(least, Math.min(heldBytes, limits.attachmentRoomBytes));
        try {
          claims.push(await this.claim(step));
          heldBytes += step;
        } catch (error) {
          if (step === least) throw error;
          claims.push(await this.claim(least));
          heldBytes += least;
        }
      },
      giveBack: () => {
        for (const giveBack of claims.splice(0)) giveBack();
      },
    };
  }

  /** Removes what is too old, and the oldest while there is too much. @throws STORAGE_UNAVAILABLE */
  collect(): Promise<Collected> {
    this.#collecting ??= this.#collect().finally(() => {
      this.#collecting = null;
    });
    return this.#collecting;
  }

  /** From now on, from time to time. */
  start(): void {
    if (this.#closed) return;
    this.#timer = this.deps.clock.setTimer(limits.artifactCollectEveryMs, () => {
      this.collect().then(
        () => this.start(),
        (error: unknown) => {
          this.deps.log.error("artifacts_not_collected", { human: "tried again later" }, error);
          this.start();
        },
      );
    });
  }

  /** Resolves once no collection runs. */
  async stop(): Promise<void> {
    this.#closed = true;
    this.#timer?.cancel();
    await this.#collecting?.catch(() => null);
  }

  #overBytes(): number {
    return (
      this.deps.turns.answering(() => this.deps.index.totals().bytes) + this.#claimedBytes - this.bytesMax
    );
  }

  async #collect(): Promise<Collected> {
    const done = { count: 0, bytes: 0 };
    // A cycle cannot be: a document names what was there before it.
    for (let after: LoosePlace | null = null; !this.#closed && this.deps.settled(); ) {
      const from: LoosePlace | null = after;
      const batch: readonly IndexedEntry[] = this.deps.turns.answering(() =>
        this.deps.index.loose(from, limits.artifactBatch),
      );
      const isLast = await this.#collectBatch(batch, done);
      after = batch.at(-1) ?? null;
      if (isLast || batch.length < limits.artifactBatch) break;
      await this.deps.clock.yieldTurn();
    }
    if (done.count > 0)
      this.deps.log.info("artifacts_collected", { count: done.count, human: `${done.bytes} bytes freed` });
    return done;
  }

  /** @returns whether one may stay: those behind it are younger and may too. */
  async #collectBatch(
    batch: readonly IndexedEntry[],
    done: { count: number; bytes: number },
  ): Promise<boolean> {
    for (const entry of batch) {
      if (this.#closed || !this.#mayGo(entry)) return true;
      await this.#take(entry, done);
    }
    return false;
  }

  #mayGo(entry: IndexedEntry): boolean {
    const { clock, rules } = this.deps;
    const may = { maxAgeMs: rules.maxAgeMs, overBytes: this.#overBytes() };
    return collected(entry, may, clock.nowMs()) !== null;
  }

  /** It, and what only it referred to and may go too. */
  async #take(first: IndexedEntry, done: { count: number; bytes: number }): Promise<void> {
    const { index, turns } = this.deps;
    const open = [first];
    for (let entry = open.pop(); entry !== undefined; entry = open.pop()) {
      if (this.#closed || !(await this.#remove(entry))) continue;
      done.count += 1;
      done.bytes += entry.sizeBytes;
      const { owner, parent, attachments } = entry;
      for (const id of parent === null ? attachments : [parent, ...attachments])
        for (const shelf of blobShelves) {
          const target = turns.answering(() => index.find(shelf, owner, id));
          if (target === null || turns.answering(() => index.isReferenced(id))) continue;
          if (this.#mayGo(target)) open.push(target);
        }
    }
  }

  #remove(entry: IndexedEntry): Promise<boolean> {
    const { index, store, turns } = this.deps;
    return turns.turn(keyOf(entry), async () => {
      // Looked at again within the turn: somebody may need it by now.
      if (turns.isWanted(entry.id) || index.isReferenced(entry.id)) return false;
      if (!index.remove(entry)) return false;
      await store.remove(keyOf(entry));
      return true;
    });
  }
}
