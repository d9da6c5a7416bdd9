/** A daemon whose artifacts lie in a bucket: they outlive it, credentials are nowhere to be seen, a wrong bucket ends the start (ORCHD-ART-5). */
import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  failToStart,
  keys,
  type LoggingDaemon,
  newFolder,
  removeFolder,
  type Settings,
  startLoggingDaemon,
} from "../support/running-daemon.ts";
import { S3Server } from "../support/s3-server.ts";

const account = {
  bucket: "things",
  accessKeyId: "AKIA-OF-THE-TEST",
  secretAccessKey: "a-secret-that-nobody-may-see",
  region: "eu-test-1",
};
const server = new S3Server(account);
afterAll(() => server.stop());

let folder: string;
let daemon: LoggingDaemon | null = null;
beforeEach(() => {
  folder = newFolder();
  mkdirSync(join(folder, "state"));
  server.objects.clear();
});
afterEach(async () => {
  await daemon?.close();
  daemon = null;
  removeFolder(folder);
});

function settings(more: Settings = {}, secret = account.secretAccessKey): Settings {
  writeFileSync(join(folder, "s3-id"), `${account.accessKeyId}\n`, { mode: 0o600 });
  writeFileSync(join(folder, "s3-key"), `${secret}\n`, { mode: 0o600 });
  const s3 = {
    endpoint: server.endpoint,
    bucket: account.bucket,
    region: account.region,
    prefix: "orchd/",
    access_key_id_file: "s3-id",
    secret_access_key_file: "s3-key",
    ...more,
  };
  return { artifacts: { s3 }, pools: [{ id: "words", engine: "mock", model: "mock:words", slots: 1 }] };
}

const ask = (path: string, init: RequestInit = {}): Promise<Response> =>
  fetch(`${daemon?.url}${path}`, { ...init, headers: { "X-API-Key": keys.alice, ...init.headers } });
const store = (content: string, attachments: string[] = []): Promise<Response> =>
  ask("/v1/artifacts", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ kind: "other", content, attachments }),
  });
const digestIn = async (answer: Response): Promise<string> =>
  ((await answer.json()) as { digest: string }).digest;

/** Of the daemon and whatever it started. */
const commandLines = (of: string): string =>
  readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && existsSync(`/proc/${name}/cmdline`))
    .map((pid) => readFileSync(`/proc/${pid}/cmdline`, "utf8"))
    .filter((line) => line.includes(of))
    .join("\n");

describe("artifacts in a bucket", () => {
  test("are stored, read back and there again after kill -9, also without the index", async () => {
    daemon = await startLoggingDaemon(settings(), folder);
    const bytes = new Uint8Array(300_000).map((_, at) => at * 7);
    const attachment = await digestIn(await ask("/v1/attachments", { method: "POST", body: bytes }));
    const id = await digestIn(await store("kept far away", [attachment]));
    expect([...server.objects.keys()].sort()).toEqual(
      [`orchd/attachments/alice/${attachment}`, `orchd/documents/alice/${id}`].sort(),
    );
    const argv = commandLines(folder);
    expect(argv).toContain("mock.yaml");
    await daemon.kill();
    const shown = [argv, daemon.written()].join("\n");
    for (const secret of [account.accessKeyId, account.secretAccessKey]) expect(shown).not.toContain(secret);

    removeFolder(join(folder, "state", "artifacts.sqlite"));
    daemon = await startLoggingDaemon(settings(), folder);
    expect(await (await ask(`/v1/artifacts/${id}`)).json()).toMatchObject({ content: "kept far away" });
    expect(Buffer.compare(await (await ask(`/v1/attachments/${attachment}`)).bytes(), bytes)).toBe(0);
    expect(await (await ask("/v1/artifacts")).json()).toMatchObject({ artifacts: [{ id }] });
  });

  test("another prefix is another store: its index is not mixed up with the first one's", async () => {
    daemon = await startLoggingDaemon(settings(), folder);
    const id = await digestIn(await store("in the first"));
    await daemon.close();
    daemon = await startLoggingDaemon(settings({ prefix: "other/" }), folder);
    expect((await ask(`/v1/artifacts/${id}`)).status).toBe(404);
    expect(await (await ask("/v1/artifacts")).json()).toEqual({ artifacts: [], next_cursor: null });
    await daemon.close();
    daemon = await startLoggingDaemon(settings(), folder);
    expect((await ask(`/v1/artifacts/${id}`)).status).toBe(200);
  });

  test("are answered 503 while the service is gone, and the daemon goes on", async () => {
    daemon = await startLoggingDaemon(settings(), folder);
    const id = await digestIn(await store("soon out of reach"));
    server.isDown = true;
    try {
      const answer = await store("another");
      expect(answer.status).toBe(503);
      expect(await answer.json()).toMatchObject({ code: "STORAGE_UNAVAILABLE" });
      expect((await ask(`/v1/artifacts/${id}`)).status).toBe(503);
    } finally {
      server.isDown = false;
    }
    expect((await ask(`/v1/artifacts/${id}`)).status).toBe(200);
    expect((await store("another")).status).toBe(201);
    expect(daemon.written()).toContain("artifact_trouble");
    for (const secret of [account.accessKeyId, account.secretAccessKey])
      expect(daemon.written()).not.toContain(secret);
  });
});

describe("a start with a bucket that cannot be used ends with 1 and says why", () => {
  const cases: [string, () => Settings, string][] = [
    ["a wrong secret", () => settings({}, "not-the-secret"), "SignatureDoesNotMatch"],
    ["a bucket that is not there", () => settings({ bucket: "nowhere" }), "NoSuchBucket"],
    ["nobody there", () => settings({ endpoint: "http://127.0.0.1:9" }), "ConnectionRefused"],
  ];
  test.each(cases)("%s", async (_, of, why) => {
    const { code, stderr } = await failToStart(of(), folder);
    expect(code).toBe(1);
    expect(stderr).toContain("orchestratord: artifacts.s3: ");
    expect(stderr).toContain(why);
    expect(stderr).not.toContain("    at ");
    for (const secret of ["not-the-secret", account.secretAccessKey, account.accessKeyId])
      expect(stderr).not.toContain(secret);
  });

  test("a service that takes the connection and never answers", async () => {
    const silent = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } });
    try {
      const { code, stderr } = await failToStart(
        settings({ endpoint: `http://127.0.0.1:${silent.port}` }),
        folder,
      );
      expect([code, stderr]).toEqual([1, expect.stringContaining("did not answer in 5000 ms")]);
    } finally {
      silent.stop(true);
    }
  });
});
