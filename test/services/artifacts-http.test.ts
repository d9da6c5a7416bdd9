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
    index: new SqliteArtifactIndex({ path: join(folder, "index.sqlite"), place: "/artifacts" }),
    clock: new Clock(),
    log: new RecordingLog(),
    rules: { artifactBytesMax: 1e6, attachmentBytesMax: 1e6, bytesMax: 1e9, maxAgeMs: null },
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
  const having = [
    `"${stored.id}"`,
    `"a", W/"${stored.id}"`,
    "*",
    `"x,y",\t"${stored.id}" , "b"`,
    `W/"${stored.id}"`,
  ];
  for (const tags of having) {
    const again = await ask(`/v1/artifacts/${stored.id}`, { headers: { "if-none-match": tags } });
    expect([again.status, await again.text()]).toEqual([304, ""]);
  }
  for (const tags of [
    stored.id,
    `"${stored.id.toUpperCase()}"`,
    `"${stored.id}x"`,
    `w/"${stored.id}"`,
    "",
    `""`,
  ]) {
    const again = await ask(`/v1/artifacts/${stored.id}`, { headers: { "if-none-match": tags } });
    expect([tags, again.status]).toEqual([tags, 200]);
  }
  // It cannot be had without having it.
  for (const tags of ["*", `"${"0".repeat(64)}"`]) {
    const init = { headers: { "if-none-match": tags } };
    expect((await ask(`/v1/artifacts/${"0".repeat(64)}`, init)).status).toBe(404);
    expect((await ask(`/v1/artifacts/${stored.id}`, init, "bob")).status).toBe(404);
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

test("an id is a digest and nothing else, however it is written", async () => {
  const { id } = (await (await post({ kind: "plan", content: "here" })).json()) as { id: string };
  expect((await ask(`/v1/artifacts/%${id.charCodeAt(0).toString(16)}${id.slice(1)}`)).status).toBe(200);
  for (const other of [
    "..%2f..%2findex.sqlite",
    "%2e%2e",
    id.toUpperCase(),
    id.slice(1),
    `${id}%00`,
    `${id}0`,
  ])
    for (const path of ["artifacts", "attachments"])
      expect((await ask(`/v1/${path}/${other}`)).status).toBeOneOf([404, 422]);
});

test("a search takes every character for itself, and no more words than it looks for", async () => {
  const { id } = (await (await post({ kind: "other", content: "100% of a_b [c] \\d 'e'" })).json()) as {
    id: string;
  };
  const found = async (q: string): Promise<boolean> => {
    const answer = await ask(`/v1/artifacts?q=${encodeURIComponent(q)}`);
    const { artifacts: list } = (await answer.json()) as { artifacts: { id: string }[] };
    return list.some((artifact) => artifact.id === id);
  };
  for (const q of ["100%", "a_b", "[c]", "\\d", "'e'", "OF 100% A_B"])
    expect([q, await found(q)]).toEqual([q, true]);
  for (const q of ["1%0", "a?b", "a*b", "axb", "[cd]", "'", "%", "_"].filter(
    (q) => !"100% of a_b [c] 'e'".includes(q),
  ))
    expect([q, await found(q)]).toEqual([q, false]);
  const words = "a b c d e f g h i";
  await expect(
    artifacts.list(
      { keyId: "alice", admin: false },
      { kind: null, tag: null, search: words, before: null, limit: 5 },
    ),
  ).rejects.toMatchObject({ code: "INVALID_PARAMS" });
});

test("the index is nobody else's to read", () => {
  for (const name of ["index.sqlite", "index.sqlite-wal"])
    expect(statSync(join(folder, name)).mode & 0o777).toBe(0o600);
});
