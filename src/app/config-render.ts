/**
 * A compiled Config back in the shape of the configuration file, for `--check-config`: what is in force can be
 * read, compared and used as a file again.
 *
 * Always holds: no digest of a key, no value of an engine's environment and no credential comes out, and `compileConfig` of
 * what comes out (with those put back) is the same Config.
 */
import { stringify } from "yaml";
import type { PoolSpec, RemoteServer } from "../domain/pool.ts";
import type { Budget } from "../domain/task.ts";
import type { Config } from "./config.ts";
import type { ArtifactsSpec } from "./config-artifacts.ts";
import type { KeySpec } from "./config-keys.ts";

const hidden = "(not shown)";

export function renderConfig(config: Config): string {
  const source = config.filePath === null ? "no configuration file" : config.filePath;
  const yaml = stringify(fileShape(config), { aliasDuplicateObjects: false, lineWidth: 0 });
  return `# in force: flags, environment, ${source}, defaults\n${yaml}`;
}

function fileShape(config: Config): Record<string, unknown> {
  const { addr, limits, admission, sessions, tasks, streaming, restart } = config;
  return {
    addr: `${addr.host.includes(":") ? `[${addr.host}]` : addr.host}:${addr.port}`,
    state_dir: config.stateDir,
    log: { level: config.logLevel },
    auth: { mode: config.auth.mode, keys: config.auth.keys.map(keyShape) },
    limits: {
      body_bytes: limits.bodyBytes,
      rate: rateShape(limits.rate),
      streams_per_key: limits.streamsPerKey,
      artifact_bytes: config.artifacts.documentBytesMax,
    },
    tls: { cert: config.tls?.certPath ?? null, key: config.tls?.keyPath ?? null },
    admission: {
      default_max_tokens: admission.maxTokensDefault,
      min_on_time_probability: admission.minOnTimeProbability,
      default_deadline_ms: admission.deadlineMsDefault,
      batch_max_wait_ms: admission.batchMaxWaitMs,
      fair: admission.fair,
    },
    sessions: {
      ttl_ms: sessions.ttlMs,
      max_turns: sessions.turnsMax,
      budget: budgetShape(sessions.budget),
    },
    tasks: {
      max_attempts: tasks.attemptsMax,
      retention_ms: tasks.retentionMs,
      cut_at_deadline: tasks.cutAtDeadline,
    },
    streaming: {
      heartbeat_ms: streaming.heartbeatMs,
      disconnect_grace_ms: streaming.disconnectGraceMs,
      microbatch_ms: streaming.microbatchMs,
      metrics_every_ms: streaming.metricsEveryMs,
    },
    models: {
      dir: config.models.dir,
      roots: config.models.roots,
      fetch: {
        enabled: config.models.fetch.enabled,
        allow_hosts: config.models.fetch.allowHosts,
      },
      trust: config.models.trust,
    },
    ...(config.engineBin === null ? {} : { engines: { llamacpp: { bin: config.engineBin } } }),
    restart: {
      backoff_ms: restart.backoffMs,
      backoff_max_ms: restart.backoffMsMax,
      breaker_failures: restart.breakerFailures,
      breaker_window_ms: restart.breakerWindowMs,
    },
    artifacts: artifactsShape(config.artifacts),
    storage: { durability: config.storage.durability },
    reload: {
      watch: config.reload.watch,
      strategy: config.reload.strategy,
      deadline_ms: config.reload.deadlineMs,
    },
    shutdown: { drain_deadline_ms: config.shutdown.drainDeadlineMs },
    devices: config.devices.map((device) => ({
      id: device.id,
      memory_bytes: device.memoryBytes,
      reserve_bytes: device.reserveBytes,
    })),
    residency: {
      swap_max_wait_ms: config.residency.swapMaxWaitMs,
      swap_turn_max_ms: config.residency.swapTurnMaxMs,
    },
    pools: config.pools.map(poolShape),
  };
}

const rateShape = (rate: { perSecond: number; burst: number }) => ({
  per_second: rate.perSecond,
  burst: rate.burst,
});

const budgetShape = (budget: Budget) => ({
  tokens: budget.tokens,
  time_ms: budget.timeMs,
  cost: budget.cost,
});

const artifactsShape = ({ root, s3, bytesMax, maxAgeMs, transcripts }: ArtifactsSpec) => ({
  root: s3 === null ? root : null,
  max_bytes: bytesMax,
  max_age_days: maxAgeMs === null ? null : maxAgeMs / (24 * 3600 * 1000),
  transcripts,
  s3:
    s3 === null
      ? null
      : {
          endpoint: s3.endpoint,
          bucket: s3.bucket,
          region: s3.region,
          prefix: s3.prefix,
          [`access_key_id_${s3.accessKeyId.from}`]: s3.accessKeyId.name,
          [`secret_access_key_${s3.secretAccessKey.from}`]: s3.secretAccessKey.name,
        },
});

const keyShape = (key: KeySpec) => ({
  id: key.keyId,
  ...(key.filePath === null ? { sha256: hidden } : { file: key.filePath }),
  admin: key.admin,
  rate: key.rate === null ? null : rateShape(key.rate),
  budget: key.budget === null ? null : { ...budgetShape(key.budget), window_ms: key.budget.windowMs },
});

/** Where the key comes from; never the key. */
const remoteShape = ({ baseUrl, kind, key }: RemoteServer) => ({
  base_url: baseUrl,
  server: kind,
  ...(key === null ? {} : { [`api_key_${key.from}`]: key.name }),
});

const poolShape = (pool: PoolSpec) => ({
  id: pool.id,
  engine: pool.engine,
  model: pool.modelRef,
  ...(pool.remote === null ? {} : remoteShape(pool.remote)),
  ...(pool.engine === "llamacpp" ? { rpc: pool.rpc } : {}),
  replicas: pool.replicas,
  slots: pool.slots,
  ctx: pool.ctx,
  args: pool.args,
  env: Object.fromEntries(Object.keys(pool.env).map((name) => [name, hidden])),
  preload: pool.preload,
  devices: pool.devices,
  replica_devices: pool.replicaDevices ?? null,
  idle_unload_ms: pool.idleUnloadMs,
  queue: { capacity: pool.queueCapacity, full_policy: pool.fullPolicy },
  timeouts: {
    load_ms: pool.timeouts.loadMs,
    first_token_ms: pool.timeouts.firstTokenMs,
    inter_token_ms: pool.timeouts.interTokenMs,
    stop_grace_ms: pool.timeouts.stopGraceMs,
    task_ms: pool.taskTimeoutMs,
  },
  preempt:
    pool.preempt === null
      ? false
      : {
          max_wait_ms: pool.preempt.maxWaitMs,
          max_cuts: pool.preempt.maxCuts,
          min_gain_ms: pool.preempt.minGainMs,
        },
  price: {
    per_1k_tokens_in: pool.price.per1kTokensIn,
    per_1k_tokens_out: pool.price.per1kTokensOut,
  },
  workloads: pool.workloads,
  ...(pool.mock === null
    ? {}
    : {
        mock: {
          token_ms: pool.mock.tokenMs,
          prefill_ms_per_token: pool.mock.prefillMsPerToken,
          load_ms: pool.mock.loadMs,
          memory_bytes: pool.mock.memoryBytes ?? 0,
          faults: pool.mock.faults.map((fault) => ({
            kind: fault.kind,
            nth: fault.nth,
            after_tokens: fault.afterTokens,
            delay_ms: fault.delayMs,
          })),
        },
      }),
});
