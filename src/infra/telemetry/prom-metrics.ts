/**
 * The Metrics port on prom-client, and the exposition that GET /metrics answers with. app/bootstrap.ts makes
 * the one instance and attaches the sources once the services exist. ci/metrics.lint.json is the contract:
 * test/contract/metrics-lint.test.ts holds names, labels and buckets to it in both directions.
 *
 * Always: counters and histograms move by the port's verbs, gauges are read at the moment of a scrape; a
 * figure that nobody knows is absent, never zero; every label passes the budget (label-budget.ts).
 */
// Not the index: prom-client-parts.d.ts says why.
import Counter from "prom-client/lib/counter.js";
import Gauge from "prom-client/lib/gauge.js";
import Histogram from "prom-client/lib/histogram.js";
import Registry from "prom-client/lib/registry.js";
import type { EngineKind } from "../../domain/engine-kind.ts";
import { type Priority, priorities } from "../../domain/task.ts";
import type {
  EngineLabels,
  Metrics,
  MetricsSources,
  PoolGauges,
  ReplicaLabels,
} from "../../ports/telemetry.ts";
import { setCombined, setOrRemove } from "./gauges.ts";
import { GpuSeries } from "./gpu-series.ts";
import { LabelBudget, type LabelName, type Labels } from "./label-budget.ts";
import { PoolSeries } from "./pool-series.ts";
import { type ProcessStats, readProcessStats } from "./process-stats.ts";

export interface BuildInfo {
  readonly version: string;
  readonly commit: string;
  readonly bun: string;
}

export interface PromMetricsOptions {
  readonly build: BuildInfo;
  readonly processStats?: () => ProcessStats;
}

const engine = ["engine", "engine_version", "pool_id"] as const;
const replica = [...engine, "replica_id"] as const;
const predicted = ["pool_id", "priority"] as const;
const firstTokenBucketsMs = [50, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000];
const decodeBucketsMs = [250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000];

export class PromMetrics implements Metrics {
  private readonly registry = new Registry();
  private readonly budget = new LabelBudget();
  private readonly processStats: () => ProcessStats;
  private sources: MetricsSources | null = null;
  /** Null until there is a card. */
  private gpu: GpuSeries | null = null;

  private readonly enqueued = this.counter(
    "tasks_enqueued_total",
    "Tasks accepted into a queue; replica_id is none, for no replica is chosen yet.",
    [...replica, "priority"],
  );
  private readonly started = this.counter("tasks_started_total", "Attempts started on a replica.", [
    ...replica,
    "priority",
  ]);
  private readonly preempted = this.counter(
    "tasks_preempted_total",
    "Attempts of batch tasks that were cut for an interactive task; the task goes on.",
    replica,
  );
  private readonly canceled = this.counter("tasks_canceled_total", "Tasks canceled.", [...replica, "reason"]);
  private readonly rejected = this.counter("tasks_rejected_total", "Tasks refused at admission.", [
    "engine",
    "reason",
  ]);
  private readonly finished = this.counter("tasks_finished_total", "Tasks that reached their end.", [
    ...replica,
    "priority",
    "result",
  ]);
  private readonly tokensIn = this.counter("tokens_in_total", "Prompt tokens of finished tasks.", replica);
  private readonly tokensOut = this.counter(
    "tokens_out_total",
    "Tokens generated for finished tasks.",
    replica,
  );
  private readonly pressure = this.counter(
    "admission_backpressure_events_total",
    "Times a full queue, a budget or a bound of the key held work back, by the policy that did.",
    ["engine", "policy"],
  );
  private readonly placements = this.counter("placement_decisions_total", "Placement decisions.", [
    "outcome",
    "pinned",
    "fallback",
  ]);
  private readonly restarts = this.counter(
    "replica_restarts_total",
    "Engine processes started again after a failure, by its cause.",
    ["pool_id", "replica_id", "cause"],
  );
  private readonly verifications = this.counter(
    "catalog_verifications_total",
    "Model files compared with what their catalog entry says, by how it came out.",
    ["result", "reason", "engine"],
  );
  private readonly sessionsEvicted = this.counter(
    "sessions_evicted_total",
    "Sessions that ended: their time was over (ttl), there were too many (max), they were deleted.",
    ["reason"],
  );
  private readonly sessionTurns = this.counter("session_turns_total", "Tasks accepted in a session.", []);
  private readonly budgetRefusals = this.counter(
    "budget_refusals_total",
    "Tasks refused because a budget was short, by its dimension.",
    ["dimension"],
  );
  private readonly firstTokenMs = this.histogram(
    "latency_first_token_ms",
    "From acceptance to the first token, milliseconds.",
    firstTokenBucketsMs,
  );
  private readonly decodeMs = this.histogram(
    "latency_decode_ms",
    "From the first token to the last, milliseconds.",
    decodeBucketsMs,
  );

