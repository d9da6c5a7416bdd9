/**
 * Artifacts: documents under the digest of their canonical form, and attachments under that of their bytes. The
 * routes of api/artifacts.ts call it, and whoever leaves a trace of a finished task.
 *
 * Always holds: the blobs are the truth and the index follows them, blob first when something comes, index first when
 * it goes (artifact-turns.ts keeps operations on one blob apart, artifact-room.ts what all may take, artifact-settling.ts
 * mends the index). Another key's artifact is answered as if it did not exist, unless an admin asks.
 */
import {
  type ArtifactDocument,
  type ArtifactKind,
  canonicalText,
  documentBytesMax,
  parseDocument,
  searchText,
  searchWords,
} from "../domain/artifact.ts";
import { assert } from "../domain/assert.ts";
import type { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { ArtifactIndex, IndexedEntry, IndexPage, IndexPlace } from "../ports/artifact-index.ts";
import {
  type BlobKey,
  type BlobStore,
  isBlobError,
  type Naming,
  type OpenBlob,
  type Received,
} from "../ports/blob-store.ts";
import type { Clock } from "../ports/clock.ts";
import { isStoreError, type NewTranscript } from "../ports/task-store.ts";
import type { Log } from "../ports/telemetry.ts";
import {
  brokenOff,
  noArtifact,
  noAttachment,
  notKnownYet,
  notThere,
  tooLarge,
  tooManyWords,
} from "./artifact-refusals.ts";
import { ArtifactRoom, type Collected, keyOf, type RoomRules } from "./artifact-room.ts";
import { ArtifactSettling, attachmentEntry } from "./artifact-settling.ts";
import { ArtifactTurns } from "./artifact-turns.ts";

export interface ArtifactRules extends RoomRules {
  /** The canonical form of one document. */
  readonly artifactBytesMax: number;
  readonly attachmentBytesMax: number;
}

export interface ArtifactsDeps {
  readonly store: BlobStore;
  readonly index: ArtifactIndex;
  readonly clock: Clock;
  readonly log: Log;
  readonly rules: ArtifactRules;
  /** What is on its way here; absent: nothing is. */
  readonly waiting?: FindWaiting;
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

/** `owner` null: of whatever key. @throws UNTRUSTED_ARTIFACT, StoreError */
export type FindWaiting = (id: string, owner: string | null) => Artifact | null;

export class Artifacts {
  readonly #turns: ArtifactTurns;
  readonly #settling: ArtifactSettling;
  readonly #room: ArtifactRoom;

  constructor(private readonly deps: ArtifactsDeps) {
    this.#turns = new ArtifactTurns(deps);
    this.#settling = new ArtifactSettling({ ...deps, turns: this.#turns });
    this.#room = new ArtifactRoom({ ...deps, turns: this.#turns, settled: () => this.#settling.settled });
  }

  /** Compares index and blobs where the last process did not end in order, then collects from time to time. */
  async start(): Promise<void> {
    await this.#settling.start();
    this.#room.start();
  }

  /** What the store does not answer within limits.artifactStopMs is not waited for. */
  async stop(): Promise<void> {
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const timer = this.deps.clock.setTimer(limits.artifactStopMs, resolve);
    const ended = Promise.all([this.#settling.stop(), this.#room.stop()]).then(() => this.#turns.idle());
    await Promise.race([ended, late]);
    timer.cancel();
    this.deps.index.close();
  }

  /** What all take together; null while the index may not know it. */
  bytes(): number | null {
    if (this.#settling.incomplete) return null;
    try {
      return this.totals().bytes;
    } catch (error) {
      if (!isStoreError(error)) throw error;
      return null;
    }
  }

  totals(): { readonly documents: number; readonly attachments: number; readonly bytes: number } {
    return this.deps.index.totals();
  }

  /** @throws STORAGE_UNAVAILABLE */
  collect(): Promise<Collected> {
    return this.#room.collect();
  }

  /**
   * @returns `fresh` false: this key had stored the same document before, and it is as old as it was.
   * @throws INVALID_PARAMS, PAYLOAD_TOO_LARGE, STORAGE_UNAVAILABLE
   */
  async put(
    caller: ArtifactCaller,
    document: ArtifactDocument,
  ): Promise<{ entry: IndexedEntry; fresh: boolean }> {
    return await this.#put(caller, document, canonicalText(document), null);
  }

  /**
   * A transcript, which has waited elsewhere since `createdMs`; again and again is once.
   * @throws PAYLOAD_TOO_LARGE, STORAGE_UNAVAILABLE
   */
  async keep({ keyId, createdMs, text }: NewTranscript): Promise<IndexedEntry> {
    const document = parseDocument(text);
    assert(document !== null, "a transcript is a document");
    return (await this.#put({ keyId, admin: false }, document, text, createdMs)).entry;
  }

  /** `text`: the canonical one. `since`: when it was made; null: now. */
  async #put(
    caller: ArtifactCaller,
    document: ArtifactDocument,
    text: string,
    since: number | null,
  ): Promise<{ entry: IndexedEntry; fresh: boolean }> {
    const bytes = new TextEncoder().encode(text);
    const { kind, parent, attachments, tags } = document;
    const bytesMax = documentBytesMax(kind, this.deps.rules.artifactBytesMax);
    if (bytes.byteLength > bytesMax) throw tooLarge(`a document of the kind ${kind}`, bytesMax);
    const digest = new Bun.CryptoHasher("sha256").update(bytes).digest("hex");
    const key: BlobKey = { shelf: "documents", owner: caller.keyId, digest };
    const targets = parent === null ? attachments : [parent, ...attachments];
    return await this.#turns.wanting([digest, ...targets], () =>
      this.#turns.turn(key, async () => {
        this.#assertThere(caller, parent, attachments);
        const known = this.deps.index.find("documents", caller.keyId, digest);
        const giveBack = known === null ? await this.#room.claim(bytes.byteLength) : null;
        try {
          // Also where the index has it: the file may have been damaged, and here is the original.
          const stored = await this.deps.store.put(key, bytes);
          const storedMs = Math.round(this.deps.clock.nowMs());
          // There and not in the index: it is as old as the blob.
          const older = stored || known !== null ? null : await this.deps.store.stat(key);
          const entry = this.deps.index.add(
            {
              shelf: "documents",
              owner: caller.keyId,
              id: digest,
              kind,
              createdMs: since ?? older?.storedMs ?? storedMs,
              storedMs,
              sizeBytes: bytes.byteLength,
              parent,
              tags,
              attachments,
            },
            searchText(document),
          );
          return { entry, fresh: stored && known === null };
        } finally {
          giveBack?.();
        }
      }),
    );
  }

  /** @throws NOT_FOUND, UNTRUSTED_ARTIFACT, STORAGE_UNAVAILABLE */
  async get(caller: ArtifactCaller, id: string): Promise<Artifact> {
    const entry = this.#indexed("documents", caller, id);
    // Looked up at once: it is in the index before it waits no longer.
    const waiting = entry === null ? this.#waiting(caller, id) : null;
    if (waiting !== null) return waiting;
    if (entry === null) throw this.#absent(noArtifact());
    const key = keyOf(entry);
    return await this.#turns.turn(key, async () => {
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
    const entry = this.#indexed("documents", caller, id) ?? this.#waiting(caller, id)?.entry ?? null;
    if (entry === null) throw this.#absent(noArtifact());
    return entry;
  }

  /** @throws INVALID_PARAMS (too many words), STORAGE_UNAVAILABLE */
  async list(caller: ArtifactCaller, { search, ...query }: ArtifactQuery): Promise<IndexPage> {
    if (this.#settling.incomplete) throw notKnownYet();
    const words = search === null ? [] : searchWords(search);
    if (words.length > limits.artifactSearchWordsMax) throw tooManyWords();
    const owner = caller.admin ? null : caller.keyId;
    const entries: IndexedEntry[] = [];
    let before = query.before;
    // In slices: a search must not hold up the streams.
    for (let rows = limits.artifactSearchSliceRows; ; rows += limits.artifactSearchSliceRows) {
      const slice = { ...query, owner, words, before, limit: query.limit - entries.length };
      const { entries: found, next } = this.#turns.answering(() => this.deps.index.list(slice));
      entries.push(...found);
      if (next === null || entries.length === query.limit || rows >= limits.artifactSearchRowsMax)
        return { entries, next };
      before = next;
      await this.deps.clock.yieldTurn();
    }
  }

  /**
   * Takes bytes as they come; `announcedBytes` is what the sender says of their length, null where it does not.
   * @throws PAYLOAD_TOO_LARGE, STORAGE_UNAVAILABLE, INVALID_PARAMS (they broke off)
   */
  async attach(
    caller: ArtifactCaller,
    chunks: AsyncIterable<Uint8Array>,
    announcedBytes: number | null = null,
  ): Promise<Received> {
    const { rules, store, index, clock } = this.deps;
    if (announcedBytes !== null && announcedBytes > rules.attachmentBytesMax)
      throw tooLarge("an attachment", rules.attachmentBytesMax);
    const room = this.#room.growing();
    const keyFor = (digest: string): BlobKey => ({ shelf: "attachments", owner: caller.keyId, digest });
    // Named and indexed in one turn: no collection comes in between.
    const naming: Naming = (digest, work) =>
      this.#turns.turn(keyFor(digest), async () => {
        const received = await work();
        index.add(attachmentEntry(keyFor(digest), bytes, Math.round(clock.nowMs())), "");
        return received;
      });
    let bytes = 0;
    const reach = (reached: number): Promise<void> => {
      bytes = reached;
      return room.reach(reached);
    };
    try {
      const counted = claiming(chunks, rules.attachmentBytesMax, reach);
      return await store.receive("attachments", caller.keyId, counted, rules.attachmentBytesMax, naming);
    } catch (error) {
      if (isBlobError(error) && error.kind === "too_large")
        throw tooLarge("an attachment", rules.attachmentBytesMax);
      throw this.#turns.told(error);
    } finally {
      room.giveBack();
    }
  }

  /** @throws NOT_FOUND, UNTRUSTED_ARTIFACT, STORAGE_UNAVAILABLE */
  async openAttachment(caller: ArtifactCaller, digest: string): Promise<OpenBlob> {
    const entry = this.headAttachment(caller, digest);
    const key = keyOf(entry);
    return await this.#turns.turn(key, async () => {
      const blob = await this.deps.store.open(key);
      if (blob !== null) return blob;
      this.deps.index.remove(entry);
      throw noAttachment();
    });
  }

  /** @throws NOT_FOUND */
  headAttachment(caller: ArtifactCaller, digest: string): IndexedEntry {
    const entry = this.#indexed("attachments", caller, digest);
    if (entry === null) throw this.#absent(noAttachment());
    return entry;
  }

  #indexed(shelf: "documents" | "attachments", caller: ArtifactCaller, id: string): IndexedEntry | null {
    const { index } = this.deps;
    return this.#turns.answering(
      () => index.find(shelf, caller.keyId, id) ?? (caller.admin ? index.find(shelf, null, id) : null),
    );
  }

  #waiting(caller: ArtifactCaller, id: string): Artifact | null {
    const { waiting } = this.deps;
    if (waiting === undefined) return null;
    return this.#turns.answering(
      () => waiting(id, caller.keyId) ?? (caller.admin ? waiting(id, null) : null),
    );
  }

  /** STORAGE_UNAVAILABLE where only the blobs could tell. */
  #absent(refusal: OrchestratorError): OrchestratorError {
    return this.#settling.incomplete ? notKnownYet() : refusal;
  }

  #assertThere(caller: ArtifactCaller, parent: string | null, attachments: readonly string[]): void {
    const isThere = (id: string): boolean =>
      (this.#indexed("documents", caller, id) ?? this.#waiting(caller, id)) !== null;
    if (parent !== null && !isThere(parent))
      throw this.#absent(notThere("parent", "there is no artifact with the id that parent names"));
    attachments.forEach((digest, at) => {
      if (this.#indexed("attachments", caller, digest) !== null) return;
      const message = "there is no such attachment: POST /v1/attachments first";
      throw this.#absent(notThere(`attachments[${at}]`, message));
    });
  }
}

/** The same pieces, each with its room claimed before it is handed on. */
async function* claiming(
  chunks: AsyncIterable<Uint8Array>,
  bytesMax: number,
  reach: (bytes: number) => Promise<void>,
): AsyncIterable<Uint8Array> {
  let bytes = 0;
  for await (const chunk of unbroken(chunks)) {
    bytes += chunk.byteLength;
    // More than may be is the store's to refuse, and needs no room.
    if (bytes <= bytesMax) await reach(bytes);
    yield chunk;
  }
}

/** Where the sender's side fails it is the sender's error, not the store's. */
async function* unbroken(chunks: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
  const walk = chunks[Symbol.asyncIterator]();
  let ended = false;
  try {
    while (!ended) {
      const { done, value } = await walk.next().catch((cause: unknown) => {
        ended = true;
        throw brokenOff(cause);
      });
      if (done) ended = true;
      else yield value;
    }
  } finally {
    if (!ended) await walk.return?.();
  }
}
