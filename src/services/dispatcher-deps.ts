/** What the dispatcher is made of; app/bootstrap.ts puts it together. */
import type { OrchestratorError } from "../domain/errors.ts";
import type { PoolSpec } from "../domain/pool.ts";
import type { Fairness } from "../domain/queue.ts";
import type { Clock } from "../ports/clock.ts";
import type { ReplicaControl } from "../ports/supervision.ts";
import type { TaskStore } from "../ports/task-store.ts";
import type { Log, Metrics } from "../ports/telemetry.ts";
import type { AttemptRunner } from "./attempt-runner.ts";
import type { Sessions } from "./sessions.ts";
import type { TaskArchive } from "./task-archive.ts";
import type { TaskRegistry } from "./task-registry.ts";
import type { Transcripts } from "./transcripts.ts";
import type { WriteAhead } from "./write-ahead.ts";

export interface DispatcherDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly control: ReplicaControl;
  readonly registry: TaskRegistry;
  readonly archive: TaskArchive;
  readonly runner: AttemptRunner;
  readonly store: TaskStore;
  /** Recovered; of the event logs that the registry makes. */
  readonly ahead: WriteAhead;
  readonly sessions: Sessions;
  /** Null: ended tasks leave none. */
  readonly transcripts?: Pick<Transcripts, "of" | "modelLoaded"> | null;
  readonly pools: readonly PoolSpec[];
  /** Pools that were drained before the last process ended. */
  readonly drained?: ReadonlySet<string>;
  /** Whether a pool waits until the keeper of memory lets it in; absent: none does. */
  readonly managed?: (pool: PoolSpec) => boolean;
  readonly attemptsMax: number;
  readonly batchMaxWaitMs: number;
  readonly fair: Fairness;
  /** As they are now. */
  readonly rules: {
    /** A running task is cut when its deadline passes. */
    readonly cutAtDeadline: boolean;
    /** A task whose deadline is less likely than this to be met is refused. */
    readonly minOnTimeProbability: number;
  };
  /** Why a pool's model takes nothing new; null: it does. */
  readonly modelRefusal?: (pool: PoolSpec) => OrchestratorError | null;
  /** A broken invariant in a turn: state may be half changed, the only honest way on is a restart. */
  readonly onFatal: (error: unknown) => void;
}
