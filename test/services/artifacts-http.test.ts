/** The routes of artifacts over a blob folder in memory: statuses, ETags, cursors, attachments as streams. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { artifactsRoutes } from "../../src/api/artifacts.ts";
import { RequestContexts } from "../../src/api/request-context.ts";
import { FolderBlobStore } from "../../src/infra/blobs/folder-blob-store.ts";
import { SqliteArtifactIndex } from "../../src/infra/sqlite/artifact-index.ts";
import { Artifacts } from "../../src/services/artifacts.ts";
import { PowerCutFiles } from "../support/power-cut-files.ts";
import { RecordingLog, StillClock } from "../support/test-app.ts";

const folder = mkdtempSync(join(tmpdir(), "orchestratord-artifacts-"));
const contexts = new RequestContexts();
let artifacts: Artifacts;
let app: ReturnType<typeof artifactsRoutes>;

class Clock extends StillClock {
  override setTimer() {
    return { cancel: () => undefined };
  }
}

beforeAll(async () => {
  artifacts = new Artifacts({
    store: await FolderBlobStore.open("/artifacts", new PowerCutFiles()),
    index: new SqliteArtifactIndex(join(folder, "index.sqlite")),
    clock: new Clock(),
    log: new RecordingLog(),
    rules: { artifactBytesMax: 1e6, attachmentBytesMax: 1e6, bytesMax: 1e9, maxAgeMs: null },
    pinned: () => new Set(),
  });
  await artifacts.start();
  app = artifactsRoutes({ artifacts, contexts });
});
afterAll(async () => {
  await artifacts.stop();
  rmSync(folder, { recursive: true });
});

async function ask(path: string, init: RequestInit = {}, keyId = "alice"): Promise<Response> {
  const request = new Request(`http://localhost${path}`, init);
  contexts.set(request, { correlationId: "c", receivedMs: 0, keyId, admin: false });
  return await app.handle(request);
}
const post = (body: unknown): Promise<Response> =>
  ask("/v1/artifacts", {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json" },
  });

test("an artifact is made once, read back, and not sent again to who has it", async () => {
  const first = await post({ kind: "plan", content: { a: 1 }, tags: ["x"] });
  expect(first.status).toBe(201);
  const stored = (await first.json()) as { id: string; digest: string };
  expect(stored.digest).toBe(stored.id);
  expect((await post({ kind: "plan", content: { a: 1 }, tags: ["x"] })).status).toBe(200);
  const read = await ask(`/v1/artifacts/${stored.id}`);
  expect(read.headers.get("etag")).toBe(`"${stored.id}"`);
  expect(await read.json()).toMatchObject({ content: { a: 1 }, metadata: {}, parent: null, size_bytes: 74 });
  for (const tags of [`"${stored.id}"`, `"a", W/"${stored.id}"`, "*"]) {
    const again = await ask(`/v1/artifacts/${stored.id}`, { headers: { "if-none-match": tags } });
    expect([again.status, await again.text()]).toEqual([304, ""]);
  }
  const list = await ask("/v1/artifacts?tag=x&limit=1");
  expect(await list.json()).toMatchObject({ artifacts: [{ id: stored.id }] });
});

test("attachments go in and out as streams, and another key has none", async () => {
  const body = new Uint8Array(500_000).map((_, at) => at);
  const sent = await ask("/v1/attachments", { method: "POST", body });
  expect(sent.status).toBe(201);
  const { digest } = (await sent.json()) as { digest: string };
  const read = await ask(`/v1/attachments/${digest}`);
  expect(Buffer.compare(await read.bytes(), body)).toBe(0);
  expect(read.headers.get("x-content-type-options")).toBe("nosniff");
  expect((await ask(`/v1/attachments/${digest}`, {}, "bob")).status).toBe(404);
});

test("the index is nobody else's to read", () => {
  for (const name of ["index.sqlite", "index.sqlite-wal"])
    expect(statSync(join(folder, name)).mode & 0o777).toBe(0o600);
});
