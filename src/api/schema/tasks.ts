/**
 * Wire models of /v1/tasks (ORCHD-TASK-1 and on). api/tasks.ts validates with them and contracts/openapi/data.yaml
 * repeats them; test/contract/schemas.test.ts holds the two together. Stream events are in stream.ts.
 *
 * What a schema cannot say in a way that every tool checks (exactly one of prompt, messages and inputs) is said
 * by `givenInputs`. Judging values against the model, such as max_tokens beyond its context, is admission's.
 */
import { type Static, Type } from "@sinclair/typebox";
import { digestPattern } from "../../domain/artifact.ts";
import { engineKinds } from "../../domain/engine-kind.ts";
import { limits } from "../../domain/limits.ts";
import { chosenFor, passedOverFor, placementModes } from "../../domain/pool-choice.ts";
import type { PredictionBasis } from "../../domain/predictor.ts";
import { determinisms, priorities, taskStates, workloads } from "../../domain/task.ts";
import { WireErrorCode } from "./errors.ts";
import {
  count,
  epochMs,
  metadata,
  milliseconds,
  nullable,
  oneOf,
  poolId,
  probability,
  queryInteger,
  strict,
  text,
  uuid,
} from "./wire.ts";

export const Message = strict(
  {
    role: oneOf(["system", "user", "assistant"]),
    content: text(limits.promptCharsMax, "What was said."),
  },
  { description: "One turn of a chat; the model's own chat template turns them into a prompt." },
);

export const SamplingRequest = strict(
  {
    temperature: Type.Optional(Type.Number({ minimum: 0, maximum: 10, description: "0 is greedy." })),
    top_p: Type.Optional(Type.Number({ minimum: 0, maximum: 1 })),
    top_k: Type.Optional(Type.Integer({ minimum: 0, maximum: 1_000_000, description: "0 turns it off." })),
    min_p: Type.Optional(Type.Number({ minimum: 0, maximum: 1 })),
    repeat_penalty: Type.Optional(Type.Number({ minimum: 0, maximum: 10, description: "1 turns it off." })),
    presence_penalty: Type.Optional(Type.Number({ minimum: -10, maximum: 10 })),
    frequency_penalty: Type.Optional(Type.Number({ minimum: -10, maximum: 10 })),
    stop: Type.Optional(
      Type.Array(text(limits.stopStringCharsMax, "Generation ends before this text.", { minLength: 1 }), {
        maxItems: limits.stopStringsMax,
      }),
    ),
    grammar: Type.Optional(
      text(limits.grammarCharsMax, "A GBNF grammar that the output follows.", { minLength: 1 }),
    ),
    json_schema: Type.Optional(
      Type.Object(
        {},
        {
          additionalProperties: true,
          description: "A JSON Schema that the output follows; not together with grammar.",
        },
      ),
    ),
  },
  {
    description:
      "What is not given comes from the pool's sampler profile (v1: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05).",
  },
);

const poolIds = (description: string) =>
  Type.Array(poolId("A pool."), { minItems: 1, maxItems: limits.poolsMax, description });

export const PlacementRequest = strict(
  {
    mode: oneOf(placementModes, {
      description:
        "auto: any pool that can do it; pin: pin_pool_id; prefer: the first of prefer_pools that takes tasks.",
    }),
    pin_pool_id: Type.Optional(poolId("The pool that runs the task; goes with mode pin.")),
    prefer_pools: Type.Optional(poolIds("Best first; goes with mode prefer.")),
    avoid_pools: Type.Optional(
      poolIds("Pools that do not run the task; with allow_fallback true they do where no other takes it."),
    ),
    require_device_mask: Type.Optional(
      Type.Array(Type.Integer({ minimum: 0, maximum: limits.deviceNumberMax }), {
        minItems: 1,
        maxItems: limits.deviceNumberMax + 1,
        description:
          "Numbers of graphics cards, N for gpu-N: only pools that name their devices, all of them cards among these, run the task.",
      }),
    ),
    allow_fallback: Type.Optional(
      Type.Boolean({
        description:
          "Whether another pool may run the task when none that is wanted takes it. When absent: yes for mode prefer, no for a pinned pool and for avoid_pools.",
      }),
    ),
  },
  { description: "Where the task may run. What leaves no pool is refused with REPLICA_EXHAUSTED." },
);

