/** Forgets ended tasks on disk when their time is over, a bounded number at a time, so that no turn waits for it. */
import { limits } from "../domain/limits.ts";
import type { Clock, Timer } from "../ports/clock.ts";
import { isStoreError, type TaskStore } from "../ports/task-store.ts";
import type { Log } from "../ports/telemetry.ts";

export class Retention {
  private timer: Timer | null = null;

  constructor(
    private readonly clock: Clock,
    private readonly store: TaskStore,
    private readonly log: Log,
    private retentionMs: number,
  ) {}

  start(): void {
    this.arm(limits.retentionEveryMs);
  }

  /** From now on. */
  retain(ms: number): void {
    this.retentionMs = ms;
  }

  stop(): void {
    this.timer?.cancel();
    this.timer = null;
  }

  private arm(delayMs: number): void {
    this.timer = this.clock.setTimer(delayMs, () => {
      const pruned = this.prune();
      // A full batch: there is more to forget.
      this.arm(pruned < limits.retentionBatch ? limits.retentionEveryMs : limits.retentionAgainMs);
    });
  }

  private prune(): number {
    try {
      return this.store.prune(this.clock.nowMs() - this.retentionMs, limits.retentionBatch);
    } catch (error) {
      if (!isStoreError(error)) throw error;
      this.log.warn("retention_failed", { human: `old tasks could not be forgotten: ${error.message}` });
      return 0;
    }
  }
}
