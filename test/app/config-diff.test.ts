/**
 * What of another configuration a running daemon takes up, what waits for the next start, and that the objects which
 * components hold on to say what is in force (ORCHD-CONF-4).
 */
import { describe, expect, test } from "bun:test";
import type { Config } from "../../src/app/config.ts";
import { configDiff, configDigest } from "../../src/app/config-diff.ts";
import { LiveSettings } from "../../src/app/live-settings.ts";
import { compiled, compileText, digest, machine, mockPool, valid } from "../support/config-files.ts";

const of = (text: string, disk = machine): Config => compiled(`${text}\n${mockPool("")}`, { disk });

describe("what differs", () => {
  const table: [string, string, string, readonly string[], readonly string[]][] = [
    ["nothing", "log: { level: info }", "", [], []],
    ["the log's level", "log: { level: debug }", "", ["log.level"], []],
    ["a key", `auth: { keys: [{ id: a, sha256: "${digest}" }] }`, "", ["auth.keys"], []],
    ["the mode", "auth: { mode: loopback-open }", "", ["auth.mode"], []],
    ["an address", "addr: 127.0.0.1:1", "addr: 127.0.0.1:2", [], ["addr"]],
    ["the state folder", "state_dir: /a", "state_dir: /b", [], ["state_dir", "artifacts.root"]],
    ["swaps", "residency: { swap_max_wait_ms: 5 }", "", [], ["residency"]],
    ["durability", "storage: { durability: process }", "", [], ["storage"]],
    [
      "fairness",
      "admission: { fair: per-key, batch_max_wait_ms: 5 }",
      "",
      ["admission.batch_max_wait_ms"],
      ["admission.fair"],
    ],
    [
      "artifacts",
      "artifacts: { root: /x, max_bytes: 1048576, transcripts: off }",
      "",
      ["artifacts.max_bytes", "artifacts.transcripts"],
      ["artifacts.root"],
    ],
    ["a bound of documents", "limits: { artifact_bytes: 2048 }", "", ["limits.artifact_bytes"], []],
    [
      "sessions, tasks, streams",
      "sessions: { ttl_ms: 5000 }\ntasks: { max_attempts: 2 }\nstreaming: { microbatch_ms: 20 }",
      "",
      ["sessions", "tasks", "streaming"],
      [],
    ],
    ["models", "models: { fetch: { enabled: false }, trust: strict }", "", ["models"], []],
    [
      "restarts, the shutdown, reloads",
      "restart: { backoff_ms: 9 }\nshutdown: { drain_deadline_ms: 1 }\nreload: { watch: false }",
      "",
      ["restart", "shutdown", "reload"],
      [],
    ],
  ];
  test.each(table)("%s", (_, one, other, now, atNextStart) => {
    expect(configDiff(of(one), of(other))).toEqual({ now: [...now], atNextStart: [...atNextStart] });
    expect(configDiff(of(one), of(one))).toEqual({ now: [], atNextStart: [] });
  });

  test("a credential that was changed where it lies differs, and is not in the digest's text", () => {
    const s3 =
      "artifacts: { s3: { endpoint: https://s3.example, bucket: traces, region: r, access_key_id_file: /k, secret_access_key_file: /s } }";
    const at = (secret: string) => of(s3, { ...machine, "/k": "an-id", "/s": secret });
    expect(configDiff(at("one-secret"), at("two-secret")).atNextStart).toEqual(["artifacts.s3"]);
    expect(configDigest(at("one-secret"))).not.toBe(configDigest(at("two-secret")));
    expect(configDigest(at("one-secret"))).toBe(configDigest(at("one-secret")));
  });
});

describe("what components hold on to", () => {
  test("says what was taken last, and whoever asked for it is told", () => {
    const live = new LiveSettings(of(""));
    const { sessions, streams, dispatcher, artifacts, http, models, rateLimits, shutdown } = live.rules;
    const told: string[] = [];
    live.whenTaken(({ logLevel }) => told.push(logLevel));
    live.take(
      of(`log: { level: warn }
sessions: { ttl_ms: 5000, max_turns: 3 }
streaming: { heartbeat_ms: 700, microbatch_ms: 20 }
limits: { streams_per_key: 4, body_bytes: 2048, rate: { per_second: 5, burst: 6 } }
tasks: { cut_at_deadline: true }
artifacts: { max_bytes: 1048576, max_age_days: 2 }
models: { fetch: { enabled: false }, trust: strict, dir: /elsewhere }
auth: { mode: loopback-open, keys: [{ id: a, sha256: "${digest}", budget: { tokens: 9, window_ms: 1000 } }] }
shutdown: { drain_deadline_ms: 1 }`),
    );
    expect(sessions).toMatchObject({ ttlMs: 5000, turnsMax: 3 });
    expect(streams).toMatchObject({ heartbeatMs: 700, microbatchMs: 20, streamsPerKeyMax: 4 });
    expect(dispatcher.cutAtDeadline).toBe(true);
    expect(artifacts).toMatchObject({ bytesMax: 1048576, maxAgeMs: 2 * 86_400_000 });
    expect(http).toEqual({ authMode: "loopback-open", bodyBytesMax: 2048, rate: { perSecond: 5, burst: 6 } });
    expect(models).toMatchObject({ trust: "strict", fetch: { enabled: false }, dir: "/elsewhere" });
    expect(rateLimits).toEqual({ requestsPerSecond: 5, burst: 6, streamsPerKey: 4 });
    expect(live.rules.keys.allowances.get("a")).toMatchObject({ windowMs: 1000, budget: { tokens: 9 } });
    expect([shutdown.drainDeadlineMs, told]).toEqual([1, ["warn"]]);
  });
});

describe("the section reload", () => {
  test("has its defaults, and comes out of --check-config as it is", () => {
    expect(of("").reload).toEqual({ watch: true, strategy: "recreate", deadlineMs: 30_000 });
    const { reload } = of("reload: { watch: false, strategy: surge, deadline_ms: 5 }");
    expect(reload).toEqual({ watch: false, strategy: "surge", deadlineMs: 5 });
  });

  test("refuses what it does not know", () => {
    const result = compileText("reload: { strategy: rolling, wach: true }");
    expect(result.ok).toBe(false);
    expect(valid(compileText(mockPool(""))).reload.watch).toBe(true);
  });
});
