/**
 * Daemons that are broken on purpose, each in one way, through the seams that the world has anyway. The checker is
 * worth something only as long as it notices every one of them.
 */
import type { ReplicaSnapshot, WarmUpSpeed } from "../../src/domain/pool.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { EngineClient, GenerateSink } from "../../src/ports/engine.ts";
import { type Attempt, type AttemptListener, AttemptRunner } from "../../src/services/attempt-runner.ts";
import { Dispatcher, type DispatcherDeps, type Submitted } from "../../src/services/dispatcher.ts";
import type { TaskRegistry } from "../../src/services/task-registry.ts";
import type { Parts } from "./world.ts";

export interface Mutant {
  readonly what: string;
  readonly parts: Partial<Parts>;
  /** What the checker must say. */
  readonly noticed: RegExp;
}

class BusySlotRunner extends AttemptRunner {
  override start(attempt: Attempt, listener: AttemptListener): void {
    super.start({ ...attempt, lease: { ...attempt.lease, slot: 0 } }, listener);
  }
}

class TooManySlotsDispatcher extends Dispatcher {
  override replicaReady(snapshot: ReplicaSnapshot, client: EngineClient, speed: WarmUpSpeed): void {
    super.replicaReady({ ...snapshot, slotsTotal: snapshot.slotsTotal + 1 }, client, speed);
  }
}

/** Answers a submit as if it had taken it, now and then. */
class DroppingDispatcher extends Dispatcher {
  private readonly registry: TaskRegistry;
  private count = 0;
  constructor(deps: DispatcherDeps) {
    super(deps);
    this.registry = deps.registry;
  }
  override submit(spec: TaskSpec): Promise<Submitted> {
    this.count++;
    if (this.count % 50 !== 0) return super.submit(spec);
    const promise = { queuePosition: 0, startMs: 0, endMs: 0, onTimeProbability: null };
    return Promise.resolve({ record: this.registry.add(spec, promise, 1, 0), repeated: false });
  }
}

class BatchFirstDispatcher extends Dispatcher {
  override submit(spec: TaskSpec): Promise<Submitted> {
    return super.submit({ ...spec, priority: spec.priority === "batch" ? "interactive" : "batch" });
  }
}

class OneClassDispatcher extends Dispatcher {
  override submit(spec: TaskSpec): Promise<Submitted> {
    return super.submit({ ...spec, priority: "interactive" });
  }
}

class NeverAgingDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super({ ...deps, batchMaxWaitMs: 1e9 });
  }
}

/** Each tenth task waits until the next one was posted. */
class OvertakingDispatcher extends Dispatcher {
  private count = 0;
  private held: (() => void) | null = null;
  override submit(spec: TaskSpec): Promise<Submitted> {
    this.count++;
    if (this.count % 10 === 0)
      return new Promise((resolve, reject) => {
        this.held = () => super.submit(spec).then(resolve, reject);
      });
    const submitted = super.submit(spec);
    this.held?.();
    this.held = null;
    return submitted;
  }
}

class HastyCancelDispatcher extends Dispatcher {
  override cancel(...cancel: Parameters<Dispatcher["cancel"]>): Promise<void> {
    void super.cancel(...cancel);
    return Promise.resolve();
  }
}

class LeakingDispatcher extends Dispatcher {
  override slotFreed(): void {
    // Nobody is told.
  }
}

class UncutRunner extends AttemptRunner {
  override start(attempt: Attempt, listener: AttemptListener): void {
    const client = Object.create(attempt.client) as EngineClient;
    // Nobody can raise that signal.
    client.generate = (request, sink) => attempt.client.generate(request, sink, new AbortController().signal);
    super.start({ ...attempt, client }, listener);
  }
}

class FullQueueDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super({
      ...deps,
      pools: deps.pools.map((p) => ({ ...p, queueCapacity: Math.ceil(p.queueCapacity / 2) })),
    });
  }
}

class WideQueueDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super({ ...deps, pools: deps.pools.map((p) => ({ ...p, queueCapacity: p.queueCapacity + 1 })) });
  }
}

class StubbornDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super({ ...deps, attemptsMax: deps.attemptsMax + 1 });
  }
}

/** Every fifth attempt hears the engine with this sink in between. */
abstract class SinkRunner extends AttemptRunner {
  private count = 0;
  protected abstract sink(sink: GenerateSink): GenerateSink;
  override start(attempt: Attempt, listener: AttemptListener): void {
    this.count++;
    if (this.count % 5 !== 0) {
      super.start(attempt, listener);
      return;
    }
    const client = Object.create(attempt.client) as EngineClient;
    client.generate = (request, sink, signal) => attempt.client.generate(request, this.sink(sink), signal);
    super.start({ ...attempt, client }, listener);
  }
}

class StutteringRunner extends SinkRunner {
  protected override sink(sink: GenerateSink): GenerateSink {
    const onToken: GenerateSink["onToken"] = (text, ids) => {
      sink.onToken(text, ids);
      sink.onToken(text, ids);
    };
    return { onPrompt: (...prompt) => sink.onPrompt(...prompt), onToken };
  }
}

class SwallowingRunner extends SinkRunner {
  protected override sink(sink: GenerateSink): GenerateSink {
    let said = 0;
    const onToken: GenerateSink["onToken"] = (text, ids) => {
      said++;
      if (said !== 3) sink.onToken(text, ids);
    };
    return { onPrompt: (...prompt) => sink.onPrompt(...prompt), onToken };
  }
}

class UndrainedDispatcher extends Dispatcher {
  override endAll(): void {
    // Nothing ends.
  }
}

export const mutants: readonly Mutant[] = [
  { what: "starts in a busy slot", parts: { AttemptRunner: BusySlotRunner }, noticed: /which is busy/ },
  {
    what: "starts more tasks than an engine has slots",
    parts: { Dispatcher: TooManySlotsDispatcher },
    noticed: /started in slot \d+$/,
  },
  {
    what: "loses a task that it took",
    parts: { Dispatcher: DroppingDispatcher },
    noticed: /is lost/,
  },
  {
    what: "lets batch go first",
    parts: { Dispatcher: BatchFirstDispatcher },
    noticed: /before interactive task/,
  },
  {
    what: "knows one class only",
    parts: { Dispatcher: OneClassDispatcher },
    noticed: /before interactive task/,
  },
  {
    what: "never ages a batch task",
    parts: { Dispatcher: NeverAgingDispatcher },
    noticed: /watched \d+ interactive/,
  },
  {
    what: "lets later tasks overtake earlier ones",
    parts: { Dispatcher: OvertakingDispatcher },
    noticed: /before task \d+ of its class/,
  },
  {
    what: "answers a cancel before it is done",
    parts: { Dispatcher: HastyCancelDispatcher },
    noticed: /resolved while/,
  },
  {
    what: "never hears of freed slots",
    parts: { Dispatcher: LeakingDispatcher },
    noticed: /had a free slot/,
  },
  {
    what: "does not cut what was canceled",
    parts: { AttemptRunner: UncutRunner },
    noticed: /still works for task/,
  },
  {
    what: "refuses before its queue is full",
    parts: { Dispatcher: FullQueueDispatcher },
    noticed: /was refused, but/,
  },
  {
    what: "lets more tasks wait than it has places",
    parts: { Dispatcher: WideQueueDispatcher },
    noticed: /tasks waited in/,
  },
  { what: "tries once too often", parts: { Dispatcher: StubbornDispatcher }, noticed: /had 4 attempts/ },
  {
    what: "does not end what a drain left",
    parts: { Dispatcher: UndrainedDispatcher },
    noticed: /after the drain/,
  },
  { what: "says tokens twice", parts: { AttemptRunner: StutteringRunner }, noticed: /is not the word/ },
  { what: "swallows a token", parts: { AttemptRunner: SwallowingRunner }, noticed: /is not the word/ },
];
