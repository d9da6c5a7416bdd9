/**
 * A running daemon whose configuration changes, as an operator changes it: by SIGHUP, by another file in its place, by a
 * link that leads elsewhere, by a new model in the folder (ORCHD-CONF-1 to ORCHD-CONF-4).
 */
import { afterEach, describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, renameSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { sha256Hex } from "../../src/app/config-keys.ts";
import { submitAndWatch } from "../engine/support.ts";
import { endDaemons, type RunningDaemon, type Settings, startDaemon, testKey } from "../support/daemon.ts";
import { tinyGguf } from "../support/tiny-gguf.ts";
import { waitFor } from "../support/wait.ts";

afterEach(endDaemons, 60_000);

interface ConfigStatus {
  readonly source: string | null;
  readonly generation: number;
  readonly last_error: { readonly problems: readonly string[] } | null;
  readonly pending_restart: readonly string[];
  readonly pools: readonly { readonly pool_id: string; readonly problem: string | null }[];
}
interface Health {
  readonly model_ref: string;
  readonly queue: { readonly capacity: number };
  readonly replicas: readonly { readonly id: string; readonly restarts: number }[];
}

const statusOf = (daemon: RunningDaemon) => daemon.json<ConfigStatus>("/v1/config");
const health = (daemon: RunningDaemon, pool: string) => daemon.json<Health>(`/v1/pools/${pool}/health`);
const idsOf = async (daemon: RunningDaemon) => (await daemon.pools()).map(({ id }) => id);

/** From the change to the moment in which all of it is in force, ms. */
const effectMsMax = 10_000;
async function inForce(daemon: RunningDaemon, generation: number): Promise<number> {
  const fromMs = performance.now();
  await waitFor(
    async () => {
      const status = await statusOf(daemon);
      return status.generation >= generation && status.pools.length === 0;
    },
    effectMsMax,
    `configuration ${generation} is in force`,
  );
  return performance.now() - fromMs;
}
const refused = (daemon: RunningDaemon): Promise<ConfigStatus> =>
  waitFor(
    async () => {
      const status = await statusOf(daemon);
      return status.last_error === null ? null : status;
    },
    effectMsMax,
    "the configuration is refused",
  );

const pool = (id: string, more: Settings = {}): Settings => ({
  ...{ id, engine: "mock", model: `mock:${id}`, slots: 2 },
  mock: { token_ms: 10, prefill_ms_per_token: 0, load_ms: 0 },
  ...more,
});
const on = (id: string, maxTokens: number) => ({
  prompt: "Once upon a time",
  max_tokens: maxTokens,
  sampling: { temperature: 0 },
  placement: { mode: "pin", pin_pool_id: id },
});
const fast = { deadline_ms: 300 };

describe("the configuration file", () => {
  test("replaced by another: added, changed and removed pools under streams; what is unchanged goes on (ORCHD-CONF-2, ORCHD-CONF-3)", async () => {
    const daemon = await startDaemon({
      settings: { pools: [pool("same"), pool("changed"), pool("gone")], reload: fast },
    });
    const [same, changed, gone] = await Promise.all(
      ["same", "changed", "gone"].map((id) => submitAndWatch(daemon, on(id, 200))),
    );
    if (same === undefined || changed === undefined || gone === undefined) throw new Error("three streams");
    for (const viewer of [same, changed, gone]) await viewer.hasTokens(5);
    daemon.configure({ pools: [pool("same"), pool("changed", { slots: 3 }), pool("new")], reload: fast });
    await waitFor(async () => (await idsOf(daemon)).includes("new"), effectMsMax, "the new pool takes tasks");
    const tookMs = await inForce(daemon, 2);
    console.info(`config reload: in force ${Math.round(tookMs)} ms after the new pool took tasks`);
    expect(await idsOf(daemon)).toEqual(["same", "changed", "new"]);
    const [here] = (await health(daemon, "same")).replicas;
    expect(here).toMatchObject({ id: "same-0", restarts: 0 });
    expect((await health(daemon, "changed")).replicas.map(({ id }) => id)).toEqual(["changed-0b"]);
    expect((await daemon.fetch("/v1/pools/gone/health")).status).toBe(404);
    await gone.finished();
    expect(gone.terminal).toMatchObject({
      type: "error",
      data: { code: "POOL_UNAVAILABLE", retriable: true },
    });
    const { tasks } = await daemon.json<{ tasks: { task_id: string; state: string }[] }>("/v1/tasks");
    expect(tasks.find(({ task_id }) => task_id === gone.taskId)?.state).toBe("failed");
    const shown = await (await daemon.fetch(`/v1/tasks/${gone.taskId}/stream`)).text();
    expect(shown).toContain("no longer configured");
    await Promise.all([same.finished(), changed.finished()]);
    expect(same.terminal).toMatchObject({ type: "end", data: { tokens_out: 200, continuations: 0 } });
    expect(changed.terminal).toMatchObject({ type: "end", data: { tokens_out: 200, continuations: 1 } });
    expect([same.tokens.length, changed.tokens.length]).toEqual([200, 200]);
    const fresh = await (await submitAndWatch(daemon, on("new", 5))).finished();
    expect(fresh.outcome).toBe("length");
    const metrics = await (await daemon.fetch("/metrics")).text();
    expect(metrics).toContain('config_reloads_total{result="done"} 1');
    expect(metrics).not.toContain('pool_ready{engine="mock",engine_version="mock-1",pool_id="gone"}');
  }, 60_000);

  test("that is wrong changes nothing and says why, until it is right (ORCHD-CONF-1)", async () => {
    const daemon = await startDaemon({ settings: { pools: [pool("a")], reload: fast } });
    const running = await submitAndWatch(daemon, on("a", 400));
    daemon.configure("reload: { deadline_ms: 300 }\npools:\n  - { id: b, engine: mock, modle: mock:b }\n");
    const status = await refused(daemon);
    expect(status.generation).toBe(1);
    expect(status.last_error?.problems).toContain(
      `${daemon.configFile}:3:28: pools[0].modle: unknown key; did you mean model?`,
    );
    const told = () => daemon.lines.filter(({ event }) => event === "config_refused");
    await waitFor(() => told().length > 0, 2_000, "the log tells it");
    expect(String(told()[0]?.human)).toContain("pools[0].modle: unknown key; did you mean model?");
    expect(await idsOf(daemon)).toEqual(["a"]);
    // Longer than it takes to look again: it is told once.
    await waitFor(async () => running.tokens.length >= 350, effectMsMax, "time has passed");
    daemon.configure({ pools: [pool("a"), pool("b")], reload: fast });
    await inForce(daemon, 2);
    expect((await statusOf(daemon)).last_error).toBeNull();
    expect(told()).toHaveLength(1);
    expect((await running.finished()).outcome).toBe("length");
    expect(await (await daemon.fetch("/metrics")).text()).toContain(
      'config_reloads_total{result="failed"} 1',
    );
  }, 60_000);

  test("reached by a link that is led elsewhere, as a mounted volume does it (ORCHD-CONF-1)", async () => {
    const first = await startDaemon({ settings: { pools: [pool("a")], reload: fast } });
    const text = readFileSync(first.configFile, "utf8");
    await first.stop();
    const { folder } = first;
    // config.yaml -> ..data/config.yaml, ..data -> ..1
    for (const [name, content] of [
      ["..1", text],
      ["..2", text.replace("mock:a", "mock:z")],
    ] as const) {
      mkdirSync(join(folder, name));
      writeFileSync(join(folder, name, "config.yaml"), content);
    }
    unlinkSync(first.configFile);
    symlinkSync("..1", join(folder, "..data"));
    symlinkSync("..data/config.yaml", first.configFile);
    const daemon = await startDaemon({ settings: null, args: ["--config", first.configFile], folder });
    symlinkSync("..2", join(folder, "..data_tmp"));
    renameSync(join(folder, "..data_tmp"), join(folder, "..data"));
    await inForce(daemon, 2);
    expect((await health(daemon, "a")).model_ref).toBe("mock:z");
  }, 60_000);
});

describe("SIGHUP", () => {
  test("takes keys, settings and pools that are not watched, and says what waits for the next start (ORCHD-CONF-1, ORCHD-CONF-4)", async () => {
    const keys = (...ids: string[]) => ({
      keys: [
        { id: "test", sha256: sha256Hex(testKey), admin: true },
        ...ids.map((id) => ({ id, sha256: sha256Hex(`key-of-${id}-12345678`) })),
      ],
    });
    const reload = { watch: false, deadline_ms: 300 };
    const daemon = await startDaemon({ settings: { pools: [pool("a")], auth: keys("alice"), reload } });
    const asks = async (who: string): Promise<number> =>
      (await fetch(`${daemon.url}/v1/pools`, { headers: { "x-api-key": `key-of-${who}-12345678` } })).status;
    expect([await asks("alice"), await asks("bob")]).toEqual([200, 403]);
    const settings = {
      ...{ pools: [pool("a", { queue: { capacity: 7 } }), pool("b")], auth: keys("bob"), reload },
      ...{ storage: { durability: "process" }, log: { level: "debug" }, limits: { streams_per_key: 3 } },
    };
    daemon.configure(settings);
    daemon.signal("SIGHUP");
    await inForce(daemon, 2);
    expect([await asks("alice"), await asks("bob")]).toEqual([403, 200]);
    expect(await idsOf(daemon)).toEqual(["a", "b"]);
    expect((await health(daemon, "a")).queue.capacity).toBe(7);
    expect((await health(daemon, "a")).replicas[0]).toMatchObject({ id: "a-0", restarts: 0 });
    const { engines } = await daemon.json<{ engines: { rate_limits: { streams_per_key: number } }[] }>(
      "/v1/capabilities",
    );
    expect(engines[0]?.rate_limits.streams_per_key).toBe(3);
    expect((await statusOf(daemon)).pending_restart).toEqual(["storage"]);
    const [taken] = daemon.lines.filter(({ event }) => event === "config_taken");
    expect(String(taken?.human)).toContain("takes effect at the next start: storage");
    expect(taken?.changed).toEqual(["log.level", "auth.keys", "limits.rate", "limits.streams_per_key"]);
  }, 60_000);

  test("twice at once: the later file counts", async () => {
    const daemon = await startDaemon({ settings: { pools: [pool("a")], reload: { ...fast, watch: false } } });
    const running = await submitAndWatch(daemon, on("a", 100));
    await running.hasTokens(3);
    daemon.configure({ pools: [pool("a", { slots: 1 })], reload: { ...fast, watch: false } });
    daemon.signal("SIGHUP");
    await waitFor(async () => (await statusOf(daemon)).generation === 2, effectMsMax, "the first is taken");
    daemon.configure({ pools: [pool("a", { slots: 5 })], reload: { ...fast, watch: false } });
    daemon.signal("SIGHUP");
    await inForce(daemon, 3);
    const [{ slots_total } = { slots_total: 0 }] = (
      await daemon.json<{ pools: { slots_total: number }[] }>("/v1/pools")
    ).pools;
    expect(slots_total).toBe(5);
    expect((await running.finished()).tokens).toHaveLength(100);
  }, 60_000);
});

test("without pools in the file, a model that comes into its folder becomes one (ORCHD-CONF-1)", async () => {
  const daemon = await startDaemon({ settings: { reload: fast }, until: "listening" });
  expect(await idsOf(daemon)).toEqual(["demo"]);
  const running = await submitAndWatch(daemon, on("demo", 20));
  for (const name of ["one", "two"]) {
    writeFileSync(join(daemon.folder, `${name}.part`), tinyGguf(256));
    renameSync(join(daemon.folder, `${name}.part`), join(daemon.folder, `${name}.gguf`));
  }
  await waitFor(async () => (await idsOf(daemon)).join() === "one,two", effectMsMax, "the models are pools");
  expect((await running.finished()).outcome).toBe("length");
}, 60_000);
