/**
 * Reads the health of the pool all the time while it is reloaded, and holds it against what the kernel says of the
 * processes and what is known of the reload. Called by run.ts, which tells what it does.
 *
 * What cannot be otherwise for a moment is a failure at once. Processes come and go beside the answer: a pid that is listed
 * and does not run, or runs and is not listed, is a failure when it stays so.
 */
import { readdirSync, readFileSync } from "node:fs";
import type { RunningDaemon } from "../../test/support/daemon.ts";
import { isRunning } from "../../test/support/process-probe.ts";
import type { Strategy } from "./plan.ts";

export interface Health {
  readonly live: boolean;
  readonly ready: boolean;
  readonly draining: boolean;
  readonly state: string;
  readonly model_ref: string;
  readonly replicas: readonly ReplicaHealth[];
  readonly last_error: { readonly cause: string; readonly message: string } | null;
  readonly drain: unknown;
  readonly reload: ReloadHealth | null;
}

interface ReplicaHealth {
  readonly id: string;
  readonly state: string;
  readonly pid: number | null;
  readonly slots_total: number;
  readonly slots_busy: number;
}

interface ReloadHealth {
  readonly phase: string;
  readonly strategy: string;
  readonly new_model_ref: string;
  readonly since_ms: number;
  readonly running: number;
  readonly replicas_ready: number;
  readonly replicas: number;
  readonly problem: string | null;
}

/** What is known of the reload that is under way. */
export interface Expected {
  readonly strategy: Strategy;
  readonly fromRef: string;
  readonly toRef: string;
  /** Whether it is to succeed. */
  readonly succeeds: boolean;
  /** Replicas that served when it began. */
  readonly servingIds: ReadonlySet<string>;
}

export interface HealthFigures {
  readonly polls: number;
  /** The longest time that a pid was listed and did not run, or ran and was not listed. */
  readonly longest_mismatch_ms: number;
  /** How often each phase was seen. */
  readonly phases: Readonly<Record<string, number>>;
}

const poolPath = "/v1/pools/chat/health";
const pollMs = 50;
const mismatchMsMax = 10_000;
const mismatchPollsMin = 20;

/** The phases of domain/pool-reload.ts in their order, told once more: this is the onlooker. */
const order: Readonly<Record<Strategy, readonly string[]>> = {
  recreate: ["checking", "draining", "stopping", "loading", "rechecking", "flipping", "discarding"],
  surge: ["checking", "loading", "rechecking", "flipping", "discarding", "draining", "stopping"],
};
/** In these the new model is the pool's. */
const behindFlip: Readonly<Record<Strategy, readonly string[]>> = {
  recreate: ["done"],
  surge: ["draining", "stopping", "done"],
};
const over = ["done", "failed"];
const serving = ["ready", "busy"];

export class HealthWatch {
  readonly #daemon: RunningDaemon;
  readonly #fail: (what: string) => void;
  readonly #mismatches = new Map<string, { sinceMs: number; polls: number }>();
  readonly #phases = new Map<string, number>();
  #polls = 0;
  #longestMs = 0;
  #expected: Expected | null = null;
  /** When the reload before the one that is expected was asked for, as health told it. */
  #sinceMsBefore = 0;
  /** The same of the one that is expected; null: it has not begun. */
  #sinceMs: number | null = null;
  #phase = "";
  readonly #told = new Set<string>();
  #latest: Health | null = null;
  #stopped = false;
  #running: Promise<void> = Promise.resolve();

  constructor(daemon: RunningDaemon, fail: (what: string) => void) {
    this.#daemon = daemon;
    this.#fail = fail;
  }

  start(): void {
    this.#running = this.#watch();
  }

