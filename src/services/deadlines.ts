/**
 * The timers of tasks with a deadline: one for the moment from which a task that still waits can no longer make
 * it, then one for the deadline itself. Called by the dispatcher, which posts what they say to the scheduler.
 */
import type { SchedulerEvent } from "../domain/scheduler-protocol.ts";
import type { Clock, Timer } from "../ports/clock.ts";

export class Deadlines {
  private readonly timers = new Map<string, Timer>();

  constructor(
    private readonly clock: Clock,
    /** As they are when it passes. */
    private readonly rules: { readonly cutAtDeadline: boolean },
    private readonly post: (event: SchedulerEvent) => void,
  ) {}

  /** `leftMs` from now to the deadline; `leastMs`: what the task takes on a slot at the very least. */
  arm(taskId: string, leftMs: number, leastMs: number): void {
    this.set(taskId, Math.max(0, leftMs - leastMs), () => {
      this.post({ type: "start_deadline_passed", taskId });
      this.set(taskId, Math.min(leastMs, Math.max(0, leftMs)), () => {
        this.timers.delete(taskId);
        this.post({ type: "deadline_passed", taskId, cut: this.rules.cutAtDeadline });
      });
    });
  }

  /** The task has ended. */
  disarm(taskId: string): void {
    this.timers.get(taskId)?.cancel();
    this.timers.delete(taskId);
  }

  close(): void {
    for (const timer of this.timers.values()) timer.cancel();
    this.timers.clear();
  }

  private set(taskId: string, delayMs: number, fn: () => void): void {
    this.timers.set(taskId, this.clock.setTimer(delayMs, fn));
  }
}
