/**
 * Wire models of the events in GET /v1/tasks/{id}/stream (ORCHD-STREAM-1): the JSON behind `data:`, one model for
 * each `event:` name. The domain's own types are domain/events.ts; nothing validates events at run time, these
 * stand in the contract and in the tests that read live streams.
 */
import { Type } from "@sinclair/typebox";
import { digestPattern } from "../../domain/artifact.ts";
import { limits } from "../../domain/limits.ts";
import { determinisms } from "../../domain/task.ts";
import { WireErrorCode } from "./errors.ts";
import { count, milliseconds, nullable, oneOf, poolId, probability, strict, uuid } from "./wire.ts";

const artifactId = () =>
  nullable(
    Type.String({ pattern: digestPattern }),
    "The trace artifact that the task leaves; null: it leaves none.",
  );
const perSecond = () => Type.Number({ minimum: 0 });

export const StartedEventData = strict(
  {
    task_id: uuid("The task's id."),
    session_id: nullable(uuid("The session that was named.")),
    queue_position: count("What it was when the task was accepted."),
    predicted_start_ms: milliseconds("What was promised when the task was accepted."),
    engine: Type.String(),
    engine_version: Type.String(),
    pool_id: poolId("The pool that runs it."),
    replica_id: Type.String({ description: "The engine process of the first attempt." }),
    model_ref: Type.String(),
    seed: Type.Integer({
      minimum: 0,
      maximum: limits.seedMax,
      description: "The one to repeat the run with.",
    }),
    determinism: oneOf(determinisms, {
      description: "strict: it runs alone on its replica, without cached context.",
    }),
    kv_warmth: Type.Boolean({ description: "Whether the engine reused cached prompt tokens." }),
    tokens_in: count("Tokens of the prompt."),
    attempt: Type.Integer({ minimum: 1 }),
  },
  { description: "event: started. Once per task, whatever the number of attempts." },
);

export const TokenEventData = strict(
  {
    t: Type.String({ description: "A piece of text: valid Unicode, no character is ever split." }),
    i: count("Counts from 0 without gaps."),
  },
  { description: "event: token." },
);

export const MetricsEventData = strict(
  {
    queue_depth: count("Tasks waiting in the pool."),
    on_time_probability: nullable(probability(), "Null without a deadline."),
    kv_warmth: Type.Boolean(),
    tokens_out: count("Token events so far."),
    tokens_per_second: perSecond(),
    tokens_budget_remaining: nullable(
      count("Tokens that are left to spend."),
      "Null without a budget of tokens.",
    ),
    time_budget_remaining_ms: nullable(
      milliseconds("Time on a slot that is left to spend."),
      "Null without a budget of time.",
    ),
    cost_budget_remaining: nullable(Type.Number({ minimum: 0 }), "Null without a budget of cost."),
  },
  { description: "event: metrics. From time to time after the first token." },
);

export const EndEventData = strict(
  {
    tokens_in: count("Tokens of the prompt."),
    tokens_out: count(
      "Tokens generated: with a stop string, or where characters are of several tokens, more than token events.",
    ),
    decode_ms: milliseconds(
      "From the first token to the end by the daemon's clock, also where the task was cut and waited in between; 0 without a token.",
    ),
    decode_time_ms: milliseconds("The same as decode_ms."),
    first_token_ms: nullable(
      milliseconds("From acceptance to the first token."),
      "Null when there was no token.",
    ),
    queue_ms: milliseconds("From acceptance to the start."),
    finish_reason: oneOf(["stop", "length"]),
    artifact_id: artifactId(),
    continuations: count("How often the task was cut and went on where it stopped."),
    exact: oneOf(["yes", "unverified", "no"], {
      description:
        "Whether the output equals that of an uncut run: yes (never cut, or a replay that matched), unverified (greedy decoding went on behind what was sent), no (sampled, or a replay that differed).",
    }),
    result: Type.Optional(
      Type.Union(
        [
          strict(
            { embeddings: Type.Array(Type.Array(Type.Number())) },
            { description: "One vector for each input, in order." },
          ),
          strict(
            { results: Type.Array(strict({ index: count("Which input."), score: Type.Number() })) },
            { description: "Inputs by score, best first." },
          ),
        ],
        { description: "What embedding and rerank tasks produce." },
      ),
    ),
  },
  { description: "event: end. The last event of a task that is done." },
);

export const ErrorEventData = strict(
  {
    code: WireErrorCode,
    message: Type.String(),
    engine: Type.String(),
    retriable: Type.Boolean(),
    retry_after_ms: nullable(milliseconds("When to try again.")),
    artifact_id: artifactId(),
  },
  { description: "event: error. The last event of a task that failed or was canceled." },
);
