/**
 * What `fair: per-key` promises, as an onlooker can tell: one key cannot keep another waiting. Called by
 * load-checker.ts for each class of each pool; shares no code with src.
 *
 * The bound of deficit round robin (Shreedhar and Varghese, 1995) with quantum q: let the oldest task of a key
 * expect c ms. Until it starts, each other key starts tasks of at most ceil(c/q)*q + m ms together, m being its own
 * longest task meanwhile. It holds from any moment on, so it is counted from when a task is first seen at the head.
 */
export interface Head {
  readonly keyId: string;
  /** Which task it is, and which of its stays in the queue. */
  readonly nth: number;
  readonly stay: number;
  readonly expectedMs: number;
}

interface Watch {
  readonly nth: number;
  readonly stay: number;
  readonly byKey: Map<string, { sumMs: number; longestMs: number }>;
}

/** Expectations move a little between the moment they are asked for and the turn that uses them. */
const toleranceMs = 50;
const toleranceShare = 1.05;

export class FairRule {
  private readonly watches = new Map<string, Watch>();
  /** How near to its bound any key came. */
  worstShare = 0;

  constructor(
    private readonly quantumMs: number,
    private readonly violation: (what: string) => void,
  ) {}

  /** A task of this key starts; `heads`: the first of each key that certainly waits. */
  started(keyId: string, expectedMs: number, heads: Iterable<Head>): void {
    // Its turn went to this task, maybe to one that was cut and came back before the one that was watched.
    this.watches.delete(keyId);
    for (const head of heads) {
      if (head.keyId === keyId) continue;
      const seen = this.watchOf(head).byKey;
      const other = seen.get(keyId) ?? { sumMs: 0, longestMs: 0 };
      seen.set(keyId, other);
      other.sumMs += expectedMs;
      other.longestMs = Math.max(other.longestMs, expectedMs);
      const boundMs = Math.ceil(head.expectedMs / this.quantumMs) * this.quantumMs + other.longestMs;
      this.worstShare = Math.max(this.worstShare, other.sumMs / boundMs);
      if (other.sumMs > boundMs * toleranceShare + toleranceMs)
        this.violation(
          `task ${head.nth} of ${head.keyId} watched ${Math.round(other.sumMs)} ms of ${keyId}, bound ${Math.round(boundMs)} ms`,
        );
    }
  }

  private watchOf({ keyId, nth, stay }: Head): Watch {
    const known = this.watches.get(keyId);
    if (known !== undefined && known.nth === nth && known.stay === stay) return known;
    const watch: Watch = { nth, stay, byKey: new Map() };
    this.watches.set(keyId, watch);
    return watch;
  }
}
