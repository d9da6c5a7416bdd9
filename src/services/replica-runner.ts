/**
 * One replica brought to life: feeds the replica machine (domain/replica.ts) with what happens to the process
 * and carries its commands out. Owned by the supervisor; nothing here decides.
 *
 * Always holds: events are taken one at a time, each with its commands done before the next; what belongs to
 * an incarnation (process, client, files) lives in one `Run` and goes with it. Operating errors of the host
 * and the engine become events; anything else is a bug and is thrown.
 */
import { assert, assertNever } from "../domain/assert.ts";
import { isOrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec, ReplicaFailure, ReplicaSnapshot, WarmUpSpeed } from "../domain/pool.ts";
import { step } from "../domain/replica.ts";
import {
  newReplica,
  type Replica,
  type ReplicaCommand,
  type ReplicaEvent,
  type ReplicaFact,
  type ReplicaPolicy,
  type ReplicaTimer,
} from "../domain/replica-model.ts";
import type { Clock, Entropy, Timer } from "../ports/clock.ts";
import {
  type EngineAdapter,
  type EngineClient,
  type EngineEnd,
  isEngineError,
  type LaunchPlan,
} from "../ports/engine.ts";
import type { ProcessExit, ProcessHost, StartedProcess } from "../ports/process.ts";
import type { ModelGate } from "../ports/supervision.ts";
import type { Log, Metrics } from "../ports/telemetry.ts";
import { LogTail } from "./log-tail.ts";
import { replicaSentence } from "./replica-sentence.ts";
import { StartInputs } from "./start-inputs.ts";

export interface RunnerPorts {
  readonly clock: Clock;
  readonly entropy: Entropy;
  readonly processes: ProcessHost;
  readonly log: Log;
  readonly metrics: Metrics;
  /** Absolute folder for sockets, key files and the remembered children. */
  readonly runDir: string;
  /** Absent: every file may be loaded, and none is fetched. */
  readonly models?: ModelGate;
}

/** What the supervisor wants to hear; called while an event is handled, so they only note and post. */
export interface RunnerHooks {
  ready(runner: ReplicaRunner, client: EngineClient, speed: WarmUpSpeed): void;
  lost(runner: ReplicaRunner, failure: ReplicaFailure | null): void;
  unavailable(runner: ReplicaRunner, failure: ReplicaFailure): void;
  /** It starts when it is asked to: what had made that hopeless has changed. */
  mendable(runner: ReplicaRunner): void;
  /** After an event that changed the state. */
  moved(runner: ReplicaRunner): void;
}

/** What belongs to one incarnation. */
interface Run {
  readonly incarnation: number;
  readonly plan: LaunchPlan | null;
  readonly client: EngineClient;
  /** Null for an engine inside this process. */
  readonly process: StartedProcess | null;
  /** Ends whatever call of ours is on its way. */
  readonly abort: AbortController;
  readonly startedAtMs: number;
}

/** Lines that a failure is classified by: a bad flag is followed by a page of usage. */
const classifiedLines = 200;

type WithoutIncarnation<F> = F extends ReplicaFact ? Omit<F, "incarnation"> : never;

export class ReplicaRunner {
  readonly replicaId: string;
  #pool: PoolSpec;
  readonly #ports: RunnerPorts;
  readonly #adapter: EngineAdapter;
  #policy: ReplicaPolicy;
  readonly #hooks: RunnerHooks;
  readonly #tail = new LogTail();
  readonly #inputs: StartInputs;
  readonly #timers = new Map<ReplicaTimer, Timer>();
  readonly #inbox: ReplicaEvent[] = [];
  #handling = false;
  #state: Replica;
  #run: Run | null = null;
  /** Of its first start. The same model on the same devices is no other after the next one. */
  #speed: WarmUpSpeed | null = null;

  constructor(
    replicaId: string,
    pool: PoolSpec,
    adapter: EngineAdapter,
    policy: ReplicaPolicy,
    ports: RunnerPorts,
    hooks: RunnerHooks,
    /** Incarnations that an earlier replica of this id had. */
    incarnation = 0,
  ) {
    this.#state = newReplica(incarnation);
    this.replicaId = replicaId;
    this.#pool = pool;
    this.#adapter = adapter;
    this.#policy = policy;
    this.#ports = ports;
    this.#inputs = new StartInputs(pool, ports.processes, ports.models ?? null);
    this.#hooks = hooks;
  }

  /** As it was started, or is to be. */
  get pool(): PoolSpec {
    return this.#pool;
  }

  /** What needs no other engine, from now on. */
  configure(pool: PoolSpec, policy: ReplicaPolicy): void {
    this.#pool = pool;
    this.#policy = policy;
  }

  get state(): Replica["state"] {
    return this.#state.state;
  }

  /** When an open circuit may be tried; in the past where it is not open. */
  get retryAtMs(): number {
    return this.#state.state === "circuit_open" ? this.#state.retryAtMs : 0;
  }

  get incarnation(): number {
    return this.#state.incarnation;
  }

