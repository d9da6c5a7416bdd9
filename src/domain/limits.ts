/**
 * The bounds of the program: queues, buffers, retries, timers. What an operator may change stands in the
 * configuration (its defaults and outer bounds refer to these); what nobody should need to change stands
 * only here, or at the head of the one file that has to know it. Units come last in each name.
 */
import { assert } from "./assert.ts";

export const limits = {
  // HTTP
  correlationIdCharsMax: 128,
  bodyBytesDefault: 1024 * 1024,
  bodyBytesMax: 64 * 1024 * 1024,
  idleTimeoutSeconds: 120,
  rateBucketsMax: 4096,
  /** Where a refusal comes back to when nothing says more: long enough to matter, short enough to try. */
  retryMsDefault: 1_000,
  /** A key with as many streams open as it may. */
  streamsRetryMs: 1_000,
  /** What surrounds the content of an artifact in its request: names, tags, escapes. */
  artifactEnvelopeBytes: 64 * 1024,
  /** Viewers that read their last frame need a moment; one that does not read must not hold the exit. */
  lastFramesMs: 2_000,
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

  /** Between two looks whether what made a start hopeless has changed; it starts once two looks see the same. */
  changeLookMs: 1_000,

  // Queues
  queueCapacityDefault: 256,
  queueCapacityMax: 1_000_000,
  attemptsMax: 3,
  mailboxTurnEventsMax: 100_000,
  /** Sent back to: a pool that was given up, a daemon that shuts down, a placement that leaves no pool. */
  poolRetryMs: 30_000,
  /** Blocks of 64 characters of a prompt that are compared with what a slot held last. */
  prefixBlocksMax: 256,
  batchMaxWaitMsDefault: 300_000,
  /** One start in this many goes to an aged batch task while there is one (ORCHD-ADM-2). */
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
  /** pools[].preempt: how long an interactive task waits before a batch task is cut for it, and how often one is cut. */
  preemptWaitMsDefault: 2_000,
  preemptCutsDefault: 3,
  /** What an engine takes to free a slot whose attempt was cut, milliseconds while decoding: a cut gains that at least. */
  preemptGainMsDefault: 250,
  /** Times that gain: so long a due cut waits for a task that is about to end, and between looks where nobody may be cut. */
  preemptPatienceGains: 2,
  preemptAgainGains: 4,

  // Continuation
  /** Pieces of unknown tokens that greedy decoding says again rather than going on from text. */
  repeatedPiecesMax: 8,
  /** Crashes in a row after which a task is tried alone; so many new tokens before a crash clear it. */
  crashesSharedMax: 2,
  suspectClearingTokens: 4,

  // Sessions
  sessionTtlMsDefault: 600_000,
  sessionTurnsMaxDefault: 8,
  /** Remembered at once; beyond it the one idle longest makes room. */
  sessionsMax: 16_384,
  /** Expired ones forgotten by one firing of the timer. */
  sessionSweepMax: 500,
  /** Sent back to while there are as many as may be, all of them in use. */
  sessionsRetryMs: 1_000,

  // Event logs and records of tasks
  finishedLogBytesMax: 64 * 1024 * 1024,
  finishedTasksMax: 20_000,
  taskPruneEveryMs: 60_000,
  /** Ended tasks that are forgotten before their line is cut; then half of it at least goes. */
  taskCompactAfter: 1024,
  taskRetentionMsDefault: 24 * 3600 * 1000,
  /** What one pull of a viewer takes at most, so that a long replay does not become one huge buffer. */
  viewerChunkBytesMax: 64 * 1024,
  /** What the kernel holds unsent for a client that does not read; what is under way to it comes on top. */
  viewerUnsentBytesMax: 128 * 1024,
  heartbeatMsDefault: 10_000,
  disconnectGraceMsDefault: 5_000,
  metricsEveryMsDefault: 1_000,
  /** Off; a reader notices more than the bound. */
  microbatchMsDefault: 0,
  microbatchMsMax: 250,

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
  /** Of these, as many at once: the event loop turns in between. */
  artifactSearchSliceRows: 100,
  artifactSearchWordsMax: 8,
  /** Younger ones are never collected: an attachment is there before the document that names it. */
  artifactGraceMs: 3600 * 1000,
  artifactCollectEveryMs: 600_000,
  /** Entries read at once by the collection and by the comparison of index and blobs. */
  artifactBatch: 500,
  /** How long the start waits for the bucket of artifacts.s3 to answer. */
  artifactBucketMs: 5_000,
  /** What the comparison of index and blobs asks of the store at once. */
  artifactSettleAtOnce: 16,
  /** How long the start waits for that comparison; then it goes on beside the requests. */
  artifactSettleStartMs: 500,
  /** Answered with 503 while the index is being made again. */
  artifactSettleRetryMs: 2_000,
  /** An attachment that comes in claims room in steps that double up to this. */
  attachmentRoomBytes: 16 * 1024 * 1024,
  /** How long the end waits for what a store was asked for. */
  artifactStopMs: 5_000,
  /** Answered with 503 while nothing more fits. */
  artifactRetryMs: 60_000,
  /** Folders known to be on the disk: they are not synced again. */
  blobFoldersKnownMax: 8_192,
  blobChunkBytes: 256 * 1024,

  // Transcripts on their way into the artifact store
  transcriptAttemptsMax: 32,
  /** Moved at once before others get their turn, and so many of them at the same time. */
  transcriptBatch: 32,
  transcriptsMovedTogether: 4,
  /** While tasks run and fewer than that wait, half of what may wait at all, it is put off by steps, for so long at most. */
  transcriptsHurry: 100_000,
  transcriptsHurryChars: 256 * 1024 * 1024,
  transcriptDeferMs: 1_000,
  transcriptDeferMsMax: 30_000,
  /** Between two batches; a burst of ends is collected first. */
  transcriptMoveEveryMs: 20,
  /** While the artifact store refuses: doubled from the first to the second. */
  transcriptRetryMs: 1_000,
  transcriptRetryMsMax: 60_000,
  /** While so much waits to be moved, tasks leave none. */
  transcriptsPendingCharsMax: 512 * 1024 * 1024,
  transcriptsPendingMax: 200_000,
  /** Names of one model that a pool remembers. */
  sameModelRefsMax: 16,
  /** Models whose digest is remembered. */
  modelDigestsMax: 256,
  /** Event logs that were made again from transcripts and may be asked for once more. */
  rebuiltLogBytesMax: 16 * 1024 * 1024,

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
  journalCompactEveryMs: 5_000,
  /** Steps of one compaction. */
  journalCompactStepsMax: 64,

  // Models: fetched and catalogued
  /** Connections that one fetch uses at once, and fetches at once: their requests fit beside all generations. */
  fetchParts: 4,
  fetchesAtOnce: 2,
  /**
   * What one request asks for: this share of the file within these bounds. All that is under way when connections break is
   * sent again, so that twenty interruptions together cost a few hundredths of the file, however fast it comes.
   */
  fetchPieceShare: 1 / 4096,
  fetchPieceBytesMin: 512 * 1024,
  fetchPieceBytesMax: 16 * 1024 * 1024,
  /** Bytes between two words of the journal at most, and never more than a piece: what `kill -9` costs beside what is under way. */
  fetchJournalBytesMax: 1024 * 1024,
  /** Bytes between two syncs: what a power cut costs at most. */
  fetchSyncBytes: 64 * 1024 * 1024,
  fetchRedirectsMax: 5,
  /** Until the head of an answer is there, and between two chunks of its body. */
  fetchAnswerMs: 30_000,
  fetchStallMs: 30_000,
  /** Answers in a row without progress after which a connection gives up; so many new bytes clear it. */
  fetchFruitlessMax: 12,
  fetchProgressBytes: 64 * 1024,
  fetchBackoffMs: 250,
  fetchBackoffMsMax: 30_000,
  /** What Retry-After may ask for. */
  fetchRetryAfterMsMax: 60_000,
  /** Times that one fetch begins anew because its source has changed. */
  fetchRestartsMax: 3,
  modelBytesMax: 4 * 1024 ** 4,
  /** What a fetch leaves free on the disk. */
  modelDiskReserveBytes: 1024 * 1024 * 1024,
  /** Hashed before others get a turn of the event loop. */
  modelHashBytes: 256 * 1024,
  catalogEntriesMax: 4096,
  catalogReferencesMax: 32,
  catalogUriCharsMax: 1024,
  /** How often a fetch that runs is logged. */
  fetchLogEveryMs: 10_000,

  // Engines
  poolsMax: 64,
  replicasPerPoolMax: 16,
  slotsPerReplicaMax: 128,
  /** Bun runs 256 fetches at once per process; generations and control calls must all fit in there. */
  slotsTotalMax: 192,
  engineLogLinesMax: 1000,
  engineLogLineCharsMax: 2000,
  engineLogLinesShownDefault: 100,
  /** Lines that a follower of an engine's log is sent in one piece. */
  engineLogChunkLines: 64,
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

  // Which models stay loaded
  /** A pool that waits longer to be loaded takes the place of one in use, whose turn lasts no longer than the second. */
  swapMaxWaitMsDefault: 30_000,
  swapTurnMaxMsDefault: 300_000,
  /** A use counts half after so long when it is guessed how soon an idle model will be needed. */
  residencyHalfLifeMs: 600_000,
  /** Devices that the configuration names, or of which one pool takes part. */
  devicesMax: 64,
  /** Of one device. */
  deviceBytesMax: 2 ** 50,
  /** What is kept free where the operator says nothing: of the host's memory one part in so many, at most so much. */
  hostReserveParts: 10,
  hostReserveBytesMax: 4 * 2 ** 30,
  /** ... and of a graphics card. */
  gpuReserveBytes: 256 * 2 ** 20,
  /** What an engine takes of a card beside what it tells of its model: the driver's own share of its process. */
  gpuProcessBytes: 400 * 2 ** 20,
  /** Others' memory is measured again so often at most, while somebody waits for memory or a card is shared. */
  memoryMeasureMs: 5000,
  /** Until memory is free again when a pool is unloaded: what is expected before one was. */
  unloadMsAssumed: 500,
  /** Up to so many idle pools the least costly set of them is searched for, above it approached. */
  evictionExactMax: 12,

  // Graphics cards
  /** Between two samples while somebody wants them; longer where one costs much: up to the second. */
  gpuSampleMs: 2_000,
  gpuSampleMsMax: 60_000,
  /** A sample is followed by so many times what it took. */
  gpuCostFactor: 200,
  /** Who has read the figures wants them for so long: longer than scrapes are apart. */
  gpuReadMs: 60_000,
  /** Between two times that the driver is asked anew for a card that was lost. */
  gpuReopenMs: 60_000,
  /** Placement is told of free memory in steps: less is no difference. */
  gpuFreeStepBytes: 64 * 1024 * 1024,

  // Log and metrics
  /** Log lines that wait for a reader; what comes on top is dropped and counted. */
  logPendingBytesMax: 4 * 1024 * 1024,
  logRetryMs: 50,
  /** What a reader that does not read may cost at the exit. */
  logExitMs: 1_000,
  logStackCharsMax: 8_000,
  logCausesMax: 4,
  /** Names of log fields that were judged once and are remembered. */
  logNamesMax: 1024,
  labelCharsMax: 128,

  // Reloads
  /** Waiting tasks that are held against a new model before others get their turn. */
  recheckTasksATurn: 16,

  // Shutdown
  drainDeadlineMsDefault: 30_000,
  /** The configuration file is read again when it has stayed the same for so long, */
  configQuietMs: 250,
  /** ... at most so long after the first sign of a change, */
  configSettleMsMax: 2_000,
  /** ... and looked at so often where nobody gives a sign (a network's file system). */
  configLookMs: 3_000,
} as const;

assert(
  limits.slotsTotalMax + limits.fetchesAtOnce * limits.fetchParts + 24 <= 256,
  "fetches of models and control calls keep room beside the generations",
);
assert(limits.attemptsMax >= 1, "a task has at least one attempt");
