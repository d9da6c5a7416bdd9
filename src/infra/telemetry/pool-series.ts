/**
 * The series of what happens to pools as a whole: loads, unloads, reloads. Owned by prom-metrics.ts.
 *
 * Always: every label passes the budget; a load's time is observed once, when the pool serves.
 */
import Counter from "prom-client/lib/counter.js";
import Histogram from "prom-client/lib/histogram.js";
import type Registry from "prom-client/lib/registry.js";
import type { Metrics } from "../../ports/telemetry.ts";
import type { LabelName } from "./label-budget.ts";

type Labels = Readonly<Partial<Record<LabelName, string>>>;
type Of<Verb extends "poolLoaded" | "poolUnloaded" | "poolReloaded"> = Parameters<Metrics[Verb]>[0];

const loadBucketsMs = [100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 120_000, 300_000];

export class PoolSeries {
  private readonly loads: Counter;
  private readonly unloads: Counter;
  private readonly reloads: Counter;
  private readonly loadMs: Histogram;

  constructor(
    registry: Registry,
    /** The labels within their budgets. */
    private readonly shown: (series: string, labels: Labels) => Record<string, string>,
  ) {
    const registers = [registry];
    this.loads = new Counter({
      name: "pool_loads_total",
      help: "Times that a pool was loaded into memory, by why.",
      labelNames: ["pool_id", "reason"],
      registers,
    });
    this.unloads = new Counter({
      name: "pool_unloads_total",
      help: "Times that a pool left memory: evicted for another, idle, its device lent or smaller, or failed.",
      labelNames: ["pool_id", "reason"],
      registers,
    });
    this.reloads = new Counter({
      name: "pool_reloads_total",
      help: "Reloads of pools that ended.",
      labelNames: ["pool_id", "result"],
      registers,
    });
    this.loadMs = new Histogram({
      name: "pool_load_ms",
      help: "From the decision to load a pool until it serves, milliseconds.",
      labelNames: ["pool_id"],
      buckets: loadBucketsMs,
      registers,
    });
  }

  loaded({ poolId, reason, tookMs }: Of<"poolLoaded">): void {
    this.loads.inc(this.shown("pool_loads_total", { pool_id: poolId, reason }));
    this.loadMs.observe(this.shown("pool_load_ms", { pool_id: poolId }), tookMs);
  }

  unloaded({ poolId, reason }: Of<"poolUnloaded">): void {
    this.unloads.inc(this.shown("pool_unloads_total", { pool_id: poolId, reason }));
  }

  reloaded({ poolId, result }: Of<"poolReloaded">): void {
    this.reloads.inc(this.shown("pool_reloads_total", { pool_id: poolId, result }));
  }
}
