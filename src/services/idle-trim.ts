/**
 * Gives memory back when the daemon falls idle: what the start and bursts of work left behind would otherwise
 * stay resident on a machine whose memory is for models. Started by app/bootstrap.ts.
 *
 * Always: it runs soon after the start and then once in each quiet time, when no task was live and none came for the
 * whole of it, so that no task waits for it. Again and again, because the little that an idle daemon does touches the
 * program's pages anew.
 */
import type { Clock, Timer } from "../ports/clock.ts";

export interface Activity {
  /** Tasks that are not terminal, and pools that load. */
  readonly live: number;
  /** Tasks ever accepted: tells that there was work in between. */
  readonly accepted: number;
}

const periodMs = 1_000;
/** Quiet periods before it runs: soon after the start, when nothing is warm yet; later only in a real pause. */
const quietAfterStart = 2;
const quietAfterWork = 30;

export class IdleTrim {
  private timer: Timer | null = null;
  private trimmed = false;
  private acceptedBefore = 0;
  private quiet = 0;

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
    this.quiet = live === 0 && accepted === this.acceptedBefore ? this.quiet + 1 : 0;
    this.acceptedBefore = accepted;
    const fresh = !this.trimmed && accepted === 0;
    if (this.quiet >= (fresh ? quietAfterStart : quietAfterWork)) {
      this.trimmed = true;
      this.quiet = 0;
      this.trim();
    }
    this.start();
  }
}
