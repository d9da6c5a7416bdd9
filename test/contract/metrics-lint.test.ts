/**
 * /metrics against its contract, ci/metrics.lint.json, in both directions: what is rendered stands there with
 * exactly these labels and buckets, and what is required is rendered. The exposition is read by a parser that
 * shares no code with the writer.
 */
import { describe, expect, test } from "bun:test";
import lint from "../../ci/metrics.lint.json";
import { labelBudgets } from "../../src/infra/telemetry/label-budget.ts";
import { PromMetrics } from "../../src/infra/telemetry/prom-metrics.ts";
import type { GpuGauges, MetricsSources, PoolGauges } from "../../src/ports/telemetry.ts";
import { type Family, histograms, parseExposition, type Sample } from "../support/prom-parse.ts";

interface SeriesRule {
  readonly name: string;
  readonly type: string;
  readonly labels: readonly string[];
  readonly buckets?: readonly number[];
  readonly required: string;
  readonly absent_when?: string;
}
const rules = new Map((lint.series as SeriesRule[]).map((rule) => [rule.name, rule]));
const budgets: Readonly<Record<string, number>> = lint.label_budgets;

const build = { version: "1.2.3", commit: "abc1234", bun: "1.4.5" };
const processStats = () => ({ residentBytes: 5e7, cpuSeconds: 1.5, openFds: 12 });
const labels = { engine: "mock", engineVersion: "mock-1", poolId: "chat", replicaId: "chat/0" } as const;

const pool = (more: Partial<PoolGauges> = {}): PoolGauges => ({
  poolId: "chat",
  engine: "mock",
  engineVersion: "mock-1",
  ready: true,
  queue: { interactive: 2, batch: 3 },
  replicas: [{ replicaId: "chat/0", kvTokens: { used: 1024, total: 4096 } }],
  ...more,
});

const sources = (more: Partial<MetricsSources> = {}): MetricsSources => ({
  pools: () => [pool()],
  models: () => [{ modelId: "mock:words", state: "Active" }],
  eventLogs: () => ({ count: 7, bytes: 4242 }),
  viewers: () => 3,
  sessions: () => 2,
  storeBytes: () => 4096,
  artifactBytes: () => 8192,
  journalBytes: () => 4096,
  transcriptsPending: () => 5,
  loopLagMs: () => 0.25,
  ...more,
});

function metricsWith(more: Partial<MetricsSources> = {}): PromMetrics {
  const metrics = new PromMetrics({ build, processStats });
  metrics.attach(sources(more));
  return metrics;
}

/** One of everything that can happen. */
function use(metrics: PromMetrics): void {
  metrics.taskEnqueued({ ...labels, priority: "interactive" });
  metrics.taskStarted({ ...labels, priority: "interactive" });
  metrics.taskPreempted(labels);
  metrics.placement("placed", false, false, 2);
  metrics.sessionTurn();
  metrics.sessionEvicted("ttl");
  metrics.budgetRefused("tokens");
  metrics.firstToken({ ...labels, priority: "interactive" }, 120);
  metrics.decode({ ...labels, priority: "interactive" }, 1800);
  metrics.tokens(labels, 10, 20);
  metrics.taskFinished({ ...labels, priority: "interactive", result: "done" });
  metrics.taskCanceled({ ...labels, reason: "client" });
  metrics.taskRejected({ engine: "mock", reason: "ADMISSION_REJECT" });
  metrics.backpressure({ engine: "mock", policy: "reject" });
  metrics.restart({ poolId: "chat", replicaId: "chat/0", cause: "crashed" });
  metrics.poolReloaded({ poolId: "chat", result: "done" });
  metrics.configReloaded({ result: "done" });
  metrics.poolLoaded({ poolId: "chat", reason: "wanted", tookMs: 1200 });
  metrics.poolUnloaded({ poolId: "chat", reason: "evicted" });
  metrics.modelVerified({ result: "done", reason: "given" });
}

const scrape = async (metrics: PromMetrics) => parseExposition(await metrics.render());

function family(families: Map<string, Family>, name: string): Family {
  const found = families.get(name);
  if (found === undefined) throw new Error(`${name} is not rendered`);
  return found;
}
function only(families: Map<string, Family>, name: string): Sample {
  const { samples } = family(families, name);
  if (samples.length !== 1 || samples[0] === undefined) throw new Error(`${name}: ${samples.length} samples`);
  return samples[0];
}
const values = (found: Family, label: string) => new Set(found.samples.map((s) => s.labels[label]));

