/**
 * Blobs in a folder: `shelf/owner/ab/cd/abcd…`, each file exactly the bytes whose SHA-256 is its name, so that
 * `sha256sum` can check them. bootstrap.ts opens it; one process has the folder at a time.
 *
 * A write: new file in `tmp`, content, fsync, rename, fsync of the folder; folders on the way are synced into their
 * parents before. Always holds: under a blob's name there is the whole blob or nothing, whatever step the power fails at; a
 * file that does not match its name is moved to `quarantine` and never given out.
 */
import { dirname, join } from "node:path";
import { assert } from "../../domain/assert.ts";
import { limits } from "../../domain/limits.ts";
import {
  BlobError,
  type BlobFacts,
  type BlobKey,
  type BlobShelf,
  type BlobStore,
  blobShelves,
  isBlobError,
  isDigest,
  isOwnerName,
  type Naming,
  type OpenBlob,
  type Received,
} from "../../ports/blob-store.ts";
import { codeOf, type Files, type FileWriter, systemFiles } from "./files.ts";
import { atOnce, fromSender, sendersError } from "./sender.ts";

const sha256 = (bytes: Uint8Array): string => new Bun.CryptoHasher("sha256").update(bytes).digest("hex");

export class FolderBlobStore implements BlobStore {
  #drafts = 0;
  /** Folders whose entry in their parent is on the disk. */
  readonly #durable = new Set<string>();
  /** Being made now: whoever needs the same one waits for the same sync. */
  readonly #making = new Map<string, Promise<void>>();

  private constructor(
    readonly root: string,
    private readonly files: Files,
  ) {}

