/**
 * What a long run was like, in constant memory: waiting times, refusals, how good the promises were, how the work
 * was shared among keys. Fed by load-world.ts with what clients and engines see; printed by report.ts.
 */
import type { Priority } from "../../src/domain/task.ts";

/** Counts in steps of one per cent: a quantile is off by that much at most. */
export class Histogram {
  private readonly counts: number[] = [];
  count = 0;
  sum = 0;
  max = 0;

  add(value: number): void {
    const at = value < 1 ? 0 : 1 + Math.floor(Math.log(value) / step);
    this.counts[at] = (this.counts[at] ?? 0) + 1;
    this.count++;
    this.sum += value;
    this.max = Math.max(this.max, value);
  }

  quantile(share: number): number {
    let left = Math.ceil(share * this.count);
    for (let at = 0; at < this.counts.length; at++) {
      left -= this.counts[at] ?? 0;
      if (left <= 0) return at === 0 ? 0 : Math.min(this.max, Math.exp(at * step));
    }
    return this.max;
  }

  get mean(): number {
    return this.count === 0 ? 0 : this.sum / this.count;
  }
}
const step = Math.log(1.01);

/** Mean squared error of probabilities, and that of whoever knows the overall share and always answers it. */
export class BrierScore {
  count = 0;
  private squares = 0;
  private came = 0;

  add(probability: number, happened: boolean): void {
    this.count++;
    this.squares += (probability - (happened ? 1 : 0)) ** 2;
    if (happened) this.came++;
  }

  get score(): number {
    return this.count === 0 ? 0 : this.squares / this.count;
  }
  get share(): number {
    return this.count === 0 ? 0 : this.came / this.count;
  }
  get baseRateScore(): number {
    return this.share * (1 - this.share);
  }
}

export interface Promised {
  readonly queuePosition: number;
  readonly startLowMs: number;
  readonly startHighMs: number;
  readonly onTimeProbability: number | null;
}

export interface ClassScores {
  readonly waitMs: Histogram;
  done: number;
  failed: number;
  /** Starts promised behind others: before, within and after the 80 % interval. */
  readonly interval: { before: number; within: number; after: number };
  readonly brier: BrierScore;
  deadlineMissed: number;
}

const classScores = (): ClassScores => ({
  waitMs: new Histogram(),
  done: 0,
  failed: 0,
  interval: { before: 0, within: 0, after: 0 },
  brier: new BrierScore(),
  deadlineMissed: 0,
});

export class Scores {
  readonly classes: Record<Priority, ClassScores> = { interactive: classScores(), batch: classScores() };
  readonly refusals = new Map<string, number>();
  readonly failures = new Map<string, number>();
  readonly sharing: Sharing;
  sent = 0;
  accepted = 0;
  tokensOut = 0;
  sessionTokens = 0;
  sessionTokensCached = 0;

  constructor(windowMs: number) {
    this.sharing = new Sharing(windowMs);
  }

  refused(code: string): void {
    this.refusals.set(code, (this.refusals.get(code) ?? 0) + 1);
  }

  started(priority: Priority, promised: Promised, waitMs: number): void {
    const { waitMs: waits, interval } = this.classes[priority];
    waits.add(waitMs);
    if (promised.queuePosition === 0) return;
    if (waitMs < promised.startLowMs) interval.before++;
    else if (waitMs > promised.startHighMs) interval.after++;
    else interval.within++;
  }

  /** `tookMs`: from acceptance. */
  ended(
    priority: Priority,
    promised: Promised,
    deadlineMs: number | null,
    code: string,
    tookMs: number,
  ): void {
    const scores = this.classes[priority];
    if (code === "") scores.done++;
    else {
      scores.failed++;
      this.failures.set(code, (this.failures.get(code) ?? 0) + 1);
    }
    if (deadlineMs === null || promised.onTimeProbability === null || code === "CANCELED") return;
    const onTime = code === "" && tookMs <= deadlineMs;
    if (!onTime) scores.deadlineMissed++;
    scores.brier.add(promised.onTimeProbability, onTime);
  }
}

interface Share {
  /** Nominal service that waited or came in this window. */
  demandMs: number;
  receivedMs: number;
}

/**
 * Jain's index over keys, of windows in which somebody always waited. `maxMin`: of what each key got to what it
 * would get if the same service were shared max-min fairly, so a key that wants little and gets it is treated
 * well. `demand`: of what each got to what it wanted, where a greedy key that is held back counts as unfair.
 */
