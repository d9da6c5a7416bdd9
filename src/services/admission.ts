/**
 * Admission: from what a client asks to a task that was accepted with a promise, or a refusal that says what
 * to do. What may take time comes first: the pool, the engine counting tokens or rendering a chat. Then one turn
 * of the dispatcher decides what depends on others: idempotency, the place in the queue, the deadline, the
 * budget. `assess` goes the same way up to that turn and asks the dispatcher what it would say: a dry run.
 * Called by the API; `probe` asks each pool's queue for /readyz.
 */
import { assert, assertNever, isAssertion } from "../domain/assert.ts";
import { gpuNumberOf } from "../domain/devices.ts";
import type { EngineKind } from "../domain/engine-kind.ts";
import { isOrchestratorError, OrchestratorError } from "../domain/errors.ts";
import { limits } from "../domain/limits.ts";
import type { PoolSpec } from "../domain/pool.ts";
import {
  choosePool,
  type PlacementWish,
  type PoolCandidate,
  type PoolChoice,
  type PoolReason,
} from "../domain/pool-choice.ts";
import type { Prediction } from "../domain/predictor.ts";
import { samplerProfiles } from "../domain/sampler-profile.ts";
import type {
  Budget,
  Determinism,
  Priority,
  Sampling,
  TaskInput,
  TaskSpec,
  Workload,
} from "../domain/task.ts";
import type { Entropy } from "../ports/clock.ts";
import { isEngineError } from "../ports/engine.ts";
import type { Dispatcher } from "./dispatcher.ts";
import {
  chatPrompt,
  chatTokensBound,
  contextMessage,
  keepsStrict,
  notStrict,
  promptTokensBound,
  tokensOf,
} from "./fitting-prompt.ts";
import type { PlacementNote, Submitted } from "./mailbox.ts";
import { modelNames, noPool } from "./refusals.ts";
import { assertInterchangeable, digestOf } from "./request-body.ts";
import type { Remaining } from "./sessions.ts";

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
  readonly placement: PlacementWish;
  readonly ctx: number | null;
  readonly priority: Priority | null;
  readonly seed: number | null;
  readonly determinism: Determinism | null;
  readonly sampling: Partial<Sampling>;
  readonly maxTokens: number | null;
  readonly deadlineMs: number | null;
  readonly expectedTokens: number | null;
  readonly budget: Budget | null;
  readonly kvHint: "reuse" | "cold" | null;
  readonly onDisconnect: "cancel" | "continue" | null;
  readonly metadata: Readonly<Record<string, string>>;
  /** The body as it came: the same task_id must come with the same body. */
  readonly body: unknown;
}

/** As they are now. */
export interface AdmissionOptions {
  readonly defaultMaxTokens: number;
  readonly defaultDeadlineMs: number | null;
}

/** What a submission would be told now. */
export interface Assessed {
  readonly spec: TaskSpec;
  readonly promise: Prediction;
  /** What its budgets leave; null where none is set. */
  readonly remaining: Remaining | null;
  /** null: the task_id and body were accepted before, and this is what was promised then. */
  readonly choice: PoolChoice | null;
}

