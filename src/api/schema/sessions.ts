/** The wire models of /v1/sessions (contracts/openapi/data.yaml says the same). Used by api/sessions.ts. */
import { type Static, Type } from "@sinclair/typebox";
import { count, milliseconds, nullable, strict, uuid } from "./wire.ts";

export const SessionIdParams = strict({ id: uuid("The session's id.") });

export const SessionView = strict(
  {
    session_id: uuid("As its tasks named it."),
    ttl_ms_remaining: milliseconds(
      "It is forgotten after so long without a task; while one lives, the time has not begun to run.",
    ),
    turns: count("Tasks that it has had."),
    kv_bytes: nullable(
      count("Memory that its context takes on the engine."),
      "Null where that is not known, which is so before an attempt of this run has ended and where the engine does not say.",
    ),
    kv_warmth: Type.Boolean({
      description: "Whether the engine reused cached tokens for its last turn, as the engine reported.",
    }),
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
  {
    description: "A session as it stands now. What is left is the least that it and its key may still spend.",
  },
);
export type SessionViewBody = Static<typeof SessionView>;
