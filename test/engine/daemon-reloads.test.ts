/**
 * A short run of scripts/reloads.ts: streams on the real engine while their pool is reloaded, most of the times with
 * something that must not work. No stream is lost or altered, what fails leaves the old model, health says what is
 * (ORCHD-RELOAD-1, ORCHD-RELOAD-2, ORCHD-RELOAD-3, ORCHD-RELOAD-5). The long run is the script's.
 */
import { expect, test } from "bun:test";
import type { PlannedReload } from "../../scripts/reloads/plan.ts";
import { runReloads } from "../../scripts/reloads/run.ts";
import { sourceCommand } from "../support/daemon.ts";

const plan: readonly PlannedReload[] = [
  { strategy: "surge", target: "copy", deadlineMs: 0, fault: null },
  { strategy: "recreate", target: "other", deadlineMs: 0, fault: "killed" },
  { strategy: "recreate", target: "copy", deadlineMs: 100, fault: null },
  { strategy: "surge", target: "other", deadlineMs: 0, fault: "truncated" },
  { strategy: "recreate", target: "demo", deadlineMs: 100, fault: "missing" },
  { strategy: "surge", target: "other", deadlineMs: 0, fault: null },
  { strategy: "recreate", target: "demo", deadlineMs: 0, fault: "memory" },
  { strategy: "surge", target: "demo", deadlineMs: 0, fault: "wedged" },
];

test("streams while their pool is reloaded", async () => {
  const summary = await runReloads({
    seed: Number(process.env.CHAOS_SEED ?? 20_261_121),
    command: sourceCommand,
    reloads: plan,
    streams: 4,
    waiting: 2,
    tokens: 160,
    strategy: "mixed",
    clientCutMs: 300,
    // An engine that never answers costs it; a good one needs a moment on a busy machine.
    loadMs: 10_000,
    say: () => undefined,
  });
  const { reloads_done, reloads_failed, streams_ended, continuations, by_model, seconds } = summary;
  console.info("reloads:", JSON.stringify({ streams_ended, continuations, by_model, seconds }));
  expect(summary.failures).toEqual([]);
  expect([reloads_done, reloads_failed]).toEqual([3, 5]);
  expect(Object.keys(by_model)).toEqual(["copy", "demo", "other"]);
  expect(Object.keys(continuations).some((count) => Number(count) > 0)).toBe(true);
}, 120_000);
