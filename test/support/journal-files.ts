/**
 * The journal's file system in memory, for tests that stop the world between any two of its steps, damage its files, or
 * let it refuse. `image` is what a process killed now would leave.
 */
import { assert } from "../../src/domain/assert.ts";
import type { Handle, JournalFiles } from "../../src/infra/journal/folder-files.ts";
import { JournalError, type JournalErrorKind } from "../../src/ports/journal.ts";

export type Image = ReadonlyMap<string, Uint8Array>;

interface File {
  bytes: Uint8Array;
}

export class MemoryFiles implements JournalFiles {
  readonly #files = new Map<string, File>();
  readonly #open = new Map<Handle, File>();
  #handles = 0;
  /** Called after each change, and in the middle of each write. */
  onChange: (what: string) => void = () => undefined;
  /** The next write writes so many bytes and fails. */
  #failAfter: { kind: JournalErrorKind; bytes: number } | null = null;

  /** `mapped`: files can be written as memory; then `onChange` is not called for what is stored there. */
  constructor(
    image: Image = new Map(),
    readonly mapped = false,
  ) {
    for (const [name, bytes] of image) this.#files.set(name, { bytes: bytes.slice() });
  }

  get image(): Image {
    return new Map([...this.#files].map(([name, { bytes }]) => [name, bytes.slice()]));
  }
  get openHandles(): number {
    return this.#open.size;
  }
  failNextWrite(kind: JournalErrorKind, bytes: number): void {
    this.#failAfter = { kind, bytes };
  }

  pathOf(name: string): string {
    return name;
  }
  list(): readonly string[] {
    return [...this.#files.keys()];
  }
  read(name: string): Uint8Array {
    return this.#named(name).bytes.slice();
  }
  create(name: string): Handle {
    if (this.#files.has(name)) throw new JournalError("io", `${name} is there`);
    this.#files.set(name, { bytes: new Uint8Array() });
    this.onChange(`create ${name}`);
    return this.open(name);
  }
  open(name: string): Handle {
    this.#open.set(++this.#handles, this.#named(name));
    return this.#handles;
  }
  map(_name: string, handle: Handle, bytes: number): Uint8Array | null {
    if (!this.mapped) return null;
    const file = this.#opened(handle);
    put(file, new Uint8Array(bytes - file.bytes.byteLength), file.bytes.byteLength);
    this.onChange("map");
    return file.bytes;
  }
  write(handle: Handle, bytes: Uint8Array, position: number): void {
    const file = this.#opened(handle);
    const failure = this.#failAfter;
    this.#failAfter = null;
    const half = failure === null ? Math.floor(bytes.byteLength / 2) : failure.bytes;
    put(file, bytes.subarray(0, half), position);
    this.onChange("half a write");
    if (failure !== null) throw new JournalError(failure.kind, `asked for: ${failure.kind}`);
    put(file, bytes.subarray(half), position + half);
    this.onChange("write");
  }
  truncate(handle: Handle, bytes: number): void {
    const file = this.#opened(handle);
    assert(bytes <= file.bytes.byteLength, "truncating makes shorter");
    file.bytes = file.bytes.slice(0, bytes);
    this.onChange("truncate");
  }
  async sync(): Promise<void> {
    this.onChange("sync");
  }
  close(handle: Handle): void {
    assert(this.#open.delete(handle), "a file is closed once");
  }
  rename(from: string, to: string): void {
    this.#files.set(to, this.#named(from));
    this.#files.delete(from);
    this.onChange(`rename to ${to}`);
  }
  async syncFolder(): Promise<void> {
    this.onChange("sync of the folder");
  }
  remove(name: string): void {
    this.#files.delete(name);
    this.onChange(`remove ${name}`);
  }

  #named(name: string): File {
    const file = this.#files.get(name);
    if (file === undefined) throw new JournalError("io", `${name} is not there`);
    return file;
  }
  #opened(handle: Handle): File {
    const file = this.#open.get(handle);
    assert(file !== undefined, "the file is open");
    return file;
  }
}

function put(file: File, bytes: Uint8Array, position: number): void {
  const end = position + bytes.byteLength;
  if (end > file.bytes.byteLength) {
    const grown = new Uint8Array(end);
    grown.set(file.bytes);
    file.bytes = grown;
  }
  file.bytes.set(bytes, position);
}
