/**
 * Daemons that are broken on purpose, each in one way, through the seams that the world has anyway. The checker is
 * worth something only as long as it notices every one of them.
 */
import { limits } from "../../src/domain/limits.ts";
import type { FullPolicy, ReplicaSnapshot, WarmUpSpeed } from "../../src/domain/pool.ts";
import type { SchedulerState } from "../../src/domain/scheduler.ts";
import type { TaskSpec } from "../../src/domain/task.ts";
import type { EngineClient, GenerateSink } from "../../src/ports/engine.ts";
import type {
  Recovered,
  StoredTask,
  StoredTranscript,
  StoreOp,
  TaskStore,
} from "../../src/ports/task-store.ts";
import { type Attempt, type AttemptListener, AttemptRunner } from "../../src/services/attempt-runner.ts";
import { Dispatcher } from "../../src/services/dispatcher.ts";
import type { DispatcherDeps } from "../../src/services/dispatcher-deps.ts";
import type { PlacementNote, Submitted } from "../../src/services/mailbox.ts";
import type { TaskRegistry } from "../../src/services/task-registry.ts";
import type { Parts } from "./daemon.ts";

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
  override submit(spec: TaskSpec, note: PlacementNote): Promise<Submitted> {
    this.count++;
    if (this.count % 50 !== 0) return super.submit(spec, note);
    const promise = {
      queuePosition: 0,
      startMs: 0,
      startLowMs: 0,
      startHighMs: 0,
      endMs: 0,
      onTimeProbability: null,
      basis: "assumed" as const,
    };
    return Promise.resolve({ record: this.registry.add(spec, promise, 1, 0), repeated: false });
  }
}

/** Everything that is sent, made into something else. */
abstract class ChangingDispatcher extends Dispatcher {
  protected abstract changed(spec: TaskSpec): TaskSpec;
  override submit(spec: TaskSpec, note: PlacementNote): Promise<Submitted> {
    return super.submit(this.changed(spec), note);
  }
}

class BatchFirstDispatcher extends ChangingDispatcher {
  protected override changed(spec: TaskSpec): TaskSpec {
    return { ...spec, priority: spec.priority === "batch" ? "interactive" : "batch" };
  }
}

class OneClassDispatcher extends ChangingDispatcher {
  protected override changed(spec: TaskSpec): TaskSpec {
    return { ...spec, priority: "interactive" };
  }
}

class SociableDispatcher extends ChangingDispatcher {
  protected override changed(spec: TaskSpec): TaskSpec {
    return { ...spec, determinism: "best_effort" };
  }
}

class SpendthriftDispatcher extends ChangingDispatcher {
  protected override changed(spec: TaskSpec): TaskSpec {
    return { ...spec, budget: null };
  }
}

class EndlessSessionDispatcher extends ChangingDispatcher {
  protected override changed(spec: TaskSpec): TaskSpec {
    return { ...spec, sessionId: null };
  }
}

class UntimelyDispatcher extends ChangingDispatcher {
  protected override changed(spec: TaskSpec): TaskSpec {
    return { ...spec, deadlineMs: null };
  }
}

class ByKeyDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super({ ...deps, fair: "per-key" });
  }
}

const withPolicy = (deps: DispatcherDeps, policy: (is: FullPolicy) => FullPolicy): DispatcherDeps => ({
  ...deps,
  pools: deps.pools.map((p) => ({ ...p, fullPolicy: policy(p.fullPolicy) })),
});

class DropperDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super(withPolicy(deps, (is) => (is === "reject" ? "drop-lru" : is)));
  }
}

class KeeperDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super(withPolicy(deps, (is) => (is === "shed-low-priority" ? "drop-lru" : is)));
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
  override submit(spec: TaskSpec, note: PlacementNote): Promise<Submitted> {
    this.count++;
    if (this.count % 10 === 0)
      return new Promise((resolve, reject) => {
        this.held = () => super.submit(spec, note).then(resolve, reject);
      });
    const submitted = super.submit(spec, note);
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

/** What broke off behind its first word it holds to be the task's own fault. */
class FaintheartedRunner extends AttemptRunner {
  override start(attempt: Attempt, listener: AttemptListener): void {
    const told = Object.create(listener) as AttemptListener;
    told.attemptEnded = (of, outcome, slotFree, result) => {
      const lost = outcome.kind === "lost" && outcome.tokensProduced > 0;
      listener.attemptEnded(of, lost ? { ...outcome, kind: "failed" } : outcome, slotFree, result);
    };
    super.start(attempt, told);
  }
}

class ForgetfulRunner extends AttemptRunner {
  override start(attempt: Attempt, listener: AttemptListener): void {
    attempt.record.sent = [];
    super.start(attempt, listener);
  }
}

class LazyDispatcher extends Dispatcher {
  override replicaReady(snapshot: ReplicaSnapshot, client: EngineClient, speed: WarmUpSpeed): void {
    const slotsTotal = Math.max(1, snapshot.slotsTotal - 1);
    super.replicaReady({ ...snapshot, slotsTotal }, client, speed);
  }
}

class PessimisticDispatcher extends ChangingDispatcher {
  protected override changed(spec: TaskSpec): TaskSpec {
    return { ...spec, deadlineMs: spec.deadlineMs === null ? null : spec.deadlineMs * 0.6 };
  }
}

class StingyDispatcher extends ChangingDispatcher {
  protected override changed(spec: TaskSpec): TaskSpec {
    const { budget } = spec;
    if (budget === null || budget.tokens === null) return spec;
    return { ...spec, budget: { ...budget, tokens: Math.floor(budget.tokens * 0.7) } };
  }
}

/** It always holds the next turn to be that of an aged one. */
class AgedFirstDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super(deps);
    const { pools } = Reflect.get(this, "state") as SchedulerState;
    const startsSinceAged = { get: () => limits.agedStartEvery - 1, set: () => undefined };
    for (const pool of pools.values()) Object.defineProperty(pool, "startsSinceAged", startsSinceAged);
  }
}

class HastyBatchDispatcher extends Dispatcher {
  constructor(deps: DispatcherDeps) {
    super({ ...deps, batchMaxWaitMs: 0 });
  }
}

