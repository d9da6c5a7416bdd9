/**
 * The part of the composition root that puts together who is in memory: devices, needs of models, the keeper and lending.
 * bootstrap.ts calls it.
 */
import { join } from "node:path";
import { limits } from "../domain/limits.ts";
import type { PoolSpec } from "../domain/pool.ts";
import { LlamaCppReckoner } from "../infra/engines/llamacpp-reckoning.ts";
import { ProcHostMemory } from "../infra/host-memory.ts";
import { KeptFile } from "../infra/kept-file.ts";
import type { Clock } from "../ports/clock.ts";
import type { KeptRecords, LendRecord } from "../ports/pool-store.ts";
import type { ModelGate } from "../ports/supervision.ts";
import type { Log, Metrics } from "../ports/telemetry.ts";
import { DeviceLending } from "../services/device-lending.ts";
import { DeviceMemory } from "../services/device-memory.ts";
import type { Dispatcher } from "../services/dispatcher.ts";
import type { GpuMonitor } from "../services/gpu-monitor.ts";
import { ModelNeeds } from "../services/model-needs.ts";
import { ResidencyKeeper } from "../services/residency-keeper.ts";
import type { Supervisor } from "../services/supervisor.ts";
import type { Config } from "./config.ts";
import type { Rules } from "./live-settings.ts";

export interface ResidencyParts {
  readonly config: Config;
  readonly rules: Pick<Rules, "restart">;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly dispatcher: Dispatcher;
  readonly supervisor: Supervisor;
  readonly models: Pick<ModelGate, "prepare">;
  readonly specs: readonly PoolSpec[];
  readonly lends: KeptRecords<LendRecord>;
  readonly gpus: GpuMonitor;
  /** A device that was lent is back. */
  readonly returned: () => void;
  readonly onFatal: (error: unknown) => void;
}

export interface ResidencyWiring {
  readonly keeper: ResidencyKeeper;
  readonly lending: DeviceLending;
  /** Once, when supervisor and cards are. */
  readonly start: () => void;
  readonly stop: () => void;
}

/** The supervisor obeys it from now on. */
export function openResidency(parts: ResidencyParts): ResidencyWiring {
  const { config, rules, clock, log, metrics, dispatcher, supervisor, models, specs, gpus, onFatal } = parts;
  const kept = new KeptFile(join(config.stateDir, "memory-experience.json"), (human) =>
    log.warn("memory_experience_not_kept", { human }),
  );
  const keeper = new ResidencyKeeper({
    ...{ clock, log, metrics, dispatcher, models, specs, onFatal },
    control: supervisor,
    rules: config.residency,
    needs: new ModelNeeds({
      reckoner: new LlamaCppReckoner(),
      kept,
      log,
      processBytes: limits.gpuProcessBytes,
    }),
    devices: () => new DeviceMemory({ configured: config.devices, gpus, host: new ProcHostMemory() }, specs),
    get retryMs() {
      return rules.restart.breakerWindowMs;
    },
  });
  supervisor.obey(keeper);
  const lending = new DeviceLending({
    ...{ clock, log, keeper, store: parts.lends, returned: parts.returned },
    tell: (event) => dispatcher.tell(event),
  });
  const start = (): void => keeper.start(lending.lent);
  const stop = (): void => {
    lending.stop();
    keeper.stop();
  };
  return { keeper, lending, start, stop };
}
