/**
 * Wire model of GET /v1/capabilities (ORCHD-CAP-1): what a client can ask for, built from what runs now.
 * api/capabilities.ts answers with it; contracts/openapi/control.yaml repeats it.
 */
import { type Static, Type } from "@sinclair/typebox";
import { catalogStates } from "../../domain/catalog.ts";
import { workloads } from "../../domain/task.ts";
import { PoolState } from "./pools.ts";
import { count, nullable, oneOf, poolId, strict } from "./wire.ts";

export const RateLimits = strict(
  {
    requests_per_second: nullable(
      Type.Number({ minimum: 0 }),
      "What one key may ask on average; null: no limit.",
    ),
    burst: nullable(count("Requests."), "Requests that may come at once; null: no limit."),
    streams_per_key: count("Streams that one key may hold open."),
  },
  { description: "What one API key may do." },
);

export const EngineCapability = strict(
  {
    engine: Type.String(),
    engine_version: nullable(
      Type.String(),
      "The newest that a replica reported; null while none has been ready.",
    ),
    engine_versions: Type.Array(Type.String(), {
      description: "Of all replicas that have told theirs, oldest first.",
    }),
    ctx_max: count("Tokens of context of its widest pool; 0 while unknown."),
    max_tokens_out: count("The largest max_tokens that can be accepted; 0 while unknown."),
    concurrency: count("Sequences that all its pools together can decode at once."),
    supported_workloads: Type.Array(oneOf(workloads)),
    rate_limits: RateLimits,
    features: Type.Array(Type.String(), { description: "What at least one of its pools does." }),
  },
  { description: "One engine in one version." },
);

export const PoolCapability = strict(
  {
    id: poolId("The pool's id."),
    engine: Type.String(),
    engine_version: nullable(
      Type.String(),
      "The newest that a replica reported; null while none has been ready.",
    ),
    engine_versions: Type.Array(Type.String(), {
      description: "Of all replicas that have told theirs, oldest first.",
    }),
    model_ref: Type.String(),
    state: PoolState,
    ready: Type.Boolean(),
    slots_total: count("Sequences that it can decode at once."),
    ctx: nullable(
      count("Tokens of context for each task."),
      "Null while unknown: the model decides once it is loaded.",
    ),
    max_tokens_out: nullable(
      count("The largest max_tokens that can be accepted."),
      "Null while the context is unknown.",
    ),
    sampler_profile_version: Type.String(),
    workloads: Type.Array(oneOf(workloads)),
    features: Type.Array(Type.String(), {
      description:
        "Such as sse, resume, sessions, continuation, chat_template, grammar, json_schema, preemption.",
    }),
  },
  { description: "A pool as a task can name it." },
);

export const ModelCapability = strict(
  {
    model_ref: Type.String(),
    pool_ids: Type.Array(poolId("A pool that serves it.")),
    size_bytes: nullable(count("Bytes of the weights."), "Null while unknown."),
    params: nullable(count("Number of weights."), "Null while unknown."),
    ctx_train: nullable(count("Tokens of context that it was trained with."), "Null while unknown."),
    state: oneOf(catalogStates, { description: "Retired: it takes no new tasks." }),
  },
  { description: "A model that a task can name." },
);

export const Capabilities = strict(
  {
    api_version: Type.String({ description: "The version of this contract." }),
    engines: Type.Array(EngineCapability),
    pools: Type.Array(PoolCapability),
    models: Type.Array(ModelCapability),
  },
  { description: "What can be asked for, from what runs now." },
);
export type CapabilitiesBody = Static<typeof Capabilities>;
