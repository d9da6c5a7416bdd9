/**
 * How many values a label may take: pure. A series costs memory here and in every Prometheus that reads it,
 * and some label values come from outside (pool names, engine versions), so each label has a budget.
 * prom-metrics.ts passes every label of every sample through here.
 *
 * Always: no label shows more values than its budget, "other" included. The last place is kept for "other",
 * except that the values of a closed set, seeded below, all fit. A value that was shown once stays shown.
 */
import { assert } from "../../domain/assert.ts";
import { engineKinds } from "../../domain/engine-kind.ts";
import { limits } from "../../domain/limits.ts";
import { priorities } from "../../domain/task.ts";

export const other = "other";

/** ci/metrics.lint.json says the same. */
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
  policy: 16,
  dimension: 4,
  device: 64,
  kind: 4,
  vendor: 4,
  model: 64,
  uuid: 64,
  driver_version: 8,
  version: 2,
  commit: 2,
  bun: 2,
} as const;
export type LabelName = keyof typeof labelBudgets;

/** What stands for "not known" and "there is none": an empty label would read as a label that is missing. */
const absent: Partial<Record<LabelName, string>> = {
  engine: "none",
  engine_version: "unknown",
  pool_id: "none",
  replica_id: "none",
  model: "unknown",
  uuid: "unknown",
  driver_version: "unknown",
};

const seeds: Partial<Record<LabelName, readonly string[]>> = {
  engine: [...engineKinds, "none"],
  engine_version: ["unknown"],
  replica_id: ["none"],
  priority: priorities,
  result: ["done", "failed", "canceled"],
  state: ["Active", "Retired"],
  outcome: ["placed", "refused"],
  pinned: ["true", "false"],
  fallback: ["true", "false"],
};

/** Reasons mean something within their series only; ids mean the same everywhere. */
const perSeries: ReadonlySet<LabelName> = new Set<LabelName>(["reason"]);

export type Labels = Readonly<Partial<Record<LabelName, string>>>;

export class LabelBudget {
  private readonly shown = new Map<string, Set<string>>();
  private readonly last = new Map<string, { labels: Labels; shown: Record<string, string> }>();

  /** The same for all labels of a series. Most counts are of the pool that was counted last: its are not looked up again. */
  admitAll(series: string, labels: Labels): Record<string, string> {
    const last = this.last.get(series);
    if (last !== undefined && isSame(last.labels, labels)) return last.shown;
    const shown: Record<string, string> = {};
    for (const [name, value] of Object.entries(labels))
      shown[name] = this.admit(series, name as LabelName, value);
    this.last.set(series, { labels, shown });
    return shown;
  }

  /** The value as it may be shown: itself while it fits, else "other". */
  admit(series: string, label: LabelName, value: string): string {
    const wanted = value === "" ? (absent[label] ?? other) : value.slice(0, limits.labelCharsMax);
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

/** The same names with the same values. */
function isSame(before: Labels, labels: Labels): boolean {
  for (const name in labels) if (before[name as LabelName] !== labels[name as LabelName]) return false;
  for (const name in before) if (labels[name as LabelName] === undefined) return false;
  return true;
}
