/**
 * A file system in memory that can lose its power: what was not synced may be lost, or not. Implements the steps of
 * src/infra/blobs/files.ts; the tests of the blob folder use it.
 *
 * A file's content counts from its fsync on, a name from the fsync of its folder on. `afterCut` says what a disk may
 * hold after a cut: `kept` decides for each thing that was not synced.
 */
import { dirname } from "node:path";
import type { Files } from "../../src/infra/blobs/files.ts";

interface Node {
  /** Null: a folder. */
  bytes: Uint8Array | null;
  durable: Uint8Array | null;
}

export class PowerCut extends Error {}

const failure = (code: string): Error => Object.assign(new Error(code), { code });

export class PowerCutFiles implements Files {
  readonly live = new Map<string, Node>();
  /** What the folders on the disk say. */
  readonly durable = new Map<string, Node>();
  /** Steps until the power goes; every step after it fails. */
  stepsLeft = Number.POSITIVE_INFINITY;
  steps = 0;
  readonly nowMs = () => 1_700_000_000_000;

  #step(): void {
    this.steps += 1;
    this.stepsLeft -= 1;
    if (this.stepsLeft < 0) throw new PowerCut("the power is gone");
  }

  #parentOf(path: string): void {
    const parent = dirname(path);
    if (parent !== "/" && !this.live.has(parent)) throw failure("ENOENT");
  }

  afterCut(kept: () => boolean): PowerCutFiles {
    const next = new PowerCutFiles();
    const paths = new Set([...this.durable.keys(), ...this.live.keys()]);
    for (const path of [...paths].sort()) {
      const live = this.live.get(path);
      const durable = this.durable.get(path);
      const node = live === durable || !kept() ? durable : live;
      const parent = dirname(path);
      if (node === undefined || (parent !== "/" && !next.live.has(parent))) continue;
      const bytes =
        node.bytes === null ? null : node.bytes === node.durable || kept() ? node.bytes : node.durable;
      // Content that was never synced may be there as an empty or a half file.
      const half =
        node.bytes !== null && bytes === null ? node.bytes.slice(0, node.bytes.length >> 1) : bytes;
      const copy: Node = { bytes: half, durable: half };
      next.live.set(path, copy);
      next.durable.set(path, copy);
    }
    return next;
  }

  async makeFolder(path: string): Promise<void> {
    this.#step();
    this.#parentOf(path);
    if (!this.live.has(path)) this.live.set(path, { bytes: null, durable: null });
  }

  async syncFolder(path: string): Promise<void> {
    this.#step();
    if (path !== "/" && !this.live.has(path)) throw failure("ENOENT");
    const inside = (name: string): boolean => dirname(name) === path;
    for (const name of [...this.durable.keys()])
      if (inside(name) && !this.live.has(name)) this.durable.delete(name);
    for (const [name, node] of this.live) if (inside(name)) this.durable.set(name, node);
  }

  async create(path: string) {
    this.#step();
    this.#parentOf(path);
    if (this.live.has(path)) throw failure("EEXIST");
    const node: Node = { bytes: new Uint8Array(), durable: null };
    this.live.set(path, node);
    return {
      write: async (bytes: Uint8Array) => {
        this.#step();
        node.bytes = Buffer.concat([node.bytes ?? new Uint8Array(), bytes]);
      },
      sync: async () => {
        this.#step();
        node.durable = node.bytes;
      },
      close: async () => undefined,
    };
  }

  async rename(from: string, to: string): Promise<void> {
    this.#step();
    const node = this.live.get(from);
    if (node === undefined) throw failure("ENOENT");
    this.#parentOf(to);
    this.live.delete(from);
    this.live.set(to, node);
  }

  async remove(path: string): Promise<boolean> {
    this.#step();
    return this.live.delete(path);
  }

  async read(path: string): Promise<Uint8Array | null> {
    this.#step();
    return this.live.get(path)?.bytes ?? null;
  }

  async open(path: string) {
    const bytes = await this.read(path);
    if (bytes === null) return null;
    return {
      sizeBytes: bytes.byteLength,
      async *chunks() {
        for (let at = 0; at < bytes.byteLength; at += 1000) yield bytes.subarray(at, at + 1000);
      },
      close: async () => undefined,
    };
  }

  async stat(path: string) {
    const bytes = await this.read(path);
    return bytes === null ? null : { sizeBytes: bytes.byteLength, modifiedMs: this.nowMs() };
  }

  async names(path: string): Promise<readonly string[]> {
    this.#step();
    return [...this.live.keys()]
      .filter((name) => dirname(name) === path)
      .map((name) => name.slice(path.length + 1));
  }
}
