/**
 * The composition root: the only file that names concrete adapters. Builds everything from the compiled
 * configuration and returns a running daemon; what was built is released last-in first-out.
 */
import "./production.ts";
import { join } from "node:path";
import { apiVersion } from "../api/api-version.ts";
import { artifactsPath, artifactsRoutes, attachmentsPath } from "../api/artifacts.ts";
import { capabilitiesRoutes } from "../api/capabilities.ts";
import { catalogRoutes } from "../api/catalog.ts";
import { configRoutes } from "../api/config.ts";
import { devicesRoutes } from "../api/devices.ts";
import { engineLogsRoutes } from "../api/engine-logs.ts";
import { observabilityRoutes } from "../api/observability.ts";
import { poolControlRoutes } from "../api/pool-control.ts";
import { poolsRoutes } from "../api/pools.ts";
import { RequestContexts } from "../api/request-context.ts";
import { sessionsRoutes } from "../api/sessions.ts";
import { tasksRoutes } from "../api/tasks.ts";
import type { EngineKind } from "../domain/engine-kind.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { RestartPolicy } from "../domain/replica-model.ts";
import type { Workload } from "../domain/task.ts";
import { BunProcessHost, selfCommand } from "../infra/bun-process.ts";
import { type GgufHeader, isGgufError, readGgufHeader } from "../infra/engines/gguf-header.ts";
import { LlamaCppAdapter } from "../infra/engines/llamacpp.ts";
import { MockAdapter } from "../infra/engines/mock.ts";
import { OpenAiAdapter } from "../infra/engines/openai.ts";
import { FolderFileWatch } from "../infra/file-watch.ts";
import { openGpus } from "../infra/gpu/open.ts";
import { boundUnsent } from "../infra/listening-socket.ts";
import { giveMemoryBack } from "../infra/memory.ts";
import { readProcess } from "../infra/process-table.ts";
import { SystemClock, SystemEntropy } from "../infra/system-clock.ts";
import { PinoLog } from "../infra/telemetry/pino-log.ts";
import { PromMetrics } from "../infra/telemetry/prom-metrics.ts";
import { scrub } from "../infra/telemetry/redact.ts";
import type { EngineAdapter } from "../ports/engine.ts";
import { Admission } from "../services/admission.ts";
import { Artifacts } from "../services/artifacts.ts";
import { AttemptRunner } from "../services/attempt-runner.ts";
import { Capabilities } from "../services/capabilities.ts";
import { cardsOf } from "../services/cards.ts";
import { Dispatcher } from "../services/dispatcher.ts";
import { EndedStreams } from "../services/ended-streams.ts";
import { EngineLogs } from "../services/engine-logs.ts";
import { GpuMonitor } from "../services/gpu-monitor.ts";
import { IdleTrim } from "../services/idle-trim.ts";
import { LoopLag } from "../services/loop-lag.ts";
import { isManaged } from "../services/pool-memory.ts";
import { Pools } from "../services/pools.ts";
import { Readiness } from "../services/readiness.ts";
import { Retention } from "../services/retention.ts";
import { Sessions } from "../services/sessions.ts";
import { Streams } from "../services/streams.ts";
import { Supervisor } from "../services/supervisor.ts";
import { TaskArchive } from "../services/task-archive.ts";
import { TaskRegistry } from "../services/task-registry.ts";
import { Transcripts } from "../services/transcripts.ts";
import { waitingArtifacts } from "../services/waiting-artifacts.ts";
import { openCatalog } from "./bootstrap-models.ts";
import { openPoolControl, type PoolControlParts } from "./bootstrap-pools.ts";
import { openResidency } from "./bootstrap-residency.ts";
import { openArtifacts, openJournal, openStore } from "./bootstrap-stores.ts";
import type { Config } from "./config.ts";
import { ConfigReload } from "./config-reload.ts";
import type { Bootstrap, Composition, Daemon } from "./daemon.ts";
import { listen } from "./listen.ts";
import { LiveSettings } from "./live-settings.ts";
import { Releases } from "./releases.ts";
import { createRouter } from "./router.ts";

