/**
 * Pools: what the file says of them, or what the models folder offers where it says nothing, compiled to
 * PoolSpec. Called by app/config.ts.
 *
 * Always holds: ids are unique, every llamacpp pool has an engine program and a model file, or one that is fetched
 * before it is loaded, and all slots together stay within limits.slotsTotalMax (the process could not talk to more generations at once).
 */
import { basename, join, resolve, sep } from "node:path";
import { bytesOf } from "../domain/devices.ts";
import type { EngineKind } from "../domain/engine-kind.ts";
import { isPoolId } from "../domain/ids.ts";
import { limits } from "../domain/limits.ts";
import type { MockOptions, PoolSpec } from "../domain/pool.ts";
import type { Preemption } from "../domain/preemption.ts";
import type { Workload } from "../domain/task.ts";
import { checkMemoryKeys, checkPlacing, placed } from "./config-devices.ts";
import type { ConfigFiles } from "./config-files.ts";
import { type ModelsSpec, type RemoteModel, resolveRemoteModel } from "./config-models.ts";
import { checkRpc, compileRemote, refuseRemoteKeys } from "./config-pools-remote.ts";
import type { Problems, Segments } from "./config-problems.ts";
import type { FilledPool } from "./config-schema.ts";

/** What a GGUF file says of itself; null where it does not tell. Injected: the reader lives in infra. */
export type ReadModelKind = (path: string) => readonly Workload[] | null;

export interface PoolSurroundings {
  readonly modelsDir: string;
  readonly modelsDirNamed: boolean;
  readonly modelRoots: readonly string[];
  readonly fetch: ModelsSpec["fetch"];
  /** False: the file has problems, an empty list of pools says nothing. */
  readonly whole: boolean;
  readonly engineBin: { readonly path: string } | { readonly missing: string };
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly files: ConfigFiles;
  readonly absolute: (path: string) => string;
  readonly readModelKind: ReadModelKind;
  readonly problems: Problems;
  readonly warnings: string[];
}

export type PoolsFrom = "file" | "models_dir" | "demo";

export function compilePools(
  pools: readonly FilledPool[],
  around: PoolSurroundings,
): { readonly pools: readonly PoolSpec[]; readonly from: PoolsFrom } {
  if (pools.length > 0) return { pools: compileNamed(pools, around), from: "file" };
  if (!around.whole) return { pools: [], from: "file" };
  const found = scanModels(around);
  if (found.length === 0) return { pools: [demoPool()], from: "demo" };
  if ("missing" in around.engineBin) around.problems.of("llama-server", around.engineBin.missing);
  return { pools: found, from: "models_dir" };
}

/** llama-server flags that the daemon sets itself, and the key that says the same. */
const ownFlags: Readonly<Record<string, string>> = {
  "-m": "model",
  "--model": "model",
  "--host": "addr",
  "--port": "addr",
  "--api-key": "auth.keys",
  "--api-key-file": "auth.keys",
  "-np": "slots",
  "--parallel": "slots",
  "-c": "ctx",
  "--ctx-size": "ctx",
  "--rpc": "rpc",
  "--embedding": "workloads",
  "--embeddings": "workloads",
  "--rerank": "workloads",
  "--reranking": "workloads",
};

function compileNamed(pools: readonly FilledPool[], around: PoolSurroundings): PoolSpec[] {
  const { problems } = around;
  const ids = new Map<string, number>();
  let slotsTotal = 0;
  let slotsTold = false;
  const specs: PoolSpec[] = [];
  pools.forEach((pool, index) => {
    const path = ["pools", index] as const;
    const twin = ids.get(pool.id);
    if (twin !== undefined)
      problems.atPath([...path, "id"], `found ${pool.id} again; pools[${twin}] has this id already`);
    else ids.set(pool.id, index);
    if (problems.hasBelow(path)) return;
    slotsTotal += pool.replicas * pool.slots;
    if (slotsTotal > limits.slotsTotalMax && !slotsTold) {
      slotsTold = true;
      const most = `expected at most ${limits.slotsTotalMax} over all pools (replicas × slots)`;
      problems.atPath(
        [...path, "slots"],
        `found ${slotsTotal} slots with this pool and those before it, ${most}`,
      );
    }
    checkMemoryKeys(pool, path, problems);
    checkPlacing(pool, path, problems);
    const own = compilers[pool.engine](pool, path, around);
    if (own !== null) specs.push({ ...common(pool), ...own });
  });
  return specs;
}