  private readonly queueDepth = this.gauge("queue_depth", "Tasks waiting in the pool's queue.", [
    ...engine,
    "priority",
  ]);
  private readonly poolReady = this.gauge(
    "pool_ready",
    "1 when at least one replica has decoded and takes tasks, else 0.",
    engine,
  );
  private readonly poolDraining = this.gauge("pool_draining", "1 while an operator has drained the pool.", [
    "pool_id",
  ]);
  private readonly configReloads = this.counter(
    "config_reloads_total",
    "Times that the configuration was read again, by what came of it.",
    ["result"],
  );
  private readonly ofPools = new PoolSeries(this.registry, (name, labels) => this.shown(name, labels));
  readonly poolLoaded: Metrics["poolLoaded"] = (labels) => this.ofPools.loaded(labels);
  readonly poolUnloaded: Metrics["poolUnloaded"] = (labels) => this.ofPools.unloaded(labels);
  readonly poolReloaded: Metrics["poolReloaded"] = (labels) => this.ofPools.reloaded(labels);
  private readonly brier = this.gauge(
    "prediction_brier_score",
    "Mean squared error of on_time_probability, 0 to 1, less is better; absent until a deadline was scored.",
    predicted,
  );
  private readonly baseRateBrier = this.gauge(
    "prediction_base_rate_brier_score",
    "The same had each task been told the share of deadlines that was met in the end.",
    predicted,
  );
  private readonly coverage = this.gauge(
    "prediction_interval_coverage",
    "Share of starts that fell into their promised 80 % interval, of tasks that waited; absent until one did.",
    predicted,
  );
  private readonly startsScored = this.counter(
    "prediction_starts_scored_total",
    "Promised starts that were compared with what happened.",
    predicted,
  );
  private readonly deadlinesScored = this.counter(
    "prediction_deadlines_scored_total",
    "Promised probabilities that were compared with what happened.",
    predicted,
  );
  private readonly kvUsage = this.gauge(
    "kv_cache_usage_ratio",
    "Known tokens of running tasks divided by slots times context, 0 to 1; absent while unknown.",
    replica,
  );
  private readonly modelState = this.gauge("model_state", "1 for the state that the model is in.", [
    "model_id",
    "state",
  ]);
  private readonly candidates = this.gauge(
    "placement_candidates_considered",
    "Replicas that could have taken the task that was placed or refused last.",
    [],
  );
  private readonly sessionsActive = this.gauge("sessions_active", "Sessions that have not ended.", []);
  private readonly storeBytes = this.gauge("task_store_bytes", "Bytes of the stored state on disk.", []);
  private readonly journalBytes = this.gauge(
    "event_journal_bytes",
    "Bytes of the journal of live event logs.",
    [],
  );
  private readonly artifactBytes = this.gauge(
    "artifact_store_bytes",
    "Bytes of all artifacts and attachments; artifacts.max_bytes bounds them.",
    [],
  );
  private readonly transcripts = this.gauge(
    "transcripts_pending",
    "Transcripts of finished tasks that are not in the artifact store yet.",
    [],
  );
  private readonly eventLogs = this.gauge("event_logs", "Event logs of tasks held in memory.", []);
  private readonly eventLogBytes = this.gauge("event_log_bytes", "Bytes of all event logs in memory.", []);
  private readonly viewers = this.gauge("viewers", "Streams that are open now.", []);
  private readonly lagMs = this.gauge(
    "event_loop_lag_ms",
    "How late the event loop was at worst in the last samples, milliseconds.",
    [],
  );
  private readonly residentBytes = this.gauge("process_resident_memory_bytes", "Resident memory, bytes.", []);
  private readonly openFds = this.gauge("process_open_fds", "Open file descriptors.", []);
  private readonly cpuSeconds = this.counter("process_cpu_seconds_total", "CPU time used, seconds.", []);
  private readonly buildInfo = this.gauge("build_info", "1; the labels say which build runs.", [
    "version",
    "commit",
    "bun",
  ]);

  readonly contentType: string = this.registry.contentType;

  constructor(options: PromMetricsOptions) {
    this.processStats = options.processStats ?? readProcessStats;
    this.buildInfo.set(this.shown("build_info", { ...options.build }), 1);
    // An unlabelled gauge starts at 0, which would be a claim.
    const { candidates, sessionsActive, storeBytes, journalBytes, eventLogs } = this;
    const { artifactBytes, transcripts, eventLogBytes, viewers, lagMs } = this;
    const tasks = [candidates, sessionsActive, storeBytes, journalBytes, eventLogs];
    for (const gauge of [...tasks, artifactBytes, transcripts, eventLogBytes, viewers, lagMs]) gauge.remove();
  }

