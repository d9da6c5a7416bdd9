/**
 * The run of reloads: streams on the real engine while their pool is reloaded again and again, a third of the times with
 * something that must not work. Each stream is compared with what the same request says, uncut, of the model that it
 * names. Called by scripts/reloads.ts and by the tests of the real engine.
 *
 * Always holds: it ends; a rule that did not hold is in `failures` with its evidence; nothing is left running.
 */
import { mkdtempSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Chance } from "../../test/engine/support.ts";
import { enginePool } from "../../test/support/daemon.ts";
import { waitFor } from "../../test/support/wait.ts";
import { DaemonLife } from "../chaos/daemon-life.ts";
import { type Failure, Failures } from "../chaos/failures.ts";
import { type ClientFigures, Clients } from "./clients.ts";
import { engineFaults, FaultyEngine } from "./faulty-engine.ts";
import { Footprint, type FootprintFigures } from "./footprint.ts";
import { enginesOf, type Health, type HealthFigures, HealthWatch } from "./health.ts";
import { type ModelName, type Models, makeModels, otherContext } from "./models.ts";
import { type Fault, type PlannedReload, planOf, type Strategy } from "./plan.ts";

export interface ReloadsOptions {
  readonly seed: number;
  /** How to start the daemon. */
  readonly command: readonly string[];
  /** How many, or which. */
  readonly reloads: number | readonly PlannedReload[];
  readonly streams: number;
  /** Streams on top of those that there are slots for, so that something always waits. */
  readonly waiting: number;
  readonly tokens: number;
  readonly strategy: Strategy | "mixed";
  /** Times between two cuts of a client's connection on average; 0: never. */
  readonly clientCutMs: number;
  /** How long an engine may load: what those cost that never answer. */
  readonly loadMs: number;
  readonly say: (line: string) => void;
  /** Hears the log of the daemon at the end. */
  readonly onLog?: (log: string) => void;
}

export interface ReloadsSummary extends ClientFigures {
  readonly seed: number;
  readonly reloads_done: number;
  readonly reloads_failed: number;
  readonly client_cuts: number;
  /** How often each kind ended as it should. */
  readonly kinds: Readonly<Record<string, number>>;
  /** From the request to its answer, by kind, milliseconds. */
  readonly longest_ms: Readonly<Record<string, number>>;
  readonly health: HealthFigures;
  readonly footprint: FootprintFigures;
  readonly seconds: number;
  readonly failures: readonly Failure[];
}

const poolId = "chat";
const settledMsMax = 60_000;
/** Between two reloads each stream says so many tokens more, on average. */
const tokensBetween = 8;
/** What a reload that fails says why, by what was done to it. */
const problems: Readonly<Record<Fault, RegExp>> = {
  missing: /there is no file .*missing\.gguf/,
  truncated: /truncated\.gguf.*(damaged|corrupt|incomplete)|(damaged|corrupt|incomplete).*truncated\.gguf/,
  foreign: /GGUF/,
  digest: /the digest of .* is [0-9a-f]{64}, not 0{64}/,
  exits: /exit(ed)? .*7/,
  killed: /SIGKILL/,
  memory: /SIGABRT|memory/,
  stopped: /load_ms/,
  wedged: /load_ms|first decode failed: the engine did not answer/,
};

export async function runReloads(options: ReloadsOptions): Promise<ReloadsSummary> {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), "orchd-reloads-")));
  let run: Run | null = null;
  let life: DaemonLife | null = null;
  try {
    const models = await makeModels(folder);
    const engine = new FaultyEngine(folder);
    life = await DaemonLife.begin({
      command: options.command,
      poolId,
      settings: settingsOf(options, models, engine, folder),
      onDeath: (why) => run?.giveUp(why),
    });
    run = new Run(options, life, models, engine);
    return await run.run();
  } finally {
    if (life !== null) options.onLog?.(life.log);
    await life?.dispose();
    rmSync(folder, { recursive: true, force: true });
  }
}

const settingsOf = (
  { streams, tokens, loadMs }: ReloadsOptions,
  models: Models,
  engine: FaultyEngine,
  folder: string,
) => ({
  engines: { llamacpp: { bin: engine.path } },
  models: { dir: folder },
  pools: [
    enginePool(poolId, models.pathOf("demo"), {
      slots: streams,
      // More than the other model can: some requests fit the one only.
      ctx: Math.max(2 * otherContext, 256 * Math.ceil((tokens + 256) / 256)),
      args: ["--ignore-eos", "-t", "1"],
      timeouts: { load_ms: loadMs },
    }),
  ],
  tasks: { retention_ms: 60_000 },
  streaming: { metrics_every_ms: 100 },
});

