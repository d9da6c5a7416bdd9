/**
 * The configuration read again as the daemon runs, on a signal or because it has changed: all of it is in force or on its
 * way, or nothing has changed and everybody can see why. bootstrap.ts makes it.
 *
 * Always holds: what was read last counts; what cannot change in a running daemon is told, and what it was at the start
 * stays; a pool that the file says nothing new of is not touched.
 */
import type { Clock } from "../ports/clock.ts";
import type { FileWatch } from "../ports/file-watch.ts";
import type { Log, Metrics } from "../ports/telemetry.ts";
import { type ConfigLoaded, ConfigStatus } from "../services/config-status.ts";
import type { PoolChanges } from "../services/pool-changes.ts";
import type { ApiKeys } from "./api-keys.ts";
import type { Config } from "./config.ts";
import { configDiff, configDigest } from "./config-diff.ts";
import { ConfigWatch } from "./config-watch.ts";
import type { Reread } from "./daemon.ts";
import { asksForKeysStill, type LiveSettings } from "./live-settings.ts";

export interface ConfigReloadDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Pick<Metrics, "configReloaded">;
  readonly files: FileWatch;
  /** As the daemon was started with. */
  readonly config: Config;
  readonly reread: Reread;
  readonly live: LiveSettings;
  readonly pools: Pick<PoolChanges, "want" | "unfinished">;
  /** Who may ask, from now on. */
  readonly admit: (keys: ApiKeys) => void;
  readonly onFatal: (error: unknown) => void;
}

export class ConfigReload {
  readonly status: ConfigStatus;
  readonly #watch: ConfigWatch;
  #now: Config;
  #tries = 0;
  #stopped = false;

  constructor(private readonly deps: ConfigReloadDeps) {
    const { clock, files, config, pools } = deps;
    this.#now = config;
    this.#watch = new ConfigWatch(clock, files, () => this.reload("the file has changed"));
    this.status = new ConfigStatus(this.#loaded(), () => pools.unfinished);
  }

  /** Once. */
  start(): void {
    this.#follow();
  }

  /** The daemon ends. */
  stop(): void {
    this.#stopped = true;
    this.#watch.stop();
  }

  /** Reads it again; what comes of it is told by log, metrics and status. */
  reload(why: string): void {
    if (this.#stopped) return;
    const { clock, log, metrics, reread, live, admit, onFatal } = this.deps;
    const tried = ++this.#tries;
    const sinceMs = clock.nowMs();
    this.#watch.saw();
    const read = reread();
    if (!read.ok) {
      const { problems } = read;
      this.status.refused({ atMs: sinceMs, problems });
      metrics.configReloaded({ result: "failed" });
      const human = `the configuration was read again (${why}) and refused, nothing has changed: ${problems.join("; ")}`;
      log.error("config_refused", { source: this.#now.filePath, problems, human });
      return;
    }
    const { config, keys, warnings } = read;
    const diff = configDiff(this.#now, config);
    this.#now = config;
    live.take(config);
    admit(keys);
    this.#follow();
    this.status.took(this.#loaded());
    for (const warning of warnings) log.warn("config_warning", { human: warning });
    const { strategy, deadlineMs } = config.reload;
    const done = this.deps.pools.want(config.pools, { strategy, deadlineMs });
    const changing = this.deps.pools.unfinished.map(({ poolId, change }) => `${poolId} ${change}`);
    const atNextStart = this.#atNextStart();
    log.info("config_taken", {
      ...{ source: config.filePath, changed: diff.now, pools: changing, at_next_start: atNextStart },
      human: sentence(why, diff.now, changing, atNextStart),
    });
    done.then(() => this.#conclude(tried, sinceMs), onFatal);
  }

  #conclude(tried: number, sinceMs: number): void {
    const { clock, log, metrics, pools } = this.deps;
    if (this.#stopped) return;
    // Of several only the last one is told: what the others wanted is not wanted any more.
    if (tried !== this.#tries) {
      metrics.configReloaded({ result: "canceled" });
      return;
    }
    const failed = pools.unfinished.map(({ poolId }) => poolId);
    metrics.configReloaded({ result: failed.length === 0 ? "done" : "failed" });
    const tookMs = Math.round(clock.nowMs() - sinceMs);
    const human =
      failed.length === 0
        ? `the configuration is in force, after ${tookMs} ms`
        : `the configuration is in force but for pools that stay as they were: ${failed.join(", ")}; GET /v1/config says why`;
    log[failed.length === 0 ? "info" : "error"]("config_in_force", { took_ms: tookMs, failed, human });
  }

  #atNextStart(): readonly string[] {
    const { config } = this.deps;
    const keys = configDiff(config, this.#now).atNextStart;
    return asksForKeysStill(config, this.#now) ? [...keys, "auth.mode"] : keys;
  }

  #loaded(): ConfigLoaded {
    const { filePath, reload } = this.#now;
    return {
      source: filePath,
      watched: reload.watch,
      digest: configDigest(this.#now),
      loadedMs: this.deps.clock.nowMs(),
      atNextStart: this.#atNextStart(),
    };
  }

  #follow(): void {
    const { filePath, poolsFrom, models, reload } = this.#now;
    const modelsDir = poolsFrom === "file" ? null : models.dir;
    this.#watch.follow(reload.watch ? { file: filePath, modelsDir } : null);
  }
}

function sentence(
  why: string,
  changed: readonly string[],
  pools: readonly string[],
  later: readonly string[],
): string {
  const parts = [
    ...(changed.length === 0 ? [] : [`in force now: ${changed.join(", ")}`]),
    ...(pools.length === 0 ? [] : [`pools: ${pools.join(", ")}`]),
    ...(later.length === 0 ? [] : [`takes effect at the next start: ${later.join(", ")}`]),
  ];
  return `the configuration was read again (${why}); ${parts.length === 0 ? "it says nothing new" : parts.join("; ")}`;
}