  /** Gauges that need the services stay absent until this is called. */
  attach(sources: MetricsSources): void {
    this.sources = sources;
  }

  taskEnqueued(labels: EngineLabels & { priority: Priority }): void {
    this.count("tasks_enqueued_total", this.enqueued, {
      ...ofEngine(labels),
      replica_id: "",
      priority: labels.priority,
    });
  }

  taskStarted(labels: ReplicaLabels & { priority: Priority }): void {
    this.count("tasks_started_total", this.started, { ...ofReplica(labels), priority: labels.priority });
  }

  taskPreempted(labels: ReplicaLabels): void {
    this.count("tasks_preempted_total", this.preempted, ofReplica(labels));
  }

  taskCanceled(labels: ReplicaLabels & { reason: string }): void {
    this.count("tasks_canceled_total", this.canceled, { ...ofReplica(labels), reason: labels.reason });
  }

  taskRejected(labels: { engine: EngineKind; reason: string }): void {
    this.count("tasks_rejected_total", this.rejected, { engine: labels.engine, reason: labels.reason });
  }

  taskFinished(labels: ReplicaLabels & { priority: Priority; result: "done" | "failed" | "canceled" }): void {
    this.count("tasks_finished_total", this.finished, {
      ...ofReplica(labels),
      priority: labels.priority,
      result: labels.result,
    });
  }

  tokens(labels: ReplicaLabels, tokensIn: number, tokensOut: number): void {
    const of = ofReplica(labels);
    this.count("tokens_in_total", this.tokensIn, of, tokensIn);
    this.count("tokens_out_total", this.tokensOut, of, tokensOut);
  }

  firstToken(labels: EngineLabels & { priority: Priority }, ms: number): void {
    const shown = this.shown("latency_first_token_ms", { ...ofEngine(labels), priority: labels.priority });
    this.firstTokenMs.observe(shown, ms);
  }

  decode(labels: EngineLabels & { priority: Priority }, ms: number): void {
    const shown = this.shown("latency_decode_ms", { ...ofEngine(labels), priority: labels.priority });
    this.decodeMs.observe(shown, ms);
  }

  backpressure(labels: { engine: EngineKind | null; policy: string }): void {
    this.count("admission_backpressure_events_total", this.pressure, {
      engine: labels.engine ?? "",
      policy: labels.policy,
    });
  }

  placement(outcome: "placed" | "refused", pinned: boolean, fallback: boolean, candidates: number): void {
    this.count("placement_decisions_total", this.placements, {
      outcome,
      pinned: String(pinned),
      fallback: String(fallback),
    });
    this.candidates.set(candidates);
  }

  restart(labels: { poolId: string; replicaId: string; cause: string }): void {
    this.count("replica_restarts_total", this.restarts, {
      pool_id: labels.poolId,
      replica_id: labels.replicaId,
      cause: labels.cause,
    });
  }

  configReloaded(labels: { result: "done" | "failed" | "canceled" }): void {
    this.count("config_reloads_total", this.configReloads, labels);
  }

  modelVerified(labels: { result: "done" | "failed" | "canceled"; reason: string }): void {
    // Files of models are GGUF files, which one engine loads.
    this.count("catalog_verifications_total", this.verifications, { ...labels, engine: "llamacpp" });
  }

  sessionEvicted(reason: "ttl" | "max" | "deleted"): void {
    this.count("sessions_evicted_total", this.sessionsEvicted, { reason });
  }

  sessionTurn(): void {
    this.sessionTurns.inc();
  }

  budgetRefused(dimension: "tokens" | "time" | "cost"): void {
    this.count("budget_refusals_total", this.budgetRefusals, { dimension });
  }

  /** The exposition in Prometheus' text format 0.0.4. */
  render(): Promise<string> {
    this.readProcess();
    if (this.sources !== null) this.readSources(this.sources);
    // All values are taken before the first await, so that one scrape shows one moment.
    return this.registry.metrics();
  }

  private readProcess(): void {
    const stats = this.processStats();
    this.residentBytes.set(stats.residentBytes);
    this.cpuSeconds.reset();
    this.cpuSeconds.inc(stats.cpuSeconds);
    setOrRemove(this.openFds, stats.openFds);
  }

