/** The ledger on a virtual clock, with everything that it tells the outside written down. */
import type { Amounts } from "../../src/domain/budget.ts";
import { noAmounts } from "../../src/domain/budget.ts";
import type { SessionRules } from "../../src/domain/session.ts";
import type { Budget, TaskSpec } from "../../src/domain/task.ts";
import type { Allowance } from "../../src/services/allowances.ts";
import { type RemovedSession, Sessions } from "../../src/services/sessions.ts";
import { storedSpec, uuidOf } from "../support/stored-tasks.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

export const unbounded: Budget = { tokens: null, timeMs: null, cost: null };
export const tokens = (n: number): Amounts => ({ ...noAmounts, tokens: n });
export const atMost = (n: number): Budget => ({ ...unbounded, tokens: n });

export const sessionA = uuidOf(0xa);
export const sessionB = uuidOf(0xb);

export class SessionsBench {
  readonly removed: RemovedSession[] = [];
  readonly counted: string[] = [];
  readonly sessions: Sessions;
  private made = 0;

  constructor(
    rules: Partial<SessionRules> = {},
    allowances: Readonly<Record<string, Allowance>> = {},
    readonly clock = new VirtualClock(),
  ) {
    this.sessions = new Sessions({
      clock,
      metrics: {
        sessionEvicted: (reason) => void this.counted.push(`evicted ${reason}`),
        sessionTurn: () => void this.counted.push("turn"),
        budgetRefused: (dimension) => void this.counted.push(`refused ${dimension}`),
      },
      rules: { ttlMs: 600_000, turnsMax: 8, budget: unbounded, ...rules },
      allowanceOf: (keyId) => allowances[keyId] ?? null,
      onRemoved: (removed) => void this.removed.push(removed),
    });
  }

  get nowMs(): number {
    return this.clock.nowMs();
  }

  spec(more: Partial<TaskSpec> = {}): TaskSpec {
    this.made += 1;
    return storedSpec(uuidOf(0x1000 + this.made), { sessionId: sessionA, budget: null, ...more });
  }

  /** Returns the spec, so that the test can end it. */
  admit(amounts: Amounts, more: Partial<TaskSpec> = {}): TaskSpec {
    const spec = this.spec(more);
    this.sessions.admit(spec, amounts, this.nowMs);
    return spec;
  }

  /** The code and the policy of a refusal; null: it would be taken. */
  refusal(amounts: Amounts, more: Partial<TaskSpec> = {}): string | null {
    const error = this.sessions.check(this.spec(more), amounts, this.nowMs);
    return error === null ? null : [error.code, error.policyLabel].filter(Boolean).join(" ");
  }

  settle(spec: TaskSpec, used: Amounts): void {
    this.sessions.settle(spec.taskId, used, this.nowMs);
  }

  left(sessionId = sessionA): number | null | undefined {
    return this.sessions.find(sessionId, this.nowMs)?.remaining.tokens;
  }
}
