/**
 * What is in the blob store, so that lists, searches and the collection read no blobs. services/artifacts.ts and its
 * neighbours use it; infra/sqlite/artifact-index.ts implements it.
 *
 * Always holds: it can be made again from the blobs, so losing it loses nothing; `found` tells whenever it may
 * differ from them.
 */
import type { ArtifactKind } from "../domain/artifact.ts";
import type { BlobShelf } from "./blob-store.ts";

/**
 * How it was when it was opened. clean: it agrees with the blobs. behind: what was under way when the last process
 * died may be missing or gone. new: it is empty, whatever blobs there are (first start, power cut, damage, other store).
 */
export type FoundIndex = "clean" | "behind" | "new";

export interface IndexEntry {
  readonly shelf: BlobShelf;
  readonly owner: string;
  readonly id: string;
  /** Null: an attachment. */
  readonly kind: ArtifactKind | null;
  /** When its key stored it first. */
  readonly createdMs: number;
  /** When its key stored it last: what the collection goes by. */
  readonly storedMs: number;
  readonly sizeBytes: number;
  readonly parent: string | null;
  readonly tags: readonly string[];
  readonly attachments: readonly string[];
}

export interface IndexedEntry extends IndexEntry {
  readonly ordinal: number;
}

/** A place in the list, newest first. */
export interface IndexPlace {
  readonly createdMs: number;
  readonly ordinal: number;
}

/** A place among those that nothing refers to, the one that was stored longest ago first. */
export type LoosePlace = Pick<IndexedEntry, "storedMs" | "ordinal">;

export interface IndexQuery {
  /** Null: everybody's. */
  readonly owner: string | null;
  readonly kind: ArtifactKind | null;
  readonly tag: string | null;
  /** Lower case; all must occur. */
  readonly words: readonly string[];
  readonly before: IndexPlace | null;
  readonly limit: number;
}

export interface IndexPage {
  readonly entries: readonly IndexedEntry[];
  /** Where to go on; null: that was all. A slice of a search stops at its bound, so it may be short and still have one. */
  readonly next: IndexPlace | null;
}

export interface ArtifactIndex {
  readonly found: FoundIndex;
  /** It agrees with the blobs now: a close in order makes it clean. */
  reconciled(): void;
  /** It may differ from the blobs from here on: the next process compares them. */
  doubted(): void;
  /** Where the entry is there: it takes the new `storedMs`. `searched` is what a search looks through. */
  add(entry: IndexEntry, searched: string): IndexedEntry;
  /** Owner null: whoever's, the oldest. */
  find(shelf: BlobShelf, owner: string | null, id: string): IndexedEntry | null;
  remove(entry: Pick<IndexEntry, "shelf" | "owner" | "id">): boolean;
  /** With words, or with tag and kind, it looks at limits.artifactSearchSliceRows documents at most. */
  list(query: IndexQuery): IndexPage;
  /** Entries that no document refers to, behind `after`. */
  loose(after: LoosePlace | null, limit: number): readonly IndexedEntry[];
  /** Whether a document has `id` as parent or attachment. */
  isReferenced(id: string): boolean;
  /** By ordinal, for the comparison with the blobs. */
  walk(afterOrdinal: number, limit: number): readonly IndexedEntry[];
  totals(): { readonly documents: number; readonly attachments: number; readonly bytes: number };
  close(): void;
}