export class Sharing {
  private readonly pools = new Map<string, PoolSharing>();
  private readonly totals = { windows: 0, maxMin: 0, demand: 0, worst: 1 };

  constructor(private readonly windowMs: number) {}

  get windows(): number {
    return this.totals.windows;
  }
  get maxMin(): number {
    return this.windows === 0 ? 1 : this.totals.maxMin / this.windows;
  }
  get demand(): number {
    return this.windows === 0 ? 1 : this.totals.demand / this.windows;
  }
  get worstMaxMin(): number {
    return this.totals.worst;
  }

  accepted(poolId: string, keyId: string, serviceMs: number, nowMs: number): void {
    const pool = this.poolOf(poolId, nowMs);
    pool.of(keyId).demandMs += serviceMs;
    pool.waiting++;
  }

  started(poolId: string, keyId: string, serviceMs: number, nowMs: number): void {
    const pool = this.poolOf(poolId, nowMs);
    pool.of(keyId).receivedMs += serviceMs;
    pool.waiting--;
    if (pool.waiting === 0) pool.contended = false;
  }

  /** It ended without a start. */
  gone(poolId: string, keyId: string, serviceMs: number, nowMs: number): void {
    const pool = this.poolOf(poolId, nowMs);
    const share = pool.of(keyId);
    share.demandMs = Math.max(share.receivedMs, share.demandMs - serviceMs);
    pool.waiting--;
    if (pool.waiting === 0) pool.contended = false;
  }

  private poolOf(poolId: string, nowMs: number): PoolSharing {
    let pool = this.pools.get(poolId);
    if (pool === undefined) {
      pool = new PoolSharing();
      this.pools.set(poolId, pool);
    }
    const window = Math.floor(nowMs / this.windowMs);
    if (window !== pool.window) {
      if (pool.contended) this.note(pool);
      pool.begin(window);
    }
    return pool;
  }

  private note(pool: PoolSharing): void {
    const shares = [...pool.shares.values()].filter((s) => s.demandMs > 0);
    const granted = shares.reduce((sum, s) => sum + s.receivedMs, 0);
    if (shares.length < 2 || granted <= 0) return;
    const fair = maxMinShares(
      shares.map((s) => s.demandMs),
      granted,
    );
    const maxMin = jain(shares.map((s, at) => s.receivedMs / (fair[at] ?? 1)));
    this.totals.windows++;
    this.totals.maxMin += maxMin;
    this.totals.demand += jain(shares.map((s) => s.receivedMs / s.demandMs));
    this.totals.worst = Math.min(this.totals.worst, maxMin);
  }
}

class PoolSharing {
  window = 0;
  waiting = 0;
  /** Somebody waited all through this window. */
  contended = false;
  readonly shares = new Map<string, Share>();

  of(keyId: string): Share {
    let share = this.shares.get(keyId);
    if (share === undefined) {
      share = { demandMs: 0, receivedMs: 0 };
      this.shares.set(keyId, share);
    }
    return share;
  }

  /** What was not served is wanted in the next window too. */
  begin(window: number): void {
    this.window = window;
    this.contended = this.waiting > 0;
    for (const [keyId, share] of this.shares) {
      const leftMs = this.waiting === 0 ? 0 : share.demandMs - share.receivedMs;
      if (leftMs <= 0.001) this.shares.delete(keyId);
      else this.shares.set(keyId, { demandMs: leftMs, receivedMs: 0 });
    }
  }
}

/** (sum x)^2 / (n * sum x^2): 1 when all are alike, 1/n when one has everything. */
export function jain(values: readonly number[]): number {
  const sum = values.reduce((a, b) => a + b, 0);
  const squares = values.reduce((a, b) => a + b * b, 0);
  return squares === 0 ? 1 : (sum * sum) / (values.length * squares);
}

/** Water-filling: nobody gets more than it wants, and what is left is shared alike. */
export function maxMinShares(demands: readonly number[], total: number): number[] {
  const order = demands.map((_, at) => at).sort((a, b) => (demands[a] ?? 0) - (demands[b] ?? 0));
  const shares = demands.map(() => 0);
  let left = total;
  order.forEach((at, nth) => {
    const share = Math.min(demands[at] ?? 0, left / (order.length - nth));
    shares[at] = share;
    left -= share;
  });
  return shares;
}
