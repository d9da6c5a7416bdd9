/**
 * What another configuration changes in the pools: pure. services/pool-changes.ts carries it out, app/config-reload.ts
 * tells it.
 *
 * Always holds: every part of a pool is either one that its engines were started with, so that they are replaced for it,
 * or one that is looked at as tasks come and go; a pool with neither changed is not touched.
 */
import type { PoolSpec, RemoteServer } from "./pool.ts";

/** What a change of this part asks for. */
type Reach = "engines" | "settings";

const reachOf: Readonly<Record<Exclude<keyof PoolSpec, "id" | "sameModel">, Reach>> = {
  engine: "engines",
  modelRef: "engines",
  modelPath: "engines",
  replicas: "engines",
  slots: "engines",
  ctx: "engines",
  args: "engines",
  env: "engines",
  devices: "engines",
  replicaDevices: "engines",
  workloads: "engines",
  engineBin: "engines",
  rpc: "engines",
  remote: "engines",
  mock: "engines",
  preload: "settings",
  idleUnloadMs: "settings",
  queueCapacity: "settings",
  fullPolicy: "settings",
  price: "settings",
  timeouts: "settings",
  taskTimeoutMs: "settings",
  preempt: "settings",
  samplerProfileVersion: "settings",
};
const parts = Object.keys(reachOf) as (keyof typeof reachOf)[];

/** Of one pool that was there before and is there still. */
export interface PoolChange {
  readonly reach: Reach;
  /** The parts that differ, by their names in PoolSpec. */
  readonly parts: readonly string[];
}

/** Null: nothing differs. */
export function poolChange(before: PoolSpec, after: PoolSpec): PoolChange | null {
  const changed = parts.filter((part) => !isSame(part, before, after));
  if (changed.length === 0) return null;
  return {
    reach: changed.some((part) => reachOf[part] === "engines") ? "engines" : "settings",
    parts: changed,
  };
}

/** The pool as its engines were started, with what needs no other engines as `after` says. */
export function withSettingsOf(started: PoolSpec, after: PoolSpec): PoolSpec {
  const settings = parts.filter((part) => reachOf[part] === "settings").map((part) => [part, after[part]]);
  return { ...started, ...Object.fromEntries(settings) };
}

/** Whether what waits for the one may be too much for the other, or no work of its. */
export const isNarrower = (before: PoolSpec, after: PoolSpec): boolean =>
  (after.ctx ?? Number.POSITIVE_INFINITY) < (before.ctx ?? Number.POSITIVE_INFINITY) ||
  before.slots !== after.slots ||
  before.workloads.some((workload) => !after.workloads.includes(workload));

const textOf = (value: unknown): string => JSON.stringify(sorted(value ?? null));

function isSame(part: keyof typeof reachOf, before: PoolSpec, after: PoolSpec): boolean {
  if (part === "remote") return isSameServer(before.remote, after.remote);
  return textOf(before[part]) === textOf(after[part]);
}

/** A key that was changed where it lies is another key. */
function isSameServer(one: RemoteServer | null, other: RemoteServer | null): boolean {
  if (one === null || other === null) return one === other;
  const secret = ({ key }: RemoteServer): string | null => key?.secret.reveal() ?? null;
  return one.baseUrl === other.baseUrl && one.kind === other.kind && secret(one) === secret(other);
}

/** The order in which a map was written means nothing. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, member]) => [name, sorted(member)]),
  );
}
