/**
 * A world around one replica machine: a process that may start, die or ignore signals, answers that come late
 * or never, timers that fire in any order, a dispatcher that leases. Each number is a choice among what could
 * happen now. It checks what always holds with its own bookkeeping, not with the machine's.
 */
import { assert } from "../../src/domain/assert.ts";
import { limits } from "../../src/domain/limits.ts";
import type { EngineIdentity } from "../../src/domain/pool.ts";
import { step } from "../../src/domain/replica.ts";
import {
  newReplica,
  type Replica,
  type ReplicaCommand,
  type ReplicaEvent,
  type ReplicaPolicy,
  type ReplicaTimer,
} from "../../src/domain/replica-model.ts";

export const replicaPolicy: ReplicaPolicy = {
  subject: {
    id: "chat",
    modelRef: "file:m.gguf",
    modelPath: "/m.gguf",
    engineBin: "/bin/llama-server",
    rpc: [],
  },
  slots: 4,
  loadMs: 10_000,
  stopGraceMs: 5_000,
  backoffMs: 100,
  backoffMaxMs: 1_000,
  breakerFailures: 3,
  breakerWindowMs: 60_000,
};

export type Choice = number;

/** What is on its way to the machine and of which incarnation. */
interface Answer {
  readonly kind: "probe" | "warm_up" | "look";
  readonly incarnation: number;
}

const tails = [
  [],
  ["error: invalid argument: --x"],
  ["gguf_init_from_file: failed to open GGUF file 'm' (No such file or directory)"],
  ["std::bad_alloc"],
];
const speed = { prefillTps: 1, decodeTps: 1 };

export class ReplicaWorld {
  replica: Replica = newReplica();
  readyReports = 0;
  lostReports = 0;
  processRuns = false;
  #process: "none" | "asked" | "running" = "none";
  #nowMs = 0;
  #incarnation = 0;
  #healthy = false;
  #decoded = false;
  #serving = 0;
  #termed = false;
  #killed = false;
  readonly #answers: Answer[] = [];
  readonly #timers = new Map<ReplicaTimer, { dueMs: number; incarnation: number }>();
  readonly #policy: ReplicaPolicy;
  readonly #identity: EngineIdentity;

  constructor(policy: ReplicaPolicy, identity: EngineIdentity) {
    this.#policy = policy;
    this.#identity = identity;
  }

