/**
 * One attempt's generation, whatever earlier attempts of the task have sent: asks the planner (domain/continuation.ts)
 * how to go on, speaks to the engine, and lets only what is new through. Called by the attempt runner.
 *
 * Always holds: what was sent is not emitted again; a divergence is noticed before anything behind it is emitted, and
 * then costs one further generation, which cannot diverge.
 */
import { assert, assertNever } from "../domain/assert.ts";
import {
  type ContinuationInput,
  type ContinuationPlan,
  type EngineBuild,
  type GoingPlan,
  nameIds,
  planAfterDivergence,
  planContinuation,
  tokensIn,
  tokensOfEnded,
  unnamedTexts,
} from "../domain/continuation.ts";
import { ContinuedOutput } from "../domain/continued-output.ts";
import {
  type ChatPrompt,
  type EngineClient,
  EngineError,
  type EngineWork,
  type GenerateRequest,
  type GenerateResult,
  type GenerateSink,
} from "../ports/engine.ts";
import type { TaskRecord } from "./task-registry.ts";

export interface GenerationNeeds {
  readonly record: TaskRecord;
  readonly client: EngineClient;
  readonly build: EngineBuild;
  /** Rendered, where the engine does not do that itself. */
  readonly prompt: string | ChatPrompt;
  readonly slot: number;
  readonly signal: AbortSignal;
  readonly onPrompt: GenerateSink["onPrompt"];
  /** A sign of life that may be nothing new. */
  readonly onHeard: () => void;
  /** What is new. */
  readonly emit: (text: string, ids: readonly number[]) => void;
}

export interface Generated {
  /** The task's whole answer, whatever attempts it took. */
  readonly done: GenerateResult;
  /** This attempt's part of it, with what it said again. */
  readonly work: EngineWork;
  /** False: the engine was told to stop and has not said yet that the slot is free. */
  readonly slotFree: boolean;
}

export async function generateOn(needs: GenerationNeeds): Promise<Generated> {
  const { record } = needs;
  const input = await inputOf(needs);
  let plan = planContinuation(input);
  // One to which no engine has said anything is no continuation; a replay and what follows it are one.
  let counted = plan.way === "fresh";
  const count = (): void => {
    if (!counted) record.continuations++;
    counted = true;
  };
  const onHeard = (): void => {
    count();
    needs.onHeard();
  };
  const counting = counted ? needs : { ...needs, onHeard };
  for (;;) {
    record.exact = plan.exact;
    const generated = await carryOut(counting, plan);
    if (generated !== "diverged") {
      count();
      return generated;
    }
    await needs.client.awaitSlotFree(needs.slot, needs.signal);
    plan = planAfterDivergence({ ...input, exact: "no" });
  }
}

/** Ids that the engine did not name are asked for: without them the answer goes on by text. */
async function inputOf(needs: GenerationNeeds): Promise<ContinuationInput> {
  const { record, client, build, signal } = needs;
  const resumes = resumesOf(needs);
  const tokens = new Map<string, readonly number[]>();
  const unnamed = resumes.resumes === undefined ? unnamedTexts(record.sent) : [];
  for (const text of unnamed) tokens.set(text, await client.tokenize(text, false, signal));
  const sent = nameIds(record.sent, (text) => tokens.get(text) ?? null);
  const first = record.firstBuild ?? build;
  return { spec: record.spec, sent, first, next: build, exact: record.exact, ...resumes };
}

function resumesOf({ client: { prompts }, prompt }: GenerationNeeds): Pick<ContinuationInput, "resumes"> {
  if (typeof prompt === "string") return prompts?.tokenizes === false ? { resumes: "text" } : {};
  return { resumes: prompts?.chat === "continues" ? "text" : "never" };
}

