/**
 * Which model a reload means, and whether its file is the one that was meant. Called by pool-reload.ts.
 *
 * Always holds: a file that is named over the API lies within models.dir and models.roots; a digest is that of the bytes
 * that lie there now.
 */
import { isOrchestratorError, OrchestratorError } from "../domain/errors.ts";
import { cachePathOf, isRemote, parseModelRef } from "../domain/model-ref.ts";
import type { PoolSpec } from "../domain/pool.ts";
import { isFetchError, type Located, type ModelFiles } from "../ports/model-source.ts";
import type { Catalog } from "./catalog.ts";

export interface ReloadTargetsDeps {
  readonly catalog: Pick<Catalog, "get">;
  readonly files: ModelFiles;
}

export class ReloadTargets {
  constructor(private readonly deps: ReloadTargetsDeps) {}

  /**
   * The pool as it shall be. What it has now, or is configured to have, it may have wherever that lies.
   * @throws INVALID_PARAMS
   */
  resolve(pool: PoolSpec, modelRef: string, digest: string | null, configured: PoolSpec): PoolSpec {
    const known = [pool, configured].find((one) => one.modelRef === modelRef && one.modelPath !== null);
    if (known !== undefined) return { ...pool, modelRef, modelPath: known.modelPath };
    if (pool.engine === "llamacpp") return { ...pool, modelRef, modelPath: this.#fileOf(modelRef) };
    if (digest !== null) throw invalid("digest", `pool ${pool.id} has no model file here: leave digest out`);
    if (pool.engine === "mock" && !/^mock:[a-z0-9._-]+$/.test(modelRef))
      throw invalid("new_model_ref", "a pool of the mock engine takes mock:NAME");
    return { ...pool, modelRef };
  }

  /** What is wrong with the file; null: nothing. A given digest is compared with all of its bytes. */
  async problem(pool: PoolSpec, digest: string | null, signal: AbortSignal): Promise<string | null> {
    const { modelPath } = pool;
    if (modelPath === null) return null;
    const { files } = this.deps;
    if (files.locate(modelPath, false).kind !== "file") return `there is no file ${modelPath}`;
    const header = files.headerProblem(modelPath);
    if (header !== null) return header;
    if (digest === null) return null;
    try {
      const found = await files.digest(modelPath, () => undefined, signal);
      return found === digest ? null : `the digest of ${modelPath} is ${found}, not ${digest}`;
    } catch (error) {
      if (isFetchError(error)) return error.message;
      throw error;
    }
  }

  #fileOf(modelRef: string): string {
    const parsed = parseModelRef(modelRef);
    if (!parsed.ok) throw invalid("new_model_ref", parsed.problem);
    const { ref } = parsed;
    const located =
      ref.kind === "catalog"
        ? this.#entryOf(ref.id)
        : this.deps.files.locate(isRemote(ref) ? cachePathOf(ref) : ref.path, true);
    if (located.kind === "outside")
      throw invalid(
        "new_model_ref",
        "the file lies outside models.dir and models.roots: name one within them",
      );
    if (located.kind === "absent")
      throw invalid(
        "new_model_ref",
        `there is no file ${located.path}${isRemote(ref) ? ": fetch it first, see POST /v1/catalog/models" : ""}`,
      );
    return located.path;
  }

  #entryOf(id: string): Located {
    try {
      return this.deps.catalog.get(id).located;
    } catch (error) {
      if (isOrchestratorError(error) && error.code === "NOT_FOUND")
        throw invalid("new_model_ref", error.message);
      throw error;
    }
  }
}

const invalid = (field: string, message: string): OrchestratorError =>
  new OrchestratorError("INVALID_PARAMS", message, { details: { field } });
