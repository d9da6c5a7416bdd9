/**
 * The daemon without HTTP, for tests of its services: the real dispatcher, attempt runner, registry, streams,
 * admission and supervisor over the mock engine, all on a virtual clock. Nothing moves unless a test moves it.
 */
import type { PoolSpec } from "../../src/domain/pool.ts";
import { anywhere } from "../../src/domain/pool-choice.ts";
import type { ResidencyRules } from "../../src/domain/residency-state.ts";
import { samplerProfiles } from "../../src/domain/sampler-profile.ts";
import type { SessionRules } from "../../src/domain/session.ts";
import type { Sampling, TaskSpec } from "../../src/domain/task.ts";
import { MockAdapter } from "../../src/infra/engines/mock.ts";
import type { EngineAdapter } from "../../src/ports/engine.ts";
import type { LendRecord } from "../../src/ports/pool-store.ts";
import type { ProcessHost } from "../../src/ports/process.ts";
import type { ModelGate } from "../../src/ports/supervision.ts";
import type { Log, LogFields, Metrics } from "../../src/ports/telemetry.ts";
import { Admission, type AdmissionOptions, type Submission } from "../../src/services/admission.ts";
import { AttemptRunner } from "../../src/services/attempt-runner.ts";
import { DeviceLending } from "../../src/services/device-lending.ts";
import { DeviceMemory, type DeviceSpec } from "../../src/services/device-memory.ts";
import { Dispatcher } from "../../src/services/dispatcher.ts";
import type { Submitted } from "../../src/services/mailbox.ts";
import { ModelNeeds } from "../../src/services/model-needs.ts";
import { isManaged } from "../../src/services/pool-memory.ts";
import { ResidencyKeeper } from "../../src/services/residency-keeper.ts";
import { type SessionMetrics, Sessions } from "../../src/services/sessions.ts";
import { Streams, type StreamsOptions } from "../../src/services/streams.ts";
import { Supervisor } from "../../src/services/supervisor.ts";
import { TaskArchive } from "../../src/services/task-archive.ts";
import { TaskRegistry } from "../../src/services/task-registry.ts";
import { type TranscriptRulesOfUse, Transcripts } from "../../src/services/transcripts.ts";
import { WriteAhead } from "../../src/services/write-ahead.ts";
import { MemoryJournal } from "../support/memory-journal.ts";
import { MemoryRecords } from "../support/memory-records.ts";
import { MemoryTaskStore } from "../support/memory-store.ts";
import { poolSpec } from "../support/replicas.ts";
import { SeededEntropy, VirtualClock } from "../support/virtual-clock.ts";

export class RecordingLog implements Log {
  readonly lines: { readonly event: string; readonly fields: LogFields }[] = [];
  readonly debug = (event: string, fields: LogFields): void => this.add(event, fields);
  readonly info = (event: string, fields: LogFields): void => this.add(event, fields);
  readonly warn = (event: string, fields: LogFields): void => this.add(event, fields);
  readonly error = (event: string, fields: LogFields): void => this.add(event, fields);
  of(event: string): LogFields[] {
    return this.lines.filter((line) => line.event === event).map((line) => line.fields);
  }
  private add(event: string, fields: LogFields): void {
    this.lines.push({ event, fields });
  }
}

type MetricName = keyof Metrics | keyof SessionMetrics;

export class RecordingMetrics implements Metrics, SessionMetrics {
  readonly calls: { readonly name: MetricName; readonly args: readonly unknown[] }[] = [];
  readonly taskEnqueued = (...args: unknown[]): void => this.add("taskEnqueued", args);
  readonly taskStarted = (...args: unknown[]): void => this.add("taskStarted", args);
  readonly taskPreempted = (...args: unknown[]): void => this.add("taskPreempted", args);
  readonly taskCanceled = (...args: unknown[]): void => this.add("taskCanceled", args);
  readonly taskRejected = (...args: unknown[]): void => this.add("taskRejected", args);
  readonly taskFinished = (...args: unknown[]): void => this.add("taskFinished", args);
  readonly tokens = (...args: unknown[]): void => this.add("tokens", args);
  readonly firstToken = (...args: unknown[]): void => this.add("firstToken", args);
  readonly decode = (...args: unknown[]): void => this.add("decode", args);
  readonly backpressure = (...args: unknown[]): void => this.add("backpressure", args);
  readonly placement = (...args: unknown[]): void => this.add("placement", args);
  readonly restart = (...args: unknown[]): void => this.add("restart", args);
  readonly poolLoaded = (...args: unknown[]): void => this.add("poolLoaded", args);
  readonly poolUnloaded = (...args: unknown[]): void => this.add("poolUnloaded", args);
  readonly poolReloaded = (...args: unknown[]): void => this.add("poolReloaded", args);
  readonly configReloaded = (...args: unknown[]): void => this.add("configReloaded", args);
  readonly modelVerified = (...args: unknown[]): void => this.add("modelVerified", args);
  readonly sessionEvicted = (...args: unknown[]): void => this.add("sessionEvicted", args);
  readonly sessionTurn = (...args: unknown[]): void => this.add("sessionTurn", args);
  readonly budgetRefused = (...args: unknown[]): void => this.add("budgetRefused", args);
  of(name: MetricName): (readonly unknown[])[] {
    return this.calls.filter((call) => call.name === name).map((call) => call.args);
  }
  private add(name: MetricName, args: readonly unknown[]): void {
    this.calls.push({ name, args });
  }
}

