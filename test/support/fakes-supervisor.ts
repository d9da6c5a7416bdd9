/**
 * Fakes around the supervisor: a process host whose children live and die as the test says, an engine whose
 * answers the test gives, and a listener that remembers. Over a VirtualClock nothing here takes real time.
 */
import { assert } from "../../src/domain/assert.ts";
import type { EngineKind } from "../../src/domain/engine-kind.ts";
import { OrchestratorError } from "../../src/domain/errors.ts";
import type { PoolSpec, ReplicaFailure, ReplicaSnapshot, WarmUpSpeed } from "../../src/domain/pool.ts";
import type { EngineAdapter, EngineClient, LaunchPlan } from "../../src/ports/engine.ts";
import { EngineError } from "../../src/ports/engine.ts";
import type { ProcessExit, ProcessHost, StartedProcess, StartRequest } from "../../src/ports/process.ts";
import type { ReplicaListener } from "../../src/ports/supervision.ts";
import type { Log, LogFields, Metrics } from "../../src/ports/telemetry.ts";
import { identity } from "./replicas.ts";

export class FakeProcess implements StartedProcess {
  readonly pid: number;
  readonly startTicks = "1";
  readonly request: StartRequest;
  readonly signals: string[] = [];
  readonly #exited = Promise.withResolvers<ProcessExit>();
  #gone = false;
  /** It ends at the first of these; a stubborn engine has none but SIGKILL. */
  diesOf: readonly string[] = ["SIGTERM", "SIGKILL"];

  constructor(pid: number, request: StartRequest) {
    this.pid = pid;
    this.request = request;
  }

  get exited(): Promise<ProcessExit> {
    return this.#exited.promise;
  }

  get alive(): boolean {
    return !this.#gone;
  }

  signalGroup(signal: "SIGTERM" | "SIGKILL" | "SIGINT"): void {
    this.signals.push(signal);
    if (this.diesOf.includes(signal)) this.exit({ code: null, signal });
  }

  exit(exit: ProcessExit): void {
    this.#gone = true;
    this.#exited.resolve(exit);
  }

  says(...lines: string[]): void {
    for (const line of lines) this.request.onLine(line, "stderr");
  }
}

export class FakeProcessHost implements ProcessHost {
  readonly started: FakeProcess[] = [];
  readonly files = new Map<string, string>();
  readonly remembered = new Map<number, string>();
  /** The next start fails with this. */
  refusal: string | null = null;
  diskFull = false;
  #nextPid = 100;

  get last(): FakeProcess {
    const last = this.started.at(-1);
    assert(last !== undefined, "something was started");
    return last;
  }

  get alive(): FakeProcess[] {
    return this.started.filter((process) => process.alive);
  }

  start(request: StartRequest): StartedProcess {
    if (this.refusal !== null) throw new OrchestratorError("POOL_UNAVAILABLE", this.refusal);
    const process = new FakeProcess(this.#nextPid, request);
    this.#nextPid += 1;
    this.started.push(process);
    return process;
  }
  writeSecret(path: string, content: string): void {
    this.files.set(path, content);
  }
  removeFile(path: string): void {
    this.files.delete(path);
  }
  /** What lies elsewhere; a test changes it. */
  outside = "";
  readonly stamped: (readonly string[])[] = [];
  stampOf(paths: readonly string[]): string {
    this.stamped.push(paths);
    return this.outside;
  }
  remember(process: { pid: number; startTicks: string; replicaId: string }): void {
    if (this.diskFull) throw new OrchestratorError("POOL_UNAVAILABLE", "no space left on device");
    this.remembered.set(process.pid, process.replicaId);
  }
  forget(pid: number): void {
    this.remembered.delete(pid);
  }
  sweep(): Promise<number> {
    return Promise.resolve(0);
  }
}

const speed: WarmUpSpeed = { prefillTps: 100, decodeTps: 50 };

/** What the engine does when it is asked; the test changes it as it likes. */
export interface Behaviour {
  health: "ok" | "loading" | "unreachable" | "silent";
  warmUp: "ok" | "fails" | "silent";
}

export class FakeClient implements EngineClient {
  readonly kind: EngineKind;
  readonly lines: string[] = [];
  readonly #behaviour: Behaviour;
  readonly #died = Promise.withResolvers<string>();
  healthCalls = 0;
  warmUps = 0;
  /** Of the last warm-up: as brief as can be. */
  brief = false;
  closed = false;

  constructor(kind: EngineKind, behaviour: Behaviour) {
    this.kind = kind;
    this.#behaviour = behaviour;
  }

  get exited(): Promise<string> {
    return this.#died.promise;
  }

  /** An engine inside the process ends by itself. */
  die(reason: string): void {
    this.#died.resolve(reason);
  }

