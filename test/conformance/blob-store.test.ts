/** The blob suite over a folder on the disk, a folder in memory, and a loopback S3 service that checks signatures. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FolderBlobStore } from "../../src/infra/blobs/folder-blob-store.ts";
import { S3BlobStore } from "../../src/infra/blobs/s3-blob-store.ts";
import type { BlobKey } from "../../src/ports/blob-store.ts";
import { PowerCutFiles } from "../support/power-cut-files.ts";
import { S3Server } from "../support/s3-server.ts";
import { blobStoreConformance } from "./blob-store.ts";

const flipped = (bytes: Uint8Array): Uint8Array => bytes.map((byte, at) => (at === 0 ? byte ^ 1 : byte));
const pathOf = (root: string, { shelf, owner, digest }: BlobKey): string =>
  join(root, shelf, owner, digest.slice(0, 2), digest.slice(2, 4), digest);

blobStoreConformance("folder", async () => {
  const root = mkdtempSync(join(tmpdir(), "orchestratord-blobs-"));
  return {
    store: await FolderBlobStore.open(join(root, "artifacts")),
    damage: async (key) => {
      const path = pathOf(join(root, "artifacts"), key);
      writeFileSync(path, flipped(readFileSync(path)));
    },
    aside: async () => readdirSync(join(root, "artifacts/quarantine")).length,
    dispose: async () => rmSync(root, { recursive: true }),
  };
});

blobStoreConformance("folder in memory", async () => {
  const files = new PowerCutFiles();
  return {
    store: await FolderBlobStore.open("/artifacts", files),
    damage: async (key) => {
      const node = files.live.get(pathOf("/artifacts", key));
      if (node?.bytes) node.bytes = flipped(node.bytes);
    },
    aside: async () => (await files.names("/artifacts/quarantine")).length,
    dispose: async () => undefined,
  };
});

blobStoreConformance("S3", async () => {
  const account = {
    bucket: "things",
    accessKeyId: "test-id",
    secretAccessKey: "test-secret",
    region: "eu-test-1",
  };
  const server = new S3Server(account);
  return {
    store: new S3BlobStore({ ...account, endpoint: server.endpoint, prefix: "orchd/" }),
    damage: async ({ shelf, owner, digest }) => {
      const name = `orchd/${shelf}/${owner}/${digest}`;
      const found = server.objects.get(name);
      if (found !== undefined) server.objects.set(name, { ...found, bytes: flipped(found.bytes) });
    },
    aside: async () =>
      [...server.objects.keys()].filter((name) => name.startsWith("orchd/quarantine/")).length,
    dispose: () => server.stop(),
  };
});
