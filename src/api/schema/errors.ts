/**
 * The error envelope: the body of every response that is not a success (ORCHD-HTTP-2). Written only by
 * app/middleware/errors.ts; routes name it for their non-2xx statuses, so that /docs shows it.
 */
import { type Static, Type } from "@sinclair/typebox";
import { errorCodes } from "../../domain/errors.ts";
import { milliseconds, oneOf, strict } from "./wire.ts";

/** Every code that exists; the table with statuses is domain/errors.ts. */
export const WireErrorCode = oneOf(errorCodes, {
  description: "What went wrong. The set is closed; each code has one HTTP status.",
});

export const ErrorEnvelope = strict(
  {
    code: WireErrorCode,
    message: Type.String({ description: "What happened and what to do next, for a person." }),
    retriable: Type.Boolean({
      description: "Whether the same request may succeed later without being changed.",
    }),
    retry_after_ms: Type.Optional(
      milliseconds("When to try again; on 429 and 503 also in Retry-After and X-Backoff-Ms."),
    ),
    policy_label: Type.Optional(
      Type.String({
        description:
          "Which bound refused: reject, drop-lru or shed-low-priority (queue full), rate (requests), streams (open streams), sessions (all in use), budget-tokens, budget-time or budget-cost.",
      }),
    ),
    engine: Type.Optional(Type.String({ description: "The engine concerned, where there is one." })),
    pool_id: Type.Optional(Type.String({ description: "The pool concerned, where there is one." })),
    details: Type.Optional(
      Type.Object(
        {},
        {
          additionalProperties: true,
          description: "Machine-readable particulars, such as the field at fault.",
        },
      ),
    ),
    correlation_id: Type.String({
      description: "The same as the X-Correlation-Id header: quote it to find the request in the logs.",
    }),
  },
  { description: "The body of every error." },
);
export type ErrorEnvelopeBody = Static<typeof ErrorEnvelope>;