const compilers: Readonly<
  Record<EngineKind, (pool: FilledPool, path: Segments, around: PoolSurroundings) => Own | null>
> = { llamacpp: compileLlamacpp, openai: compileOpenai, mock: compileMock };

type Common = Omit<
  PoolSpec,
  "engine" | "modelRef" | "modelPath" | "workloads" | "engineBin" | "mock" | "rpc" | "remote"
>;
type Own = Omit<PoolSpec, keyof Common>;

const common = (pool: FilledPool): Common => ({
  id: pool.id,
  replicas: pool.replicas,
  slots: pool.slots,
  ctx: pool.ctx,
  args: pool.args,
  env: pool.env,
  preload: pool.preload,
  idleUnloadMs: pool.idle_unload_ms,
  queueCapacity: pool.queue.capacity,
  fullPolicy: pool.queue.full_policy,
  price: { per1kTokensIn: pool.price.per_1k_tokens_in, per1kTokensOut: pool.price.per_1k_tokens_out },
  ...placed(pool),
  timeouts: {
    loadMs: pool.timeouts.load_ms,
    firstTokenMs: pool.timeouts.first_token_ms,
    interTokenMs: pool.timeouts.inter_token_ms,
    stopGraceMs: pool.timeouts.stop_grace_ms,
  },
  taskTimeoutMs: pool.timeouts.task_ms,
  preempt: compilePreempt(pool.preempt),
  samplerProfileVersion: pool.sampler_profile_version,
});

/** The schema's defaults fill a map only where there is one. */
function compilePreempt(preempt: FilledPool["preempt"]): Preemption | null {
  if (preempt === false) return null;
  const named = preempt === true ? null : preempt;
  return {
    maxWaitMs: named?.max_wait_ms ?? limits.preemptWaitMsDefault,
    maxCuts: named?.max_cuts ?? limits.preemptCutsDefault,
    minGainMs: named?.min_gain_ms ?? limits.preemptGainMsDefault,
  };
}

function compileOpenai(pool: FilledPool, path: Segments, around: PoolSurroundings): Own | null {
  const compiled = compileRemote(pool, path, around);
  if (compiled === null) return null;
  return {
    engine: "openai",
    ...compiled,
    modelPath: null,
    workloads: pool.workloads ?? ["completion"],
    engineBin: null,
    rpc: [],
    mock: null,
  };
}

function compileMock(pool: FilledPool, path: Segments, { problems }: PoolSurroundings): Own | null {
  const before = problems.found.length;
  refuseRemoteKeys(pool, path, problems);
  if (pool.rpc.length > 0) problems.atPath([...path, "rpc"], "only engine llamacpp takes this", "key");
  if (!/^mock:[a-z0-9._-]+$/.test(pool.model)) {
    problems.atPath(
      [...path, "model"],
      `found ${JSON.stringify(pool.model)}, expected mock:words with engine mock`,
    );
  }
  if (pool.args.length > 0) problems.atPath([...path, "args"], "the mock engine takes no arguments");
  if (Object.keys(pool.env).length > 0)
    problems.atPath([...path, "env"], "the mock engine has no environment");
  if (problems.found.length > before) return null;
  const mock: MockOptions = {
    tokenMs: pool.mock?.token_ms ?? demoMock.tokenMs,
    prefillMsPerToken: pool.mock?.prefill_ms_per_token ?? demoMock.prefillMsPerToken,
    loadMs: pool.mock?.load_ms ?? demoMock.loadMs,
    memoryBytes: bytesOf(pool.mock?.memory_bytes ?? 0),
    faults: (pool.mock?.faults ?? []).map((fault) => ({
      kind: fault.kind,
      nth: fault.nth,
      afterTokens: fault.after_tokens,
      delayMs: fault.delay_ms,
    })),
  };
  return {
    engine: "mock",
    modelRef: pool.model,
    modelPath: null,
    workloads: pool.workloads ?? ["completion"],
    engineBin: null,
    rpc: [],
    remote: null,
    mock,
  };
}

