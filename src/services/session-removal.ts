/**
 * What follows when a session is gone: slots forget it; where it was deleted, its tasks end and the engine erases what
 * it keeps of its context. Called by the dispatcher; the ledger (sessions.ts) has forgotten it by then.
 */
import { isEngineError } from "../ports/engine.ts";
import type { Log } from "../ports/telemetry.ts";
import type { Post } from "./mailbox.ts";
import type { PoolRuntimes } from "./pool-runtime.ts";
import type { QueueView } from "./queue-view.ts";
import type { RemovedSession } from "./sessions.ts";

export interface SessionRemovalDeps {
  readonly view: QueueView;
  readonly pools: PoolRuntimes;
  readonly log: Log;
  readonly cancel: (taskId: string) => Promise<void>;
  readonly post: Post;
}

export class SessionRemoval {
  constructor(private readonly deps: SessionRemovalDeps) {}

  /** Resolves once its end is stored. */
  async carryOut({ sessionId, reason, taskIds }: RemovedSession): Promise<void> {
    const { cancel, view, post } = this.deps;
    if (reason === "deleted") {
      await Promise.all(taskIds.map(cancel));
      // Slots that another task has had since hold nothing of it. One that is still being freed is erased when it is.
      const held = view.slotsHolding(sessionId);
      await Promise.all(held.map(({ replicaId, slot }) => this.eraseContext(replicaId, slot)));
    }
    const event = { type: "session_forgotten" as const, sessionId };
    await new Promise<void>((resolve) => post({ kind: "event", event, resolve }));
  }

  private async eraseContext(replicaId: string, slot: number): Promise<void> {
    const { pools, log } = this.deps;
    const client = pools.clientOf(replicaId);
    if (client === null) return;
    try {
      await client.eraseContext(slot, new AbortController().signal);
    } catch (error) {
      if (!isEngineError(error)) throw error;
      const human = `the context of a deleted session was not erased: ${error.message}`;
      log.warn("erase_failed", { replica_id: replicaId, slot, human });
    }
  }
}
