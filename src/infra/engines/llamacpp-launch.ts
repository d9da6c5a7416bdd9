/**
 * How a llama-server is started for a pool: its command line, environment, key file and socket. Pure but for the
 * model file's header, which sizes the context. The adapter (llamacpp.ts) calls it.
 *
 * The socket lies in `runDir`, which the process host keeps at mode 0700: whatever the engine's umask, nobody
 * else reaches it. The key is a second lock for the case that it listens on loopback TCP.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { assert } from "../../domain/assert.ts";
import type { DevicePlan } from "../../domain/device-plan.ts";
import { limits } from "../../domain/limits.ts";
import type { PoolSpec } from "../../domain/pool.ts";
import type { Workload } from "../../domain/task.ts";
import type { GgufHeader } from "./gguf-header.ts";

/** Tokens per slot when the pool asks for none: what the model can, but not a large model's whole window. */
const ctxUnaskedMax = 8192;
/** Where neither the pool nor the model file says. */
const ctxUnknown = 4096;
/** Prompts that lost their slot, kept on the host. The engine's own default is 8 GiB. */
const cacheRamMib = 512;
/**
 * Tokens per batch. Only between two batches does the engine notice that a client has gone, and only then do the
 * other slots get their next token. Without an accelerator 512 tokens of prompt take seconds, and batches of 64
 * read a prompt as fast (measured: 137 tokens/s with either; slot free after an abort in 0.7 s instead of 3.7 s).
 */
const batchTokens = { accelerated: 512, plain: 64 } as const;

export interface LaunchInput {
  readonly pool: PoolSpec;
  readonly replicaId: string;
  readonly runDir: string;
  /** Null: the file could not be read; the engine's own message then says why. */
  readonly header: GgufHeader | null;
  /** The daemon's environment, of which the engine gets a part. */
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly hardwareThreads: number;
  /** There seems to be a GPU. */
  readonly accelerated: boolean;
  /** Cards that it is to use or not to see; absent: nothing is said of them. */
  readonly devices?: DevicePlan;
  /** Path of util-linux's setpriv, or null. */
  readonly setpriv: string | null;
}

export interface Launch {
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly keyPath: string;
  /** Null: loopback TCP. */
  readonly socketPath: string | null;
  readonly workload: Workload;
}

export function launch(input: LaunchInput): Launch {
  const { pool } = input;
  assert(pool.engineBin !== null && pool.modelPath !== null, `pool ${pool.id} names an engine and a model`);
  assert(/^[\w.-]+$/.test(input.replicaId), "a replica id is a file name");
  const keyPath = join(input.runDir, `${input.replicaId}.key`);
  const socket = join(input.runDir, `${input.replicaId}.sock`);
  const socketPath = Buffer.byteLength(socket) <= limits.unixSocketPathCharsMax ? socket : null;
  const workload = workloadOf(pool.workloads);
  const ctx = contextPerSlot(pool.ctx, input.header?.contextLength ?? null);
  const command = [
    // Dies with the daemon, kill -9 included; the supervisor's sweep covers machines without util-linux.
    ...(input.setpriv === null ? [] : [input.setpriv, "--pdeathsig", "SIGKILL", "--"]),
    pool.engineBin,
    ...["-m", pool.modelPath],
    ...(socketPath === null ? ["--host", "127.0.0.1", "--port", "0"] : ["--host", socketPath]),
    ...["--api-key-file", keyPath],
    ...["--no-ui", "--cors-origins", "localhost", "--offline"],
    // One slot's overflow must not end the others' streams: each has its own part of the cache.
    ...["-np", String(pool.slots), "--no-kv-unified", "-c", String(pool.slots * ctx)],
    ...(pool.rpc.length === 0 ? [] : ["--rpc", pool.rpc.join(",")]),
    ...(input.devices?.args ?? []),
    ...["--cache-ram", String(cacheRamMib)],
    // Without it the engine does not erase a slot either; nothing is ever saved there.
    ...["--slot-save-path", input.runDir],
    ...batchFlags(batchOf(pool.slots, workload, ctx, input.accelerated && input.devices?.hostOnly !== true)),
    ...(asksFor(pool.args, ["-t", "--threads"])
      ? []
      : ["-t", String(Math.max(1, input.hardwareThreads - 1))]),
    ...workloadFlags(workload, input.header),
    ...["--log-jsonl", "-lv", "3"],
    // Last: what the operator says wins.
    ...pool.args,
  ];
  return { command, env: environment(input), keyPath, socketPath, workload };
}