const nothing = (): void => undefined;
export const silentLog: Log = { debug: nothing, info: nothing, warn: nothing, error: nothing };

const noProcess = (): never => {
  throw new Error("an engine inside this process needs no child process");
};
/** For engines that run in this process. */
export const noProcesses: ProcessHost = {
  start: noProcess,
  writeSecret: noProcess,
  removeFile: noProcess,
  stampOf: () => "",
  remember: noProcess,
  forget: noProcess,
  sweep: noProcess,
};

/** What the pools of a rig share. */
export interface RigMemory {
  readonly devices: readonly DeviceSpec[];
  readonly rules?: ResidencyRules;
  /** What an earlier rig left lent. */
  readonly lends?: MemoryRecords<LendRecord>;
  readonly needs?: Pick<ModelNeeds, "of" | "learn">;
  readonly models?: Pick<ModelGate, "prepare">;
  readonly returned?: () => void;
}

/** Of mock pools only. */
export const mockNeeds = (log: Log): ModelNeeds =>
  new ModelNeeds({
    reckoner: { reckon: () => null, fileBytes: () => null },
    kept: { read: () => null, write: () => true },
    log,
    processBytes: 0,
  });

export interface RigOptions {
  /** Absent: every pool is in memory whenever it wants. */
  readonly memory?: RigMemory;
  readonly pools?: readonly PoolSpec[];
  readonly adapter?: (clock: VirtualClock) => EngineAdapter;
  readonly streams?: Partial<StreamsOptions>;
  readonly admission?: Partial<AdmissionOptions>;
  readonly retentionMs?: number;
  readonly inputBytesMax?: number;
  readonly minOnTimeProbability?: number;
  readonly batchMaxWaitMs?: number;
  readonly cutAtDeadline?: boolean;
  readonly sessions?: Partial<SessionRules>;
  /** Instead of `pools`: a list that changes with reloads. */
  readonly specs?: (log: Log) => readonly PoolSpec[];
  /** Pools that an earlier one left drained. */
  readonly drained?: ReadonlySet<string>;
  /** What an earlier rig left. */
  readonly store?: MemoryTaskStore;
  /** ... and its journal, reopened. */
  readonly journal?: MemoryJournal;
  /** What ended tasks leave; absent: nothing. Whoever starts the moving stops it. */
  readonly transcripts?: TranscriptRulesOfUse;
}

/** A pool of the mock engine: one slot, 10 ms a token, ready at once. */
export const mockPool = (more: Partial<PoolSpec> = {}): PoolSpec =>
  poolSpec({
    slots: 1,
    queueCapacity: 4,
    timeouts: { loadMs: 10_000, firstTokenMs: 500, interTokenMs: 200, stopGraceMs: 100 },
    mock: { tokenMs: 10, prefillMsPerToken: 0, loadMs: 0, faults: [] },
    ...more,
  });

export const profile: Sampling = (() => {
  const { v1 } = samplerProfiles;
  if (v1 === undefined) throw new Error("there is a profile v1");
  return v1;
})();

export class Rig {
  readonly clock = new VirtualClock();
  readonly entropy = new SeededEntropy(7);
  readonly log = new RecordingLog();
  readonly metrics = new RecordingMetrics();
  readonly store: MemoryTaskStore;
  readonly journal: MemoryJournal;
  readonly ahead: WriteAhead;
  readonly registry: TaskRegistry;
  readonly archive: TaskArchive;
  readonly transcripts: Transcripts | null;
  readonly sessions: Sessions;
  readonly supervisor: Supervisor;
  readonly runner: AttemptRunner;
  readonly dispatcher: Dispatcher;
  readonly streams: Streams;
  readonly admission: Admission;
  readonly pools: readonly PoolSpec[];
  readonly keeper: ResidencyKeeper | null;
  readonly lending: DeviceLending | null;
  readonly fatal: unknown[] = [];
  private tasks = 0;