function compileLlamacpp(pool: FilledPool, path: Segments, around: PoolSurroundings): Own | null {
  const { problems } = around;
  const before = problems.found.length;
  if (pool.mock !== null) problems.atPath([...path, "mock"], "only engine mock takes this", "key");
  refuseRemoteKeys(pool, path, problems);
  checkRpc(pool.rpc, path, problems);
  pool.args.forEach((arg, index) => {
    const key = ownFlags[arg.split("=", 1)[0] ?? ""];
    if (key !== undefined)
      problems.atPath([...path, "args", index], `the daemon sets this flag itself; use ${key}`);
  });
  // One llama-server generates, embeds or ranks: its flags exclude each other.
  if (pool.workloads !== null && pool.workloads.length > 1) {
    problems.atPath(
      [...path, "workloads"],
      `found ${pool.workloads.length}, expected one with engine llamacpp; make a pool for each`,
    );
  }
  const model = resolveModel(pool.model, [...path, "model"], around);
  if ("missing" in around.engineBin) problems.atPath([...path, "engine"], around.engineBin.missing);
  if (model === null || "missing" in around.engineBin || problems.found.length > before) return null;
  return {
    engine: "llamacpp",
    ...model,
    workloads: pool.workloads ?? around.readModelKind(model.modelPath) ?? ["completion"],
    engineBin: around.engineBin.path,
    rpc: pool.rpc,
    remote: null,
    mock: null,
  };
}

/** A relative path is relative to models.dir: the file names models, not places. */
function resolveModel(model: string, path: Segments, around: PoolSurroundings): RemoteModel | null {
  const { problems, modelsDir, modelRoots } = around;
  const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(model)?.[1]?.toLowerCase();
  if (scheme === "hf" || scheme === "https" || scheme === "http") {
    const isThere = (place: string): boolean => around.files.facts(place)?.kind === "file";
    return resolveRemoteModel(model, path, { ...around, isThere });
  }
  if (scheme !== undefined && scheme !== "file") {
    const hint = scheme === "mock" ? "; set engine: mock" : "";
    const expected = "file:…, hf:… or https:… with engine llamacpp";
    problems.atPath(path, `found ${JSON.stringify(model)}, expected ${expected}${hint}`);
    return null;
  }
  const named = scheme === undefined ? model : model.slice("file:".length);
  const modelPath = named.startsWith("~") ? around.absolute(named) : resolve(modelsDir, named);
  const roots = modelRoots.length === 0 ? [] : [modelsDir, ...modelRoots];
  if (
    roots.length > 0 &&
    !roots.some((root) => modelPath.startsWith(root.endsWith(sep) ? root : root + sep))
  ) {
    problems.atPath(path, `${modelPath} lies outside models.dir and models.roots (${roots.join(", ")})`);
    return null;
  }
  if (around.files.facts(modelPath)?.kind !== "file") {
    const from = modelPath === named ? "" : ` (relative paths start at models.dir, ${modelsDir})`;
    problems.atPath(path, `no such file: ${modelPath}${from}`);
    return null;
  }
  return { modelRef: scheme === undefined ? `file:${model}` : model, modelPath };
}

const demoMock: MockOptions = { tokenMs: 5, prefillMsPerToken: 0.1, loadMs: 0, memoryBytes: 0, faults: [] };

const unnamed: Omit<
  PoolSpec,
  "id" | "engine" | "modelRef" | "modelPath" | "slots" | "preload" | "workloads" | "engineBin" | "mock"
