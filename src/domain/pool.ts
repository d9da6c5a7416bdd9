/**
 * Pools and replicas as data: what the configuration says of a pool, and what is known of each replica now.
 * Compiled once by app/config.ts; read by the scheduler, the supervisor and the API.
 */
import type { EngineKind } from "./engine-kind.ts";
import type { MemoryParts } from "./model-memory.ts";
import type { Preemption } from "./preemption.ts";
import type { Workload } from "./task.ts";

export interface PoolTimeouts {
  readonly loadMs: number;
  readonly firstTokenMs: number;
  readonly interTokenMs: number;
  readonly stopGraceMs: number;
}

/** One scripted fault of the mock engine: applies to the nth generation (1-based) or to all of them. */
export interface MockFault {
  readonly kind:
    | "crash"
    | "stall"
    | "late"
    | "torn_utf8"
    | "wrong_status"
    | "diverge"
    | "never_ready"
    | "load_failure";
  /** 1-based number of the generation it applies to; null: every one. */
  readonly nth: number | null;
  /** It strikes after this many tokens. */
  readonly afterTokens: number;
  /** Milliseconds, for kind `late`. */
  readonly delayMs: number;
}

export interface MockOptions {
  readonly tokenMs: number;
  readonly prefillMsPerToken: number;
  readonly loadMs: number;
  /** What it counts as on each of its devices; absent: nothing. */
  readonly memoryBytes?: number;
  readonly faults: readonly MockFault[];
}

export const fullPolicies = ["reject", "drop-lru", "shed-low-priority"] as const;
/** What a full queue does (ORCHD-ADM-1). */
export type FullPolicy = (typeof fullPolicies)[number];

/** Cost units for a thousand tokens. */
export interface Price {
  readonly per1kTokensIn: number;
  readonly per1kTokensOut: number;
}

/** What answers at a remote server's address; auto: it is asked. */
export const remoteKinds = ["auto", "vllm", "sglang", "tgi", "llama-server", "other"] as const;
export type RemoteKind = (typeof remoteKinds)[number];

/** An engine that runs elsewhere and that nobody here starts. */
export interface RemoteServer {
  /** http or https, without a slash at the end; with the path before `/completions`, as in http://gpu:8000/v1. */
  readonly baseUrl: string;
  readonly kind: RemoteKind;
  /** Null: the server asks for none. */
  readonly key: RemoteKey | null;
}

/** A key and where it came from; what holds the text shows it to nobody who does not ask for it. */
export interface RemoteKey {
  readonly from: "file" | "env";
  /** Absolute path, or the variable's name. */
  readonly name: string;
  readonly secret: { reveal(): string };
}

export interface PoolSpec {
  readonly id: string;
  readonly engine: EngineKind;
  /** As the client names it: file:…, mock:words, or as a remote server names it. */
  readonly modelRef: string;
  /** Absolute path of the GGUF file; null for the mock engine and remote servers. */
  readonly modelPath: string | null;
  readonly replicas: number;
  readonly slots: number;
  /** Tokens per slot asked for; null: what the model was trained with, within bounds. */
  readonly ctx: number | null;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly preload: boolean;
  /** Unloaded after so long without a task; null: never for that. Only without preload. */
  readonly idleUnloadMs: number | null;
  readonly queueCapacity: number;
  readonly fullPolicy: FullPolicy;
  readonly price: Price;
  /** Where its model lies, by name (domain/devices.ts); empty: every graphics card, else the host. */
  readonly devices: readonly string[];
  /** Those of each replica by its number; null or absent: domain/device-plan.ts deals them out. */
  readonly replicaDevices?: readonly (readonly string[])[] | null;
  readonly timeouts: PoolTimeouts;
  /** All attempts of a task together may run so long, ms; null: nothing bounds that. */
  readonly taskTimeoutMs: number | null;
  /** Null: no batch task is cut for an interactive one. */
  readonly preempt: Preemption | null;
  readonly samplerProfileVersion: string;
  readonly workloads: readonly Workload[];
  /** Engine program; null for the mock engine and remote servers. */
  readonly engineBin: string | null;
  /** host:port of llama.cpp's RPC servers that hold a part of the model; empty: all of it is here. */
  readonly rpc: readonly string[];
  /** Null: the engine runs on this machine. */
  readonly remote: RemoteServer | null;
  readonly mock: MockOptions | null;
  /** Absent or null: no reload found its model's bytes under another name. */
  readonly sameModel?: SameModel | null;
}