interface Prepared {
  readonly spec: TaskSpec;
  readonly choice: PoolChoice;
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
    /** Names of a pool's model beside its own: those of its catalog entries. */
    private readonly aliasesOf: (pool: PoolSpec) => readonly string[] = () => [],
  ) {}

  /** `watched`: whoever submits is the first viewer of its stream. */
  async submit(submission: Submission, watched = false): Promise<Submitted> {
    const prepared = await this.prepare(submission, (reasons) => {
      const { correlationId, keyId, placement } = submission;
      const unplaced = { pinned: placement.mode === "pin", why: reasonsText(reasons) };
      this.dispatcher.noteUnplaced(correlationId, keyId, unplaced);
    }).catch((error: unknown) => {
      if (isOrchestratorError(error)) this.dispatcher.noteRefusal(engineAsked(submission, this.pools), error);
      throw error;
    });
    if ("record" in prepared) return await this.dispatcher.repeats.onceSynced(prepared);
    return await this.dispatcher.submit(
      await this.countedForBudget(prepared.spec),
      noteOf(prepared.choice),
      watched,
    );
  }

  /** The promise that `submit` would be answered with now, or the same refusal; nothing is enqueued or counted. */
  async assess(submission: Submission): Promise<Assessed> {
    const prepared = await this.prepare(submission);
    if ("record" in prepared) {
      const { spec, promise } = prepared.record;
      return { spec, promise, remaining: this.dispatcher.remaining(prepared.record), choice: null };
    }
    const spec = await this.countedForBudget(prepared.spec);
    const { promise, refusal, remaining } = this.dispatcher.assess(spec);
    if (refusal !== null) throw refusal;
    return { ...prepared, spec, promise, remaining };
  }

  /** Where only the bound of the prompt's length is too much for a budget, the engine counts before that is said. */
  private async countedForBudget(spec: TaskSpec): Promise<TaskSpec> {
    const { input, renderedPrompt, poolId } = spec;
    if (spec.tokensInExact || this.dispatcher.budgetRefusal(spec) === null) return spec;
    const text = renderedPrompt ?? (input.kind === "prompt" ? input.prompt : null);
    const ready = firstOf(this.dispatcher.runtime(poolId).ready.values());
    if (text === null || ready === null) return spec;
    try {
      const tokensIn = await tokensOf(text, ready.client, new AbortController().signal);
      return tokensIn === null ? spec : { ...spec, tokensIn, tokensInExact: true };
    } catch (error) {
      if (!isEngineError(error)) throw error;
      return spec;
    }
  }

  /**
   * Everything that may take time or be wrong; a task that was accepted before is the answer itself. `ruledOut` hears
   * of a placement that leaves no pool, before that is thrown.
   */
  private async prepare(
    submission: Submission,
    ruledOut: (reasons: readonly PoolReason[]) => void = () => undefined,
  ): Promise<Prepared | Submitted> {
    assertInterchangeable(submission.body);
    // Only a task that names itself can come twice; then the first answer stands, whatever the pools do now.
    const bodyDigest = submission.taskId === null ? "" : digestOf(submission.body);
    if (submission.taskId !== null) {
      const repeat = this.dispatcher.repeats.find(submission.taskId, submission.keyId, bodyDigest);
      if (isOrchestratorError(repeat)) throw repeat;
      if (repeat !== null) return repeat;
    }
    const workload = workloadOf(submission);
    const determinism = submission.determinism ?? "best_effort";
    if (determinism === "strict" && submission.kvHint === "reuse")
      throw new OrchestratorError(
        "INVALID_PARAMS",
        "kv_hint reuse does not go with determinism strict, which uses no cached context: leave one of them out",
        { details: { field: "kv_hint" } },
      );
    const { pool, choice } = this.choosePool(submission, workload, ruledOut);
    const ready = firstOf(this.dispatcher.runtime(pool.id).ready.values());
    if (determinism === "strict" && workload === "completion" && ready !== null && !keepsStrict(ready.client))
      throw new OrchestratorError("INVALID_PARAMS", notStrict, {
        poolId: pool.id,
        engine: pool.engine,
        details: { field: "determinism" },
      });
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
    const spec: TaskSpec = {
      taskId: submission.taskId ?? this.entropy.uuid(),
      keyId: submission.keyId,
      correlationId: submission.correlationId,
      sessionId: submission.sessionId,
      workload,
      input: submission.input,
      poolId: pool.id,
      engine: pool.engine,
      pinned: choice.pinned && !choice.fallback,
      modelRef: pool.modelRef,
      priority: submission.priority ?? "interactive",
      seed: submission.seed ?? this.entropy.uint32(),
      determinism,
      samplerProfileVersion: pool.samplerProfileVersion,
      sampling: samplingOf(pool, submission.sampling),
      maxTokens,
      ctx,
      deadlineMs,
      expectedTokens: submission.expectedTokens,
      budget: submission.budget,
      kvHint: determinism === "strict" ? "cold" : (submission.kvHint ?? "reuse"),
      onDisconnect: submission.onDisconnect ?? "cancel",
      metadata: submission.metadata,
      tokensIn: size.tokens,
      tokensInExact: size.exact,
      renderedPrompt: size.rendered,
      bodyDigest,
    };
    return { spec, choice };
  }

  /** What a small interactive task would be told by each pool now; null: it would be taken. */
  probe(): { poolId: string; error: OrchestratorError | null }[] {
    return this.pools.map((pool) => ({
      poolId: pool.id,
      error: this.dispatcher.refusalFor(pool.id, "interactive"),
    }));
  }

  private choosePool(
    submission: Submission,
    workload: Workload,
    ruledOut: (reasons: readonly PoolReason[]) => void,
  ): { pool: PoolSpec; choice: PoolChoice } {
    const { modelRef, engine, placement: wish } = submission;
    const maxTokens = workload === "completion" ? (submission.maxTokens ?? this.options.defaultMaxTokens) : 0;
    // Room for the output and a prompt of one token at least.
    const ctxMin = Math.max(submission.ctx ?? 0, maxTokens + 1);
    const request = { modelRef, engine, workload, ctxMin, wish };
    const choice = choosePool(
      request,
      this.pools.map((pool) => this.candidate(pool, submission)),
    );
    const poolOf = (poolId: string): PoolSpec => {
      const pool = this.pools.find(({ id }) => id === poolId);
      assert(pool !== undefined, `pool ${poolId} exists`);
      return pool;
    };
    if (choice.kind === "chosen") return { pool: poolOf(choice.poolId), choice };
    if (choice.kind === "ruled_out") ruledOut(choice.reasons);
    if (choice.kind !== "ctx_too_large") throw noPool(choice, request, this.pools);
    // Which of the two is too large, and how much there is, is told by the checks themselves.
    const widest = poolOf(choice.poolId);
    maxTokensOf(submission, workload, this.contextOf(widest, submission.ctx), this.options.defaultMaxTokens);
    throw new OrchestratorError("INTERNAL", `pool ${widest.id} is too narrow and says nothing of it`);
  }

  private candidate(pool: PoolSpec, { priority, sessionId }: Submission): PoolCandidate {
    const { dispatcher } = this;
    const { ready, identity, submitting } = dispatcher.runtime(pool.id);
    const { interactive, batch } = dispatcher.view.depth(pool.id);
    let slotsBusy = 0;
    for (const replicaId of ready.keys()) slotsBusy += dispatcher.view.slotsBusy(replicaId);
    return {
      id: pool.id,
      engine: pool.engine,
      modelNames: [...modelNames(pool), ...this.aliasesOf(pool)],
      workloads: pool.workloads,
      ctxPerSlot: identity?.ctxPerSlot ?? pool.ctx,
      slots: pool.slots * pool.replicas,
      readyReplicas: ready.size,
      slotsBusy,
      // What came in the same instant waits for its turn and is not in the queue yet.
      waiting: interactive + batch + submitting,
      refusal: dispatcher.refusalFor(pool.id, priority ?? "interactive")?.code ?? null,
      devices: pool.devices.flatMap((name) => gpuNumberOf(name) ?? []),
      holdsSession: sessionId !== null && dispatcher.view.holdsSession(pool.id, sessionId),
    };
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

  /** Tokens of the prompt: exact where the engine had to be asked, else an upper bound, as budgets need it. */
  private async measure(
    input: TaskInput,
    pool: PoolSpec,
    ctx: number,
    maxTokens: number,
  ): Promise<PromptSize> {
    const guess: PromptSize = { tokens: tokensBound(input), exact: false, rendered: null };
    const ready = firstOf(this.dispatcher.runtime(pool.id).ready.values());
    if (ready === null || input.kind === "embedding" || input.kind === "rerank") return guess;
    const never = new AbortController().signal;
    try {
      const prompt =
        input.kind === "messages" ? await chatPrompt(input.messages, ready.client, never) : input.prompt;
      const rendered = input.kind === "messages" && typeof prompt === "string" ? prompt : null;
      const bound = promptTokensBound(prompt);
      if (bound + maxTokens <= ctx) return { tokens: bound, exact: false, rendered };
      const tokens = await tokensOf(prompt, ready.client, never);
      if (tokens === null) return { tokens: bound, exact: false, rendered };
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
      return guess;
    }
  }
}

