/**
 * Syncs for many callers at once. Owned by the store: it notes each write and asks for a sync.
 *
 * Always holds: a promise resolves only after a sync that was started after the last write before the request;
 * at most one sync runs; calls that come meanwhile share the next one, or the running one where nothing was
 * written since it began. After a failed sync nothing is promised any more: the kernel may have dropped the pages it
 * could not write, and a second sync would report success (Rebello et al., "Can Applications Recover from fsync
 * Failures?", USENIX ATC 2020).
 */
import { assert } from "../../domain/assert.ts";
import type { StoreError } from "../../ports/task-store.ts";

interface Group {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: StoreError) => void;
}

/** Brings the file to the disk without blocking the caller; reports once. */
export type StartSync = (done: (failure: StoreError | null) => void) => void;

export class GroupSync {
  #written = 0;
  #synced = 0;
  #running: { readonly covers: number; readonly group: Group } | null = null;
  #next: Group | null = null;
  #failure: StoreError | null = null;

  /** `afterwards` runs after each sync that succeeded, with whether another one has begun. */
  constructor(
    private readonly startSync: StartSync,
    private readonly afterwards: (again: boolean) => void,
  ) {}

  get failure(): StoreError | null {
    return this.#failure;
  }

  get running(): boolean {
    return this.#running !== null;
  }

  noteWrite(): void {
    this.#written++;
  }

  /** Something else showed that the disk cannot be trusted any more. */
  fail(failure: StoreError): void {
    this.#failure ??= failure;
  }

  request(): Promise<void> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    if (this.#synced === this.#written) return Promise.resolve();
    if (this.#running?.covers === this.#written) return this.#running.group.promise;
    this.#next ??= Promise.withResolvers<void>();
    const { promise } = this.#next;
    if (this.#running === null) this.#start();
    return promise;
  }

  #start(): void {
    const group = this.#next;
    assert(group !== null && this.#running === null, "one sync at a time, and somebody waits for it");
    this.#next = null;
    const covers = this.#written;
    this.#running = { covers, group };
    this.startSync((failure) => this.#end(covers, group, failure ?? this.#failure));
  }

  #end(covers: number, group: Group, failure: StoreError | null): void {
    this.#running = null;
    if (failure !== null) {
      this.#failure ??= failure;
      group.reject(failure);
      this.#next?.reject(failure);
      this.#next = null;
      return;
    }
    this.#synced = covers;
    group.resolve();
    if (this.#next !== null) this.#start();
    this.afterwards(this.#running !== null);
  }
}
