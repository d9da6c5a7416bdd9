/**
 * Every bound of the program: queues, buffers, retries, timers. What an operator may change stands in the
 * configuration (its defaults and outer bounds refer to these); what nobody should need to change stands
 * only here. Units come last in each name.
 */
import { assert } from "./assert.ts";

export const limits = {
  // HTTP
  correlationIdCharsMax: 128,
  bodyBytesDefault: 1024 * 1024,
  bodyBytesMax: 64 * 1024 * 1024,
  idleTimeoutSeconds: 120,
  rateBucketsMax: 4096,
  streamsPerKeyDefault: 1024,
  listPageDefault: 50,
  listPageMax: 500,

  // A task as a client may describe it
  promptCharsMax: 8 * 1024 * 1024,
  messagesMax: 1024,
  inputsMax: 1024,
  stopStringsMax: 16,
  stopStringCharsMax: 256,
  grammarCharsMax: 64 * 1024,
  grammarDepthMax: 64,
  metadataKeysMax: 32,
  metadataValueCharsMax: 1024,
  maxTokensMax: 1_000_000,
  deadlineMsMax: 7 * 24 * 3600 * 1000,
  maxTokensDefault: 256,
  seedMax: 2 ** 32 - 1,

  // Queues
  queueCapacityDefault: 256,
  queueCapacityMax: 1_000_000,
  attemptsMax: 3,
  mailboxTurnEventsMax: 100_000,
  batchMaxWaitMsDefault: 300_000,
  /** One start in this many goes to an aged batch task while there is one (behaviour §9). */
  agedStartEvery: 4,

  // Event logs and records of tasks
  finishedLogBytesMax: 64 * 1024 * 1024,
  finishedTasksMax: 20_000,
  taskRetentionMsDefault: 24 * 3600 * 1000,
  /** What one pull of a viewer takes at most, so that a long replay does not become one huge buffer. */
  viewerChunkBytesMax: 64 * 1024,
  heartbeatMsDefault: 10_000,
  disconnectGraceMsDefault: 5_000,
  metricsEveryMsDefault: 1_000,

  // Engines
  poolsMax: 64,
  replicasPerPoolMax: 16,
  slotsPerReplicaMax: 128,
  /** Bun runs 256 fetches at once per process; generations and control calls must all fit in there. */
  slotsTotalMax: 192,
  engineLogLinesMax: 1000,
  engineLogLineCharsMax: 2000,
  engineFrameBytesMax: 8 * 1024 * 1024,
  engineControlTimeoutMs: 10_000,
  engineTokenizeTimeoutMs: 30_000,
  slotPollMs: 1_500,
  slotConfirmMsMax: 60_000,
  loadMsDefault: 120_000,
  firstTokenMsDefault: 60_000,
  interTokenMsDefault: 20_000,
  stopGraceMsDefault: 5_000,
  /**
   * The stop ladder of one engine process: where it works for us, its clients are closed this long before the
   * first SIGTERM; then SIGTERM, SIGTERM again, SIGKILL to the group.
   */
  stopCloseLeadMs: 150,
  stopSecondTermMs: 2_000,
  stopKillMs: 1_000,
  healthProbeMs: 50,
  /** A probe that got no answer by then counts as "not yet". */
  healthProbeTimeoutMs: 2_000,
  restartBackoffMsDefault: 250,
  restartBackoffMsMaxDefault: 30_000,
  breakerFailuresDefault: 5,
  breakerWindowMsDefault: 60_000,
  unixSocketPathCharsMax: 107,

  // Shutdown
  drainDeadlineMsDefault: 30_000,
} as const;

assert(limits.slotsTotalMax + 32 <= 256, "control calls keep room beside the generations");
assert(limits.attemptsMax >= 1, "a task has at least one attempt");
