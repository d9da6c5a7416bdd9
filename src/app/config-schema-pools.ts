/**
 * What the configuration file says of a pool: the keys of one entry of `pools`, their bounds and defaults.
 * Called by app/config-schema.ts only, which also says what always holds.
 */
import { Type } from "@sinclair/typebox";
import { engineKinds } from "../domain/engine-kind.ts";
import { limits } from "../domain/limits.ts";
import { fullPolicies, type MockFault, remoteKinds } from "../domain/pool.ts";
import { workloads } from "../domain/task.ts";
import {
  idleUnloadSchema,
  mockMemorySchema,
  poolDevicesSchema,
  replicaDevicesSchema,
} from "./config-schema-devices.ts";
import {
  integer,
  later,
  milliseconds,
  msMax,
  nullable,
  oneOf,
  optional,
  outer,
  section,
  text,
  variable,
} from "./config-schema-kinds.ts";

const faultKinds = [
  "crash",
  "stall",
  "late",
  "torn_utf8",
  "wrong_status",
  "diverge",
  "never_ready",
  "load_failure",
] as const satisfies readonly MockFault["kind"][];

const fault = Type.Object(
  {
    kind: oneOf(faultKinds, { description: "What goes wrong." }),
    nth: nullable(
      Type.Integer({ minimum: 1, maximum: 1_000_000_000 }),
      "Which generation, from 1; null: every one.",
    ),
    after_tokens: integer(0, limits.maxTokensMax, 0, "Tokens that still come."),
    delay_ms: milliseconds(0, 0, "For kind late."),
  },
  { additionalProperties: false },
);

const mock = Type.Object(
  {
    token_ms: optional(
      Type.Number({ minimum: 0, maximum: msMax, default: 5, description: "Time per token." }),
    ),
    prefill_ms_per_token: optional(Type.Number({ minimum: 0, maximum: msMax, default: 0.1 })),
    load_ms: milliseconds(0, 0, "Time to load."),
    memory_bytes: mockMemorySchema,
    faults: optional(Type.Array(fault, { maxItems: outer.listMax, default: [] })),
  },
  { additionalProperties: false, description: "The mock engine's behaviour." },
);

const preempt = Type.Object(
  {
    max_wait_ms: milliseconds(
      0,
      limits.preemptWaitMsDefault,
      "An interactive task that has waited so long may have a batch task cut; one with a deadline as soon as it needs that.",
    ),
    max_cuts: integer(
      1,
      outer.attemptsMax,
      limits.preemptCutsDefault,
      "A task is cut so often at most, then it runs to its end.",
    ),
    min_gain_ms: milliseconds(
      0,
      limits.preemptGainMsDefault,
      "Nobody is cut where a slot is expected to become free as soon by itself.",
    ),
  },
  { additionalProperties: false, description: "Cut batch tasks, with these bounds." },
);

const price = (of: string) =>
  optional(
    Type.Number({
      minimum: 0,
      maximum: outer.priceMax,
      default: 0,
      description: `For a thousand tokens of ${of}.`,
    }),
  );

export const poolSchema = Type.Object(
  {
    id: Type.String({
      pattern: "^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$",
      "x-expected": "1 to 64 lower-case letters, digits and . _ - (a letter or digit at both ends)",
    }),
    engine: optional(
      oneOf(engineKinds, {
        default: "llamacpp",
        description: "openai: a server elsewhere that speaks the OpenAI API; nothing is started.",
      }),
    ),
    model: text(
      "file:/absolute.gguf, file:relative.gguf (from models.dir), hf:ORG/REPO/FILE.gguf, https://HOST/FILE.gguf, mock:words, or as the server elsewhere names it.",
    ),
    base_url: nullable(
      text("https://HOST/v1 or http://HOST:PORT/v1"),
      "With engine openai: where the server is, with the path before /completions.",
    ),
    server: optional(
      oneOf(remoteKinds, {
        default: "auto",
        description:
          "With engine openai: what answers there, for what goes beyond the OpenAI API. auto: the server is asked.",
      }),
    ),
    api_key_file: nullable(text("Path"), "With engine openai: a file that holds its key; read at start."),
    api_key_env: nullable(variable(), "The variable that holds it; one of the two, or none."),
    rpc: optional(
      Type.Array(
        Type.String({
          pattern: "^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\\[[0-9A-Fa-f:.]+\\]):[0-9]{1,5}$",
          "x-expected": "HOST:PORT",
        }),
        {
          maxItems: outer.listMax,
          default: [],
          uniqueItems: true,
          description:
            "With engine llamacpp: its rpc-servers on other machines, which take a part of the model.",
        },
      ),
    ),
    replicas: integer(1, limits.replicasPerPoolMax, 1, "Engine processes."),
    devices: poolDevicesSchema,
    replica_devices: replicaDevicesSchema,
    slots: integer(1, limits.slotsPerReplicaMax, 4, "Concurrent sequences of one replica."),
    ctx: nullable(
      Type.Integer({ minimum: 16, maximum: outer.ctxMax }),
      "Tokens of context per slot; null: what the model was trained with, within bounds.",
    ),
    args: optional(
      Type.Array(text("One argument"), {
        maxItems: outer.listMax,
        default: [],
        description: "More llama-server flags.",
      }),
    ),
    env: optional(
      Type.Record(
        Type.String({ pattern: "^[A-Za-z_][A-Za-z0-9_]*$" }),
        Type.String({ maxLength: outer.textCharsMax }),
        {
          additionalProperties: false,
          default: {},
          description: "Environment of the engine, beside the daemon's own.",
        },
      ),
    ),
    preload: optional(Type.Boolean({ default: true, description: "Load at start instead of at first use." })),
    idle_unload_ms: idleUnloadSchema,
    queue: section(
      {
        capacity: integer(1, limits.queueCapacityMax, limits.queueCapacityDefault, "Tasks that may wait."),
        full_policy: optional(
          oneOf(fullPolicies, {
            default: "reject",
            description:
              "A full queue: reject refuses; drop-lru drops the oldest waiting batch task that has produced nothing, else refuses; shed-low-priority refuses batch tasks from 80 % on, interactive ones when full.",
          }),
        ),
      },
      "The pool's queue.",
    ),
    timeouts: section(
      {
        load_ms: milliseconds(1, limits.loadMsDefault, "From the start to ready."),
        first_token_ms: milliseconds(
          1,
          limits.firstTokenMsDefault,
          "Without any sign of life before the first token.",
        ),
        inter_token_ms: milliseconds(1, limits.interTokenMsDefault, "Between two tokens."),
        task_ms: nullable(
          Type.Integer({ minimum: 1, maximum: msMax }),
          "All attempts of a task together, since the daemon's start; null: no bound.",
        ),
        stop_grace_ms: milliseconds(0, limits.stopGraceMsDefault, "Between SIGTERM and SIGKILL."),
      },
      "Watchdogs.",
    ),
    price: section(
      { per_1k_tokens_in: price("prompt"), per_1k_tokens_out: price("output") },
      "What budgets of cost are charged, in any unit that is the same everywhere.",
    ),
    preempt: optional(
      Type.Union([Type.Boolean(), preempt], {
        default: false,
        description:
          "Cut the cheapest running batch task for an interactive one that waits too long; it goes on later. true: with the defaults.",
      }),
    ),
    sampler_profile_version: later("v1"),
    workloads: nullable(
      Type.Array(oneOf(workloads, {}), { minItems: 1, maxItems: workloads.length, uniqueItems: true }),
      "What the model can do; null: what its file says, else completion.",
    ),
    mock: nullable(mock, "Only with engine mock."),
  },
  { additionalProperties: false },
);
