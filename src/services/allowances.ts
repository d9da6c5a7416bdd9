/**
 * What each key may spend in a window of time, whatever sessions it names: a new session is not new money.
 * Called by sessions.ts within the dispatcher's turn.
 *
 * A task is charged to the window in which it was accepted. Of earlier windows nothing is kept but what live
 * tasks hold; there is one account a key, and keys are those of the configuration.
 */
import {
  type Account,
  type Amounts,
  openAccount,
  reserve,
  reserveAgain,
  settle,
  windowStartOf,
} from "../domain/budget.ts";
import type { Budget } from "../domain/task.ts";
import type { StoredAllowance, StoreOp } from "../ports/task-store.ts";

export interface Allowance {
  readonly budget: Budget;
  /** Windows begin at multiples of this since the epoch. */
  readonly windowMs: number;
}

/** What one key spends in one window. */
export interface AllowanceWindow {
  readonly keyId: string;
  readonly startMs: number;
  readonly endMs: number;
  account: Account;
}

export class Allowances {
  private readonly windows = new Map<string, AllowanceWindow>();
  private readonly changed = new Set<string>();

  /** `allowanceOf`: what the configuration gives the key; null: no bound. */
  constructor(private readonly allowanceOf: (keyId: string) => Allowance | null) {}

  /** The key's present window, with what the configuration gives it now; opens none. */
  windowOf(keyId: string, nowMs: number): AllowanceWindow | null {
    const allowance = this.allowanceOf(keyId);
    if (allowance === null) return null;
    const known = this.windows.get(keyId);
    const { windowMs, budget } = allowance;
    if (known !== undefined && known.endMs > nowMs) {
      // The configuration was read again: what was spent and reserved stays.
      if (known.account.limit !== budget) known.account = { ...known.account, limit: budget };
      return known;
    }
    const startMs = windowStartOf(nowMs, windowMs);
    return { keyId, startMs, endMs: startMs + windowMs, account: openAccount(budget) };
  }

  /** Where `settle` has to be told; null: the key has no bound. */
  reserve(keyId: string, amounts: Amounts, nowMs: number): AllowanceWindow | null {
    const window = this.windowOf(keyId, nowMs);
    if (window === null) return null;
    this.windows.set(keyId, window);
    window.account = reserve(window.account, amounts);
    return window;
  }

  settle(window: AllowanceWindow, was: Amounts, used: Amounts): void {
    window.account = settle(window.account, was, used);
    this.changed.add(window.keyId);
  }

  /** At boot. What was spent in a window that still runs stays spent, also where the configuration cuts others now. */
  recover(stored: readonly StoredAllowance[], nowMs: number): void {
    for (const { keyId, windowStartMs, spent } of stored) {
      const window = this.windowOf(keyId, nowMs);
      if (window === null || windowStartMs < window.startMs) continue;
      this.windows.set(keyId, { ...window, account: openAccount(window.account.limit, spent) });
    }
  }

  /** At boot, for a task that was accepted before: counted in the present window, whichever it began in. */
  reserveAgain(keyId: string, amounts: Amounts, nowMs: number): AllowanceWindow | null {
    const window = this.windowOf(keyId, nowMs);
    if (window === null) return null;
    this.windows.set(keyId, window);
    window.account = reserveAgain(window.account, amounts);
    return window;
  }

  /** What is spent otherwise than at the last call. Reservations are not stored: live tasks make them anew. */
  takeOps(): StoreOp[] {
    const ops: StoreOp[] = [];
    for (const keyId of this.changed) {
      const window = this.windows.get(keyId);
      if (window === undefined) continue;
      const { startMs: windowStartMs, account } = window;
      ops.push({ kind: "allowance_saved", allowance: { keyId, windowStartMs, spent: account.spent } });
    }
    this.changed.clear();
    return ops;
  }
}