  snapshot(): ReplicaSnapshot {
    const { state, incarnation, pid, identity, slotsBusy, restarts, lastError } = this.#state;
    const slotsTotal = identity?.slots ?? this.pool.slots;
    const { replicaId } = this;
    const poolId = this.pool.id;
    return {
      replicaId,
      poolId,
      state,
      incarnation,
      pid,
      slotsTotal,
      slotsBusy,
      restarts,
      lastError,
      identity,
    };
  }

  logTail(): string[] {
    return this.#tail.lastLines(limits.engineLogLinesMax);
  }

  /** To be read, not written to. */
  get log(): Omit<LogTail, "push" | "beginIncarnation"> {
    return this.#tail;
  }

  /** The lines that explain a failure of this incarnation. */
  recentLines(): string[] {
    return this.#tail.ofIncarnation(classifiedLines);
  }

  /** Handles the event now, or after the one that is being handled. */
  send(event: ReplicaEvent): void {
    this.#inbox.push(event);
    if (this.#handling) return;
    this.#handling = true;
    try {
      for (let next = this.#inbox.shift(); next !== undefined; next = this.#inbox.shift()) this.#handle(next);
    } finally {
      this.#handling = false;
    }
  }

  #handle(event: ReplicaEvent): void {
    const { clock, entropy } = this.#ports;
    const before = this.#state;
    const { state, commands } = step(before, event, clock.nowMs(), this.#policy, entropy.unit());
    this.#state = state;
    if (state.state !== before.state) this.#logMove(before);
    for (const command of commands) this.#execute(command);
    if (state.state !== before.state) this.#hooks.moved(this);
  }

  #execute(command: ReplicaCommand): void {
    switch (command.type) {
      case "start_process":
        this.#start(command.incarnation, command.restart);
        break;
      case "probe_health":
        this.#probe(this.#current());
        break;
      case "warm_up":
        this.#warmUp(this.#current());
        break;
      case "set_timer":
        this.#setTimer(command.timer, command.ms);
        break;
      case "cancel_timer":
        this.#cancelTimer(command.timer);
        break;
      case "signal":
        this.#signal(this.#current(), command.signal);
        break;
      case "close_client":
        this.#closeClient();
        break;
      case "remove_secrets":
        this.#removeSecrets(this.#current().plan);
        break;
      case "clean_up":
        this.#cleanUp();
        break;
      case "look":
        this.send({
          type: "looked",
          incarnation: this.#state.incarnation,
          ...this.#inputs.look(),
          asked: command.asked,
        });
        break;
      case "report_ready":
        this.#hooks.ready(this, this.#current().client, command.speed);
        break;
      case "report_lost":
        this.#hooks.lost(this, command.failure);
        break;
      case "report_mendable":
        this.#hooks.mendable(this);
        break;
      case "report_unavailable":
        this.#hooks.unavailable(this, command.failure);
        break;
      default:
        assertNever(command, "replica command");
    }
  }

  #current(): Run {
    assert(this.#run !== null && this.#run.incarnation === this.#state.incarnation, "the incarnation runs");
    return this.#run;
  }

  #start(incarnation: number, restart: ReplicaFailure | null): void {
    assert(this.#run === null, "the process before is reaped");
    if (restart !== null) {
      const labels = { poolId: this.pool.id, replicaId: this.replicaId, cause: restart.cause };
      this.#ports.metrics.restart(labels);
    }
    this.#tail.beginIncarnation();
    this.#inputs.note();
    try {
      this.#run = this.#launch(incarnation);
    } catch (error) {
      if (!isOrchestratorError(error)) throw error;
      const cause = error.details?.cause === "device_failed" ? "device_failed" : "spawn_failed";
      this.send({ type: "start_failed", incarnation, message: error.message, cause });
      return;
    }
    this.send({ type: "process_started", incarnation, pid: this.#run.process?.pid ?? null });
  }

  #launch(incarnation: number): Run {
    const { processes, runDir, clock } = this.#ports;
    this.#ports.models?.gate(this.pool);
    const plan = this.#adapter.plan(this.pool, this.replicaId, runDir);
    const client = plan?.connect() ?? this.#adapter.connectInProcess(this.pool, this.replicaId);
    const abort = new AbortController();
    const common = { incarnation, plan, client, abort, startedAtMs: clock.nowMs() };
    if (plan === null) {
      const { exited } = client;
      void exited?.then((reason) => this.#ended(incarnation, { code: null, signal: null }, reason));
      return { ...common, process: null };
    }
    for (const path of plan.socketPaths) processes.removeFile(path);
    try {
      for (const file of plan.secretFiles) processes.writeSecret(file.path, file.content);
      const process = processes.start({
        command: plan.command,
        env: plan.env,
        cwd: runDir,
        onLine: (line) => this.#onLine(incarnation, client, line),
      });
      void process.exited.then((exit) => this.#ended(incarnation, exit, null));
      this.#remember(process);
      return { ...common, process };
    } catch (error) {
      this.#removeSecrets(plan);
      throw error;
    }
  }

  /** A full disk must not keep an engine from running: the guard finds it without the file too. */
  #remember(process: StartedProcess): void {
    const { processes, log } = this.#ports;
    const { pid, startTicks } = process;
    try {
      processes.remember({ pid, startTicks, replicaId: this.replicaId });
    } catch (error) {
      if (!isOrchestratorError(error)) throw error;
      const human = `The engine process ${pid} is not noted on disk: ${error.message}`;
      log.warn("engine_not_remembered", { ...this.#fields(), pid, human });
    }
  }

  #onLine(incarnation: number, client: EngineClient, line: string): void {
    // A process that left the group can hold the pipe beyond its incarnation.
    if (incarnation !== this.#state.incarnation) return;
    this.#tail.push(line);
    client.onLogLine(line);
    if (this.#state.state === "loading" && line.includes("listening on ")) {
      this.send({ type: "engine_announced", incarnation });
    }
  }

  #ended(incarnation: number, exit: ProcessExit, reason: string | EngineEnd | null): void {
    // An engine inside this process may tell of its end after we ended it.
    if (this.#run?.incarnation !== incarnation || this.#state.process !== "running") return;
    this.send({ type: "process_exited", incarnation, ...exit, reason, logTail: this.recentLines() });
  }

  #probe(run: Run): void {
    const { clock } = this.#ports;
    const late = new AbortController();
    const timer = clock.setTimer(limits.healthProbeTimeoutMs, () => late.abort());
    run.client
      .health(AbortSignal.any([run.abort.signal, late.signal]))
      .finally(() => timer.cancel())
      .then(
        (health) => this.#fact(run, { type: health === "ok" ? "health_ok" : "health_pending" }),
        (error: unknown) => {
          if (!isEngineError(error)) throw error;
          this.#fact(run, { type: "health_pending" });
        },
      );
  }

  #warmUp(run: Run): void {
    const { client, abort } = run;
    const warmUp = async () => {
      const identity = await client.identity(abort.signal);
      const measured = await client.warmUp(abort.signal, this.#speed !== null);
      this.#speed ??= measured;
      return { identity, speed: this.#speed };
    };
    warmUp().then(
      ({ identity, speed }) => this.#fact(run, { type: "warm_up_done", identity, speed }),
      (error: unknown) => {
        if (!isEngineError(error)) throw error;
        const message = `its first decode failed: ${error.message}`;
        this.#fact(run, { type: "warm_up_failed", message, logTail: this.recentLines() });
      },
    );
  }

  #fact(run: Run, fact: WithoutIncarnation<ReplicaFact>): void {
    this.send({ ...fact, incarnation: run.incarnation });
  }

  #setTimer(timer: ReplicaTimer, ms: number): void {
    this.#cancelTimer(timer);
    const { incarnation } = this.#state;
    const fire = () => {
      this.#timers.delete(timer);
      this.send({ type: "timer_fired", incarnation, timer, logTail: this.recentLines() });
    };
    this.#timers.set(timer, this.#ports.clock.setTimer(ms, fire));
  }

  #cancelTimer(timer: ReplicaTimer): void {
    this.#timers.get(timer)?.cancel();
    this.#timers.delete(timer);
  }

  #signal(run: Run, signal: "SIGTERM" | "SIGKILL"): void {
    if (run.process !== null) run.process.signalGroup(signal);
    else this.#ended(run.incarnation, { code: null, signal }, null);
  }

  #closeClient(): void {
    this.#run?.abort.abort();
    this.#run?.client.close();
  }

