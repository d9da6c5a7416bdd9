/**
 * Admission: from what a client asks to a task that was accepted with a promise, or a refusal that says what
 * to do. What may take time comes first: the pool, the engine counting tokens or rendering a chat. Then one turn
 * of the dispatcher decides what depends on others: idempotency, the place in the queue, the deadline.
 * Called by the API; `probe` asks each pool's queue for /readyz.
 */
import canonicalize from "canonicalize";
import { closest } from "fastest-levenshtein";
import { isAssertion } from "../domain/assert.ts";
import { isOrchestratorError, OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { EngineKind, PoolSpec } from "../domain/pool.ts";
import { samplerProfiles } from "../domain/sampler-profile.ts";
import type { Priority, Sampling, TaskInput, TaskSpec, Workload } from "../domain/task.ts";
import type { Entropy } from "../ports/clock.ts";
import { isEngineError } from "../ports/engine.ts";
import { contextMessage, promptTokensBound } from "./attempt-runner.ts";
import type { Dispatcher, Submitted } from "./dispatcher.ts";

/** A request as the API hands it over: validated in shape, nothing defaulted. */
export interface Submission {
  readonly keyId: string;
  readonly correlationId: string;
  readonly taskId: string | null;
  readonly sessionId: string | null;
  readonly workload: Workload | null;
  readonly input: TaskInput;
  readonly modelRef: string | null;
  readonly engine: EngineKind | null;
  readonly pinPoolId: string | null;
  readonly ctx: number | null;
  readonly priority: Priority | null;
  readonly seed: number | null;
  readonly sampling: Partial<Sampling>;
  readonly maxTokens: number | null;
  readonly deadlineMs: number | null;
  readonly expectedTokens: number | null;
  readonly kvHint: "reuse" | "cold" | null;
  readonly onDisconnect: "cancel" | "continue" | null;
  readonly metadata: Readonly<Record<string, string>>;
  /** The body as it came: the same task_id must come with the same body. */
  readonly body: unknown;
}

export interface AdmissionOptions {
  readonly defaultMaxTokens: number;
  readonly defaultDeadlineMs: number | null;
}

interface PromptSize {
  readonly tokens: number;
  readonly exact: boolean;
  readonly rendered: string | null;
}

export class Admission {
  constructor(
    private readonly dispatcher: Dispatcher,
    private readonly pools: readonly PoolSpec[],
    private readonly entropy: Entropy,
    private readonly options: AdmissionOptions,
  ) {}

  async submit(submission: Submission): Promise<Submitted> {
    const prepared = await this.prepare(submission).catch((error: unknown) => {
      if (isOrchestratorError(error)) this.dispatcher.noteRefusal(engineAsked(submission, this.pools), error);
      throw error;
    });
    return "record" in prepared ? prepared : await this.dispatcher.submit(prepared);
  }

  /** Everything that may take time or be wrong; a task that was accepted before is the answer itself. */
  private async prepare(submission: Submission): Promise<TaskSpec | Submitted> {
    assertInterchangeable(submission.body);
    // Only a task that names itself can come twice; then the first answer stands, whatever the pools do now.
    const bodyDigest = submission.taskId === null ? "" : digestOf(submission.body);
    if (submission.taskId !== null) {
      const repeat = this.dispatcher.repeatOf(submission.taskId, submission.keyId, bodyDigest);
      if (isOrchestratorError(repeat)) throw repeat;
      if (repeat !== null) return repeat;
    }
    const workload = workloadOf(submission);
    const pool = this.choosePool(submission, workload);
    const deadlineMs = submission.deadlineMs ?? this.options.defaultDeadlineMs;
    if (deadlineMs !== null && deadlineMs <= 0)
      throw new OrchestratorError(
        "DEADLINE_UNMET",
        "deadline_ms has passed already: give the milliseconds left from now",
        {
          details: { deadline_ms: deadlineMs },
        },
      );
    const ctx = this.contextOf(pool, submission.ctx);
    const maxTokens = maxTokensOf(submission, workload, ctx, this.options.defaultMaxTokens);
    const size = await this.measure(submission.input, pool, ctx, maxTokens);
    return {
      taskId: submission.taskId ?? this.entropy.uuid(),
      keyId: submission.keyId,
      correlationId: submission.correlationId,
      sessionId: submission.sessionId,
      workload,
      input: submission.input,
      poolId: pool.id,
      pinned: submission.pinPoolId !== null,
      modelRef: pool.modelRef,
      priority: submission.priority ?? "interactive",
      seed: submission.seed ?? this.entropy.uint32(),
      samplerProfileVersion: pool.samplerProfileVersion,
      sampling: samplingOf(pool, submission.sampling),
      maxTokens,
      ctx,
      deadlineMs,
      expectedTokens: submission.expectedTokens,
      kvHint: submission.kvHint ?? "reuse",
      onDisconnect: submission.onDisconnect ?? "cancel",
      metadata: submission.metadata,
      tokensIn: size.tokens,
      tokensInExact: size.exact,
      renderedPrompt: size.rendered,
      bodyDigest,
    };
  }

  /** What a small interactive task would be told by each pool now; null: it would be taken. */
  probe(): { poolId: string; error: OrchestratorError | null }[] {
    return this.pools.map((pool) => ({
      poolId: pool.id,
      error: this.dispatcher.refusalFor(pool.id, "interactive"),
    }));
  }

  private choosePool(submission: Submission, workload: Workload): PoolSpec {
    const { pinPoolId, modelRef, engine } = submission;
    const named = pinPoolId === null ? this.pools : [knownPool(this.pools, pinPoolId)];
    const ofModel = modelRef === null ? named : named.filter((pool) => servesModel(pool, modelRef));
    if (modelRef !== null && ofModel.length === 0) throw unknownModel(this.pools, modelRef, pinPoolId);
    const able = ofModel.filter(
      (pool) => (engine === null || pool.engine === engine) && pool.workloads.includes(workload),
    );
    if (able.length === 0)
      throw new OrchestratorError(
        "INVALID_PARAMS",
        `no pool offers workload ${workload}${engine === null ? "" : ` on engine ${engine}`}` +
          `${modelRef === null ? "" : ` for model ${modelRef}`}: see GET /v1/capabilities`,
        { details: { workload, engine, model_ref: modelRef } },
      );
    return this.leastBusy(able, submission.priority ?? "interactive");
  }

  /** Among pools that could all do it: one that takes tasks, that is loaded, with the least waiting per slot. */
  private leastBusy(pools: readonly PoolSpec[], priority: Priority): PoolSpec {
    const ranked = pools.map((pool) => {
      const refused = this.dispatcher.refusalFor(pool.id, priority) !== null;
      const ready = this.dispatcher.runtime(pool.id).ready;
      const { interactive, batch } = this.dispatcher.view.depth(pool.id);
      // What came in the same instant waits for its turn and is not in the queue yet.
      let waiting = interactive + batch + this.dispatcher.submitting(pool.id);
      for (const replicaId of ready.keys()) waiting += this.dispatcher.view.slotsBusy(replicaId);
      return {
        pool,
        rank: [refused ? 1 : 0, ready.size > 0 ? 0 : 1, waiting / (pool.slots * pool.replicas)],
      };
    });
    ranked.sort((a, b) => compare(a.rank, b.rank) || (a.pool.id < b.pool.id ? -1 : 1));
    const best = ranked[0];
    if (best === undefined) throw new OrchestratorError("POOL_UNAVAILABLE", "no pool is configured");
    return best.pool;
  }

  /** Tokens of context the task may use; what is not known before the model is loaded is checked at the start. */
  private contextOf(pool: PoolSpec, asked: number | null): number {
    const known = this.dispatcher.runtime(pool.id).identity?.ctxPerSlot ?? pool.ctx;
    if (known === null) return asked ?? limits.maxTokensMax;
    if (asked !== null && asked > known)
      throw new OrchestratorError(
        "INVALID_PARAMS",
        `ctx ${asked} is beyond pool ${pool.id}, which has ${known} tokens per slot: ask for at most that`,
        { poolId: pool.id, engine: pool.engine, details: { field: "ctx", maximum: known } },
      );
    return asked ?? known;
  }

  private async measure(
    input: TaskInput,
    pool: PoolSpec,
    ctx: number,
    maxTokens: number,
  ): Promise<PromptSize> {
    if (input.kind === "embedding" || input.kind === "rerank") {
      const query = input.kind === "rerank" ? input.query : "";
      let tokens = 0;
      for (const text of input.inputs) tokens += promptTokensBound(query) + promptTokensBound(text);
      return { tokens, exact: false, rendered: null };
    }
    const ready = firstOf(this.dispatcher.runtime(pool.id).ready.values());
    const never = new AbortController().signal;
    try {
      let rendered: string | null = null;
      let text = "";
      if (input.kind === "messages") {
        const bound = input.messages.reduce(
          (sum, m) => sum + promptTokensBound(m.content) + m.role.length,
          0,
        );
        if (ready === null) return { tokens: bound, exact: false, rendered: null };
        text = await ready.client.applyTemplate(input.messages, never);
        rendered = text;
      } else text = input.prompt;
      const bound = promptTokensBound(text);
      if (bound + maxTokens <= ctx || ready === null) return { tokens: bound, exact: false, rendered };
      const tokens = await ready.client.countTokens(text, never);
      if (tokens + maxTokens > ctx)
        throw new OrchestratorError("INVALID_PARAMS", contextMessage(tokens, maxTokens, ctx), {
          poolId: pool.id,
          engine: pool.engine,
          details: { tokens_in: tokens, max_tokens: maxTokens, ctx },
        });
      return { tokens, exact: true, rendered };
    } catch (error) {
      if (isAssertion(error) || !isEngineError(error)) throw error;
      if (error.engineErrorKind === "rejected" || error.engineErrorKind === "unsupported")
        throw new OrchestratorError("INVALID_PARAMS", `the engine refused the prompt: ${error.message}`, {
          poolId: pool.id,
          engine: pool.engine,
        });
      // The engine went away meanwhile: the task queues, and its first attempt measures again.
      return { tokens: 0, exact: false, rendered: null };
    }
  }
}

/** The engine that a refusal is counted for: the one that was asked for, else that of the pool that was meant. */
function engineAsked({ engine, pinPoolId, modelRef }: Submission, pools: readonly PoolSpec[]): EngineKind {
  const meant = pools.find(
    (pool) => pool.id === pinPoolId || (modelRef !== null && servesModel(pool, modelRef)),
  );
  return engine ?? meant?.engine ?? pools[0]?.engine ?? "mock";
}

const workloadOfInput: Readonly<Record<TaskInput["kind"], Workload>> = {
  prompt: "completion",
  messages: "completion",
  embedding: "embedding",
  rerank: "rerank",
};

function workloadOf({ workload, input }: Submission): Workload {
  const implied = workloadOfInput[input.kind];
  if (workload !== null && workload !== implied)
    throw new OrchestratorError(
      "INVALID_PARAMS",
      `workload ${workload} does not go with this input, which is for ${implied}: completion takes prompt or messages, embedding takes inputs, rerank takes query and inputs`,
      { details: { field: "workload" } },
    );
  return implied;
}

function maxTokensOf(submission: Submission, workload: Workload, ctx: number, byDefault: number): number {
  const { maxTokens } = submission;
  if (workload !== "completion") {
    if (maxTokens === null) return 1;
    throw new OrchestratorError(
      "INVALID_PARAMS",
      `max_tokens does not apply to workload ${workload}: leave it out`,
      {
        details: { field: "max_tokens" },
      },
    );
  }
  const wanted = maxTokens ?? byDefault;
  if (wanted < ctx) return wanted;
  throw new OrchestratorError(
    "INVALID_PARAMS",
    `max_tokens ${wanted} leaves no room for a prompt in a context of ${ctx} tokens: ask for fewer`,
    { details: { field: "max_tokens", maximum: Math.max(0, ctx - 1) } },
  );
}

function samplingOf(pool: PoolSpec, asked: Partial<Sampling>): Sampling {
  const profile = samplerProfiles[pool.samplerProfileVersion] ?? samplerProfiles.v1;
  if (profile === undefined) throw new OrchestratorError("INTERNAL", "the sampler profile v1 is missing");
  return { ...profile, ...asked };
}

/** A model is called by its reference, by its file's name with or without .gguf, or by its pool's id. */
function servesModel(pool: PoolSpec, name: string): boolean {
  return modelNames(pool).includes(name);
}

function modelNames(pool: PoolSpec): string[] {
  const file = pool.modelPath?.split("/").pop() ?? null;
  const names = [pool.modelRef, pool.id];
  if (file !== null) names.push(file, file.replace(/\.gguf$/i, ""));
  return names;
}

function knownPool(pools: readonly PoolSpec[], poolId: string): PoolSpec {
  const pool = pools.find((p) => p.id === poolId);
  if (pool !== undefined) return pool;
  const ids = pools.map((p) => p.id);
  throw new OrchestratorError(
    "INVALID_PARAMS",
    `placement.pin_pool_id names no pool: the nearest is ${closest(poolId, ids)}, see GET /v1/pools`,
    { details: { field: "placement.pin_pool_id" } },
  );
}

function unknownModel(
  pools: readonly PoolSpec[],
  modelRef: string,
  pinned: string | null,
): OrchestratorError {
  const where = pinned === null ? "" : ` in pool ${pinned}`;
  const nearest = closest(modelRef, pools.flatMap(modelNames));
  return new OrchestratorError(
    "INVALID_PARAMS",
    `model_ref is not served${where}: the nearest is ${nearest}, see GET /v1/capabilities`,
    { details: { field: "model_ref", nearest } },
  );
}

function compare(a: readonly number[], b: readonly number[]): number {
  for (const [i, left] of a.entries()) {
    const difference = left - (b[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

function firstOf<T>(values: Iterable<T>): T | null {
  for (const value of values) return value;
  return null;
}

/**
 * JSON can spell what no engine and no digest can take: half of a surrogate pair, a number beyond all numbers
 * (RFC 7493, I-JSON). Refused, for anything else would be a silent change. The parser has bounded the depth.
 */
function assertInterchangeable(value: unknown): void {
  if (typeof value === "string" && !value.isWellFormed())
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "the body holds text that is not Unicode (half of a surrogate pair): send whole characters",
      { details: { in: "body" } },
    );
  if (typeof value === "number" && !Number.isFinite(value))
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "the body holds a number that is too large for a double: send a smaller one",
      { details: { in: "body" } },
    );
  if (typeof value !== "object" || value === null) return;
  for (const [name, member] of Object.entries(value)) {
    assertInterchangeable(name);
    assertInterchangeable(member);
  }
}

/** sha256 over the canonical JSON (RFC 8785) of the body, hex. */
function digestOf(body: unknown): string {
  return new Bun.CryptoHasher("sha256").update(canonicalize(body) ?? "").digest("hex");
}