export const bootstrap: Bootstrap = async ({ config, keys, buildInfo, reread }) => {
  const clock = new SystemClock();
  const entropy = new SystemEntropy();
  const log = new PinoLog({ level: config.logLevel, clock });
  const metrics = new PromMetrics({
    build: { version: buildInfo.version, commit: buildInfo.commit, bun: Bun.version },
  });
  const live = new LiveSettings(config);
  const { rules } = live;
  live.whenTaken(({ logLevel }) => log.setLevel(logLevel));
  const releases = new Releases();
  // Thrown outside of any handler it reaches the process: logged, engines killed, exit 1, restart.
  const onFatal = (error: unknown): void =>
    clock.soon(() => {
      throw error;
    });
  const runDir = join(config.stateDir, "run");

  const processes = new BunProcessHost({ runDir, guardCommand: selfCommand("__guard"), log });
  releases.add("child processes", () => processes.close());
  const swept = await processes.sweep();
  if (swept > 0) log.warn("engines_swept", { count: swept, human: "engines of an earlier daemon still ran" });

  const gpuTelemetries = await openGpus(log);
  const cards = () => cardsOf(gpuTelemetries, config.devices);
  const adapters = new Map<EngineKind, EngineAdapter>([
    ["llamacpp", new LlamaCppAdapter({ clock, entropy, log, cards })],
    ["openai", new OpenAiAdapter({ clock, entropy })],
    ["mock", new MockAdapter({ clock, entropy })],
  ]);
  const models = openCatalog({ config, rules: rules.models, clock, entropy, log, metrics, onFatal });
  const { catalog, poolModels, files } = models;
  releases.add("models", models.stop);
  const supervisor = new Supervisor({
    clock,
    entropy,
    processes,
    models: poolModels,
    log,
    metrics,
    runDir,
    adapters,
    restart: restartPolicy(config),
  });
  live.whenTaken((next) => supervisor.configureRestarts(restartPolicy(next)));

  const store = openStore(config, log);
  releases.add("task store", () => store.close());
  const retention = new Retention(clock, store, log, config.tasks.retentionMs);
  retention.start();
  releases.add("retention", () => retention.stop());
  const ahead = openJournal(config.stateDir, clock, log, onFatal);
  releases.add("journal", () => ahead.close());
  const registry = new TaskRegistry(config.tasks.retentionMs, limits.waitingInputBytesMax, ahead);
  const archive = new TaskArchive(registry, store);
  live.whenTaken(({ tasks }) => {
    retention.retain(tasks.retentionMs);
    registry.retain(tasks.retentionMs);
  });
  registry.startPruning(clock);
  releases.add("task registry", () => registry.stopPruning());
  const sessions = new Sessions({
    clock,
    metrics,
    rules: rules.sessions,
    allowanceOf: (keyId) => rules.keys.allowances.get(keyId) ?? null,
    onRemoved: (removed) => dispatcher.sessionRemoved(removed),
  });
  releases.add("sessions", () => sessions.close());
  const transcripts = new Transcripts({
    store,
    clock,
    log,
    rules: rules.transcripts,
    ...{ digests: models.digests, busy: () => registry.liveCount > 0 },
  });
  const memory: PoolControlParts["memory"] = {
    reserve: (to, beside) => residency.keeper.reserve(to, beside),
    settle: (poolId) => residency.keeper.settle(poolId),
    hasRoom: (pool) => residency.keeper.hasRoom(pool),
  };
  const forPools = {
    config,
    clock,
    log,
    metrics,
    control: supervisor,
    registry,
    archive,
    catalog,
    files,
    models: poolModels,
    memory,
  };
  const { specs, drains, lends, ...poolControl } = openPoolControl({ ...forPools, onFatal });
  releases.add("pool control", () => poolControl.stop());
  const runner = new AttemptRunner(clock, config.streaming.metricsEveryMs);
  const dispatcher: Dispatcher = new Dispatcher({
    clock,
    log,
    metrics,
    control: supervisor,
    registry,
    archive,
    store,
    ahead,
    sessions,
    transcripts,
    runner,
    pools: specs.list,
    drained: drains.poolIds,
    managed: isManaged,
    attemptsMax: config.tasks.attemptsMax,
    batchMaxWaitMs: config.admission.batchMaxWaitMs,
    fair: config.admission.fair,
    rules: rules.dispatcher,
    modelRefusal: (pool) => poolModels.refusal(pool),
    onFatal,
  });
  const { reloads, changes } = poolControl.connect(dispatcher);
  live.whenTaken(({ admission, streaming, tasks }) => {
    runner.metricsEveryMs = streaming.metricsEveryMs;
    const { batchMaxWaitMs } = admission;
    void dispatcher.roster.configureAll({ attemptsMax: tasks.attemptsMax, batchMaxWaitMs });
  });
  const aliasesOf = (pool: PoolSpec): readonly string[] => poolModels.namesOf(pool);
  const admission = new Admission(dispatcher, specs.list, entropy, rules.admission, aliasesOf);
  const streams = new Streams(
    clock,
    rules.streams,
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
  const gpus = new GpuMonitor({
    clock,
    log,
    telemetries: gpuTelemetries,
    replicas: () => specs.list.flatMap(({ id }) => supervisor.snapshots(id)),
    groupOf: (pid) => readProcess(pid)?.group ?? null,
    measured: (replica, freeBytes) => dispatcher.vramMeasured(replica, freeBytes),
  });
  releases.add("gpu monitor", () => gpus.stop());
  const residency = openResidency({
    ...{ config, rules, clock, log, metrics, dispatcher, supervisor, models: poolModels },
    ...{ specs: specs.list, lends, gpus, returned: () => changes.retryForMemory(), onFatal },
  });
  const pools = new Pools({
    residenceOf: (poolId) => residency.keeper.view(poolId),
    ...{ pools: specs.list, control: supervisor, queues: dispatcher.view, speeds, gpus },
    ...poolControl.views,
  });
  const engineLogs = new EngineLogs({ clock, pools, control: supervisor, scrub, rules: rules.streams });
  const capabilities = new Capabilities({
    apiVersion,
    pools: specs.list,
    control: supervisor,
    rateLimits: rules.rateLimits,
    isDrained: (poolId) => drains.isDrained(poolId),
    isRetired: (pool) => poolModels.refusal(pool) !== null,
  });
  const readiness = new Readiness({ clock, loopLag, probe: () => admission.probe() });
  metrics.attach({
    pools: () => pools.gauges(dispatcher.view),
    models: () => [...capabilities.models(), ...catalog.models()],
    eventLogs: () => ({ count: registry.size, bytes: registry.account.bytes }),
    viewers: () => streams.size,
    sessions: () => sessions.size,
    storeBytes: () => store.sizeBytes(),
    journalBytes: () => ahead.sizeBytes(),
    artifactBytes: () => artifacts.bytes(),
    transcriptsPending: () => transcripts.pending,
    loopLagMs: () => loopLag.maxMs(),
    gpus: () => pools.gpuGauges(),
  });

  // May take its time, so before anything that ticks and asks the pools, which are supervised last.
  const artifacts = new Artifacts({
    ...(await openArtifacts(config, clock)),
    clock,
    log,
    rules: rules.artifacts,
    waiting: waitingArtifacts(store),
  });
  releases.add("artifacts", () => artifacts.stop());
  await artifacts.start();

  // A pool that loads is work too: the start is over when the last one is up.
  const loading = () => pools.list().filter(({ state }) => state === "loading").length;
  const idleTrim = new IdleTrim(
    clock,
    () => ({ live: registry.liveCount + loading(), accepted: registry.accepted }),
    () => giveMemoryBack(log),
  );
  idleTrim.start();
  releases.add("idle trim", () => idleTrim.stop());

  releases.add("transcripts", () => transcripts.stop());
  transcripts.start((transcript) => artifacts.keep(transcript));
  const endedStreams = new EndedStreams((caller, id) => artifacts.get(caller, id));

  let admitted = keys;
  const configReload = new ConfigReload({
    ...{ clock, log, metrics, config, reread, live, pools: changes, onFatal },
    files: new FolderFileWatch(),
    admit: (next) => {
      admitted = next;
    },
  });
  const contexts = new RequestContexts();
  const app = createRouter({
    contexts,
    clock,
    entropy,
    log,
    auth: {
      get mode() {
        return rules.http.authMode;
      },
      verify: (presented) => {
        const holder = admitted.verify(presented);
        return holder === null ? null : { ...holder, rate: holder.rate ?? rules.http.rate };
      },
      get local() {
        return { keyId: "local", admin: true, rate: rules.http.rate };
      },
    },
    limited: (policy) => metrics.backpressure({ engine: null, policy }),
    maxBodyBytes: () => rules.http.bodyBytesMax,
    bodyBytesOf: (asked) => {
      // The router takes both forms.
      const path = asked.replace(/\/$/, "");
      if (path === attachmentsPath) return null;
      const documentBytesMax = rules.artifacts.artifactBytesMax;
      return path === artifactsPath
        ? Math.max(rules.http.bodyBytesMax, documentBytesMax + limits.artifactEnvelopeBytes)
        : undefined;
    },
    plugins: [
      tasksRoutes({ admission, dispatcher, archive, streams, endedStreams, contexts, clock }),
      sessionsRoutes({ sessions, contexts, clock }),
      poolsRoutes({ pools, contexts }),
      poolControlRoutes({ pools, drains, reloads, contexts }),
      devicesRoutes({ lending: residency.lending, contexts }),
      engineLogsRoutes({ engineLogs, streams, contexts }),
      artifactsRoutes({ artifacts, contexts }),
      catalogRoutes({ catalog, contexts }),
      capabilitiesRoutes({ capabilities }),
      configRoutes({ config: configReload.status, contexts }),
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
    const forced = clock.setTimer(limits.lastFramesMs, () => void server.stop(true));
    await server.stop(false);
    forced.cancel();
  });
  releases.add("engine logs", () => engineLogs.close());
  await boundUnsent(server.port, limits.viewerUnsentBytesMax, log);
  supervisor.start(specs.list, residency.keeper);
  gpus.start();
  releases.add("engines", () => supervisor.stop());
  residency.start();
  releases.add("residency", residency.stop);
  for (const record of dispatcher.recover()) streams.expect(record);
  configReload.start();
  releases.add("configuration", () => configReload.stop());

  return {
    url: server.url,
    log,
    close: async () => {
      configReload.stop();
      dispatcher.close();
      const deadline = clock.setTimer(rules.shutdown.drainDeadlineMs, () => dispatcher.halt());
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
    reload: (why) => configReload.reload(why),
  } satisfies Daemon;
};

export const composition: Composition = {
  bootstrap,
  clock: new SystemClock(),
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

const restartPolicy = ({ restart }: Config): RestartPolicy => ({
  backoffMs: restart.backoffMs,
  backoffMaxMs: restart.backoffMsMax,
  breakerFailures: restart.breakerFailures,
  breakerWindowMs: restart.breakerWindowMs,
});

/** A model trained to pool says so in its header; every other one generates. */
function workloadsOf({ poolingType }: GgufHeader): readonly Workload[] | null {
  if (poolingType === null || poolingType === 0) return null;
  return poolingType === 4 ? ["rerank"] : ["embedding"];
}
