/** The part of the composition root that puts the model catalog together. bootstrap.ts calls it. */
import { join } from "node:path";
import { isGgufError, readGgufHeader } from "../infra/engines/gguf-header.ts";
import { HttpModelSource } from "../infra/models/http-model-source.ts";
import { LocalModelFiles } from "../infra/models/local-model-files.ts";
import { SqliteModelCatalog } from "../infra/sqlite/model-catalog.ts";
import type { Clock, Entropy } from "../ports/clock.ts";
import { isStoreError } from "../ports/task-store.ts";
import type { Log, Metrics } from "../ports/telemetry.ts";
import { Catalog } from "../services/catalog.ts";
import { ModelDigests } from "../services/model-digests.ts";
import { PoolModels } from "../services/pool-models.ts";
import type { Config } from "./config.ts";
import type { Rules } from "./live-settings.ts";
import { StartError } from "./start-error.ts";

export interface CatalogParts {
  readonly config: Config;
  /** As they are now. */
  readonly rules: Rules["models"];
  readonly clock: Clock;
  readonly entropy: Entropy;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly onFatal: (error: unknown) => void;
}

/** Started; `stop` ends it. @throws StartError that names the file and says what to do. */
export function openCatalog({ config, rules, clock, entropy, log, metrics, onFatal }: CatalogParts): {
  readonly catalog: Catalog;
  readonly poolModels: PoolModels;
  readonly files: LocalModelFiles;
  readonly digests: ModelDigests;
  readonly stop: () => Promise<void>;
} {
  const files = new LocalModelFiles(rules, headerProblem);
  try {
    const catalog = new Catalog({
      store: new SqliteModelCatalog(join(config.stateDir, "models.sqlite")),
      source: new HttpModelSource({
        ...{ clock, entropy, headerProblem },
        get allowed() {
          return rules.allowed;
        },
      }),
      files,
      clock,
      log,
      metrics,
      rules,
      onFatal,
    });
    catalog.start();
    const digests = new ModelDigests(files, log);
    const stop = async (): Promise<void> => {
      await digests.stop();
      await catalog.stop();
    };
    return { catalog, poolModels: new PoolModels({ catalog, files, log, rules }), files, digests, stop };
  } catch (error) {
    if (isStoreError(error)) throw new StartError("state_dir", error.message, { cause: error });
    throw error;
  }
}

function headerProblem(path: string): string | null {
  try {
    readGgufHeader(path);
    return null;
  } catch (error) {
    if (isGgufError(error)) return error.message;
    throw error;
  }
}
