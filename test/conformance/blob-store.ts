/** What every blob store does, whatever keeps the bytes. blob-store.test.ts runs it over each of them. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type BlobFacts, type BlobKey, type BlobStore, isBlobError } from "../../src/ports/blob-store.ts";

export interface BlobStoreUnderTest {
  readonly store: BlobStore;
  /** Flips a bit of what is stored, behind the store's back. */
  damage(key: BlobKey): Promise<void>;
  /** How many blobs were put aside. */
  aside(): Promise<number>;
  dispose(): Promise<void>;
}

export const digestOf = (bytes: Uint8Array): string =>
  new Bun.CryptoHasher("sha256").update(bytes).digest("hex");
export const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);
export const keyFor = (bytes: Uint8Array, owner = "alice"): BlobKey => ({
  shelf: "documents",
  owner,
  digest: digestOf(bytes),
});

export async function* inPieces(bytes: Uint8Array, size = 7): AsyncIterable<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) yield bytes.subarray(at, at + size);
}

const all = async <T>(from: AsyncIterable<T>): Promise<T[]> => {
  const found: T[] = [];
  for await (const item of from) found.push(item);
  return found;
};
const plain = (bytes: Uint8Array | null): number[] | null => (bytes === null ? null : [...bytes]);

async function kindOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    if (isBlobError(error)) return error.kind;
    throw error;
  }
  return "none";
}

