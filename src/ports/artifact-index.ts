/**
 * What is in the blob store, so that lists, searches and the collection read no blobs. services/artifacts.ts uses
 * it; infra/sqlite/artifact-index.ts implements it.
 *
 * Always holds: it can be made again from the blobs, so losing it loses nothing; `clean` is false whenever it may
 * differ from them (first start, power cut, crash, damage).
 */
import type { ArtifactKind } from "../domain/artifact.ts";
import type { BlobShelf } from "./blob-store.ts";

export interface IndexEntry {
  readonly shelf: BlobShelf;
  readonly owner: string;
  readonly id: string;
  /** Null: an attachment. */
  readonly kind: ArtifactKind | null;
  readonly createdMs: number;
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
  /** Where to go on; null: that was all. A search stops at its bound, so a page may be short and still have one. */
  readonly next: IndexPlace | null;
}

export interface ArtifactIndex {
  /** Whether it was closed in order and nothing was added since. */
  readonly clean: boolean;
  /** Once it agrees with the blobs: a later close in order makes it clean. */
  reconciled(): void;
  /** Does nothing where the entry is there; `searched` is what a search looks through. */
  add(entry: IndexEntry, searched: string): IndexedEntry;
  /** Owner null: whoever's, the oldest. */
  find(shelf: BlobShelf, owner: string | null, id: string): IndexedEntry | null;
  remove(entry: Pick<IndexEntry, "shelf" | "owner" | "id">): boolean;
  list(query: IndexQuery): IndexPage;
  /** Entries that no document refers to, oldest first, behind `after`. */
  unreferenced(after: IndexPlace | null, limit: number): readonly IndexedEntry[];
  /** Whether a document has `id` as parent or attachment. */
  isReferenced(id: string): boolean;
  /** By ordinal, for the comparison with the blobs. */
  walk(afterOrdinal: number, limit: number): readonly IndexedEntry[];
  totals(): { readonly documents: number; readonly attachments: number; readonly bytes: number };
  close(): void;
}
