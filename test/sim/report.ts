/** A long run as a table for people, and as data. Called by scripts/simulate.ts. */
import type { Priority } from "../../src/domain/task.ts";
import type { LoadResult } from "./load-world.ts";
import type { ClassScores } from "./scores.ts";

const round = (value: number, digits = 0): number => Math.round(value * 10 ** digits) / 10 ** digits;

export function reportOf({ options, scores, counts, broken, virtualMs }: LoadResult) {
  const { sharing } = scores;
  const { family, seed, tasks, fair, fullPolicy } = options;
  return {
    family,
    seed,
    tasks,
    fair,
    fullPolicy,
    virtual_hours: round(virtualMs / 3_600_000, 2),
    tasks_per_second: round((scores.accepted * 1000) / Math.max(1, virtualMs), 2),
    tokens_per_second: round((scores.tokensOut * 1000) / Math.max(1, virtualMs), 1),
    accepted: scores.accepted,
    refused: Object.fromEntries([...scores.refusals].sort()),
    failed: Object.fromEntries([...scores.failures].sort()),
    interactive: classOf(scores.classes.interactive),
    batch: classOf(scores.classes.batch),
    fairness: {
      contended_windows: sharing.windows,
      jain_max_min: round(sharing.maxMin, 3),
      jain_max_min_worst: round(sharing.worstMaxMin, 3),
      jain_demand: round(sharing.demand, 3),
    },
    session_prompt_tokens_cached: round(scores.sessionTokensCached / Math.max(1, scores.sessionTokens), 3),
    starts: counts.starts,
    put_backs: counts.putBacks,
    preempted: counts.preempted,
    aged_starts: counts.agedStarts,
    model_loads: counts.engines,
    engines_lost: counts.enginesLost,
    rules_broken: broken,
  };
}

function classOf({ waitMs, done, failed, interval, brier, deadlineMissed }: ClassScores) {
  const behind = interval.before + interval.within + interval.after;
  const share = (count: number) => (behind === 0 ? null : round(count / behind, 3));
  return {
    done,
    failed,
    wait_ms: {
      mean: round(waitMs.mean),
      p50: round(waitMs.quantile(0.5)),
      p95: round(waitMs.quantile(0.95)),
      p99: round(waitMs.quantile(0.99)),
      max: round(waitMs.max),
    },
    deadlines: brier.count,
    deadline_missed: deadlineMissed,
    brier: round(brier.score, 4),
    brier_base_rate: round(brier.baseRateScore, 4),
    promised_behind_others: behind,
    interval_before: share(interval.before),
    interval_within: share(interval.within),
    interval_after: share(interval.after),
  };
}

const priorities: readonly Priority[] = ["interactive", "batch"];

export function tableOf(result: LoadResult): string {
  const r = reportOf(result);
  const rows: [string, (c: ReturnType<typeof classOf>) => string | number][] = [
    ["done", (c) => c.done],
    ["failed", (c) => c.failed],
    ["wait mean, ms", (c) => c.wait_ms.mean],
    ["wait p50, ms", (c) => c.wait_ms.p50],
    ["wait p95, ms", (c) => c.wait_ms.p95],
    ["wait p99, ms", (c) => c.wait_ms.p99],
    ["wait max, ms", (c) => c.wait_ms.max],
    ["accepted with a deadline", (c) => c.deadlines],
    ["deadlines missed", (c) => c.deadline_missed],
    ["Brier score of on_time_probability", (c) => c.brier],
    ["Brier score of the base rate", (c) => c.brier_base_rate],
    ["promised behind others", (c) => c.promised_behind_others],
    ["started before the 80 % interval", (c) => c.interval_before ?? "-"],
    ["started within it", (c) => c.interval_within ?? "-"],
    ["started after it", (c) => c.interval_after ?? "-"],
  ];
  const counted = (counts: Readonly<Record<string, number>>) =>
    Object.entries(counts)
      .map(([code, count]) => `${code} ${count}`)
      .join(", ") || "none";
  const lines = [
    `family ${r.family}, seed ${r.seed}, ${r.tasks} tasks, fair ${r.fair}, full policy ${r.fullPolicy}`,
    line("", ...priorities),
    ...rows.map(([name, of]) => line(name, ...priorities.map((priority) => of(r[priority])))),
    line("virtual hours", r.virtual_hours),
    line("accepted tasks a second", r.tasks_per_second),
    line("tokens a second", r.tokens_per_second),
    line("accepted", r.accepted),
    line("refused", counted(r.refused)),
    line("failed", counted(r.failed)),
    line("contended windows", r.fairness.contended_windows),
    line("Jain's index, of max-min shares", r.fairness.jain_max_min),
    line("  in the worst window", r.fairness.jain_max_min_worst),
    line("Jain's index, of demands", r.fairness.jain_demand),
    line("prompt tokens of sessions cached", r.session_prompt_tokens_cached),
    line("starts", r.starts),
    line("put back", r.put_backs),
    line("  cut for interactive ones", r.preempted),
    line("aged starts", r.aged_starts),
    line("model loads", r.model_loads),
    line("engines lost", r.engines_lost),
    line("rules broken", r.rules_broken),
  ];
  return lines.join("\n");
}

const line = (name: string, ...values: (string | number)[]): string =>
  `${name.padEnd(36)}${values.map((v) => String(v).padStart(13)).join("")}`.trimEnd();