  constructor(options: RigOptions = {}) {
    const { clock, entropy, log, metrics } = this;
    this.pools = options.specs?.(log) ?? options.pools ?? [mockPool()];
    const adapter = options.adapter?.(clock) ?? new MockAdapter({ clock, entropy });
    this.supervisor = new Supervisor({
      clock,
      entropy,
      processes: noProcesses,
      log,
      metrics,
      runDir: "/nowhere",
      // Servers elsewhere are played by the same one.
      adapters: new Map([
        ["mock", adapter],
        ["openai", adapter],
      ]),
      restart: { backoffMs: 100, backoffMaxMs: 1000, breakerFailures: 3, breakerWindowMs: 10_000 },
    });
    this.journal = options.journal ?? new MemoryJournal();
    this.ahead = new WriteAhead(this.journal, clock, log, (error) => this.fatal.push(error));
    this.ahead.recover();
    this.registry = new TaskRegistry(options.retentionMs ?? 3_600_000, options.inputBytesMax, this.ahead);
    this.runner = new AttemptRunner(clock, 1000);
    this.store = options.store ?? new MemoryTaskStore();
    this.archive = new TaskArchive(this.registry, this.store);
    const { store } = this;
    const { transcripts: rules } = options;
    this.transcripts = rules === undefined ? null : new Transcripts({ store, clock, log, rules });
    this.sessions = new Sessions({
      clock,
      metrics,
      rules: {
        ttlMs: 60_000,
        turnsMax: 8,
        budget: { tokens: null, timeMs: null, cost: null },
        ...options.sessions,
      },
      allowanceOf: () => null,
      onRemoved: (removed) => this.dispatcher.sessionRemoved(removed),
    });
    this.dispatcher = new Dispatcher({
      clock,
      archive: this.archive,
      store: this.store,
      ahead: this.ahead,
      transcripts: this.transcripts,
      sessions: this.sessions,
      fair: "fifo",
      log,
      metrics,
      control: this.supervisor,
      registry: this.registry,
      runner: this.runner,
      pools: this.pools,
      drained: options.drained ?? new Set(),
      managed: (pool) => options.memory !== undefined && isManaged(pool),
      attemptsMax: 3,
      batchMaxWaitMs: options.batchMaxWaitMs ?? 60_000,
      rules: {
        cutAtDeadline: options.cutAtDeadline ?? false,
        minOnTimeProbability: options.minOnTimeProbability ?? 0.05,
      },
      onFatal: (error) => this.fatal.push(error),
    });
    this.streams = new Streams(
      clock,
      { heartbeatMs: 1000, disconnectGraceMs: 500, microbatchMs: 0, streamsPerKeyMax: 8, ...options.streams },
      (taskId, reason) => void this.dispatcher.cancel(taskId, reason),
      (taskId) => this.dispatcher.noteWatched(taskId),
    );
    const { memory } = options;
    this.keeper = memory === undefined ? null : this.keeperOf(memory);
    this.lending =
      this.keeper === null
        ? null
        : new DeviceLending({
            ...{ clock, log, keeper: this.keeper, store: memory?.lends ?? new MemoryRecords() },
            tell: (event) => this.dispatcher.tell(event),
            returned: () => memory?.returned?.(),
          });
    this.admission = new Admission(this.dispatcher, this.pools, entropy, {
      defaultMaxTokens: 8,
      defaultDeadlineMs: null,
      ...options.admission,
    });
  }

  private keeperOf({ devices, rules, needs, models }: RigMemory): ResidencyKeeper {
    const { clock, log, metrics, dispatcher } = this;
    const keeper = new ResidencyKeeper({
      ...{ clock, log, metrics, dispatcher, control: this.supervisor, specs: this.pools },
      rules: rules ?? { swapMaxWaitMs: 3000, swapTurnMaxMs: 20_000 },
      needs: needs ?? mockNeeds(log),
      ...(models === undefined ? {} : { models }),
      devices: () =>
        new DeviceMemory(
          { configured: devices, gpus: { figures: () => [] }, host: { sample: () => null } },
          this.pools,
        ),
      retryMs: 10_000,
      onFatal: (error) => this.fatal.push(error),
    });
    this.supervisor.obey(keeper);
    return keeper;
  }

  /** Starts the engines and waits until they are ready, where they become so within that time. */
  async start(waitMs = 1000): Promise<this> {
    this.supervisor.start(this.pools, this.keeper ?? this.dispatcher);
    this.keeper?.start(this.lending?.lent ?? new Map());
    for (const record of this.dispatcher.recover()) this.streams.expect(record);
    await this.clock.advance(waitMs);
    return this;
  }

  /** Everything ends; what is still armed or fatal then is a failure of the test that used the rig. */
  async stop(): Promise<void> {
    this.dispatcher.close();
    this.dispatcher.halt();
    this.streams.suspend();
    await this.clock.advance(0);
    this.lending?.stop();
    this.keeper?.stop();
    void this.supervisor.stop();
    await this.clock.advance(1000);
    this.streams.close();
    this.sessions.close();
    await this.ahead.close();
    if (this.fatal.length > 0) throw this.fatal[0];
    if (this.clock.pendingTimers > 0) throw new Error(`${this.clock.pendingTimers} timers are left`);
  }

