/** Daemons that are broken on purpose in how they hold drained pools; see mutants.ts. */
import type { SchedulerEvent } from "../../src/domain/scheduler-protocol.ts";
import { Dispatcher } from "../../src/services/dispatcher.ts";
import type { DispatcherDeps } from "../../src/services/dispatcher-deps.ts";
import type { Mutant } from "./mutants.ts";

const deafTo = (type: SchedulerEvent["type"]): typeof Dispatcher =>
  class extends Dispatcher {
    override tell(event: SchedulerEvent): Promise<void> {
      return event.type === type ? Promise.resolve() : super.tell(event);
    }
  };

class ForgetfulDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super({ ...deps, drained: new Set() });
  }
}

export const drainMutants: readonly Mutant[] = [
  {
    what: "starts tasks in a drained pool",
    parts: { Dispatcher: deafTo("pool_held") },
    noticed: /started in p\d, which is drained/,
  },
  {
    what: "lets run what is to be cut at the deadline of a drain",
    parts: { Dispatcher: deafTo("hold_deadline_passed") },
    noticed: /runs on behind the deadline of the drain/,
  },
  {
    what: "never takes up work again",
    parts: { Dispatcher: deafTo("pool_released") },
    noticed: /had a free slot while|it is still waiting/,
  },
  {
    what: "forgets drains with its process",
    parts: { Dispatcher: ForgetfulDispatcher },
    noticed: /started in p\d, which is drained/,
  },
];
