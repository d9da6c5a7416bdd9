/**
 * What a submitter is told when its session, its key's allowance or its own budget has no room. Called by
 * sessions.ts. Nothing here tells whether another key's session exists.
 */
import type { Amounts, Dimension } from "../domain/budget.ts";
import { OrchestratorError } from "../domain/errors.ts";
import type { Budget } from "../domain/task.ts";

/** Whose budget it is. */
export type BudgetOwner = "task" | "session" | "key";

/** As metrics and clients name a dimension. */
const dimensionNames: Readonly<Record<Dimension, "tokens" | "time" | "cost">> = {
  tokens: "tokens",
  timeMs: "time",
  cost: "cost",
};

const unitNames: Readonly<Record<Dimension, string>> = {
  tokens: "tokens",
  timeMs: "ms on a slot",
  cost: "of cost",
};

const owners: Readonly<Record<BudgetOwner, { readonly of: string; readonly advice: string }>> = {
  task: { of: "its own budget", advice: "ask for fewer tokens or a larger budget" },
  session: { of: "the budget of its session", advice: "ask for fewer tokens or begin another session" },
  key: {
    of: "the allowance of this key",
    advice: "ask for fewer tokens or wait for the next window of time",
  },
};

/** `retryAfterMs`: when there is a new budget; null: never. */
export function budgetExhausted(
  owner: BudgetOwner,
  dimension: Dimension,
  needed: Amounts,
  remaining: Budget,
  retryAfterMs: number | null,
): OrchestratorError {
  const left = remaining[dimension] ?? 0;
  const { of, advice } = owners[owner];
  return new OrchestratorError(
    "BUDGET_EXHAUSTED",
    `the task may need ${needed[dimension]} ${unitNames[dimension]}, ${of} leaves ${left}: ${advice}`,
    {
      policyLabel: `budget-${dimensionNames[dimension]}`,
      ...(retryAfterMs === null ? {} : { retryAfterMs }),
      details: { budget_of: owner, needed: needed[dimension], remaining: left },
    },
  );
}

/** The dimension that refused; null: it was no budget. */
export function budgetDimensionOf(refusal: OrchestratorError): "tokens" | "time" | "cost" | null {
  if (refusal.code !== "BUDGET_EXHAUSTED") return null;
  return Object.values(dimensionNames).find((name) => refusal.policyLabel === `budget-${name}`) ?? null;
}

export const sessionExhausted = (turnsMax: number, ttlMs: number): OrchestratorError =>
  new OrchestratorError(
    "SESSION_EXHAUSTED",
    `this session has had all of its ${turnsMax} turns: begin another one`,
    {
      retryAfterMs: ttlMs,
      details: { field: "session_id", max_turns: turnsMax },
    },
  );

/** Unknown to whoever asks. */
export const noSession = (): OrchestratorError =>
  new OrchestratorError(
    "NOT_FOUND",
    "no such session: it was never used with this key, or not for so long that it was forgotten",
    { details: { field: "session_id" } },
  );

export const tooManySessions = (sessionsMax: number, retryAfterMs: number): OrchestratorError =>
  new OrchestratorError(
    "ADMISSION_REJECT",
    `all ${sessionsMax} sessions that can be remembered have live tasks: try again, or leave session_id out`,
    { policyLabel: "sessions", retryAfterMs },
  );