  health(signal: AbortSignal): Promise<"ok" | "loading"> {
    this.healthCalls += 1;
    const { health } = this.#behaviour;
    if (health === "silent") return untilAborted(signal);
    if (health === "unreachable") return Promise.reject(new EngineError("connection", "refused"));
    return Promise.resolve(health);
  }
  identity() {
    return Promise.resolve(identity({ engine: this.kind, slots: 2 }));
  }
  warmUp(signal: AbortSignal, speedKnown = false): Promise<WarmUpSpeed> {
    this.warmUps += 1;
    this.brief = speedKnown;
    const { warmUp } = this.#behaviour;
    if (warmUp === "silent") return untilAborted(signal);
    if (warmUp === "fails") return Promise.reject(new EngineError("protocol", "an empty answer"));
    // What so short a decode seems to take says nothing.
    return Promise.resolve(speedKnown ? { prefillTps: 1, decodeTps: 1 } : speed);
  }
  async tokenize(): Promise<number[]> {
    return [];
  }
  async eraseContext(): Promise<void> {
    // Holds nothing.
  }

  onLogLine(line: string): void {
    this.lines.push(line);
  }
  close(): void {
    this.closed = true;
  }
  countTokens(): Promise<number> {
    return unused();
  }
  applyTemplate(): Promise<string> {
    return unused();
  }
  generate(): Promise<never> {
    return unused();
  }
  embed(): Promise<never> {
    return unused();
  }
  rerank(): Promise<never> {
    return unused();
  }
  slots(): Promise<never> {
    return unused();
  }
  awaitSlotFree(): Promise<void> {
    return unused();
  }
}

function untilAborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(new EngineError("aborted", "aborted")), { once: true });
  });
}

function unused(): Promise<never> {
  throw new Error("the supervisor does not call this");
}

/** llamacpp plans processes, mock runs inside. */
export class FakeAdapter implements EngineAdapter {
  readonly kind: EngineKind;
  readonly behaviour: Behaviour = { health: "ok", warmUp: "ok" };
  readonly clients: FakeClient[] = [];
  plans = 0;

  constructor(kind: EngineKind) {
    this.kind = kind;
  }

  get last(): FakeClient {
    const last = this.clients.at(-1);
    assert(last !== undefined, "a client was made");
    return last;
  }

  plan(pool: PoolSpec, replicaId: string, runDir: string): LaunchPlan | null {
    if (this.kind === "mock") return null;
    this.plans += 1;
    return {
      command: ["engine", "-m", pool.modelRef],
      env: { A: "1" },
      secretFiles: [{ path: `${runDir}/${replicaId}.key`, content: `key-${this.plans}` }],
      socketPaths: [`${runDir}/${replicaId}.sock`],
      connect: () => this.#client(),
    };
  }
  connectInProcess(): EngineClient {
    return this.#client();
  }

  #client(): FakeClient {
    const client = new FakeClient(this.kind, this.behaviour);
    this.clients.push(client);
    return client;
  }
}

export class RecordingListener implements ReplicaListener {
  readonly ready: { snapshot: ReplicaSnapshot; client: EngineClient; speed: WarmUpSpeed }[] = [];
  readonly lost: { replicaId: string; incarnation: number; failure: ReplicaFailure | null }[] = [];
  readonly unavailable: { poolId: string; failure: ReplicaFailure }[] = [];

  replicaReady(snapshot: ReplicaSnapshot, client: EngineClient, readySpeed: WarmUpSpeed): void {
    this.ready.push({ snapshot, client, speed: readySpeed });
  }
  replicaLost(_poolId: string, replicaId: string, incarnation: number, failure: ReplicaFailure | null): void {
    this.lost.push({ replicaId, incarnation, failure });
  }
  poolUnavailable(poolId: string, failure: ReplicaFailure): void {
    this.unavailable.push({ poolId, failure });
  }
}

export class RecordingLog implements Log {
  readonly lines: { level: string; event: string; fields: LogFields }[] = [];

  debug(event: string, fields: LogFields): void {
    this.lines.push({ level: "debug", event, fields });
  }
  info(event: string, fields: LogFields): void {
    this.lines.push({ level: "info", event, fields });
  }
  warn(event: string, fields: LogFields): void {
    this.lines.push({ level: "warn", event, fields });
  }
  error(event: string, fields: LogFields): void {
    this.lines.push({ level: "error", event, fields });
  }

  /** The states that a replica went through, as the log tells them. */
  states(replicaId: string): string[] {
    return this.lines.flatMap(({ event, fields }) =>
      event === "replica_state_changed" && fields.replica_id === replicaId ? [String(fields.to)] : [],
    );
  }
}

/** Counts restarts; the supervisor counts nothing else. */
export class RestartMetrics {
  readonly restarts: { poolId: string; replicaId: string; cause: string }[] = [];

  restart(labels: { poolId: string; replicaId: string; cause: string }): void {
    this.restarts.push(labels);
  }

  asMetrics(): Metrics {
    return this as unknown as Metrics;
  }
}