  private readSources(sources: MetricsSources): void {
    // Series of what is gone must not linger with their last value.
    const { queueDepth, poolReady, poolDraining, kvUsage, modelState } = this;
    for (const gauge of [queueDepth, poolReady, poolDraining, kvUsage, modelState]) gauge.reset();
    const pools = sources.pools();
    this.readPools(pools);
    this.readPredictions(pools);
    for (const { modelId, state } of sources.models())
      this.modelState.set(this.shown("model_state", { model_id: modelId, state }), 1);
    const logs = sources.eventLogs();
    this.eventLogs.set(logs.count);
    this.eventLogBytes.set(logs.bytes);
    this.viewers.set(sources.viewers());
    this.sessionsActive.set(sources.sessions());
    this.storeBytes.set(sources.storeBytes());
    this.journalBytes.set(sources.journalBytes());
    setOrRemove(this.artifactBytes, sources.artifactBytes());
    this.transcripts.set(sources.transcriptsPending());
    setOrRemove(this.lagMs, sources.loopLagMs());
    const gpus = sources.gpus?.() ?? [];
    if (gpus.length > 0)
      this.gpu ??= new GpuSeries(this.registry, (series, labels) => this.shown(series, labels));
    this.gpu?.read(gpus);
  }

  private readPools(pools: readonly PoolGauges[]): void {
    // Pools beyond the budget share the series "other": its worst readiness and its highest usage are shown.
    const ready = new Map<string, number>();
    const usage = new Map<string, number>();
    const draining = new Map<string, number>();
    for (const pool of pools) {
      const of = { engine: pool.engine, engine_version: pool.engineVersion ?? "", pool_id: pool.poolId };
      for (const priority of priorities)
        this.queueDepth.inc(this.shown("queue_depth", { ...of, priority }), pool.queue[priority]);
      setCombined(this.poolReady, ready, this.shown("pool_ready", of), pool.ready ? 1 : 0, Math.min);
      const drained = this.shown("pool_draining", { pool_id: pool.poolId });
      setCombined(this.poolDraining, draining, drained, pool.draining === true ? 1 : 0, Math.max);
      for (const { replicaId, kvTokens } of pool.replicas) {
        if (kvTokens === null || kvTokens.total <= 0) continue;
        const ratio = Math.min(1, Math.max(0, kvTokens.used / kvTokens.total));
        const labels = this.shown("kv_cache_usage_ratio", { ...of, replica_id: replicaId });
        setCombined(this.kvUsage, usage, labels, ratio, Math.max);
      }
    }
  }

  private readPredictions(pools: readonly PoolGauges[]): void {
    const { brier, baseRateBrier, coverage, startsScored, deadlinesScored } = this;
    for (const series of [brier, baseRateBrier, coverage, startsScored, deadlinesScored]) series.reset();
    // Pools beyond the budget share the series "other": the worst of them is shown.
    const worst = { brier: new Map(), baseRate: new Map(), coverage: new Map() };
    for (const { poolId, prediction } of pools)
      for (const priority of prediction === undefined ? [] : priorities) {
        const scores = prediction?.[priority];
        if (scores === undefined) continue;
        const labels = this.shown("prediction_brier_score", { pool_id: poolId, priority });
        startsScored.inc(labels, scores.startsScored);
        deadlinesScored.inc(labels, scores.deadlinesScored);
        const { brierScore, baseRateBrierScore, intervalCoverage } = scores;
        if (brierScore !== null) setCombined(brier, worst.brier, labels, brierScore, Math.max);
        if (baseRateBrierScore !== null)
          setCombined(baseRateBrier, worst.baseRate, labels, baseRateBrierScore, Math.max);
        if (intervalCoverage !== null)
          setCombined(coverage, worst.coverage, labels, intervalCoverage, Math.min);
      }
  }

  private count(series: string, counter: Counter, labels: Labels, by = 1): void {
    counter.inc(this.shown(series, labels), by);
  }

  private shown(series: string, labels: Labels): Record<string, string> {
    return this.budget.admitAll(series, labels);
  }

  private counter(name: string, help: string, labelNames: readonly LabelName[]): Counter {
    return new Counter({ name, help, labelNames: [...labelNames], registers: [this.registry] });
  }

  private gauge(name: string, help: string, labelNames: readonly LabelName[]): Gauge {
    return new Gauge({ name, help, labelNames: [...labelNames], registers: [this.registry] });
  }

  private histogram(name: string, help: string, buckets: number[]): Histogram {
    const labelNames = [...engine, "priority"];
    return new Histogram({ name, help, labelNames, buckets, registers: [this.registry] });
  }
}

const ofEngine = (labels: EngineLabels) => ({
  engine: labels.engine,
  engine_version: labels.engineVersion,
  pool_id: labels.poolId,
});

const ofReplica = (labels: ReplicaLabels) => ({ ...ofEngine(labels), replica_id: labels.replicaId });