/** One engine process serves one kind of work: a llama-server started for embeddings crashes on a completion. */
export function workloadOf(workloads: readonly Workload[]): Workload {
  if (workloads.includes("completion") || workloads.length === 0) return "completion";
  return workloads.includes("rerank") ? "rerank" : "embedding";
}

/** The engine allocates what `-c` says even where its slots cannot use it: never more than the model was trained for. */
export function contextPerSlot(asked: number | null, trained: number | null): number {
  if (asked === null) return Math.min(trained ?? ctxUnknown, ctxUnaskedMax);
  return trained === null ? asked : Math.min(asked, trained);
}

/** An embedding or rerank input must fit in one physical batch. `ubatch` null: the engine's own. */
export function batchOf(
  slots: number,
  workload: Workload,
  ctx: number,
  accelerated: boolean,
): { readonly batch: number; readonly ubatch: number | null } {
  if (workload === "completion") {
    // All slots' next tokens must fit in one batch.
    return { batch: Math.max(slots, batchTokens[accelerated ? "accelerated" : "plain"]), ubatch: null };
  }
  const batch = Math.max(batchTokens.accelerated, Math.min(ctx, ctxUnaskedMax));
  return { batch, ubatch: batch };
}

const batchFlags = ({ batch, ubatch }: ReturnType<typeof batchOf>): string[] => [
  ...["-b", String(batch)],
  ...(ubatch === null ? [] : ["-ub", String(ubatch)]),
];

/** NVIDIA, AMD compute, and whatever renders: only how large a batch may be depends on them. */
const acceleratorDevices = ["/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128"];

export const isAccelerated = (): boolean =>
  process.platform === "darwin" || acceleratorDevices.some((path) => existsSync(path));

function workloadFlags(workload: Workload, header: GgufHeader | null): string[] {
  if (workload === "rerank") return ["--rerank"];
  if (workload === "completion") return [];
  // 0: the file says "none", which the embeddings API cannot answer with.
  const pooled = header !== null && header.poolingType !== null && header.poolingType > 0;
  return pooled ? ["--embeddings"] : ["--embeddings", "--pooling", "mean"];
}

const asksFor = (args: readonly string[], flags: readonly string[]): boolean =>
  args.some(
    (arg) => flags.includes(arg) || flags.some((flag) => flag.startsWith("--") && arg.startsWith(`${flag}=`)),
  );

/**
 * What the engine may see of the daemon's environment. Not LLAMA_ARG_*, which would change the command line
 * unseen, and nothing unknown: the daemon's own variables may hold keys.
 */
const passedNames = new Set([
  ...[
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TZ",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
  ],
  ...["DRI_PRIME", "MESA_SHADER_CACHE_DIR"],
]);
const passedPrefixes = [
  ...["LC_", "CUDA_", "NVIDIA_", "HIP_", "HSA_", "ROCR_", "ROCM_", "GPU_", "AMD_", "MIOPEN_"],
  ...["ZE_", "ZES_", "SYCL_", "ONEAPI_", "VK_", "GGML_", "OMP_", "KMP_", "MKL_", "OPENBLAS_"],
];

function environment(input: LaunchInput): Record<string, string> {
  const env: Record<string, string> = {};
  for (const [name, value] of Object.entries(input.env)) {
    if (value === undefined) continue;
    if (passedNames.has(name) || passedPrefixes.some((prefix) => name.startsWith(prefix))) env[name] = value;
  }
  // An abort with a debugger's backtrace takes a quarter of a second longer.
  return { ...env, ...input.devices?.env, GGML_NO_BACKTRACE: "1", ...input.pool.env };
}
