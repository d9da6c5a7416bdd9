/**
 * Use case "is it alive, can it take work": the answers of /healthz and /readyz (ORCHD-OBS-2, ORCHD-OBS-3).
 * api/observability.ts asks.
 *
 * Always: ready means that some pool's queue would take a task now, as the submit itself would find, and that nobody has
 * drained that pool; no flag is kept anywhere that could say something else.
 */
import type { OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { Clock } from "../ports/clock.ts";

/** What admission says to a task for this pool, without taking one: null when it would take it and is not drained. */
export interface PoolProbe {
  readonly poolId: string;
  readonly error: OrchestratorError | null;
}

export interface ReadinessDeps {
  readonly clock: Clock;
  readonly loopLag: { lastMs(): number | null };
  /** Runs the checks of a real submit for every pool. */
  readonly probe: () => readonly PoolProbe[];
}

export interface Health {
  readonly status: "ok";
  readonly uptimeMs: number;
  /** How late the event loop was at its last sample; null before the first. */
  readonly loopLagMs: number | null;
}

export interface ReadinessAnswer {
  readonly ready: boolean;
  /** Why not, pool by pool; empty when ready. */
  readonly reasons: readonly string[];
  /** When the first of the pools is expected back; null when ready. */
  readonly retryAfterMs: number | null;
}

export class Readiness {
  private readonly startedAtMs: number;

  constructor(private readonly deps: ReadinessDeps) {
    this.startedAtMs = deps.clock.nowMs();
  }

  /** Being answered at all is the proof: a loop that does not turn answers nobody. */
  health(): Health {
    return {
      status: "ok",
      uptimeMs: Math.max(0, this.deps.clock.nowMs() - this.startedAtMs),
      loopLagMs: this.deps.loopLag.lastMs(),
    };
  }

  readiness(): ReadinessAnswer {
    const probes = this.deps.probe();
    if (probes.some(({ error }) => error === null)) return { ready: true, reasons: [], retryAfterMs: null };
    const reasons: string[] = [];
    const backMs: number[] = [];
    for (const { poolId, error } of probes) {
      if (error === null) continue;
      reasons.push(`pool ${poolId}: ${error.code}: ${error.message}`);
      if (error.retryAfterMs !== undefined) backMs.push(error.retryAfterMs);
    }
    return {
      ready: false,
      reasons: probes.length === 0 ? ["no pool is configured"] : reasons,
      retryAfterMs: backMs.length === 0 ? limits.retryMsDefault : Math.min(...backMs),
    };
  }
}