/** No tokenizer makes more of it. */
function tokensBound(input: TaskInput): number {
  switch (input.kind) {
    case "prompt":
      return promptTokensBound(input.prompt);
    case "messages":
      return chatTokensBound(input.messages);
    case "embedding":
      return input.inputs.reduce((sum, text) => sum + promptTokensBound(text), 0);
    case "rerank": {
      const query = promptTokensBound(input.query);
      return input.inputs.reduce((sum, text) => sum + query + promptTokensBound(text), 0);
    }
    default:
      return assertNever(input, "task input");
  }
}

/** For the log and the metrics: what decided, and what spoke against every other pool. */
function noteOf({ poolId, rule, reasons, fallback, candidates }: PoolChoice): PlacementNote {
  const others = reasons.filter((one) => one.poolId !== poolId);
  const why = others.length === 0 ? rule : `${rule}, ${reasonsText(others)}`;
  return { why, fallback, candidates };
}

const reasonsText = (reasons: readonly PoolReason[]): string =>
  reasons.map(({ poolId, reason }) => `${poolId} ${reason}`).join(", ");

/** The engine that a refusal is counted for: the one that was asked for, else that of the pool that was meant. */
function engineAsked({ engine, placement, modelRef }: Submission, pools: readonly PoolSpec[]): EngineKind {
  const meant = pools.find(
    (pool) => pool.id === placement.pinPoolId || (modelRef !== null && modelNames(pool).includes(modelRef)),
  );
  assert(pools[0] !== undefined, "there is a pool");
  return engine ?? (meant ?? pools[0]).engine;
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
  // Most tasks ask for nothing of their own, and many wait at once: they share the profile.
  return Object.keys(asked).length === 0 ? profile : { ...profile, ...asked };
}

function firstOf<T>(values: Iterable<T>): T | null {
  for (const value of values) return value;
  return null;
}
