/** Artifacts over real sockets: bodies by the configuration, both forms of a path, uploads that do not end as they should. */
import { afterEach, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import {
  keys,
  type LoggingDaemon,
  newFolder,
  type RunningDaemon,
  removeFolder,
  startDaemon,
  startLoggingDaemon,
} from "../support/running-daemon.ts";
import { waitFor } from "../support/wait.ts";

let daemon: RunningDaemon | null = null;
const folder = newFolder();
afterEach(async () => {
  await daemon?.close();
  daemon = null;
  removeFolder(folder);
});

const mebibyte = 1024 * 1024;

test("a document may be as large as limits.artifact_bytes, whatever other bodies may be", async () => {
  const root = join(folder, "elsewhere", "kept");
  daemon = await startDaemon({
    limits: { artifact_bytes: 3 * mebibyte },
    artifacts: { root },
    pools: [{ id: "words", engine: "mock", model: "mock:words", slots: 1 }],
  });
  const { url } = daemon;
  const send = async (path: string, content: string): Promise<number> => {
    const headers = { "X-API-Key": keys.alice, "Content-Type": "application/json" };
    const body = JSON.stringify({ kind: "other", content });
    const answer = await fetch(url + path, { method: "POST", headers, body });
    await answer.text();
    return answer.status;
  };
  expect(await send("/v1/artifacts", "x".repeat(2 * mebibyte))).toBe(201);
  expect(await send("/v1/artifacts", "x".repeat(4 * mebibyte))).toBe(413);
  expect(await send("/v1/tasks", "x".repeat(2 * mebibyte))).toBe(413);
  // The router takes both forms of a path, so both have the same bound.
  expect(await send("/v1/artifacts/", "y".repeat(2 * mebibyte))).toBe(201);
  const bytes = await fetch(`${url}/v1/attachments/`, {
    method: "POST",
    headers: { "X-API-Key": keys.alice },
    body: "no JSON",
  });
  expect([bytes.status, await bytes.json()]).toEqual([201, expect.objectContaining({ size_bytes: 7 })]);
  expect(existsSync(root)).toBe(true);
});

test("an upload that ends too early, in whatever way, leaves nothing and is no bug in the log", async () => {
  mkdirSync(join(folder, "state"), { recursive: true });
  const running = await startLoggingDaemon(
    { pools: [{ id: "words", engine: "mock", model: "mock:words", slots: 1 }] },
    folder,
  );
  daemon = running;
  const head = `POST /v1/attachments HTTP/1.1\r\nHost: x\r\nX-API-Key: ${keys.alice}\r\n`;
  const half = Buffer.alloc(300_000, 7);
  const chunk = Buffer.from("5\r\nhello\r\n");
  const drafts = (): string[] => readdirSync(join(folder, "state/artifacts/tmp"));
  const ends: [string, string | Buffer, "reset" | "end" | "destroy"][] = [
    ["Content-Length: 1000000", half, "reset"],
    ["Content-Length: 1000000", half, "end"],
    ["Transfer-Encoding: chunked", chunk, "destroy"],
    ["Transfer-Encoding: chunked", Buffer.concat([chunk, Buffer.from("ZZ\r\n")]), "end"],
  ];
  for (const [framing, body, how] of ends) {
    const before = refusals(running);
    const socket = connect(running.port, "127.0.0.1");
    socket.on("error", () => undefined);
    socket.write(`${head}${framing}\r\n\r\n`);
    socket.write(body);
    await waitFor(() => drafts().length > 0 || refusals(running) > before);
    if (how === "reset") socket.resetAndDestroy();
    else if (how === "end") socket.end();
    else socket.destroy();
    await waitFor(() => refusals(running) > before && drafts().length === 0);
    socket.destroy();
  }
  const answer = await fetch(`${running.url}/v1/attachments`, {
    method: "POST",
    headers: { "X-API-Key": keys.alice },
    body: half,
  });
  expect(await answer.json()).toMatchObject({ size_bytes: half.byteLength });
  expect(running.lines.filter(({ level }) => level === "error")).toEqual([]);
});

const refusals = (of: LoggingDaemon): number =>
  of.lines.filter(({ event, code }) => event === "request_refused" && code === "INVALID_PARAMS").length;
