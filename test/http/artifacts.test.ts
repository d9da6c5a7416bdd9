/** What the configuration says of artifacts: where they lie, how large one may be; the request body goes by it. */
import { afterEach, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { keys, newFolder, type RunningDaemon, removeFolder, startDaemon } from "../support/running-daemon.ts";

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
  expect(existsSync(root)).toBe(true);
});
