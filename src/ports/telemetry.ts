/**
 * Logs and metrics as verbs of the domain. infra/telemetry/pino-log.ts and infra/telemetry/prom-metrics.ts
 * implement them; tests use recording fakes. Prompts and secrets never pass through here.
 */

import type { PredictionScores } from "../domain/calibration.ts";
import type { EngineKind } from "../domain/engine-kind.ts";
import type { PredictionBasis } from "../domain/predictor.ts";
import type { Priority } from "../domain/task.ts";
import type { GpuDevice, GpuSample } from "./gpu.ts";

export const logLevels = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof logLevels)[number];

export interface LogFields {
  readonly [field: string]: string | number | boolean | null | undefined | readonly string[];
}

export interface Log {
  debug(event: string, fields: LogFields): void;
  info(event: string, fields: LogFields): void;
  warn(event: string, fields: LogFields): void;
  /** `cause` is logged with its stack, and never shown to a client. */
  error(event: string, fields: LogFields, cause?: unknown): void;
}

export interface EngineLabels {
  readonly engine: EngineKind;
  /** "" while no engine has said it: rendered as "unknown". */
  readonly engineVersion: string;
  readonly poolId: string;
}
export interface ReplicaLabels extends EngineLabels {
  /** "" for a task that no replica had yet: rendered as "none". */
  readonly replicaId: string;
}

export interface Metrics {
  taskEnqueued(labels: EngineLabels & { priority: Priority }): void;
  taskStarted(labels: ReplicaLabels & { priority: Priority }): void;
  /** It was cut for an interactive task and waits to go on. */
  taskPreempted(labels: ReplicaLabels): void;
  taskCanceled(labels: ReplicaLabels & { reason: string }): void;
  taskRejected(labels: { engine: EngineKind; reason: string }): void;
  /** One call for each finished task, never per token. */
  taskFinished(labels: ReplicaLabels & { priority: Priority; result: "done" | "failed" | "canceled" }): void;
  tokens(labels: ReplicaLabels, tokensIn: number, tokensOut: number): void;
  firstToken(labels: EngineLabels & { priority: Priority }, ms: number): void;
  decode(labels: EngineLabels & { priority: Priority }, ms: number): void;
  /** `engine` null: a bound of the key itself, before any engine was meant. */
  backpressure(labels: { engine: EngineKind | null; policy: string }): void;
  /** `refused`: what was asked for left no pool. */
  placement(outcome: "placed" | "refused", pinned: boolean, fallback: boolean, candidates: number): void;
  restart(labels: { poolId: string; replicaId: string; cause: string }): void;
  /** `failed`: it keeps the model that it had. */
  /** Its engines are in memory and serve. `tookMs`: from the decision on. */
  poolLoaded(labels: { poolId: string; reason: "wanted" | "preload" | "restored"; tookMs: number }): void;
  /** Its engines are to leave memory: for another pool, for a device that is lent or became smaller, for being idle; or they failed. */
  poolUnloaded(labels: { poolId: string; reason: "evicted" | "lent" | "idle" | "failed" }): void;
  poolReloaded(labels: { poolId: string; result: "done" | "failed" }): void;
  /** `failed`: it was refused, or a pool stays as it was; `canceled`: another came before it was in force. */
  configReloaded(labels: { result: "done" | "failed" | "canceled" }): void;
  /** A model file was compared with what its catalog entry says, or was to be. */
  modelVerified(labels: { result: "done" | "failed" | "canceled"; reason: string }): void;
}

/** What the promises of a pool stand on, and how those of each class turned out. */
export interface PoolPrediction extends Readonly<Record<Priority, PredictionScores>> {
  readonly basis: PredictionBasis;
}

/** A pool as a scrape shows it. */
export interface PoolGauges {
  readonly poolId: string;
  readonly engine: EngineKind;
  /** Null while no engine has said it. */
  readonly engineVersion: string | null;
  readonly ready: boolean;
  /** An operator drained it. */
  readonly draining?: boolean;
  /** Waiting tasks by class. */
  readonly queue: Readonly<Record<Priority, number>>;
  /** Absent: nobody predicts. */
  readonly prediction?: PoolPrediction;
  readonly replicas: readonly {
    readonly replicaId: string;
    /** Tokens of leased tasks, and what all slots hold together; null where either is unknown. */
    readonly kvTokens: { readonly used: number; readonly total: number } | null;
  }[];
}

/** A graphics card as a scrape shows it. */
export interface GpuGauges {
  readonly device: GpuDevice;
  readonly sample: GpuSample;
  /** Samples in which something failed. */
  readonly failures: number;
  /** Who computes on it. `usedBytes` null: the driver does not tell it. */
  readonly replicas: readonly (ReplicaLabels & { readonly usedBytes: number | null })[];
}

/**
 * What is read at the moment of a scrape instead of being counted along the way. Each must be cheap and
 * synchronous; a figure that nobody knows is null and stays absent.
 */
export interface MetricsSources {
  pools(): readonly PoolGauges[];
  models(): readonly { readonly modelId: string; readonly state: "Active" | "Retired" }[];
  eventLogs(): { readonly count: number; readonly bytes: number };
  /** Streams that are open now. */
  viewers(): number;
  /** Sessions that have not ended. */
  sessions(): number;
  /** Bytes of the stored state on disk. */
  storeBytes(): number;
  journalBytes(): number;
  /** Bytes of all artifacts and attachments; null while their index is made again or cannot be read. */
  artifactBytes(): number | null;
  /** Transcripts that are not in the artifact store yet. */
  transcriptsPending(): number;
  /** How late the event loop lately was, in milliseconds. */
  loopLagMs(): number | null;
  /** Absent, or empty: there is no card. */
  gpus?(): readonly GpuGauges[];
}
