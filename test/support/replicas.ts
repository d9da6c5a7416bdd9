/**
 * Pools, replicas and a supervisor's view of them as tests need them: complete values with everything
 * overridable. Used by the tests of domain/pool-state.ts and of the services that only look at replicas.
 */
import type {
  EngineIdentity,
  PoolSpec,
  ReplicaFailure,
  ReplicaSnapshot,
  ReplicaState,
} from "../../src/domain/pool.ts";
import type { ReplicaControl } from "../../src/ports/supervision.ts";

export const poolSpec = (more: Partial<PoolSpec> = {}): PoolSpec => ({
  id: "chat",
  engine: "mock",
  modelRef: "mock:words",
  modelPath: null,
  replicas: 1,
  slots: 4,
  ctx: 4096,
  args: [],
  env: {},
  preload: true,
  idleUnloadMs: null,
  queueCapacity: 16,
  fullPolicy: "reject",
  price: { per1kTokensIn: 0, per1kTokensOut: 0 },
  devices: [],
  timeouts: { loadMs: 1000, firstTokenMs: 1000, interTokenMs: 1000, stopGraceMs: 1000 },
  taskTimeoutMs: null,
  preempt: null,
  samplerProfileVersion: "v1",
  workloads: ["completion"],
  engineBin: null,
  rpc: [],
  remote: null,
  mock: null,
  ...more,
});

export const identity = (more: Partial<EngineIdentity> = {}): EngineIdentity => ({
  engine: "mock",
  engineVersion: "mock-1",
  slots: 4,
  ctxPerSlot: 4096,
  modelPath: null,
  modelStamp: null,
  modelSizeBytes: 1000,
  modelParams: 500,
  kvBytesPerToken: null,
  ctxTrain: 8192,
  hasChatTemplate: true,
  workloads: ["completion"],
  ...more,
});

export const failure = (more: Partial<ReplicaFailure> = {}): ReplicaFailure => ({
  cause: "crashed",
  message: "the engine exited with code 1",
  exitCode: 1,
  signal: null,
  logTail: ["a last line"],
  atMs: 1000,
  ...more,
});

export const snapshot = (more: Partial<ReplicaSnapshot> = {}): ReplicaSnapshot => ({
  replicaId: "chat/0",
  poolId: "chat",
  state: "stopped" as ReplicaState,
  incarnation: 1,
  pid: null,
  slotsTotal: 4,
  slotsBusy: 0,
  restarts: 0,
  lastError: null,
  identity: null,
  ...more,
});

/** A supervisor that only shows what the test put in; anything else it is asked to do is a mistake. */
export class ShownReplicas implements ReplicaControl {
  readonly byPool = new Map<string, readonly ReplicaSnapshot[]>();

  show(poolId: string, ...replicas: readonly ReplicaSnapshot[]): this {
    this.byPool.set(poolId, replicas);
    return this;
  }
  snapshots(poolId: string): readonly ReplicaSnapshot[] {
    return this.byPool.get(poolId) ?? [];
  }
  ensurePool(poolId: string): void {
    throw new Error(`looking must not start pool ${poolId}`);
  }
  noteSlotsBusy(replicaId: string): void {
    throw new Error(`looking must not touch replica ${replicaId}`);
  }
  noteProgress(replicaId: string): void {
    throw new Error(`looking must not touch replica ${replicaId}`);
  }
  reportWedged(replicaId: string): void {
    throw new Error(`looking must not touch replica ${replicaId}`);
  }
}
