/**
 * Between the catalog and the pools: whether a pool's file may be loaded, what has to come first, under which names its
 * model goes, and whether it still takes tasks. The supervisor, admission and the dispatcher ask.
 *
 * Always holds: what is loaded was judged in the same turn, as it lies there; an entry that was found wrong outweighs all
 * others of its file, else one that is trusted is enough.
 */
import { resultOf, type TrustPolicy, trustOf } from "../domain/catalog.ts";
import { isOrchestratorError, OrchestratorError } from "../domain/errors.ts";
import { isRemote, parseModelRef } from "../domain/model-ref.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { ModelFiles } from "../ports/model-source.ts";
import type { ModelGate } from "../ports/supervision.ts";
import type { Log } from "../ports/telemetry.ts";
import type { Catalog } from "./catalog.ts";

export interface PoolModelsDeps {
  readonly catalog: Catalog;
  readonly files: ModelFiles;
  readonly log: Log;
  /** As they are now. */
  readonly rules: { readonly trust: TrustPolicy };
}

export class PoolModels implements ModelGate {
  constructor(private readonly deps: PoolModelsDeps) {}

  /** Other names that a pool's model goes by: the ids of its entries. */
  namesOf({ modelPath }: PoolSpec): readonly string[] {
    return modelPath === null ? [] : this.deps.catalog.at(modelPath).map(({ id }) => id);
  }

  /** Why a pool takes nothing new; null: it does. A model is retired where every entry of its file says so. */
  refusal(pool: PoolSpec): OrchestratorError | null {
    const { catalog } = this.deps;
    const [first, ...more] = pool.modelPath === null ? [] : catalog.at(pool.modelPath);
    if (first === undefined || ![first, ...more].every((entry) => catalog.isRetired(entry))) return null;
    return new OrchestratorError(
      "MODEL_DEPRECATED",
      `the model ${first.id} is retired: name another, see GET /v1/capabilities`,
      { poolId: pool.id, engine: pool.engine, details: { model_id: first.id } },
    );
  }

  gate(pool: PoolSpec): void {
    const { modelPath } = pool;
    if (modelPath === null) return;
    const why = this.#distrust(modelPath);
    if (why !== null)
      throw new OrchestratorError("POOL_UNAVAILABLE", `the model ${pool.modelRef} ${why}`, {
        poolId: pool.id,
        engine: pool.engine,
      });
  }

  /**
   * A model that lies elsewhere is fetched; under strict trust one that has a digest and was not compared with it yet, as it
   * lies there now, is verified. What is wrong afterwards, the load itself tells.
   */
  prepare(pool: PoolSpec): Promise<void> | null {
    const { modelPath } = pool;
    if (modelPath === null || this.deps.catalog.isStopped) return null;
    try {
      this.#begin(pool, modelPath);
    } catch (error) {
      if (!isOrchestratorError(error)) throw error;
      this.deps.log.warn("model_not_prepared", { pool_id: pool.id, human: error.message });
    }
    return this.deps.catalog.running(modelPath);
  }

  #begin({ modelRef }: PoolSpec, modelPath: string): void {
    const { catalog, files, rules } = this.deps;
    if (catalog.running(modelPath) !== null) return;
    const entries = catalog.at(modelPath);
    if (files.locate(modelPath, false).kind === "file") {
      if (rules.trust === "permissive" || this.#distrust(modelPath) === null) return;
      const unknown = entries.find(({ digest }) => digest !== null);
      if (unknown !== undefined) catalog.verify(unknown.id);
      return;
    }
    const parsed = parseModelRef(modelRef);
    if (!parsed.ok || !isRemote(parsed.ref)) return;
    catalog.fetch((entries[0] ?? catalog.enter(parsed.ref)).id);
  }

  /** Why the file is not loaded, as the end of a sentence; null: it may be. */
  #distrust(modelPath: string): string | null {
    const { catalog, files, rules } = this.deps;
    const located = files.locate(modelPath, false);
    const file = located.kind === "file" ? located.file : null;
    const entries = catalog.at(modelPath);
    const verdicts = (entries.length === 0 ? [null] : entries).map((entry) => ({
      trust: trustOf(rules.trust, entry, file),
      refuted: entry?.verification != null && resultOf(entry.verification.reason) === "failed",
    }));
    const wrong = verdicts.find(({ trust, refuted }) => refuted && !trust.trusted);
    const decisive = wrong ?? verdicts.find(({ trust }) => trust.trusted) ?? verdicts[0];
    return decisive === undefined || decisive.trust.trusted ? null : decisive.trust.why;
  }
}
