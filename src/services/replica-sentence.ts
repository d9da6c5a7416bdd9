/** One short sentence for people about a change of a replica's state: the `human` field of its log line. */
import { assertNever } from "../domain/assert.ts";
import { waitsForChange } from "../domain/failure-cause.ts";
import type { Replica } from "../domain/replica-model.ts";

export function replicaSentence(
  replicaId: string,
  before: Replica,
  after: Replica,
  sinceStartMs: number | null,
): string {
  const said = after.lastError?.message ?? "no cause is known";
  switch (after.state) {
    case "stopped":
      return before.state === "draining"
        ? `Replica ${replicaId} ended while it drained: ${said}.`
        : `Replica ${replicaId} is stopped; its process is gone.`;
    case "starting":
      return before.state === "stopped" || before.state === "stopping"
        ? `Replica ${replicaId} starts.`
        : `Replica ${replicaId} starts again (restart ${after.restarts}).`;
    case "loading":
      return after.pid === null
        ? `Replica ${replicaId} loads inside the daemon.`
        : `Replica ${replicaId} runs as process ${after.pid} and loads its model.`;
    case "warming":
      return `Replica ${replicaId} has loaded and decodes its first tokens.`;
    case "ready":
      return before.state === "busy"
        ? `Replica ${replicaId} is idle.`
        : `Replica ${replicaId} is ready, ${sinceStartMs ?? 0} ms after its start.`;
    case "busy":
      return `Replica ${replicaId} works.`;
    case "draining":
      return `Replica ${replicaId} takes nothing new and finishes what it has.`;
    case "stopping":
      return `Replica ${replicaId} is being stopped.`;
    case "failed":
      return `Replica ${replicaId} is killed: ${said}.`;
    case "backoff":
      return `Replica ${replicaId} will be started again: ${said}.`;
    case "circuit_open":
      return after.lastError !== null && waitsForChange(after.lastError)
        ? `Replica ${replicaId} is not started again before something has changed: ${said}.`
        : `Replica ${replicaId} is given up for now: ${said}.`;
    default:
      return assertNever(after.state, "replica state");
  }
}
