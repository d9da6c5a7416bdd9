/**
 * How long tasks have run, all attempts together, and the timers of those whose pool bounds that (timeouts.task_ms).
 * Called by the effects of the scheduler's commands; what has run too long is told to the scheduler. An earlier
 * process's attempts do not count.
 */
import type { SchedulerEvent } from "../domain/scheduler-protocol.ts";
import type { Clock, Timer } from "../ports/clock.ts";

interface RunTime {
  /** Of attempts that have ended. */
  ranMs: number;
  sinceMs: number;
  timer: Timer | null;
}

export class RunTimes {
  private readonly times = new Map<string, RunTime>();

  constructor(
    private readonly clock: Clock,
    private readonly post: (event: SchedulerEvent) => void,
  ) {}

  /** An attempt starts. */
  started(taskId: string, boundMs: number): void {
    const time = this.times.get(taskId) ?? { ranMs: 0, sinceMs: 0, timer: null };
    this.times.set(taskId, time);
    time.sinceMs = this.clock.nowMs();
    time.timer?.cancel();
    time.timer = this.clock.setTimer(Math.max(0, boundMs - time.ranMs), () => {
      time.timer = null;
      const message = `it ran longer than ${boundMs} ms, all attempts together (timeouts.task_ms): ask for fewer tokens`;
      this.post({ type: "run_time_passed", taskId, message });
    });
  }

  /** Its attempt has ended and it waits again. */
  stopped(taskId: string): void {
    const time = this.times.get(taskId);
    if (time === undefined) return;
    time.timer?.cancel();
    time.timer = null;
    time.ranMs += this.clock.nowMs() - time.sinceMs;
  }

  /** It has ended. */
  forget(taskId: string): void {
    this.times.get(taskId)?.timer?.cancel();
    this.times.delete(taskId);
  }

  close(): void {
    for (const { timer } of this.times.values()) timer?.cancel();
    this.times.clear();
  }
}
