/**
 * Blobs in a bucket of an S3-compatible service: `prefix/shelf/owner/digest`. bootstrap.ts makes it where the
 * configuration names one. The service keeps an object whole or not at all, so nothing is staged here.
 *
 * Always holds: an attachment is hashed on this side before it is named, so a stream goes first under `prefix/incoming/`
 * and is copied when its digest is known; an object that does not match its digest is copied below
 * `prefix/quarantine/`, removed and never given out. Secrets appear in no message.
 */
import { S3Client } from "bun";
import { assert } from "../../domain/assert.ts";
import { isOrchestratorError } from "../../domain/errors.ts";
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
import { codeOf } from "./files.ts";
import { atOnce, fromSender, sendersError } from "./sender.ts";

export interface S3Place {
  readonly endpoint: string;
  readonly bucket: string;
  readonly region: string;
  /** Empty, or ends with a slash. */
  readonly prefix: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

/** What one part of an upload holds: the least that S3 takes for all parts but the last. */
const partBytes = 5 * 1024 * 1024;
/** An upload that began so long ago was interrupted; younger ones may be another daemon's. */
const draftAgeMsMax = 24 * 3600 * 1000;

export class S3BlobStore implements BlobStore {
  readonly #client: S3Client;
  readonly #place: string;
  readonly #prefix: string;
  readonly #nonce: string;
  #incoming = 0;

  constructor(place: S3Place) {
    const { prefix, ...options } = place;
    assert(prefix === "" || prefix.endsWith("/"), "the prefix ends with a slash");
    this.#client = new S3Client(options);
    this.#place = `${place.endpoint} (bucket ${place.bucket})`;
    this.#prefix = prefix;
    // Two daemons with one bucket must not name the same incoming object.
    this.#nonce = crypto.randomUUID();
  }