describe("the lint file", () => {
  test("is sound: every label has a budget, every optional series says when it is absent", () => {
    expect(rules.size).toBe(lint.series.length);
    for (const rule of rules.values()) {
      expect(rule.labels.filter((label) => budgets[label] === undefined)).toEqual([]);
      expect(["always", "when-source"]).toContain(rule.required);
      expect(rule.absent_when !== undefined).toBe(rule.required === "when-source");
      expect(rule.buckets !== undefined).toBe(rule.type === "histogram");
      expect(rule.type === "counter").toBe(rule.name.endsWith("_total"));
    }
  });

  test("states the budgets that the code keeps", () => {
    expect(lint.label_budgets).toEqual({ ...labelBudgets });
  });
});

describe("the exposition", () => {
  test("holds to the lint file in both directions", async () => {
    const metrics = metricsWith();
    use(metrics);
    const families = await scrape(metrics);
    for (const { name, type, samples } of families.values()) {
      const rule = rules.get(name);
      if (rule === undefined) throw new Error(`${name} is rendered and not in ci/metrics.lint.json`);
      expect(`${name} ${type}`).toBe(`${name} ${rule.type}`);
      for (const sample of samples) {
        const { le: _, ...own } = sample.labels;
        expect([name, ...Object.keys(own).sort()]).toEqual([name, ...[...rule.labels].sort()]);
      }
    }
    const rendered = [...families.values()].filter((f) => f.samples.length > 0).map((f) => f.name);
    const required = [...rules.values()].filter((r) => r.required === "always").map((r) => r.name);
    expect(required.filter((name) => !rendered.includes(name))).toEqual([]);
  });

  test("has the histograms with exactly these buckets", async () => {
    const metrics = metricsWith();
    use(metrics);
    const families = await scrape(metrics);
    for (const rule of rules.values()) {
      if (rule.buckets === undefined) continue;
      const series = [...histograms(family(families, rule.name)).values()];
      expect(series).toHaveLength(1);
      expect(series[0]?.buckets.map((b) => b.le)).toEqual([...rule.buckets, Number.POSITIVE_INFINITY]);
      expect(series[0]?.count).toBe(1);
    }
  });

  test("shows what happened", async () => {
    const metrics = metricsWith();
    use(metrics);
    const families = await scrape(metrics);
    expect(only(families, "tokens_in_total").value).toBe(10);
    expect(only(families, "tokens_out_total").value).toBe(20);
    expect(only(families, "tasks_enqueued_total").labels).toEqual({
      engine: "mock",
      engine_version: "mock-1",
      pool_id: "chat",
      replica_id: "none",
      priority: "interactive",
    });
    expect(only(families, "placement_decisions_total").labels).toEqual({
      outcome: "placed",
      pinned: "false",
      fallback: "false",
    });
    expect(only(families, "placement_candidates_considered").value).toBe(2);
    expect(only(families, "kv_cache_usage_ratio").value).toBe(0.25);
    expect(only(families, "model_state").labels).toEqual({ model_id: "mock:words", state: "Active" });
    expect(only(families, "build_info").labels).toEqual(build);
    expect(only(families, "event_log_bytes").value).toBe(4242);
    expect(only(families, "artifact_store_bytes").value).toBe(8192);
    expect(only(families, "process_cpu_seconds_total").value).toBe(1.5);
    expect(family(families, "queue_depth").samples.map((s) => [s.labels.priority, s.value])).toEqual([
      ["interactive", 2],
      ["batch", 3],
    ]);
  });

  test("is read anew at every scrape: counters do not double, what is gone does not linger", async () => {
    let pools = [pool()];
    const metrics = metricsWith({ pools: () => pools });
    await metrics.render();
    pools = [pool({ poolId: "other-pool", ready: false, engineVersion: null })];
    const [families] = await Promise.all([scrape(metrics), scrape(metrics)]);
    expect(only(families, "process_cpu_seconds_total").value).toBe(1.5);
    expect(only(families, "pool_ready").labels).toEqual({
      engine: "mock",
      engine_version: "unknown",
      pool_id: "other-pool",
    });
    expect(only(families, "pool_ready").value).toBe(0);
    expect(family(families, "queue_depth").samples).toHaveLength(2);
  });

  test("leaves out what nobody knows", async () => {
    const bare = await scrape(
      new PromMetrics({ build, processStats: () => ({ ...processStats(), openFds: null }) }),
    );
    for (const name of [
      "viewers",
      "artifact_store_bytes",
      "event_logs",
      "event_loop_lag_ms",
      "process_open_fds",
      "queue_depth",
    ])
      expect([name, family(bare, name).samples]).toEqual([name, []]);
    const unknown = await scrape(
      metricsWith({ pools: () => [pool({ replicas: [{ replicaId: "chat/0", kvTokens: null }] })] }),
    );
    expect(family(unknown, "kv_cache_usage_ratio").samples).toEqual([]);
    expect(family(unknown, "placement_candidates_considered").samples).toEqual([]);
    const settling = await scrape(metricsWith({ artifactBytes: () => null }));
    expect(family(settling, "artifact_store_bytes").samples).toEqual([]);
    expect([...unknown.keys()].filter((name) => name.includes("gpu") || name.includes("vram"))).toEqual([]);
  });

  test("carries the content type of the format it is in", () => {
    expect(metricsWith().contentType).toBe("text/plain; version=0.0.4; charset=utf-8");
  });

  test("reads this process for real", async () => {
    const metrics = new PromMetrics({ build });
    const families = await scrape(metrics);
    expect(only(families, "process_resident_memory_bytes").value).toBeGreaterThan(1e6);
    expect(only(families, "process_cpu_seconds_total").value).toBeGreaterThan(0);
    if (process.platform === "linux")
      expect(only(families, "process_open_fds").value).toBeGreaterThanOrEqual(3);
  });
});

