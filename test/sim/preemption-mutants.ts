/** Daemons that are broken on purpose in how they cut tasks for others; see mutants.ts. */
import type { Preemption } from "../../src/domain/preemption.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import { AttemptRunner } from "../../src/services/attempt-runner.ts";
import { Dispatcher } from "../../src/services/dispatcher.ts";
import type { DispatcherDeps } from "../../src/services/dispatcher-deps.ts";
import type { PlacementNote, Submitted } from "../../src/services/mailbox.ts";
import type { Mutant } from "./mutants.ts";

const withRules = (
  deps: DispatcherDeps,
  changed: (is: Preemption | null) => Preemption | null,
): DispatcherDeps => ({ ...deps, pools: deps.pools.map((p) => ({ ...p, preempt: changed(p.preempt) })) });

class RelentlessDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super(withRules(deps, (is) => is && { ...is, maxCuts: is.maxCuts + 1 }));
  }
}

class ImpatientDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super(withRules(deps, (is) => is && { ...is, maxWaitMs: 0 }));
  }
}

class MildDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super(withRules(deps, () => null));
  }
}

class UnaskedDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super(withRules(deps, (is) => is ?? { maxWaitMs: 5, maxCuts: 3, minGainMs: 1 }));
  }
}

/** Takes one class for the other. */
class SnobbishDispatcher extends Dispatcher {
  override submit(spec: TaskSpec, note: PlacementNote): Promise<Submitted> {
    return super.submit({ ...spec, priority: spec.priority === "batch" ? "interactive" : "batch" }, note);
  }
}

/** What it cuts it holds to be lost. */
class BlamingRunner extends AttemptRunner {
  override cut(leaseId: number): void {
    this.abort(leaseId);
  }
}

export const preemptionMutants: readonly Mutant[] = [
  {
    what: "cuts a task more often than it may",
    parts: { Dispatcher: RelentlessDispatcher },
    noticed: /was cut \d times/,
  },
  {
    what: "cuts for one who has not waited",
    parts: { Dispatcher: ImpatientDispatcher },
    noticed: /was cut for nobody/,
  },
  { what: "never cuts", parts: { Dispatcher: MildDispatcher }, noticed: /task \d+ is not cut$/ },
  {
    what: "cuts where nobody asked for that",
    parts: { Dispatcher: UnaskedDispatcher },
    noticed: /in a pool that cuts nobody/,
  },
  {
    what: "cuts interactive tasks",
    parts: { Dispatcher: SnobbishDispatcher },
    noticed: /of class interactive was cut/,
  },
  {
    what: "counts a cut against the task",
    parts: { AttemptRunner: BlamingRunner },
    noticed: /had not broken off its last chance/,
  },
];
