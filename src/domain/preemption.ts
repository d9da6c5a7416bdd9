/**
 * Preemption (pool option `preempt`): which of the running batch tasks is cut for an interactive one that waits. Pure:
 * the scheduler asks (scheduler-preempt.ts says when), the forecast brings the figures.
 *
 * The cheapest one is cut: the one of which the least has to be done again. A task that goes on by prefix costs a
 * computation of its prompt and of what it had said; one that is replayed says all of that again; work that answers
 * once is done again as a whole. Of equals the one that was cut less often goes, then the one that came later.
 */
import { mustReplay } from "./continuation.ts";
import type { TaskSpec } from "./task.ts";

export interface Preemption {
  /** An interactive task that has waited so long may have a batch task cut. */
  readonly maxWaitMs: number;
  /** A task is cut for others so often at most; then it runs to its end. A restart of the daemon counts anew. */
  readonly maxCuts: number;
  /** A cut that is expected to gain less is not made: about what an engine takes to free a slot. */
  readonly minGainMs: number;
}

/** A lease and what the forecast expects of its task; milliseconds. */
export interface RunningWork {
  readonly leaseId: number;
  /** Until it ends by itself. */
  readonly remainingMs: number;
  /** What has to be done again if it is cut now. */
  readonly redoMs: number;
  /** What it has to spare before its own deadline; null: it has none. Negative: it will miss it anyway. */
  readonly slackMs: number | null;
}

/** A task that may be cut. */
export interface Candidate {
  readonly taskId: string;
  readonly work: RunningWork;
  /** How often it was cut for others. */
  readonly preempted: number;
  readonly ordinal: number;
}

/**
 * `forMs`: how long its slot will be taken. `patient`: there is time to let those end that nearly have, and nobody
 * is cut while one of `running` is expected to end as soon as a cut would free its slot.
 */
export function cheapest(
  candidates: readonly Candidate[],
  running: readonly RunningWork[],
  { maxCuts, minGainMs }: Preemption,
  forMs: number,
  patient: boolean,
): Candidate | null {
  if (patient && running.some(({ remainingMs }) => remainingMs <= minGainMs)) return null;
  let best: Candidate | null = null;
  for (const candidate of candidates) {
    const { work, preempted } = candidate;
    const { slackMs } = work;
    // It keeps its own promise, unless that is lost already.
    const breaks = slackMs !== null && slackMs >= 0 && slackMs < work.redoMs + forMs;
    if (preempted >= maxCuts || breaks) continue;
    if (best === null || isCheaper(candidate, best)) best = candidate;
  }
  return best;
}

function isCheaper(a: Candidate, b: Candidate): boolean {
  if (a.work.redoMs !== b.work.redoMs) return a.work.redoMs < b.work.redoMs;
  if (a.preempted !== b.preempted) return a.preempted < b.preempted;
  return a.ordinal > b.ordinal;
}

/** Tokens that are computed again when a task is cut that has said so many: as a prompt, and one after the other. */
export function redoneTokens(
  spec: Pick<TaskSpec, "sampling" | "determinism" | "tokensIn">,
  tokensOut: number,
): { readonly prompt: number; readonly decoded: number } {
  return mustReplay(spec)
    ? { prompt: spec.tokensIn, decoded: tokensOut }
    : { prompt: spec.tokensIn + tokensOut, decoded: 0 };
}