describe("graphics cards", () => {
  const GiB = 2 ** 30;
  const share = (replicaId: string, usedBytes: number | null) => ({ ...labels, replicaId, usedBytes });
  const gpu = (
    id: string,
    more: Partial<GpuGauges["sample"]> = {},
    replicas: GpuGauges["replicas"] = [],
  ): GpuGauges => ({
    device: { id, vendor: "nvidia", model: "Big", uuid: `GPU-${id}`, driverVersion: "580.65" },
    sample: {
      deviceId: id,
      state: "ok",
      utilization: 0.75,
      memory: { usedBytes: 10 * GiB, freeBytes: 13 * GiB, totalBytes: 24 * GiB },
      powerWatts: 250,
      temperatureCelsius: 60,
      eccErrors: { corrected: 4, uncorrected: 1 },
      processes: [],
      failed: [],
      ...more,
    },
    failures: 2,
    replicas,
  });
  const told = (families: Map<string, Family>, name: string) =>
    family(families, name).samples.map(({ labels: { replica_id, device, kind, state }, value }) =>
      [replica_id, device, kind, state, value].filter((part) => part !== undefined).join(" "),
    );

  test("render every series that the lint file has of them, with exactly its labels", async () => {
    const families = await scrape(metricsWith({ gpus: () => [gpu("nvidia0", {}, [share("chat/0", GiB)])] }));
    const ofCards = [...rules.keys()].filter((name) => name.startsWith("gpu_") || name.startsWith("vram_"));
    expect(ofCards).toHaveLength(10);
    for (const name of ofCards) {
      const { type, samples } = family(families, name);
      expect([name, type, samples.length > 0]).toEqual([name, rules.get(name)?.type ?? "", true]);
      for (const sample of samples)
        expect([name, ...Object.keys(sample.labels).sort()]).toEqual([
          name,
          ...[...(rules.get(name)?.labels ?? [])].sort(),
        ]);
    }
  });

  test("are shown at each replica, and what no replica uses apart: the sum is what the card has in use", async () => {
    const gpus = [gpu("nvidia0", {}, [share("chat/0", 6 * GiB), share("chat/1", 3 * GiB)]), gpu("nvidia1")];
    const families = await scrape(metricsWith({ gpus: () => gpus }));
    expect(told(families, "vram_used_bytes")).toEqual([
      `chat/0 nvidia0 ${6 * GiB}`,
      `chat/1 nvidia0 ${3 * GiB}`,
      `none nvidia0 ${GiB}`,
      `none nvidia1 ${10 * GiB}`,
    ]);
    expect(told(families, "gpu_utilization")).toEqual([
      "chat/0 nvidia0 0.75",
      "chat/1 nvidia0 0.75",
      "none nvidia1 0.75",
    ]);
    expect(family(families, "gpu_utilization").samples[2]?.labels).toEqual({
      engine: "none",
      engine_version: "unknown",
      pool_id: "none",
      replica_id: "none",
      device: "nvidia1",
    });
    expect(told(families, "gpu_ecc_errors_total")).toEqual([
      "nvidia0 corrected 4",
      "nvidia0 uncorrected 1",
      "nvidia1 corrected 4",
      "nvidia1 uncorrected 1",
    ]);
    expect(told(families, "gpu_state")).toEqual(["nvidia0 ok 1", "nvidia1 ok 1"]);
  });

  test("that tell nothing show nothing: absent, not zero; and counters do not double", async () => {
    const silent = {
      state: "lost",
      utilization: null,
      memory: null,
      powerWatts: null,
      temperatureCelsius: null,
      eccErrors: null,
      processes: null,
    } as const;
    let gpus = [gpu("nvidia0", {}, [share("chat/0", null)])];
    const metrics = metricsWith({ gpus: () => gpus });
    await metrics.render();
    const twice = await scrape(metrics);
    expect(told(twice, "gpu_failed_samples_total")).toEqual(["nvidia0 2"]);
    expect(told(twice, "gpu_ecc_errors_total")).toEqual(["nvidia0 corrected 4", "nvidia0 uncorrected 1"]);
    expect(told(twice, "vram_used_bytes")).toEqual([`none nvidia0 ${10 * GiB}`]);
    gpus = [gpu("nvidia0", silent)];
    const lost = await scrape(metrics);
    const left = [...lost.values()]
      .filter(({ name }) => /^(gpu|vram)_/.test(name))
      .filter((f) => f.samples.length > 0);
    expect(left.map(({ name }) => name).sort()).toEqual([
      "gpu_failed_samples_total",
      "gpu_info",
      "gpu_state",
    ]);
    expect(told(lost, "gpu_state")).toEqual(["nvidia0 lost 1"]);
  });

  test("more than the budget share one series, whose sums and worst are right", async () => {
    const many = Array.from({ length: 70 }, (_, at) => gpu(`nvidia${at}`, { utilization: at / 100 }));
    const families = await scrape(metricsWith({ gpus: () => many }));
    for (const name of ["gpu_utilization", "vram_used_bytes", "gpu_state"])
      expect([name, values(family(families, name), "device").size]).toEqual([name, 64]);
    const used = family(families, "vram_used_bytes").samples.reduce((sum, { value }) => sum + value, 0);
    expect(used).toBe(70 * 10 * GiB);
    expect(told(families, "gpu_utilization").at(-1)).toBe("none other 0.69");
  });
});