class Run {
  readonly #options: ReloadsOptions;
  readonly #life: DaemonLife;
  readonly #models: Models;
  readonly #engine: FaultyEngine;
  readonly #chance: Chance;
  readonly #failures: Failures;
  readonly #health: HealthWatch;
  readonly #clients: Clients;
  readonly #footprint: Footprint;
  readonly #kinds = new Map<string, number>();
  readonly #longestMs = new Map<string, number>();
  readonly #count = { done: 0, failed: 0 };
  #model: ModelName = "demo";

  constructor(options: ReloadsOptions, life: DaemonLife, models: Models, engine: FaultyEngine) {
    this.#options = options;
    this.#life = life;
    this.#models = models;
    this.#engine = engine;
    this.#chance = new Chance(options.seed);
    this.#failures = new Failures(life, options.say);
    const fail = (what: string) => this.#failures.add(null, what);
    this.#health = new HealthWatch(life.now, fail);
    this.#footprint = new Footprint(life.now.pid, join(life.now.folder, "state", "journal"));
    this.#clients = new Clients({
      life,
      models,
      chance: this.#chance,
      failures: this.#failures,
      ...{ streams: options.streams, waiting: options.waiting },
      ...{ tokens: options.tokens, clientCutMs: options.clientCutMs },
    });
  }

  giveUp(why: string): void {
    this.#failures.add(null, why);
    this.#clients.giveUp(why.slice(0, 200));
  }

  async run(): Promise<ReloadsSummary> {
    const { reloads, strategy, say, seed } = this.#options;
    const fromMs = performance.now();
    await this.#clients.learn("demo");
    await this.#quietReload("other");
    await this.#clients.learn("other");
    await this.#quietReload("demo");
    const plan = typeof reloads === "number" ? planOf(reloads, strategy, this.#chance) : reloads;
    say(`${plan.length} reloads, ${plan.filter(({ fault }) => fault !== null).length} of them to fail`);
    this.#health.start();
    this.#clients.start(() => this.#model);
    try {
      for (const [at, one] of plan.entries()) {
        await this.#clients.hasSaidMore(tokensBetween);
        if (this.#failures.isFull) break;
        await this.#reload(one, at + 1);
        this.#footprint.look();
      }
    } catch (error) {
      this.giveUp(error instanceof Error ? error.message : String(error));
    }
    const clients = await this.#clients.stop();
    await this.#settled().catch((error: unknown) => this.giveUp(String(error)));
    const health = await this.#health.stop();
    const footprint = this.#footprint.figures((what) => this.#failures.add(null, what));
    for (const what of await this.#life.endInPeace(this.#failures.list.length === 0))
      this.#failures.add(null, what);
    return {
      seed,
      reloads_done: this.#count.done,
      reloads_failed: this.#count.failed,
      ...clients,
      kinds: Object.fromEntries([...this.#kinds].sort()),
      longest_ms: Object.fromEntries([...this.#longestMs].sort()),
      health,
      footprint,
      seconds: Math.round((performance.now() - fromMs) / 1000),
      failures: this.#failures.list,
    };
  }

  /** Before the run: nothing else goes on. */
  async #quietReload(model: ModelName): Promise<void> {
    const answer = await this.#ask({ strategy: "recreate", new_model_ref: this.#models.refOf(model) });
    if (answer.status !== 200) throw new Error(`the reload to ${model} was answered ${answer.text}`);
    this.#model = model;
    await this.#settled();
  }

  async #reload(planned: PlannedReload, number: number): Promise<void> {
    const { strategy, target, fault, deadlineMs } = planned;
    const before = await this.#settled();
    const refOfFault = { missing: "missingRef", truncated: "truncatedRef", foreign: "foreignRef" } as const;
    const toRef =
      fault === "missing" || fault === "truncated" || fault === "foreign"
        ? this.#models[refOfFault[fault]]
        : this.#models.refOf(target);
    const order = engineFaults.find((one) => one === fault);
    if (order !== undefined) this.#engine.order(order);
    this.#health.begins({
      strategy,
      fromRef: this.#models.refOf(this.#model),
      toRef,
      succeeds: fault === null,
      servingIds: new Set(before.replicas.map(({ id }) => id)),
    });
    this.#clients.mayCut();
    const fromMs = performance.now();
    const answer = await this.#ask({
      ...{ strategy, new_model_ref: toRef, deadline_ms: deadlineMs },
      ...(fault === "digest" ? { digest: "0".repeat(64) } : {}),
    });
    const tookMs = Math.round(performance.now() - fromMs);
    this.#clients.mayCut();
    const kind = `${strategy} ${fault ?? this.#targetKind(target)}`;
    this.#options.say(
      `${number}. ${kind} to ${target} within ${deadlineMs} ms: ${answer.status}, ${tookMs} ms`,
    );
    this.#longestMs.set(kind, Math.max(this.#longestMs.get(kind) ?? 0, tookMs));
    const wrong = (what: string) =>
      this.#failures.add(
        null,
        `reload ${number} (${kind}): ${what}: ${answer.status} ${answer.text.slice(0, 600)}`,
      );
    if (order !== undefined && !this.#engine.isTaken) wrong("its engine was never started");
    if (fault === null) {
      if (answer.status !== 200) return wrong("it was to succeed");
      this.#model = target;
      this.#count.done++;
    } else {
      const wanted = fault === "missing" ? [400, "INVALID_PARAMS"] : [409, "RELOAD_FAILED"];
      if (answer.status !== wanted[0] || answer.code !== wanted[1]) return wrong("it was to fail");
      if (!problems[fault].test(answer.message)) wrong(`the message does not tell ${problems[fault]}`);
      this.#count.failed++;
      await this.#afterRollback(planned, before, wrong);
    }
    this.#kinds.set(kind, (this.#kinds.get(kind) ?? 0) + 1);
    await this.#settled();
  }

  /** The pool is what it was; what did not have to end for that is the same process. */
  async #afterRollback(
    { strategy, fault }: PlannedReload,
    before: Health,
    wrong: (what: string) => void,
  ): Promise<void> {
    const after = await this.#health.now();
    if (after.model_ref !== before.model_ref) wrong(`the model is ${after.model_ref} now`);
    if (fault !== "missing" && (after.reload?.phase !== "failed" || after.reload.problem === null))
      wrong(`health says ${JSON.stringify(after.reload)}`);
    const isTouched =
      strategy === "recreate" && fault !== "foreign" && fault !== "digest" && fault !== "missing";
    const pidsOf = ({ replicas }: Health) => replicas.map(({ id, pid }) => `${id} ${pid}`).join();
    if (!isTouched && pidsOf(after) !== pidsOf(before)) wrong(`${pidsOf(before)} became ${pidsOf(after)}`);
  }

  #targetKind(target: ModelName): string {
    if (target === this.#model) return "same";
    return target === "other" || this.#model === "other" ? "other" : "copy";
  }

  /** One replica, ready, with the model that it should have; no engine but that one runs. */
  async #settled(): Promise<Health> {
    const modelRef = this.#models.refOf(this.#model);
    let seen: Health | null = null;
    const look = async () => {
      seen = await this.#health.now();
      const { ready, state, model_ref, replicas, reload, last_error } = seen;
      const engines = enginesOf(this.#life.now.pid);
      const [replica] = replicas;
      const isOver = reload === null || reload.phase === "done" || reload.phase === "failed";
      const isThere = replicas.length === 1 && engines.size === 1 && engines.has(replica?.pid ?? -1);
      // What it says of its engine's errors is of an engine that serves: none of them had any.
      return ready && state === "ready" && isOver && isThere && model_ref === modelRef && last_error === null
        ? seen
        : null;
    };
    return await waitFor(look, settledMsMax, `one engine with ${modelRef}`).catch((error: unknown) => {
      throw new Error(`it does not settle: ${JSON.stringify(seen)}`, { cause: error });
    });
  }

  async #ask(body: object): Promise<{ status: number; code: string; message: string; text: string }> {
    const response = await this.#life.now.fetch(`/v1/pools/${poolId}/reload?wait=true`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    const text = await response.text();
    const { code = "", message = "" } = JSON.parse(text) as { code?: string; message?: string };
    return { status: response.status, code, message, text };
  }
}
