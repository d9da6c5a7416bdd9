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