  async stop(): Promise<HealthFigures> {
    this.#stopped = true;
    await this.#running;
    return {
      polls: this.#polls,
      longest_mismatch_ms: Math.round(this.#longestMs),
      phases: Object.fromEntries(this.#phases),
    };
  }

  /** From now on this reload is under way; called before it is asked for. */
  begins(expected: Expected): void {
    this.#expected = expected;
    this.#sinceMsBefore = this.#sinceMs ?? this.#sinceMsBefore;
    this.#sinceMs = null;
    this.#phase = "";
    this.#told.clear();
  }

  /** One answer, checked as those of the watch. */
  async now(): Promise<Health> {
    await this.#poll();
    if (this.#latest === null) throw new Error("the daemon does not tell its pool's health");
    return this.#latest;
  }

  async #watch(): Promise<void> {
    while (!this.#stopped) {
      await this.#poll();
      await Bun.sleep(pollMs);
    }
  }

  async #poll(): Promise<void> {
    const before = enginesOf(this.#daemon.pid);
    const expected = this.#expected;
    const health = await this.#daemon.json<Health>(poolPath).catch((error: unknown) => {
      this.#fail(`health: ${error instanceof Error ? error.message : String(error)}`);
      return null;
    });
    if (health === null) return;
    const after = enginesOf(this.#daemon.pid);
    this.#polls++;
    this.#latest = health;
    const wrong = (what: string) => {
      // Once for each reload: the next answers will say the same.
      if (this.#told.has(what)) return;
      this.#told.add(what);
      this.#fail(`health: ${what}: ${shown(health)}`);
    };
    this.#judgePool(health, wrong);
    // What was asked for in the middle of the question may or may not be in the answer.
    if (expected !== null && expected === this.#expected) this.#judgeReload(health, expected, wrong);
    this.#judgeProcesses(health, before, after, wrong);
  }

  /** What holds whatever goes on. */
  #judgePool(health: Health, wrong: (what: string) => void): void {
    const { live, ready, draining, state, drain, replicas, reload } = health;
    if (!live) wrong("the pool is not live");
    if (ready && draining) wrong("ready and draining");
    if (drain !== null) wrong("a drain that nobody asked for");
    if (ready && state !== "ready") wrong("ready in another state");
    if (ready && !replicas.some((one) => serving.includes(one.state))) wrong("ready, and no replica is");
    for (const one of replicas) {
      if (one.slots_busy > one.slots_total) wrong(`more slots of ${one.id} are busy than it has`);
      if (serving.includes(one.state) && one.pid === null) wrong(`${one.id} serves without a process`);
    }
    if (new Set(replicas.map(({ id }) => id)).size < replicas.length) wrong("a replica is listed twice");
    if (reload === null) return;
    this.#phases.set(reload.phase, (this.#phases.get(reload.phase) ?? 0) + 1);
    if (reload.replicas_ready > reload.replicas) wrong("more new replicas are ready than there are to be");
    const hasProblem = ["discarding", "failed"].includes(reload.phase);
    if (hasProblem !== (reload.problem !== null)) wrong("problem and phase do not agree");
  }

  #judgeReload(health: Health, expected: Expected, wrong: (what: string) => void): void {
    const { reload, model_ref, ready, draining, replicas } = health;
    const { strategy, fromRef, toRef, servingIds } = expected;
    if (strategy === "surge" && !ready) wrong("a surge, and not ready");
    const phase = this.#phaseOf(reload, expected, wrong);
    const flipped = phase !== null && behindFlip[strategy].includes(phase);
    if (model_ref !== (flipped ? toRef : fromRef)) wrong(`the model is not ${flipped ? toRef : fromRef}`);
    // Before the flip only the old ones serve: without them nothing is ready, whatever the new ones do.
    const old = replicas.filter(({ id }) => servingIds.has(id));
    if (!flipped && ready && !old.some(({ state }) => serving.includes(state)))
      wrong("ready, and no replica that serves is");
    const held = strategy === "recreate" && phase !== null && order.recreate.indexOf(phase) >= 1;
    if (held !== draining) wrong(`draining, where something ${held ? "does not start" : "starts"}`);
    for (const { id, pid } of replicas) {
      const model = pid === null ? null : modelOf(pid);
      // Whoever is there after a rollback is an old one again.
      if (model !== null && `file:${model}` !== (servingIds.has(id) ? fromRef : toRef))
        wrong(`${id} (pid ${pid}) has ${model}`);
    }
  }

  /** Null: it has not begun. */
  #phaseOf(
    reload: ReloadHealth | null,
    { strategy, toRef, succeeds }: Expected,
    wrong: (what: string) => void,
  ): string | null {
    if (reload === null || reload.since_ms <= this.#sinceMsBefore) {
      if (this.#sinceMs !== null || (reload?.since_ms ?? 0) < this.#sinceMsBefore) wrong("it is forgotten");
      return null;
    }
    this.#sinceMs ??= reload.since_ms;
    if (reload.since_ms !== this.#sinceMs) wrong("another reload than the one that was asked for");
    if (reload.strategy !== strategy || reload.new_model_ref !== toRef) wrong("not what was asked for");
    const { phase } = reload;
    const steps = order[strategy];
    const at = (one: string) => (over.includes(one) ? steps.length : steps.indexOf(one));
    if (at(phase) < 0) wrong(`phase ${phase} in a ${strategy}`);
    const isBack = this.#phase !== "" && at(phase) < at(this.#phase);
    if (isBack || (over.includes(this.#phase) && phase !== this.#phase))
      wrong(`${phase} behind ${this.#phase}`);
    this.#phase = phase;
    if (succeeds ? phase === "failed" : behindFlip[strategy].includes(phase))
      wrong(`it was to ${succeeds ? "succeed" : "fail"}`);
    return phase;
  }

  #judgeProcesses(
    { replicas }: Health,
    before: ReadonlySet<number>,
    after: ReadonlySet<number>,
    wrong: (what: string) => void,
  ): void {
    const listed = new Set(replicas.flatMap(({ pid }) => (pid === null ? [] : [pid])));
    const now = new Set<string>();
    for (const pid of listed) if (!isRunning(pid)) now.add(`pid ${pid} is listed and does not run`);
    for (const pid of before)
      if (after.has(pid) && !listed.has(pid)) now.add(`pid ${pid} runs and is not listed`);
    const nowMs = performance.now();
    for (const what of this.#mismatches.keys()) if (!now.has(what)) this.#mismatches.delete(what);
    for (const what of now) {
      const seen = this.#mismatches.get(what) ?? { sinceMs: nowMs, polls: 0 };
      seen.polls++;
      this.#mismatches.set(what, seen);
      const ms = nowMs - seen.sinceMs;
      this.#longestMs = Math.max(this.#longestMs, ms);
      if (ms > mismatchMsMax && seen.polls > mismatchPollsMin) wrong(`${what} for ${Math.round(ms)} ms`);
    }
  }
}

/** The engines that are children of the daemon, by the kernel's word. */
export function enginesOf(daemonPid: number): Set<number> {
  const pids = new Set<number>();
  for (const thread of foldersOf(`/proc/${daemonPid}/task`))
    for (const pid of textOf(`/proc/${daemonPid}/task/${thread}/children`).split(" "))
      if (pid !== "" && argsOf(Number(pid)).includes("--api-key-file") && isRunning(Number(pid)))
        pids.add(Number(pid));
  return pids;
}

/** The file that an engine was started with; null: it is gone. */
export function modelOf(pid: number): string | null {
  const args = argsOf(pid);
  const at = args.indexOf("-m");
  return at < 0 ? null : (args[at + 1] ?? null);
}

const argsOf = (pid: number): string[] => textOf(`/proc/${pid}/cmdline`).split("\0");

/** Empty: the process is gone. */
function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function foldersOf(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

const shown = ({ ready, draining, state, model_ref, replicas, reload }: Health): string =>
  JSON.stringify({
    ...{ ready, draining, state, model_ref, reload },
    replicas: replicas.map(({ id, state: its, pid, slots_busy }) => `${id} ${its} ${pid} ${slots_busy}`),
  });
