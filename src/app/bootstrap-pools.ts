/**
 * The part of the composition root that puts together what operators do to pools: drains, reloads, and the models that
 * reloads gave them. bootstrap.ts calls it.
 */
import { join } from "node:path";
import { SqlitePoolRecords } from "../infra/sqlite/pool-records.ts";
import type { Clock } from "../ports/clock.ts";
import type { ModelFiles } from "../ports/model-source.ts";
import type { PoolStore } from "../ports/pool-store.ts";
import type { ModelGate, PoolControl as PoolsControl, ReplicaControl } from "../ports/supervision.ts";
import { isStoreError } from "../ports/task-store.ts";
import type { Log, Metrics } from "../ports/telemetry.ts";
import type { Catalog } from "../services/catalog.ts";
import type { Dispatcher } from "../services/dispatcher.ts";
import { PoolChanges } from "../services/pool-changes.ts";
import { PoolDrains } from "../services/pool-drain.ts";
import type { PoolExchangeDeps } from "../services/pool-exchange.ts";
import { PoolReloads, type PoolReloadsDeps, type ReloadMemory } from "../services/pool-reload.ts";
import { PoolSpecs } from "../services/pool-specs.ts";
import type { PoolsDeps } from "../services/pools.ts";
import { ReloadTargets } from "../services/reload-targets.ts";
import type { TaskArchive } from "../services/task-archive.ts";
import type { TaskRegistry } from "../services/task-registry.ts";
import type { Config } from "./config.ts";
import { StartError } from "./start-error.ts";

export interface PoolControlParts {
  readonly config: Config;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly control: PoolReloadsDeps["control"] & PoolsControl & Pick<ReplicaControl, "ensurePool">;
  readonly registry: TaskRegistry;
  readonly archive: TaskArchive;
  readonly catalog: Catalog;
  readonly files: ModelFiles;
  readonly models: Pick<ModelGate, "prepare">;
  readonly memory: ReloadMemory & NonNullable<PoolExchangeDeps["memory"]>;
  readonly onFatal: (error: unknown) => void;
}

export interface PoolControl {
  readonly specs: PoolSpecs;
  readonly drains: PoolDrains;
  readonly lends: PoolStore["lends"];
  readonly views: Required<Pick<PoolsDeps, "drainOf" | "reloadOf" | "stagedOf">>;
  /** Once, with the dispatcher that was made of the two above. */
  readonly connect: (dispatcher: Dispatcher) => {
    readonly reloads: PoolReloads;
    readonly changes: PoolChanges;
  };
  readonly stop: () => void;
}

/** With what the last process left. @throws StartError that names the file and says what to do. */
export function openPoolControl(parts: PoolControlParts): PoolControl {
  const { config, clock, log, metrics, control, registry, archive, catalog, files, models, memory, onFatal } =
    parts;
  let dispatcher: Dispatcher | null = null;
  let reloads: PoolReloads | null = null;
  try {
    const store: PoolStore = new SqlitePoolRecords(join(config.stateDir, "pools.sqlite"));
    const specs = new PoolSpecs(config.pools, store.models, log);
    const drains = new PoolDrains({
      clock,
      log,
      store: store.drains,
      isReloading: (poolId) => reloads?.isReloading(poolId) ?? false,
      slotsBusy: (poolId) => dispatcher?.view.slotsBusyIn(poolId) ?? 0,
      tell: (event) => dispatcher?.tell(event) ?? Promise.resolve(),
      retry: (poolId) => control.retryPool(poolId),
    });
    let changes: PoolChanges | null = null;
    const connect: PoolControl["connect"] = (made) => {
      dispatcher = made;
      const targets = new ReloadTargets({ catalog, files });
      reloads = new PoolReloads({
        ...{ clock, log, metrics, control, registry, specs, memory, onFatal },
        dispatcher: made,
        specOf: (taskId) => archive.specOf(taskId),
        targets,
        isDrained: (poolId) => drains.isDrained(poolId),
      });
      const shared = {
        clock,
        log,
        control,
        registry,
        specs,
        drains,
        reloads,
        models,
        memory,
        targets,
        onFatal,
      };
      changes = new PoolChanges({ ...shared, dispatcher: made });
      return { reloads, changes };
    };
    const stop = (): void => {
      changes?.stop();
      reloads?.stop();
      drains.stop();
      store.close();
    };
    const views = {
      drainOf: (poolId: string) => drains.view(poolId),
      reloadOf: (poolId: string) => reloads?.view(poolId) ?? null,
      stagedOf: (poolId: string) => control.stagedSnapshots(poolId),
    };
    return { specs, drains, lends: store.lends, views, connect, stop };
  } catch (error) {
    if (isStoreError(error)) throw new StartError("state_dir", error.message, { cause: error });
    throw error;
  }
}
