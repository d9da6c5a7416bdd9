/**
 * The composition root: the only file that names concrete adapters. Builds everything from the compiled
 * configuration and returns a running daemon; what was built is released last-in first-out.
 */
import "./production.ts";
import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { apiVersion } from "../api/api-version.ts";
import { artifactsPath, artifactsRoutes, attachmentsPath } from "../api/artifacts.ts";
import { capabilitiesRoutes } from "../api/capabilities.ts";
import { observabilityRoutes } from "../api/observability.ts";
import { poolsRoutes } from "../api/pools.ts";
import { RequestContexts } from "../api/request-context.ts";
import { sessionsRoutes } from "../api/sessions.ts";
import { tasksRoutes } from "../api/tasks.ts";
import { limits } from "../domain/limits.ts";
import type { EngineKind } from "../domain/pool.ts";
import type { Workload } from "../domain/task.ts";
import { FolderBlobStore } from "../infra/blobs/folder-blob-store.ts";
import { BunProcessHost, selfCommand } from "../infra/bun-process.ts";
import { type GgufHeader, isGgufError, readGgufHeader } from "../infra/engines/gguf-header.ts";
import { LlamaCppAdapter } from "../infra/engines/llamacpp.ts";
import { MockAdapter } from "../infra/engines/mock.ts";
import { giveMemoryBack } from "../infra/memory.ts";
import { SqliteArtifactIndex } from "../infra/sqlite/artifact-index.ts";
import { SqliteTaskStore } from "../infra/sqlite/sqlite-task-store.ts";
import { SystemClock, SystemEntropy } from "../infra/system-clock.ts";
import { PinoLog } from "../infra/telemetry/pino-log.ts";
import { PromMetrics } from "../infra/telemetry/prom-metrics.ts";
import type { EngineAdapter } from "../ports/engine.ts";
import { isStoreError, type StoreError, type TaskStore } from "../ports/task-store.ts";
import type { Log } from "../ports/telemetry.ts";
import { Admission } from "../services/admission.ts";
import { Artifacts } from "../services/artifacts.ts";
import { AttemptRunner } from "../services/attempt-runner.ts";
import { Capabilities } from "../services/capabilities.ts";
import { Dispatcher } from "../services/dispatcher.ts";
import { IdleTrim } from "../services/idle-trim.ts";
import { LoopLag } from "../services/loop-lag.ts";
import { Pools } from "../services/pools.ts";
import { Readiness } from "../services/readiness.ts";
import { Retention } from "../services/retention.ts";
import { Sessions } from "../services/sessions.ts";
import { Streams } from "../services/streams.ts";
import { Supervisor } from "../services/supervisor.ts";
import { TaskArchive } from "../services/task-archive.ts";
import { TaskRegistry } from "../services/task-registry.ts";
import type { Config } from "./config.ts";
import { allowancesOf } from "./config-keys.ts";
import type { Bootstrap, Composition, Daemon } from "./daemon.ts";
import { listen } from "./listen.ts";
import { createRouter } from "./router.ts";
import { StartError } from "./start-error.ts";

/** Releases in reverse order of building, every one even when another fails. */
class Releases {
  private readonly steps: { name: string; release: () => void | Promise<void> }[] = [];

  add(name: string, release: () => void | Promise<void>): void {
    this.steps.push({ name, release });
  }

  async run(log: Log): Promise<void> {
    for (const { name, release } of this.steps.splice(0).reverse()) {
      try {
        await release();
      } catch (error) {
        log.error("release_failed", { human: `${name} could not be closed cleanly` }, error);
      }
    }
  }
}

/** @throws StartError that names the file and says what to do. */
function openStore({ stateDir, storage }: Config, log: Log): TaskStore {
  const onTrouble = (error: StoreError): void =>
    log.error("storage_trouble", { human: error.message }, error);
  try {
    return new SqliteTaskStore({ stateDir, durability: storage.durability, onTrouble });
  } catch (error) {
    if (isStoreError(error)) throw new StartError("state_dir", error.message);
    throw error;
  }
}

/** @throws StartError that names the folder. */
async function openBlobs(root: string): Promise<FolderBlobStore> {
  try {
    mkdirSync(dirname(root), { recursive: true });
    return await FolderBlobStore.open(root);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new StartError(
      "state_dir",
      `artifacts.root ${root} cannot be used (${why}): choose another folder`,
    );
  }
}

