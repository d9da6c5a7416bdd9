/**
 * The section `models`, compiled: who may be asked for a model, and what may be loaded; and the models of pools that lie
 * elsewhere. Called by app/config.ts and app/config-pools.ts.
 */
import { join } from "node:path";
import type { TrustPolicy } from "../domain/catalog.ts";
import { type AllowedHost, allowedHostForm, judgeHop, parseAllowedHost } from "../domain/fetch-policy.ts";
import { cachePathOf, isRemote, parseModelRef, refText, urlOf } from "../domain/model-ref.ts";
import type { Problems, Segments } from "./config-problems.ts";
import type { FilledConfigFile } from "./config-schema.ts";

export interface ModelsSpec {
  /** Absolute paths. */
  readonly dir: string;
  readonly roots: readonly string[];
  readonly fetch: { readonly enabled: boolean; readonly allowHosts: readonly string[] };
  readonly trust: TrustPolicy;
}

export function compileModels(
  { models }: FilledConfigFile,
  problems: Problems,
): Pick<ModelsSpec, "fetch" | "trust"> {
  const { enabled, allow_hosts: allowHosts } = models.fetch;
  allowHosts.forEach((text, index) => {
    if (parseAllowedHost(text) === null)
      problems.atPath(
        ["models", "fetch", "allow_hosts", index],
        `found ${JSON.stringify(text)}, expected ${allowedHostForm}`,
      );
  });
  return { fetch: { enabled, allowHosts }, trust: models.trust };
}

/** As judged for each request. */
export const allowedOf = ({ fetch }: Pick<ModelsSpec, "fetch">): AllowedHost[] =>
  fetch.allowHosts.flatMap((text) => parseAllowedHost(text) ?? []);

export interface RemoteModel {
  readonly modelRef: string;
  /** Where its file lies once it is fetched. */
  readonly modelPath: string;
}

/** A pool's model by hf: or an address; null: problems say why not. A file that is there needs nobody's leave. */
export function resolveRemoteModel(
  model: string,
  path: Segments,
  around: {
    readonly modelsDir: string;
    readonly fetch: ModelsSpec["fetch"];
    readonly isThere: (path: string) => boolean;
    readonly problems: Problems;
  },
): RemoteModel | null {
  const { modelsDir, fetch, problems } = around;
  const parsed = parseModelRef(model);
  if (!parsed.ok || !isRemote(parsed.ref)) {
    problems.atPath(path, parsed.ok ? `found ${JSON.stringify(model)}, expected a model` : parsed.problem);
    return null;
  }
  if (/-\d{5}-of-\d{5}\.gguf$/i.test(model)) {
    const instead = "enter each part into the catalog with fetch, then name the first by file:";
    problems.atPath(path, `found a part of a model, which is not fetched as a whole; ${instead}`);
    return null;
  }
  const modelPath = join(modelsDir, cachePathOf(parsed.ref));
  if (!around.isThere(modelPath)) {
    const verdict = judgeHop(urlOf(parsed.ref), allowedOf({ fetch }));
    const why = !fetch.enabled ? "models.fetch.enabled is false" : verdict.ok ? null : verdict.why;
    if (why !== null) {
      problems.atPath(path, `${modelPath} is not there and cannot be fetched: ${why}`);
      return null;
    }
  }
  return { modelRef: refText(parsed.ref), modelPath };
}
