/**
 * Which model a reload means, and whether its file is the one that was meant. Called by pool-reload.ts.
 *
 * Always holds: a file that is named over the API lies within models.dir and models.roots; a digest is that of the bytes
 * that lie there now.
 */
import { isOrchestratorError, OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import { cachePathOf, isRemote, parseModelRef } from "../domain/model-ref.ts";
import { type PoolSpec, type SameModel, sameModelOf } from "../domain/pool.ts";
import { isFetchError, type Located, type ModelFiles } from "../ports/model-source.ts";
import type { Catalog } from "./catalog.ts";

export interface ReloadTargetsDeps {
  readonly catalog: Pick<Catalog, "get">;
  readonly files: ModelFiles;
}

export interface ComparedModel {
  /** None of them continues what the other one said. */
  readonly another: boolean;
  /** For the pool as it shall be; null: there is nothing to tell. */
  readonly sameModel: SameModel | null;
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

  /**
   * Whether `to` is the model that the pool has, as its bytes tell, and not its name. `stamps`: of the files that the
   * pool's engines have loaded; none: none has. Files of different size are not read, others up to the
   * first difference.
   */
  async compared(
    from: PoolSpec,
    to: PoolSpec,
    stamps: readonly (string | null)[],
    signal: AbortSignal,
  ): Promise<ComparedModel> {
    const { files } = this.deps;
    const another: ComparedModel = { another: true, sameModel: null };
    if (from.modelPath === null || to.modelPath === null)
      return from.modelRef === to.modelRef ? { another: false, sameModel: null } : another;
    const stamp = files.stamp(to.modelPath);
    const [loaded = files.stamp(from.modelPath), ...others] = stamps;
    // A file that nobody can see, or one that was replaced between the starts of two engines.
    if (stamp === null || loaded === null || others.some((one) => one !== loaded)) return another;
    const first = sameModelOf(from, { modelStamp: loaded });
    const same = {
      modelRefs: [...new Set([from.modelRef, ...(first?.modelRefs ?? [])])].slice(0, limits.sameModelRefsMax),
      stamp,
      modelPath: first?.modelPath ?? from.modelPath,
      modelStamp: first?.modelStamp ?? loaded,
    };
    if (stamp !== loaded) {
      if (!(await this.#sameBytes(from.modelPath, loaded, to.modelPath, stamp, signal))) return another;
    }
    const isItself =
      stamp === same.modelStamp && to.modelPath === same.modelPath && from.modelRef === to.modelRef;
    return { another: false, sameModel: isItself && first === null ? null : same };
  }

  /** The files with these stamps, and none that were put in their place meanwhile. */
  async #sameBytes(
    path: string,
    stamp: string,
    otherPath: string,
    otherStamp: string,
    signal: AbortSignal,
  ): Promise<boolean> {
    const { files } = this.deps;
    const areThere = () => files.stamp(path) === stamp && files.stamp(otherPath) === otherStamp;
    const sizeOf = (one: string): number | null => {
      const located = files.locate(one, false);
      return located.kind === "file" ? located.file.sizeBytes : null;
    };
    if (!areThere() || sizeOf(path) !== sizeOf(otherPath)) return false;
    try {
      return (await files.sameBytes(path, otherPath, signal)) && areThere();
    } catch (error) {
      if (isFetchError(error)) return false;
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
