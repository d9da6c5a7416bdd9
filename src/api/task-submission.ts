/**
 * From the body of POST /v1/tasks to what admission takes: every field under its own name, absent ones null, and
 * what a schema cannot say of fields that go together. Called by tasks.ts. Values are judged by admission.
 */
import { OrchestratorError } from "../domain/errors.ts";
import { grammarDepth } from "../domain/grammar.ts";
import { limits } from "../domain/limits.ts";
import { anywhere, type PlacementMode, type PlacementWish } from "../domain/pool-choice.ts";
import type { Budget, Sampling, TaskInput } from "../domain/task.ts";
import type { Submission } from "../services/admission.ts";
import type { RequestContext } from "./request-context.ts";
import { givenInputs, type TaskRequestBody } from "./schema/tasks.ts";

/** Shared: many tasks wait at once. */
const noMetadata: Readonly<Record<string, string>> = Object.freeze({});

export function submissionOf(
  body: TaskRequestBody,
  caller: RequestContext & { readonly keyId: string },
): Submission {
  return {
    keyId: caller.keyId,
    correlationId: caller.correlationId,
    taskId: body.task_id?.toLowerCase() ?? null,
    sessionId: body.session_id?.toLowerCase() ?? null,
    workload: body.workload ?? null,
    input: inputOf(body),
    modelRef: body.model_ref ?? null,
    engine: body.engine ?? null,
    placement: placementOf(body),
    ctx: body.ctx ?? null,
    priority: body.priority ?? null,
    seed: body.seed ?? null,
    determinism: body.determinism ?? null,
    sampling: samplingOf(body),
    maxTokens: body.max_tokens ?? null,
    deadlineMs: body.deadline_ms ?? null,
    expectedTokens: body.expected_tokens ?? null,
    budget: budgetOf(body),
    kvHint: body.kv_hint ?? null,
    onDisconnect: body.on_disconnect ?? null,
    metadata: body.metadata ?? noMetadata,
    body,
  };
}

function inputOf(body: TaskRequestBody): TaskInput {
  const given = givenInputs(body);
  if (given.length !== 1)
    throw new OrchestratorError(
      "INVALID_PARAMS",
      `exactly one of prompt, messages and inputs is required, ${given.length === 0 ? "none was given" : `${given.join(" and ")} were given`}`,
      { details: { fields: given } },
    );
  if (body.query !== undefined && body.inputs === undefined)
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "query goes with inputs (workload rerank): add inputs or leave it out",
      {
        details: { field: "query" },
      },
    );
  if (body.prompt !== undefined) return { kind: "prompt", prompt: body.prompt };
  if (body.messages !== undefined) return { kind: "messages", messages: body.messages };
  const inputs = body.inputs ?? [];
  return body.query === undefined
    ? { kind: "embedding", inputs }
    : { kind: "rerank", query: body.query, inputs };
}

function placementOf({ placement }: TaskRequestBody): PlacementWish {
  if (placement === undefined) return anywhere;
  const {
    mode,
    pin_pool_id,
    prefer_pools,
    avoid_pools = [],
    require_device_mask,
    allow_fallback,
  } = placement;
  assertGoesWith(mode, "pin", "pin_pool_id", pin_pool_id !== undefined);
  assertGoesWith(mode, "prefer", "prefer_pools", prefer_pools !== undefined);
  const wanted = pin_pool_id === undefined ? (prefer_pools ?? []) : [pin_pool_id];
  const contradiction = wanted.find((poolId) => avoid_pools.includes(poolId));
  if (contradiction !== undefined)
    throw invalidPlacement(
      "avoid_pools",
      `placement wants pool ${contradiction} and avoids it: name it once`,
    );
  return {
    mode,
    pinPoolId: pin_pool_id ?? null,
    preferPools: prefer_pools ?? [],
    avoidPools: avoid_pools,
    requireDevices: require_device_mask ?? null,
    allowFallback: allow_fallback ?? null,
  };
}

function assertGoesWith(mode: PlacementMode, needing: PlacementMode, field: string, given: boolean): void {
  if ((mode === needing) === given) return;
  throw invalidPlacement(
    field,
    given
      ? `placement.${field} goes with placement.mode ${needing}`
      : `placement.mode ${needing} needs placement.${field}`,
  );
}

const invalidPlacement = (field: string, message: string): OrchestratorError =>
  new OrchestratorError("INVALID_PARAMS", message, { details: { field: `placement.${field}` } });

function budgetOf({ budget }: TaskRequestBody): Budget | null {
  if (budget === undefined) return null;
  const { tokens = null, time_ms: timeMs = null, cost = null } = budget;
  return tokens === null && timeMs === null && cost === null ? null : { tokens, timeMs, cost };
}

function samplingOf({ sampling }: TaskRequestBody): Partial<Sampling> {
  if (sampling === undefined) return {};
  if (sampling.grammar !== undefined && sampling.json_schema !== undefined)
    throw new OrchestratorError(
      "INVALID_PARAMS",
      "sampling.grammar and sampling.json_schema exclude each other: give one",
      {
        details: { field: "sampling.json_schema" },
      },
    );
  if (sampling.grammar !== undefined && grammarDepth(sampling.grammar) > limits.grammarDepthMax)
    throw new OrchestratorError(
      "INVALID_PARAMS",
      `sampling.grammar nests deeper than ${limits.grammarDepthMax} groups: give the inner ones rules of their own`,
      { details: { field: "sampling.grammar" } },
    );
  const asked: Partial<Sampling> = {
    temperature: sampling.temperature as number,
    topP: sampling.top_p as number,
    topK: sampling.top_k as number,
    minP: sampling.min_p as number,
    repeatPenalty: sampling.repeat_penalty as number,
    presencePenalty: sampling.presence_penalty as number,
    frequencyPenalty: sampling.frequency_penalty as number,
    stop: sampling.stop as string[],
    grammar: sampling.grammar as string,
    jsonSchema: sampling.json_schema,
  };
  return Object.fromEntries(Object.entries(asked).filter(([, value]) => value !== undefined));
}