export const BudgetRequest = strict(
  {
    tokens: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: limits.budgetTokensMax,
        description: "Tokens of prompts and outputs together.",
      }),
    ),
    time_ms: Type.Optional(
      Type.Integer({ minimum: 0, maximum: limits.budgetTimeMsMax, description: "Time on a slot." }),
    ),
    cost: Type.Optional(
      Type.Number({
        minimum: 0,
        maximum: limits.budgetCostMax,
        description: "In the unit of the pools' prices.",
      }),
    ),
  },
  {
    description:
      "What the session may spend, this task included; without session_id, what this task may. It can only lower a bound, never raise one. What is not named stays as it is.",
  },
);

export const TaskRequest = strict(
  {
    prompt: Type.Optional(text(limits.promptCharsMax, "Text to continue.", { minLength: 1 })),
    messages: Type.Optional(
      Type.Array(Message, { minItems: 1, maxItems: limits.messagesMax, description: "A chat to answer." }),
    ),
    inputs: Type.Optional(
      Type.Array(text(limits.promptCharsMax, "One text.", { minLength: 1 }), {
        minItems: 1,
        maxItems: limits.inputsMax,
        description: "Texts to embed, or to rank against query.",
      }),
    ),
    query: Type.Optional(
      text(limits.promptCharsMax, "What inputs are ranked against (workload rerank).", { minLength: 1 }),
    ),
    task_id: Type.Optional(
      uuid(
        "Idempotency key: the same body again gets the same answer, another body gets 409. Minted when absent.",
      ),
    ),
    session_id: Type.Optional(
      uuid(
        "The session that the task belongs to: its turns share context and a budget. Made by the first task that names it; it belongs to that task's key.",
      ),
    ),
    workload: Type.Optional(
      oneOf(workloads, {
        description: "Follows from the input when absent: inputs embed, with query they are ranked.",
      }),
    ),
    model_ref: Type.Optional(
      text(1024, "A model from GET /v1/capabilities; any that fits when absent.", { minLength: 1 }),
    ),
    engine: Type.Optional(oneOf(engineKinds, { description: "Only pools of this engine." })),
    ctx: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: 2 ** 31 - 1,
        description: "Tokens of context, prompt and output together; the pool's when absent.",
      }),
    ),
    priority: Type.Optional(oneOf(priorities, { description: "interactive (default) starts before batch." })),
    seed: Type.Optional(
      Type.Integer({ minimum: 0, maximum: limits.seedMax, description: "Drawn and reported when absent." }),
    ),
    determinism: Type.Optional(
      oneOf(determinisms, {
        description:
          "strict: the task runs alone on its replica and without cached context, so that the same request with the same seed gives the same output on the same engine. best_effort when absent.",
      }),
    ),
    sampler_profile_version: Type.Optional(oneOf(["v1"])),
    sampling: Type.Optional(SamplingRequest),
    max_tokens: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: limits.maxTokensMax,
        description: `Output tokens at most; ${limits.maxTokensDefault} when absent.`,
      }),
    ),
    deadline_ms: Type.Optional(
      Type.Integer({
        // Zero and less get DEADLINE_UNMET from admission, which says more than a schema can.
        minimum: -limits.deadlineMsMax,
        maximum: limits.deadlineMsMax,
        description:
          "Milliseconds from now to the end. What cannot be met is refused at once with DEADLINE_UNMET.",
      }),
    ),
    expected_tokens: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: limits.maxTokensMax,
        description: "How long the output will probably be: helps the prediction.",
      }),
    ),
    budget: Type.Optional(BudgetRequest),
    kv_hint: Type.Optional(
      oneOf(["reuse", "cold"], {
        description: "cold: no cached context is used. reuse when absent, cold with determinism strict.",
      }),
    ),
    placement: Type.Optional(PlacementRequest),
    on_disconnect: Type.Optional(
      oneOf(["cancel", "continue"], {
        description: "What happens when the last viewer leaves; cancel when absent.",
      }),
    ),
    metadata: Type.Optional(metadata("Labels that are carried and shown, never interpreted.")),
  },
  {
    description: "Exactly one of prompt, messages and inputs.",
    oneOf: [{ required: ["prompt"] }, { required: ["messages"] }, { required: ["inputs"] }],
  },
);
export type TaskRequestBody = Static<typeof TaskRequest>;

