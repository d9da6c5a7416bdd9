/** The configuration read again: all of it taken, or nothing and everybody can see why (ORCHD-CONF-1). */
import { expect, test } from "bun:test";
import { ApiKeys } from "../../src/app/api-keys.ts";
import { ConfigReload } from "../../src/app/config-reload.ts";
import type { Reread } from "../../src/app/daemon.ts";
import { LiveSettings } from "../../src/app/live-settings.ts";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { UnfinishedChange } from "../../src/services/pool-changes.ts";
import { RecordingLog, RecordingMetrics } from "../services/rig.ts";
import { compiled, mockPool } from "../support/config-files.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

function running(first: string) {
  const clock = new VirtualClock();
  const [log, metrics] = [new RecordingLog(), new RecordingMetrics()];
  const config = compiled(`${first}\n${mockPool("")}`);
  const live = new LiveSettings(config);
  const world = {
    next: { ok: false, problems: ["nothing yet"] } as ReturnType<Reread>,
    wanted: [] as (readonly PoolSpec[])[],
    /** Ends of `want`, in their order. */
    ends: [] as (() => void)[],
    unfinished: [] as UnfinishedChange[],
    followed: [] as unknown[],
    keys: 0,
  };
  const reload = new ConfigReload({
    ...{ clock, log, metrics, config, live },
    files: {
      follow: (watched) => {
        world.followed.push(watched);
        return { print: () => "", close: () => world.followed.push(null) };
      },
    },
    reread: () => world.next,
    pools: {
      want: (pools) => {
        world.wanted.push(pools);
        return new Promise((resolve) => world.ends.push(resolve));
      },
      get unfinished() {
        return world.unfinished;
      },
    },
    admit: (keys) => {
      world.keys = keys.size;
    },
    onFatal: (error) => {
      throw error;
    },
  });
  const text = (more: string): ReturnType<Reread> => {
    const next = compiled(`${more}\n${mockPool("")}`);
    return { ok: true, config: next, keys: new ApiKeys(next.auth.keys), warnings: ["mind this"] };
  };
  return { world, reload, live, log, metrics, text, clock };
}

test("what is refused changes nothing, is logged once with all that is wrong, counted and told", () => {
  const { world, reload, live, log, metrics } = running("sessions: { max_turns: 3 }");
  const before = reload.status.view();
  world.next = { ok: false, problems: ["F:1:1: adr: unknown key; did you mean addr?", "F:2:1: x"] };
  reload.reload("SIGHUP");
  const { lastError, ...rest } = reload.status.view();
  expect(rest).toEqual({ ...before, lastError: undefined } as never);
  expect(lastError?.problems).toEqual(world.next.problems);
  expect([world.wanted, live.rules.sessions.turnsMax]).toEqual([[], 3]);
  const [line, ...more] = log.of("config_refused");
  expect([String(line?.human), more.length]).toEqual([
    expect.stringContaining("did you mean addr?; F:2:1: x"),
    0,
  ]);
  expect(metrics.of("configReloaded")).toEqual([[{ result: "failed" }]]);
});

test("what is taken holds at once, says what waits for the next start, and is counted when the pools are as it says", async () => {
  const { world, reload, live, log, metrics, text } = running("addr: 127.0.0.1:1");
  world.next = text("addr: 127.0.0.1:2\nsessions: { max_turns: 3 }");
  reload.reload("SIGHUP");
  expect(live.rules.sessions.turnsMax).toBe(3);
  expect(world.wanted).toHaveLength(1);
  expect(reload.status.view()).toMatchObject({ generation: 2, lastError: null, atNextStart: ["addr"] });
  expect(log.of("config_taken")[0]?.human).toBe(
    "the configuration was read again (SIGHUP); in force now: sessions; takes effect at the next start: addr",
  );
  expect(log.of("config_warning")).toEqual([{ human: "mind this" }]);
  expect(metrics.of("configReloaded")).toEqual([]);
  world.ends.shift()?.();
  await Promise.resolve();
  await Promise.resolve();
  expect(metrics.of("configReloaded")).toEqual([[{ result: "done" }]]);
  // The same once more: nothing new, and what waits waits still.
  reload.reload("SIGHUP");
  expect(reload.status.view()).toMatchObject({ generation: 2, atNextStart: ["addr"] });
  world.next = text("addr: 127.0.0.1:1");
  reload.reload("SIGHUP");
  expect(reload.status.view()).toMatchObject({ generation: 3, atNextStart: [] });
});

test("a daemon that others reach goes on asking for keys until it listens on a loopback address", () => {
  const { world, reload, live, text } = running("addr: 0.0.0.0:8080");
  world.next = text("addr: 127.0.0.1:8080\nauth: { mode: off }");
  reload.reload("SIGHUP");
  expect(live.rules.http.authMode).toBe("required");
  expect(reload.status.view().atNextStart).toEqual(["addr", "auth.mode"]);
  world.next = text("addr: 127.0.0.1:8080\nauth: { mode: loopback-open }");
  reload.reload("SIGHUP");
  expect(live.rules.http.authMode).toBe("loopback-open");
  expect(reload.status.view().atNextStart).toEqual(["addr"]);
});

test("of two the later one counts; pools that stay as they were make it fail", async () => {
  const { world, reload, log, metrics, text } = running("");
  world.next = text("sessions: { max_turns: 3 }");
  reload.reload("SIGHUP");
  world.next = text("sessions: { max_turns: 4 }");
  reload.reload("SIGHUP");
  world.unfinished = [{ poolId: "chat", change: "changed", problem: "no memory" }];
  for (const end of world.ends) end();
  await Promise.resolve();
  await Promise.resolve();
  expect(metrics.of("configReloaded")).toEqual([[{ result: "canceled" }], [{ result: "failed" }]]);
  expect(log.of("config_in_force")).toMatchObject([{ failed: ["chat"] }]);
  expect(reload.status.view().pools).toEqual(world.unfinished);
});

test("watches as the file says, and nothing once the daemon ends", () => {
  const { world, reload, text, clock } = running("");
  reload.start();
  expect(world.followed).toEqual([{ file: "/etc/orchestratord/config.yaml", modelsDir: null }]);
  world.next = text("reload: { watch: false }");
  reload.reload("SIGHUP");
  expect(world.followed.at(-1)).toBeNull();
  world.next = text("");
  reload.reload("SIGHUP");
  expect(world.followed).toHaveLength(3);
  reload.stop();
  reload.reload("SIGHUP");
  expect([world.wanted.length, clock.pendingTimers]).toEqual([2, 0]);
});

test("how failed starts are tried again holds at once, for who asks for memory as well", () => {
  const { live } = running("");
  expect(live.rules.restart.breakerWindowMs).toBe(60_000);
  const { restart } = live.rules;
  live.take(compiled(`restart: { breaker_window_ms: 5 }\n${mockPool("")}`));
  expect(restart.breakerWindowMs).toBe(5);
});
