/**
 * What a task may take at most, and what it took, in the three dimensions of a budget: tokens (prompt and output
 * together), milliseconds on a slot, cost by its pool's price. Called by acceptance and endings.
 */
import { type Amounts, costOf } from "../domain/budget.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { TaskSpec } from "../domain/task.ts";
import type { TaskRecord } from "./task-registry.ts";

/** An upper bound of tokens and cost; the time is a prediction. */
export function amountsOf(spec: TaskSpec, { price }: PoolSpec, timeMs: number): Amounts {
  const tokensOut = spec.workload === "completion" ? spec.maxTokens : 0;
  return { tokens: spec.tokensIn + tokensOut, timeMs, cost: costOf(price, spec.tokensIn, tokensOut) };
}

/** Nothing where no attempt began. */
export function usedBy(record: TaskRecord, { price }: PoolSpec, nowMs: number): Amounts {
  if (record.startedMs === null) return { tokens: 0, timeMs: 0, cost: 0 };
  // Before the engine has counted the prompt it has not worked on it.
  const tokensIn = record.tokensIn ?? 0;
  const { chargedMs, chargedSinceMs } = record;
  const timeMs = Math.round(chargedMs + (chargedSinceMs === null ? 0 : nowMs - chargedSinceMs));
  return { tokens: tokensIn + record.tokensOut, timeMs, cost: costOf(price, tokensIn, record.tokensOut) };
}