  /**
   * Whether the bucket can be listed, written and cleared; removes what interrupted uploads left there.
   * @throws BlobError io
   */
  async check(): Promise<void> {
    await this.#edge(async () => {
      const prefix = `${this.#prefix}incoming/`;
      const page = await this.#client.list({ prefix, maxKeys: limits.artifactBatch });
      const probe = `${prefix}${this.#nonce}-check`;
      await this.#client.write(probe, "can be written");
      await this.#client.delete(probe);
      const stale = (page.contents ?? []).filter(
        ({ lastModified }) => Date.now() - Date.parse(lastModified ?? "") > draftAgeMsMax,
      );
      for (const { key } of stale) await this.#client.delete(key);
    });
  }

  put(key: BlobKey, bytes: Uint8Array): Promise<boolean> {
    return this.#edge(async () => {
      assert(digestOf(bytes) === key.digest, "a blob is stored under its own digest");
      if (await this.#sound(key)) return false;
      await this.#client.write(this.#name(key), bytes);
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
    return this.#edge(async () => {
      this.#incoming += 1;
      const draft = `${this.#prefix}incoming/${this.#nonce}-${this.#incoming}`;
      const hasher = new Bun.CryptoHasher("sha256");
      let sizeBytes = 0;
      const writer = this.#client.file(draft).writer({ partSize: partBytes, queueSize: 2, retry: 2 });
      try {
        for await (const chunk of fromSender(chunks)) {
          sizeBytes += chunk.byteLength;
          if (sizeBytes > bytesMax)
            throw new BlobError("too_large", `more than the ${bytesMax} bytes that are taken here`);
          hasher.update(chunk);
          writer.write(chunk);
          await writer.flush();
        }
        await writer.end();
      } catch (error) {
        // It cannot be given up in this version of Bun: what came so far is ended and removed.
        await Promise.resolve(writer.end()).catch(ignoreService);
        await this.#client.delete(draft).catch(ignoreService);
        throw error;
      }
      const digest = hasher.digest("hex");
      const key = { shelf, owner, digest };
      try {
        return await naming(digest, async () => {
          const fresh = !(await this.#sound(key));
          if (fresh && (await this.#copy(draft, this.#name(key))) !== digest) {
            await this.#client.delete(this.#name(key));
            throw new BlobError("io", `${this.#place} gave back other bytes than it was sent; check it`);
          }
          return { digest, sizeBytes, fresh };
        });
      } finally {
        await this.#client.delete(draft).catch(ignoreService);
      }
    });
  }

  get(key: BlobKey): Promise<Uint8Array | null> {
    return this.#edge(async () => {
      const bytes = await this.#orNull(this.#client.file(this.#name(key)).bytes());
      if (bytes === null || digestOf(bytes) === key.digest) return bytes;
      throw await this.#setAside(key);
    });
  }

  open(key: BlobKey): Promise<OpenBlob | null> {
    return this.#edge(async () => {
      const facts = await this.stat(key);
      if (facts === null) return null;
      const found = await this.#hash(key);
      if (found === null) return null;
      if (found !== key.digest) throw await this.#setAside(key);
      const chunks = this.#checked(key);
      return {
        sizeBytes: facts.sizeBytes,
        chunks,
        close: async () => {
          await chunks.return(undefined);
        },
      };
    });
  }

  stat(key: BlobKey): Promise<BlobFacts | null> {
    return this.#edge(async () => {
      const found = await this.#orNull(this.#client.stat(this.#name(key)));
      if (found === null) return null;
      return { key, sizeBytes: found.size, storedMs: found.lastModified.getTime() };
    });
  }

  remove(key: BlobKey): Promise<boolean> {
    return this.#edge(async () => {
      // S3 answers the same whether or not there was something.
      if ((await this.stat(key)) === null) return false;
      await this.#client.delete(this.#name(key));
      return true;
    });
  }

  async *list(): AsyncIterable<BlobFacts> {
    for (const shelf of blobShelves) {
      const prefix = `${this.#prefix}${shelf}/`;
      let startAfter = prefix;
      for (;;) {
        const page = await this.#edge(() =>
          this.#client.list({ prefix, startAfter, maxKeys: limits.artifactBatch }),
        );
        const contents = page.contents ?? [];
        for (const { key: name, size, lastModified } of contents) {
          startAfter = name;
          const [owner = "", digest = "", ...more] = name.slice(prefix.length).split("/");
          if (!isOwnerName(owner) || !isDigest(digest) || more.length > 0) continue;
          const storedMs = Date.parse(lastModified ?? "") || 0;
          yield { key: { shelf, owner, digest }, sizeBytes: Number(size ?? 0), storedMs };
        }
        if (page.isTruncated !== true || contents.length === 0) break;
      }
    }
  }

  #name({ shelf, owner, digest }: BlobKey): string {
    assert(isOwnerName(owner), "an owner's name is safe in a path");
    assert(isDigest(digest), "a digest is 64 hexadecimal digits");
    return `${this.#prefix}${shelf}/${owner}/${digest}`;
  }

  /** Compared again on its way, since it is fetched a second time: the transfer breaks off where it differs. */
  async *#checked(key: BlobKey): AsyncGenerator<Uint8Array, void> {
    const hasher = new Bun.CryptoHasher("sha256");
    let held: Uint8Array | null = null;
    for await (const chunk of this.#client.file(this.#name(key)).stream()) {
      if (held !== null) yield held;
      hasher.update(chunk);
      held = chunk;
    }
    if (hasher.digest("hex") !== key.digest)
      throw new BlobError("damaged", `${key.digest} changed in ${this.#place} while it was read`);
    if (held !== null) yield held;
  }

  /** Null: it is not there. */
  #hash(key: BlobKey): Promise<string | null> {
    return this.#orNull(
      (async () => {
        const hasher = new Bun.CryptoHasher("sha256");
        for await (const chunk of this.#client.file(this.#name(key)).stream()) hasher.update(chunk);
        return hasher.digest("hex");
      })(),
    );
  }

  async #sound(key: BlobKey): Promise<boolean> {
    if ((await this.stat(key)) === null) return false;
    const found = await this.#hash(key);
    if (found !== null && found !== key.digest) await this.#setAside(key);
    return found === key.digest;
  }

  async #setAside(key: BlobKey): Promise<BlobError> {
    const { shelf, owner, digest } = key;
    const aside = `${this.#prefix}quarantine/${shelf}-${owner}-${digest}`;
    await this.#copy(this.#name(key), aside);
    await this.#client.delete(this.#name(key));
    return new BlobError(
      "damaged",
      `the object of ${digest} does not match its digest and was moved to ${aside} in ${this.#place}; store it anew`,
    );
  }

  /** Through this machine: Bun's client has no copy on the service's side. @returns the digest of what was read. */
  async #copy(from: string, to: string): Promise<string> {
    const hasher = new Bun.CryptoHasher("sha256");
    const writer = this.#client.file(to).writer({ partSize: partBytes, queueSize: 2, retry: 2 });
    for await (const chunk of this.#client.file(from).stream()) {
      hasher.update(chunk);
      writer.write(chunk);
      await writer.flush();
    }
    await writer.end();
    return hasher.digest("hex");
  }

  async #orNull<T>(work: Promise<T>): Promise<T | null> {
    try {
      return await work;
    } catch (error) {
      if (isMissing(error)) return null;
      throw error;
    }
  }

  async #edge<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      const sender = sendersError(error);
      if (sender !== null) throw sender.thrown;
      if (isBlobError(error) || isOrchestratorError(error) || !isServiceError(error)) throw error;
      throw new BlobError(
        "io",
        `${this.#place} did not do it (${codeOf(error)}); check it and its credentials`,
        {
          cause: error,
        },
      );
    }
  }
}

const digestOf = (bytes: Uint8Array): string => new Bun.CryptoHasher("sha256").update(bytes).digest("hex");

const isMissing = (error: unknown): boolean => codeOf(error) === "NoSuchKey" || codeOf(error) === "NotFound";

/** Bun's own code for what S3 says, S3's, or a connection's. */
const isServiceError = (error: unknown): boolean => codeOf(error) !== "" && codeOf(error) !== "ERR_ASSERTION";

/** A draft that could not be removed costs room, nothing else; what went wrong first is what is told. */
function ignoreService(error: unknown): void {
  if (!isServiceError(error)) throw error;
}
