/**
 * A short run of scripts/chaos.ts: streams on the real engine while its processes, the daemon and the clients'
 * connections are killed. Each ends well, numbered without gaps over all connections, with the bytes of an uncut
 * run (ORCHD-ATT-1, ORCHD-ATT-2, ORCHD-DUR-2, ORCHD-STREAM-2); nothing is left behind. The long run is the script's.
 */
import { expect, test } from "bun:test";
import { type ChaosOptions, type ChaosSummary, runChaos } from "../../scripts/chaos/run.ts";
import { sourceCommand } from "../support/daemon.ts";

const seed = Number(process.env.CHAOS_SEED ?? 20_261_121);

async function chaos(name: string, more: Partial<ChaosOptions>): Promise<ChaosSummary> {
  const summary = await runChaos({
    seed,
    command: sourceCommand,
    durationMs: 6_000,
    streams: 6,
    tokens: 160,
    replicas: 1,
    engineKillMs: 900,
    daemonKillMs: 2_500,
    clientCutMs: 300,
    temperature: 0,
    strict: false,
    // Kills come whatever a task has said by then: a few in a row may leave it no time for a token.
    maxAttempts: 20,
    say: () => undefined,
    ...more,
  });
  const { streams_ended, engine_kills, daemon_kills, continuations, longest_pause_ms } = summary;
  const shown = { streams_ended, engine_kills, daemon_kills, continuations, longest_pause_ms };
  console.info(`chaos, ${name}: seed ${seed}`, JSON.stringify(shown));
  expect(summary.failures).toEqual([]);
  expect(engine_kills).toBeGreaterThan(1);
  expect(daemon_kills).toBeGreaterThan(0);
  expect(Object.keys(continuations).some((count) => Number(count) > 0)).toBe(true);
  return summary;
}

test("greedy streams under kills", async () => {
  const { streams_ended, reconnects } = await chaos("greedy", {});
  expect(streams_ended).toBeGreaterThanOrEqual(6);
  expect(reconnects).toBeGreaterThan(0);
}, 90_000);

test("sampled and strict streams under kills, two replicas", async () => {
  const more = { streams: 3, tokens: 96, replicas: 2, temperature: 0.8, strict: true };
  const { exact } = await chaos("strict", more);
  expect(Object.keys(exact)).toEqual(["yes"]);
}, 90_000);