> = {
  replicas: 1,
  ctx: null,
  args: [],
  env: {},
  idleUnloadMs: null,
  queueCapacity: limits.queueCapacityDefault,
  fullPolicy: "reject",
  price: { per1kTokensIn: 0, per1kTokensOut: 0 },
  devices: [],
  timeouts: {
    loadMs: limits.loadMsDefault,
    firstTokenMs: limits.firstTokenMsDefault,
    interTokenMs: limits.interTokenMsDefault,
    stopGraceMs: limits.stopGraceMsDefault,
  },
  taskTimeoutMs: null,
  preempt: null,
  samplerProfileVersion: "v1",
  rpc: [],
  remote: null,
};

const demoPool = (): PoolSpec => ({
  ...unnamed,
  id: "demo",
  engine: "mock",
  modelRef: "mock:words",
  modelPath: null,
  slots: 8,
  preload: true,
  workloads: ["completion"],
  engineBin: null,
  mock: demoMock,
});

/** Every `*.gguf` of the models folder: one pool each, on demand; a single one is loaded at once. */
function scanModels(around: PoolSurroundings): PoolSpec[] {
  const { modelsDir, files, problems, warnings } = around;
  const listed = files.list(modelsDir);
  if (listed === null) {
    // The default folder need not exist; one that somebody named and that is not there is a slip.
    if (around.modelsDirNamed)
      problems.of(modelsDir, "the models folder cannot be listed; create it or name another");
    return [];
  }
  const names = listed
    .filter((name) => /\.gguf$/i.test(name) && !name.startsWith(".") && !/mmproj/i.test(name))
    .filter((name) => firstPartOf(name) !== null && files.facts(join(modelsDir, name))?.kind === "file")
    .sort((a, b) => (a < b ? -1 : 1));
  const whole = names.filter((name) => {
    const absent = partsOf(name).filter((part) => !listed.includes(part));
    if (absent.length > 0)
      warnings.push(`left out ${join(modelsDir, name)}: ${absent.join(", ")} is not there`);
    return absent.length === 0;
  });
  if (whole.length > limits.poolsMax) {
    const rest = whole.splice(limits.poolsMax);
    warnings.push(
      `left out ${rest.length} models of ${modelsDir}: at most ${limits.poolsMax} pools; name pools in a configuration`,
    );
  }
  const slots = Math.max(1, Math.min(4, Math.floor(limits.slotsTotalMax / Math.max(1, whole.length))));
  const taken = new Set<string>();
  return whole.map((name) => {
    const modelPath = join(modelsDir, name);
    return {
      ...unnamed,
      id: poolIdFor(firstPartOf(name) ?? name, taken),
      engine: "llamacpp",
      modelRef: `file:${name}`,
      modelPath,
      slots,
      preload: whole.length === 1,
      workloads: around.readModelKind(modelPath) ?? ["completion"],
      engineBin: "path" in around.engineBin ? around.engineBin.path : null,
      mock: null,
    };
  });
}

const partPattern = /-(\d{5})-of-(\d{5})\.gguf$/i;

/** The model's name without its part and ending; null for the second and later parts, which the engine opens itself. */
function firstPartOf(name: string): string | null {
  const part = partPattern.exec(name);
  if (part === null) return name.replace(/\.gguf$/i, "");
  return Number(part[1]) === 1 ? name.slice(0, part.index) : null;
}

function partsOf(name: string): string[] {
  const part = partPattern.exec(name);
  if (part === null) return [];
  const ending = name.slice(-".gguf".length);
  return Array.from(
    { length: Number(part[2]) },
    (_, index) => `${name.slice(0, part.index)}-${String(index + 1).padStart(5, "0")}-of-${part[2]}${ending}`,
  );
}

/** A pool id out of a file name: what is not allowed becomes `-`; a number tells twins apart. */
function poolIdFor(name: string, taken: Set<string>): string {
  const plain = basename(name)
    .toLowerCase()
    .replaceAll(/[^a-z0-9._-]+/g, "-");
  const trim = (text: string): string => text.replace(/^[^a-z0-9]+/, "").replace(/[^a-z0-9]+$/, "");
  const stem = trim(trim(plain).slice(0, 60)) || "model";
  let id = stem;
  for (let n = 2; taken.has(id) || !isPoolId(id); n += 1) id = `${stem}-${n}`;
  taken.add(id);
  return id;
}