async function carryOut(needs: GenerationNeeds, plan: ContinuationPlan): Promise<Generated | "diverged"> {
  const { record, client, prompt, signal, emit, onPrompt, onHeard } = needs;
  const { spec } = record;
  switch (plan.way) {
    case "fresh": {
      const request = requestOf(needs, prompt, spec.maxTokens, spec.seed);
      const done = await client.generate(request, { onPrompt, onToken: emit, onHeard }, signal);
      return { done, work: done, slotFree: true };
    }
    case "finished":
      return { done: nothingLeft(record), work: noWork, slotFree: true };
    case "impossible":
      throw new EngineError("protocol", plan.message);
    case "replay":
      return await goOn(needs, plan, prompt);
    case "prefix":
      // By text the engine is asked in this instant: tasks reach it in the order in which they were started.
      return await goOn(
        needs,
        plan,
        plan.by === "text" ? behindText(needs, plan.text) : await behindIds(needs, plan.ids),
      );
    default:
      return assertNever(plan, "continuation plan");
  }
}

/** The prompt that ends with what was sent. */
const behindText = ({ prompt }: GenerationNeeds, text: string): string | ChatPrompt =>
  typeof prompt === "string" ? prompt + text : { ...prompt, said: text };

async function behindIds(
  { client, prompt, signal }: GenerationNeeds,
  ids: readonly number[],
): Promise<readonly number[]> {
  assert(typeof prompt === "string", "a chat that the engine renders goes on by text");
  return [...(await client.tokenize(prompt, true, signal)), ...ids];
}

async function goOn(
  needs: GenerationNeeds,
  plan: GoingPlan,
  prompt: GenerateRequest["prompt"],
): Promise<Generated | "diverged"> {
  const { record, client, signal, onPrompt, onHeard, emit } = needs;
  const output = new ContinuedOutput(plan, record.spec.sampling.stop, emit);
  const call = new AbortController();
  const relay = (): void => call.abort();
  signal.addEventListener("abort", relay, { once: true });
  if (signal.aborted) relay();
  let done: GenerateResult | null = null;
  try {
    done = await client.generate(
      requestOf(needs, prompt, plan.maxTokens, plan.seed),
      {
        onPrompt,
        onHeard,
        onToken: (text, ids) => {
          onHeard();
          if (output.take(text, ids) !== "going") call.abort();
        },
      },
      call.signal,
    );
  } catch (error) {
    // Aborted here because nothing more is wanted of it.
    if (signal.aborted || output.state === "going") throw error;
  } finally {
    signal.removeEventListener("abort", relay);
  }
  const state = done === null ? output.state : output.end();
  if (state === "diverged") return "diverged";
  const said = done ?? {
    ...nothingLeft(record),
    finishReason: "stop" as const,
    tokensOut: output.tokensSaid,
  };
  const result = { ...said, ...tokensOfEnded(plan, record.tokensIn, said) };
  return {
    done: state === "stopped" ? { ...result, finishReason: "stop" } : result,
    work: done ?? noWork,
    slotFree: done !== null,
  };
}

function requestOf(
  { record: { spec }, slot }: GenerationNeeds,
  prompt: GenerateRequest["prompt"],
  maxTokens: number,
  seed: number,
): GenerateRequest {
  return {
    prompt,
    maxTokens,
    seed,
    sampling: spec.sampling,
    // strict: what a slot still holds must not change the batches that the prompt is computed in.
    cachePrompt: spec.kvHint === "reuse" && spec.determinism !== "strict",
    slot,
  };
}

/** None that the engine gave an account of. */
const noWork: EngineWork = { tokensIn: 0, tokensCached: 0, tokensOut: 0, promptMs: 0, decodeMs: 0 };

/** Only the engine's last word was lost. */
const nothingLeft = (record: TaskRecord): GenerateResult => ({
  finishReason: "length",
  tokensIn: record.tokensIn ?? record.spec.tokensIn,
  tokensCached: 0,
  tokensOut: tokensIn(record.sent),
  promptMs: 0,
  decodeMs: 0,
});