/** The inputs that a body names, in the order of the contract: exactly one of them is right. */
export function givenInputs(body: TaskRequestBody): ("prompt" | "messages" | "inputs")[] {
  return (["prompt", "messages", "inputs"] as const).filter((field) => body[field] !== undefined);
}

const streamUrl = () => Type.String({ description: "Where the events are, relative to this server." });

const predictionBases = ["assumed", "warm_up", "learned"] as const satisfies readonly PredictionBasis[];
const sessionId = () => nullable(uuid("The session that was named."));
const basisDescription =
  "What the prediction stands on: assumed (the pool never ran), warm_up (what its engine showed when it loaded), learned (tasks that ended).";

/** What a client is promised; each time it is asked for, from the moment of the answer. */
const promise = {
  session_id: sessionId(),
  pool_id: poolId("The pool that will run it."),
  queue_position: count("Tasks that will start before it."),
  predicted_start_ms: milliseconds("Milliseconds from now to the start: as likely sooner as later."),
  predicted_start_low_ms: milliseconds("Four of five starts come between this and predicted_start_high_ms."),
  predicted_start_high_ms: milliseconds("One of ten starts comes later."),
  predicted_end_ms: milliseconds("Milliseconds from now to the end."),
  on_time_probability: nullable(probability(), "How likely deadline_ms is met; null without a deadline."),
  prediction_basis: oneOf(predictionBases, { description: basisDescription }),
  backoff_ms: milliseconds("How long to wait before the next request; 0 when there is no need to."),
} as const;

export const TaskAccepted = strict(
  { task_id: uuid("The task's id."), ...promise, stream_url: streamUrl() },
  {
    description:
      "The task was accepted and will run, whether or not anyone watches. Predictions come from a model of the pool that learns as it runs.",
  },
);
export type TaskAcceptedBody = Static<typeof TaskAccepted>;

export const TaskDryRun = strict(
  {
    dry_run: Type.Literal(true, { description: "Nothing was enqueued." }),
    ...promise,
    placement: strict(
      {
        fallback: Type.Boolean({ description: "The pool is not where placement wanted the task first." }),
        pools: Type.Array(
          strict({
            pool_id: poolId("A pool."),
            reason: oneOf([...chosenFor, ...passedOverFor], {
              description: "What decided for the chosen pool, or what first spoke against another.",
            }),
          }),
          { description: "Every pool; empty where the task was accepted before." },
        ),
      },
      { description: "How the pool was chosen." },
    ),
  },
  {
    description:
      "What POST /v1/tasks would promise now. Of a task_id and body that were accepted before it is what was promised then.",
  },
);
export type TaskDryRunBody = Static<typeof TaskDryRun>;

export const TaskSubmitQuery = strict({
  dry_run: Type.Optional(
    oneOf(["true", "false"], {
      description:
        "true: answers 200 with the promise, or the refusal, that the task would get; nothing is enqueued.",
    }),
  ),
});