/** As if nothing had been said of the answer. */
class LongWindedRunner extends AttemptRunner {
  override start(attempt: Attempt, listener: AttemptListener): void {
    const client = Object.create(attempt.client) as EngineClient;
    const { maxTokens } = attempt.record.spec;
    client.generate = (request, sink, signal) =>
      attempt.client.generate({ ...request, maxTokens }, sink, signal);
    super.start({ ...attempt, client }, listener);
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

class UnclosedDispatcher extends Dispatcher {
  override close(): void {
    // It goes on.
  }
}

/** Between the dispatcher and what it stores. */
abstract class StoreBetween implements TaskStore {
  constructor(protected readonly store: TaskStore) {}
  recover(): Recovered {
    return this.store.recover();
  }
  write(batch: readonly StoreOp[]): void {
    this.store.write(batch);
  }
  synced(): Promise<void> {
    return this.store.synced();
  }
  find(taskId: string): StoredTask | null {
    return this.store.find(taskId);
  }
  list(...query: Parameters<TaskStore["list"]>): readonly StoredTask[] {
    return this.store.list(...query);
  }
  prune(...bounds: Parameters<TaskStore["prune"]>): number {
    return this.store.prune(...bounds);
  }
  transcripts(limit: number): readonly StoredTranscript[] {
    return this.store.transcripts(limit);
  }
  findTranscript(...id: Parameters<TaskStore["findTranscript"]>): StoredTranscript | null {
    return this.store.findTranscript(...id);
  }
  removeTranscripts(ordinals: readonly number[]): void {
    this.store.removeTranscripts(ordinals);
  }
  transcriptTotals() {
    return this.store.transcriptTotals();
  }
  sizeBytes(): number {
    return this.store.sizeBytes();
  }
  close(): Promise<void> {
    return this.store.close();
  }
}

class LeakyStore extends StoreBetween {
  private lost = new Set<string>();
  private count = 0;
  override write(batch: readonly StoreOp[]): void {
    const kept = batch.filter((op) => {
      if (op.kind === "task_ended") return !this.lost.has(op.taskId);
      if (op.kind !== "task_admitted") return true;
      this.count++;
      if (this.count % 5 === 0) this.lost.add(op.task.spec.taskId);
      return this.count % 5 !== 0;
    });
    super.write(kept);
  }
}

class UnendingStore extends StoreBetween {
  override write(batch: readonly StoreOp[]): void {
    super.write(batch.filter((op) => op.kind !== "task_ended"));
  }
}

class ShufflingStore extends StoreBetween {
  override recover(): Recovered {
    const recovered = super.recover();
    const ordinals = recovered.live.map(({ ordinal }) => ordinal);
    // The last one stands where the first one stood.
    const live = recovered.live.map((task, at) => ({ ...task, ordinal: ordinals.at(-1 - at) ?? 0 }));
    return { ...recovered, live: live.reverse() };
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
    what: "lets aged batch tasks go first more often than every fourth time",
    parts: { Dispatcher: AgedFirstDispatcher },
    noticed: /overtook after \d other starts/,
  },
  {
    what: "takes batch tasks for aged at once",
    parts: { Dispatcher: HastyBatchDispatcher },
    noticed: /batch task \d+ started before interactive/,
  },
  {
    what: "leaves a slot idle",
    parts: { Dispatcher: LazyDispatcher },
    noticed: /had a free slot while \d+ tasks waited/,
  },
  {
    what: "gives up what could still be done in time",
    parts: { Dispatcher: PessimisticDispatcher },
    noticed: /ended with DEADLINE_UNMET, but its deadline was/,
  },
  {
    what: "refuses what would fit into its budget",
    parts: { Dispatcher: StingyDispatcher },
    noticed: /was told BUDGET_EXHAUSTED at/,
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
    what: "gives up what was cut after its first word",
    parts: { AttemptRunner: FaintheartedRunner },
    noticed: /had not broken off its last chance|had cut its last chance/,
  },
  {
    what: "forgets what it has sent",
    parts: { AttemptRunner: ForgetfulRunner },
    noticed: /is not the word/,
  },
  {
    what: "asks for the whole length behind a part",
    parts: { AttemptRunner: LongWindedRunner },
    noticed: /was to go on behind \d+ words up to/,
  },
  {
    what: "goes on after it was closed",
    parts: { Dispatcher: UnclosedDispatcher },
    noticed: /after the daemon was closed|not told that the daemon is closed/,
  },
  {
    what: "lets others run beside a strict task",
    parts: { Dispatcher: SociableDispatcher },
    noticed: /beside strict task|is not alone on its engine/,
  },
  {
    what: "lets a session spend more than it may",
    parts: { Dispatcher: SpendthriftDispatcher },
    noticed: /overshoots the budget/,
  },
  {
    what: "counts no turns",
    parts: { Dispatcher: EndlessSessionDispatcher },
    noticed: /of a session of/,
  },
  {
    what: "starts what is too late",
    parts: { Dispatcher: UntimelyDispatcher },
    noticed: /after its deadline/,
  },
  {
    what: "takes turns by key where order of admission is promised",
    parts: { Dispatcher: ByKeyDispatcher },
    noticed: /before task \d+ of its class/,
  },
  {
    what: "drops what it should keep",
    parts: { Dispatcher: DropperDispatcher },
    noticed: /was dropped under reject/,
  },
  {
    what: "drops instead of shedding",
    parts: { Dispatcher: KeeperDispatcher },
    noticed: /was dropped under shed/,
  },
  {
    what: "does not store every task that it takes",
    parts: { storeOf: (store) => new LeakyStore(store) },
    noticed: /is lost: it was/,
  },
  {
    what: "does not store how tasks ended",
    parts: { storeOf: (store) => new UnendingStore(store) },
    noticed: /had ended and was recovered/,
  },
  {
    what: "comes back with its queue turned round",
    parts: { storeOf: (store) => new ShufflingStore(store) },
    noticed: /was recovered behind|before task \d+ of its class/,
  },
  { what: "says tokens twice", parts: { AttemptRunner: StutteringRunner }, noticed: /is not the word/ },
  { what: "swallows a token", parts: { AttemptRunner: SwallowingRunner }, noticed: /is not the word/ },
];