  submit(spec: TaskSpec): Promise<Submitted> {
    return this.dispatcher.submit(spec, { why: "the only pool", fallback: false, candidates: 1 });
  }

  /** A spec that runs `maxTokens` tokens on the first pool. */
  spec(more: Partial<TaskSpec> = {}): TaskSpec {
    this.tasks++;
    return {
      taskId: `00000000-0000-4000-8000-${String(this.tasks).padStart(12, "0")}`,
      keyId: "alice",
      correlationId: "c",
      sessionId: null,
      workload: "completion",
      input: { kind: "prompt", prompt: "Tell me of the river" },
      poolId: "chat",
      engine: "mock",
      pinned: false,
      modelRef: "mock:words",
      priority: "interactive",
      seed: 1,
      determinism: "best_effort",
      samplerProfileVersion: "v1",
      sampling: profile,
      maxTokens: 5,
      ctx: 4096,
      deadlineMs: null,
      expectedTokens: null,
      budget: null,
      kvHint: "reuse",
      onDisconnect: "cancel",
      metadata: {},
      tokensIn: 8,
      tokensInExact: false,
      renderedPrompt: null,
      bodyDigest: "d",
      ...more,
    };
  }
}

export const submission = (more: Partial<Submission> = {}): Submission => ({
  keyId: "alice",
  correlationId: "c",
  taskId: null,
  sessionId: null,
  workload: null,
  input: { kind: "prompt", prompt: "Tell me of the river" },
  modelRef: null,
  engine: null,
  placement: anywhere,
  ctx: null,
  priority: null,
  seed: null,
  determinism: null,
  sampling: {},
  maxTokens: null,
  deadlineMs: null,
  expectedTokens: null,
  budget: null,
  kvHint: null,
  onDisconnect: null,
  metadata: {},
  body: { prompt: "Tell me of the river" },
  ...more,
});

export interface SeenEvent {
  readonly id: number;
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
}

/** The events in a text; heartbeats and other comments are left out. */
export function eventsIn(text: string): SeenEvent[] {
  const blocks = text.split("\n\n").filter((block) => block !== "" && !block.startsWith(":"));
  return blocks.map((block) => {
    const [id, event, data] = block.split("\n");
    const value = (line: string | undefined): string => line?.slice(line.indexOf(": ") + 2) ?? "";
    return { id: Number(value(id)), event: value(event), data: JSON.parse(value(data)) };
  });
}

/** Reads a stream as fast as it comes, unless it is told to pause. */
export class StreamReader {
  text = "";
  closed = false;
  private readonly reader: {
    read(): Promise<{ done: boolean; value?: Uint8Array | undefined }>;
    cancel(): Promise<void>;
  };
  private readonly decoder = new TextDecoder();

  constructor(stream: ReadableStream<Uint8Array>, autostart = true) {
    this.reader = stream.getReader();
    if (autostart) void this.readOn();
  }

  get events(): SeenEvent[] {
    return eventsIn(this.text);
  }
  get names(): string[] {
    return this.events.map((e) => e.event);
  }
  get last(): SeenEvent | undefined {
    return this.events.at(-1);
  }

  /** One pull; false at the end of the stream. */
  async readOnce(): Promise<boolean> {
    const { done, value } = await this.reader.read();
    if (value !== undefined) this.text += this.decoder.decode(value, { stream: true });
    this.closed ||= done;
    return !done;
  }

  leave(): Promise<void> {
    return this.reader.cancel();
  }

  private async readOn(): Promise<void> {
    while (await this.readOnce());
  }
}

/** The whole log as a viewer who comes now is shown it, without waiting for more. */
export function replay(record: {
  log: { open(after: number): { take(): Uint8Array | null; close(): void } };
}): SeenEvent[] {
  const cursor = record.log.open(-1);
  let text = "";
  const decoder = new TextDecoder();
  for (let bytes = cursor.take(); bytes !== null; bytes = cursor.take())
    text += decoder.decode(bytes, { stream: true });
  cursor.close();
  return eventsIn(text);
}

/** What a viewer who comes now is told: the text, the numbers of its tokens, how often it started, the last event. */
export function told(record: Parameters<typeof replay>[0]) {
  const events = replay(record);
  const tokens = events.filter(({ event }) => event === "token");
  return {
    text: tokens.map(({ data }) => data.t).join(""),
    numbers: tokens.map(({ data }) => data.i),
    started: events.filter(({ event }) => event === "started").length,
    last: events.at(-1),
  };
}