export const TaskError = strict(
  { code: WireErrorCode, message: Type.String(), retriable: Type.Boolean() },
  { description: "Why the task failed or was canceled." },
);

export const TaskView = strict(
  {
    task_id: uuid("The task's id."),
    session_id: sessionId(),
    state: oneOf(taskStates, { description: "done, failed and canceled are final." }),
    workload: oneOf(workloads),
    pool_id: poolId("The pool that runs it."),
    replica_id: nullable(Type.String(), "The engine process of the present or last attempt."),
    model_ref: Type.String(),
    priority: oneOf(priorities),
    seed: Type.Integer({ minimum: 0, maximum: limits.seedMax }),
    queue_position: nullable(count("Tasks that will start before it."), "Null unless it waits."),
    predicted_start_ms: nullable(milliseconds("Milliseconds from now."), "Null unless it waits."),
    predicted_start_low_ms: nullable(milliseconds("Milliseconds from now."), "Null unless it waits."),
    predicted_start_high_ms: nullable(milliseconds("Milliseconds from now."), "Null unless it waits."),
    predicted_end_ms: nullable(milliseconds("Milliseconds from now."), "Null once it has ended."),
    on_time_probability: nullable(probability(), "Null without a deadline and once it has ended."),
    prediction_basis: nullable(oneOf(predictionBases), `${basisDescription} Null once it has ended.`),
    waiting_for: nullable(Type.String(), "Why it waits, as a sentence; null unless it waits."),
    created_ms: epochMs("When it was accepted"),
    started_ms: nullable(epochMs("When its first attempt started")),
    finished_ms: nullable(epochMs("When it ended")),
    attempts: count("Attempts begun so far."),
    tokens_in: nullable(count("Tokens of the prompt."), "Null until they were counted."),
    tokens_out: count("Token events so far; of a task that is done, the tokens generated."),
    finish_reason: nullable(oneOf(["stop", "length"]), "Null unless the task is done."),
    error: nullable(TaskError, "Null unless it failed or was canceled."),
    artifact_id: nullable(
      Type.String({ pattern: digestPattern }),
      "The trace artifact that it left; null until it has ended, or where it left none.",
    ),
    stream_url: streamUrl(),
    metadata: metadata("The labels that were given."),
  },
  { description: "A task as it stands." },
);
export type TaskViewBody = Static<typeof TaskView>;

const cursor = () => Type.String({ minLength: 1, maxLength: 256, pattern: "^[A-Za-z0-9._~:=-]+$" });

export const TaskList = strict(
  {
    tasks: Type.Array(TaskView),
    next_cursor: nullable(cursor(), "Give it as ?cursor= for the next page; null on the last one."),
  },
  { description: "One page of the caller's tasks, newest first." },
);

export const TaskListQuery = strict({
  state: Type.Optional(oneOf(taskStates, { description: "Only tasks in this state." })),
  session_id: Type.Optional(uuid("Only tasks of this session.")),
  limit: Type.Optional(
    queryInteger(1, limits.listPageMax, `Tasks on a page; ${limits.listPageDefault} when absent.`),
  ),
  cursor: Type.Optional(Type.String({ ...cursor(), description: "The next_cursor of the page before." })),
});

export const TaskIdParams = strict({ id: uuid("The task's id.") });

export const StreamQuery = strict({
  after: Type.Optional(
    queryInteger(
      0,
      Number.MAX_SAFE_INTEGER,
      "Send only events with a greater id. The Last-Event-ID header, which browsers send by themselves, wins over it.",
    ),
  ),
  observe: Type.Optional(
    oneOf(["0", "1"], { description: "1: this viewer does not count for on_disconnect." }),
  ),
});

/** Request headers of the stream; other headers are none of its business. */
export const StreamHeaders = Type.Object({
  "last-event-id": Type.Optional(
    Type.String({
      pattern: "^[0-9]{1,15}$",
      description: "The id of the last event that was received: the stream goes on after it.",
    }),
  ),
});
