/**
 * How many values a label may take: pure. A series costs memory here and in every Prometheus that reads it,
 * and some label values come from outside (pool names, engine versions), so each label has a budget.
 * prom-metrics.ts passes every label of every sample through here.
 *
 * Always: no label shows more values than its budget, "other" included. The last place is kept for "other",
 * except that the values of a closed set, seeded below, all fit. A value that was shown once stays shown.
 */
import { assert } from "../../domain/assert.ts";
import { engineKinds } from "../../domain/pool.ts";
import { priorities } from "../../domain/task.ts";

export const other = "other";

/** Behaviour §14; `cause`, `policy` and `dimension` belong to series that came on top. */
export const labelBudgets = {
  engine: 4,
  engine_version: 64,
  pool_id: 256,
  replica_id: 1024,
  priority: 8,
  reason: 16,
  result: 4,
  state: 8,
  model_id: 1024,
  outcome: 4,
  pinned: 2,
  fallback: 2,
  cause: 16,
  policy: 8,
  dimension: 4,
  version: 2,
  commit: 2,
  bun: 2,
} as const;
export type LabelName = keyof typeof labelBudgets;

/** What stands for "not known" and "there is none": an empty label would read as a label that is missing. */
const absent: Partial<Record<LabelName, string>> = { engine_version: "unknown", replica_id: "none" };

const seeds: Partial<Record<LabelName, readonly string[]>> = {
  engine: engineKinds,
  engine_version: ["unknown"],
  replica_id: ["none"],
  priority: priorities,
  result: ["done", "failed", "canceled"],
  state: ["Active"],
  outcome: ["placed", "refused"],
  pinned: ["true", "false"],
  fallback: ["true", "false"],
};

/** Reasons mean something within their series only; ids mean the same everywhere. */
const perSeries: ReadonlySet<LabelName> = new Set<LabelName>(["reason"]);

const valueCharsMax = 128;

export class LabelBudget {
  private readonly shown = new Map<string, Set<string>>();

  /** The value as it may be shown: itself while it fits, else "other". */
  admit(series: string, label: LabelName, value: string): string {
    const wanted = value === "" ? (absent[label] ?? other) : value.slice(0, valueCharsMax);
    const scope = perSeries.has(label) ? `${series} ${label}` : label;
    let shown = this.shown.get(scope);
    if (shown === undefined) {
      shown = new Set(seeds[label]);
      assert(shown.size <= labelBudgets[label], `the known values of ${label} fit its budget`);
      this.shown.set(scope, shown);
    }
    if (shown.has(wanted)) return wanted;
    if (shown.size >= labelBudgets[label] - 1) return other;
    shown.add(wanted);
    return wanted;
  }
}
