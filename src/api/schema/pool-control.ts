/** Wire models of what operators tell pools (ORCHD-DRAIN-1); contracts/openapi/control.yaml says the same. Used by api/pool-control.ts. */
import { Type } from "@sinclair/typebox";
import { limits } from "../../domain/limits.ts";
import { strict } from "./wire.ts";

export const DrainRequest = strict(
  {
    deadline_ms: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: limits.deadlineMsMax,
        description: `After so long what still runs is cut and waits; ${limits.drainDeadlineMsDefault} where absent.`,
      }),
    ),
  },
  { description: "How a pool is drained." },
);
