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
  deviceNumberMax: 63,
  /** What a budget on the wire may name at most: sums of many stay exact integers, cost in millionths too. */
  budgetTokensMax: 1e12,
  budgetTimeMsMax: 366 * 24 * 3600 * 1000,
  budgetCostMax: 1e9,
  /** Longer than a timer can hold: the windows of keys' budgets are reckoned, not timed. */
  budgetWindowMsMax: 31 * 24 * 3600 * 1000,
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
  /** shed-low-priority refuses batch tasks from this share of the capacity on. */
  shedFromPercent: 80,
  /** fair: per-key: expected service that a key is credited with at each of its turns. */
  fairQuantumMs: 1_000,
  /** How long a task waits, in all, for the replica that holds its session's KV while another has a free slot. */
  affinityWaitMs: 2_000,
  /** Tasks of one pool that wait like that at once: a decision looks at no more than these. */
  heldMax: 8,
  /** Replicas of a pool that may be reserved or held for exclusive leases (determinism strict) at once. */
  exclusiveMaxDefault: 1,
  /** Exclusive tasks of a class whose turn came and that wait apart, for a replica of their own. */
  exclusiveCalledMax: 16,

  // Continuation
  /** Pieces of unknown tokens that greedy decoding says again rather than going on from text. */
  repeatedPiecesMax: 8,
  /** Crashes in a row after which a task is tried alone; so many new tokens before a crash clear it. */
  crashesSharedMax: 2,
  suspectClearingTokens: 32,

  // Sessions
  sessionTtlMsDefault: 600_000,
  sessionTurnsMaxDefault: 8,
  /** Remembered at once; beyond it the one idle longest makes room. */
  sessionsMax: 16_384,
  /** Expired ones forgotten by one firing of the timer. */
  sessionSweepMax: 500,

  // Event logs and records of tasks
  finishedLogBytesMax: 64 * 1024 * 1024,
  finishedTasksMax: 20_000,
  taskRetentionMsDefault: 24 * 3600 * 1000,
  /** What one pull of a viewer takes at most, so that a long replay does not become one huge buffer. */
  viewerChunkBytesMax: 64 * 1024,
  heartbeatMsDefault: 10_000,
  disconnectGraceMsDefault: 5_000,
  metricsEveryMsDefault: 1_000,

  // State on disk
  /** After a refused write nothing new is taken for so long; then the next task finds out. */
  storageRetryMs: 1_000,
  /** Inputs of waiting tasks in memory, UTF-16; what is beyond stays on disk until its task starts. */
  waitingInputBytesMax: 64 * 1024 * 1024,
  retentionEveryMs: 60_000,
  retentionAgainMs: 100,
  /** Ended tasks forgotten in one transaction. */
  retentionBatch: 500,

  // Artifacts
  artifactBytesDefault: 8 * 1024 * 1024,
  artifactBytesMax: 256 * 1024 * 1024,
  artifactPlanBytesMax: 1024 * 1024,
  artifactSummaryBytesMax: 256 * 1024,
  /** One attachment; it is streamed, never held. */
  attachmentBytesMax: 1024 * 1024 * 1024,
  artifactTagsMax: 32,
  artifactTagCharsMax: 64,
  artifactAttachmentsMax: 64,
  artifactRootBytesDefault: 10 * 1024 * 1024 * 1024,
  /** What a search sees of a document, and how many documents it looks through for one page. */
  artifactSearchCharsMax: 16 * 1024,
  artifactSearchRowsMax: 2_000,
  artifactSearchWordsMax: 8,
  /** Younger ones are never collected: an attachment is there before the document that names it. */
  artifactGraceMs: 3600 * 1000,
  artifactCollectEveryMs: 600_000,
  /** Entries read at once by the collection and by the comparison of index and blobs. */
  artifactBatch: 500,
  /** Answered with 503 while nothing more fits. */
  artifactRetryMs: 60_000,
  /** Folders known to be on the disk: they are not synced again. */
  blobFoldersKnownMax: 8_192,
  blobChunkBytes: 256 * 1024,

  // Store
  /** The log is moved into the database above this, when nobody waits for a sync. */
  storeWalBytes: 4 * 1024 * 1024,
  /** ... and above this many times as much also while somebody does. */
  storeWalBusyFactor: 2,
  storeCacheBytes: 16 * 1024 * 1024,
  /** What one pruning gives back to the file system at most. */
  storeGiveBackPagesMax: 256,

  // Journal
  /** A segment that has reached it is closed at the next batch; one batch may go beyond. */
  journalSegmentBytes: 2 * 1024 * 1024,
  /** The length of a record has three bytes. */
  journalRecordBytesMax: 2 ** 24 - 1,
  /** Collected while the disk refuses; beyond it nothing more is taken. */
  journalPendingBytesMax: 64 * 1024 * 1024,
  /** What one step of compaction reads at most, where it takes more than one segment. */
  journalCompactReadBytes: 4 * 1024 * 1024,
  /** Records rewritten before others get a turn of the event loop. */
  journalCompactTurnRecords: 256,
  /** Segments deleted by one step. */
  journalDeletesMax: 8,

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
