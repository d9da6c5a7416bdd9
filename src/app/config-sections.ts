/** The sections of the file that mean what they say, whatever the machine, under the names of the Config. Called by app/config.ts. */
import { compileBudget } from "./config-keys.ts";
import { durabilityDefault, type FilledConfigFile } from "./config-schema.ts";

export const renamed = (file: FilledConfigFile) => ({
  limits: {
    bodyBytes: file.limits.body_bytes,
    rate: { perSecond: file.limits.rate.per_second, burst: file.limits.rate.burst },
    streamsPerKey: file.limits.streams_per_key,
  },
  admission: {
    maxTokensDefault: file.admission.default_max_tokens,
    deadlineMsDefault: file.admission.default_deadline_ms,
    minOnTimeProbability: file.admission.min_on_time_probability,
    batchMaxWaitMs: file.admission.batch_max_wait_ms,
    fair: file.admission.fair,
  },
  sessions: {
    ttlMs: file.sessions.ttl_ms,
    turnsMax: file.sessions.max_turns,
    budget: compileBudget(file.sessions.budget),
  },
  tasks: {
    attemptsMax: file.tasks.max_attempts,
    retentionMs: file.tasks.retention_ms,
    cutAtDeadline: file.tasks.cut_at_deadline,
  },
  streaming: {
    heartbeatMs: file.streaming.heartbeat_ms,
    disconnectGraceMs: file.streaming.disconnect_grace_ms,
    microbatchMs: file.streaming.microbatch_ms,
    metricsEveryMs: file.streaming.metrics_every_ms,
  },
  restart: {
    backoffMs: file.restart.backoff_ms,
    backoffMsMax: file.restart.backoff_max_ms,
    breakerFailures: file.restart.breaker_failures,
    breakerWindowMs: file.restart.breaker_window_ms,
  },
  storage: { durability: file.storage?.durability ?? durabilityDefault },
  shutdown: { drainDeadlineMs: file.shutdown.drain_deadline_ms },
  reload: {
    watch: file.reload.watch,
    strategy: file.reload.strategy,
    deadlineMs: file.reload.deadline_ms,
  },
});