describe("label budgets", () => {
  test("every policy that holds work back is shown by its name, and none as the engine that nobody meant", async () => {
    const metrics = metricsWith();
    const ofEngine = ["reject", "drop-lru", "shed-low-priority", "sessions", "artifacts"];
    const ofBudgets = ["budget-tokens", "budget-time", "budget-cost"];
    for (const policy of [...ofEngine, ...ofBudgets]) metrics.backpressure({ engine: "llamacpp", policy });
    for (const policy of ["rate", "streams"]) metrics.backpressure({ engine: null, policy });
    const { samples } = family(await scrape(metrics), "admission_backpressure_events_total");
    expect(samples.map(({ labels }) => [labels.engine, labels.policy])).toEqual([
      ...[...ofEngine, ...ofBudgets].map((policy) => ["llamacpp", policy]),
      ["none", "rate"],
      ["none", "streams"],
    ]);
  });

  const crowd = (n: number) =>
    Array.from({ length: n }, (_, i) => ({ ...labels, poolId: `pool-${i}`, replicaId: `pool-${i}/0` }));

  test("300 pools stay within 256 values, the rest counts as other", async () => {
    const metrics = metricsWith({
      pools: () =>
        crowd(300).map(({ poolId, replicaId }, i) =>
          pool({
            poolId,
            ready: i !== 299,
            queue: { interactive: 1, batch: 0 },
            replicas: [{ replicaId, kvTokens: { used: i, total: 300 } }],
          }),
        ),
    });
    for (const of of crowd(300)) metrics.taskStarted({ ...of, priority: "batch" });
    const families = await scrape(metrics);
    const started = family(families, "tasks_started_total");
    expect(values(started, "pool_id").size).toBe(256);
    expect(values(started, "pool_id").has("other")).toBe(true);
    expect(started.samples.reduce((sum, s) => sum + s.value, 0)).toBe(300);

    const waiting = family(families, "queue_depth").samples.filter((s) => s.labels.pool_id === "other");
    expect(waiting.map((s) => s.value)).toEqual([45, 0]);
    const ready = family(families, "pool_ready").samples.filter((s) => s.labels.pool_id === "other");
    expect(ready.map((s) => s.value)).toEqual([0]);
  });

  test("a pool that was shown once stays shown", async () => {
    const metrics = metricsWith();
    const before = await scrape(metrics);
    for (const of of crowd(300)) metrics.taskStarted({ ...of, priority: "batch" });
    const after = await scrape(metrics);
    expect(only(after, "pool_ready").labels).toEqual(only(before, "pool_ready").labels);
  });

  test("no label of any series goes past its budget, whatever comes", async () => {
    const metrics = metricsWith({
      models: () =>
        Array.from({ length: 1100 }, (_, i) => ({ modelId: `file:${i}`, state: "Active" as const })),
    });
    for (let i = 0; i < 1100; i++) {
      const of = { ...labels, engineVersion: `v${i}`, poolId: `p${i}`, replicaId: `p${i}/0` };
      metrics.taskEnqueued({ ...of, priority: "batch" });
      metrics.taskCanceled({ ...of, reason: `reason ${i}` });
      metrics.taskRejected({ engine: "mock", reason: `refusal ${i}` });
      metrics.backpressure({ engine: "llamacpp", policy: `policy ${i}` });
      metrics.restart({ poolId: of.poolId, replicaId: of.replicaId, cause: `cause ${i}` });
      metrics.tokens(of, 1, 1);
    }
    metrics.tokens({ ...labels, engineVersion: "" }, 0, 0);
    for (const pinned of [true, false])
      for (const fallback of [true, false])
        for (const outcome of ["placed", "refused"] as const) metrics.placement(outcome, pinned, fallback, 1);
    const families = await scrape(metrics);
    const used = new Map<string, Set<string>>();
    for (const { name, samples } of families.values())
      for (const sample of samples)
        for (const [label, value] of Object.entries(sample.labels)) {
          if (label === "le") continue;
          const key = label === "reason" ? `${name} ${label}` : label;
          used.set(key, (used.get(key) ?? new Set()).add(value));
        }
    for (const [key, seen] of used)
      expect([key, seen.size <= (budgets[key.split(" ").at(-1) ?? key] ?? 0)]).toEqual([key, true]);
    // Full to the brim, and the flag labels whole: no value is lost that had a place.
    expect(used.get("engine_version")?.size).toBe(64);
    expect(used.get("replica_id")?.size).toBe(1024);
    expect(used.get("model_id")?.size).toBe(1024);
    expect(used.get("tasks_rejected_total reason")?.size).toBe(16);
    expect([...(used.get("pinned") ?? [])].sort()).toEqual(["false", "true"]);
    expect(family(families, "tokens_in_total").samples.reduce((sum, s) => sum + s.value, 0)).toBe(1100);
  });

  test("label values from outside stay one line and are cut", async () => {
    const metrics = metricsWith();
    metrics.taskRejected({ engine: "mock", reason: 'a "quoted"\\\nreason' });
    metrics.taskRejected({ engine: "mock", reason: "x".repeat(5000) });
    metrics.taskRejected({ engine: "mock", reason: "" });
    const reasons = [...values(family(await scrape(metrics), "tasks_rejected_total"), "reason")];
    expect(reasons).toEqual(['a "quoted"\\\nreason', "x".repeat(128), "other"]);
  });
});

