/**
 * One attempt's generation, whatever earlier attempts of the task have sent: asks the planner (domain/continuation.ts)
 * how to go on, speaks to the engine, and lets only what is new through. Called by the attempt runner.
 *
 * Always holds: what was sent is not emitted again; a divergence is noticed before anything behind it is emitted, and
 * then costs one further generation, which cannot diverge.
 */
import { assertNever } from "../domain/assert.ts";
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
  type EngineClient,
  EngineError,
  type GenerateRequest,
  type GenerateResult,
  type GenerateSink,
} from "../ports/engine.ts";
import type { TaskRecord } from "./task-registry.ts";

export interface GenerationNeeds {
  readonly record: TaskRecord;
  readonly client: EngineClient;
  readonly build: EngineBuild;
  /** Rendered. */
  readonly prompt: string;
  readonly slot: number;
  readonly signal: AbortSignal;
  readonly onPrompt: GenerateSink["onPrompt"];
  /** A sign of life that may be nothing new. */
  readonly onHeard: () => void;
  /** What is new. */
  readonly emit: (text: string, ids: readonly number[]) => void;
}

export interface Generated {
  readonly done: GenerateResult;
  /** False: the engine was told to stop and has not said yet that the slot is free. */
  readonly slotFree: boolean;
}

export async function generateOn(needs: GenerationNeeds): Promise<Generated> {
  const { record } = needs;
  const input = await inputOf(needs);
  let plan = planContinuation(input);
  for (;;) {
    record.exact = plan.exact;
    if (plan.way !== "fresh") record.continuations++;
    const generated = await carryOut(needs, plan);
    if (generated !== "diverged") return generated;
    await needs.client.awaitSlotFree(needs.slot, needs.signal);
    // Counted once: the replay and what follows it are one way to go on.
    record.continuations--;
    plan = planAfterDivergence({ ...input, exact: "no" });
  }
}

/** Ids that the engine did not name are asked for: without them the answer goes on by text. */
async function inputOf({ record, client, build, signal }: GenerationNeeds): Promise<ContinuationInput> {
  const tokens = new Map<string, readonly number[]>();
  for (const text of unnamedTexts(record.sent)) tokens.set(text, await client.tokenize(text, false, signal));
  const sent = nameIds(record.sent, (text) => tokens.get(text) ?? null);
  return { spec: record.spec, sent, first: record.firstBuild ?? build, next: build, exact: record.exact };
}

async function carryOut(needs: GenerationNeeds, plan: ContinuationPlan): Promise<Generated | "diverged"> {
  const { record, client, prompt, signal, emit, onPrompt } = needs;
  const { spec } = record;
  switch (plan.way) {
    case "fresh": {
      const request = requestOf(needs, prompt, spec.maxTokens, spec.seed);
      return {
        done: await client.generate(request, { onPrompt, onToken: emit }, signal),
        slotFree: true,
      };
    }
    case "finished":
      return { done: nothingLeft(record), slotFree: true };
    case "impossible":
      throw new EngineError("protocol", plan.message);
    case "replay":
      return await goOn(needs, plan, prompt);
    case "prefix":
      return await goOn(
        needs,
        plan,
        plan.by === "text"
          ? prompt + plan.text
          : [...(await client.tokenize(prompt, true, signal)), ...plan.ids],
      );
    default:
      return assertNever(plan, "continuation plan");
  }
}

async function goOn(
  needs: GenerationNeeds,
  plan: GoingPlan,
  prompt: string | readonly number[],
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
    slotFree: done !== null,
  };
}

function requestOf(
  { record: { spec }, slot }: GenerationNeeds,
  prompt: string | readonly number[],
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

/** Only the engine's last word was lost. */
const nothingLeft = (record: TaskRecord): GenerateResult => ({
  finishReason: "length",
  tokensIn: record.tokensIn ?? record.spec.tokensIn,
  tokensCached: 0,
  tokensOut: tokensIn(record.sent),
  promptMs: 0,
  decodeMs: 0,
});
