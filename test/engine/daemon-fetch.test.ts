/**
 * ORCHD-MODEL-2, -4 and -5 on the real engine: a pool whose model lies elsewhere fetches it before it loads it, a task
 * that came meanwhile is served; under strict trust nothing is loaded that was not verified; a retired model takes no tasks.
 */
import { afterEach, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { CapabilitiesBody } from "../../src/api/schema/capabilities.ts";
import type { CatalogModelBody } from "../../src/api/schema/catalog.ts";
import type { PoolHealthBody } from "../../src/api/schema/pools.ts";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { ModelServer } from "../support/model-server.ts";
import { sha256 } from "../support/tiny-gguf.ts";
import { waitFor } from "../support/wait.ts";
import { patienceMs, submit, submitAndWatch } from "./support.ts";

const servers: ModelServer[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) await server.stop();
  await endDaemons();
}, 60_000);

const file = new Uint8Array(readFileSync(testModel("demo")));
const task = { prompt: "Once upon a time", max_tokens: 4, sampling: { temperature: 0 } };

async function modelServer(): Promise<ModelServer> {
  const server = await ModelServer.start({ file });
  servers.push(server);
  return server;
}

const post = (daemon: RunningDaemon, path: string, body?: unknown): Promise<Response> =>
  daemon.fetch(`/v1/catalog/models${path}`, {
    method: "POST",
    ...(body === undefined
      ? {}
      : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
  });
const entryOf = (daemon: RunningDaemon, id: string): Promise<CatalogModelBody> =>
  daemon.json<CatalogModelBody>(`/v1/catalog/models/${id}`);

test("a pool fetches its model before it loads it, and serves what came meanwhile", async () => {
  const server = await modelServer();
  const pool = { ...enginePool("chat", "", { slots: 1, ctx: 512, preload: false }), model: server.url() };
  const models = { dir: "models", fetch: { allow_hosts: [server.host] } };
  const daemon = await startDaemon({ settings: { models, pools: [pool] } });
  expect(server.asked).toEqual([]);
  const viewer = await submitAndWatch(daemon, task);
  await waitFor(() => viewer.ended, patienceMs, "the task's end");
  expect(viewer.outcome).toBe("length");
  const entry = await entryOf(daemon, "model");
  expect(entry).toMatchObject({ present: true, job: null, verification: { reason: "measured" } });
  expect(entry.verification?.digest).toBe(sha256(file));
  expect(sha256(readFileSync(entry.path ?? ""))).toBe(sha256(file));
  expect(entry.path).toStartWith(join(daemon.folder, "models", "http"));

  // By the entry's id too; and not any more once it is retired.
  expect((await submit(daemon, { ...task, model_ref: "model" })).status).toBe(202);
  expect((await post(daemon, "/model/state", { state: "Retired" })).status).toBe(200);
  const refused = await submit(daemon, task);
  expect([refused.status, refused.body.code]).toEqual([410, "MODEL_DEPRECATED"]);
  const { models: known } = await daemon.json<CapabilitiesBody>("/v1/capabilities");
  expect(known.map(({ model_ref, state }) => [model_ref, state])).toEqual([[server.url(), "Retired"]]);
  expect((await post(daemon, "/model/state", { state: "Active" })).status).toBe(200);
  expect((await submit(daemon, task)).status).toBe(202);
}, 60_000);

test("under strict trust a pool loads what it has verified against its entry, and nothing without one", async () => {
  const server = await modelServer();
  const pool = { ...enginePool("chat", "", { slots: 1, ctx: 512, preload: false }), model: server.url() };
  const models = { dir: "models", trust: "strict", fetch: { allow_hosts: [server.host] } };
  const restart = { breaker_failures: 1 };
  const settings = { models, restart, pools: [pool] };
  const daemon = await startDaemon({ settings });
  expect((await submit(daemon, task)).status).toBe(202);
  const health = await waitFor(async () => {
    const seen = await daemon.json<PoolHealthBody>("/v1/pools/chat/health");
    return seen.last_error === null ? null : seen;
  }, patienceMs);
  expect(health.last_error?.message).toContain("no digest in its catalog entry model");
  const folder = daemon.folder;
  expect((await daemon.fetch("/v1/catalog/models/model", { method: "DELETE" })).status).toBe(204);
  const entered = await post(daemon, "", { id: "demo", model_ref: server.url(), digest: sha256(file) });
  expect(entered.status).toBe(201);
  expect((await entryOf(daemon, "demo")).trusted).toBe(false);
  await daemon.kill9();

  const next = await startDaemon({ settings, folder });
  const viewer = await submitAndWatch(next, task);
  await waitFor(() => viewer.ended, patienceMs, "the task's end");
  expect(viewer.outcome).toBe("length");
  expect(await entryOf(next, "demo")).toMatchObject({ trusted: true, verification: { reason: "given" } });
  await next.stop();
}, 60_000);