export function blobStoreConformance(name: string, open: () => Promise<BlobStoreUnderTest>): void {
  const withStore = (what: string, work: (under: BlobStoreUnderTest) => Promise<void>): void =>
    test(what, async () => {
      const under = await open();
      try {
        await work(under);
      } finally {
        await under.dispose();
      }
    });

  describe(`blob store: ${name}`, () => {
    withStore("gives back what was put, once new and then known", async ({ store }) => {
      const bytes = bytesOf("a document");
      expect(await store.get(keyFor(bytes))).toBeNull();
      expect(await store.open(keyFor(bytes))).toBeNull();
      expect(await store.stat(keyFor(bytes))).toBeNull();
      expect(await store.put(keyFor(bytes), bytes)).toBe(true);
      expect(await store.put(keyFor(bytes), bytes)).toBe(false);
      expect(plain(await store.get(keyFor(bytes)))).toEqual([...bytes]);
      expect((await store.stat(keyFor(bytes)))?.sizeBytes).toBe(bytes.byteLength);
      expect(await store.get(keyFor(bytes, "bob"))).toBeNull();
    });

    withStore("any bytes, put or received in any pieces", async ({ store }) => {
      await fc.assert(
        fc.asyncProperty(
          fc.uint8Array({ maxLength: 300 }),
          fc.integer({ min: 1, max: 64 }),
          async (bytes, size) => {
            const put = keyFor(bytes, "putter");
            await store.put(put, bytes);
            expect(plain(await store.get(put))).toEqual([...bytes]);
            const received = await store.receive("attachments", "sender", inPieces(bytes, size), 1000);
            expect(received.digest).toBe(put.digest);
            expect(received.sizeBytes).toBe(bytes.byteLength);
            const again = await store.receive("attachments", "sender", inPieces(bytes, size), 1000);
            expect(again).toEqual({ ...received, fresh: false });
            const blob = await store.open({ shelf: "attachments", owner: "sender", digest: put.digest });
            expect(blob?.sizeBytes).toBe(bytes.byteLength);
            expect([...Buffer.concat(blob === null ? [] : await all(blob.chunks))]).toEqual([...bytes]);
          },
        ),
        { numRuns: 20 },
      );
    });

    withStore("more than is taken leaves nothing behind, nor does a sender that fails", async ({ store }) => {
      const bytes = bytesOf("x".repeat(100));
      expect(await kindOf(store.receive("attachments", "alice", inPieces(bytes), 99))).toBe("too_large");
      const failing = async function* () {
        yield bytes;
        throw new Error("gone");
      };
      await expect(store.receive("attachments", "alice", failing(), 1000)).rejects.toThrow("gone");
      const reset = async function* () {
        yield bytes;
        throw Object.assign(new Error("reset"), { code: "ECONNRESET" });
      };
      // Not the store's trouble, whatever its code.
      await expect(store.receive("attachments", "alice", reset(), 1000)).rejects.toThrow("reset");
      const refusing = () => Promise.reject(new Error("no turn"));
      await expect(store.receive("attachments", "alice", inPieces(bytes), 1000, refusing)).rejects.toThrow(
        "no turn",
      );
      expect(await all(store.list())).toEqual([]);
      expect((await store.receive("attachments", "alice", inPieces(bytes), 100)).fresh).toBe(true);
    });

    withStore("names what came when it is told to, and tells what it was", async ({ store }) => {
      const bytes = bytesOf("in its turn");
      const key: BlobKey = { ...keyFor(bytes), shelf: "attachments" };
      const seen: unknown[] = [];
      const received = await store.receive(
        "attachments",
        "alice",
        inPieces(bytes),
        100,
        async (digest, work) => {
          seen.push(digest, await store.stat(key));
          const result = await work();
          seen.push((await store.stat(key))?.sizeBytes);
          return result;
        },
      );
      expect(seen).toEqual([key.digest, null, bytes.byteLength]);
      expect(received).toEqual({ digest: key.digest, sizeBytes: bytes.byteLength, fresh: true });
    });

    withStore("lists and removes", async ({ store }) => {
      const three = ["one", "two", "three"].map(bytesOf);
      for (const bytes of three) await store.put(keyFor(bytes), bytes);
      await store.receive("attachments", "bob", inPieces(bytesOf("one")), 100);
      const name = ({ key: { shelf, owner, digest } }: BlobFacts): string => `${shelf}/${owner}/${digest}`;
      const expected = [
        ...three.map((bytes) => `documents/alice/${digestOf(bytes)}`),
        `attachments/bob/${digestOf(bytesOf("one"))}`,
      ];
      expect((await all(store.list())).map(name).sort()).toEqual(expected.sort());
      expect(await store.remove(keyFor(bytesOf("one")))).toBe(true);
      expect(await store.remove(keyFor(bytesOf("one")))).toBe(false);
      expect(await all(store.list())).toHaveLength(3);
    });

    withStore("a damaged blob is told, put aside and not given; the original mends it", async (under) => {
      const { store } = under;
      const bytes = bytesOf("precious");
      const key = keyFor(bytes);
      for (const read of [() => store.get(key), () => store.open(key)]) {
        await store.put(key, bytes);
        await under.damage(key);
        expect(await kindOf(read())).toBe("damaged");
        expect(await under.aside()).toBe(1);
        expect(await read()).toBeNull();
      }
      await store.put(key, bytes);
      await under.damage(key);
      expect(await store.put(key, bytes)).toBe(true);
      expect(plain(await store.get(key))).toEqual([...bytes]);
    });

    withStore("the same bytes from many at once", async ({ store }) => {
      const bytes = bytesOf("wanted by all");
      const key = keyFor(bytes);
      await Promise.all(Array.from({ length: 8 }, () => store.put(key, bytes)));
      expect(plain(await store.get(key))).toEqual([...bytes]);
      expect(await all(store.list())).toHaveLength(1);
    });

    withStore("an attachment can be left before its end", async ({ store }) => {
      const bytes = new Uint8Array(600_000).fill(7);
      const { digest } = await store.receive("attachments", "alice", inPieces(bytes, 60_000), 1e6);
      const key = { shelf: "attachments", owner: "alice", digest } as const;
      const early = await store.open(key);
      await early?.close();
      const later = await store.open(key);
      for await (const chunk of later?.chunks ?? []) {
        expect(chunk.byteLength).toBeGreaterThan(0);
        break;
      }
      await later?.close();
    });
  });
}