  /** Makes the folder, its parents too, and clears what an interrupted write left. @throws BlobError io, full */
  static async open(root: string, files: Files = systemFiles): Promise<FolderBlobStore> {
    const store = new FolderBlobStore(root, files);
    await store.#edge(async () => {
      await store.#root(root);
      for (const name of ["tmp", "quarantine", ...blobShelves]) await store.#folder(join(root, name), root);
      for (const name of await files.names(join(root, "tmp"))) await files.remove(join(root, "tmp", name));
    });
    return store;
  }

  put(key: BlobKey, bytes: Uint8Array): Promise<boolean> {
    return this.#edge(async () => {
      assert(sha256(bytes) === key.digest, "a blob is stored under its own digest");
      if (await this.#sound(key)) return false;
      await this.#draft(async (file, draft) => {
        await file.write(bytes);
        await this.#name(file, draft, key);
      });
      return true;
    });
  }

  receive(
    shelf: BlobShelf,
    owner: string,
    chunks: AsyncIterable<Uint8Array>,
    bytesMax: number,
    naming: Naming = atOnce,
  ): Promise<Received> {
    return this.#edge(() =>
      this.#draft(async (file, draft) => {
        const hasher = new Bun.CryptoHasher("sha256");
        let sizeBytes = 0;
        for await (const chunk of fromSender(chunks)) {
          sizeBytes += chunk.byteLength;
          if (sizeBytes > bytesMax)
            throw new BlobError("too_large", `more than the ${bytesMax} bytes that are taken here`);
          hasher.update(chunk);
          await file.write(chunk);
        }
        const digest = hasher.digest("hex");
        const key = { shelf, owner, digest };
        return await naming(digest, async () => {
          const fresh = !(await this.#sound(key));
          if (fresh) await this.#name(file, draft, key);
          return { digest, sizeBytes, fresh };
        });
      }),
    );
  }

  get(key: BlobKey): Promise<Uint8Array | null> {
    return this.#edge(async () => {
      const bytes = await this.files.read(this.#path(key));
      if (bytes === null || sha256(bytes) === key.digest) return bytes;
      throw await this.#setAside(key);
    });
  }

  open(key: BlobKey): Promise<OpenBlob | null> {
    return this.#edge(async () => {
      const file = await this.files.open(this.#path(key));
      if (file === null) return null;
      try {
        const hasher = new Bun.CryptoHasher("sha256");
        for await (const chunk of file.chunks()) hasher.update(chunk);
        if (hasher.digest("hex") !== key.digest) throw await this.#setAside(key);
      } catch (error) {
        await file.close();
        throw error;
      }
      // The same open file: what was compared is what is read again.
      let closed = false;
      const close = async (): Promise<void> => {
        if (closed) return;
        closed = true;
        await file.close();
      };
      const chunks = (async function* () {
        try {
          yield* file.chunks();
        } finally {
          await close();
        }
      })();
      return { sizeBytes: file.sizeBytes, chunks, close };
    });
  }

  stat(key: BlobKey): Promise<BlobFacts | null> {
    return this.#edge(async () => {
      const found = await this.files.stat(this.#path(key));
      return found === null ? null : { key, sizeBytes: found.sizeBytes, storedMs: found.modifiedMs };
    });
  }

  remove(key: BlobKey): Promise<boolean> {
    return this.#edge(() => this.files.remove(this.#path(key)));
  }

  async *list(): AsyncIterable<BlobFacts> {
    for (const shelf of blobShelves) {
      const top = join(this.root, shelf);
      for (const owner of await this.#names(top)) {
        if (!isOwnerName(owner)) continue;
        for (const first of await this.#names(join(top, owner)))
          for (const second of await this.#names(join(top, owner, first)))
            for (const digest of await this.#names(join(top, owner, first, second))) {
              // Somebody else's file: not ours to judge.
              if (!isDigest(digest) || !digest.startsWith(first + second)) continue;
              const facts = await this.stat({ shelf, owner, digest });
              if (facts !== null) yield facts;
            }
      }
    }
  }

  /** Every folder that is made here has its entry in its parent on the disk before anything lies in it. */
  async #root(path: string): Promise<void> {
    const parent = dirname(path);
    try {
      await this.files.makeFolder(path);
    } catch (error) {
      if (codeOf(error) !== "ENOENT" || parent === path) throw error;
      await this.#root(parent);
      await this.files.makeFolder(path);
    }
    try {
      await this.files.syncFolder(parent);
    } catch (error) {
      // Somebody else's folder, which we may enter and not read: then we did not make the entry either.
      if (codeOf(error) !== "EACCES") throw error;
    }
  }

  readonly #names = (path: string) => this.#edge(() => this.files.names(path));

  #path({ shelf, owner, digest }: BlobKey): string {
    assert(isOwnerName(owner), "an owner's name is safe in a path");
    assert(isDigest(digest), "a digest is 64 hexadecimal digits");
    return join(this.root, shelf, owner, digest.slice(0, 2), digest.slice(2, 4), digest);
  }

  /** There and undamaged. */
  async #sound(key: BlobKey): Promise<boolean> {
    const file = await this.files.open(this.#path(key));
    if (file === null) return false;
    try {
      const hasher = new Bun.CryptoHasher("sha256");
      for await (const chunk of file.chunks()) hasher.update(chunk);
      if (hasher.digest("hex") !== key.digest) {
        await this.#setAside(key);
        return false;
      }
    } finally {
      await file.close();
    }
    // An earlier process may have died between the rename and the sync; it shall hold what is promised now.
    await this.#folders(key);
    await this.files.syncFolder(join(this.#path(key), ".."));
    return true;
  }

  /** A new file for `work`; what `work` has not named by its end is removed. */
  async #draft<T>(work: (file: FileWriter, draft: string) => Promise<T>): Promise<T> {
    this.#drafts += 1;
    const draft = join(this.root, "tmp", `${process.pid}-${this.#drafts}`);
    const file = await this.files.create(draft);
    try {
      return await work(file, draft);
    } finally {
      try {
        await file.close();
      } finally {
        await this.files.remove(draft);
      }
    }
  }

  async #name(file: FileWriter, draft: string, key: BlobKey): Promise<void> {
    await file.sync();
    const folder = await this.#folders(key);
    await this.files.rename(draft, this.#path(key));
    await this.files.syncFolder(folder);
  }

  /** The folder of a blob, made and synced level by level. */
  async #folders({ shelf, owner, digest }: BlobKey): Promise<string> {
    let folder = join(this.root, shelf);
    for (const name of [owner, digest.slice(0, 2), digest.slice(2, 4)]) {
      const parent = folder;
      folder = join(parent, name);
      await this.#folder(folder, parent);
    }
    return folder;
  }

  #folder(path: string, parent: string): Promise<void> {
    if (this.#durable.has(path)) return Promise.resolve();
    const making = this.#making.get(path) ?? this.#makeFolder(path, parent);
    this.#making.set(path, making);
    return making;
  }

  async #makeFolder(path: string, parent: string): Promise<void> {
    try {
      await this.files.makeFolder(path);
      await this.files.syncFolder(parent);
      if (this.#durable.size >= limits.blobFoldersKnownMax) this.#durable.clear();
      this.#durable.add(path);
    } finally {
      this.#making.delete(path);
    }
  }

  async #setAside(key: BlobKey): Promise<BlobError> {
    const { shelf, owner, digest } = key;
    const aside = join(this.root, "quarantine", `${shelf}-${owner}-${digest}`);
    await this.files.rename(this.#path(key), aside);
    await this.files.syncFolder(join(this.root, "quarantine"));
    return new BlobError(
      "damaged",
      `the file of ${digest} does not match its digest and was moved to ${aside}; put the original there again, or store it anew`,
    );
  }

  /** What the machine refuses leaves as a BlobError; a programmer's mistake leaves unchanged. */
  async #edge<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      const sender = sendersError(error);
      if (sender !== null) throw sender.thrown;
      const code = codeOf(error);
      if (isBlobError(error) || !/^E[A-Z0-9]+$/.test(code)) throw error;
      if (code === "ENOSPC" || code === "EDQUOT")
        throw new BlobError("full", `no room left below ${this.root}; free some`, { cause: error });
      throw new BlobError("io", `cannot read or write below ${this.root} (${code}); check the disk`, {
        cause: error,
      });
    }
  }
}