  armedTimers(): string[] {
    return [...this.#timers.keys()];
  }

  /** One thing that could happen now happens. */
  turn(choice: Choice): void {
    const possible = this.#possible(choice >> 8);
    const act = possible[choice % possible.length];
    assert(act !== undefined, "something is always possible");
    act();
  }

  /** From here on only what follows a stop: `obedient` ends at SIGTERM, the other only at SIGKILL. */
  stopAndSettle(obedient: boolean): void {
    this.#send({ type: "stop_requested" });
    for (let turns = 0; this.replica.state !== "stopped"; turns += 1) {
      assert(turns < 20, `a stop ends: stuck in ${this.replica.state}`);
      if (this.#process === "asked") this.#started();
      else if (this.#process === "running" && (this.#killed || (obedient && this.#termed)))
        this.#exits(0, "SIGTERM");
      else this.#fireNext();
    }
    while (this.#answers.length > 0) this.#answer(0);
  }

  #possible(detail: number): (() => void)[] {
    const { replica } = this;
    const acts: (() => void)[] = [
      () => this.#send({ type: "start_requested" }),
      () => this.#staleFact(detail),
      () => {
        this.#nowMs += detail;
      },
    ];
    // Rare, or no walk gets far.
    if (detail % 7 === 0) acts.push(() => this.#send({ type: "stop_requested" }));
    if (detail % 17 === 0) acts.push(() => this.#send({ type: "force_stop_requested" }));
    if (detail % 5 === 0 || replica.state === "busy")
      acts.push(() => this.#send({ type: "drain_requested", deadlineMs: detail }));
    if (this.#process === "asked") {
      acts.push(() => this.#started());
      acts.push(() => this.#startFails(detail));
      acts.push(() => this.#started());
    }
    if (this.#process === "running") {
      acts.push(() => this.#fact({ type: "engine_announced" }));
      if (detail % 3 === 0 || this.#killed) acts.push(() => this.#exits(detail, null));
    }
    for (let at = 0; at < this.#answers.length; at += 1) {
      acts.push(() => this.#answer(detail, at));
      acts.push(() => this.#answer(detail, at));
    }
    for (const timer of this.#timers.keys()) acts.push(() => this.#fire(timer));
    if (this.#serving === replica.incarnation && this.#serving > 0) {
      acts.push(() => this.#fact({ type: "slots_changed", slotsBusy: detail % 5 }));
      acts.push(() => this.#fact({ type: "progress_made" }));
      acts.push(() => this.#fact({ type: "wedged", message: "silent", logTail: [] }));
    }
    return acts;
  }

  #fact(fact: { type: string; [field: string]: unknown }): void {
    this.#send({ ...fact, incarnation: this.#incarnation } as ReplicaEvent);
  }

  #started(): void {
    this.#process = "running";
    this.processRuns = true;
    this.#fact({ type: "process_started", pid: 1000 + this.#incarnation });
  }

  #startFails(detail: number): void {
    this.#process = "none";
    this.#fact({ type: "start_failed", message: detail % 2 === 0 ? "ENOENT" : "EAGAIN" });
  }

  #exits(detail: number, signal: string | null): void {
    this.#process = "none";
    this.processRuns = false;
    const logTail = tails[detail % tails.length] ?? [];
    const code = signal === null ? detail % 3 : null;
    this.#fact({ type: "process_exited", code, signal, reason: null, logTail });
  }

  #answer(detail: number, at = 0): void {
    const [answer] = this.#answers.splice(at, 1);
    if (answer === undefined) return;
    const { incarnation, kind } = answer;
    const current = incarnation === this.#incarnation;
    if (kind === "probe") {
      const ok = detail % 2 === 0;
      if (current && ok) this.#healthy = true;
      this.#send({ type: ok ? "health_ok" : "health_pending", incarnation });
    } else if (kind === "look") {
      const steady = detail % 3 === 0;
      this.#send({ type: "looked", incarnation, changed: detail % 2 === 0, steady, asked: detail % 5 === 0 });
    } else if (detail % 4 === 1) {
      this.#send({ type: "warm_up_failed", incarnation, message: "nonsense", logTail: [] });
    } else {
      if (current) this.#decoded = true;
      this.#send({ type: "warm_up_done", incarnation, identity: this.#identity, speed });
    }
  }

  #fireNext(): void {
    const next = [...this.#timers].sort(([, a], [, b]) => a.dueMs - b.dueMs)[0];
    assert(next !== undefined, `something ends ${this.replica.state}`);
    this.#fire(next[0]);
  }

  #fire(timer: ReplicaTimer): void {
    const armed = this.#timers.get(timer);
    assert(armed !== undefined, "only an armed timer fires");
    this.#timers.delete(timer);
    this.#nowMs = Math.max(this.#nowMs, armed.dueMs);
    this.#send({ type: "timer_fired", incarnation: armed.incarnation, timer, logTail: [] });
  }

  #staleFact(detail: number): void {
    if (this.#incarnation < 2) return;
    const before = this.replica;
    const incarnation = 1 + (detail % (this.#incarnation - 1));
    const facts: ReplicaEvent[] = [
      { type: "health_ok", incarnation },
      { type: "warm_up_done", incarnation, identity: this.#identity, speed },
      { type: "process_exited", incarnation, code: 1, signal: null, reason: null, logTail: [] },
      { type: "slots_changed", incarnation, slotsBusy: 99 },
      { type: "wedged", incarnation, message: "old", logTail: [] },
      { type: "timer_fired", incarnation, timer: "load", logTail: [] },
    ];
    const fact = facts[detail % facts.length];
    assert(fact !== undefined, "one of them");
    const next = step(before, fact, this.#nowMs, this.#policy, 0.5);
    assert(next.state === before && next.commands.length === 0, `a stale ${fact.type} changes nothing`);
  }

  #send(event: ReplicaEvent): void {
    const jitter = (this.#nowMs % 10) / 10;
    const next = step(this.replica, event, this.#nowMs, this.#policy, jitter);
    this.replica = next.state;
    for (const command of next.commands) this.#obey(command);
    if (next.state.state === "ready")
      assert(this.#healthy && this.#decoded, "ready only after a real decode");
    assert(
      next.state.failedStartsAtMs.length <= this.#policy.breakerFailures,
      "the breaker's memory is bounded",
    );
  }

  #obey(command: ReplicaCommand): void {
    switch (command.type) {
      case "start_process":
        assert(this.#process === "none", "the process before is reaped");
        assert(command.incarnation === this.#incarnation + 1, "every start is a new incarnation");
        this.#incarnation = command.incarnation;
        this.#process = "asked";
        this.#healthy = false;
        this.#decoded = false;
        this.#termed = false;
        this.#killed = false;
        return;
      case "probe_health":
        assert(this.#process === "running", "only a running process is probed");
        assert(!this.#awaits("probe"), "one probe at a time");
        this.#answers.push({ kind: "probe", incarnation: this.#incarnation });
        return;
      case "look":
        assert(this.#process === "none", "nobody looks while something runs");
        this.#answers.push({ kind: "look", incarnation: this.#incarnation });
        return;
      case "warm_up":
        assert(this.#healthy && !this.#awaits("warm_up"), "one warm-up, after a health answer");
        this.#answers.push({ kind: "warm_up", incarnation: this.#incarnation });
        return;
      case "set_timer":
        this.#checkWait(command.timer, command.ms);
        this.#timers.set(command.timer, {
          dueMs: this.#nowMs + command.ms,
          incarnation: this.#incarnation,
        });
        return;
      case "cancel_timer":
        this.#timers.delete(command.timer);
        return;
      case "signal":
        assert(this.#process === "running", "only a running process is signalled");
        this.#termed = true;
        if (command.signal === "SIGKILL") this.#killed = true;
        return;
      case "report_ready":
        assert(this.#serving !== this.#incarnation, "ready is told once");
        assert(this.readyReports === this.lostReports, "lost is told before the next ready");
        this.#serving = this.#incarnation;
        this.readyReports += 1;
        return;
      case "report_lost":
        assert(this.#serving === this.#incarnation, "lost is told of what was ready");
        this.lostReports += 1;
        assert(this.readyReports === this.lostReports, "lost is told once");
        return;
      case "clean_up":
        assert(this.#process === "none", "files go when the process is gone");
        return;
      default:
        return;
    }
  }

  #awaits(kind: Answer["kind"]): boolean {
    return this.#answers.some((answer) => answer.kind === kind && answer.incarnation === this.#incarnation);
  }

  #checkWait(timer: ReplicaTimer, ms: number): void {
    assert(Number.isFinite(ms) && ms >= 0, `timer ${timer} is armed with ${ms}`);
    if (timer === "backoff") {
      assert(ms >= this.#policy.backoffMs / 2 && ms <= this.#policy.backoffMaxMs, `backoff of ${ms} ms`);
    }
    if (timer === "look") assert(ms === limits.changeLookMs, `looks after ${ms} ms`);
    if (timer === "half_open") assert(ms <= this.#policy.breakerWindowMs, `half open after ${ms} ms`);
    if (timer === "kill") assert(ms <= this.#policy.stopGraceMs, `killed after ${ms} ms`);
  }
}
