/**
 * Artifacts: documents under the digest of their canonical form, and attachments under that of their bytes. The
 * routes of api/artifacts.ts call it, and whoever leaves a trace of a finished task.
 *
 * Always holds: the blobs are the truth and the index follows them, blob first when something comes, index first when
 * it goes; two operations on the same blob never overlap; what a request in progress is about to refer to is
 * not collected. Another key's artifact is answered as if it did not exist, unless an admin asks.
 */
import {
  type ArtifactDocument,
  type ArtifactKind,
  canonicalText,
  collected,
  documentBytesMax,
  parseDocument,
  searchText,
  searchWords,
} from "../domain/artifact.ts";
import { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type {
  ArtifactIndex,
  IndexEntry,
  IndexedEntry,
  IndexPage,
  IndexPlace,
} from "../ports/artifact-index.ts";
import {
  type BlobFacts,
  type BlobKey,
  type BlobStore,
  isBlobError,
  type OpenBlob,
  type Received,
} from "../ports/blob-store.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import { isStoreError } from "../ports/task-store.ts";
import type { Log } from "../ports/telemetry.ts";
import { noArtifact, noAttachment, noRoom, notThere, tooLarge } from "./artifact-refusals.ts";

export interface ArtifactRules {
  /** The canonical form of one document. */
  readonly artifactBytesMax: number;
  readonly attachmentBytesMax: number;
  /** Everything together. */
  readonly bytesMax: number;
  /** Null: age alone ends nothing. */
  readonly maxAgeMs: number | null;
}

export interface ArtifactsDeps {
  readonly store: BlobStore;
  readonly index: ArtifactIndex;
  readonly clock: Clock;
  readonly log: Log;
  readonly rules: ArtifactRules;
  /** Ids and digests that live tasks need; asked once for each collection. */
  readonly pinned: () => ReadonlySet<string>;
}

export interface ArtifactCaller {
  readonly keyId: string;
  readonly admin: boolean;
}

export interface ArtifactQuery {
  readonly kind: ArtifactKind | null;
  readonly tag: string | null;
  readonly search: string | null;
  readonly before: IndexPlace | null;
  readonly limit: number;
}

export interface Artifact {
  readonly entry: IndexedEntry;
  readonly document: ArtifactDocument;
}

export interface Collected {
  readonly count: number;
  readonly bytes: number;
}

export class Artifacts {
  /** The last operation on each blob that has one now. */
  readonly #turns = new Map<string, Promise<unknown>>();
  /** Ids that running requests refer to or make, with how many do. */
  readonly #wanted = new Map<string, number>();
  #collecting: Promise<Collected> | null = null;
  #timer: Timer | null = null;
  #closed = false;

  constructor(private readonly deps: ArtifactsDeps) {}

  /** Compares index and blobs where the last process did not end in order, then collects from time to time. */
  async start(): Promise<void> {
    if (!this.deps.index.clean) await this.reconcile();
    this.#collectLater();
  }

  async stop(): Promise<void> {
    this.#closed = true;
    this.#timer?.cancel();
    await this.#collecting?.catch(() => null);
    await Promise.allSettled(this.#turns.values());
    this.deps.index.close();
  }

  totals(): { readonly documents: number; readonly attachments: number; readonly bytes: number } {
    return this.deps.index.totals();
  }

  /**
   * @returns `fresh` false: this key had stored the same document before, and it is as old as it was.
   * @throws INVALID_PARAMS, PAYLOAD_TOO_LARGE, STORAGE_UNAVAILABLE
   */
  put(caller: ArtifactCaller, document: ArtifactDocument): Promise<{ entry: IndexedEntry; fresh: boolean }> {
    const text = canonicalText(document);
    const bytes = new TextEncoder().encode(text);
    const { kind, parent, attachments, tags } = document;
    const bytesMax = documentBytesMax(kind, this.deps.rules.artifactBytesMax);
    if (bytes.byteLength > bytesMax) throw tooLarge(`a document of the kind ${kind}`, bytesMax);
    const digest = new Bun.CryptoHasher("sha256").update(bytes).digest("hex");
    const key: BlobKey = { shelf: "documents", owner: caller.keyId, digest };
    const targets = parent === null ? attachments : [parent, ...attachments];
    return this.#wanting([digest, ...targets], () =>
      this.#turn(key, async () => {
        this.#assertThere(caller, parent, attachments);
        const known = this.deps.index.find("documents", caller.keyId, digest);
        // Also where the index has it: the file may have been damaged, and here is the original.
        if (known === null) await this.#makeRoom(bytes.byteLength);
        const stored = await this.deps.store.put(key, bytes);
        const entry = this.deps.index.add(
          {
            shelf: "documents",
            owner: caller.keyId,
            id: digest,
            kind,
            createdMs: Math.round(this.deps.clock.nowMs()),
            sizeBytes: bytes.byteLength,
            parent,
            tags,
            attachments,
          },
          searchText(document),
        );
        return { entry, fresh: stored && known === null };
      }),
    );
  }

  /** @throws NOT_FOUND, UNTRUSTED_ARTIFACT, STORAGE_UNAVAILABLE */
  get(caller: ArtifactCaller, id: string): Promise<Artifact> {
    const entry = this.head(caller, id);
    const key = keyOf(entry);
    return this.#turn(key, async () => {
      const bytes = await this.deps.store.get(key);
      const document = bytes === null ? null : parseDocument(new TextDecoder().decode(bytes));
      if (document === null) {
        this.deps.index.remove(entry);
        throw noArtifact();
      }
      return { entry, document };
    });
  }

  /** Without reading it: the id says all that the answer to If-None-Match needs. @throws NOT_FOUND */
  head(caller: ArtifactCaller, id: string): IndexedEntry {
    const entry = this.#find("documents", caller, id);
    if (entry === null) throw noArtifact();
    return entry;
  }

  list(caller: ArtifactCaller, { search, ...query }: ArtifactQuery): IndexPage {
    const owner = caller.admin ? null : caller.keyId;
    return this.#answering(() =>
      this.deps.index.list({ ...query, owner, words: search === null ? [] : searchWords(search) }),
    );
  }

  /** Takes bytes as they come. @throws PAYLOAD_TOO_LARGE, STORAGE_UNAVAILABLE */
  async attach(caller: ArtifactCaller, chunks: AsyncIterable<Uint8Array>): Promise<Received> {
    const { rules, store, index, clock } = this.deps;
    await this.#makeRoom(0);
    const room = Math.max(0, rules.bytesMax - index.totals().bytes);
    const bytesMax = Math.min(rules.attachmentBytesMax, room);
    let received: Received;
    try {
      received = await store.receive("attachments", caller.keyId, chunks, bytesMax);
    } catch (error) {
      if (!isBlobError(error)) throw error;
      if (error.kind === "too_large" && bytesMax < rules.attachmentBytesMax) throw noRoom(error);
      throw this.#told(error, "an attachment", rules.attachmentBytesMax);
    }
    const { digest, sizeBytes } = received;
    const key: BlobKey = { shelf: "attachments", owner: caller.keyId, digest };
    return this.#turn(key, async () => {
      // A collection may have come between the last byte and here.
      if ((await store.stat(key)) === null) throw noRoom(undefined);
      index.add(attachmentEntry(key, sizeBytes, Math.round(clock.nowMs())), "");
      return received;
    });
  }

  /** @throws NOT_FOUND, UNTRUSTED_ARTIFACT, STORAGE_UNAVAILABLE */
  openAttachment(caller: ArtifactCaller, digest: string): Promise<OpenBlob> {
    const entry = this.headAttachment(caller, digest);
    const key = keyOf(entry);
    return this.#turn(key, async () => {
      const blob = await this.deps.store.open(key);
      if (blob !== null) return blob;
      this.deps.index.remove(entry);
      throw noAttachment();
    });
  }

  headAttachment(caller: ArtifactCaller, digest: string): IndexedEntry {
    const entry = this.#find("attachments", caller, digest);
    if (entry === null) throw noAttachment();
    return entry;
  }

  /** Removes what is too old, and the oldest while there is too much; never what something refers to. */
  collect(roomBytes = 0): Promise<Collected> {
    this.#collecting ??= this.#collect(roomBytes).finally(() => {
      this.#collecting = null;
    });
    return this.#collecting;
  }

  async #collect(roomBytes: number): Promise<Collected> {
    const { index, store, clock, rules } = this.deps;
    const pinned = this.deps.pinned();
    const done = { count: 0, bytes: 0 };
    let removed: number;
    // What was removed may have been all that referred to something else: again, until nothing goes any more.
    do {
      removed = 0;
      for (let after: IndexPlace | null = null; !this.#closed; ) {
        const batch: readonly IndexedEntry[] = index.unreferenced(after, limits.artifactBatch);
        for (const entry of batch) {
          after = entry;
          const overBytes = index.totals().bytes + roomBytes - rules.bytesMax;
          if (collected(entry, { maxAgeMs: rules.maxAgeMs, overBytes }, clock.nowMs()) === null) continue;
          if (pinned.has(entry.id)) continue;
          const key = keyOf(entry);
          const gone = await this.#turn(key, async () => {
            // Looked at again within the turn: somebody may refer to it by now.
            if (this.#wanted.has(entry.id) || index.isReferenced(entry.id)) return false;
            if (!index.remove(entry)) return false;
            await store.remove(key);
            return true;
          });
          if (!gone) continue;
          removed += 1;
          done.count += 1;
          done.bytes += entry.sizeBytes;
        }
        if (batch.length < limits.artifactBatch) break;
      }
    } while (removed > 0 && !this.#closed);
    if (done.count > 0)
      this.deps.log.info("artifacts_collected", { count: done.count, human: `${done.bytes} bytes freed` });
    return done;
  }

  /** Makes the index agree with the blobs, whatever became of it. Requests may go on meanwhile. */
  async reconcile(): Promise<void> {
    const { index, store, log } = this.deps;
    let added = 0;
    for await (const facts of store.list()) {
      if (this.#closed) return;
      const { shelf, owner, digest } = facts.key;
      if (index.find(shelf, owner, digest) !== null) continue;
      if (await this.#turn(facts.key, () => this.#adopt(facts))) added += 1;
    }
    let gone = 0;
    for (let after = 0; !this.#closed; ) {
      const batch = index.walk(after, limits.artifactBatch);
      for (const entry of batch) {
        after = entry.ordinal;
        const key = keyOf(entry);
        const missing = await this.#turn(
          key,
          async () => (await store.stat(key)) === null && index.remove(entry),
        );
        if (missing) gone += 1;
      }
      if (batch.length < limits.artifactBatch) break;
    }
    if (this.#closed) return;
    index.reconciled();
    if (added + gone > 0)
      log.warn("artifacts_reconciled", {
        count: added + gone,
        human: `the index lacked ${added} artifacts and had ${gone} that are not there`,
      });
  }

  /** A blob that the index does not know; one that is damaged is put aside by the store. */
  async #adopt({ key, sizeBytes, storedMs }: BlobFacts): Promise<boolean> {
    const { index, store } = this.deps;
    if (key.shelf === "attachments") {
      index.add(attachmentEntry(key, sizeBytes, storedMs), "");
      return true;
    }
    const bytes = await store.get(key);
    const document = bytes === null ? null : parseDocument(new TextDecoder().decode(bytes));
    if (document === null) return false;
    const { kind, parent, tags, attachments } = document;
    const { owner, digest } = key;
    const createdMs = storedMs;
    index.add(
      { shelf: "documents", owner, id: digest, kind, createdMs, sizeBytes, parent, tags, attachments },
      searchText(document),
    );
    return true;
  }

  #collectLater(): void {
    if (this.#closed) return;
    this.#timer = this.deps.clock.setTimer(limits.artifactCollectEveryMs, () => {
      this.collect().then(
        () => this.#collectLater(),
        (error: unknown) => {
          this.deps.log.error("artifacts_not_collected", { human: "tried again later" }, error);
          this.#collectLater();
        },
      );
    });
  }

  async #makeRoom(bytes: number): Promise<void> {
    const full = (): boolean => this.deps.index.totals().bytes + bytes > this.deps.rules.bytesMax;
    if (!full()) return;
    await this.collect(bytes);
    if (full()) throw noRoom(undefined);
  }

  #find(shelf: "documents" | "attachments", caller: ArtifactCaller, id: string): IndexedEntry | null {
    return this.#answering(() => {
      const own = this.deps.index.find(shelf, caller.keyId, id);
      return own ?? (caller.admin ? this.deps.index.find(shelf, null, id) : null);
    });
  }

  #assertThere(caller: ArtifactCaller, parent: string | null, attachments: readonly string[]): void {
    if (parent !== null && this.#find("documents", caller, parent) === null)
      throw notThere("parent", "there is no artifact with the id that parent names");
    attachments.forEach((digest, at) => {
      if (this.#find("attachments", caller, digest) === null)
        throw notThere(`attachments[${at}]`, "there is no such attachment: POST /v1/attachments first");
    });
  }

  async #wanting<T>(ids: readonly string[], work: () => Promise<T>): Promise<T> {
    for (const id of ids) this.#wanted.set(id, (this.#wanted.get(id) ?? 0) + 1);
    try {
      return await work();
    } finally {
      for (const id of ids) {
        const left = (this.#wanted.get(id) ?? 1) - 1;
        if (left === 0) this.#wanted.delete(id);
        else this.#wanted.set(id, left);
      }
    }
  }

  /** One after the other for each blob; what the disk refuses is told as the table of errors has it. */
  #turn<T>(key: BlobKey, work: () => Promise<T>): Promise<T> {
    const name = `${key.shelf}/${key.owner}/${key.digest}`;
    const before = this.#turns.get(name) ?? Promise.resolve();
    const mine = before.then(work, work).catch((error: unknown) => {
      if (isBlobError(error) && error.kind === "damaged")
        this.deps.index.remove({ shelf: key.shelf, owner: key.owner, id: key.digest });
      throw this.#told(error, "a document", this.deps.rules.artifactBytesMax);
    });
    this.#turns.set(name, mine);
    const done = (): void => {
      if (this.#turns.get(name) === mine) this.#turns.delete(name);
    };
    mine.then(done, done);
    return mine;
  }

  #answering<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw this.#told(error, "", 0);
    }
  }

  /** As a client may hear it; the log hears the place. Anything that is no operating error comes back unchanged. */
  #told(error: unknown, what: string, bytesMax: number): unknown {
    if (!isBlobError(error) && !isStoreError(error)) return error;
    if (isBlobError(error) && error.kind === "too_large") return tooLarge(what, bytesMax);
    this.deps.log.error("artifact_trouble", { human: error.message }, error);
    if (isBlobError(error) && error.kind === "damaged")
      return new OrchestratorError(
        "UNTRUSTED_ARTIFACT",
        "what is stored does not match its digest any more and was put aside: store it again, the operator finds the rest in the log",
        { cause: error },
      );
    return new OrchestratorError(
      "STORAGE_UNAVAILABLE",
      "artifacts cannot be stored or read now: the log says what the disk or the service refused",
      { retryAfterMs: limits.storageRetryMs, cause: error },
    );
  }
}

const keyOf = ({ shelf, owner, id }: IndexedEntry): BlobKey => ({ shelf, owner, digest: id });

const attachmentEntry = ({ owner, digest }: BlobKey, sizeBytes: number, createdMs: number): IndexEntry => ({
  shelf: "attachments",
  owner,
  id: digest,
  kind: null,
  createdMs,
  sizeBytes,
  parent: null,
  tags: [],
  attachments: [],
});
