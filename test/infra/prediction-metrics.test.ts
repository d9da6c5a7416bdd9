/** The scores of predictions as Prometheus shows them: what was not scored is absent, what ended is counted. */
import { expect, test } from "bun:test";
import type { PredictionScores } from "../../src/domain/calibration.ts";
import { PromMetrics } from "../../src/infra/telemetry/prom-metrics.ts";
import type { PoolGauges } from "../../src/ports/telemetry.ts";
import { parseExposition } from "../support/prom-parse.ts";

const scored: PredictionScores = {
  startsScored: 10,
  intervalCoverage: 0.8,
  deadlinesScored: 4,
  brierScore: 0.1,
  baseRateBrierScore: 0.25,
};
const unscored: PredictionScores = {
  startsScored: 0,
  intervalCoverage: null,
  deadlinesScored: 0,
  brierScore: null,
  baseRateBrierScore: null,
};
const pool = (prediction?: PoolGauges["prediction"]): PoolGauges => ({
  poolId: "chat",
  engine: "mock",
  engineVersion: "mock-1",
  ready: true,
  queue: { interactive: 0, batch: 0 },
  replicas: [],
  ...(prediction === undefined ? {} : { prediction }),
});

async function shown(pools: () => readonly PoolGauges[], scrapes = 1) {
  const metrics = new PromMetrics({
    build: { version: "1", commit: "c", bun: "b" },
    processStats: () => ({ residentBytes: 1, cpuSeconds: 1, openFds: 1 }),
  });
  metrics.attach({
    pools,
    models: () => [],
    eventLogs: () => ({ count: 0, bytes: 0 }),
    viewers: () => 0,
    sessions: () => 0,
    storeBytes: () => 0,
    artifactBytes: () => 8192,
    journalBytes: () => 0,
    transcriptsPending: () => 0,
    loopLagMs: () => null,
  });
  let text = "";
  for (let n = 0; n < scrapes; n++) text = await metrics.render();
  return [...parseExposition(text).values()]
    .filter(({ name }) => name.startsWith("prediction_"))
    .flatMap(({ name, samples }) => samples.map((s) => [name, s.labels.pool_id, s.labels.priority, s.value]))
    .sort();
}

test("each class has its own; scraping again counts nothing twice", async () => {
  const prediction = { basis: "learned", interactive: scored, batch: unscored } as const;
  const expected = [
    ["prediction_base_rate_brier_score", "chat", "interactive", 0.25],
    ["prediction_brier_score", "chat", "interactive", 0.1],
    ["prediction_deadlines_scored_total", "chat", "batch", 0],
    ["prediction_deadlines_scored_total", "chat", "interactive", 4],
    ["prediction_interval_coverage", "chat", "interactive", 0.8],
    ["prediction_starts_scored_total", "chat", "batch", 0],
    ["prediction_starts_scored_total", "chat", "interactive", 10],
  ];
  expect(await shown(() => [pool(prediction)])).toEqual(expected);
  expect(await shown(() => [pool(prediction)], 3)).toEqual(expected);
});

test("nothing is said of a pool that nobody predicts", async () => {
  expect(await shown(() => [pool()])).toEqual([]);
});