/** What surrounds the content of an artifact in its request: names, tags, escapes. */
const envelopeBytes = 64 * 1024;

/** Viewers that read their last frame need a moment; one that does not read must not hold the exit. */
const lastFramesMs = 2_000;

export const bootstrap: Bootstrap = async ({ config, keys, buildInfo }) => {
  const clock = new SystemClock();
  const entropy = new SystemEntropy();
  const log = new PinoLog({ level: config.logLevel, clock });
  const metrics = new PromMetrics({
    build: { version: buildInfo.version, commit: buildInfo.commit, bun: Bun.version },
  });
  const releases = new Releases();
  const runDir = join(config.stateDir, "run");

  const processes = new BunProcessHost({ runDir, guardCommand: selfCommand("__guard"), log });
  releases.add("child processes", () => processes.close());
  const swept = await processes.sweep();
  if (swept > 0) log.warn("engines_swept", { count: swept, human: "engines of an earlier daemon still ran" });

  const adapters = new Map<EngineKind, EngineAdapter>([
    ["llamacpp", new LlamaCppAdapter({ clock, entropy, log })],
    ["mock", new MockAdapter({ clock, entropy })],
  ]);
  const supervisor = new Supervisor({
    clock,
    entropy,
    processes,
    log,
    metrics,
    runDir,
    adapters,
    restart: {
      backoffMs: config.restart.backoffMs,
      backoffMaxMs: config.restart.backoffMsMax,
      breakerFailures: config.restart.breakerFailures,
      breakerWindowMs: config.restart.breakerWindowMs,
    },
  });

  const store = openStore(config, log);
  releases.add("task store", () => store.close());
  const retention = new Retention(clock, store, log, config.tasks.retentionMs);
  retention.start();
  releases.add("retention", () => retention.stop());
  const registry = new TaskRegistry(config.tasks.retentionMs);
  const archive = new TaskArchive(registry, store);
  registry.startPruning(clock);
  releases.add("task registry", () => registry.stopPruning());
  const allowances = allowancesOf(config.auth.keys);
  const sessions = new Sessions({
    clock,
    metrics,
    rules: config.sessions,
    allowanceOf: (keyId) => allowances.get(keyId) ?? null,
    onRemoved: (removed) => dispatcher.sessionRemoved(removed),
  });
  releases.add("sessions", () => sessions.close());
  const dispatcher: Dispatcher = new Dispatcher({
    clock,
    log,
    metrics,
    control: supervisor,
    registry,
    archive,
    store,
    sessions,
    runner: new AttemptRunner(clock, config.streaming.metricsEveryMs, true),
    pools: config.pools,
    attemptsMax: config.tasks.attemptsMax,
    batchMaxWaitMs: config.admission.batchMaxWaitMs,
    fair: config.admission.fair,
    continues: true,
    cutAtDeadline: config.tasks.cutAtDeadline,
    minOnTimeProbability: config.admission.minOnTimeProbability,
    // Thrown outside of any handler it reaches the process: logged, engines killed, exit 1, restart.
    onFatal: (error) =>
      clock.soon(() => {
        throw error;
      }),
  });
  const admission = new Admission(dispatcher, config.pools, entropy, {
    defaultMaxTokens: config.admission.maxTokensDefault,
    defaultDeadlineMs: config.admission.deadlineMsDefault,
  });
  const streams = new Streams(
    clock,
    {
      heartbeatMs: config.streaming.heartbeatMs,
      disconnectGraceMs: config.streaming.disconnectGraceMs,
      streamsPerKeyMax: config.limits.streamsPerKey,
    },
    (taskId, reason) => void dispatcher.cancel(taskId, reason),
    (taskId) => dispatcher.noteWatched(taskId),
  );
  releases.add("streams", () => streams.close());
  const loopLag = new LoopLag(clock);
  loopLag.start();
  releases.add("loop lag sampler", () => loopLag.stop());

  const speeds = {
    speed: (poolId: string) => dispatcher.forecast.speed(poolId),
    totals: (poolId: string) => dispatcher.runtime(poolId),
    prediction: (poolId: string) => dispatcher.forecast.prediction(poolId),
  };
  const pools = new Pools({ pools: config.pools, control: supervisor, queues: dispatcher.view, speeds });
  const { perSecond, burst } = config.limits.rate;
  const capabilities = new Capabilities({
    apiVersion,
    pools: config.pools,
    control: supervisor,
    rateLimits: { requestsPerSecond: perSecond, burst, streamsPerKey: config.limits.streamsPerKey },
  });
  const readiness = new Readiness({ clock, loopLag, probe: () => admission.probe() });
  metrics.attach({
    pools: () => pools.gauges(dispatcher.view),
    models: () => capabilities.models(),
    eventLogs: () => ({ count: registry.size, bytes: registry.account.bytes }),
    viewers: () => streams.size,
    sessions: () => sessions.size,
    storeBytes: () => store.sizeBytes(),
    loopLagMs: () => loopLag.maxMs(),
  });

  // A pool that loads is work too: the start is over when the last one is up.
  const loading = () => pools.list().filter(({ state }) => state === "loading").length;
  const idleTrim = new IdleTrim(
    clock,
    () => ({ live: registry.liveCount + loading(), accepted: registry.accepted }),
    () => giveMemoryBack(log),
  );
  idleTrim.start();
  releases.add("idle trim", () => idleTrim.stop());

  const artifacts = new Artifacts({
    store: await openBlobs(config.artifacts.root),
    index: new SqliteArtifactIndex(join(config.stateDir, "artifacts.sqlite")),
    clock,
    log,
    rules: {
      artifactBytesMax: config.artifacts.documentBytesMax,
      attachmentBytesMax: limits.attachmentBytesMax,
      bytesMax: config.artifacts.bytesMax,
      maxAgeMs: config.artifacts.maxAgeMs,
    },
    pinned: () => new Set(),
  });
  releases.add("artifacts", () => artifacts.stop());
  await artifacts.start();

  const contexts = new RequestContexts();
  const app = createRouter({
    contexts,
    clock,
    entropy,
    log,
    auth: {
      mode: config.auth.mode,
      verify: (presented) => {
        const holder = keys.verify(presented);
        return holder === null ? null : { ...holder, rate: holder.rate ?? config.limits.rate };
      },
      local: { keyId: "local", admin: true, rate: config.limits.rate },
    },
    maxBodyBytes: config.limits.bodyBytes,
    bodyBytesOf: (path) => {
      if (path === attachmentsPath) return null;
      const { documentBytesMax } = config.artifacts;
      return path === artifactsPath
        ? Math.max(config.limits.bodyBytes, documentBytesMax + envelopeBytes)
        : undefined;
    },
    plugins: [
      tasksRoutes({ admission, dispatcher, archive, streams, contexts, clock }),
      sessionsRoutes({ sessions, contexts, clock }),
      poolsRoutes({ pools, contexts }),
      artifactsRoutes({ artifacts, contexts }),
      capabilitiesRoutes({ capabilities }),
      observabilityRoutes({ metrics, readiness }),
    ],
  });
  // Before any engine starts: an address in use must not cost a model load.
  const server = listen(app, {
    host: config.addr.host,
    port: config.addr.port,
    tls: config.tls,
    log,
    entropy,
  });
  releases.add("http server", async () => {
    const forced = clock.setTimer(lastFramesMs, () => void server.stop(true));
    await server.stop(false);
    forced.cancel();
  });
  supervisor.start(config.pools, dispatcher);
  releases.add("engines", () => supervisor.stop());
  for (const record of dispatcher.recover()) streams.expect(record);

  return {
    url: server.url,
    log,
    close: async () => {
      dispatcher.close();
      const deadline = clock.setTimer(config.shutdown.drainDeadlineMs, () => dispatcher.halt());
      await dispatcher.idle();
      deadline.cancel();
      dispatcher.halt();
      streams.suspend();
      await releases.run(log);
    },
    closeNow: () => {
      supervisor.forceStop();
      void server.stop(true);
    },
  } satisfies Daemon;
};

export const composition: Composition = {
  bootstrap,
  entropy: new SystemEntropy(),
  readModelKind: (path) => {
    try {
      return workloadsOf(readGgufHeader(path));
    } catch (error) {
      // What is wrong with the file is told when it is loaded.
      if (isGgufError(error)) return null;
      throw error;
    }
  },
};

/** A model trained to pool says so in its header; every other one generates. */
function workloadsOf({ poolingType }: GgufHeader): readonly Workload[] | null {
  if (poolingType === null || poolingType === 0) return null;
  return poolingType === 4 ? ["rerank"] : ["embedding"];
}
