/**
 * How late the event loop is: a timer is set for every second and the delay beyond it is noted. app/bootstrap.ts
 * starts it; /healthz and /metrics read it. A blocked loop shows here before it shows anywhere else.
 *
 * Always: one timer at most, O(1) a second; figures are null until the first sample.
 */
import type { Clock, Timer } from "../ports/clock.ts";

const periodMs = 1_000;
/** A scrape every 15 s still sees the worst second since the one before. */
const samplesKept = 15;

export class LoopLag {
  private readonly samplesMs: number[] = [];
  private timer: Timer | null = null;

  constructor(private readonly clock: Clock) {}

  start(): void {
    if (this.timer === null) this.sampleAfter(this.clock.nowMs() + periodMs);
  }

  stop(): void {
    this.timer?.cancel();
    this.timer = null;
  }

  lastMs(): number | null {
    return this.samplesMs.at(-1) ?? null;
  }

  /** The worst of the last samples. */
  maxMs(): number | null {
    return this.samplesMs.length === 0 ? null : Math.max(...this.samplesMs);
  }

  private sampleAfter(dueMs: number): void {
    this.timer = this.clock.setTimer(periodMs, () => {
      this.samplesMs.push(Math.max(0, this.clock.nowMs() - dueMs));
      if (this.samplesMs.length > samplesKept) this.samplesMs.shift();
      this.sampleAfter(this.clock.nowMs() + periodMs);
    });
  }
}