  #removeSecrets(plan: LaunchPlan | null): void {
    for (const file of plan?.secretFiles ?? []) this.#ports.processes.removeFile(file.path);
  }

  #cleanUp(): void {
    const run = this.#run;
    this.#run = null;
    if (run === null) return;
    const { processes } = this.#ports;
    if (run.process !== null) processes.forget(run.process.pid);
    this.#removeSecrets(run.plan);
    for (const path of run.plan?.socketPaths ?? []) processes.removeFile(path);
  }

  #fields() {
    const { id, engine } = this.pool;
    return { pool_id: id, replica_id: this.replicaId, engine, incarnation: this.#state.incarnation };
  }

  #logMove(before: Replica): void {
    const { log, clock } = this.#ports;
    const after = this.#state;
    const sinceStartMs = this.#run === null ? null : Math.round(clock.nowMs() - this.#run.startedAtMs);
    const failure = after.lastError === before.lastError ? null : after.lastError;
    const fields = {
      ...this.#fields(),
      from: before.state,
      to: after.state,
      pid: after.pid,
      cause: failure?.cause ?? null,
      exit_code: failure?.exitCode ?? null,
      signal: failure?.signal ?? null,
      since_start_ms: sinceStartMs,
      human: replicaSentence(this.replicaId, before, after, sinceStartMs),
    };
    if (failure !== null) log.warn("replica_state_changed", fields);
    // Ready and busy change with every task, whose own lines say more.
    else if (before.state === "busy" || after.state === "busy") log.debug("replica_state_changed", fields);
    else log.info("replica_state_changed", fields);
  }
}
