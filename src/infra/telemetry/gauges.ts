/** How gauges are set where a figure may be unknown, or where several share one series. prom-metrics.ts and gpu-series.ts use it. */
import type Gauge from "prom-client/lib/gauge.js";

/** Null: nobody knows it, so it is absent. */
export function setOrRemove(gauge: Gauge, value: number | null): void {
  if (value === null) gauge.remove();
  else gauge.set(value);
}

/** Sets the series to what `combine` makes of all its values of one scrape; `seen` is theirs, made new for each. */
export function setCombined(
  gauge: Gauge,
  seen: Map<string, number>,
  labels: Record<string, string>,
  value: number,
  combine: (a: number, b: number) => number,
): void {
  const key = JSON.stringify(labels);
  const before = seen.get(key);
  const now = before === undefined ? value : combine(before, value);
  seen.set(key, now);
  gauge.set(labels, now);
}