/** Names and files that a reload found to be the same model as the pool's file, byte by byte. */
export interface SameModel {
  readonly modelRefs: readonly string[];
  /** Of the pool's file when it was compared; of another one nothing is known. */
  readonly stamp: string;
  /** The file that engines loaded first, for which all of them stand. */
  readonly modelPath: string;
  readonly modelStamp: string;
}

/** Null: the engine has loaded a file of which nothing is known. */
export const sameModelOf = (
  { sameModel }: Pick<PoolSpec, "sameModel">,
  { modelStamp }: Pick<EngineIdentity, "modelStamp">,
): SameModel | null =>
  sameModel !== undefined && sameModel !== null && sameModel.stamp === modelStamp ? sameModel : null;

/** `engineVersion` of an engine that does not say it. */
export const unknownVersion = "unknown";

/** What an engine says of itself once it is ready. */
export interface EngineIdentity {
  readonly engine: EngineKind;
  /** e.g. b11669-Debian */
  readonly engineVersion: string;
  readonly slots: number;
  /** Tokens of context per slot. */
  readonly ctxPerSlot: number;
  readonly modelPath: string | null;
  /** Tells two files of that path apart: size, inode and time of change; null: there is no file, or none to be seen. */
  readonly modelStamp: string | null;
  readonly modelSizeBytes: number | null;
  readonly modelParams: number | null;
  readonly ctxTrain: number | null;
  /** What it can beside the plain workloads, as capabilities name it; absent: what every engine of its kind can. */
  readonly features?: readonly string[];
  /** What one token of context takes in the engine's memory, by its own account of that; null: it does not say. */
  readonly kvBytesPerToken: number | null;
  readonly hasChatTemplate: boolean;
  readonly workloads: readonly Workload[];
  /** What it says that it has reserved; absent or null: it does not say. */
  readonly memory?: { readonly host: MemoryParts; readonly device: MemoryParts } | null;
}

export const replicaStates = [
  "stopped",
  "starting",
  "loading",
  "warming",
  "ready",
  "busy",
  "draining",
  "stopping",
  "failed",
  "backoff",
  "circuit_open",
] as const;
export type ReplicaState = (typeof replicaStates)[number];

/** Why a replica is not there: told apart as far as exit code, signal and the last log lines allow. */
export interface ReplicaFailure {
  readonly cause:
    | "spawn_failed"
    | "model_missing"
    | "model_corrupt"
    | "bad_flag"
    /** Of a graphics card, or of a server that takes a part of the model. */
    | "out_of_gpu_memory"
    | "out_of_host_memory"
    /** A device that was asked for is not there, or its driver does not work. */
    | "device_failed"
    | "bind_failed"
    | "load_timeout"
    | "warm_up_failed"
    | "crashed"
    | "exited"
    | "wedged"
    /** A remote server, or one that takes a part of the model, does not answer. */
    | "unreachable"
    /** A remote server does not take us: key, model, or what has to be known of it. */
    | "refused";
  readonly message: string;
  readonly exitCode: number | null;
  readonly signal: string | null;
  readonly logTail: readonly string[];
  readonly atMs: number;
}

export interface ReplicaSnapshot {
  readonly replicaId: string;
  readonly poolId: string;
  readonly state: ReplicaState;
  /** Counts the starts; a fact about an older incarnation is stale. */
  readonly incarnation: number;
  readonly pid: number | null;
  readonly slotsTotal: number;
  readonly slotsBusy: number;
  readonly restarts: number;
  readonly lastError: ReplicaFailure | null;
  readonly identity: EngineIdentity | null;
}

/** The speed that the warm-up decode showed, as the predictor's first knowledge. Tokens per second. */
export interface WarmUpSpeed {
  readonly prefillTps: number;
  readonly decodeTps: number;
}
