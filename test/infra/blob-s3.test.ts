/** What only S3 has: parts of an upload, credentials that are wrong, a service that is gone. */
import { afterAll, describe, expect, test } from "bun:test";
import { S3BlobStore } from "../../src/infra/blobs/s3-blob-store.ts";
import { isBlobError } from "../../src/ports/blob-store.ts";
import { bytesOf, digestOf, inPieces, keyFor } from "../conformance/blob-store.ts";
import { S3Server } from "../support/s3-server.ts";

const account = {
  bucket: "things",
  accessKeyId: "test-id",
  secretAccessKey: "test-secret",
  region: "eu-test-1",
};
const server = new S3Server(account);
afterAll(() => server.stop());

describe("an S3 service", () => {
  test("takes an attachment in parts and leaves no draft behind", async () => {
    const store = new S3BlobStore({ ...account, endpoint: server.endpoint, prefix: "" });
    const bytes = new Uint8Array(12 * 1024 * 1024).map((_, at) => (at * 31) >> 3);
    const received = await store.receive(
      "attachments",
      "alice",
      inPieces(bytes, 1024 * 1024),
      bytes.byteLength,
    );
    expect(received).toEqual({ digest: digestOf(bytes), sizeBytes: bytes.byteLength, fresh: true });
    expect([...server.objects.keys()]).toEqual([`attachments/alice/${received.digest}`]);
    const stored = server.objects.get(`attachments/alice/${received.digest}`);
    expect(digestOf(stored?.bytes ?? new Uint8Array())).toBe(received.digest);
  });

  test("is tried without leaving anything, and cleared of what interrupted uploads left", async () => {
    server.objects.clear();
    const bytes = bytesOf("half an upload");
    const at = (hoursAgo: number) => ({ bytes, modified: new Date(Date.now() - hoursAgo * 3_600_000) });
    server.objects.set("a/incoming/of-yesterday", at(25));
    server.objects.set("a/incoming/of-another-daemon", at(1));
    server.objects.set("b/incoming/of-another-prefix", at(25));
    server.objects.set(`a/attachments/alice/${digestOf(bytes)}`, at(99));
    await new S3BlobStore({ ...account, endpoint: server.endpoint, prefix: "a/" }).check();
    expect([...server.objects.keys()]).toEqual([
      "a/incoming/of-another-daemon",
      "b/incoming/of-another-prefix",
      `a/attachments/alice/${digestOf(bytes)}`,
    ]);
  });

  test("that gives back other bytes than it was sent is told, and nothing is named after them", async () => {
    server.objects.clear();
    const store = new S3BlobStore({ ...account, endpoint: server.endpoint, prefix: "" });
    server.onStored = (name, stored) =>
      name.startsWith("incoming/") ? { ...stored, bytes: stored.bytes.map((byte) => byte ^ 1) } : stored;
    const bytes = bytesOf("not to be trusted");
    const error: unknown = await store
      .receive("attachments", "alice", inPieces(bytes), 100)
      .catch((e: unknown) => e);
    server.onStored = null;
    expect(isBlobError(error) && error.kind).toBe("io");
    expect([...server.objects.keys()]).toEqual([]);
    expect((await store.receive("attachments", "alice", inPieces(bytes), 100)).fresh).toBe(true);
  });

  test.each([
    ["a wrong secret", { secretAccessKey: "not-the-secret" }],
    ["nobody there", { endpoint: "http://127.0.0.1:9" }],
  ])("%s is told without the secret", async (_, wrong) => {
    const place = { ...account, endpoint: server.endpoint, prefix: "", ...wrong };
    const bytes = bytesOf("never stored");
    const error: unknown = await new S3BlobStore(place).put(keyFor(bytes), bytes).catch((e: unknown) => e);
    expect(isBlobError(error) && error.kind).toBe("io");
    expect(String(error)).not.toContain(place.secretAccessKey);
    expect(server.objects.has(`documents/alice/${digestOf(bytes)}`)).toBe(false);
  });
});
