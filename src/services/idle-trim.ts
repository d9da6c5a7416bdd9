/**
 * Gives memory back when the daemon falls idle: the collector is lazy, and what a burst of work left behind
 * would otherwise stay resident on a machine whose memory is for models. Started by app/bootstrap.ts.
 *
 * Always: it runs once after each stretch of work (the start counts as one), and only when no task was live
 * for a whole period, so that no task waits for it.
 */
import type { Clock, Timer } from "../ports/clock.ts";

export interface Activity {
  /** Tasks that are not terminal. */
  readonly live: number;
  /** Tasks ever accepted: tells that there was work in between. */
  readonly accepted: number;
}

const periodMs = 1_000;

export class IdleTrim {
  private timer: Timer | null = null;
  private trimmedAt = -1;
  private acceptedBefore = -1;

  constructor(
    private readonly clock: Clock,
    private readonly activity: () => Activity,
    private readonly trim: () => void,
  ) {}

  start(): void {
    this.timer = this.clock.setTimer(periodMs, () => this.tick());
  }

  stop(): void {
    this.timer?.cancel();
    this.timer = null;
  }

  private tick(): void {
    const { live, accepted } = this.activity();
    const quiet = live === 0 && accepted === this.acceptedBefore;
    this.acceptedBefore = accepted;
    if (quiet && accepted !== this.trimmedAt) {
      this.trimmedAt = accepted;
      this.trim();
    }
    this.start();
  }
}
