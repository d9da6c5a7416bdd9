/** Wire model of the configuration in force; contracts/openapi/control.yaml says the same. Used by api/config.ts. */
import { type Static, Type } from "@sinclair/typebox";
import { digestPattern } from "../../domain/artifact.ts";
import { poolChangeKinds } from "../../services/pool-changes.ts";
import { count, epochMs, nullable, oneOf, poolId, strict } from "./wire.ts";

export const ConfigRefusal = strict(
  {
    at_ms: epochMs("When it was read."),
    problems: Type.Array(Type.String(), {
      description:
        "Everything that is wrong with it: file, line and column, key, what was found and expected.",
    }),
  },
  { description: "A configuration that was read and not taken." },
);

export const UnfinishedPoolChange = strict(
  {
    pool_id: poolId("The pool."),
    change: oneOf(poolChangeKinds, { description: "What the file wants of it." }),
    problem: nullable(Type.String(), "Why it is as it was; null: it is under way."),
  },
  { description: "A pool that is not what the file says." },
);

export const ConfigStatus = strict(
  {
    source: nullable(Type.String(), "The file in use; null: there is none."),
    watched: Type.Boolean({
      description: "Whether a change is taken up by itself; SIGHUP does it in any case.",
    }),
    generation: count("How many configurations were taken since the start, that of the start included."),
    digest: Type.String({ pattern: digestPattern, description: "SHA-256 of all that it says." }),
    loaded_ms: epochMs("When it was read."),
    last_error: nullable(ConfigRefusal, "Of the newest try, where that was refused: nothing has changed."),
    pending_restart: Type.Array(Type.String(), {
      description: "Keys whose new values take effect at the next start.",
    }),
    pools: Type.Array(UnfinishedPoolChange, { description: "Pools that are not what the file says." }),
  },
  { description: "The configuration in force." },
);
export type ConfigStatusBody = Static<typeof ConfigStatus>;