describe("the parser of these tests", () => {
  const good = "# HELP a_total Things.\n# TYPE a_total counter\na_total 1\n";
  test("takes what is right", () => {
    expect(parseExposition(good).get("a_total")?.samples).toEqual([
      { name: "a_total", labels: {}, value: 1 },
    ]);
  });
  const h = "# HELP h H.\n# TYPE h histogram\n";
  const wrong: [string, string][] = [
    ["a missing line feed", good.trimEnd()],
    ["a sample without TYPE", "a_total 1\n"],
    ["a sample of another family", `${good}b_total 1\n`],
    ["a repeated sample", `${good}a_total 2\n`],
    ["a repeated family", good + good],
    ["a value that is no number", good.replace(" 1\n", " one\n")],
    ["a negative counter", good.replace(" 1\n", " -1\n")],
    ["broken labels", good.replace("a_total 1", 'a_total{x="1" 1')],
    ["an unescaped quote", good.replace("a_total 1", 'a_total{x="1"2"} 1')],
    ["a histogram without sum", `${h}h_bucket{le="+Inf"} 1\nh_count 1\n`],
    ["falling buckets", `${h}h_bucket{le="1"} 2\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1\n`],
    ["a histogram without +Inf", `${h}h_bucket{le="1"} 1\nh_sum 1\nh_count 1\n`],
  ];
  for (const [what, text] of wrong)
    test(`refuses ${what}`, () => {
      expect(() => parseExposition(text)).toThrow();
    });
});
