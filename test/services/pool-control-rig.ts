/** Pools that change while they serve: drains, reloads and changes of a rig's pools, put together as bootstrap does. */
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { DrainRecord, ModelRecord } from "../../src/ports/pool-store.ts";
import type { Log } from "../../src/ports/telemetry.ts";
import { PoolChanges, type PoolChangesDeps } from "../../src/services/pool-changes.ts";
import { PoolDrains } from "../../src/services/pool-drain.ts";
import { PoolReloads, type PoolReloadsDeps } from "../../src/services/pool-reload.ts";
import { PoolSpecs } from "../../src/services/pool-specs.ts";
import { MemoryRecords } from "../support/memory-records.ts";
import type { Rig } from "./rig.ts";

/** A rig's `specs`: those of these pools, which `take` is given too. */
export const specsInto =
  (pools: readonly PoolSpec[], take: (specs: PoolSpecs) => void) =>
  (log: Log): readonly PoolSpec[] => {
    const specs = new PoolSpecs(pools, new MemoryRecords<ModelRecord>(), log);
    take(specs);
    return specs.list;
  };

/** Any reference resolves; models are the same where their references are. */
const byName: PoolReloadsDeps["targets"] = {
  resolve: (from, modelRef) => ({ ...from, modelRef }),
  problem: () => Promise.resolve(null),
  compared: async (from, to) => ({ another: from.modelRef !== to.modelRef, sameModel: null }),
};

interface Parts {
  readonly drained?: MemoryRecords<DrainRecord>;
  readonly resolve?: PoolReloadsDeps["targets"]["resolve"];
  readonly models?: NonNullable<PoolChangesDeps["models"]>;
}

export interface PoolControl {
  readonly drains: PoolDrains;
  readonly reloads: PoolReloads;
  readonly changes: PoolChanges;
  stop(): void;
}

/** Of a rig that was started. */
export function poolControl(rig: Rig, specs: PoolSpecs, parts: Parts = {}): PoolControl {
  const { clock, log, metrics, supervisor: control, dispatcher, registry, keeper } = rig;
  const { drained = new MemoryRecords<DrainRecord>(), resolve = byName.resolve, models } = parts;
  const onFatal = (error: unknown): void => void rig.fatal.push(error);
  const targets = { ...byName, resolve };
  const memory = keeper === null ? {} : { memory: keeper };
  const drains: PoolDrains = new PoolDrains({
    ...{ clock, log, store: drained },
    isReloading: (poolId) => reloads.isReloading(poolId),
    retry: (poolId) => control.retryPool(poolId),
    slotsBusy: (poolId) => dispatcher.view.slotsBusyIn(poolId),
    tell: (event) => dispatcher.tell(event),
  });
  const reloads: PoolReloads = new PoolReloads({
    ...{ clock, log, metrics, control, dispatcher, registry, specs, targets, onFatal, ...memory },
    specOf: (taskId) => rig.archive.specOf(taskId),
    isDrained: (poolId) => drains.isDrained(poolId),
  });
  const changes = new PoolChanges({
    ...{ clock, log, control, dispatcher, registry, targets, reloads, drains, specs, onFatal, ...memory },
    ...(models === undefined ? {} : { models }),
  });
  const stop = (): void => {
    changes.stop();
    reloads.stop();
    drains.stop();
  };
  return { drains, reloads, changes, stop };
}
