/** Wire models of what operators tell pools; contracts/openapi/control.yaml says the same. Used by api/pool-control.ts. */
import { Type } from "@sinclair/typebox";
import { digestPattern } from "../../domain/artifact.ts";
import { limits } from "../../domain/limits.ts";
import { modelRefCharsMax } from "../../domain/model-ref.ts";
import { reloadStrategies } from "../../domain/pool-reload.ts";
import { oneOf, strict, text } from "./wire.ts";

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

export const ReloadRequest = strict(
  {
    new_model_ref: text(
      modelRefCharsMax,
      "The model that the pool shall have, as pools[].model names it, or the id of a catalog entry; the same as now starts its engines anew.",
      { minLength: 1 },
    ),
    digest: Type.Optional(
      Type.String({ pattern: digestPattern, description: "SHA-256 that the file must have." }),
    ),
    strategy: oneOf(reloadStrategies, {
      description:
        "surge: the new engines load beside the old ones, which serve until then. recreate: the old ones end before the new ones load, so that both need not fit into memory.",
    }),
    deadline_ms: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: limits.deadlineMsMax,
        description: `After so long what still runs is cut and goes on with the new engines; what has sent something and gets another model finishes first. ${limits.drainDeadlineMsDefault} where absent.`,
      }),
    ),
  },
  { description: "Which model a pool gets, and how." },
);

export const ReloadQuery = strict({
  wait: Type.Optional(
    oneOf(["true", "false"], {
      description:
        "true: answers when the new model serves (200), or when the old one does again (409 RELOAD_FAILED).",
    }),
  ),
});
