/**
 * Wire models of GET /v1/pools/{id}/logs (ORCHD-LOG-1): what engines said, and one of them followed. api/engine-logs.ts
 * answers with them; contracts/openapi/control.yaml repeats them.
 */
import { type Static, Type } from "@sinclair/typebox";
import { limits } from "../../domain/limits.ts";
import { count, oneOf, poolId, queryInteger, strict, text } from "./wire.ts";

const lineNumber = () => count("Counted from 0 for each replica since the daemon started.");

export const EngineLogQuery = strict({
  replica: Type.Optional(
    text(limits.labelCharsMax, "One replica's; needed to follow one of several.", { minLength: 1 }),
  ),
  lines: Type.Optional(queryInteger(1, limits.engineLogLinesMax, "So many of the last lines of each.")),
  follow: Type.Optional(
    oneOf(["1", "0"], { description: "1: a stream of lines instead, the last ones first." }),
  ),
  after: Type.Optional(
    queryInteger(
      0,
      Number.MAX_SAFE_INTEGER,
      "Follow from behind this line; Last-Event-ID says the same, and wins.",
    ),
  ),
});

/** Not the line's own JSON: what it says. */
export const EngineLogs = strict(
  {
    pool_id: poolId("The pool."),
    replicas: Type.Array(
      strict({
        id: Type.String(),
        first: lineNumber(),
        lines: Type.Array(Type.String(), { description: "Oldest first, without credentials." }),
      }),
    ),
  },
  { description: "The last lines that the engines of a pool logged." },
);
export type EngineLogsBody = Static<typeof EngineLogs>;

export const EngineLogLine = strict({ n: lineNumber(), text: Type.String() });
export const EngineLogGap = strict({ missed: count("Lines that were gone before they could be sent.") });
