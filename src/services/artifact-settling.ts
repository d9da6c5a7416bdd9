/**
 * Makes the index agree with the blobs, whatever became of it. services/artifacts.ts runs it at the start where the last
 * process did not end in order; requests go on meanwhile.
 *
 * Always holds: nothing is removed but entries without a blob; a store that refuses is asked again later; a bounded number
 * of blobs is read at once.
 */
import { parseDocument, searchText } from "../domain/artifact.ts";
import { limits } from "../domain/limits.ts";
import type { ArtifactIndex, IndexEntry } from "../ports/artifact-index.ts";
import { type BlobFacts, type BlobKey, type BlobStore, isBlobError } from "../ports/blob-store.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import type { Log } from "../ports/telemetry.ts";
import { keyOf } from "./artifact-room.ts";
import type { ArtifactTurns } from "./artifact-turns.ts";

export interface ArtifactSettlingDeps {
  readonly store: BlobStore;
  readonly index: ArtifactIndex;
  readonly clock: Clock;
  readonly log: Log;
  readonly turns: ArtifactTurns;
}

export class ArtifactSettling {
  #settled: boolean;
  #closed = false;
  #running: Promise<void> = Promise.resolve();
  #timer: Timer | null = null;

  constructor(private readonly deps: ArtifactSettlingDeps) {
    this.#settled = deps.index.found === "clean";
  }

  get settled(): boolean {
    return this.#settled;
  }

  /** Whether what the index does not know may be there all the same. */
  get incomplete(): boolean {
    return !this.#settled && this.deps.index.found === "new";
  }

  /** Resolves when it has settled, or after limits.artifactSettleStartMs, and goes on. */
  async start(): Promise<void> {
    if (this.#settled) return;
    this.#running = this.#try();
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const timer = this.deps.clock.setTimer(limits.artifactSettleStartMs, resolve);
    await Promise.race([this.#running, late]);
    timer.cancel();
  }

  async stop(): Promise<void> {
    this.#closed = true;
    this.#timer?.cancel();
    await this.#running;
  }

  async #try(): Promise<void> {
    try {
      await this.#settle();
    } catch (error) {
      this.deps.log.error(
        "artifacts_not_compared",
        { human: "the index and the artifacts; tried again later" },
        error,
      );
      if (this.#closed) return;
      this.#timer = this.deps.clock.setTimer(limits.artifactRetryMs, () => {
        this.#running = this.#try();
      });
    }
  }

  async #settle(): Promise<void> {
    const { index, log } = this.deps;
    const seen = new OrdinalSet();
    const added = await this.#adoptAll(seen);
    const gone = await this.#forgetAll(seen);
    if (this.#closed) return;
    index.reconciled();
    this.#settled = true;
    if (added + gone > 0)
      log.warn("artifacts_reconciled", {
        count: added + gone,
        human: `the index lacked ${added} artifacts and had ${gone} that are not there`,
      });
  }

  /** @returns how many blobs the index did not know. */
  async #adoptAll(seen: OrdinalSet): Promise<number> {
    const { store, index, turns, clock } = this.deps;
    let added = 0;
    let unknown: BlobFacts[] = [];
    const adopt = async (): Promise<void> => {
      const outcomes = await Promise.all(unknown.map((facts) => this.#adopt(facts)));
      added += outcomes.filter((done) => done).length;
      unknown = [];
    };
    let listed = 0;
    for await (const facts of store.list()) {
      if (this.#closed) return added;
      listed += 1;
      if (listed % limits.artifactBatch === 0) await clock.yieldTurn();
      const { shelf, owner, digest } = facts.key;
      const known = turns.answering(() => index.find(shelf, owner, digest));
      if (known !== null) seen.add(known.ordinal);
      else if (unknown.push(facts) === limits.artifactSettleAtOnce) await adopt();
    }
    await adopt();
    return added;
  }

  /** @returns how many entries had no blob. Those that were not listed may have come meanwhile, so each is looked for. */
  async #forgetAll(seen: OrdinalSet): Promise<number> {
    const { store, index, turns, clock } = this.deps;
    let gone = 0;
    for (let after = 0; !this.#closed; ) {
      const from = after;
      const batch = turns.answering(() => index.walk(from, limits.artifactBatch));
      for (const entry of batch) {
        after = entry.ordinal;
        if (seen.has(entry.ordinal)) continue;
        const key = keyOf(entry);
        const missing = await turns.turn(
          key,
          async () => (await store.stat(key)) === null && index.remove(entry),
        );
        if (missing) gone += 1;
      }
      if (batch.length < limits.artifactBatch) break;
      await clock.yieldTurn();
    }
    return gone;
  }

  /** False: it is there by now, gone, or no document; the store puts aside what is damaged. */
  #adopt(facts: BlobFacts): Promise<boolean> {
    const { index, turns } = this.deps;
    const { shelf, owner, digest } = facts.key;
    return turns.turn(facts.key, async () => {
      if (index.find(shelf, owner, digest) !== null) return false;
      if (shelf === "attachments") {
        index.add(attachmentEntry(facts.key, facts.sizeBytes, facts.storedMs), "");
        return true;
      }
      const bytes = await this.#readUndamaged(facts.key);
      const document = bytes === null ? null : parseDocument(new TextDecoder().decode(bytes));
      if (bytes === null || document === null) return false;
      const { kind, parent, tags, attachments } = document;
      const times = { createdMs: facts.storedMs, storedMs: facts.storedMs };
      const sizeBytes = bytes.byteLength;
      index.add(
        { shelf, owner, id: digest, kind, ...times, sizeBytes, parent, tags, attachments },
        searchText(document),
      );
      return true;
    });
  }

  /** One that is damaged shall not keep the others out. */
  async #readUndamaged(key: BlobKey): Promise<Uint8Array | null> {
    try {
      return await this.deps.store.get(key);
    } catch (error) {
      if (!isBlobError(error) || error.kind !== "damaged") throw error;
      this.deps.log.error("artifact_trouble", { human: error.message }, error);
      return null;
    }
  }
}

export const attachmentEntry = (
  { owner, digest }: BlobKey,
  sizeBytes: number,
  storedMs: number,
): IndexEntry => ({
  shelf: "attachments",
  owner,
  id: digest,
  kind: null,
  createdMs: storedMs,
  storedMs,
  sizeBytes,
  parent: null,
  tags: [],
  attachments: [],
});

/** A bit for each: ordinals are given out in order, so a million take 125 kB. */
class OrdinalSet {
  #bits = new Uint8Array(1024);

  add(ordinal: number): void {
    const at = Math.floor(ordinal / 8);
    if (at >= this.#bits.length) {
      const more = new Uint8Array(Math.max(at + 1, this.#bits.length * 2));
      more.set(this.#bits);
      this.#bits = more;
    }
    this.#bits[at] = (this.#bits[at] ?? 0) | (1 << (ordinal % 8));
  }

  has(ordinal: number): boolean {
    return ((this.#bits[Math.floor(ordinal / 8)] ?? 0) & (1 << (ordinal % 8))) !== 0;
  }
}
