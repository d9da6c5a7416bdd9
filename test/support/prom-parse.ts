/**
 * A strict reader of Prometheus' text format 0.0.4, for tests only. It shares no code with prom-client, and
 * refuses what a lenient scraper would let pass: samples without HELP and TYPE, families in pieces, repeated
 * samples, histograms whose buckets do not add up.
 *
 * Source: https://prometheus.io/docs/instrumenting/exposition_formats/
 */

export type MetricType = "counter" | "gauge" | "histogram";

export interface Sample {
  /** With its suffix: _bucket, _sum, _count. */
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: MetricType;
  readonly samples: Sample[];
}

const metricName = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/;
const head = /^# (HELP|TYPE) (\S+) (.*)$/;
const label = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)/y;
const number = /^(?:[+-]?Inf|NaN|[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)$/;

type Fail = (why: string) => never;

/** Throws with the line number on anything that does not follow the format. */
export function parseExposition(text: string): Map<string, Family> {
  const families = new Map<string, Family>();
  const helps = new Map<string, string>();
  let current: Family | null = null;
  if (!text.endsWith("\n")) throw new Error("the last line has no line feed");
  for (const [index, line] of text.split("\n").entries()) {
    const fail: Fail = (why) => {
      throw new Error(`line ${index + 1}: ${why}: ${line}`);
    };
    if (line === "") continue;
    if (!line.startsWith("#")) {
      const sample = parseSample(line, fail);
      if (current === null || !belongs(sample.name, current)) return fail("outside its family");
      current.samples.push(sample);
      continue;
    }
    const [, kind, name = "", rest = ""] = head.exec(line) ?? fail("neither HELP nor TYPE");
    if (!metricName.test(name)) fail("not a metric name");
    if (kind === "HELP") {
      if (helps.has(name)) fail("a second HELP");
      if (rest.trim() === "") fail("an empty HELP");
      helps.set(name, rest);
      continue;
    }
    const help = helps.get(name) ?? fail("TYPE without HELP");
    if (families.has(name)) fail("a second TYPE");
    if (rest !== "counter" && rest !== "gauge" && rest !== "histogram") return fail("unknown type");
    current = { name, help, type: rest, samples: [] };
    families.set(name, current);
  }
  for (const family of families.values()) check(family);
  return families;
}

function parseSample(line: string, fail: Fail): Sample {
  const space = line.lastIndexOf(" ");
  const series = line.slice(0, space);
  const raw = line.slice(space + 1);
  if (space < 0 || !number.test(raw)) fail("not a number");
  const value = Number(raw.replace("Inf", "Infinity"));
  const brace = series.indexOf("{");
  const name = brace < 0 ? series : series.slice(0, brace);
  if (!metricName.test(name)) fail("not a metric name");
  const labels: Record<string, string> = {};
  if (brace >= 0) {
    if (!series.endsWith("}")) fail("labels without an end");
    const inside = series.slice(brace + 1, -1);
    label.lastIndex = 0;
    while (label.lastIndex < inside.length) {
      const [, key = "", quoted = ""] = label.exec(inside) ?? fail("malformed labels");
      if (key in labels) fail("a label twice");
      labels[key] = quoted.replace(/\\(.)/g, (_, c: string) => (c === "n" ? "\n" : c));
    }
  }
  return { name, labels, value };
}

const belongs = (name: string, family: Family): boolean =>
  family.type === "histogram"
    ? ["_bucket", "_sum", "_count"].some((suffix) => name === family.name + suffix)
    : name === family.name;

function check(family: Family): void {
  const seen = new Set<string>();
  for (const { name, labels, value } of family.samples) {
    const key = `${name} ${seriesKey(labels)}`;
    if (seen.has(key)) throw new Error(`${key} is there twice`);
    seen.add(key);
    if (family.type !== "gauge" && !(value >= 0)) throw new Error(`${key} is ${value}`);
  }
  if (family.type === "histogram") for (const group of histograms(family).values()) checkBuckets(group);
}

export interface HistogramSeries {
  readonly labels: Readonly<Record<string, string>>;
  readonly buckets: { readonly le: number; readonly count: number }[];
  sum: number | null;
  count: number | null;
}

/** The samples of a histogram family, put together again: one entry for each set of labels without `le`. */
export function histograms(family: Family): Map<string, HistogramSeries> {
  const groups = new Map<string, HistogramSeries>();
  for (const { name, labels, value } of family.samples) {
    const { le, ...rest } = labels;
    const key = seriesKey(rest);
    const group = groups.get(key) ?? { labels: rest, buckets: [], sum: null, count: null };
    groups.set(key, group);
    if (name.endsWith("_bucket"))
      group.buckets.push({ le: Number(le?.replace("Inf", "Infinity")), count: value });
    else if (name.endsWith("_sum")) group.sum = value;
    else group.count = value;
  }
  return groups;
}

function checkBuckets({ labels, buckets, sum, count }: HistogramSeries): void {
  const where = JSON.stringify(labels);
  if (sum === null || count === null) throw new Error(`histogram ${where} lacks _sum or _count`);
  let before = { le: Number.NEGATIVE_INFINITY, count: 0 };
  for (const bucket of buckets) {
    if (!(bucket.le > before.le)) throw new Error(`histogram ${where}: buckets out of order`);
    if (bucket.count < before.count) throw new Error(`histogram ${where}: buckets are not cumulative`);
    before = bucket;
  }
  if (before.le !== Number.POSITIVE_INFINITY || before.count !== count)
    throw new Error(`histogram ${where}: the +Inf bucket is not the count`);
}

const seriesKey = (labels: Readonly<Record<string, string>>): string =>
  JSON.stringify(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)));
